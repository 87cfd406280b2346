"""The state of a wait, and a task's progress, in the task state store, which Airflow has from 3.3 on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.relay.batch import TaskBatch

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

WAIT_KEY = "luma_wait"
PROGRESS_KEY = "luma_progress"


class WaitStore:
    """
    Keeps the state of a wait for the process that polls next, and its progress for the UI.

    A store that fails costs no more than a repeated query, so its errors are logged and not raised. A record
    with absences says how often the task had been rescheduled, as the next process must know whether it is
    that of the poll before. A record says its try: a retry or a cleared task finds that of the one before,
    and may fail to replace it.

    :ivar reschedules: how often the task has been rescheduled.
    """

    def __init__(self, context: Context) -> None:
        self._store: Any = context.get("task_state_store")
        self.reschedules = context.get("task_reschedule_count") or 0
        # Airflow gives each try another id, which stays the same after a reschedule.
        self._try_id = str(context["ti"].id) if self.exists else ""
        self._saved: Any = None

    @property
    def exists(self) -> bool:
        return self._store is not None

    def load(self) -> Mapping[str, Any]:
        """
        Return ``state``, a :meth:`TaskBatch.dump`, ``logged_at`` and ``not_before``.

        Empty if this try has saved none.
        """
        kept = self._try("get", WAIT_KEY)
        self._saved = kept
        is_record = isinstance(kept, Mapping) and all(
            isinstance(kept.get(name), int | float) for name in ("logged_at", "not_before")
        )
        return kept if is_record and kept.get("try") == self._try_id else {}

    def was_saved_by_last_poll(self, record: Mapping[str, Any]) -> bool:
        """Return whether no other process has polled since a record with absences was saved."""
        return bool(record.get("reschedules") == self.reschedules - 1)

    def save(self, batch: TaskBatch, logged_at: float, not_before: float) -> None:
        record = {
            "try": self._try_id,
            "state": batch.dump(),
            "logged_at": logged_at,
            "not_before": not_before,
        }
        if batch.has_absences:
            record["reschedules"] = self.reschedules
        if record != self._saved:
            self._try("set", WAIT_KEY, record)
            self._saved = record

    def save_progress(self, message: str) -> None:
        self._try("set", PROGRESS_KEY, message)

    def _try(self, method: str, *arguments: Any) -> Any:
        if self._store is None:
            return None
        try:
            return getattr(self._store, method)(*arguments)
        except Exception:
            log.warning("The task state store failed; the task continues without it", exc_info=True)
            return None
