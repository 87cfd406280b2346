"""
The polling loop that the triggers of one connection share.

Theory of operation
-------------------
*Loop.* Each connection has one :class:`Poller` in an event loop, and each poller one plain loop: sleep until
a subscription is due, wait a moment for others (``COALESCE_WINDOW``), start a round. A trigger subscribes its
batch and sleeps; the loop updates the batch and wakes the trigger only when something changed. A thousand
triggers therefore cost the requests of one, and a sleeping coroutine each.

*Round.* The ids of all subscriptions that are due are cut into requests of ``batch_size``. An id that a
request already asks for is not asked again: its subscription waits for that request. A round does not wait
for the one before, so a slow response delays nobody else. The poll of a subscription is over when every
request that holds one of its ids has ended, so that no failed request hides a response.

*Grid.* Polls keep to a grid of multiples of the interval, so that waits that began apart share requests. The
grid is shifted by a hash of the API key: customers of one relay do not all ask in the same second.

*Pause and pace.* A 429 pauses every request of the connection, and ``max_requests_per_minute`` spaces them
out (:class:`RateLimiter`). ``max_in_flight`` requests run at once, each in a thread; a request that waits
for its retry holds none.

*Rejection.* A rejected key or account (401, 402, 403) fails the round in which it came and spares the rest of
that round its requests. The next round asks again, since keys are accepted again.

*Renewal.* At a 401 the connection is read again. If it has changed, a new poller takes over every
subscription and begins their polls anew. Triggers that join after a change find a new poller, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context

from asgiref.sync import sync_to_async
from tenacity import AsyncRetrying, RetryCallState

from airflow_provider_luma import metrics
from airflow_provider_luma.exceptions import (
    LumaValueError,
    RelayAuthenticationError,
    RelayInvalidRequestError,
    RelayPermissionError,
    RelayRateLimitError,
)
from airflow_provider_luma.hooks.luma import LumaHook, RelaySettings
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.triggers.rate_limiter import RateLimiter
from airflow_provider_luma.triggers.request import Request, Round, query_slim
from airflow_provider_luma.triggers.subscription import Subscription

log = logging.getLogger(__name__)

# A round begins when nobody has joined for so long, ...
COALESCE_WINDOW = 0.2
# ... or after this, however many still come. Both are short beside any poll interval.
MAX_COALESCE_SECONDS = 1.0

# The clock may be set meanwhile, so no sleep is longer.
_MAX_SLEEP = 60.0
# After so many subscriptions of a round the event loop gets a turn.
_SLICE = 200
# Nobody waits for two relays, so that it matters only within an interval.
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
        self._client = settings.client()
        # More threads than slots, made only when needed: an abandoned request frees its slot at once, and its
        # thread when the client's time limit is over.
        self._threads = ThreadPoolExecutor(4 * settings.max_in_flight, thread_name_prefix="luma-poll")
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._limiter = RateLimiter(settings.max_requests_per_minute)
        self._renewal = asyncio.Lock()
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
                self._forget(request)
                request.task.cancel()
        subscription.requests.clear()

    def close(self) -> None:
        current = asyncio.current_task()
        for task in {self._loop, *self._tasks} - {current}:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _run(self) -> None:
        while True:
            await self._sleep()
            await self._coalesce()
            await self._start_round()

    async def _sleep(self) -> None:
        """Sleep until a subscription wants attention."""
        now = time.time()
        wanted = min((s.wakes_at for s in self.subscriptions if not s.has_ended), default=now + _MAX_SLEEP)
        self._sleeps_until = min(wanted, now + _MAX_SLEEP)
        self._wake.clear()
        if self._sleeps_until > now:
            try:
                async with asyncio.timeout(self._sleeps_until - now):
                    await self._wake.wait()
            except TimeoutError:
                pass
        self._sleeps_until = 0.0

    async def _coalesce(self) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + MAX_COALESCE_SECONDS
        joined = -1
        while joined < self._joined and loop.time() < limit:
            joined = self._joined
            await asyncio.sleep(COALESCE_WINDOW)

    async def _start_round(self) -> None:
        now, round_, request = time.time(), Round(), None
        number = 0
        for index, subscription in enumerate(list(self.subscriptions), start=1):
            if index % _SLICE == 0:
                await asyncio.sleep(0)
            subscription.check_last_call(now)
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
        self._tasks.add(request.task)
        request.task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request) -> None:
        """Send a request, with retries, and give the response to every subscription that waits for it."""
        tasks: Mapping[str, LumaTask] = {}
        error: Exception | None = None
        try:
            tasks = await self._query(request)
        except Exception as caught:  # noqa: BLE001 - a bug reaches the triggers as it is
            error = caught
        finally:
            self._forget(request)
        for subscription, ids in list(request.ids_by_subscription.items()):
            response = await self._isolated(request, ids, error) if error else tasks
            self._deliver(subscription, request, ids, response, time.time())

    async def _isolated(
        self, request: Request, ids: Sequence[str], error: Exception
    ) -> Mapping[str, LumaTask] | Exception:
        """Query the ids of one subscription alone, where an id of another may be what was rejected."""
        if not isinstance(error, RelayInvalidRequestError) or len(request.ids_by_subscription) < 2:
            return error
        alone = Request(request.round)
        alone.ids.extend(ids)
        try:
            return await self._query(alone)
        except Exception as caught:  # noqa: BLE001 - as in _serve
            return caught

    def _forget(self, request: Request) -> None:
        for task_id in request.ids:
            if self._in_flight.get(task_id) is request:
                del self._in_flight[task_id]

    def _deliver(
        self,
        subscription: Subscription,
        request: Request,
        ids: Sequence[str],
        response: Mapping[str, LumaTask] | Exception,
        now: float,
    ) -> None:
        if request not in subscription.requests:
            return
        subscription.requests.discard(request)
        if isinstance(response, Exception):
            subscription.note(response)
        else:
            subscription.take(ids, response, now)
        if not subscription.requests:
            self._finish_poll(subscription, now)

    def _finish_poll(self, subscription: Subscription, now: float) -> None:
        try:
            subscription.finish_poll(now, self._offset)
        except Exception as fault:  # noqa: BLE001 - such as of its arguments, and of this subscription alone
            subscription.end_with(fault)
        if subscription.wakes_at < self._sleeps_until:
            self._wake.set()

    async def _query(self, request: Request) -> Mapping[str, LumaTask]:
        arguments = self._client.retry.retrying_kwargs()
        log_wait = arguments.pop("before_sleep")

        def pause(retry_state: RetryCallState) -> None:
            log_wait(retry_state)
            if retry_state.outcome and isinstance(retry_state.outcome.exception(), RelayRateLimitError):
                metrics.count_rate_limit_pause(self.conn_id)
                self._limiter.pause(retry_state.upcoming_sleep)

        tasks: Mapping[str, LumaTask] = await AsyncRetrying(before_sleep=pause, **arguments)(
            self._send, request
        )
        return tasks

    async def _send(self, request: Request) -> Mapping[str, LumaTask]:
        async with self._slots:
            await self._limiter.acquire()
            if request.round.rejection is not None:
                raise request.round.rejection
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, query_slim, self._client, request.ids
                )
            except RelayAuthenticationError as error:
                await self._renew(request.round, error)
                raise
            except RelayPermissionError as error:
                request.round.rejection = error
                raise

    async def _renew(self, round_: Round, error: RelayAuthenticationError) -> None:
        """Read the connection again: a changed one gets a new poller, else the round is rejected."""
        async with self._renewal:
            if round_.rejection is not None:
                return
            try:
                settings = await read_settings(self.conn_id)
            except LumaValueError as unusable:
                round_.rejection = unusable
                raise
            except Exception:
                log.warning("The connection %r cannot be read again", self.conn_id, exc_info=True)
                settings = self.settings
            round_.rejection = error
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
