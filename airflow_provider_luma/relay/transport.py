"""
One request and its response over HTTP, bounded in time and in bytes.

:class:`Exchange` follows one request. ``may_have_been_sent`` is the proof that a submit needs: it turns true
when the socket of this request is connected (through a proxy: when the tunnel, or the proxy that forwards the
request, is reached), seen by the connection itself. Exceptions prove nothing: a truncated response may look
like an unreachable proxy, and an invalid response header like an invalid argument.
"""

from __future__ import annotations

import http.client
import logging
import re
import socket
import threading
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any, ClassVar, Self
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager

from airflow_provider_luma import __version__
from airflow_provider_luma.exceptions import RelayTransientError

USER_AGENT = f"airflow-provider-luma/{__version__}"

_CHUNK_BYTES = 64 * 1024
_SEARCHED_CHARS = 256 * 1024
_ABORT_INTERVAL = 0.2
_SHORTEST_SECRET = 8
_KNOWN_ENCODINGS = frozenset({"br", "zstd", "compress", "gzip", "deflate", "identity", "aws-chunked"})


class ResponseTooLargeError(Exception):
    """
    A response has more bytes than allowed, once it is decompressed.

    :param status: of the response.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ContentEncodingError(Exception):
    """A response is compressed in a way that was not requested, or damaged."""


@dataclass(frozen=True)
class RelayResponse:
    """
    A complete response.

    :param base_url: of the relay, for messages.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    base_url: str


class Exchange:
    """
    Follow one request, and abort it when its time has expired or :meth:`abort` is called.

    The thread that sends the request enters it.

    :param seconds: from the start to the last byte of the response.
    """

    _of_thread: ClassVar[threading.local] = threading.local()
    # Guards which exchange uses a connection: to abort one must not hit the next user of its connection.
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, seconds: float) -> None:
        self.may_have_been_sent = False
        self.is_expired = False
        self._connection: Any = None
        self._socket: Any = None
        self.seconds = seconds
        self._expires = threading.Event()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._of_thread.exchange = self
        try:
            threading.Thread(target=self._watch, name="luma-request-timeout", daemon=True).start()
        except RuntimeError as error:  # without it the request would not be bounded in time
            self._of_thread.exchange = None
            raise RelayTransientError(f"Nothing was sent to the relay: {error}") from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._over.set()
        self._expires.set()
        self._of_thread.exchange = None

    def abort(self) -> None:
        """End the request now, from another thread: nobody waits for its response."""
        self.is_expired = True  # what has not been sent yet is not sent any more
        self._expires.set()

    @classmethod
    def current(cls) -> Exchange | None:
        """Return the one that this thread is in."""
        return getattr(cls._of_thread, "exchange", None)

    def uses(self, connection: Any) -> None:
        """Note the connection that carries the request."""
        with self._lock:
            self._connection = connection
            connection.exchange = self

    def on_connect(self, connected: Any) -> None:
        """Note that the request may leave from now on, and by which socket."""
        if self.is_expired:
            raise TimeoutError
        # Kept, as http.client forgets it while a response that ends with its connection is read.
        self._socket = connected
        self.may_have_been_sent = True

    def _watch(self) -> None:
        self._expires.wait(self.seconds)
        # Again and again: a connection that is being made has no socket yet that could be shut down.
        while not self._over.is_set():
            self._expire()
            self._over.wait(_ABORT_INTERVAL)

    def _expire(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self.is_expired = True
            if getattr(self._connection, "exchange", None) is not self:
                return
            if (connected := self._socket or getattr(self._connection, "sock", None)) is not None:
                connected = getattr(connected, "socket", connected)  # of TLS inside a proxy's TLS
                with suppress(OSError):
                    # Past TLS, which would wait for the peer's goodbye.
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _keep_record(record: logging.LogRecord) -> bool:
    """Keep urllib3 from logging malformed headers, which may echo the key, with URLs that may be signed."""
    return "Failed to parse headers" not in str(record.msg)


for _logger in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_logger).addFilter(_keep_record)


