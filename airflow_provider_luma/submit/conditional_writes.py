"""
One small object that is only written if nobody else has written it meanwhile.

==========================  ============================================================
S3                          ``If-None-Match`` and ``If-Match`` with the ETag
Google Cloud Storage        ``ifGenerationMatch``
Azure Blob Storage          ``If-None-Match`` and ``If-Match`` with the ETag
a local folder              a lock on the folder, and the content that was read
any other ``fsspec`` store  no condition, but the content is read again before each write
==========================  ============================================================
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_provider_luma.download.stores.base import status_of
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.text import redact_text
from airflow_provider_luma.store_clients import (
    EXTRAS,
    azure_client,
    gcs_client,
    s3_client,
    show_url,
    validate_url,
)

MAX_BYTES = 64 * 1024
_NOT_FOUND, _CONFLICTS = 404, {409, 412}


class ConflictError(Exception):
    """Somebody else has written the object since it was read."""


class VersionedObject(Protocol):
    """One object. Methods raise whatever the store's SDK raises."""

    uri: str

    def read(self) -> bytes | None:
        """Return the content, truncated a byte above ``MAX_BYTES``; ``None`` where there is no object."""

    def write(self, content: bytes) -> None:
        """
        Create or replace the object.

        :param content: must differ from what any other writer writes.
        :raises ConflictError: when it is not what was read, or written, last.
        """


