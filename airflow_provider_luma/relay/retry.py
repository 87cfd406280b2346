"""The retry policy of a request: one, driven by tenacity's sync or async driver."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

from tenacity import RetryCallState, retry_if_exception_type
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_exponential, wait_random

from airflow_provider_luma.exceptions import RelayError, RelayRateLimitError, RelayTransientError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """
    The retries of transient errors. A rate limit (429) is waited out and uses up no attempt.

    :param max_attempts: how often one request is sent at most. The default with its delays of 0.5, 1, 2,
        4, 8 and 16 seconds outlasts an outage of half a minute.
    :param initial_delay: seconds before the second attempt; doubles from there, with jitter.
    :param max_delay: at most how many seconds between two attempts, unless a rate limit names a time.
    """

    max_attempts: int = 7
    initial_delay: float = 0.5
    max_delay: float = 60

    def once(self) -> RetryPolicy:
        """Return the policy that retries only after rate limits."""
        return replace(self, max_attempts=1)

    def retrying_kwargs(
        self, *, max_rate_limit_delay: float = math.inf, max_seconds: float = math.inf
    ) -> dict[str, Any]:
        """
        Return fresh arguments for ``tenacity.Retrying`` or ``tenacity.AsyncRetrying``.

        :param max_rate_limit_delay: seconds that may be spent on rate limits; past them
            ``RelayRateLimitError`` reaches the caller.
        :param max_seconds: no attempt begins later than so long after the first; ``TimeoutError`` is raised
            in place of the transient error that would have been retried.
        """
        stop = _StopAfterAttemptsOrDelay(self.max_attempts, max_rate_limit_delay, max_seconds)
        return {
            "retry": retry_if_exception_type((RelayTransientError, RelayRateLimitError)),
            "stop": stop,
            "wait": _WaitRetryAfter(
                wait_exponential(self.initial_delay, self.max_delay) + wait_random(0, self.initial_delay),
                self.max_delay,
            ),
            "before_sleep": _log_before_sleep,
            "retry_error_callback": stop.raise_error,
        }


class _StopAfterAttemptsOrDelay(stop_base):
    """Stop after that many attempts, and before a delay that is longer than what is left."""

    def __init__(self, max_attempts: int, max_rate_limit_delay: float, max_seconds: float) -> None:
        self._attempts_left = max_attempts
        self._max_rate_limit_delay = max_rate_limit_delay
        self._max_seconds = max_seconds
        self._is_out_of_time = False

    def __call__(self, retry_state: RetryCallState) -> bool:
        next_attempt = (retry_state.seconds_since_start or 0.0) + retry_state.upcoming_sleep
        if isinstance(_error(retry_state), RelayRateLimitError):
            return next_attempt > min(self._max_rate_limit_delay, self._max_seconds)
        self._attempts_left -= 1
        self._is_out_of_time = self._attempts_left > 0 and next_attempt > self._max_seconds
        return self._attempts_left <= 0 or self._is_out_of_time

    def raise_error(self, retry_state: RetryCallState) -> NoReturn:
        error = cast(BaseException, _error(retry_state))
        if self._is_out_of_time:
            raise TimeoutError(f"no time is left for a retry after: {error}") from error
        raise error


class _WaitRetryAfter(wait_base):
    """Wait as ``Retry-After`` says, a little longer so that callers spread; otherwise back off."""

    def __init__(self, backoff: wait_base, max_delay: float) -> None:
        self._backoff = backoff
        self._max_delay = max_delay

    def __call__(self, retry_state: RetryCallState) -> float:
        error = _error(retry_state)
        retry_after = error.retry_after if isinstance(error, RelayError) else None
        backoff = min(self._backoff(retry_state), self._max_delay)
        if retry_after is None:
            return backoff
        # Only a rate limit is waited out however long it is; transient errors are bounded in time, too.
        delay = retry_after if isinstance(error, RelayRateLimitError) else min(retry_after, self._max_delay)
        # "0" means that a retry is welcome, and not that it is welcome a hundred times.
        return (delay or backoff) + random.uniform(0, 0.2)  # noqa: S311


def _error(retry_state: RetryCallState) -> BaseException | None:
    return retry_state.outcome.exception() if retry_state.outcome else None


def _log_before_sleep(retry_state: RetryCallState) -> None:
    error = _error(retry_state)
    status = error.status if isinstance(error, RelayError) else None
    level = logging.INFO if status == 429 else logging.WARNING
    log.log(
        level,
        "Retrying in %.1f s, after attempt %d: %s",
        retry_state.upcoming_sleep,
        retry_state.attempt_number,
        error,
    )
