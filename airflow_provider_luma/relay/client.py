"""The relay over HTTP: queries, submits, and the account behind the key."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from urllib.parse import quote

from tenacity import Retrying

from airflow_provider_luma.exceptions import RelayError, RelayTaskNotFoundError
from airflow_provider_luma.relay.account import Account
from airflow_provider_luma.relay.batch import parse_task_ids
from airflow_provider_luma.relay.bisection import find_tasks
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.relay.money import Money
from airflow_provider_luma.relay.responses import (
    parse_models,
    parse_optional,
    parse_rows,
    parse_task_or_none,
)
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.relay.row import Json
from airflow_provider_luma.relay.session import EventHook, RelaySession
from airflow_provider_luma.relay.submit_response import parse_submitted
from airflow_provider_luma.relay.task import PROBE_ID, LumaTask, parse_tasks
from airflow_provider_luma.relay.transport import Exchange
from airflow_provider_luma.relay.validation import DEFAULT_BASE_URL, validate_limits

log = logging.getLogger(__name__)

# So many words that no relay documents are logged.
_MAX_UNKNOWN_STATES = 50


class RelayClient:
    """
    Queries and submits Luma tasks.

    Every response is bounded: in bytes by ``max_response_bytes``, in time by ``request_timeout``.

    :param api_key: the relay's key. It goes to ``base_url`` only, and into no message, repr or log.
    :param base_url: where the relay is, with or without a scheme (``https`` then) and path.
    :param timeout: seconds, for connecting and for each read.
    :param request_timeout: seconds, from the start of a request to the last byte of its response.
    :param max_response_bytes: of a response once it is decompressed.
    :param batch_size: how many ids one request queries. No relay documents a limit.
    :param verify: whether to check TLS certificates, or the path of a CA bundle.
    :param proxies: as ``requests`` takes them, e.g. ``{"https": "http://proxy:3128"}``. Without it the
        environment's proxies are used.
    :param max_connections: how many requests may run at once in threads of the caller.
    :param event_hook: called after each request with the error, if any, and the seconds that it took.
    :param retry: when to retry transient errors.
    :raises LumaValueError: when an argument is invalid.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str = DEFAULT_BASE_URL,
        *,
        timeout: float = 30,
        request_timeout: float = 120,
        max_response_bytes: int = 8 * 1024 * 1024,
        batch_size: int = 100,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        max_connections: int = 4,
        event_hook: EventHook | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        validate_limits(batch_size, timeout, request_timeout, max_response_bytes)
        self.batch_size = batch_size
        self.retry = retry or RetryPolicy()
        self._session = RelaySession(
            api_key,
            base_url,
            timeout=timeout,
            request_timeout=request_timeout,
            max_response_bytes=max_response_bytes,
            verify=verify,
            proxies=proxies or {},
            max_connections=max_connections,
            event_hook=event_hook,
        )
        self._account = Account(self._get_optional)
        self._unknown_states: set[str] = set()

    @property
    def base_url(self) -> str:
        """The relay's URL, without a trailing slash."""
        return self._session.base_url

    def __repr__(self) -> str:
        return f"RelayClient({self.base_url!r})"

    def __enter__(self) -> RelayClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def get_tasks(self, ids: Sequence[str]) -> dict[str, LumaTask]:
        """
        Query any number of tasks, ``batch_size`` a request, and wait as long as a rate limit says.

        :return: the tasks that the relay knows, keyed by id.
        :raises LumaValueError: when something in ``ids`` is not an id.
        :raises RelayError: when a request was rejected, or transient errors outlasted the retries.
        """
        tasks: dict[str, LumaTask] = {}
        for _, found in self.iter_tasks(ids):
            tasks.update(found)
        return tasks

    def iter_tasks(
        self, ids: Sequence[str], *, max_delay: float = math.inf
    ) -> Iterator[tuple[Sequence[str], dict[str, LumaTask]]]:
        """
        Yield each batch of ids with its tasks as they come, so that a later error loses nothing.

        :param max_delay: seconds that may be spent in all on rate limits.
        :raises RelayTaskNotFoundError: when the relay does not know most ids of a batch, and says only so.
        :raises RelayRateLimitError: when a rate limit exceeds the rest of ``max_delay``.
        """
        deadline = time.monotonic() + max_delay
        for batch in self.batches(parse_task_ids(ids)):
            query = partial(self.query, max_delay=max(deadline - time.monotonic(), 0.0))
            try:
                yield batch, query(batch)
            except RelayTaskNotFoundError as error:
                yield batch, find_tasks(batch, error, query)

    def batches(self, ids: Sequence[str]) -> Iterator[Sequence[str]]:
        """Split ids into the batches of one request each."""
        return (ids[start : start + self.batch_size] for start in range(0, len(ids), self.batch_size))

    def query(
        self,
        ids: Sequence[str],
        *,
        once: bool = False,
        max_delay: float = math.inf,
        max_seconds: float = math.inf,
    ) -> dict[str, LumaTask]:
        """
        Query what one request holds, and retry transient errors.

        :param once: retry only after rate limits.
        :param max_delay: seconds that may be spent on rate limits.
        :param max_seconds: that all attempts may take.
        :raises RelayError: as :meth:`query_once`, of the last attempt.
        :raises TimeoutError: when ``max_seconds`` are over before the retries are.
        """
        last_call = time.monotonic() + max_seconds
        retry = self.retry.once() if once else self.retry
        retrying = Retrying(**retry.retrying_kwargs(max_rate_limit_delay=max_delay, max_seconds=max_seconds))
        tasks: dict[str, LumaTask] = retrying(
            lambda: self.query_once(ids, exchange=self.exchange(last_call - time.monotonic()), is_alone=once)
        )
        return tasks

    def exchange(self, max_seconds: float = math.inf) -> Exchange:
        """Return what follows one request, for at most ``request_timeout``; see :meth:`query_once`."""
        return self._session.exchange(max_seconds)

    def query_once(
        self, ids: Sequence[str], *, exchange: Exchange | None = None, is_alone: bool = False
    ) -> dict[str, LumaTask]:
        """
        Send one request, once.

        :param exchange: from :meth:`exchange`, by which another thread may abort the request.
        :param is_alone: on a connection of its own, which no earlier request has used.
        :raises RelayTaskNotFoundError: when the relay says of several ids that it does not know them all.
        :raises RelayError: for anything but a list of tasks.
        """
        tasks = self._session.observe(lambda: self._query_tasks(ids, exchange, is_alone))
        self._warn_unknown_states(tasks)
        return {task_id: tasks[task_id] for task_id in ids if task_id in tasks}

    def _query_tasks(
        self, ids: Sequence[str], exchange: Exchange | None, is_alone: bool
    ) -> dict[str, LumaTask]:
        response = self._session.request(
            "POST", "/luma/tasks", {"ids": list(ids)}, exchange=exchange, is_alone=is_alone
        )
        try:
            return parse_tasks(parse_rows(response))
        except RelayTaskNotFoundError:
            if len(ids) == 1:
                return {}
            raise

    def ping(self) -> None:
        """
        Query a task that cannot exist: it costs nothing, and shows that relay and key are right.

        :raises RelayError: when they are not.
        """
        self.query_once([PROBE_ID])

    def get_task(self, task_id: str) -> LumaTask | None:
        """
        Query one task by the path that has its id; ``None`` when the relay does not know it.

        :raises RelayError: when the request was rejected, or transient errors outlasted the retries.
        """
        path = f"/luma/generations/{quote(task_id, safe='')}"
        task: LumaTask | None = Retrying(**self.retry.retrying_kwargs())(
            self._session.observe, lambda: parse_task_or_none(self._session.request("GET", path))
        )
        return task

    def get_models(self) -> list[str] | None:
        """Return the models that the key may use; ``None`` where the relay does not say."""
        try:
            return self._session.observe(lambda: parse_models(self._session.request("GET", "/v1/models")))
        except RelayError:
            return None

    def get_balance(self) -> Money | None:
        """
        Query the balance, once: the lowest that the relay's endpoints report.

        The relay limits these queries, some to 20 in 20 minutes. It may be the key's quota, and the account
        behind the key may have less.

        :return: infinite where there is no limit; ``None`` where the relay has no such endpoint.
        :raises RelayError: when one of them, or the unit, cannot be read now.
        """
        return self._account.get_balance()

    def get_price(self, *, extend: bool = False) -> Money | None:
        """
        Query the price of a generation; ``None`` where the relay does not report it.

        An estimate: the price for the dearest group of customers, without the relay's surcharge for its
        duration or resolution.

        :param extend: of an extension, which relays price by itself.
        """
        return self._account.get_price(extend=extend)

    def get_cost(self, task: LumaTask) -> Money | None:
        """
        Return the charge of a task; ``None`` where the relay does not report it.

        Takes a task from a submit or from a query, and sends a request only for the first one. It raises no
        ``RelayError``, so that it can stand behind a submit that was paid for.
        """
        return self.get_cost_of_quota(task.quota)

    def get_cost_of_quota(self, quota: float | None) -> Money | None:
        """Return a charge, counted in an integer quota, in the relay's unit; as :meth:`get_cost`."""
        return self._account.get_cost(quota)

    def _get_optional(self, path: str) -> Json | None:
        is_page_absence = not path.startswith("/api/")
        return self._session.observe(
            lambda: parse_optional(self._session.request("GET", path), is_page_absence=is_page_absence)
        )

    def validate_submit(self, generation: Generation) -> None:
        """
        Build the request of a submit, and send nothing.

        :raises LumaValueError: when it cannot be built.
        """
        self._session.validate_submit(generation.path, generation.to_json())

    def submit(self, generation: Generation) -> LumaTask:
        """
        Submit a generation, which costs money.

        It is retried only where it was provably not sent (its socket was never connected), and on a 429.

        :return: the task as the relay responded, seldom more than its id.
        :raises SubmitOutcomeUnknownError: when a task may have been created.
        :raises RelayInsufficientBalanceError: when the account cannot pay for it.
        :raises RelayTransientError: when it could not be sent.
        :raises RelayError: when the relay rejected it.
        """
        task: LumaTask = Retrying(**self.retry.retrying_kwargs())(self.submit_once, generation)
        return task

    def submit_once(self, generation: Generation) -> LumaTask:
        """
        Send one submit, once; see :meth:`submit`.

        :raises RelayRateLimitError: on a 429.
        """
        return self._session.observe(
            lambda: parse_submitted(
                self._session.submit(generation.path, generation.to_json()),
                extended_id=generation.extend_task_id,
            )
        )

    def _warn_unknown_states(self, tasks: Mapping[str, LumaTask]) -> None:
        for task in tasks.values():
            word = task.raw_state
            # Only that many, as a hostile relay has a new word for each task.
            is_new = word not in self._unknown_states and len(self._unknown_states) < _MAX_UNKNOWN_STATES
            if word and is_new and not task.is_known_state:
                self._unknown_states.add(word)
                meaning = "completed, as its video is there" if task.is_terminal else "running"
                log.warning("Unknown task state %r; treating the task as %s", word, meaning)
