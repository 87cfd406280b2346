"""The hashes of a growing file, computed beside the download of a large one."""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib

# From here on a thread pays: hashing lets go of the interpreter, so that it overlaps with receiving.
_THREAD_ABOVE = 16 * 1024 * 1024
_MAX_WAITING_CHUNKS = 2


class Hasher:
    """
    SHA-256 and, if wanted, CRC-32 of all chunks.

    :param with_crc32: whether the CRC-32 is computed too.
    """

    def __init__(self, *, with_crc32: bool = False) -> None:
        self._with_crc32 = with_crc32
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._size = 0
        self._queue: queue.Queue[bytes | None] | None = None

    def update(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._queue is None and self._size > _THREAD_ABOVE:
            self._queue = queue.Queue(_MAX_WAITING_CHUNKS)
            threading.Thread(target=self._work, args=(self._queue,), name="luma-hash", daemon=True).start()
        if self._queue is None:
            self._hash(chunk)
        else:
            self._queue.put(chunk)

    def sha256(self) -> bytes:
        self._wait()
        return self._sha256.digest()

    def crc32(self) -> int:
        self._wait()
        return self._crc32

    def close(self) -> None:
        """End the thread, once it has hashed what it was given."""
        if self._queue is not None:
            self._queue.put(None)

    def _wait(self) -> None:
        if self._queue is not None:
            self._queue.join()

    def _work(self, chunks: queue.Queue[bytes | None]) -> None:
        while (chunk := chunks.get()) is not None:
            self._hash(chunk)
            chunks.task_done()

    def _hash(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self._with_crc32:
            self._crc32 = zlib.crc32(chunk, self._crc32)
