"""
Stops and deadlines do not wait for blocked calls.

A blocked call, in a resolver, a handshake or a store, cannot be interrupted in Python. But nothing unfinished
is visible, so it can be abandoned: it runs in a daemon thread, for which the caller waits no longer than
necessary.

A thread that is abandoned while it publishes may still come to its end: what it writes then is true, too, and
the next run finds it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from airflow_provider_luma.exceptions import DownloadError

T = TypeVar("T")

THREAD_PREFIX = "luma-download"
_POLL_SECONDS = 0.1


class StoppedError(DownloadError):
    """The task was stopped."""

    def __init__(self) -> None:
        super().__init__("not finished: the task was stopped")


class DeadlineError(DownloadError):
    """The time for a file has expired."""

    def __init__(self) -> None:
        super().__init__("not complete within download_timeout")


def start_thread(act: Callable[[], T], name: str = THREAD_PREFIX) -> tuple[Future[T], threading.Thread]:
    """Run ``act`` in a daemon thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            future.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return future, thread


def call_abandonable(
    act: Callable[[], T],
    *,
    stopped: threading.Event,
    deadline: float = math.inf,
    name: str = THREAD_PREFIX,
    abort: Callable[[int], None] = lambda thread_id: None,
) -> T:
    """
    Return what ``act`` returns, unless it is abandoned before.

    :param deadline: of the monotonic clock.
    :param name: of the thread.
    :param abort: is called with the id of the abandoned thread, and may help it to end.
    :raises StoppedError: soon after ``stopped`` is set.
    :raises DeadlineError: at the deadline.
    """
    future, thread = start_thread(act, name)
    while not stopped.is_set():
        remaining = deadline - time.monotonic()
        if remaining <= 0 and not future.done():
            abort(thread.ident or 0)
            raise DeadlineError
        try:
            return future.result(min(_POLL_SECONDS, max(remaining, 0)))
        except FutureTimeoutError:
            if future.done():  # its own
                raise
    if thread.is_alive():
        abort(thread.ident or 0)
    raise StoppedError
