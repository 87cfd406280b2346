"""The wait of a sensor in a worker: polls, reports progress, and keeps its state for the next process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTransientError,
    TriggerEventError,
    most_telling_error,
)
from airflow_provider_luma.metrics import count_tasks
from airflow_provider_luma.relay.batch import TaskBatch
from airflow_provider_luma.sensors.store import WaitStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.relay import LumaTask, RelayClient

SUMMARY_KEY = "luma_summary"

# How long a wait in which nothing changes goes without a log line.
QUIET_SECONDS = 300


class Wait:
    """
    Waits for a batch.

    :param batch: how it stands, such as after earlier processes.
    :param store: where its state outlives the process.
    :param log: of the sensor.
    :param reported: the progress that an earlier process has logged, and when.
    """

    def __init__(
        self, batch: TaskBatch, store: WaitStore, log: Any, reported: tuple[str, float] = ("", 0.0)
    ) -> None:
        self.batch = batch
        self.not_before = 0.0
        self._store = store
        self._log = log
        self._message, self._logged_at = reported

    @classmethod
    def load(cls, ids: Sequence[str], store: WaitStore, log: Any, *, missing_grace: float) -> Wait | None:
        """Take up the wait for these ids that an earlier process has kept; ``None`` when there is none."""
        record = store.load()
        batch = TaskBatch.load(ids, record.get("state"), missing_grace=missing_grace)
        if batch is None:
            return None
        logged_at = record.get("logged_at")
        reported_at = logged_at if isinstance(logged_at, int | float) else 0.0
        return cls(batch, store, log, (batch.progress_message(), reported_at))

    def poll(self, client: RelayClient, time_left: Callable[[], float], *, patient: bool) -> None:
        """
        Query every pending id once, whatever happens to some of them.

        :param time_left: seconds until the wait times out.
        :param patient: wait on the spot where the relay asks to slow down.
        :raises RelayError: when a request failed, after every other was sent. What holds for all of them
            (a rejected key or account) is raised at once.
        """
        if time.time() < self.not_before:
            return
        errors: list[RelayError] = []
        for ids in client.batches(self.batch.pending_ids):
            if errors and time_left() <= 0:
                break
            try:
                # The relay has had its retries; the other batches get an attempt each.
                once = any(isinstance(error, RelayTransientError) for error in errors)
                for requested, tasks in _query(client, ids, once, time_left() if patient else 0.0):
                    self.batch.update(requested, tasks, now=time.time())
            except RelayRateLimitError as error:
                self.not_before = time.time() + (error.retry_after or 0)
                self._log.info("%s", error)
                break
            except (RelayAuthenticationError, RelayPermissionError):
                raise
            except RelayError as error:
                errors.append(error)
        if errors:
            raise most_telling_error(errors)

    def report(self) -> None:
        """Log the progress when it changed and, as a sign of life, every few minutes."""
        message, now = self.batch.progress_message(), time.time()
        changed = message != self._message
        if changed or now - self._logged_at >= QUIET_SECONDS:
            self._log.info("%s", message)
            self._logged_at = now
        if changed:
            self._store.save_progress(message)
        self._message = message

    def save(self) -> None:
        """Keep the state for the process that polls next."""
        self._store.save(self.batch, self._logged_at)

    def describe(self) -> str:
        """Return in one line how far it came, naming the first ids that are still running."""
        result = self.batch.result
        running = f" Still running: {result.running_message()}" if result.running else ""
        return f"Luma tasks: {result.progress_message()}.{running}"

    def push_summary(self, context: Context) -> None:
        result = self.batch.result
        if result.running:
            self._log.warning("Still running: %s", result.running_message())
        summary = result.summary()
        context["ti"].xcom_push(SUMMARY_KEY, summary)
        count_tasks(
            {
                "completed": result.completed_count,
                "failed": len(result.failed),
                "missing": len(result.missing),
                "running": len(result.running),
            }
        )


def validate_event(event: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """
    Return the event of a :class:`LumaTaskTrigger`.

    :raises TriggerEventError: when it is lost or invalid.
    """
    known = isinstance(event, Mapping) and event.get("status") in {"done", "timeout", "error"}
    if event is None or not known or not TaskBatch.is_state(event.get("state")):
        raise TriggerEventError(f"The trigger event is lost or invalid: {event!r:.200}")
    return event


def _query(
    client: RelayClient, ids: Sequence[str], once: bool, patience: float
) -> Iterable[tuple[Sequence[str], Mapping[str, LumaTask]]]:
    return [(ids, client.query_once(ids))] if once else client.iter_tasks(ids, max_delay=patience)
