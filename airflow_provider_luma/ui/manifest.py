"""
Reads the manifest of a download task, which has the records that XCom then has not.

Its URI is stored in XCom like any other. So it is read under the same list of the administrator, and by the
same connection: through a presigned URL, which is in no log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from airflow_provider_luma.exceptions import DownloadError
from airflow_provider_luma.store_clients import get_verify
from airflow_provider_luma.ui.local_file import open_below
from airflow_provider_luma.ui.media_paths import LOCAL, Location, MediaPath
from airflow_provider_luma.ui.presign import presign

_MAX_BYTES = 16 * 1024 * 1024
_MAX_ROW_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 20


def read_manifest(path: MediaPath, location: Location) -> list[dict[str, Any]]:
    """
    Return the rows of a manifest, of which more than 16 MB are left out.

    :param path: the entry of the administrator's list that it is below.
    :raises Exception: what the store or its provider raises.
    """
    read = _read_local if location.kind == LOCAL else _read_object
    return list(_rows(read(path, location)))


def _read_local(path: MediaPath, location: Location) -> bytes:
    file = open_below(path, location)
    if file is None:
        raise DownloadError("there is no such file")
    with file:
        content = bytearray()
        while len(content) < _MAX_BYTES and (chunk := file.read(_MAX_BYTES - len(content))):
            content += chunk
    return bytes(content)


def _read_object(path: MediaPath, location: Location) -> bytes:
    from airflow_provider_luma.download.ssrf import AddressPolicy
    from airflow_provider_luma.download.transport import Transport

    url = presign(path, location.key, "application/json", "inline")
    verify = get_verify(location.kind, path.conn_id)
    # The store, wherever it is.
    transport = Transport(AddressPolicy(url), timeout=_TIMEOUT_SECONDS, verify=verify)
    try:
        with transport.open(url, {"Accept-Encoding": "identity"}) as response:
            if response.status_code != 200:
                raise DownloadError(f"the store responded with {response.status_code}")
            return _read_body(response.raw)
    finally:
        transport.close()


def _read_body(raw: Any) -> bytes:
    """Read a body that arrives in time as a whole: a reader holds a thread of the api-server."""
    content, deadline = bytearray(), time.monotonic() + _TIMEOUT_SECONDS
    while len(content) < _MAX_BYTES and (chunk := raw.read1(_READ_BYTES)):
        content += chunk
        if time.monotonic() > deadline:
            raise DownloadError(f"it was not complete within {_TIMEOUT_SECONDS} seconds")
    return bytes(content[:_MAX_BYTES])


def _rows(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield what has the form of a row; the last line may be truncated."""
    for line in content.splitlines():
        if len(line) > _MAX_ROW_BYTES:  # no row of ours, and values without end hold up the api-server
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and {"id", "state", "status"} <= row.keys():
            yield row
