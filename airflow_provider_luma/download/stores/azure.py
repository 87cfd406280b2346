"""
Azure Blob Storage through its own client, made by Airflow's own hook: credentials renew themselves.

A file is staged in blocks and committed at once, with its content type, metadata and the condition
(``If-None-Match``). Memory holds one block, whatever the client's settings are.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from airflow_provider_luma.download.stores.base import (
    NO_MULTIPART,
    StoredObject,
    Upload,
    join,
    status_of,
)

_BLOCK_BYTES = 5 * 1024 * 1024
_MAX_BLOCKS = 50_000
_NOT_FOUND, _PRECONDITION_FAILED, _CONFLICT = 404, 412, 409


class AzureStore:
    """
    A prefix in a container.

    :param client: an ``azure.storage.blob.BlobServiceClient``.
    """

    is_conditional = True
    keeps_metadata = True
    multipart_above = NO_MULTIPART

    def __init__(self, client: Any, container: str, prefix: str) -> None:
        self._client = client.get_container_client(container)
        self._container = container
        self._prefix = prefix

    def uri(self, name: str) -> str:
        return f"abfs://{self._container}/{join(self._prefix, name)}"

    def head(self, name: str) -> StoredObject | None:
        try:
            found = self._blob(name).get_blob_properties()
        except Exception as error:
            if status_of(error) == _NOT_FOUND:
                return None
            raise
        metadata = {key.replace("_", "-"): unquote(value) for key, value in (found.metadata or {}).items()}
        return StoredObject(int(found.size), found.content_settings.content_type or "", metadata)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        try:
            return bytes(self._blob(name).download_blob(offset=0, length=max_bytes).readall())
        except Exception as error:
            if status_of(error) == _NOT_FOUND:
                return None
            if status_of(error) == 416:  # an empty object has no first byte
                return b""
            raise

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        for chunk in self._blob(name).download_blob().chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def staging_folder(self) -> None:
        return None

    def put(self, upload: Upload) -> None:
        from azure.core import MatchConditions
        from azure.storage.blob import BlobBlock, ContentSettings

        blob = self._blob(upload.name)
        condition = {"match_condition": MatchConditions.IfMissing} if upload.if_absent else {}
        blocks = [BlobBlock(block_id=block_id) for block_id in _stage_blocks(blob, upload)]
        upload.check_stopped()
        try:
            blob.commit_block_list(
                blocks,
                content_settings=ContentSettings(content_type=upload.content_type),
                metadata=_metadata(upload),
                **condition,
            )
        except Exception as error:
            if upload.if_absent and status_of(error) in {_PRECONDITION_FAILED, _CONFLICT}:
                raise FileExistsError(upload.name) from None
            raise

    def _blob(self, name: str) -> Any:
        return self._client.get_blob_client(join(self._prefix, name))


def _stage_blocks(blob: Any, upload: Upload) -> Iterator[str]:
    size = max(_BLOCK_BYTES, -(-upload.file.size // _MAX_BLOCKS))
    for offset in range(0, upload.file.size, size):
        upload.check_stopped()
        # Named by content and place: a writer of another file under the same name cannot mix blocks in.
        name = f"{upload.file.sha256[:32]}{offset:016}"
        block_id = base64.b64encode(name.encode()).decode()
        block = upload.file.read_at(offset, size)
        blob.stage_block(block_id, block, length=len(block))
        yield block_id


def _metadata(upload: Upload) -> dict[str, str]:
    """Metadata keys are identifiers there."""
    return {key.replace("-", "_"): quote(value) for key, value in upload.metadata.items()}
