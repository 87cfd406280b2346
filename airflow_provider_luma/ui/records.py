"""The records of a task instance: in XCom, as Airflow's database has it, or in its manifest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.ui.manifest import read_manifest
from airflow_provider_luma.ui.media_paths import find_path, locate

if TYPE_CHECKING:
    from airflow.models.taskinstancekey import TaskInstanceKey

MANIFEST_SUFFIX = (".jsonl", ".json", ".ndjson")


def find_uri(key: TaskInstanceKey, clip_id: str, file_kind: str) -> str | None:
    """Return the URI of a clip's file; ``None`` where the records of the task instance have none."""
    for record in load_records(key):
        if isinstance(record, dict) and record.get("id") == clip_id:
            file = record.get(file_kind)
            uri = file.get("uri") if isinstance(file, dict) else None
            return uri if isinstance(uri, str) else None
    return None


def load_records(key: TaskInstanceKey) -> list[Any]:
    value = load_xcom(key, "return_value")
    if isinstance(value, dict):
        return _load_manifest(key, value.get("manifest"))
    return value if isinstance(value, list) else []


def _load_manifest(key: TaskInstanceKey, uri: Any) -> list[Any]:
    location = locate(uri) if isinstance(uri, str) and uri.endswith(MANIFEST_SUFFIX) else None
    path = find_path(location, key.dag_id) if location else None
    return read_manifest(path, location) if path and location else []


def load_xcom(key: TaskInstanceKey, xcom_key: str) -> Any:
    """Return an XCom as it is stored in the database, ``None`` where there is none: no backend is called."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(XComModel.value).filter_by(
        dag_id=key.dag_id, task_id=key.task_id, run_id=key.run_id, map_index=key.map_index, key=xcom_key
    )
    with create_session() as session:
        value = session.scalars(query).first()
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)  # a JSON text in a JSON column, as some versions write it
    except (ValueError, RecursionError):
        return value
