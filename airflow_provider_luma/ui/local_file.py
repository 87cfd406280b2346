"""
Streams a local file, or a range of it.

A task may put a symbolic link into the folder at any time, also in the place of a Dag's own folder, or of
the entry's. So the links of the administrator's part are resolved once, when the process starts. From the
root on each segment is opened within the folder before it, and a link is an error. Nothing is checked before
it is opened, so that there is no race to win.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from io import FileIO
from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from airflow_provider_luma.ui.media_paths import Location, MediaPath

_CHUNK_BYTES = 256 * 1024
# To pass through a folder is to search it; its names need not be readable.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def open_below(path: MediaPath, location: Location) -> FileIO | None:
    """Open a regular file below an entry; ``None`` where there is none, or a link is on the way."""
    try:
        opened = _open_from_root((*path.resolve_own_folder(), *location.segments[path.own_segments :]))
    except (OSError, ValueError):  # a name that no file system has is a ValueError
        return None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return None
    return os.fdopen(opened, "rb", buffering=0)


def _open_from_root(segments: Sequence[str]) -> int:
    place = os.open("/", _FOLDER)
    try:
        for name in segments[:-1]:
            inner = os.open(name, _FOLDER, dir_fd=place)
            os.close(place)
            place = inner
        # Not blocked by a pipe, which is judged once it is open.
        return os.open(segments[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)


def file_response(
    file: FileIO, method: str, requested: Mapping[str, str], headers: Mapping[str, str], content_type: str
) -> Response:
    """
    Respond with an open file, which is closed afterwards.

    :param requested: the headers of the request.
    """
    found = os.fstat(file.fileno())
    size, etag = found.st_size, f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
    headers = {
        **headers,
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Content-Encoding": "identity",  # otherwise Airflow compresses it on its way
    }
    is_current = requested.get("if-range", etag) == etag
    wanted = _parse_range(requested.get("range", ""), size) if is_current else None
    first, last = wanted or (0, size - 1)
    if wanted and first >= size:
        file.close()
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    status = 206 if wanted else 200
    if wanted:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last - first + 1)
    if method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers, media_type=content_type)
    return _FileResponse(file, _read(file, first, last), status, headers, content_type)


class _FileResponse(StreamingResponse):
    """Closes its file when the client disconnects, too; a generator leaves it to the garbage collector."""

    def __init__(self, file: FileIO, content: Iterator[bytes], *rest: Any) -> None:
        super().__init__(content, *rest)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte; ``None`` for anything but one range, which is then ignored."""
    match = _RANGE.fullmatch(text.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        return (max(size - int(last), 0) if int(last) else size), size - 1
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last or size), size - 1)


def _read(file: FileIO, first: int, last: int) -> Iterator[bytes]:
    file.seek(first)
    left = last - first + 1
    while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
        left -= len(chunk)
        yield chunk
