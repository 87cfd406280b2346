"""The wait of a sensor in a worker: polls, reports progress, and keeps its state for the next process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTransientError,
    TriggerEventError,
    error_to_raise,
)
from airflow_provider_luma.metrics import count_tasks
from airflow_provider_luma.relay.batch import TaskBatch
from airflow_provider_luma.relay.bisection import Bisection, Evidence, QueryOutcome
from airflow_provider_luma.relay.schedule import LAST_POLL_SECONDS, QUIET_SECONDS
from airflow_provider_luma.sensors.wait_store import WaitStore

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.relay import RelayClient

SUMMARY_KEY = "luma_summary"


class Wait:
    """
    Waits for a batch, after :meth:`begin` or :meth:`load`.

    :param ids: the Luma task ids.
    :param missing_grace: in seconds.
    :param store: where its state outlives the process.
    :param log: of the sensor.
    """

    batch: TaskBatch

    def __init__(self, ids: Sequence[str], missing_grace: float, store: WaitStore, log: Any) -> None:
        self.not_before = 0.0
        self._ids = ids
        self._missing_grace = missing_grace
        self._store = store
        self._log = log
        self._message, self._logged_at = "", 0.0

    def begin(self, started_at: float, *, is_continued: bool) -> None:
        """
        Begin to wait.

        :param is_continued: whether an earlier process has waited: its state is taken up, if it was kept.
        """
        record = self._store.load() if is_continued else {}
        self.batch = self._new_batch(started_at)
        if self.load(record.get("state")):
            self._message = self.batch.progress_message()
            self._logged_at = record["logged_at"]
            self.not_before = record["not_before"]
            if not self._store.was_saved_by_last_poll(record):
                self.batch.forget_absences()
        elif is_continued and not self._store.exists:
            # Before Airflow 3.3 nothing is kept from poll to poll: the grace counts from the first one there.
            self.batch = self._new_batch(started_at, absent_since=started_at)

    def load(self, state: Any) -> bool:
        """Resume from a :meth:`TaskBatch.dump`; ``False`` for that of other ids: only its start counts."""
        batch = TaskBatch.load(self._ids, state, missing_grace=self._missing_grace)
        if batch is None and TaskBatch.is_state(state):
            self.batch = self._new_batch(state["started_at"])
        self.batch = batch or self.batch
        return batch is not None

    def _new_batch(self, started_at: float, absent_since: float | None = None) -> TaskBatch:
        return TaskBatch(
            self._ids, started_at=started_at, missing_grace=self._missing_grace, absent_since=absent_since
        )

    def poll(self, client: RelayClient, deadline: float, *, patient: bool) -> None:
        """
        Query every pending id once, whatever happens to some of them.

        :param deadline: when the wait times out, in seconds since the epoch; the poll ends a moment later.
        :param patient: wait on the spot for a rate limit, as the last poll does anyway.
        :raises RelayError: when a request failed, after every other was sent. What holds for all of them
            (a rejected key or account) is raised at once.
        """
        now = time.time()
        is_last, last_call = now >= deadline, max(deadline, now) + LAST_POLL_SECONDS
        if now < self.not_before:
            if not is_last or self.not_before >= last_call:
                return
            time.sleep(self.not_before - now)
        query = _Query(client, last_call, last_call if patient or is_last else 0.0)
        bisections: list[Bisection] = []
        try:
            self._query_all(query, self._batches(client), bisections)
        except RelayRateLimitError as error:
            self.not_before = time.time() + (error.retry_after or 0)
            self._log.info("%s", error)
        except TimeoutError as cut:
            self._log.info("Sensor timeout reached during a poll: %s", cut)
        else:
            for bisection in bisections:
                bisection.finish()
        if errors := [error for bisection in bisections for _, error in bisection.errors]:
            raise error_to_raise(errors)

    def _batches(self, client: RelayClient) -> list[Sequence[str]]:
        """Return the ids of each request, from another on at each reschedule: a 429 may end every poll."""
        batches = list(client.batches(self.batch.pending_ids))
        first = self._store.reschedules % max(len(batches), 1)
        return batches[first:] + batches[:first]

    def _query_all(
        self, query: _Query, batches: Iterable[Sequence[str]], bisections: list[Bisection]
    ) -> None:
        """Query batches, and add the bisection of each."""
        evidence, once = Evidence(), False
        for ids in batches:
            response = self._take(ids, query(ids, once=once))
            bisections.append(Bisection(ids, response, evidence))
            self._bisect(query, bisections[-1])
            # The relay has had its retries; the other batches get an attempt each.
            once = once or isinstance(response, RelayTransientError)
        for bisection in bisections:  # as a later batch may have succeeded
            self._bisect(query, bisection)

    def _bisect(self, query: _Query, bisection: Bisection) -> None:
        while (suspects := bisection.next_ids()) is not None:
            bisection.take(suspects, self._take(suspects, query(suspects, once=True)))

    def _take(self, ids: Sequence[str], response: QueryOutcome) -> QueryOutcome:
        if not isinstance(response, Exception):
            self.batch.update(ids, response, now=time.time())
        return response

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
        self._store.save(self.batch, self._logged_at, self.not_before)

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
    facts: Mapping[str, Any] = event if isinstance(event, Mapping) else {}
    known = facts.get("status") in {"done", "timeout"} or isinstance(facts.get("error"), Mapping)
    if not known or not TaskBatch.is_state(facts.get("state")):
        raise TriggerEventError(f"The trigger event is lost or invalid: {event!r:.200}")
    return facts


@dataclass(frozen=True)
class _Query:
    """
    Queries batches during one poll.

    :param last_call: when the poll must have ended, in seconds since the epoch.
    :param patient_until: until when rate limits are waited out.
    """

    client: RelayClient
    last_call: float
    patient_until: float

    def __call__(self, ids: Sequence[str], *, once: bool) -> QueryOutcome:
        """
        Return the tasks, or an error that may be about these ids alone.

        :raises TimeoutError: when the time of the poll has expired.
        """
        now = time.time()
        if now >= self.last_call:
            raise TimeoutError("the remaining requests were not sent")
        try:
            return self.client.query(
                ids,
                once=once,
                max_delay=max(self.patient_until - now, 0.0),
                max_seconds=self.last_call - now,
            )
        except (RelayRateLimitError, RelayAuthenticationError, RelayPermissionError):
            raise
        except RelayError as error:
            return error
