"""State of the task instance that runs, beyond Airflow's public interface."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)


def is_success_recorded(ti: Any) -> bool:
    """
    Return whether Airflow recorded the success of the task instance that runs.

    From 3.3 on success callbacks are called also when the api-server rejected the success.
    """
    states = ti.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    return set(states.get(ti.run_id, {}).values()) == {"success"}


class Retries:
    """
    Permission for Airflow to retry the task that runs when it fails, for any reason.

    Only needed where no record is kept. An exception that Airflow does not retry would not do: the task can
    also fail after ``execute``, such as when Airflow pushes its XCom.
    """

    def __init__(self, context: Context) -> None:
        self._server_context: Any = getattr(context["ti"], "_ti_context_from_server", None)
        self._should_retry = getattr(self._server_context, "should_retry", None)

    def forbid(self) -> None:
        if self._server_context is None:
            log.warning("This Airflow keeps its retries, which may be charged again: set retries=0")
        self._set(False)

    def restore(self) -> None:
        self._set(self._should_retry)

    def _set(self, should_retry: bool | None) -> None:
        if self._server_context is not None:
            self._server_context.should_retry = should_retry
