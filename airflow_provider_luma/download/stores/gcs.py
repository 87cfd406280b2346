"""
Google Cloud Storage through its own client, made by Airflow's own hook: credentials renew themselves.

Content type, metadata and the condition (``if_generation_match=0``) go with the upload, whose CRC-32C the
store verifies.
"""

from __future__ import annotations

import hashlib
from typing import Any

from airflow_provider_luma.download.stores.base import (
    NO_MULTIPART,
    StoredObject,
    Upload,
    join,
    status_of,
)
from airflow_provider_luma.download.stores.body import FileBody

_CHUNK_BYTES = 5 * 1024 * 1024  # a multiple of 256 KiB, as the store wants it
_NOT_FOUND, _PRECONDITION_FAILED = 404, 412
_TIMEOUT = 60


class GCSStore:
    """
    A prefix in a bucket.

    :param client: a ``google.cloud.storage.Client``.
    :param is_conditional: whether the server honours generations; the real one does.
    """

    keeps_metadata = True
    multipart_above = NO_MULTIPART

    def __init__(self, client: Any, bucket: str, prefix: str, *, is_conditional: bool) -> None:
        self._bucket = client.bucket(bucket)
        self._bucket_name = bucket
        self._prefix = prefix
        self.is_conditional = is_conditional

    def uri(self, name: str) -> str:
        return f"gs://{self._bucket_name}/{join(self._prefix, name)}"

    def head(self, name: str) -> StoredObject | None:
        blob = self._bucket.get_blob(join(self._prefix, name), timeout=_TIMEOUT)
        return blob and StoredObject(int(blob.size), blob.content_type or "", blob.metadata or {})

    def read(self, name: str, max_bytes: int) -> bytes | None:
        try:
            content = self._blob(name).download_as_bytes(
                start=0, end=max_bytes - 1, timeout=_TIMEOUT, checksum=None
            )
        except Exception as error:
            if status_of(error) == _NOT_FOUND:
                return None
            raise
        return bytes(content)

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._blob(name).open("rb", chunk_size=_CHUNK_BYTES) as reader:
            while chunk := reader.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def staging_folder(self) -> None:
        return None

    def put(self, upload: Upload) -> None:
        blob = self._bucket.blob(join(self._prefix, upload.name), chunk_size=_CHUNK_BYTES)
        blob.metadata = upload.ascii_metadata()
        try:
            blob.upload_from_file(
                FileBody(upload, 0, upload.file.size),
                size=upload.file.size,
                content_type=upload.content_type,
                checksum="crc32c",
                timeout=_TIMEOUT,
                **({"if_generation_match": 0} if upload.if_absent else {}),
            )
        except Exception as error:
            if upload.if_absent and status_of(error) == _PRECONDITION_FAILED:
                raise FileExistsError(upload.name) from None
            raise

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(join(self._prefix, name))
