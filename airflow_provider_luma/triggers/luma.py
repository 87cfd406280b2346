"""Waits for Luma tasks in the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.exceptions import LumaValueError, RelayError, is_permanent
from airflow_provider_luma.relay.batch import TaskBatch
from airflow_provider_luma.relay.schedule import PollSchedule
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.triggers.registry import subscribed
from airflow_provider_luma.triggers.subscription import Subscription

_MAX_ERROR_CHARS = 2_000


class LumaTaskTrigger(BaseTrigger):
    """
    Wait until every one of these Luma tasks is terminal. All triggers of the connection share their requests.

    Yields one event: ``status`` is ``done``, ``timeout`` or ``error``; ``state`` is the batch's
    :meth:`~airflow_provider_luma.relay.batch.TaskBatch.dump`, which stays small whatever the relay says. With
    the status ``error`` there is an ``error``, and with ``timeout`` one if the last poll failed.

    :param luma_task_ids: all ids of the wait, in the order of the sensor.
    :param luma_conn_id: the connection.
    :param state: of the batch when the sensor deferred; the grace period of absent ids starts over.
    :param timeout: seconds after the start of the wait when it ends, whether or not the triggerer restarts.
    :param polled_at: when the sensor polled, in seconds since the epoch; ``None`` when it did not.
    :param not_before: when the relay may be polled again, in seconds since the epoch.
    :param poke_interval: seconds between polls, which keep to a grid so that triggers poll together.
    :param exponential_backoff: double the interval from poll to poll.
    :param max_wait: at most how many seconds between polls.
    :param fail_when: ``any``, ``all`` or ``never``.
    :param fail_fast: end as soon as nothing can save the batch.
    :param missing_grace: seconds for which an id may be absent from the responses.
    :param silent_fail: continue polling after any error that is not permanent.
    """

    _ARGUMENTS = (
        "luma_task_ids",
        "luma_conn_id",
        "state",
        "timeout",
        "polled_at",
        "not_before",
        "poke_interval",
        "exponential_backoff",
        "max_wait",
        "fail_when",
        "fail_fast",
        "missing_grace",
        "silent_fail",
    )

    def __init__(
        self,
        *,
        luma_task_ids: list[str],
        luma_conn_id: str,
        state: dict[str, Any],
        timeout: float,
        polled_at: float | None = None,
        not_before: float = 0,
        poke_interval: float = 60,
        exponential_backoff: bool = False,
        max_wait: float | None = None,
        fail_when: str = "any",
        fail_fast: bool = False,
        missing_grace: float = 120,
        silent_fail: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.luma_task_ids = luma_task_ids
        self.luma_conn_id = luma_conn_id
        self.state = state
        self.timeout = timeout
        self.polled_at = polled_at
        self.not_before = not_before
        self.poke_interval = poke_interval
        self.exponential_backoff = exponential_backoff
        self.max_wait = max_wait
        self.fail_when = fail_when
        self.fail_fast = fail_fast
        self.missing_grace = missing_grace
        self.silent_fail = silent_fail
        self._batch: TaskBatch | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in self._ARGUMENTS}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        batch = TaskBatch.load(self.luma_task_ids, self.state, missing_grace=self.missing_grace)
        if batch is None:
            raise LumaValueError("The state of this trigger is not that of its luma_task_ids")
        # Before a restart of the triggerer the ids may have been seen, and nobody would know.
        batch.forget_absences()
        self._batch = batch
        subscription = self._build_subscription(batch)
        try:
            while not subscription.has_ended:
                await self._wait(subscription)
            if subscription.error is not None:
                raise subscription.error
            event: dict[str, Any] = {"status": subscription.status}
            if subscription.status == "timeout" and subscription.last_error is not None:
                event["error"] = _error_payload(subscription.last_error)
        except (RelayError, LumaValueError) as error:
            event = {"status": "error", "error": _error_payload(error)}
        yield TriggerEvent(event | {"state": batch.dump()})  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Log what continues at the relay when a user ends the deferred task (Airflow 3.3 and newer)."""
        if self._batch is not None and self._batch.pending_count:
            self.log.warning("%s", self._batch.result.abandoned_message())

    async def _wait(self, subscription: Subscription) -> None:
        """Sleep until the polling loop has an outcome, and log the progress meanwhile."""
        try:
            async with subscribed(self.luma_conn_id, subscription):
                while not subscription.has_ended:
                    await subscription.news()
                    self._log_news(subscription)
        except (RelayError, LumaValueError) as error:  # of the connection
            subscription.add_error(error)
            subscription.finish_poll(time.monotonic(), 0)
            self._log_news(subscription)
            if not subscription.has_ended:
                await asyncio.sleep(max(subscription.due - time.monotonic(), 0))

    def _log_news(self, subscription: Subscription) -> None:
        while subscription.warnings:
            self.log.warning(
                "Poll failed, retrying at the next interval (silent_fail): %s", subscription.warnings.pop(0)
            )
        self.log.info("%s", subscription.batch.progress_message())

    def _build_subscription(self, batch: TaskBatch) -> Subscription:
        return Subscription(
            batch,
            PollSchedule(self.poke_interval, self.exponential_backoff, self.max_wait),
            fail_when=FailWhen.parse("fail_when", self.fail_when),
            fail_fast=self.fail_fast,
            deadline=batch.started_at + self.timeout,
            polled_at=self.polled_at,
            not_before=self.not_before,
            tolerates=lambda error: self.silent_fail and not is_permanent(error),
        )


def _error_payload(error: Exception) -> dict[str, Any]:
    """Describe an error for the event, which the triggerer must be able to encode whatever it says."""
    payload = error.to_dict() if isinstance(error, RelayError) else {}
    payload |= {"type": type(error).__name__, "message": str(error)}
    return {
        key: clean_text(value, _MAX_ERROR_CHARS) if isinstance(value, str) else value
        for key, value in payload.items()
    }
