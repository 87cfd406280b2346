"""
The poll loop that the triggers of one connection share.

Triggers ask :meth:`Poller.iter_tasks` whenever their own poll is due. What is asked within a short while
is gathered into one round, cut into batches and sent from a few threads, so that a thousand triggers cost
what one costs. Being told to slow down pauses every request of the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async
from tenacity import AsyncRetrying, RetryCallState

from airflow_provider_luma import metrics
from airflow_provider_luma.exceptions import RelayAuthenticationError, RelayRateLimitError
from airflow_provider_luma.hooks.luma import LumaHook, RelaySettings
from airflow_provider_luma.relay.client import RelayClient
from airflow_provider_luma.relay.task import LumaTask, TaskState

log = logging.getLogger(__name__)

Answer: TypeAlias = tuple[Sequence[str], Mapping[str, LumaTask]]

# A round is gathered until nobody has joined it for so long, ...
GATHER_SECONDS = 0.2
# ... or until it is so old, however many still come. Both are short beside any poll interval.
GATHER_SECONDS_LIMIT = 1.0


class Poller:
    """
    Asks one relay on behalf of all triggers of one connection.

    :param conn_id: the connection, read again when the relay no longer accepts the key.
    :param settings: what the connection said.
    """

    def __init__(self, conn_id: str, settings: RelaySettings) -> None:
        self.settings = settings
        self.users = 0
        self._conn_id = conn_id
        self._client = settings.client()
        self._threads = ThreadPoolExecutor(settings.max_in_flight, thread_name_prefix="luma-poll")
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._renewal = asyncio.Lock()
        self._refusal: RelayAuthenticationError | None = None
        self._paused_until = 0.0
        self._next_turn = 0.0
        self._gathering: _Round | None = None
        self._under_way: dict[str, asyncio.Task[Answer]] = {}

    async def iter_tasks(self, ids: Iterable[str]) -> AsyncIterator[Answer]:
        """
        Yield the answers for these ids, and for ids that others asked for in the same requests.

        :raises RelayError: when a request failed for good, after every other answer was yielded.
        """
        if self._gathering is None:
            self._gathering = _Round()
            self._gathering.closing = asyncio.create_task(self._close_round(self._gathering))
        gathering = self._gathering
        wanted = dict.fromkeys(ids)
        gathering.ids.update(wanted)
        await asyncio.shield(gathering.closing)
        errors: list[BaseException] = []
        requests = {gathering.requests[task_id] for task_id in wanted}
        while requests:
            # Waiting this way leaves the requests alone when this trigger is cancelled: others wait for them.
            done, requests = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            for request in done:
                if (error := request.exception()) is not None:
                    errors.append(error)
                else:
                    yield request.result()
        if errors:
            raise errors[0]

    async def _close_round(self, gathered: _Round) -> None:
        await self._all_have_joined(gathered)
        self._gathering = None
        metrics.gauge_round(self._conn_id, len(gathered.ids))
        fresh = [task_id for task_id in gathered.ids if task_id not in self._under_way]
        for batch in self._client.batches(fresh):
            request = asyncio.create_task(self._request(batch))
            request.add_done_callback(partial(self._forget, batch))
            self._under_way.update(dict.fromkeys(batch, request))
        gathered.requests = {task_id: self._under_way[task_id] for task_id in gathered.ids}

    @staticmethod
    async def _all_have_joined(gathered: _Round) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + GATHER_SECONDS_LIMIT
        joined = -1
        while joined < len(gathered.ids) and loop.time() < limit:
            joined = len(gathered.ids)
            await asyncio.sleep(GATHER_SECONDS)

    def _forget(self, batch: Sequence[str], request: asyncio.Task[Answer]) -> None:
        for task_id in batch:
            del self._under_way[task_id]
        if not request.cancelled():
            request.exception()  # seen by nobody when every trigger that waited is gone

    async def _request(self, batch: Sequence[str]) -> Answer:
        arguments = self._client.retry.retrying_kwargs()
        log_wait = arguments.pop("before_sleep")

        def pause(retry_state: RetryCallState) -> None:
            log_wait(retry_state)
            if retry_state.outcome and isinstance(retry_state.outcome.exception(), RelayRateLimitError):
                self._pause(retry_state.upcoming_sleep)

        return batch, await AsyncRetrying(before_sleep=pause, **arguments)(self._ask, batch)

    async def _ask(self, batch: Sequence[str]) -> dict[str, LumaTask]:
        async with self._slots:
            await self._turn()
            used = self.settings
            try:
                if self._refusal is not None:
                    raise self._refusal
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, _ask_slim, self._client, batch
                )
            except RelayAuthenticationError as error:
                if not await self._renewed(used):
                    self._refusal = error
                    raise
        return await self._ask(batch)

    async def _turn(self) -> None:
        """Return when a request may go out: after a pause, and in step with ``max_requests_per_minute``."""
        loop = asyncio.get_running_loop()
        # Both may have moved on meanwhile.
        while loop.time() < (until := max(self._paused_until, self._next_turn)):
            await asyncio.sleep(until - loop.time())
        if self.settings.max_requests_per_minute:
            self._next_turn = loop.time() + 60 / self.settings.max_requests_per_minute

    def _pause(self, seconds: float) -> None:
        """Hold back every request of this connection."""
        metrics.count_pause(self._conn_id)
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)

    async def _renewed(self, used: RelaySettings) -> bool:
        """Read the connection again; ``True`` when it says something else than was ``used``."""
        async with self._renewal:
            if self.settings == used and self._refusal is None:
                settings = await read_settings(self._conn_id)
                if settings != used:
                    log.info("The connection %r has changed; going on with what it says now", self._conn_id)
                    self._client.close()
                    self.settings, self._client = settings, settings.client()
        return self.settings != used

    def close(self) -> None:
        for request in set(self._under_way.values()):
            request.cancel()
        if self._gathering is not None:
            self._gathering.closing.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _ask_slim(client: RelayClient, batch: Sequence[str]) -> dict[str, LumaTask]:
    """Ask, and keep of each task what a wait needs: a round of 10,000 whole ones would be 40 MiB."""
    return {
        task_id: task if task.state is TaskState.FAILED else LumaTask(task_id, task.state)
        for task_id, task in client.query_once(batch).items()
    }


class _Round:
    """What triggers ask for together, and the requests that answer it."""

    closing: asyncio.Task[None]

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        self.requests: dict[str, asyncio.Task[Answer]] = {}


class _Loop:
    """The pollers of one event loop."""

    def __init__(self) -> None:
        self.pollers: dict[str, Poller] = {}
        self.reads: dict[str, asyncio.Task[RelaySettings]] = {}

    async def settings(self, conn_id: str) -> RelaySettings:
        """Read a connection; whoever asks meanwhile shares the reading."""
        if conn_id not in self.reads:
            self.reads[conn_id] = asyncio.create_task(read_settings(conn_id))
            self.reads[conn_id].add_done_callback(lambda _: self.reads.pop(conn_id))
        return await asyncio.shield(self.reads[conn_id])

    async def join(self, conn_id: str) -> Poller:
        settings = await self.settings(conn_id)
        poller = self.pollers.get(conn_id)
        if poller is None or poller.settings != settings:
            # Those who joined under other settings go on with their own poller.
            poller = self.pollers[conn_id] = Poller(conn_id, settings)
        poller.users += 1
        return poller

    def leave(self, conn_id: str, poller: Poller) -> None:
        poller.users -= 1
        if poller.users == 0:
            if self.pollers.get(conn_id) is poller:
                del self.pollers[conn_id]
            poller.close()


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


@asynccontextmanager
async def shared_poller(conn_id: str) -> AsyncIterator[Poller]:
    """
    Join the poller of a connection; the last to leave closes it.

    :raises LumaValueError: when the connection cannot be used.
    """
    loop = _loops.setdefault(asyncio.get_running_loop(), _Loop())
    poller = await loop.join(conn_id)
    try:
        yield poller
    finally:
        loop.leave(conn_id, poller)


async def read_settings(conn_id: str) -> RelaySettings:
    # In a thread, because reading a connection and masking its secrets block on every Airflow before 3.3.
    return await sync_to_async(lambda: LumaHook(conn_id).settings)()
