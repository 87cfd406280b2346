"""Differences between the versions of Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from importlib.metadata import version
from typing import Any

__all__ = [
    "AIRFLOW_VERSION",
    "CLEAR_DELETES_STATE",
    "HAS_TASK_STATE_STORE",
    "HAS_UI_PLUGINS",
    "NEVER_EXPIRE",
    "AirflowRescheduleException",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "get_merged_default_args",
]

AIRFLOW_VERSION = tuple(int(part) for part in version("apache-airflow").split(".")[:2])

HAS_UI_PLUGINS = AIRFLOW_VERSION >= (3, 1)
HAS_TASK_STATE_STORE = AIRFLOW_VERSION >= (3, 3)
# Unless the user ticks "keep task state".
CLEAR_DELETES_STATE = AIRFLOW_VERSION >= (3, 4)

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError, TaskDeferralTimeout
except ImportError:  # Airflow 3.0 and 3.1
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowRescheduleException,
        TaskDeferralError,
        TaskDeferralTimeout,
    )

try:
    from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined]
except ImportError:  # Airflow 3.0 to 3.2, without a task state store
    NEVER_EXPIRE = timedelta.max


def get_merged_default_args(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``default_args`` in force for an operator: those of the Dag, task group and task."""
    from airflow.sdk.bases.operator import get_merged_defaults
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext

    dag = kwargs.get("dag") or DagContext.get_current()
    task_group = kwargs.get("task_group") or (TaskGroupContext.get_current(dag) if dag else None)
    merged, _ = get_merged_defaults(
        dag=dag, task_group=task_group, task_params=None, task_default_args=kwargs.get("default_args")
    )
    return merged
