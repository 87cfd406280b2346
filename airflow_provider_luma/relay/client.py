"""The relay over HTTP: the only place that knows its addresses and holds its key."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from tenacity import Retrying

from airflow_provider_luma import __version__
from airflow_provider_luma.exceptions import LumaValueError, RelayError, RelayTransientError
from airflow_provider_luma.relay.address import DEFAULT_BASE_URL, read_base_url
from airflow_provider_luma.relay.answers import read_rows, read_submitted, read_task_or_none, uncertain
from airflow_provider_luma.relay.batch import read_task_ids
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.relay.network import cause, never_left
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.relay.task import LumaTask, read_tasks

log = logging.getLogger(__name__)

T = TypeVar("T")

USER_AGENT = f"airflow-provider-luma/{__version__}"

# A well-formed id that no relay can have given out.
PROBE_ID = "00000000-0000-0000-0000-000000000000"

# From this many characters on, the start of a key gives something of it away.
_TELLING_START = 8


class RelayClient:
    """
    Asks a relay for the state of Luma tasks.

    :param api_key: the relay's key. It goes to ``base_url`` only, and into no message, repr or log.
    :param base_url: where the relay is, with or without a scheme (``https`` then) and path.
    :param timeout: seconds, for connecting and for each read.
    :param batch_size: how many ids one request asks for. No relay documents a limit.
    :param verify: whether to check TLS certificates, or the path of a CA bundle.
    :param proxies: as ``requests`` takes them, e.g. ``{"https": "http://proxy:3128"}``. Without it the
        environment's proxies are used.
    :param connections: how many requests may run at once in threads of the caller.
    :param on_request: told of each request that was answered or failed: the error if any, and the seconds.
    :param retry: what to do in times of trouble.
    :raises LumaValueError: when an argument cannot be right.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str = DEFAULT_BASE_URL,
        *,
        timeout: float = 30,
        batch_size: int = 100,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        connections: int = 4,
        on_request: Callable[[RelayError | None, float], None] | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        if batch_size < 1 or timeout <= 0:
            raise LumaValueError(f"batch_size={batch_size!r} and timeout={timeout!r} must be above 0")
        self.base_url = read_base_url(base_url)
        self.batch_size = batch_size
        self.retry = retry or RetryPolicy()
        self._strange_words: set[str] = set()
        self._on_request = on_request or (lambda error, seconds: None)
        self._api_key = _read_key(api_key)
        self._session = _session(_Bearer(self._api_key), connections)
        # A submit gets a connection of its own: on one that was kept open it may break off without a fault of
        # anybody's, and then nobody knows whether it arrived.
        self._submits = _session(_Bearer(self._api_key), connections)
        self._submits.headers["Connection"] = "close"
        # Given with each request, because requests lets the environment win over a session's settings.
        # Redirects are not followed: a POST would become a GET, and the key belongs to this host alone.
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "verify": verify,
            "proxies": dict(proxies or {}),
            "allow_redirects": False,
        }

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
        self._submits.close()

    def get_tasks(self, ids: Sequence[str]) -> dict[str, LumaTask]:
        """
        Ask for any number of tasks, ``batch_size`` a request, and wait where the relay asks to.

        :return: what was answered, keyed by id. An id that the relay does not know is not in it.
        :raises LumaValueError: when something in it is not an id.
        :raises RelayError: when the relay refused, or trouble outlasted the retries.
        """
        tasks: dict[str, LumaTask] = {}
        for _, answered in self.iter_tasks(ids):
            tasks.update(answered)
        return tasks

    def iter_tasks(
        self, ids: Sequence[str], *, patience: float = math.inf
    ) -> Iterator[tuple[Sequence[str], dict[str, LumaTask]]]:
        """
        Yield each batch of ids with its answer as it comes, so that trouble later loses nothing.

        :param patience: seconds that may be spent in all on the relay's wish to slow down.
        :raises RelayRateLimitError: when the relay asks for more than the ``patience`` left.
        """
        deadline = time.monotonic() + patience
        for batch in self.batches(read_task_ids(ids)):
            left = max(deadline - time.monotonic(), 0.0)
            yield batch, Retrying(**self.retry.driver_arguments(patience=left))(self.query_once, batch)

    def batches(self, ids: Sequence[str]) -> Iterator[Sequence[str]]:
        """Cut ids into what one request asks for."""
        return (ids[start : start + self.batch_size] for start in range(0, len(ids), self.batch_size))

    def query_once(self, ids: Sequence[str]) -> dict[str, LumaTask]:
        """
        Send one request, once.

        :raises RelayError: for anything but a list of tasks.
        """
        tasks = self._told(
            lambda: read_tasks(read_rows(self._send("POST", "/luma/tasks", {"ids": list(ids)})))
        )
        self._note_strange_words(tasks)
        return {task_id: tasks[task_id] for task_id in ids if task_id in tasks}

    def ping(self) -> None:
        """
        Ask for a task that cannot exist: costs nothing, and shows that relay and key are right.

        :raises RelayError: when they are not.
        """
        self.query_once([PROBE_ID])

    def get_task(self, task_id: str) -> LumaTask | None:
        """
        Ask for one task by the path that has its id; ``None`` when the relay does not know it.

        :raises RelayError: when the relay refused, or trouble outlasted the retries.
        """
        path = f"/luma/generations/{quote(task_id, safe='')}"
        task: LumaTask | None = Retrying(**self.retry.driver_arguments())(
            self._told, lambda: read_task_or_none(self._send("GET", path))
        )
        return task

    def submit(self, generation: Generation) -> LumaTask:
        """
        Submit a generation, which costs money. It is sent again only where it surely did not arrive: where
        no connection came about, or the relay asked to slow down (429).

        :return: the task as the relay answered it, seldom more than its id.
        :raises SubmitOutcomeUnknownError: when it broke off, so that a task may have been created.
        :raises RelayInsufficientBalanceError: when the account cannot pay for it.
        :raises RelayError: when the relay refused, or could not be reached.
        """
        task: LumaTask = Retrying(**self.retry.driver_arguments())(
            self._told, lambda: self._submit(generation)
        )
        return task

    def _submit(self, generation: Generation) -> LumaTask:
        try:
            response = self._send("POST", generation.path, generation.body, self._submits)
        except RelayTransientError as error:
            if error.__cause__ is not None and never_left(error.__cause__):
                raise
            raise uncertain(str(error)) from error.__cause__
        return read_submitted(response)

    def _told(self, ask: Callable[[], T]) -> T:
        """Tell ``on_request`` how a request ended, and let no key out with an error."""
        started = time.monotonic()
        try:
            answer = ask()
        except RelayError as error:
            self._on_request(error, time.monotonic() - started)
            raise self._without_key(error) from None
        self._on_request(None, time.monotonic() - started)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        session: requests.Session | None = None,
    ) -> requests.Response:
        try:
            return (session or self._session).request(
                method, self.base_url + path, json=body, **self._options
            )
        except (requests.RequestException, ValueError) as error:  # the latter of a host nobody can look up
            raise RelayTransientError(
                f"No answer from the relay at {self.base_url}: {cause(error)}"
            ) from error

    def _without_key(self, error: RelayError) -> RelayError:
        """Blot out the key, which some relays repeat in what they say, also where a cut left a part of it."""
        start = re.escape(self._api_key[:_TELLING_START])
        error.args = (re.sub(rf"{re.escape(self._api_key)}|{start}[\w-]*", "***", str(error)),)
        return error

    def _note_strange_words(self, tasks: Mapping[str, LumaTask]) -> None:
        for task in tasks.values():
            word = task.state_word
            if word and not task.knows_state_word and word not in self._strange_words:
                self._strange_words.add(word)
                log.warning("The relay says %r of a task, a state nobody documents; taken as running", word)


class _Bearer(AuthBase):
    """Sets the header itself, so that requests does not put credentials of a ``.netrc`` in its place."""

    def __init__(self, api_key: str) -> None:
        self._value = f"Bearer {api_key}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


def _session(auth: AuthBase, connections: int) -> requests.Session:
    session = requests.Session()
    session.auth = auth
    session.headers.update({"Accept": "application/json", "User-Agent": USER_AGENT})
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # threads share the session
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _read_key(api_key: str) -> str:
    key = f"{api_key.strip()} ".removeprefix("Bearer ").strip()
    if not key:
        raise LumaValueError("The API key of the Luma relay is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LumaValueError("The API key of the Luma relay holds spaces or characters that no key has")
    return key
