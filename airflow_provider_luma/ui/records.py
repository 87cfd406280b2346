"""
The records of a task instance: in XCom, as Airflow's database has it, or in its manifest.

Each poster and each range of a video needs a single URI of them, so URIs are kept for some seconds. That is
behind the check of permissions, which each request passes on its own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import requests

from airflow_provider_luma.download.transport import describe_network_error
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.relay.media import MEDIA_KINDS
from airflow_provider_luma.relay.text import clean_text, redact_text
from airflow_provider_luma.ui.manifest import read_manifest
from airflow_provider_luma.ui.media_paths import find_path, locate
from airflow_provider_luma.ui.single_flight import single_flight

if TYPE_CHECKING:
    from airflow.models.taskinstancekey import TaskInstanceKey

MANIFEST_SUFFIX = (".jsonl", ".json", ".ndjson")

# A clip that is not among the first may be that of a newer try.
_KEPT_SECONDS = (30, 3)

log = logging.getLogger(__name__)


def find_uri(key: TaskInstanceKey, clip_id: str, file_kind: str) -> str | None:
    """Return the URI of a clip's file; ``None`` where the records of the task instance have none."""
    for seconds in _KEPT_SECONDS:
        uris = _uris(key, seconds, int(time.monotonic() / seconds))
        if clip_id in uris:
            return uris[clip_id].get(file_kind)
    return None


@lru_cache(maxsize=8)
def _uris(key: TaskInstanceKey, _seconds: int, _period: int) -> Mapping[str, Mapping[str, str]]:
    """Return the URIs of each clip's files; of records with the same id the first counts."""
    found: dict[str, dict[str, str]] = {}
    for record in load_records(key):
        if isinstance(record, dict) and isinstance(clip_id := record.get("id"), str):
            found.setdefault(clip_id, {kind: uri for kind in MEDIA_KINDS if (uri := _uri(record.get(kind)))})
    return found


def _uri(file: Any) -> str | None:
    uri = file.get("uri") if isinstance(file, dict) else None
    return uri if isinstance(uri, str) else None


@single_flight
def dump_records(key: TaskInstanceKey) -> str:
    """Return the records of a task instance as a JSON list; none of a manifest that must not be read."""
    return f"[{','.join(_dump_each(load_records(key)))}]"


def _dump_each(found: list[Any]) -> Iterator[str]:
    """Yield the JSON of each record that has one, which NaN and lists in lists without end have not."""
    for one in found:
        try:
            yield json.dumps(one, allow_nan=False)  # in ASCII, which has half an emoji, too
        except (ValueError, RecursionError):
            continue


@single_flight
def load_records(key: TaskInstanceKey) -> list[Any]:
    value = load_xcom(key, "return_value")
    if isinstance(value, dict):
        return _load_manifest(key, value.get("manifest"))
    return value if isinstance(value, list) else []


def _load_manifest(key: TaskInstanceKey, uri: Any) -> list[Any]:
    location = locate(uri) if isinstance(uri, str) and uri.endswith(MANIFEST_SUFFIX) else None
    path = find_path(location, key.dag_id) if location else None
    if path is None or location is None:
        return []
    try:
        return read_manifest(path, location)
    except Exception as error:  # noqa: BLE001 - the store's or its provider's, and logged
        log.error(  # noqa: TRY400 - the text of an exception may hold the presigned URL
            "The manifest %s of the task %r of the Dag %r cannot be read: %s",
            redact_url(uri),
            key.task_id,
            key.dag_id,
            _describe(error),
        )
        return []


def _describe(error: Exception) -> str:
    if isinstance(error, requests.RequestException):
        return describe_network_error(error)
    return f"{type(error).__name__}: {clean_text(redact_text(str(error)))}"


def load_xcom(key: TaskInstanceKey, xcom_key: str) -> Any:
    """
    Return an XCom as it is stored in the database: no backend is called.

    ``None`` where there is none, or one that Python cannot parse, such as a list in lists without end.
    """
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    if any("\0" in name for name in (key.dag_id, key.task_id, key.run_id)):  # PostgreSQL takes none
        return None
    query = select(XComModel.value).filter_by(
        dag_id=key.dag_id, task_id=key.task_id, run_id=key.run_id, map_index=key.map_index, key=xcom_key
    )
    try:
        with create_session() as session:
            value = session.scalars(query).first()
    except (ValueError, RecursionError):  # of the JSON in the column
        return None
    return _parse(value) if isinstance(value, str) else value


def _parse(text: str) -> Any:
    """Parse a JSON text in a JSON column, as some versions write it; another text is itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
