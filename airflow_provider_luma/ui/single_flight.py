"""
One run of a function for all threads that need its result at the same moment.

A user may open many tabs on one large XCom. The first thread reads it; those that come meanwhile wait for
that reading, and get its result or its error. Nothing is kept once it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import wraps
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def single_flight(run: Callable[[K], T]) -> Callable[[K], T]:
    """Return the function as one that threads with the same argument share while it runs."""
    running: dict[K, Future[T]] = {}
    lock = threading.Lock()

    @wraps(run)
    def shared(key: K) -> T:
        with lock:
            result = running.get(key)
            if is_first := result is None:
                result = running[key] = Future()
        if is_first:
            try:
                result.set_result(run(key))
            except BaseException as error:  # noqa: BLE001 - each thread that waits raises it
                result.set_exception(error)
            finally:
                with lock:
                    del running[key]
        return result.result()

    return shared
