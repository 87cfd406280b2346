"""What stands in a task instance's records, read from Airflow's database."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.models.taskinstancekey import TaskInstanceKey


def find_uri(key: TaskInstanceKey, clip_id: str, file_kind: str) -> str | None:
    """Return the URI of a clip's file; ``None`` where the records of the task instance have none."""
    for record in _load_records(key):
        if isinstance(record, dict) and record.get("id") == clip_id:
            file = record.get(file_kind)
            uri = file.get("uri") if isinstance(file, dict) else None
            return uri if isinstance(uri, str) else None
    return None


def _load_records(key: TaskInstanceKey) -> list[Any]:
    value = load_xcom(key, "return_value")
    return value if isinstance(value, list) else []


def load_xcom(key: TaskInstanceKey, xcom_key: str) -> Any:
    """Return an XCom as it stands in the database, ``None`` where there is none: no backend is asked."""
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
