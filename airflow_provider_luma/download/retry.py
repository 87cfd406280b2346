"""
The retries of a file: one budget per file, and a verdict on each error.

==============================  ==========  =============================================================
error                           verdict     until
==============================  ==========  =============================================================
``TransientDownloadError``      RETRY       ``max_attempts`` in a row without worthwhile progress
``RetryAfterError``             RETRY       ``Retry-After``, if that ends before the deadline
``LinkExpiredError``            FRESH_LINK  the relay gives no URL for ``link_timeout``; or gives the rejected
                                            one again, twice; or five fresh ones are rejected in a row
``DeadlineError``, any other    GIVE_UP
==============================  ==========  =============================================================

All of it ends at the deadline of the file, and after ``MAX_TOTAL_ATTEMPTS`` attempts. An attempt makes
worthwhile progress when it brings ``MIN_PROGRESS`` bytes: a server that truncates each would otherwise be
resumed for ever.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from enum import StrEnum

from airflow_provider_luma.download.response import LinkGoneError, RetryAfterError
from airflow_provider_luma.download.staging import StagedFile
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.exceptions import DownloadError, LinkExpiredError, TransientDownloadError

log = logging.getLogger(__name__)

MIN_PROGRESS = 64 * 1024
MAX_TOTAL_ATTEMPTS = 50
_MAX_UNCHANGED = 3  # the first query, and at most two more
_MAX_REJECTIONS = 5


class Verdict(StrEnum):
    """The action after an error."""

    RETRY = "retry"
    FRESH_LINK = "fresh link"
    GIVE_UP = "give up"


class Link:
    """
    The URL of one file, and how often it was rejected.

    :param get_url: queries the relay for a fresh one; ``None`` while there is none.
    :param url: what is known of it.
    :param timeout: seconds for which a missing or rejected URL is queried again.
    """

    def __init__(self, get_url: Callable[[], str | None], url: str | None, *, timeout: float = 120) -> None:
        self.url = url
        self._get_url = get_url
        self._timeout = timeout
        self._failing_since: float | None = None
        self._rejected_url: str | None = None
        self._rejections = self._unchanged = 0

    def refresh(self) -> None:
        self.url = self._get_url() or self.url

    def is_exhausted(self, error: LinkExpiredError) -> bool:
        """Count a rejection, or that there is no URL; return whether to give up."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since >= self._timeout or self.url is None:
            return now - self._failing_since >= self._timeout
        # Another signature for a path that is gone is the same link.
        shown = redact_url(self.url) if isinstance(error, LinkGoneError) else self.url
        self._unchanged = self._unchanged + 1 if shown == self._rejected_url else 0
        self._rejected_url = shown
        self._rejections += 1
        return self._unchanged >= _MAX_UNCHANGED or self._rejections >= _MAX_REJECTIONS

    def reset(self) -> None:
        """Forget rejections, as the URL worked."""
        self._failing_since = None
        self._rejections = self._unchanged = 0


class RetryBudget:
    """
    Judges the errors of one file.

    :param file: whose growth is progress.
    :param link: where it comes from.
    :param label: names the file in the log.
    :param max_attempts: in a row without worthwhile progress.
    :param initial_delay: seconds before the second attempt; doubles from there, with jitter.
    :param max_delay: seconds between two attempts, unless the server names a time.
    :param deadline: of the monotonic clock.
    """

    def __init__(
        self,
        file: StagedFile,
        link: Link,
        label: str,
        *,
        max_attempts: int = 5,
        initial_delay: float = 0.5,
        max_delay: float = 20,
        deadline: float = math.inf,
    ) -> None:
        self._file = file
        self._link = link
        self.label = label
        self._max_attempts = max_attempts
        self._initial_delay = initial_delay
        self._max_delay = max_delay
        self._deadline = deadline
        self._reached = 0
        self._attempts = self._stalled = self._failures = 0
        self._is_out_of_time = False
        self.verdict = Verdict.RETRY
        self.delay = 0.0

    def judge(self, error: BaseException) -> bool:
        """Set the verdict and the delay; return whether there is another attempt."""
        self._note_progress()
        self.verdict = self._verdict(error)
        if self.verdict is not Verdict.GIVE_UP:
            self.delay = self._delay(error)
            self._is_out_of_time = time.monotonic() + self.delay >= self._deadline
        if self._is_out_of_time:
            self.verdict = Verdict.GIVE_UP
        if self.verdict is Verdict.GIVE_UP:
            return False
        log.warning(
            "%s: %s. %s in %.1f s (attempt %d)",
            self.label,
            error,
            "Retrying" if self.verdict is Verdict.RETRY else "Requesting a fresh link",
            self.delay,
            self._attempts + 1,
        )
        return True

    def explain(self, error: DownloadError) -> DownloadError:
        """Return the error that says also why there was no other attempt."""
        if self._is_out_of_time:
            return DownloadError(f"{error}. download_timeout leaves no time for another attempt")
        if self._attempts >= MAX_TOTAL_ATTEMPTS:
            return DownloadError(f"{error}. Gave up after {self._attempts} attempts")
        return error

    def _note_progress(self) -> None:
        self._attempts += 1
        if self._file.reached - self._reached >= MIN_PROGRESS:
            self._stalled = self._failures = 0
            self._link.reset()
        self._reached = self._file.reached
        self._failures += 1

    def _verdict(self, error: BaseException) -> Verdict:
        if self._attempts >= MAX_TOTAL_ATTEMPTS:
            return Verdict.GIVE_UP
        if isinstance(error, LinkExpiredError):
            return Verdict.GIVE_UP if self._link.is_exhausted(error) else Verdict.FRESH_LINK
        if not isinstance(error, TransientDownloadError):
            return Verdict.GIVE_UP
        if not isinstance(error, RetryAfterError):
            self._stalled += 1
        return Verdict.GIVE_UP if self._stalled >= self._max_attempts else Verdict.RETRY

    def _delay(self, error: BaseException) -> float:
        backoff = min(self._initial_delay * 2.0 ** (self._failures - 1), self._max_delay)
        jitter = random.uniform(0, self._initial_delay)  # noqa: S311 - spreads retries, keeps no secret
        requested = error.seconds if isinstance(error, RetryAfterError) else 0
        return max(backoff, requested) + jitter
