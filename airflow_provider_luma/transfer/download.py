"""From a link to a verified local file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
)
from tenacity.wait import wait_exponential_jitter

from airflow_provider_luma.exceptions import (
    LinkRefusedError,
    TransferError,
    TransferTroubleError,
    UnsafeLinkError,
)

# Large enough that the time goes into copying and hashing, small enough that eight of them are nothing.
CHUNK_BYTES = 1024 * 1024

_LINK_IS_GONE = frozenset({401, 403, 404, 410})
_MAY_PASS = frozenset({408, 425, 429})
_NO_MEDIA = ("text/", "application/json", "application/xml", "application/problem+json")
_REDIRECTS_LIMIT = 5


@dataclass(frozen=True)
class Download:
    """A file that was fetched whole."""

    size: int
    sha256: str
    content_type: str


class Downloader:
    """
    Fetches files without ever sending a credential.

    :param session: where requests go through, see :func:`..guard.guarded_session`.
    :param timeout: seconds, for connecting and for each read.
    :param stopped: set by whoever wants all downloads to end.
    :param verify: as ``requests`` takes it.
    :param proxies: as ``requests`` takes them.
    :param attempts: how often a download is begun at the most while there is trouble.
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
    ) -> None:
        self._session = session
        self._stopped = stopped or threading.Event()
        self._attempts = attempts
        self._options = {
            "timeout": timeout,
            "verify": verify,
            "proxies": dict(proxies or {}),
            "stream": True,
            "allow_redirects": False,
            "headers": {"Accept-Encoding": "identity"},
        }

    def fetch(self, url: str, file: Path, on_bytes: Callable[[int], None] = lambda size: None) -> Download:
        """
        Write what the link leads to into ``file``, and check it.

        :param on_bytes: called with the size of each part that was written.
        :raises LinkRefusedError: when the link is gone or expired.
        :raises UnsafeLinkError: when it leads where no download may go.
        :raises TransferError: when it does not lead to media, or trouble outlasted the attempts.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(TransferTroubleError),
            stop=stop_any(stop_after_attempt(self._attempts), stop_when_event_set(self._stopped)),
            wait=wait_exponential_jitter(0.5, 20, jitter=0.5),
            sleep=sleep_using_event(self._stopped),
            reraise=True,
        )
        return retrying(self._fetch_once, url, file, on_bytes)

    def _fetch_once(self, url: str, file: Path, on_bytes: Callable[[int], None]) -> Download:
        try:
            with closing(self._open(url)) as response:
                _check_status(response)
                content_type = _media_type(response)
                size, sha256 = self._write(response, file, on_bytes)
                _check_size(response, size)
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise TransferTroubleError(f"{without_query(url)}: {type(error).__name__}") from None
        return Download(size, sha256, content_type)

    def _open(self, url: str) -> requests.Response:
        """Follow redirects hop by hop, so that each one is judged."""
        for _ in range(_REDIRECTS_LIMIT + 1):
            if urlsplit(url).scheme not in {"http", "https"}:
                raise UnsafeLinkError(f"{without_query(url)} is not an http or https link")
            response = self._session.get(url, **self._options)  # type: ignore[arg-type]
            if not response.is_redirect:
                return response
            response.close()
            url = urljoin(url, response.headers["Location"])
        raise TransferError(f"{without_query(url)}: more than {_REDIRECTS_LIMIT} redirects")

    def _write(
        self, response: requests.Response, file: Path, on_bytes: Callable[[int], None]
    ) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0
        with file.open("wb") as stream:
            for chunk in response.iter_content(CHUNK_BYTES):
                if self._stopped.is_set():
                    raise TransferError("stopped")
                digest.update(chunk)
                stream.write(chunk)
                size += len(chunk)
                on_bytes(len(chunk))
        return size, digest.hexdigest()


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    where = f"{without_query(str(response.url))} answered {status}"
    if status in _LINK_IS_GONE:
        raise LinkRefusedError(where)
    if status in _MAY_PASS or status >= 500:
        raise TransferTroubleError(where)
    if status != 200:
        raise TransferError(where)


def _media_type(response: requests.Response) -> str:
    content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type.startswith(_NO_MEDIA):
        raise TransferTroubleError(
            f"{without_query(str(response.url))} leads to {content_type} instead of a video or an image"
        )
    return content_type


def _check_size(response: requests.Response, size: int) -> None:
    told = response.headers.get("Content-Length", "")
    if size == 0 or (told.isdecimal() and int(told) != size):
        raise TransferTroubleError(
            f"{without_query(str(response.url))} gave {size} bytes instead of {told or 'any number above 0'}"
        )


def without_query(url: str) -> str:
    """Drop what may be secret in a link: its query (signatures), fragment and credentials."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
