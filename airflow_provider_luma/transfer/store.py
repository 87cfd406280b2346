"""From a local file to an object, in one piece."""

from __future__ import annotations

import mimetypes
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from airflow_provider_luma.exceptions import TransferError

_CHUNK_BYTES = 8 * 1024 * 1024
_CHUNKS_LIMIT = 10_000  # parts of one upload that S3 takes
_GENERIC_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})


class ObjectPath(Protocol):
    """What we need of a path in an object store, such as Airflow's ``ObjectStoragePath``."""

    @property
    def fs(self) -> Any: ...
    @property
    def path(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    def __truediv__(self, name: str) -> ObjectPath: ...


def read(target: ObjectPath) -> bytes | None:
    try:
        return bytes(target.fs.cat_file(target.path))
    except FileNotFoundError:
        return None


def stored_size(target: ObjectPath) -> int | None:
    try:
        return int(target.fs.info(target.path)["size"])
    except FileNotFoundError:
        return None


def publish(
    file: str,
    target: ObjectPath,
    content_type: str,
    *,
    metadata: Any = None,
    overwrite: bool = True,
    stopped: Any = None,
) -> None:
    """
    Put a whole local file under its final name: nobody ever sees half of it.

    :param content_type: as the source told; a generic one gives way to what the name says.
    :raises TransferError: when the store refuses, or then holds something of another size.
    """
    size = Path(file).stat().st_size
    try:
        _put(file, target, media_type(content_type, target.path), size)
        stored = int(target.fs.info(target.path)["size"])
    except Exception as error:  # each store's SDK raises what it likes
        raise TransferError(f"{uri(target)} cannot be written: {type(error).__name__}: {error}") from error
    if stored != size:
        raise TransferError(f"{uri(target)} holds {stored} bytes instead of {size}")


def _put(file: str, target: ObjectPath, content_type: str, size: int) -> None:
    if is_local(target):
        _replace(file, Path(target.path))
        return
    options = _STORE_OPTIONS[target.protocol](content_type, size) if target.protocol in _STORE_OPTIONS else {}
    target.fs.put_file(str(file), target.path, **options)


def is_local(target: ObjectPath) -> bool:
    return target.protocol in {"", "file", "local"}


def uri(target: ObjectPath) -> str:
    """Return the address of an object, without the id of the connection."""
    return str(target.fs.unstrip_protocol(target.path))


def _replace(file: str, final: Path) -> None:
    """Copy beside the final name first, because only within one file system a rename is atomic."""
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(file, part)
        os.replace(part, final)  # noqa: PTH105 - the name that everybody knows as the atomic one
    finally:
        part.unlink(missing_ok=True)


def media_type(told: str, name: str) -> str:
    return (mimetypes.guess_type(name)[0] or told) if told in _GENERIC_TYPES else told


def _s3(content_type: str, size: int) -> dict[str, Any]:
    # The defaults of s3fs would hold ten parts of 50 MiB in memory.
    chunk = max(_CHUNK_BYTES, -(-size // _CHUNKS_LIMIT))
    return {"ContentType": content_type, "chunksize": chunk, "max_concurrency": 2}


def _gcs(content_type: str, size: int) -> dict[str, Any]:
    return {"content_type": content_type, "chunksize": _CHUNK_BYTES}


def _azure(content_type: str, size: int) -> dict[str, Any]:
    from azure.storage.blob import ContentSettings

    return {"content_settings": ContentSettings(content_type=content_type), "max_concurrency": 2}


_STORE_OPTIONS: Mapping[str, Callable[[str, int], dict[str, Any]]] = {
    **dict.fromkeys(("s3", "s3a", "s3n"), _s3),
    **dict.fromkeys(("gs", "gcs"), _gcs),
    **dict.fromkeys(("abfs", "abfss", "adl"), _azure),
}
