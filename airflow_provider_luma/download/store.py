"""From a whole local file to an object, in one piece."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import mimetypes
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from fsspec import Callback

from airflow_provider_luma.exceptions import DownloadError, ObjectExistsError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Which store a scheme means; also the name of this package's extra that brings it.
STORES: Mapping[str, str] = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "azure"),
}

_PART_BYTES = 5 * 1024 * 1024  # the least that S3 takes
_PARTS_AT_ONCE = 2
_PARTS_LIMIT = 10_000  # of one upload to S3
_GENERIC_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_SECONDS_TO_STOP = 1.0


class ObjectPath(Protocol):
    """What we need of a path in an object store, such as Airflow's ``ObjectStoragePath``."""

    @property
    def fs(self) -> Any: ...
    @property
    def path(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    def __truediv__(self, name: str) -> ObjectPath: ...


def publish(
    file: str,
    target: ObjectPath,
    content_type: str,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    stopped: threading.Event | None = None,
) -> None:
    """
    Put a whole local file under its final name: nobody ever sees half of it.

    :param file: a path to it, which may be one that only this process has.
    :param metadata: kept with the object, where the store can.
    :param overwrite: whether it may take the place of another object.
    :param stopped: ends an upload that is under way.
    :raises ObjectExistsError: when it may not, and there is one.
    :raises DownloadError: when the store refuses, or then holds something of another size, or it is stopped.
    """
    size = Path(file).stat().st_size
    if not overwrite:
        check_free(target)  # not every server knows a put that does not replace
    try:
        if is_local(target):
            _give_name(file, Path(target.path), overwrite)
        else:
            options = _options(target, content_type, size, metadata or {}, overwrite)
            _upload(file, target, options, stopped or threading.Event())
            _add_metadata(target, metadata or {})
        stored = stored_size(target)
    except FileExistsError as error:
        if overwrite:  # a file where a folder is needed
            raise _unwritten(target, error) from error
        raise _taken(target) from None
    except DownloadError:
        raise
    except Exception as error:  # each store's SDK raises what it likes
        raise _unwritten(target, error) from error
    if stored != size:
        raise DownloadError(f"{uri(target)} holds {stored} bytes instead of {size}")


def check_free(target: ObjectPath) -> None:
    """
    Check that there is no object.

    :raises ObjectExistsError: when there is one.
    :raises DownloadError: when the store refuses.
    """
    if stored_size(target) is not None:
        raise _taken(target)


def read(target: ObjectPath) -> bytes | None:
    """
    Return what a small object holds, ``None`` where there is none.

    :raises DownloadError: when the store refuses.
    """
    return _ask(target, lambda: bytes(target.fs.cat_file(target.path)))


def stored_size(target: ObjectPath) -> int | None:
    """
    Return the size of an object in bytes, ``None`` where there is none.

    :raises DownloadError: when the store refuses.
    """

    def ask() -> int:
        target.fs.invalidate_cache()
        return int(target.fs.info(target.path)["size"])

    return _ask(target, ask)


def uri(target: ObjectPath) -> str:
    """Return the address of an object, without the id of the connection."""
    return str(target.fs.unstrip_protocol(target.path))


def is_local(target: ObjectPath) -> bool:
    return target.protocol in {"", "file", "local"}


def media_type(told: str, name: str) -> str:
    """Return the media type that was told, unless it says nothing and the name says more."""
    return (mimetypes.guess_type(name)[0] or told) if told in _GENERIC_TYPES else told


def _ask(target: ObjectPath, ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except FileNotFoundError:
        return None
    except Exception as error:
        raise DownloadError(f"{uri(target)} cannot be read: {type(error).__name__}: {error}") from error


def _taken(target: ObjectPath) -> ObjectExistsError:
    return ObjectExistsError(
        f"{uri(target)} exists, and no record beside it says that it is whole; remove it, or let it be "
        "replaced with if_exists='skip'"
    )


def _unwritten(target: ObjectPath, error: Exception) -> DownloadError:
    return DownloadError(f"{uri(target)} cannot be written: {type(error).__name__}: {error}")


def _give_name(file: str, final: Path, overwrite: bool) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        _link(file, final)
    except FileExistsError:
        if not overwrite:
            raise
        _replace(file, final)
    except OSError:  # the file is on another file system, or this one has no links
        _copy(file, final, overwrite)


def _replace(file: str, final: Path) -> None:
    """Rename over it, which is atomic but needs a name beside it: always the same, so that none piles up."""
    part = final.with_name(f".{hashlib.sha256(final.name.encode()).hexdigest()[:32]}.part")
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)  # other runs want the same name; a worker that dies lets go
        part.unlink(missing_ok=True)  # a worker that was killed has left it
        _link(file, part)
        os.replace(part, final)  # noqa: PTH105 - the name that everybody knows as the atomic one
        part.unlink(missing_ok=True)  # where both were the same file, a rename does nothing
    finally:
        os.close(folder)


def _copy(file: str, final: Path, overwrite: bool) -> None:
    part = final.with_name(f".{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(file, part)
        if overwrite:
            os.replace(part, final)  # noqa: PTH105
        else:
            os.link(part, final)
    finally:
        part.unlink(missing_ok=True)


def _link(file: str, name: Path) -> None:
    folder = os.open(name.parent, os.O_RDONLY)
    try:
        # With a folder's descriptor Python follows the link that /dev/fd/N is, to a file without a name.
        os.link(file, name.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _upload(file: str, target: ObjectPath, options: Mapping[str, Any], stopped: threading.Event) -> None:
    fs = target.fs
    callback = _Stoppable(stopped)
    if not getattr(fs, "async_impl", False):
        fs.put_file(file, target.path, callback=callback, **options)
        return
    put = fs._put_file(file, target.path, callback=callback, **options)  # noqa: SLF001 - fsspec's async name
    future: Future[None] = asyncio.run_coroutine_threadsafe(put, fs.loop)
    while not wait([future], timeout=0.1).done:
        if stopped.is_set():
            _end(future, target)
    future.result()


def _end(future: Future[None], target: ObjectPath) -> None:
    """Let the upload tidy up after its next part, and only then drop it."""
    if not wait([future], timeout=_SECONDS_TO_STOP).done and future.cancel():
        log.warning(
            "Stopped while a part of %s was under way. A store may keep what was sent of it, invisibly, "
            "until a lifecycle rule for incomplete uploads removes it",
            uri(target),
        )
        raise DownloadError("stopped")


class _Stoppable(Callback):  # type: ignore[misc]
    """Is called by fsspec after each part, and ends the upload there."""

    def __init__(self, stopped: threading.Event) -> None:
        super().__init__()
        self._stopped = stopped

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        if self._stopped.is_set():
            raise DownloadError("stopped")


def _options(
    target: ObjectPath, content_type: str, size: int, metadata: Mapping[str, str], overwrite: bool
) -> dict[str, Any]:
    """Say it in the words of each store. Memory is bounded by the size of a part and their number."""
    mode = {} if overwrite else {"mode": "create"}
    ascii_metadata = {key: quote(value, safe=" !#$&'()*+,/:;=?@[]~") for key, value in metadata.items()}
    match STORES.get(target.protocol):
        case "s3":
            part = max(_PART_BYTES, -(-size // _PARTS_LIMIT))
            s3 = {"ContentType": content_type, "Metadata": ascii_metadata}
            return {**s3, **mode, "chunksize": part, "max_concurrency": _PARTS_AT_ONCE}
        case "gcs":
            gcs = {"content_type": content_type, "metadata": ascii_metadata}
            return {**gcs, **mode, "chunksize": _PART_BYTES}
        case "azure":
            _calm_azure(target.fs)
            settings = {"content_settings": {"content_type": content_type}}
            return {**settings, **mode, "max_concurrency": _PARTS_AT_ONCE}
    return mode


def _calm_azure(fs: Any) -> None:
    # A file up to this size is read whole; 64 MiB without it.
    fs.service_client._config.max_single_put_size = _PART_BYTES  # noqa: SLF001 - adlfs passes no such option
    # Else it writes thirty lines into the task's log for each request.
    logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)


def _add_metadata(target: ObjectPath, metadata: Mapping[str, str]) -> None:
    """Tell Azure afterwards, as adlfs sets metadata of its own in a put; keys are identifiers there."""
    if metadata and STORES.get(target.protocol) == "azure":
        named = {key.replace("-", "_"): quote(value) for key, value in metadata.items()}
        target.fs.setxattrs(target.path, is_directory="false", **named)
