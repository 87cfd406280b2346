"""
S3 through boto3, with the client of Airflow's own hook: credentials renew themselves.

The store verifies what it stores. A file up to ``PART_BYTES`` goes in one put with our SHA-256
(``ChecksumSHA256``). A larger one goes in parts, each with its CRC-32, and is completed with the CRC-32 of
all of it, which was computed while it was downloaded. Both are hashes of what the CDN sent, so that neither
the disk nor the way to the store can change a byte unnoticed. A server that ignores checksums just stores.

The signature does not cover the payload a second time: the checksum's header is signed, and says the same.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

from airflow_provider_luma.download.staging import StagedFile
from airflow_provider_luma.download.stores.base import StoredObject, Upload, join, status_of
from airflow_provider_luma.download.stores.body import PIECE_BYTES, FileBody
from airflow_provider_luma.threads import start_thread

PART_BYTES = 16 * 1024 * 1024
PARTS_AT_ONCE = 4
_SMALL_BYTES = 256 * 1024
_MAX_PARTS = 10_000
_NOT_FOUND, _PRECONDITION_FAILED, _CONFLICT = 404, 412, 409


class _PartNotSentError(Exception):
    """Another part of the upload has failed."""


class S3Store:
    """
    A prefix in a bucket.

    :param client: of boto3; safe to share between threads.
    :param is_conditional: whether the server is known to honour ``If-None-Match``; not every one does.
    """

    keeps_metadata = True
    multipart_above: float = PART_BYTES

    def __init__(self, client: Any, bucket: str, prefix: str, *, is_conditional: bool) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self.is_conditional = is_conditional

    def uri(self, name: str) -> str:
        return f"s3://{self._bucket}/{join(self._prefix, name)}"

    def head(self, name: str) -> StoredObject | None:
        found = _or_none(lambda: self._client.head_object(**self._at(name)))
        if found is None:
            return None
        # Some servers write the names of headers with capitals.
        metadata = {key.lower(): value for key, value in found.get("Metadata", {}).items()}
        return StoredObject(found["ContentLength"], found.get("ContentType", ""), metadata)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        found = _or_none(lambda: self._client.get_object(**self._at(name)))
        if found is None:
            return None
        with closing(found["Body"]) as body:
            return bytes(body.read(max_bytes))

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with closing(self._client.get_object(**self._at(name))["Body"]) as body:
            for chunk in body.iter_chunks(PIECE_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def staging_folder(self) -> None:
        return None

    def put(self, upload: Upload) -> None:
        condition = {"IfNoneMatch": "*"} if upload.if_absent else {}
        try:
            if upload.file.size <= PART_BYTES:
                self._put_at_once(upload, condition)
            else:
                self._put_in_parts(upload, condition)
        except Exception as error:
            # 409: another conditional put of the same key is in progress.
            if upload.if_absent and status_of(error) in {_PRECONDITION_FAILED, _CONFLICT}:
                raise FileExistsError(upload.name) from None
            raise

    def _put_at_once(self, upload: Upload, condition: Mapping[str, str]) -> None:
        file = upload.file
        # Of bytes botocore does not ask first whether it may send them (Expect: 100-continue).
        is_small = file.size <= _SMALL_BYTES
        self._client.put_object(
            **self._at(upload.name),
            **_description(upload),
            **condition,
            Body=file.read_at(0, file.size) if is_small else FileBody(upload, 0, file.size),
            ContentLength=file.size,
            ChecksumSHA256=_base64(file.sha256_bytes),
        )

    def _put_in_parts(self, upload: Upload, condition: Mapping[str, str]) -> None:
        created = self._client.create_multipart_upload(
            **self._at(upload.name),
            **_description(upload),
            ChecksumAlgorithm="CRC32",
            ChecksumType="FULL_OBJECT",
        )
        at = {**self._at(upload.name), "UploadId": created["UploadId"]}
        try:
            parts = self._put_parts(upload, at)
            upload.check_stopped()
            self._client.complete_multipart_upload(
                **at,
                **condition,
                MultipartUpload={"Parts": parts},
                ChecksumCRC32=_crc32_base64(upload.file.crc32),
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=upload.file.size,
            )
        except BaseException:
            with suppress(Exception):  # a lifecycle rule removes what is left
                self._client.abort_multipart_upload(**at)
            raise

    def _put_parts(self, upload: Upload, at: Mapping[str, str]) -> list[dict[str, Any]]:
        size = max(PART_BYTES, -(-upload.file.size // _MAX_PARTS))
        parts = list(enumerate(range(0, upload.file.size, size), 1))
        failed = threading.Event()

        def put(share: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
            try:
                return [self._put_part(upload, at, *part, size, failed) for part in share]
            except BaseException:
                failed.set()
                raise

        # Daemons, as a stop waits for nobody; an executor's threads would be joined when Python exits.
        shares = [start_thread(partial(put, parts[first::PARTS_AT_ONCE])) for first in range(PARTS_AT_ONCE)]
        futures = [future for future, _ in shares]
        errors = [error for future in futures if (error := future.exception())]
        upload.check_stopped()  # botocore wraps what a body raises
        # Those of the parts that were not sent come after the one that they were not sent for.
        for error in sorted(errors, key=lambda error: isinstance(error, _PartNotSentError)):
            raise error
        done = [part for future in futures for part in future.result()]
        return sorted(done, key=lambda part: int(part["PartNumber"]))

    def _put_part(
        self,
        upload: Upload,
        at: Mapping[str, str],
        number: int,
        offset: int,
        size: int,
        failed: threading.Event,
    ) -> dict[str, Any]:
        if failed.is_set():
            raise _PartNotSentError
        size = min(size, upload.file.size - offset)
        checksum = _crc32_base64(_crc32(upload.file, offset, size))
        part = self._client.upload_part(
            **at,
            PartNumber=number,
            Body=FileBody(upload, offset, size),
            ContentLength=size,
            ChecksumCRC32=checksum,
        )
        return {"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": checksum}

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": join(self._prefix, name)}


def _description(upload: Upload) -> dict[str, Any]:
    return {"ContentType": upload.content_type, "Metadata": upload.ascii_metadata()}


def _crc32(file: StagedFile, offset: int, size: int) -> int:
    checksum = 0
    for start in range(offset, offset + size, PIECE_BYTES):
        checksum = zlib.crc32(file.read_at(start, min(PIECE_BYTES, offset + size - start)), checksum)
    return checksum


def _crc32_base64(checksum: int) -> str:
    return _base64(checksum.to_bytes(4))


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _or_none(request: Callable[[], Any]) -> Any:
    try:
        return request()
    except Exception as error:
        if status_of(error) == _NOT_FOUND:
            return None
        raise
