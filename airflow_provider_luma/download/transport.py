"""HTTP for downloads: no credentials, no cookies, no URL in a log, and an end to every connection."""

from __future__ import annotations

import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import IncompleteRead, NameResolutionError, ProtocolError, ProxyError
from urllib3.exceptions import TimeoutError as PoolTimeoutError

from airflow_provider_luma.download.ssrf import AddressPolicy
from airflow_provider_luma.download.urls import parse_url, redact_url
from airflow_provider_luma.exceptions import DownloadError

_MAX_REDIRECTS = 5
# They log URLs, and with them the signatures of presigned ones.
_LOGGERS = ("urllib3.connection", "urllib3.connectionpool", "urllib3.response", "urllib3.util.retry")

_sending = threading.local()


class Transport:
    """
    Sends GET requests to public addresses.

    :param policy: which hosts may be downloaded from.
    :param max_connections: how many downloads run at once.
    :param timeout: seconds, for connecting and for each read.
    :param verify: as ``requests`` takes it.
    :param proxies: as ``requests`` takes them.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        max_connections: int = 8,
        timeout: float = 30,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
    ) -> None:
        self._policy = policy
        self._timeout = timeout
        self._verify = verify
        self._proxies = dict(proxies or {})
        self._environment = requests.Session()  # reads proxies and CA bundles from the environment
        self._sockets: dict[int, socket.socket] = {}
        self._adapter = _SafeAdapter(policy, self._sockets, max_connections)
        _silence_loggers()

    def close(self) -> None:
        self._adapter.close()

    def abort(self, thread_id: int) -> None:
        """Wake a thread that waits for bytes, which closing a pool does not do."""
        if connected := self._sockets.get(thread_id):
            with suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # past TLS, which would say goodbye first

    @contextmanager
    def open(
        self, url: str, headers: Mapping[str, str], *, deadline: float = math.inf
    ) -> Iterator[requests.Response]:
        """
        Yield the response to a GET request, its body unread; each redirect is judged as the URL is.

        :raises UnsafeURLError: when the URL, or a redirect, leads to an address that is not public.
        :raises DownloadError: when there are too many redirects, or one to what is no URL.
        """
        try:
            response = self._follow(url, headers, deadline)
            try:
                yield response
            finally:
                response.close()
        finally:
            self._sockets.pop(threading.get_ident(), None)

    def _follow(self, url: str, headers: Mapping[str, str], deadline: float) -> requests.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(url, headers, deadline)
            if not response.is_redirect:
                return response
            response.close()  # its body is not read: nobody bounds it
            url = _redirect_target(url, response)
        raise DownloadError(f"{redact_url(url)}: more than {_MAX_REDIRECTS} redirects")

    def _send(self, url: str, headers: Mapping[str, str], deadline: float) -> requests.Response:
        parse_url(url)
        # Prepared without a session: no cookies, and no credentials from a .netrc or from the URL.
        request = requests.Request("GET", url, headers=dict(headers), auth=_no_credentials).prepare()
        parts = parse_url(str(request.url))  # as it is sent: "①.②" has become "1.2"
        self._policy.check_host(str(parts.hostname), parts.port or {"https": 443}.get(parts.scheme, 80))
        settings: Any = self._environment.merge_environment_settings(
            request.url, self._proxies, True, self._verify, None
        )
        timeout = max(min(self._timeout, deadline - time.monotonic()), 0.1)
        _sending.active = True
        try:
            return self._adapter.send(request, timeout=timeout, **settings)
        finally:
            _sending.active = False


def describe_network_error(error: BaseException) -> str:
    """Say what happened, without the URL that messages of HTTP libraries repeat."""
    chain = list(_chain(error))
    known = (text for kinds, text in _DESCRIPTIONS if any(isinstance(part, kinds) for part in chain))
    text = next(known, type(chain[-1]).__name__)
    via = "proxy: " if any(isinstance(part, ProxyError) for part in chain) else ""
    reason = next((part.reason for part in chain if isinstance(part, ssl.SSLError) and part.reason), "")
    return f"{via}{text}{f' ({reason})' if isinstance(reason, str) and reason else ''}"


_DESCRIPTIONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((NameResolutionError, socket.gaierror), "DNS: the host name was not resolved"),
    ((ssl.SSLError,), "TLS failed"),
    ((ConnectionRefusedError,), "connection refused"),
    ((ConnectionResetError, BrokenPipeError), "connection reset"),
    ((TimeoutError, requests.Timeout, PoolTimeoutError), "timed out"),
    ((IncompleteRead, ProtocolError, ConnectionError, requests.ConnectionError), "connection closed early"),
)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(20):  # hostile servers cannot, but a library might, make a circle
        if error is None:
            return
        yield error
        nested = (*error.args, getattr(error, "reason", None), error.__cause__, error.__context__)
        error = next((part for part in nested if isinstance(part, BaseException)), None)


def _redirect_target(url: str, response: requests.Response) -> str:
    try:
        target = urljoin(url, response.headers["Location"].encode("latin-1").decode())
    except ValueError:
        raise DownloadError(f"{redact_url(url)} redirects to an invalid URL") from None
    return target


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _silence_loggers() -> None:
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_log_filter)  # a filter is added once


def _log_filter(_: logging.LogRecord) -> bool:
    """Drop what HTTP libraries log of a download; other threads' records pass."""
    return not getattr(_sending, "active", False)


class _SafeAdapter(HTTPAdapter):
    def __init__(self, policy: AddressPolicy, sockets: dict[int, socket.socket], connections: int) -> None:
        self._pool_classes = {
            "http": _pool_class(HTTPConnectionPool, HTTPConnection, policy, sockets),
            "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, policy, sockets),
        }
        super().__init__(pool_connections=connections, pool_maxsize=connections)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager


def _pool_class(
    pool: type[Any], connection: type[Any], policy: AddressPolicy, sockets: dict[int, socket.socket]
) -> type[Any]:
    class SafeConnection(connection):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            made: socket.socket = super()._new_conn()
            try:
                if self.proxy is None:
                    policy.check_peer(self.host, self.port, made.getpeername()[0])
            except BaseException:
                made.close()
                raise
            return made

        def getresponse(self) -> Any:
            if self.sock is not None:
                sockets[threading.get_ident()] = self.sock
            return super().getresponse()

    class SafePool(pool):  # type: ignore[misc]
        ConnectionCls: ClassVar[type[Any]] = SafeConnection

    return SafePool
