"""The file of a download until it is complete: an anonymous temporary file, gone when its process is."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_luma.download.hashing import Hasher
from airflow_provider_luma.exceptions import DownloadError

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Source:
    """
    A server's statement about a complete file.

    :param size: its Content-Length in bytes; ``None`` when there is none.
    :param content_type: its media type.
    :param validator: its strong ETag or its Last-Modified, with which the rest of it can be requested.
    :param etag: as it was sent, also a weak one.
    :param date: its Last-Modified as it was sent.
    """

    size: int | None
    content_type: str
    validator: str | None
    etag: str | None = field(default=None, compare=False)
    date: str | None = field(default=None, compare=False)


class StagedFile:
    """
    A growing file, hashed while it is written; only its process can reach it.

    A download may be abandoned while its thread still runs. So writing and closing exclude each other: a
    late chunk never reaches a descriptor that has become another file's.

    :param staging: the folder that it is in.
    :param crc32_above: from how many bytes on its CRC-32 is computed too, and if its size is not announced.
    """

    def __init__(self, staging: Staging, *, crc32_above: float = math.inf) -> None:
        self._staging = staging
        self._fd = open_anonymous(staging.folder)
        self._lock = threading.Lock()
        self._is_closed = False
        self._crc32_above = crc32_above
        self.source: Source | None = None
        self.reached = self.size = 0
        self._hasher = self._create_hasher()

    @property
    def path(self) -> str:
        """A path that leads to the file, within this process."""
        os.lseek(self._fd, 0, os.SEEK_SET)  # where opening it means duplicating the descriptor
        return f"/dev/fd/{self._fd}"

    @property
    def sha256(self) -> str:
        return self._hasher.sha256().hex()

    @property
    def sha256_bytes(self) -> bytes:
        return self._hasher.sha256()

    @property
    def crc32(self) -> int:
        return self._hasher.crc32()

    @property
    def identity(self) -> str:
        """The same as of the local file that it becomes, unless it has to be copied."""
        with self._open():
            return file_identity(os.fstat(self._fd))

    @property
    def remaining_bytes(self) -> int:
        """Bytes that are still to come, as far as the source says."""
        return max((self.source.size or 0) - self.size, 0) if self.source else 0

    def restart(self, source: Source | None = None) -> None:
        """
        Forget all bytes, and take them from this source from now on.

        :raises DownloadError: when there is no disk space for them.
        """
        with self._open():
            if os.fstat(self._fd).st_size:  # ext4 writes out a file that was truncated, when it is closed
                os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self.source = source
            self._begin()
        self._staging.check_disk_space()

    def write(self, chunk: bytes) -> None:
        """
        Append bytes.

        :raises DownloadError: when the file was closed by a stop.
        """
        with self._open():
            self._hasher.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self.size += len(chunk)
            self.reached = max(self.reached, self.size)

    def read_at(self, offset: int, length: int) -> bytes:
        """
        Read bytes.

        :raises DownloadError: when the file was closed by a stop.
        """
        with self._open():
            return os.pread(self._fd, length, offset)

    def iter_bytes(self) -> Iterator[bytes]:
        for offset in range(0, self.size, _READ_BYTES):
            yield self.read_at(offset, _READ_BYTES)

    def flush_to_disk(self) -> None:
        with self._open():
            os.fsync(self._fd)

    def close(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._hasher.close()
                os.close(self._fd)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._is_closed:
                raise DownloadError("The download was stopped")
            yield

    def _begin(self) -> None:
        self.size = 0
        self._hasher.close()
        self._hasher = self._create_hasher()

    def _create_hasher(self) -> Hasher:
        size = self.source.size if self.source else None
        return Hasher(with_crc32=(math.inf if size is None else size) > self._crc32_above)


class Staging:
    """
    A folder for staged files, which does not take more than it has disk space for.

    :param folder: it is made where it does not exist. Default: the system's temporary folder.
    :param crc32_above: from how many bytes on the CRC-32 of a file is computed too. Default: of none.
    """

    def __init__(self, folder: str | None = None, *, crc32_above: float = math.inf) -> None:
        self.folder = folder or tempfile.gettempdir()
        self._crc32_above = crc32_above
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        self._files: set[StagedFile] = set()
        self._lock = threading.Lock()

    @contextmanager
    def file(self) -> Iterator[StagedFile]:
        file = StagedFile(self, crc32_above=self._crc32_above)
        with self._lock:
            self._files.add(file)
        try:
            yield file
        finally:
            with self._lock:
                self._files.discard(file)
            file.close()

    def files(self) -> list[StagedFile]:
        """Return the files that are open now."""
        with self._lock:
            return list(self._files)

    def check_disk_space(self) -> None:
        """
        Compare the remaining bytes of all files with the free disk space.

        :raises DownloadError: when they do not fit.
        """
        remaining = sum(file.remaining_bytes for file in self.files())
        free = shutil.disk_usage(self.folder).free
        if remaining > free:
            raise DownloadError(
                f"The downloads in progress need {format_bytes(remaining)} more in {self.folder}, which has "
                f"{format_bytes(free)} free. Free disk space, lower max_parallel or set another staging_dir"
            )


def open_anonymous(folder: str, *, must_be_linkable: bool = False) -> int:
    """
    Return the descriptor of a file without a name.

    :param must_be_linkable: raise ``OSError`` where such a file can never get a name.
    """
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except (AttributeError, OSError):  # not on Linux, or not on this file system: NFS, FUSE, old overlayfs
        if must_be_linkable:
            raise OSError(f"no anonymous files in {folder}") from None
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())


def file_identity(status: os.stat_result) -> str:
    return f"{status.st_dev}-{status.st_ino}-{status.st_mtime_ns}"


def format_bytes(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"
