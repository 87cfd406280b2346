"""From a link to a complete, verified local file: one loop per file, with one deadline."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import requests
from tenacity import Retrying, retry_if_exception, sleep_using_event, stop_never
from urllib3.exceptions import HTTPError

from airflow_provider_luma.download.content import detect_media_type
from airflow_provider_luma.download.response import range_headers, start_or_resume
from airflow_provider_luma.download.retry import Link, RetryBudget, Verdict
from airflow_provider_luma.download.staging import StagedFile, format_bytes
from airflow_provider_luma.download.transport import Transport, describe_network_error
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.exceptions import (
    DownloadError,
    LinkExpiredError,
    RelayRateLimitError,
    RelayTransientError,
    TransientDownloadError,
)
from airflow_provider_luma.threads import DeadlineError, StoppedError, call_abandonable

log = logging.getLogger(__name__)

# Bytes of one read at most: with half of them a file takes a third more CPU, with more not less.
READ_BYTES = 512 * 1024


@dataclass(frozen=True)
class DownloadLimits:
    """
    Limits of a download.

    :param max_bytes: how large a file may be.
    :param download_timeout: seconds for one file, with all its attempts.
    :param link_timeout: seconds for which a missing or rejected URL is queried again.
    :param max_attempts: in a row without worthwhile progress.
    :param initial_delay: seconds before the second attempt.
    :param min_rate: bytes a second, over ``rate_window`` seconds, below which an attempt is aborted.
    """

    max_bytes: float = math.inf
    download_timeout: float = 3600
    link_timeout: float = 120
    max_attempts: int = 5
    initial_delay: float = 0.5
    min_rate: float = 1024
    rate_window: float = 60


class Downloader:
    """
    Downloads files without ever sending a credential.

    :param transport: sends the requests.
    :param limits: what a download may take.
    :param stopped: set when all downloads have to end.
    """

    def __init__(
        self,
        transport: Transport,
        limits: DownloadLimits | None = None,
        *,
        stopped: threading.Event | None = None,
    ) -> None:
        self.stopped = stopped or threading.Event()
        self.limits = limits or DownloadLimits()
        self._transport = transport

    def close(self) -> None:
        self._transport.close()

    def download(self, link: Link, file: StagedFile, kind: str, label: str) -> str:
        """
        Write what the link leads to into ``file``, resuming where an earlier attempt was truncated.

        :param kind: one of :data:`airflow_provider_luma.relay.media.MEDIA_KINDS`, which it must be.
        :param label: names the file in the log.
        :return: its media type, by its content.
        :raises LinkExpiredError: when the URL is expired or missing, and no fresh one came.
        :raises UnsafeURLError: when it leads to an address that is not public.
        :raises DownloadError: when it does not lead to such media, or transient errors outlasted the budget.
        """
        deadline = time.monotonic() + self.limits.download_timeout
        budget = RetryBudget(
            file,
            link,
            label,
            max_attempts=self.limits.max_attempts,
            initial_delay=self.limits.initial_delay,
            deadline=deadline,
        )
        retrying = Retrying(
            retry=retry_if_exception(lambda error: not self.stopped.is_set() and budget.judge(error)),
            stop=stop_never,
            wait=lambda state: budget.delay,
            sleep=sleep_using_event(self.stopped),
            reraise=True,
        )
        try:
            return retrying(self._attempt, link, file, kind, budget, deadline)
        except DownloadError as error:
            if self.stopped.is_set():  # and not that the download failed
                raise StoppedError from None
            raise budget.explain(error) from None

    def _attempt(self, link: Link, file: StagedFile, kind: str, budget: RetryBudget, deadline: float) -> str:
        if self.stopped.is_set():
            raise StoppedError
        if budget.verdict is Verdict.FRESH_LINK:
            self._refresh(link, budget.label, deadline)
        if link.url is None:
            raise LinkExpiredError(f"The task is completed but has no {kind} URL yet")
        transfer = partial(self._transfer, link.url, file, kind, deadline)
        call_abandonable(transfer, stopped=self.stopped, deadline=deadline, abort=self._transport.abort)
        return self._verify(link.url, file, kind)

    def _refresh(self, link: Link, label: str, deadline: float) -> None:
        try:
            call_abandonable(link.refresh, stopped=self.stopped, deadline=deadline)
        except (RelayRateLimitError, RelayTransientError) as error:
            log.warning("%s: the relay gave no fresh link: %s", label, error)

    def _transfer(self, url: str, file: StagedFile, kind: str, deadline: float) -> None:
        headers = range_headers(file)
        try:
            with self._transport.open(url, headers, deadline=deadline) as response:
                start_or_resume(response, file, kind, requested="Range" in headers)
                self._check_size(file.source.size if file.source else None, url)
                for chunk in self._iter_chunks(response, url, deadline):
                    file.write(chunk)
                    self._check_size(file.size, url)
                    if file.source and file.source.size is not None and file.size > file.source.size:
                        break  # more than was announced: an error, however much is still to come
        except requests.exceptions.InvalidHeader:  # of the response
            raise TransientDownloadError(f"{redact_url(url)}: invalid headers") from None
        except ValueError as error:  # of an address that no library can read
            raise DownloadError(f"{redact_url(url)} is not a valid URL ({type(error).__name__})") from None
        except (requests.RequestException, HTTPError, ConnectionError, TimeoutError) as error:
            raise TransientDownloadError(f"{redact_url(url)}: {describe_network_error(error)}") from None
        _check_complete(file, url)

    def _iter_chunks(self, response: requests.Response, url: str, deadline: float) -> Iterator[bytes]:
        window_start, received = time.monotonic(), 0
        # read1 returns what has arrived; iter_content would wait until a chunk is full.
        while chunk := response.raw.read1(READ_BYTES, decode_content=False):
            yield chunk
            received += len(chunk)
            now = time.monotonic()
            if now >= deadline:
                raise DeadlineError
            if now - window_start >= self.limits.rate_window:
                if received < self.limits.min_rate * (now - window_start):
                    raise TransientDownloadError(
                        f"{redact_url(url)}: slower than {format_bytes(int(self.limits.min_rate))}/s"
                    )
                window_start, received = now, 0
            if self.stopped.is_set():
                raise StoppedError

    def _check_size(self, size: int | None, url: str) -> None:
        if size is not None and size > self.limits.max_bytes:
            raise DownloadError(
                f"{redact_url(url)} has {format_bytes(size)} or more, which is above max_bytes "
                f"({format_bytes(int(self.limits.max_bytes))}). Raise it if that is right"
            )

    def _verify(self, url: str, file: StagedFile, kind: str) -> str:
        size_is_known = file.source is not None and file.source.size is not None
        try:
            return detect_media_type(kind, file.size, file.read_at, size_is_known=size_is_known)
        except TransientDownloadError as error:
            file.restart()
            raise TransientDownloadError(f"{redact_url(url)}: {error}") from None


def _check_complete(file: StagedFile, url: str) -> None:
    expected = file.source.size if file.source else None
    if file.size and expected in {None, file.size}:
        return
    message = f"{redact_url(url)} has {file.size} bytes instead of {expected or 'more than 0'}"
    if expected is not None and file.size > expected:
        file.restart()
    raise TransientDownloadError(message)
