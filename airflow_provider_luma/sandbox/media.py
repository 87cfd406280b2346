"""The media the CDN serves: a real clip and its frames, made different for every task without copies."""

from __future__ import annotations

import functools
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 640
HEIGHT = 360
DURATION = 2.0

FILES = Path(__file__).parent / "media_files"
BLOCK = 64 * 1024
BOX_HEADER = 16


@dataclass(frozen=True)
class MediaFile:
    """
    The bytes of one file, made as they are read.

    What follows ``head`` is filler in which every block names its task and its place, so that bytes of
    another task or from a wrong offset never pass for the right ones.

    :param head: the bytes the file begins with.
    :param content_type: what the file is.
    :param filler: how many bytes follow the head.
    :param label: what the filler names.
    """

    head: bytes
    content_type: str
    filler: int = 0
    label: str = ""

    @property
    def size(self) -> int:
        return len(self.head) + self.filler

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            chunk = self._rest_of_block(start)[: end - start]
            yield chunk
            start += len(chunk)

    def _rest_of_block(self, offset: int) -> bytes:
        if offset < len(self.head):
            return self.head[offset:]
        number, skip = divmod(offset - len(self.head), BLOCK)
        return (f"{self.label} {number:012}\n".encode() + _noise())[skip:BLOCK]


def video(task_id: str, size: int | None = None) -> MediaFile:
    """
    Give a task's video: the clip, and after it an MP4 box that players skip and that carries the task id.

    :param size: bytes the file has in all; just enough for the task id if None.
    """
    clip = _file("clip.mp4")
    filler = len(task_id) if size is None else size - len(clip) - BOX_HEADER
    if filler < len(task_id):
        raise ValueError(f"a video takes at least {len(clip) + BOX_HEADER + len(task_id)} bytes, not {size}")
    # Size 1 says that the true size is the 64 bits after the type: one form for videos of any size.
    box_header = struct.pack(">I4sQ", 1, b"free", BOX_HEADER + filler)
    return MediaFile(clip + box_header, "video/mp4", filler, task_id)


def image(name: str) -> MediaFile:
    return MediaFile(_file(name), "image/jpeg")


@functools.cache
def _file(name: str) -> bytes:
    return (FILES / name).read_bytes()


@functools.cache
def _noise() -> bytes:
    return random.Random(0).randbytes(BLOCK)
