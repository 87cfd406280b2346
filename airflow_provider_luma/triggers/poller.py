"""
The polling loop that the triggers of one connection share.

Theory of operation
-------------------
*Loop.* Each connection has one :class:`Poller` in an event loop, and each poller one plain loop: sleep until
a subscription is due, wait a moment for others if some have joined (``COALESCE_WINDOW``), start a round. A
trigger subscribes its batch and sleeps; the loop updates the batch and wakes the trigger only when something
changed. A thousand triggers therefore cost the requests of one, and a sleeping coroutine each.

*Round.* The ids of all subscriptions that are due are split into requests of ``batch_size``. An id that a
request already queries is not queried again: its subscription waits for that request. A round does not wait
for the one before, so a slow response delays nobody else. The poll of a subscription is over when every
request that holds one of its ids has ended, so that no failed request hides a response.

*Turns.* A response may be about 10,000 ids, and thousands of subscriptions may wait for it. They are updated
and woken in parts, between which the event loop gets a turn. Its ids are no longer in flight by then, so that
a trigger that joins meanwhile gets a request of its own.

*Grid.* Polls keep to a grid of multiples of the interval, so that waits that began apart share requests. The
grid is shifted by a hash of the API key: customers of one relay do not all poll in the same second.

*Bisection.* The ids of a request that failed are queried again in smaller ones, so that a bad id, or one with
a huge row, fails its own subscription alone (:mod:`~airflow_provider_luma.relay.bisection`). Where nothing
shows yet that the relay is up, a failed request waits for the others of its round.

*Pause and pace.* A 429 pauses every request of the connection, and ``max_requests_per_minute`` spaces them
out (:class:`AsyncRateLimiter`). ``max_in_flight`` requests run at once, each in a thread; a request that
waits for its retry holds none. A request that nobody waits for any more is aborted: its socket is closed,
which frees its slot and its thread. While it is still connecting there is no socket to close: its thread ends
with the connect timeout, in a poller that may be closed by then. The next poller has threads of its own, so
waits that come and go one by one leave a thread each for so long.

*Rejection.* A rejected key or account (401, 402, 403) fails the round in which it came and spares the rest of
that round its requests. The next round queries again, since keys may be accepted again.

*Renewal.* At a 401 the connection is read again, and, every few seconds at the most, when a request failed in
a round in which none has succeeded. If it has changed, a new poller takes over every subscription and begins
their polls anew. Triggers that join after a change find a new poller, too. A connection that cannot be read
at a 401 is a transient error of that round.

*Clock.* When a poll is due, and when a wait ends, is kept on the monotonic clock, so that setting the clock
moves neither. Only absences are noted in the time of day, as they outlive the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context

from asgiref.sync import sync_to_async
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from airflow_provider_luma import metrics
from airflow_provider_luma.exceptions import (
    LumaValueError,
    RelayAuthenticationError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTransientError,
)
from airflow_provider_luma.hooks.luma import LumaHook, RelaySettings
from airflow_provider_luma.relay.bisection import Bisection, QueryOutcome
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.relay.schedule import REREAD_SECONDS
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.triggers.async_rate_limiter import AsyncRateLimiter
from airflow_provider_luma.triggers.request import SLICE, Request, Round, Turns, query_slim
from airflow_provider_luma.triggers.subscription import Subscription

log = logging.getLogger(__name__)

# A round that is not on the grid begins when no trigger has joined for this long, ...
COALESCE_WINDOW = 0.2
# ... or after this, however many still come. Both are short beside any poll interval.
MAX_COALESCE_SECONDS = 1.0

_THREADS_PER_SLOT = 4

# Range of a grid's offset, which a hash of the key chooses; only its remainder by the interval matters.
_GRID_SECONDS = 3600


class Poller:
    """
    Polls one relay for all subscriptions of one connection.

    :param conn_id: the connection, read again when the relay rejects the key.
    :param settings: of the connection.
    :param replace: called with changed settings; moves every subscription to a poller of those.
    """

    def __init__(
        self, conn_id: str, settings: RelaySettings, replace: Callable[[Poller, RelaySettings], None]
    ) -> None:
        self.conn_id = conn_id
        self.settings = settings
        self.subscriptions: dict[Subscription, None] = {}
        self._replace = replace
        # More threads than slots, made only when needed: an aborted request frees its slot at once, and its
        # thread a moment later, or when a name server has responded.
        threads = _THREADS_PER_SLOT * settings.max_in_flight
        self._client = settings.create_client(max_connections=threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="luma-poll")
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._limiter = AsyncRateLimiter(settings.max_requests_per_minute)
        self._renewal = asyncio.Lock()
        self._read_at = time.monotonic()
        self._offset = _grid_offset(settings.api_key)
        self._in_flight: dict[str, Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._joined = 0
        self._sleeps_until = 0.0
        self._wake = asyncio.Event()
        # In a context of its own: its log lines do not belong to the trigger that happened to come first.
        self._loop = asyncio.create_task(self._run(), name=f"luma-poller {conn_id}", context=Context())
        self._loop.add_done_callback(self._pass_on_crash)

    @property
    def is_running(self) -> bool:
        return not self._loop.done()

    def add(self, subscription: Subscription) -> None:
        subscription.place_on_grid(self._offset)
        subscription.poller = self
        self.subscriptions[subscription] = None
        self._joined += 1
        if subscription.wakes_at < self._sleeps_until:
            self._wake.set()

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription, and the requests that were sent for it alone."""
        self.subscriptions.pop(subscription, None)
        for request in subscription.requests:
            request.ids_by_subscription.pop(subscription, None)
            if not request.ids_by_subscription and request.task is not None:
                # At once, as a task that has not begun yet never comes to what it would do at its end.
                self._forget(request, request.ids)
                request.task.cancel()
        subscription.requests.clear()

    def close(self) -> None:
        current = asyncio.current_task()
        for task in {self._loop, *self._tasks} - {current}:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _run(self) -> None:
        gathered = 0
        while True:
            on_grid = await self._sleep()
            if self._joined != gathered or not on_grid:
                await self._coalesce()
            gathered = self._joined
            await self._start_round()

    async def _sleep(self) -> bool:
        """Sleep until a subscription wants attention; return whether that was on the grid."""
        wishes = ((s.wakes_at, s.is_on_grid) for s in self.subscriptions if not s.has_ended)
        wanted, on_grid = min(wishes, default=(math.inf, True))
        self._sleeps_until = wanted
        self._wake.clear()
        if wanted > time.monotonic():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(wanted):
                    await self._wake.wait()
        self._sleeps_until = 0.0
        return on_grid

    async def _coalesce(self) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + MAX_COALESCE_SECONDS
        joined = -1
        while joined < self._joined and loop.time() < limit:
            joined = self._joined
            await asyncio.sleep(COALESCE_WINDOW)

    async def _start_round(self) -> None:
        now, round_, request = time.monotonic(), Round(), None
        number, turns = 0, Turns()
        for subscription in list(self.subscriptions):
            await turns.spend(subscription.batch.pending_count if subscription.is_due(now) else 0)
            subscription.check_last_call(now, self._offset)
            if subscription.is_due(now) and subscription in self.subscriptions:
                number += subscription.batch.pending_count
                request = self._assign(subscription, round_, request)
                if not subscription.requests:  # it has nothing left to wait for
                    self._finish_poll(subscription, now)
        if request is not None:
            self._launch(request)
        if number:
            metrics.record_pending_ids(self.conn_id, number)

    def _assign(self, subscription: Subscription, round_: Round, request: Request | None) -> Request | None:
        """Spread the ids of a subscription over requests; return the one that has room left."""
        for task_id in subscription.batch.pending_ids:
            target = self._in_flight.get(task_id)
            if target is None:
                target = self._in_flight[task_id] = request = request or Request(round_)
                target.ids.append(task_id)
                if len(target.ids) >= self.settings.batch_size:
                    self._launch(target)
                    request = None
            target.ids_by_subscription[subscription].append(task_id)
            subscription.requests.add(target)
        return request

    def _launch(self, request: Request) -> None:
        request.task = asyncio.create_task(self._serve(request))
        request.round.tasks.add(request.task)
        self._tasks.add(request.task)
        request.task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request) -> None:
        """Send a request, with retries, and give the response to every subscription that waits for it."""
        try:
            await self._resolve(request)
        finally:
            self._forget(request, request.ids)
        now, turns = time.monotonic(), Turns()
        for subscription, its_ids in list(request.ids_by_subscription.items()):
            if request in subscription.requests:
                subscription.requests.discard(request)
                if not subscription.requests:
                    self._finish_poll(subscription, now)
            await turns.spend(len(its_ids))

    async def _resolve(self, request: Request) -> None:
        """Query the ids of a request; where it fails, deliver the response to each of them, or its error."""
        response = await self._query(request.round, request.ids, self._client.retry)
        bisection = Bisection(request.ids, response, request.round.evidence)
        await self._deliver_tasks(request, request.ids, response)
        while await self._bisect(request, bisection) or await self._may_go_on(request, bisection):
            pass
        bisection.finish()
        if bisection.errors and not request.round.evidence.succeeds:
            await self._renew_if_edited()
        for ids, error in bisection.errors:
            self._deliver_error(request, ids, error)

    async def _bisect(self, request: Request, bisection: Bisection) -> bool:
        """Query some ids of a request that failed; return False when none may be queried now."""
        ids = bisection.next_ids()
        if ids is None:
            return False
        response = await self._query(request.round, ids, self._client.retry.once())
        bisection.take(ids, response)
        await self._deliver_tasks(request, ids, response)  # at once, as the deadline of some may come first
        return True

    async def _may_go_on(self, request: Request, bisection: Bisection) -> bool:
        """Wait until another request of the round lets an bisection continue; return False when none does."""
        while bisection.is_open and request.round.evidence.is_used_up:
            if not await request.round.next_end():
                return False
        return bisection.is_open

    async def _deliver_tasks(self, request: Request, ids: Sequence[str], response: QueryOutcome) -> None:
        """Give tasks to the subscriptions that wait for them, in slices: they may be 10,000."""
        if isinstance(response, Exception):
            return
        self._forget(request, ids)
        requested, turns = frozenset(ids), Turns()
        for subscription, its_ids in list(request.ids_by_subscription.items()):
            concerned = [task_id for task_id in its_ids if task_id in requested]
            for start in range(0, len(concerned) or 1, SLICE):
                part = concerned[start : start + SLICE]
                if request in subscription.requests:
                    subscription.take(part, response, time.time())
                await turns.spend(len(part))

    def _deliver_error(self, request: Request, ids: Sequence[str], error: Exception) -> None:
        failed = frozenset(ids)
        for subscription, its_ids in request.ids_by_subscription.items():
            if request in subscription.requests and not failed.isdisjoint(its_ids):
                subscription.add_error(error)

    def _forget(self, request: Request, ids: Sequence[str]) -> None:
        for task_id in ids:
            if self._in_flight.get(task_id) is request:
                del self._in_flight[task_id]

    def _finish_poll(self, subscription: Subscription, now: float) -> None:
        try:
            subscription.finish_poll(now, self._offset)
        except Exception as fault:  # noqa: BLE001 - such as of its arguments, and of this subscription alone
            subscription.end_with(fault)
        if subscription.wakes_at < self._sleeps_until:
            self._wake.set()

    async def _query(self, round_: Round, ids: Sequence[str], retry: RetryPolicy) -> QueryOutcome:
        arguments = retry.retrying_kwargs()
        arguments["retry"] &= retry_if_exception(lambda _: round_.rejection is None)
        log_wait = arguments.pop("before_sleep")

        def pause(retry_state: RetryCallState) -> None:
            log_wait(retry_state)
            if retry_state.outcome and isinstance(retry_state.outcome.exception(), RelayRateLimitError):
                metrics.count_rate_limit_pause(self.conn_id)
                self._limiter.pause(retry_state.upcoming_sleep)

        try:
            tasks: Mapping[str, LumaTask] = await AsyncRetrying(before_sleep=pause, **arguments)(
                self._send, round_, ids, retry.max_attempts == 1
            )
        except Exception as error:  # noqa: BLE001 - a bug reaches the triggers as it is
            return error
        return tasks

    async def _send(self, round_: Round, ids: Sequence[str], is_alone: bool) -> Mapping[str, LumaTask]:
        async with self._slots:
            await self._limiter.acquire()
            if round_.rejection is not None:
                raise round_.rejection
            exchange = self._client.exchange()
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, query_slim, self._client, ids, exchange, is_alone
                )
            except asyncio.CancelledError:
                exchange.abort()
                raise
            except RelayAuthenticationError as error:
                await self._renew(round_, error)
                raise
            except RelayPermissionError as error:
                round_.rejection = error
                raise

    async def _renew(self, round_: Round, error: RelayAuthenticationError) -> None:
        """Read the connection again: a changed one gets a new poller, otherwise the round is rejected."""
        async with self._renewal:
            if round_.rejection is not None:
                raise round_.rejection
            try:
                settings = await self._read_settings()
            except LumaValueError as unusable:
                round_.rejection = unusable
                raise
            except Exception as unreadable:
                round_.rejection = RelayTransientError(
                    f"The connection {self.conn_id!r} cannot be read again: {unreadable}. {error}"
                )
                raise round_.rejection from unreadable
            round_.rejection = error
            self._replace_if_changed(settings)

    async def _renew_if_edited(self) -> None:
        """Read the connection again, now and then: a relay that fails may be another one by now."""
        async with self._renewal:
            if time.monotonic() - self._read_at < REREAD_SECONDS:
                return
            try:
                self._replace_if_changed(await self._read_settings())
            except Exception as error:  # noqa: BLE001 - of any secrets backend
                log.warning("The connection %r cannot be read again: %s", self.conn_id, error)

    async def _read_settings(self) -> RelaySettings:
        self._read_at = time.monotonic()
        return await read_settings(self.conn_id)

    def _replace_if_changed(self, settings: RelaySettings) -> None:
        if settings != self.settings:
            log.info("The connection %r has changed; polling with its new settings", self.conn_id)
            self._replace(self, settings)

    def _pass_on_crash(self, loop: asyncio.Task[None]) -> None:
        if not loop.cancelled() and (fault := loop.exception()) is not None:
            for subscription in list(self.subscriptions):
                subscription.end_with(fault if isinstance(fault, Exception) else RuntimeError(repr(fault)))


def _grid_offset(api_key: str) -> float:
    digest = hashlib.sha256(api_key.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 * _GRID_SECONDS


async def read_settings(conn_id: str) -> RelaySettings:
    # In a thread, because reading a connection and masking its secrets block on every Airflow before 3.3.
    return await sync_to_async(lambda: LumaHook(conn_id).settings)()
