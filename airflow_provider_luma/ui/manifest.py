"""
Reads the manifest of a download task, which has the records that XCom then has not.

Its URI is stored in XCom like any other. So it is read under the same list of the administrator, and by the
same connection: through a presigned URL.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from airflow_provider_luma.ui.local_file import open_below
from airflow_provider_luma.ui.media_paths import LOCAL, Location, MediaPath
from airflow_provider_luma.ui.presign import presign

_MAX_BYTES = 16 * 1024 * 1024
_TIMEOUT = (5, 20)
_KEPT_SECONDS = 60  # each poster and each range of a video needs its record

log = logging.getLogger(__name__)


def read_manifest(path: MediaPath, location: Location) -> list[dict[str, Any]]:
    """
    Return the rows of a manifest, of which more than 16 MB are left out.

    :param path: the entry of the administrator's list that it is below.
    """
    return _read(path, location, int(time.monotonic() / _KEPT_SECONDS))


@lru_cache(maxsize=4)
def _read(path: MediaPath, location: Location, _period: int) -> list[dict[str, Any]]:
    read = _read_local if location.kind == LOCAL else _read_object
    try:
        return list(_rows(read(path, location)))
    except Exception:  # the store's, or a file that is not a manifest
        log.exception("The manifest of a download task cannot be read")
        return []


def _read_local(path: MediaPath, location: Location) -> bytes:
    file = open_below(path.folder, location.segments[len(path.location.segments) :])
    if file is None:
        return b""
    with file:
        content = bytearray()
        while len(content) < _MAX_BYTES and (chunk := file.read(_MAX_BYTES - len(content))):
            content += chunk
    return bytes(content)


def _read_object(path: MediaPath, location: Location) -> bytes:
    import requests

    url = presign(path, location.key, "application/json", "inline")
    with requests.get(url, stream=True, timeout=_TIMEOUT, allow_redirects=False) as response:
        response.raise_for_status()
        return response.raw.read(_MAX_BYTES) or b""


def _rows(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield what has the form of a row; the last line may be truncated."""
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and {"id", "state", "status"} <= row.keys():
            yield row