def open_session(api_key: str, max_connections: int) -> requests.Session:
    """Return a session whose requests an :class:`Exchange` can follow."""
    session = _Session()
    session.auth = _Bearer(api_key)
    session.headers.update(
        {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": USER_AGENT}
    )
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # threads share the session
    adapter = _Adapter(pool_connections=1, pool_maxsize=max_connections)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def read_response(
    response: requests.Response, base_url: str, max_bytes: int, *, secret: str
) -> RelayResponse:
    """
    Read a response to its end.

    :param max_bytes: of the body once it is decompressed.
    :param secret: the API key, which some relays echo; it is redacted here, before anything is made of it.
    :raises ResponseTooLargeError: when there are more.
    :raises ContentEncodingError: when they cannot be decompressed.
    """
    body = bytearray()
    with response:
        decode = _decoder(response.headers.get("Content-Encoding", ""))
        while chunk := response.raw.read(_CHUNK_BYTES, decode_content=False):
            # One byte more than allowed shows that there are more, and bounds what a small chunk expands to.
            body += decode(chunk, max_bytes + 1 - len(body))
            if len(body) > max_bytes:
                raise ResponseTooLargeError(response.status_code)
        decode(b"", 1)
    headers = CaseInsensitiveDict({name: _redact(value, secret) for name, value in response.headers.items()})
    text = _redact(bytes(body).decode("latin-1"), secret).encode("latin-1")  # keeps every byte
    return RelayResponse(response.status_code, headers, text, base_url)


def _redact(text: str, secret: str) -> str:
    """Redact a secret, also as URLs and JSON escape it. One that is short is a word of every response."""
    if len(secret) < _SHORTEST_SECRET:
        return text
    for spelling in {secret, secret.replace("/", "\\/"), quote(secret, safe="")}:
        text = text.replace(spelling, "***")
    return _redact_escaped(text, secret) if "\\u00" in text else text


def _redact_escaped(text: str, secret: str) -> str:
    """Redact a secret of which JSON escapes some, in steps: a search keeps other threads from running."""
    pattern, longest = _json_escaped(secret), len(secret) * len("\\u0000")
    pieces, start = [], 0
    while start < len(text):
        found = pattern.search(text, start, start + _SEARCHED_CHARS + longest)
        end = found.start() if found else start + _SEARCHED_CHARS
        pieces += [text[start:end], "***" if found else ""]
        start = found.end() if found else end
    return "".join(pieces)


@lru_cache(maxsize=16)
def _json_escaped(secret: str) -> re.Pattern[str]:
    """Match a secret of which any character may be escaped as in JSON."""
    return re.compile("".join(rf"(?:{re.escape(char)}|(?i:\\u{ord(char):04x}))" for char in secret))


def _decoder(encoding: str) -> Any:
    """Return a function of a chunk, empty at the end, and the most bytes that it may give."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return lambda chunk, limit: chunk
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        is_known = {part.strip() for part in encoding.split(",")} <= _KNOWN_ENCODINGS
        shown = f" {encoding!r:.40}" if is_known else ""  # else it may echo anything
        raise ContentEncodingError(f"its Content-Encoding{shown} was not requested")
    inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header

    has_begun = False

    def decode(chunk: bytes, limit: int) -> bytes:
        nonlocal has_begun
        if inflate.eof:  # zlib would keep what follows, and copy it for each chunk
            return b""
        has_begun = has_begun or bool(chunk)
        if not chunk and has_begun and not inflate.eof:
            raise ContentEncodingError(f"its {encoding} is truncated")
        try:
            return inflate.decompress(chunk, limit)
        except zlib.error as error:
            raise ContentEncodingError(f"it is not valid {encoding}") from error

    return decode


class _Bearer(AuthBase):
    """Sets the header itself, so that requests does not put credentials of a ``.netrc`` in its place."""

    def __init__(self, api_key: str) -> None:
        self._value = f"Bearer {api_key}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Leave redirects to the reader of the response; requests would parse, and raise on, any Location."""


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _track(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> PoolManager:
        manager: PoolManager = super().proxy_manager_for(proxy, **kwargs)
        _track(manager)
        return manager


def _track(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {
        scheme: _tracked_pool(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


def _tracked_pool(pool: type[Any]) -> type[HTTPConnectionPool | HTTPSConnectionPool]:
    if issubclass(pool.ConnectionCls, _TrackedConnection):
        return pool
    connection = type(pool.ConnectionCls.__name__, (_TrackedConnection, pool.ConnectionCls), {})
    return type("TrackedPool", (pool,), {"ConnectionCls": connection})


class _Response(http.client.HTTPResponse):
    """
    Rejects or skips what http.client and requests take.

    Interim responses other than 100 are not responses, chunks have no negative size, and cookies are not
    wanted: to parse hostile ones takes seconds.
    """

    def begin(self) -> None:
        super().begin()
        for name in ("Set-Cookie", "Set-Cookie2"):
            del self.headers[name]

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        is_interim = http.client.SWITCHING_PROTOCOLS < status < http.client.OK
        return version, http.client.CONTINUE if is_interim else status, reason

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise http.client.IncompleteRead(b"")
        return size


class _TrackedConnection:
    """Tells the exchange of the thread which socket carries its request, and when it is connected."""

    response_class = _Response
    sock: Any
    exchange: Exchange | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        exchange = Exchange.current()
        if exchange is not None:
            exchange.uses(self)
            if self.sock is not None:  # one that was kept alive
                exchange.on_connect(self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]

    def connect(self) -> None:
        exchange = Exchange.current()
        if exchange is not None:
            exchange.uses(self)
        super().connect()  # type: ignore[misc]
        if exchange is not None:
            exchange.on_connect(self.sock)
