"""
Decides when a submit of a batch may leave, and when the batch gives up. No I/O.

::

    open ──rate limit, transient error, unknown outcome──▶ paused
    paused ──time has expired──▶ narrow: one submit at a time
    narrow ──each submit that the relay has judged──▶ one more at a time, up to all

A rate limit pauses for a delay that doubles, or for as long as ``Retry-After`` says where that is longer; it
never ends the batch. Transient errors and unknown outcomes do when too many follow each other: an unknown
outcome may be a charge for nothing, so that few of them are enough. Submits that left before a pause began
count as one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from airflow_provider_luma.exceptions import RelayError, RelayRateLimitError, SubmitOutcomeUnknownError
from airflow_provider_luma.relay.rate_limiter import RateLimiter
from airflow_provider_luma.relay.retry import RetryPolicy

MAX_UNKNOWN_OUTCOMES = 3


@dataclass(frozen=True)
class Permit:
    """The permit of one submit to leave, since that many pauses."""

    pauses: int


class SubmitThrottle:
    """
    Lets submits leave.

    :param max_parallel: how many may be in flight at once.
    :param requests_per_minute: of the connection.
    :param retry: the delays, and after how many transient errors it gives up.
    """

    def __init__(self, max_parallel: int, requests_per_minute: float | None, retry: RetryPolicy) -> None:
        self._max_parallel = max_parallel
        self._width = max_parallel
        self._limiter = RateLimiter(requests_per_minute)
        self._retry = retry
        self._in_flight = 0
        self._pauses = 0
        self._backoffs = 0
        self._transient_errors = 0
        self._unknown_outcomes = 0

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def has_given_up(self) -> bool:
        """Return whether too many errors followed each other."""
        return (
            self._transient_errors >= self._retry.max_attempts
            or self._unknown_outcomes >= MAX_UNKNOWN_OUTCOMES
        )

    def delay(self, now: float) -> float | None:
        """Return the seconds until a submit may leave; ``None`` while another one has to end first."""
        if self._in_flight >= self._width:
            return None
        return self._limiter.delay(now)

    def enter(self, now: float) -> Permit:
        self._limiter.take(now)
        self._in_flight += 1
        return Permit(self._pauses)

    def end_unsent(self) -> None:
        """End a submit that was not sent."""
        self._in_flight -= 1

    def end_judged(self, permit: Permit) -> None:
        """End a submit that the relay took or rejected."""
        self._in_flight -= 1
        if permit.pauses == self._pauses:
            self._width = min(self._width + 1, self._max_parallel)
            self._backoffs = self._transient_errors = self._unknown_outcomes = 0

    def end_failed(self, permit: Permit, error: RelayError, now: float) -> float:
        """End a submit that the relay did not judge; return the seconds of the pause."""
        self._in_flight -= 1
        is_first = permit.pauses == self._pauses
        if is_first:
            self._pauses += 1
            self._backoffs += 1
            self._width = 1
            self._count(error)
        seconds = self._seconds(error) if is_first or error.retry_after is not None else 0.0
        self._limiter.pause(now, seconds)
        return seconds

    def _count(self, error: RelayError) -> None:
        if isinstance(error, SubmitOutcomeUnknownError):
            self._unknown_outcomes += 1
        elif not isinstance(error, RelayRateLimitError):
            self._transient_errors += 1

    def _seconds(self, error: RelayError) -> float:
        retry = self._retry
        delay = min(retry.initial_delay * 2.0 ** min(self._backoffs - 1, 32), retry.max_delay)
        # Only a rate limit is waited out however long it is. "0" is not leave to submit without end.
        longest = math.inf if isinstance(error, RelayRateLimitError) else retry.max_delay
        delay = max(delay, min(error.retry_after or 0.0, longest))
        return delay + random.uniform(0, retry.initial_delay)  # noqa: S311
