"""One wait as the polling loop sees it: a batch, when its next poll is due, and how the wait ended."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.exceptions import error_to_raise, is_permanent
from airflow_provider_luma.relay.batch import TaskBatch
from airflow_provider_luma.relay.result import Outcome
from airflow_provider_luma.relay.schedule import LAST_POLL_SECONDS, QUIET_SECONDS, PollSchedule
from airflow_provider_luma.relay.task import LumaTask

if TYPE_CHECKING:
    from airflow_provider_luma.triggers.poller import Poller
    from airflow_provider_luma.triggers.request import Request


class Subscription:
    """
    A batch that the polling loop keeps up to date.

    Phases: *idle* until :attr:`due`; *polling* while requests hold some of its ids; then idle again, or ended
    with a :attr:`status` (``done``, ``timeout``) or an :attr:`error`. Its trigger sleeps in :meth:`news` and
    is woken when an id became final, when the wait ended, for a tolerated error, and for a sign of life. Its
    own times, :attr:`due` among them, are those of the monotonic clock.

    :param batch: updated by the loop alone.
    :param schedule: how far apart its polls are.
    :param fail_when: with ``fail_fast``, when the batch has its outcome.
    :param deadline: seconds since the epoch; the last poll begins then.
    :param polled_at: when the sensor polled; ``None`` when it did not, so that the first poll is due at once.
    :param not_before: when the relay may be polled again.
    :param tolerates: returns whether the wait continues after an error; by default after none.
    """

    def __init__(
        self,
        batch: TaskBatch,
        schedule: PollSchedule,
        *,
        fail_when: FailWhen = FailWhen.NEVER,
        fail_fast: bool = False,
        deadline: float = math.inf,
        polled_at: float | None = None,
        not_before: float = 0,
        tolerates: Callable[[Exception], bool] = lambda error: False,
    ) -> None:
        self.batch = batch
        self.status: str | None = None
        self.error: Exception | None = None
        self.warnings: list[Exception] = []
        self.last_error: Exception | None = None
        self.poller: Poller | None = None
        self.requests: set[Request] = set()
        self._schedule = schedule
        self._fail_when = fail_when
        self._fail_fast = fail_fast
        now = time.monotonic()
        clock_offset = now - time.time()
        self._deadline = deadline + clock_offset
        self._last_call = max(self._deadline, now) + LAST_POLL_SECONDS
        self._tolerates = tolerates
        self._polls = 0 if polled_at is None else 1
        self._errors: list[Exception] = []
        self._changed = False
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None
        self._quiet_until = now + QUIET_SECONDS
        self._polled_at = None if polled_at is None else polled_at + clock_offset
        # The last poll waits for as long as the relay requests; where that takes too long, there is none.
        self.due = min(not_before + clock_offset, self._last_call)
        self.is_on_grid = False

    @property
    def has_ended(self) -> bool:
        return self.status is not None or self.error is not None

    @property
    def wakes_at(self) -> float:
        """The time at which the loop must look at it again."""
        return self._last_call if self.requests else self.due

    def is_due(self, now: float) -> bool:
        return self.due <= now and not self.requests and not self.has_ended

    def place_on_grid(self, offset: float) -> None:
        """Set when the first poll is due, where the sensor has polled before."""
        if self._polled_at is not None:
            not_before = self.due
            self._poll_at(self._schedule.next_poll(self._polled_at, 1, offset))
            self._polled_at = None
            if self.due < not_before:
                self.due, self.is_on_grid = not_before, False

    async def news(self) -> None:
        """Return when there is something to log or the wait has ended."""
        if not self._has_news:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._has_news = False

    def take(self, requested: Sequence[str], tasks: Mapping[str, LumaTask], now: float) -> None:
        """Take in a response."""
        if self.batch.update(requested, tasks, now=now):
            self._changed = True

    def add_error(self, error: Exception) -> None:
        """Take in that a request failed; what that means is decided when the poll has ended."""
        self._errors.append(error)

    def finish_poll(self, now: float, offset: float) -> None:
        """
        Decide whether the wait is over, once every request of a poll is.

        From the deadline on, an error that may pass counts as the timeout that it leads to.
        """
        self._polls += 1
        errors, self._errors = self._errors, []
        self.last_error = errors[-1] if errors else None
        if fatal := [error for error in errors if self._is_fatal(error, now)]:
            self.end_with(error_to_raise(fatal))
        elif self.batch.outcome(self._fail_when, fail_fast=self._fail_fast) is not Outcome.RUNNING:
            self.end("done")
        elif now >= self._deadline:
            self.end("timeout")
        else:
            self._poll_at(self._schedule.next_poll(now, self._polls, offset))
            self.warnings += {str(error): error for error in errors}.values()  # those of a batch are alike
            self._wake_if_new(now)

    def _poll_at(self, moment: float) -> None:
        self.due = min(moment, self._deadline)
        self.is_on_grid = moment < self._deadline

    def _is_fatal(self, error: Exception, now: float) -> bool:
        is_late = now >= self._deadline and not is_permanent(error)
        return not is_late and not self._tolerates(error)

    def check_last_call(self, now: float, offset: float) -> None:
        """End the wait where even its last poll takes too long, or may not begin."""
        may_not_begin = self.due >= self._last_call and not self.has_ended
        if now >= self._last_call and (self.requests or may_not_begin):
            self.finish_poll(now, offset)

    def restart_poll(self, now: float) -> None:
        """Begin the current poll again, such as with another key."""
        self.requests.clear()
        self._errors.clear()
        self.due = now

    def end(self, status: str) -> None:
        self.status = status
        self._wake()

    def end_with(self, error: Exception) -> None:
        self.error = error
        self._wake()

    def _wake_if_new(self, now: float) -> None:
        if self._changed or self.warnings or now >= self._quiet_until:
            self._changed = False
            self._quiet_until = now + QUIET_SECONDS
            self._wake()

    def _wake(self) -> None:
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
