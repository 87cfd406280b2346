"""One request of a round, and the subscriptions that wait for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_luma.relay.bisection import Evidence
from airflow_provider_luma.relay.client import RelayClient
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.relay.transport import Exchange
from airflow_provider_luma.triggers.subscription import Subscription

# After this many ids the event loop gets a turn; a trigger counts as this many more of them.
SLICE = 200
_IDS_OF_A_TRIGGER = 10


class Round:
    """
    Polls that began together.

    :ivar tasks: those that serve its requests.
    """

    def __init__(self) -> None:
        self.rejection: Exception | None = None
        self.evidence = Evidence()
        self.tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None] | None] = set()

    async def next_end(self) -> bool:
        """
        Wait until a request of this round ends; return False when there is none left to wait for.

        Requests that wait here do not wait for each other.
        """
        current = asyncio.current_task()
        self._waiting.add(current)
        try:
            others = {task for task in self.tasks if not task.done() and task not in self._waiting}
            if others:
                await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            return bool(others)
        finally:
            self._waiting.discard(current)


class Request:
    """One request: the ids that it queries, and the subscriptions that wait for it."""

    def __init__(self, round_: Round) -> None:
        self.round = round_
        self.ids: list[str] = []
        self.ids_by_subscription: defaultdict[Subscription, list[str]] = defaultdict(list)
        self.task: asyncio.Task[None] | None = None


class Turns:
    """Gives the event loop a turn after that many ids, as thousands of triggers may wait for one response."""

    def __init__(self) -> None:
        self._ids = 0

    async def spend(self, ids: int) -> None:
        self._ids += ids + _IDS_OF_A_TRIGGER
        if self._ids >= SLICE:
            self._ids = 0
            await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class SlimTask(LumaTask):
    """Only what a wait needs of a task. Its reason is cleaned once, however many wait for it."""

    reason: str | None = None

    @property
    def failure_reason(self) -> str | None:
        return self.reason


_RUNNING = SlimTask("", TaskState.PROCESSING)


def query_slim(
    client: RelayClient, ids: Sequence[str], exchange: Exchange, is_alone: bool = False
) -> dict[str, LumaTask]:
    """Query once, and keep of each task only what a wait needs: responses are freed in this thread."""
    tasks = client.query_once(ids, exchange=exchange, is_alone=is_alone)
    return {task_id: _slim(task) for task_id, task in tasks.items()}


def _slim(task: LumaTask) -> LumaTask:
    return SlimTask(task.id, task.state, reason=task.failure_reason) if task.is_terminal else _RUNNING