class _ConditionalObject(ABC):
    """
    An object whose store takes conditions.

    After a conflict the condition stays as it was, so that no later write of this object can succeed: the
    other writer's content would be replaced unseen.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._version: Any = None
        self._unconfirmed: set[bytes] = set()

    def read(self) -> bytes | None:
        content, self._version = self._get()
        return content

    def write(self, content: bytes) -> None:
        version = self._version
        while not self._try_put(content, version):
            # It may be this writer's own write that has changed the object: SDKs retry a write whose response
            # was lost, and the first attempt fails the condition of the second.
            found, version = self._get()
            if found == content[: MAX_BYTES + 1]:
                self._version = version
                break
            if found not in self._unconfirmed:
                raise ConflictError
        self._unconfirmed.clear()

    def _try_put(self, content: bytes, version: Any) -> bool:
        """Return ``False`` when the condition failed."""
        try:
            self._version = self._put(content, version)
        except Exception as error:
            self._unconfirmed.add(content)  # it may have arrived all the same
            if status_of(error) in _CONFLICTS:
                return False
            raise
        return True

    @abstractmethod
    def _get(self) -> tuple[bytes | None, Any]:
        """Return the content and its version; ``None`` and ``None`` where there is no object."""

    @abstractmethod
    def _put(self, content: bytes, version: Any) -> Any:
        """Replace this version, ``None`` being no object; return the new one."""


class S3Object(_ConditionalObject):
    def __init__(self, uri: str, client: Any, bucket: str, key: str) -> None:
        super().__init__(uri)
        self._client = client
        self._at = {"Bucket": bucket, "Key": key}

    def _get(self) -> tuple[bytes | None, Any]:
        found = _or_none(lambda: self._client.get_object(**self._at), "NoSuchKey")
        if found is None:
            return None, None
        with found["Body"] as body:
            return bytes(body.read(MAX_BYTES + 1)), found["ETag"]

    def _put(self, content: bytes, version: Any) -> Any:
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        written = self._client.put_object(
            **self._at, **condition, Body=content, ContentType="application/json"
        )
        return written["ETag"]


class GCSObject(_ConditionalObject):
    def __init__(self, uri: str, client: Any, bucket: str, key: str) -> None:
        super().__init__(uri)
        self._bucket, self._key = client.bucket(bucket), key

    def _get(self) -> tuple[bytes | None, Any]:
        blob = self._bucket.get_blob(self._key)
        if blob is None:
            return None, None
        # What was written in between only makes the next write fail.
        content = self._bucket.blob(self._key).download_as_bytes(end=MAX_BYTES, checksum=None)
        return bytes(content), blob.generation

    def _put(self, content: bytes, version: Any) -> Any:
        blob = self._bucket.blob(self._key)
        blob.upload_from_string(content, content_type="application/json", if_generation_match=version or 0)
        return blob.generation


class AzureObject(_ConditionalObject):
    def __init__(self, uri: str, client: Any, container: str, key: str) -> None:
        super().__init__(uri)
        self._blob = client.get_blob_client(container, key)

    def _get(self) -> tuple[bytes | None, Any]:
        found = _or_none(lambda: self._blob.download_blob(offset=0, length=MAX_BYTES + 1), "BlobNotFound")
        return (None, None) if found is None else (bytes(found.readall()), found.properties.etag)

    def _put(self, content: bytes, version: Any) -> Any:
        from azure.core import MatchConditions

        condition = (
            {"etag": version, "match_condition": MatchConditions.IfNotModified}
            if version
            else {"match_condition": MatchConditions.IfMissing}
        )
        written: Any = self._blob.upload_blob(content, overwrite=True, **condition)
        return written["etag"]


class LocalObject:
    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / name
        self.uri = f"file://{self._path}"
        self._content: bytes | None = None

    def read(self) -> bytes | None:
        if not self._folder.is_dir():  # as when its volume is not mounted
            raise LumaValueError(
                f"The folder of state_path, {self._folder}, does not exist. "
                "Create or mount it on every worker"
            )
        self._content = self._read()
        return self._content

    def write(self, content: bytes) -> None:
        folder = self._path.parent
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if self._read() != self._content:
                raise ConflictError
            self._replace(content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._content = content

    def _read(self) -> bytes | None:
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
        return None

    def _replace(self, content: bytes) -> None:
        fd, name = tempfile.mkstemp(dir=self._path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class OtherObject:
    def __init__(self, url: str) -> None:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        try:
            self._path: Any = ObjectStoragePath(url)
            _ = self._path.fs  # is where an unknown scheme shows
        except (ValueError, ImportError) as error:
            raise LumaValueError(
                f"No object storage for state_path {show_url(url)}: {redact_text(str(error))}"
            ) from None
        self.uri = url
        self._expected: list[bytes | None] = [None]

    def read(self) -> bytes | None:
        content = self._read()
        self._expected = [content]
        return content

    def write(self, content: bytes) -> None:
        if self._read() not in self._expected:
            raise ConflictError
        self._expected.append(content)  # it may arrive though its response is lost
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(content)
        self._expected = [content]

    def _read(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                return bytes(file.read(MAX_BYTES + 1))
        except FileNotFoundError:
            return None


def open_folder(url: str) -> Callable[[str], VersionedObject]:
    """
    Return a function from a name to the object below a folder; its objects share a client.

    :param url: as Airflow's object storage takes it, such as ``s3://conn_id@bucket/prefix``.
    :raises LumaValueError: when it is not such a URL, or its provider is not installed.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
    except ValueError:
        parts = urlsplit("")
    bucket = parts.netloc.rpartition("@")[2]
    if parts.scheme in {"file", "local"} or (not parts.scheme and parts.path.startswith("/")):
        if parts.netloc or parts.query or parts.fragment or not parts.path.startswith("/"):
            raise LumaValueError(
                f"state_path must be an absolute path like 'file:///data/_luma', not {show_url(url)}"
            )
        return partial(LocalObject, Path(unquote(parts.path) if parts.scheme else url))
    # A query or a fragment would be dropped, and with it what tells two deployments apart.
    if not parts.scheme or not bucket or parts.query or parts.fragment:
        raise LumaValueError(f"state_path must be the URL of a folder in object storage, not {show_url(url)}")
    validate_url("state_path", url)
    try:
        opened = _open_by_sdk(parts, bucket) if parts.scheme in EXTRAS else None
    except ImportError as error:
        raise LumaValueError(
            f"state_path {parts.scheme}:// needs another provider: "
            f"pip install 'airflow-provider-luma[{EXTRAS[parts.scheme]}]' ({error})"
        ) from None
    return opened or (lambda name: OtherObject(f"{url.rstrip('/')}/{name}"))


def _open_by_sdk(parts: SplitResult, bucket: str) -> Callable[[str], VersionedObject] | None:
    conn_id = parts.netloc.rpartition("@")[0] or None
    kind: Callable[[str, Any, str, str], VersionedObject]
    if EXTRAS[parts.scheme] == "s3":
        kind, client = S3Object, s3_client(conn_id)
    elif EXTRAS[parts.scheme] == "gcs":
        kind, client = GCSObject, gcs_client(conn_id)[0]
    else:
        kind, client = AzureObject, azure_client(conn_id)
    if client is None:
        return None
    prefix = parts.path.strip("/")

    def open_name(name: str) -> VersionedObject:
        key = f"{prefix}/{name}".lstrip("/")
        return kind(f"{parts.scheme}://{bucket}/{key}", client, bucket, key)

    return open_name


def _or_none(request: Callable[[], Any], code: str) -> Any:
    """
    Return what a request finds; a bucket that is not there is an error, not an object that is not.

    :param code: by which the store says that there is no such object.
    """
    try:
        return request()
    except Exception as error:
        response: Any = getattr(error, "response", None)
        error_code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        # A gateway's own 404 has none of the store's codes.
        if status_of(error) == _NOT_FOUND and (error_code or getattr(error, "error_code", None)) == code:
            return None
        raise
