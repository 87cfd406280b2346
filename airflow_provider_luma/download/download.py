"""From a link to a whole, checked file."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_any,
    stop_when_event_set,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_exponential_jitter
from urllib3.exceptions import HTTPError

from airflow_provider_luma.download.staging import Source, StagedFile, in_words
from airflow_provider_luma.exceptions import (
    DownloadError,
    LinkExpiredError,
    TransientDownloadError,
    UnsafeURLError,
)

# What one read takes at the most: enough that the time goes into copying and hashing.
READ_BYTES = 256 * 1024

_LINK_IS_GONE = frozenset({401, 403, 404, 410})
_MAY_PASS = frozenset({408, 425, 429})
_NO_MEDIA = ("text/", "application/json", "application/xml", "application/problem+json")
_REDIRECTS_LIMIT = 5
_FIRST_WAIT, _MAX_WAIT = 0.5, 20  # seconds between attempts
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Downloader:
    """
    Fetches files without ever sending a credential.

    :param session: where requests go through, see :func:`..guard.guarded_session`.
    :param timeout: seconds, for connecting and for each read.
    :param stopped: set by whoever wants all downloads to end; :meth:`stop` ends them sooner.
    :param verify: as ``requests`` takes it.
    :param proxies: as ``requests`` takes them.
    :param attempts: how often it is tried in a row, at the most, without a single new byte.
    :param max_bytes: how large a file may be.
    """

    def __init__(
        self,
        session: requests.Session,
        *,
        timeout: float = 30,
        stopped: threading.Event | None = None,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        attempts: int = 5,
        max_bytes: float = math.inf,
    ) -> None:
        self.stopped = stopped or threading.Event()
        self._session = session
        self._attempts = attempts
        self._max_bytes = max_bytes
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "verify": verify,
            "proxies": dict(proxies or {}),
            "stream": True,
            "allow_redirects": False,
        }

    def stop(self) -> None:
        """End all downloads, also those that wait for bytes."""
        self.stopped.set()
        self._session.close()

    def fetch(self, url: str, file: StagedFile, *, deadline: float = math.inf) -> None:
        """
        Write what the link leads to into ``file``, going on where an earlier attempt was cut.

        :param deadline: reading of the monotonic clock at which it must be whole.
        :raises LinkExpiredError: when the link is gone or expired.
        :raises UnsafeURLError: when it leads where no download may go.
        :raises DownloadError: when it does not lead to media, or trouble outlasted the attempts.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(TransientDownloadError),
            stop=stop_any(StopWithoutGain(file, attempts=self._attempts), stop_when_event_set(self.stopped)),
            wait=wait_exponential_jitter(_FIRST_WAIT, _MAX_WAIT, jitter=_FIRST_WAIT),
            sleep=sleep_using_event(self.stopped),
            reraise=True,
        )
        retrying(self._fetch_on, url, file, deadline)

    def _fetch_on(self, url: str, file: StagedFile, deadline: float) -> None:
        self._check_time(url, deadline)
        try:
            with closing(self._open(url, _range_headers(file))) as response:
                _check_status(response)
                _begin_or_go_on(response, file)
                self._check_limit(file.source.size if file.source else None, url)
                for chunk in _chunks(response):
                    self._check_time(url, deadline)
                    file.write(chunk)
                    self._check_limit(file.size, url)
                _check_whole(file, url)
        except (requests.RequestException, HTTPError, ConnectionError, TimeoutError) as error:
            self._check_time(url, deadline)
            raise TransientDownloadError(f"{without_query(url)}: {type(error).__name__}") from None

    def _open(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Follow redirects hop by hop, so that each one is judged."""
        for _ in range(_REDIRECTS_LIMIT + 1):
            if urlsplit(url).scheme not in {"http", "https"}:
                raise UnsafeURLError(f"{without_query(url)} is not an http or https link")
            response = self._session.get(url, headers=headers, **self._options)
            if not response.is_redirect:
                return response
            response.close()
            url = urljoin(url, response.headers["Location"])
        raise DownloadError(f"{without_query(url)}: more than {_REDIRECTS_LIMIT} redirects")

    def _check_time(self, url: str, deadline: float) -> None:
        if self.stopped.is_set():
            raise DownloadError("stopped")
        if time.monotonic() >= deadline:
            raise DownloadError(f"{without_query(url)}: not whole when download_timeout was over")

    def _check_limit(self, size: int | None, url: str) -> None:
        if size is not None and size > self._max_bytes:
            raise DownloadError(
                f"{without_query(url)} has {in_words(size)} or more, "
                f"which is above max_bytes ({in_words(int(self._max_bytes))})"
            )


class StopWithoutGain(stop_base):
    """
    Stop retrying after so much in a row brought nothing new.

    :param attempts: how many attempts.
    :param seconds: how long, from the end of the first attempt that brought nothing.
    """

    def __init__(self, file: StagedFile, *, attempts: float = math.inf, seconds: float = math.inf) -> None:
        self._file = file
        self._attempts = attempts
        self._seconds = seconds
        self._reached = 0
        self._vain = 0
        self._vain_since = math.inf

    def __call__(self, retry_state: RetryCallState) -> bool:
        if self._file.reached > self._reached:
            self._reached, self._vain, self._vain_since = self._file.reached, 0, math.inf
            return False
        now = time.monotonic()
        self._vain += 1
        self._vain_since = min(self._vain_since, now)
        return self._vain >= self._attempts or now - self._vain_since >= self._seconds


def _range_headers(file: StagedFile) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if file.size and file.source and file.source.validator:
        headers |= {"Range": f"bytes={file.size}-", "If-Range": file.source.validator}
    return headers


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    where = f"{without_query(str(response.url))} answered {status}"
    if status in _LINK_IS_GONE:
        raise LinkExpiredError(where)
    if status in _MAY_PASS or status >= 500:
        raise TransientDownloadError(where)
    if status not in {200, 206, 416}:
        raise DownloadError(where)


def _begin_or_go_on(response: requests.Response, file: StagedFile) -> None:
    """Keep what there is if the server goes on with it; take anything else from the beginning."""
    headers = response.headers
    if response.status_code == 200:
        file.restart(_source(response))
        return
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    size = file.source.size if file.source else None
    if not match or int(match[1]) != file.size or match[2] not in {"*", str(size)}:
        file.restart()
        raise TransientDownloadError(
            f"{without_query(str(response.url))} does not go on where it was cut, but answered "
            f"{response.status_code} with {headers.get('Content-Range', 'no range')!r}"
        )


def _source(response: requests.Response) -> Source:
    headers = response.headers
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    where = without_query(str(response.url))
    if content_type.startswith(_NO_MEDIA):
        raise TransientDownloadError(f"{where} leads to {content_type} instead of a video or an image")
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise TransientDownloadError(f"{where} is sent in the encoding {encoding!r}, which was not asked for")
    told = headers.get("Content-Length", "")
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    return Source(int(told) if told.isdecimal() else None, content_type, validator)


def _chunks(response: requests.Response) -> Iterator[bytes]:
    # read1 gives what has come; iter_content would wait until a chunk is full.
    return iter(lambda: response.raw.read1(READ_BYTES, decode_content=False), b"")


def _check_whole(file: StagedFile, url: str) -> None:
    told = file.source.size if file.source else None
    if file.size and told in {None, file.size}:
        return
    wrong = TransientDownloadError(
        f"{without_query(url)} gave {file.size} bytes instead of {told or 'any number above 0'}"
    )
    if told is not None and file.size > told:
        file.restart()
    raise wrong


def without_query(url: str) -> str:
    """Drop what may be secret in a link: its query (signatures), fragment and credentials."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
