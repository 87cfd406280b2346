"""The sandbox: a relay and a CDN on loopback, in a thread of their own."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Self

from starlette.middleware.gzip import GZipMiddleware

from airflow_provider_luma.sandbox.account import RATES, Account, Billing
from airflow_provider_luma.sandbox.cdn import Cdn
from airflow_provider_luma.sandbox.clock import Clock
from airflow_provider_luma.sandbox.faults import Faults
from airflow_provider_luma.sandbox.loopback import Loopback
from airflow_provider_luma.sandbox.media import video
from airflow_provider_luma.sandbox.payloads import Payloads
from airflow_provider_luma.sandbox.presigned_urls import PresignedURLs
from airflow_provider_luma.sandbox.relay import Relay, Shape
from airflow_provider_luma.sandbox.tasks import TaskStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from airflow_provider_luma.sandbox.delivery import RecordedRequest
    from airflow_provider_luma.sandbox.faults import ScriptedResponse

GZIP_LEVEL = 1


class Sandbox:
    """
    A relay and a CDN that behave like the documented ones and cost nothing; a context manager.

    Everything follows from the arguments and the clock: the same seed gives the same task ids, the same
    failures and the same faults.

    :param tasks: how many tasks there are from the start.
    :param seconds: how long the slowest of them takes; the quickest takes 0.4 of it. Submitted tasks take
        exactly this long, and complete unless their prompt holds the word "blacklisted"; one that holds the
        word "forbidden" is rejected.
    :param fail: share of the tasks that fails, rounded to whole tasks; at least one if it is above 0.
    :param shape: of status responses: ``bare``, an array of tasks, or ``wrapped``, rows in an envelope.
    :param api_key: the key that requests must carry.
    :param faults: none by default.
    :param seed: decides the task ids, which tasks fail and which requests the faults affect.
    :param host: the address both servers listen on, and that of the URLs.
    :param relay_port: port of the relay; a free one if 0.
    :param cdn_port: port of the CDN; a free one if 0.
    :param video_bytes: bytes of each video; about 65,000 if None.
    :param link_ttl: seconds for which a URL of media is valid; 7 days if None. Every response has fresh URLs.
    :param max_ids: the most task ids a status query may hold; no limit if None.
    :param balance: of the account at the start, in ``unit``; unlimited if None. A failed generation is
        refunded.
    :param price: of a generation, in ``unit``. In the shape ``wrapped`` rows and submits report it.
    :param unit: of the relay's amounts: ``USD``, ``CNY``, ``TOKENS``, or ``CUSTOM``, one of its own.
    :param billing: which balance endpoints there are: ``token``, those of the key, with prices and a limit of
        20 queries in 20 minutes; ``dashboard``, the older form, without prices; none if None.
    :param max_running: how many submitted tasks may be unfinished before a submit gets a 429; no limit if
        None.
    :param models: the models that the key may use, of ``luma_video_api`` (submit), ``luma_video_extend_api``
        and ``luma_video_fetch_tasks`` (status queries); all if None.
    :param clock: gives seconds that only grow. A test may pass its own and so decide what time it is.
    """

    def __init__(
        self,
        *,
        tasks: int = 6,
        seconds: float = 5.0,
        fail: float = 0.2,
        shape: Shape = "bare",
        api_key: str = "sk-sandbox",
        faults: Faults | None = None,
        seed: int = 0,
        host: str = "127.0.0.1",
        relay_port: int = 0,
        cdn_port: int = 0,
        video_bytes: int | None = None,
        link_ttl: float | None = None,
        max_ids: int | None = None,
        balance: float | None = None,
        price: float = 1,
        unit: str = "USD",
        billing: Billing | None = "token",
        max_running: int | None = None,
        models: Collection[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _validate_tasks(tasks, fail, shape, video_bytes)
        _validate_money(balance, price, unit, billing, max_running)
        self.base_url = ""
        self._host = host
        self._ports = (relay_port, cdn_port)
        self._seconds = seconds
        self._clock = Clock(clock)
        self._store = TaskStore(seed)
        self._store.add_many(tasks, created_at=clock(), seconds=seconds, fail=fail)
        self._urls = PresignedURLs(self._clock, link_ttl)
        self._relay = Relay(
            self._store,
            Payloads(self._clock, self._urls),
            self._clock,
            shape=shape,
            api_key=api_key,
            seconds=seconds,
            max_ids=max_ids,
            account=Account(
                self._clock, balance=balance, price=price, unit=unit, billing=billing, max_running=max_running
            ),
            models=models,
            faults=faults or Faults(),
            seed=seed,
        )
        self._cdn = Cdn(
            self._store,
            self._urls,
            self._clock,
            video_bytes=video_bytes,
            faults=faults or Faults(),
            seed=seed,
        )
        self._loopback: Loopback | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when both servers accept requests."""
        if self._loopback:
            raise RuntimeError("the sandbox is already running")
        relay = GZipMiddleware(self._relay, compresslevel=GZIP_LEVEL)
        self._loopback = Loopback(self._host, [(self._ports[0], relay), (self._ports[1], self._cdn)])
        self.base_url, self._urls.cdn_url = self._loopback.urls

    def stop(self) -> None:
        """Drop all connections, also those during a response, and leave no thread behind."""
        if self._loopback:
            self._loopback.stop()
        self._loopback = None

    @property
    def cdn_url(self) -> str:
        return self._urls.cdn_url

    @property
    def task_ids(self) -> list[str]:
        """All task ids in the order of their creation, added and submitted ones included."""
        return list(self._store.tasks)

    @property
    def connection(self) -> dict[str, Any]:
        """The Airflow connection to this sandbox; as JSON, a value for ``AIRFLOW_CONN_LUMA_DEFAULT``."""
        return {
            "conn_type": "luma",
            "host": self.base_url,
            "password": self.api_key,
            "extra": {"allowed_download_hosts": [self._host]},
        }

    @property
    def api_key(self) -> str:
        """The key that requests must carry; may be changed while the sandbox runs, to rotate keys."""
        return self._relay.api_key

    @api_key.setter
    def api_key(self, api_key: str) -> None:
        self._relay.api_key = api_key

    @property
    def faults(self) -> Faults:
        """The faults in force; may be changed while the sandbox runs."""
        return self._relay.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._relay.faults = self._cdn.faults = faults

    @property
    def balance(self) -> float | None:
        """The balance of the account; may be changed, as when somebody tops it up."""
        return self._relay.account.balance

    @balance.setter
    def balance(self, balance: float | None) -> None:
        self._relay.account.balance = balance

    @property
    def requests(self) -> list[RecordedRequest]:
        """All requests to the relay so far; the list itself, so that it can be cleared."""
        return self._relay.requests

    @property
    def downloads(self) -> list[RecordedRequest]:
        """All requests to the CDN so far; the list itself, so that it can be cleared."""
        return self._cdn.downloads

    @property
    def submits(self) -> list[dict[str, Any]]:
        """The bodies of all submits that created a task so far, each of which was charged."""
        return self._relay.submits

    def script(self, *responses: ScriptedResponse) -> None:
        """Respond to the next requests to ``POST /luma/tasks`` with these, in order."""
        self._relay.script.extend(responses)

    def script_submits(self, *responses: ScriptedResponse, created: bool = False) -> None:
        """
        Respond to the next submits with these, in order.

        :param created: whether each creates a task nevertheless, and is charged.
        """
        self._relay.submit_script.extend((response, created) for response in responses)

    def clear_scripts(self) -> None:
        """Forget every scripted response that was not sent."""
        self._relay.script.clear()
        self._relay.submit_script.clear()
        self._cdn.script.clear()

    def script_downloads(self, *responses: ScriptedResponse) -> None:
        """Respond to the next requests to the CDN with these, in order, whatever their path."""
        self._cdn.script.extend(responses)

    def add_task(
        self,
        *,
        task_id: str | None = None,
        prompt: str | None = None,
        seconds: float | None = None,
        failure_reason: str | None = None,
        visible_after: float = 0.0,
        never_visible: bool = False,
        raw_state: str | None = None,
        link_delay: float = 0.0,
    ) -> str:
        """
        Create a task now and return its id.

        :param task_id: its id; a UUID if None. A task that has this id already is replaced.
        :param prompt: one of the sandbox's own if None.
        :param seconds: how long it takes; as long as the sandbox's slowest if None, 0 is over at once.
        :param failure_reason: the reason with which it fails when its time is up; it completes if None.
        :param visible_after: seconds for which the relay leaves it out of its responses.
        :param never_visible: never respond with it.
        :param raw_state: sent as its state at all times, whatever the clock says.
        :param link_delay: seconds for which it is completed but has no media yet.
        """
        task = self._store.add(
            task_id=task_id,
            prompt=prompt,
            created_at=self._clock.now(),
            seconds=self._seconds if seconds is None else seconds,
            failure_reason=failure_reason,
            visible_after=math.inf if never_visible else visible_after,
            raw_state=raw_state,
            link_delay=link_delay,
        )
        return task.id


def _validate_tasks(tasks: int, fail: float, shape: str, video_bytes: int | None) -> None:
    if tasks < 0:
        raise ValueError(f"tasks must be 0 or greater, not {tasks}")
    if not 0 <= fail <= 1:
        raise ValueError(f"fail is a share from 0 to 1, not {fail}")
    if shape not in ("bare", "wrapped"):
        raise ValueError(f"shape is bare or wrapped, not {shape}")
    video("0" * 36, video_bytes)


def _validate_money(
    balance: float | None, price: float, unit: str, billing: str | None, max_running: int | None
) -> None:
    for name, amount in (("balance", balance), ("price", price)):
        if amount is not None and not 0 <= amount < math.inf:
            raise ValueError(f"{name} must be 0 or greater, not {amount}")
    if unit not in RATES:
        raise ValueError(f"unit is one of {', '.join(RATES)}, not {unit}")
    if billing not in ("token", "dashboard", None):
        raise ValueError(f"billing is token, dashboard or None, not {billing}")
    if max_running is not None and max_running < 0:
        raise ValueError(f"max_running must be 0 or greater, not {max_running}")
