"""A staged file as the body of a request."""

from __future__ import annotations

import io

from airflow_provider_luma.download.stores.base import Upload

# HTTP clients send 16 KiB at a time of anything that they read; this is what they get instead.
PIECE_BYTES = 512 * 1024


class FileBody(io.RawIOBase):
    """A range of a staged file, in larger pieces than are requested, and stopped between two of them."""

    def __init__(self, upload: Upload, start: int, size: int) -> None:
        super().__init__()
        self._upload = upload
        self._start, self._size, self._position = start, size, 0

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        self._upload.check_stopped()
        wanted = self._size if size < 0 else max(size, PIECE_BYTES)
        piece = self._upload.file.read_at(
            self._start + self._position, min(wanted, self._size - self._position)
        )
        self._position += len(piece)
        return piece
