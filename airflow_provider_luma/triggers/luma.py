"""Waits for Luma tasks in the triggerer."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.exceptions import LumaValueError, RelayError, RelayTransientError
from airflow_provider_luma.relay.batch import BatchResult, Outcome, TaskBatch, progress_line
from airflow_provider_luma.triggers.poller import Poller, shared_poller

# Airflow logs an event whole and handles it on the triggerer's event loop, so it must stay small.
EVENT_LIMIT = 16_000

# What the last poll may take beyond the deadline: after a long outage of the triggerer there is still one.
LAST_POLL_SECONDS = 10


class LumaTaskTrigger(BaseTrigger):
    """
    Wait until every one of these Luma tasks is terminal, in requests shared by the whole connection.

    Yields one event: ``status`` is ``done``, ``timeout`` or ``error``; ``running``, ``failed`` and
    ``missing`` say how the ids stand, every other id is completed. ``failed`` and ``missing`` are ``None``
    where they would make the event too large.

    :param luma_task_ids: ids that are still open.
    :param luma_conn_id: the connection.
    :param started_at: when the sensor began to wait, in seconds since the epoch.
    :param timeout: seconds after ``started_at`` when the wait ends, whether or not the triggerer restarts.
    :param polled_at: when the sensor polled, in seconds since the epoch; ``None`` when it did not.
    :param not_before: when the relay may be asked again, in seconds since the epoch.
    :param poke_interval: seconds between polls, which keep to its multiples so that triggers fall into step.
    :param exponential_backoff: double the interval from poll to poll.
    :param max_wait: seconds between polls at the most.
    :param fail_when: ``any``, ``all`` or ``never``.
    :param fail_fast: end as soon as nothing can save the batch.
    :param missing_grace: seconds for which the relay may not know an id.
    :param silent_fail: go on polling when the relay is in trouble.
    :param completed: how many ids had completed before, for the log.
    :param failed: reasons of ids that had failed before, for the log and the event.
    :param missing: ids that were missing before, for the log and the event.
    """

    def __init__(
        self,
        *,
        luma_task_ids: list[str],
        luma_conn_id: str,
        started_at: float,
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
        completed: int = 0,
        failed: dict[str, str] | None = None,
        missing: list[str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.luma_task_ids = luma_task_ids
        self.luma_conn_id = luma_conn_id
        self.started_at = started_at
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
        self.completed = completed
        self.failed = failed or {}
        self.missing = missing or []

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "luma_task_ids": self.luma_task_ids,
                "luma_conn_id": self.luma_conn_id,
                "started_at": self.started_at,
                "timeout": self.timeout,
                "polled_at": self.polled_at,
                "not_before": self.not_before,
                "poke_interval": self.poke_interval,
                "exponential_backoff": self.exponential_backoff,
                "max_wait": self.max_wait,
                "fail_when": self.fail_when,
                "fail_fast": self.fail_fast,
                "missing_grace": self.missing_grace,
                "silent_fail": self.silent_fail,
                "completed": self.completed,
                "failed": self.failed,
                "missing": self.missing,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        batch = TaskBatch(self.luma_task_ids, started_at=self.started_at, missing_grace=self.missing_grace)
        time_left = max(self._deadline - time.time(), 0)
        try:
            async with asyncio.timeout(time_left + LAST_POLL_SECONDS) as limit:
                async with shared_poller(self.luma_conn_id) as poller:
                    status = await self._wait(batch, poller)
            event = self._event(status, batch.result)
        except TimeoutError:
            if not limit.expired():
                raise
            event = self._event("timeout", batch.result)
        except (RelayError, LumaValueError) as error:
            event = self._event("error", batch.result) | {"error": _facts(error)}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    @property
    def _deadline(self) -> float:
        return self.started_at + self.timeout

    async def _wait(self, batch: TaskBatch, poller: Poller) -> str:
        """Poll until the batch has its outcome, at least once and for the last time at the deadline."""
        fail_when = FailWhen.parse(self.fail_when)
        polls = 0
        due = self.not_before
        if self.polled_at is not None:
            polls = 1
            due = max(due, self._next_poll(self.polled_at, polls))
        while True:
            await asyncio.sleep(min(due, self._deadline) - time.time())
            await self._poll(batch, poller)
            polls += 1
            result = batch.result
            self._log_progress(result)
            if result.outcome(fail_when, fail_fast=self.fail_fast) is not Outcome.RUNNING:
                return "done"
            now = time.time()
            if now >= self._deadline:
                return "timeout"
            due = self._next_poll(now, polls)

    async def _poll(self, batch: TaskBatch, poller: Poller) -> None:
        try:
            async for asked, answered in poller.iter_tasks(batch.open_ids):
                batch.observe(asked, answered, now=time.time())
        except RelayTransientError as error:
            if not self.silent_fail:
                raise
            self.log.warning("Going on, as silent_fail is set: %s", error)

    def _next_poll(self, polled_at: float, polls: int) -> float:
        """
        Return when the next poll is due: after the interval, drawn back to one of its multiples.

        The multiples make triggers that started apart poll together, which costs one request instead of many.
        """
        wait = self.poke_interval
        if self.exponential_backoff:
            wait = max(self.poke_interval * 2.0 ** (polls - 2), 1)
        if self.max_wait is not None:
            wait = min(wait, self.max_wait)
        step = self.poke_interval if self.poke_interval and wait % self.poke_interval == 0 else wait
        return math.floor((polled_at + wait) / step) * step if step else polled_at

    def _log_progress(self, result: BatchResult) -> None:
        line = progress_line(
            self.completed + result.completed_count,
            len(self.failed) + len(result.failed),
            len(self.missing) + len(result.missing),
            result.running,
        )
        self.log.info("%s", line)

    def _event(self, status: str, result: BatchResult) -> dict[str, Any]:
        event: dict[str, Any] = {
            "status": status,
            "running": result.running,
            "failed": {**self.failed, **result.failed},
            "missing": [*self.missing, *result.missing],
        }
        if len(json.dumps(event)) > EVENT_LIMIT:
            event |= {"failed": None, "missing": None}
        return event


def _facts(error: RelayError | LumaValueError) -> dict[str, Any]:
    if isinstance(error, RelayError):
        return error.to_dict()
    return {"type": type(error).__name__, "message": str(error)}
