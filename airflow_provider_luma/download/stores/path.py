"""
Any other scheme, through Airflow's ``ObjectStoragePath`` and its fsspec file system.

Limits: there is no metadata, so the sidecar record alone says what an object is; whether a put that must not
replace is atomic, whether a put is atomic at all, and how much memory it takes, is up to the file system.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

from airflow_provider_luma.download.stores.base import NO_MULTIPART, StoredObject, Upload
from airflow_provider_luma.exceptions import DownloadError

_PIECE_BYTES = 1024 * 1024


class ObjectPath(Protocol):
    """The needed part of a path in an object store, such as Airflow's ``ObjectStoragePath``."""

    @property
    def fs(self) -> Any: ...
    @property
    def path(self) -> str: ...
    def __truediv__(self, name: str) -> ObjectPath: ...


class PathStore:
    """
    A folder that fsspec can write to.

    :param folder: everything goes below it.
    """

    is_conditional = False
    keeps_metadata = False
    multipart_above = NO_MULTIPART

    def __init__(self, folder: ObjectPath) -> None:
        self._folder = folder

    def uri(self, name: str) -> str:
        target = self._folder / name
        return str(target.fs.unstrip_protocol(target.path))

    def head(self, name: str) -> StoredObject | None:
        target = self._folder / name
        target.fs.invalidate_cache()
        try:
            return StoredObject(int(target.fs.info(target.path)["size"]))
        except FileNotFoundError:
            return None

    def read(self, name: str, max_bytes: int) -> bytes | None:
        target = self._folder / name
        try:
            with target.fs.open(target.path, "rb") as reader:
                return bytes(reader.read(max_bytes))
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str:
        target, digest = self._folder / name, hashlib.sha256()
        with target.fs.open(target.path, "rb") as reader:
            while piece := reader.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def staging_folder(self) -> None:
        return None

    def put(self, upload: Upload) -> None:
        target = self._folder / upload.name
        if upload.if_absent and self.head(upload.name) is not None:  # not every one knows the mode
            raise FileExistsError(upload.name)
        mode = {"mode": "create"} if upload.if_absent else {}
        target.fs.put_file(upload.file.path, target.path, **mode)
        stored = self.head(upload.name)
        if stored is None:
            raise DownloadError(f"{self.uri(upload.name)} was not found after the upload")
        if stored.size != upload.file.size:
            raise DownloadError(f"{self.uri(upload.name)} has {stored.size} of {upload.file.size} bytes")
