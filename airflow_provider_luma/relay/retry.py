"""When to ask the relay again: one policy, driven by tenacity's sync or async driver."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, retry_if_exception_type
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_exponential_jitter

from airflow_provider_luma.exceptions import RelayError, RelayRateLimitError, RelayTransientError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """
    How trouble is met. Being told to slow down (429) is not trouble and uses up no attempt.

    :param attempts: how often one request is sent at the most while there is trouble. The default with its
        waits of 0.5, 1, 2, 4, 8 and 16 seconds outlasts an outage of half a minute.
    :param first_wait: seconds before the second attempt; doubles from there, with jitter.
    :param max_wait: seconds between two attempts at the most, unless the relay names a time.
    """

    attempts: int = 7
    first_wait: float = 0.5
    max_wait: float = 60

    def driver_arguments(self, *, patience: float = math.inf) -> dict[str, Any]:
        """
        Return fresh arguments for ``tenacity.Retrying`` or ``tenacity.AsyncRetrying``.

        :param patience: seconds that may be spent on the relay's wish to slow down; past it
            :class:`RelayRateLimitError` reaches the caller.
        """
        return {
            "retry": retry_if_exception_type((RelayTransientError, RelayRateLimitError)),
            "stop": _StopWhenHopeless(self.attempts, patience),
            "wait": _WaitAsTold(
                wait_exponential_jitter(self.first_wait, self.max_wait, jitter=self.first_wait), self.max_wait
            ),
            "before_sleep": _log_wait,
            "reraise": True,
        }


class _StopWhenHopeless(stop_base):
    """Stop after so much trouble, or when the wait asked for is longer than our patience."""

    def __init__(self, attempts: int, patience: float) -> None:
        self._attempts_left = attempts
        self._patience = patience

    def __call__(self, retry_state: RetryCallState) -> bool:
        if isinstance(_error(retry_state), RelayRateLimitError):
            spent = retry_state.seconds_since_start or 0.0
            return spent + retry_state.upcoming_sleep > self._patience
        self._attempts_left -= 1
        return self._attempts_left <= 0


class _WaitAsTold(wait_base):
    """Wait as long as the relay says, a little longer so that callers spread; else back off."""

    def __init__(self, backoff: wait_base, max_wait: float) -> None:
        self._backoff = backoff
        self._max_wait = max_wait

    def __call__(self, retry_state: RetryCallState) -> float:
        error = _error(retry_state)
        told = error.retry_after if isinstance(error, RelayError) else None
        if told is None:
            return self._backoff(retry_state)
        # Only a rate limit is waited out however long it is; trouble is bounded in time as in number.
        wait = told if isinstance(error, RelayRateLimitError) else min(told, self._max_wait)
        return wait + random.uniform(0, 0.2)  # noqa: S311


def _error(retry_state: RetryCallState) -> BaseException | None:
    return retry_state.outcome.exception() if retry_state.outcome else None


def _log_wait(retry_state: RetryCallState) -> None:
    error = _error(retry_state)
    status = error.status if isinstance(error, RelayError) else None
    level = logging.INFO if status == 429 else logging.WARNING
    log.log(level, "Asking again in %.1f s: %s", retry_state.upcoming_sleep, error)
