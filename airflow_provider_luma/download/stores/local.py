"""
A local folder: a file without a name is linked into place, which is atomic.

===============================  ==================================================================
staged on the same file system   a hard link: nothing is copied
on another file system           copied into an anonymous file beside the final name, then linked
the name is taken                linked to a hidden name, always the same, and renamed over it
no anonymous files (NFS, FUSE)   copied to that hidden name, which the next writer removes
===============================  ==================================================================

With ``fsync`` the bytes of a file, and then its name, are on disk before :meth:`LocalStore.put` returns: what
a record calls complete survives a power loss.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from airflow_provider_luma.download.staging import file_identity, open_anonymous
from airflow_provider_luma.download.stores.base import NO_MULTIPART, StoredObject, Upload

_LOCK_POLL_SECONDS = 0.1


class LocalStore:
    """
    A folder on a disk.

    :param folder: it is made where it does not exist.
    :param fsync: whether what is put survives a power loss.
    """

    is_conditional = True
    keeps_metadata = False
    multipart_above = NO_MULTIPART

    def __init__(self, folder: str, *, fsync: bool = True) -> None:
        self.folder = Path(folder)
        self._fsync = fsync

    def uri(self, name: str) -> str:
        return f"file://{self.folder / name}"

    def head(self, name: str) -> StoredObject | None:
        try:
            found = (self.folder / name).stat()
            return StoredObject(found.st_size, identity=file_identity(found))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, max_bytes: int) -> bytes | None:
        try:
            with _open_file(self.folder / name) as file:
                return file.read(max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sha256(self, name: str) -> str:
        with _open_file(self.folder / name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def put(self, upload: Upload) -> None:
        final = self.folder / upload.name
        self._make_folders(final.parent)
        if self._fsync:
            upload.file.flush_to_disk()
        try:
            _place(upload, upload.file.path, final)
        except OSError as error:  # the file is on another file system, or this one has no links
            if upload.if_absent and isinstance(error, FileExistsError):
                raise
            self._copy(upload, final)
        if self._fsync:
            _fsync_folder(final.parent)

    def staging_folder(self) -> str:
        """Return a folder on the same file system, where a file gets its name without being copied."""
        return next(str(path) for path in (self.folder, *self.folder.parents) if path.is_dir())

    def _make_folders(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        if self._fsync:
            _fsync_folder(folder.parent)

    def _copy(self, upload: Upload, final: Path) -> None:
        try:
            fd = open_anonymous(str(final.parent), must_be_linkable=True)
        except OSError:
            self._copy_by_name(upload, final)
            return
        try:
            _copy_bytes(upload.file.path, fd, fsync=self._fsync)
            _place(upload, f"/dev/fd/{fd}", final)
        finally:
            os.close(fd)

    def _copy_by_name(self, upload: Upload, final: Path) -> None:
        with _part(upload, final) as part:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _copy_bytes(upload.file.path, fd, fsync=self._fsync)
            finally:
                os.close(fd)
            if upload.if_absent:
                os.link(part, final)
            else:
                os.replace(part, final)  # noqa: PTH105 - the name that everybody knows as the atomic one


def _copy_bytes(source: str, fd: int, *, fsync: bool) -> None:
    with Path(source).open("rb") as reader, open(fd, "wb", closefd=False) as writer:
        shutil.copyfileobj(reader, writer, 1024 * 1024)
    if fsync:
        os.fsync(fd)


def _place(upload: Upload, file: str, final: Path) -> None:
    try:
        _link(file, final)
    except FileExistsError:
        if upload.if_absent:
            raise
        _replace(upload, file, final)


def _replace(upload: Upload, file: str, final: Path) -> None:
    with _part(upload, final) as part:
        _link(file, part)
        os.replace(part, final)  # noqa: PTH105


@contextmanager
def _part(upload: Upload, final: Path) -> Iterator[Path]:
    """Yield the hidden name beside a final one: always the same, so that none piles up."""
    part = final.with_name(f".{hashlib.sha256(final.name.encode()).hexdigest()[:32]}.part")
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        _lock(upload, folder)  # other runs want the same name; a killed worker lets go
        part.unlink(missing_ok=True)  # a killed worker has left it
        yield part
        part.unlink(missing_ok=True)  # where both were the same file, a rename does nothing
    finally:
        os.close(folder)


def _lock(upload: Upload, folder: int) -> None:
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            upload.check_stopped()
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError:  # of a file system without locks
            return
        else:
            return


@contextmanager
def _open_file(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading; anything else, such as a FIFO, would be waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        with open(fd, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(fd)


def _link(file: str, name: Path) -> None:
    folder = os.open(name.parent, os.O_RDONLY)
    try:
        # With a folder's descriptor Python follows the link that /dev/fd/N is, to a file without a name.
        os.link(file, name.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
