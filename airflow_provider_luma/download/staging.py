"""Where a download grows until it is whole: a file without a name, gone when its process is."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_luma.download.store import ObjectPath, is_local
from airflow_provider_luma.exceptions import DownloadError


@dataclass(frozen=True)
class Source:
    """
    What a server says of a whole file.

    :param size: in bytes; ``None`` when it does not say.
    :param content_type: its media type.
    :param validator: its strong ETag or its date, with which the rest of the same file can be asked for.
    """

    size: int | None
    content_type: str
    validator: str | None


class StagedFile:
    """A growing file, hashed while it is written; only its process can reach it."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._fd = _open_nameless(staging.folder)
        self.source: Source | None = None
        self.reached = 0
        self._begin()

    @property
    def path(self) -> str:
        """A path that leads to the file, within this process."""
        os.lseek(self._fd, 0, os.SEEK_SET)  # where opening it means duplicating the descriptor
        return f"/dev/fd/{self._fd}"

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def missing(self) -> int:
        """How many bytes are still to come, as far as the source told."""
        return max((self.source.size or 0) - self.size, 0) if self.source else 0

    def restart(self, source: Source | None = None) -> None:
        """
        Forget all bytes, and take them from this source from now on.

        :raises DownloadError: when there is no room for them.
        """
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.source = source
        self._begin()
        self._staging.check_room()

    def write(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self.size += len(chunk)
        self.reached = max(self.reached, self.size)

    def close(self) -> None:
        os.close(self._fd)

    def _begin(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()


class Staging:
    """
    A folder for staged files, which does not take more than it has room for.

    :param folder: it is made where it does not exist. Default: the system's temporary folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder or tempfile.gettempdir()
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        self._files: set[StagedFile] = set()
        self._lock = threading.Lock()

    @classmethod
    def near(cls, destination: ObjectPath) -> Staging:
        """Choose the file system of a local destination, where a file gets its name without being copied."""
        if not is_local(destination):
            return cls()
        path = Path(destination.path)
        return cls(next(str(folder) for folder in (path, *path.parents) if folder.is_dir()))

    @contextmanager
    def file(self) -> Iterator[StagedFile]:
        file = StagedFile(self)
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

    def check_room(self) -> None:
        """
        Compare what is still to come of all files with what is free.

        :raises DownloadError: when it does not fit.
        """
        missing = sum(file.missing for file in self.files())
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise DownloadError(
                f"the downloads under way need {in_words(missing)} more in {self.folder}, which has "
                f"{in_words(free)} free; make room, lower max_parallel or name another staging_dir"
            )


def _open_nameless(folder: str) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except (AttributeError, OSError):  # not on Linux, or not on this file system: NFS, FUSE, old overlayfs
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())


def in_words(size: int) -> str:
    """Say a number of bytes as people do."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"
