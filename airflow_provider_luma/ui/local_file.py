"""
Streams a local file, or a range of it.

A symbolic link may lead anywhere, and may be put into the folder at any time. So the path is resolved first,
and must be below the resolved folder; then it is opened step by step, without following links. A link that
takes a place in between is an error, and does not lead out.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def open_below(folder: str, segments: Sequence[str]) -> FileIO | None:
    """Open a regular file below a folder; ``None`` where there is none, or a link leads elsewhere."""
    try:
        root = Path(folder).resolve(strict=True)
        steps = root.joinpath(*segments).resolve(strict=True).relative_to(root).parts
    except (OSError, ValueError, RuntimeError):  # not there, not below, links in a circle
        return None
    place = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for step in steps[:-1]:
            place = _replace(place, os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place))
        # Not blocked by a pipe, which is judged once it is open.
        opened = os.open(steps[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    except (OSError, IndexError):
        return None
    finally:
        os.close(place)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return None
    return os.fdopen(opened, "rb", buffering=0)


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


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
    return StreamingResponse(_read(file, first, last), status, headers, content_type)


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
    with file:
        file.seek(first)
        left = last - first + 1
        while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
