"""Every response is bounded in bytes and in time, however it arrives."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from airflow_provider_luma.exceptions import RelayError, RelayTransientError
from airflow_provider_luma.relay import RelayClient
from tests.certificate import server_context, write_certificate

# Pauses in seconds, and the bytes after each.
Script = list[tuple[float, bytes]]
MakeClient = Callable[..., RelayClient]

SERVER_THREAD = "server of a test"
MEGABYTE = 1024 * 1024
CLOSE = (0, b"")  # the last step of a script that closes the connection
TUNNEL: Script = [(0, b"HTTP/1.1 200 Connection established\r\n\r\n")]


@dataclass
class Server:
    """
    A server on loopback that plays a script for each request, the last one for ever.

    :param tunnel: what a proxy sends to a CONNECT; without it the server is no proxy.
    :param completed: how many scripts were played to their last step.
    :param closed: how many connections the client, or a script, has closed.
    """

    scripts: list[Script]
    tls: ssl.SSLContext | None = None
    proxy_tls: ssl.SSLContext | None = None
    tunnel: Script | None = None
    connections: int = 0
    completed: int = 0
    closed: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def base_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.netloc}"

    def run(self) -> None:
        with suppress(OSError):
            while True:
                peer = self.listener.accept()[0]
                self.connections += 1
                peer.settimeout(60)
                start_thread(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        try:
            self._serve_requests(peer)
        finally:
            self.closed += 1

    def _serve_requests(self, peer: socket.socket) -> None:
        with ExitStack() as opened, suppress(OSError, EOFError):
            opened.enter_context(closing(peer))
            if self.proxy_tls:
                peer = opened.enter_context(self.proxy_tls.wrap_socket(peer, server_side=True))
            if self.tunnel is not None:
                read_until(peer, b"\r\n\r\n")
                self._play(peer, self.tunnel)
            if self.proxy_tls:  # which Python cannot wrap once more
                inner, peer = socket.socketpair(), peer
                start_thread(pump, peer, inner[0], self.is_over)
                peer = opened.enter_context(inner[1])
                peer.settimeout(60)
            if self.tls:
                peer = opened.enter_context(self.tls.wrap_socket(peer, server_side=True))
            while True:
                read_until(peer, b"}")
                self._play(peer, self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0])

    def _play(self, peer: socket.socket, script: Script) -> None:
        for number, (pause, piece) in enumerate(script, 1):
            if self.is_over.wait(pause):
                raise EOFError
            self.completed += script is not self.tunnel and number == len(script)
            if not piece:
                raise EOFError
            peer.sendall(piece)

    def stop(self) -> None:
        self.is_over.set()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def start_thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=SERVER_THREAD, daemon=True).start()


def read_until(peer: socket.socket, end: bytes) -> None:
    read = b""
    while not read.endswith(end):
        if not (piece := peer.recv(65536)):
            raise EOFError
        read += piece


def pump(outer: socket.socket, inner: socket.socket, is_over: threading.Event) -> None:
    """Copy both ways in one thread, as TLS bears no two."""
    with inner, suppress(OSError):
        outer.settimeout(0.01)
        inner.settimeout(0.01)
        while not is_over.is_set():
            for source, sink in ((outer, inner), (inner, outer)):
                with suppress(TimeoutError):
                    if not (piece := source.recv(65536)):
                        return
                    sink.sendall(piece)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with ExitStack() as opened:

        def serve(*scripts: Script, **options: object) -> Server:
            server = Server(list(scripts), **options)  # type: ignore[arg-type]
            opened.callback(server.stop)
            start_thread(server.run)
            return server

        yield serve


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls") / "relay.pem")


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    before = set(threading.enumerate())

    def left() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t not in before and t.name != SERVER_THREAD]

    yield
    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left() == []


def response(body: bytes, *headers: str, status: str = "200 OK") -> Script:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])
    return [(0, f"{head}\r\n\r\n".encode() + body)]


def chunked(body: bytes) -> Script:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [(0, b"%s%x\r\n%s\r\n0\r\n\r\n" % (head, len(body), body))]


def drip(head: bytes, dripping: bytes) -> Script:
    """Send the head at once, and then for ten seconds one byte after the other."""
    return [*([(0, head)] if head else []), *[(10 / len(dripping), bytes([byte])) for byte in dripping]]


EMPTY_LIST = response(b"[]")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 202\r\n\r\n"
SLOW_LIST = b" " * 200 + b"[]"
SLOW_GZIP = gzip.compress(SLOW_LIST, compresslevel=0)
DRIPPING = {
    "status line": drip(b"", b"HTTP/1.1 200 O" + b"K" * 150 + b"\r\nContent-Length: 2\r\n\r\n[]"),
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 20 + b"Content-Length: 2\r\n\r\n[]"),
    "1xx": drip(
        b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 8 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
    ),
    "body": drip(OK, SLOW_LIST),
    "error": drip(OK.replace(b"200 OK", b"500 No"), SLOW_LIST),
    "chunks": drip(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 33 + b"2\r\n[]\r\n0\r\n\r\n"
    ),
    "gzip": drip(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(SLOW_GZIP), SLOW_GZIP
    ),
    "body to the end of the connection": [*drip(b"HTTP/1.1 200 OK\r\n\r\n", SLOW_LIST), CLOSE],
    "body of a connection that closes": drip(OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), SLOW_LIST),
    "body of HTTP/1.0": drip(OK.replace(b"1.1", b"1.0"), SLOW_LIST),
}


def error_of(client: RelayClient) -> str:
    with pytest.raises(RelayTransientError) as caught:
        client.get_tasks(["a"])
    return str(caught.value)


def assert_ends_at_request_timeout(client: RelayClient, server: Server) -> None:
    """A response that is let drip is complete at last; the client must not have waited for that."""
    message = error_of(client)
    assert server.completed == 0
    assert message.endswith(": it was not complete within request_timeout (0.3 s)")


@pytest.mark.parametrize("script", DRIPPING.values(), ids=DRIPPING)
def test_a_dripping_response_ends_at_request_timeout(
    make_client: MakeClient, serve: Callable[..., Server], script: Script
) -> None:
    server = serve(script)
    assert_ends_at_request_timeout(make_client(base_url=server.base_url, request_timeout=0.3), server)


@pytest.mark.parametrize("script", DRIPPING.values(), ids=DRIPPING)
def test_a_dripping_response_ends_at_request_timeout_through_tls(
    make_client: MakeClient, serve: Callable[..., Server], certificate: Path, script: Script
) -> None:
    server = serve(script, tls=server_context(certificate))
    client = make_client(base_url=server.base_url, verify=str(certificate), request_timeout=0.3)
    assert_ends_at_request_timeout(client, server)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("script", [DRIPPING["headers"], DRIPPING["body"]], ids=["headers", "body"])
def test_a_dripping_response_ends_at_request_timeout_through_a_tunnel(
    make_client: MakeClient, serve: Callable[..., Server], certificate: Path, script: Script, scheme: str
) -> None:
    tls = server_context(certificate)
    server = serve(script, tls=tls, tunnel=TUNNEL, proxy_tls=tls if scheme == "https" else None)
    client = make_client(
        base_url="https://127.0.0.1:9",
        verify=str(certificate),
        proxies={"https": f"{scheme}://{server.netloc}"},
        request_timeout=0.3,
    )
    assert_ends_at_request_timeout(client, server)


def test_a_dripping_response_ends_at_request_timeout_through_a_proxy_that_forwards(
    make_client: MakeClient, serve: Callable[..., Server]
) -> None:
    server = serve(DRIPPING["body"])
    proxies = {"http": server.base_url}
    client = make_client(base_url="http://relay.invalid", proxies=proxies, request_timeout=0.3)
    assert_ends_at_request_timeout(client, server)


def test_a_dripping_proxy_ends_at_request_timeout(
    make_client: MakeClient, serve: Callable[..., Server], certificate: Path
) -> None:
    tunnel = drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 20 + b"\r\n")
    server = serve(EMPTY_LIST, tls=server_context(certificate), tunnel=tunnel)
    proxies = {"https": f"http://{server.netloc}"}
    client = make_client(
        base_url="https://127.0.0.1:9", verify=str(certificate), proxies=proxies, request_timeout=0.3
    )
    assert_ends_at_request_timeout(client, server)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_client_works_on_after_a_request_that_ended_at_request_timeout(
    make_client: MakeClient, serve: Callable[..., Server], certificate: Path, scheme: str
) -> None:
    tls = server_context(certificate) if scheme == "https" else None
    server = serve(DRIPPING["body"], EMPTY_LIST, tls=tls)
    client = make_client(base_url=server.base_url, verify=str(certificate), request_timeout=3)
    assert error_of(client).endswith("within request_timeout (3 s)")
    assert client.get_tasks(["a"]) == client.get_tasks(["a"]) == {}
    assert (server.connections, server.completed) == (2, 2)


def test_threads_of_the_caller_end_each_at_its_own_request_timeout(
    make_client: MakeClient, serve: Callable[..., Server]
) -> None:
    slow, fast = serve(DRIPPING["body"]), serve(EMPTY_LIST)
    with make_client(base_url=slow.base_url, request_timeout=0.3) as dripped_on:
        message: list[str] = []
        thread = threading.Thread(target=lambda: message.append(error_of(dripped_on)))
        thread.start()
        other = make_client(base_url=fast.base_url)
        while thread.is_alive():
            assert other.get_tasks(["a"]) == {}
        thread.join()
    assert "request_timeout" in message[0]
    assert (slow.completed, fast.connections) == (0, 1)


ABORTED = {
    "too slow": DRIPPING["body"],
    "too large": [(0, OK), (0, b" " * 101)],
    "Content-Encoding": response(b"[]", "Content-Encoding: br"),
}


@pytest.mark.parametrize("script", ABORTED.values(), ids=ABORTED)
def test_the_connection_of_an_aborted_response_is_closed_even_while_its_error_is_kept(
    make_client: MakeClient, serve: Callable[..., Server], script: Script
) -> None:
    server = serve(script)
    client = make_client(base_url=server.base_url, request_timeout=2, max_response_bytes=100)
    with pytest.raises(RelayTransientError) as kept:
        client.get_tasks(["a"])
    deadline = time.monotonic() + 8
    while not server.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.closed == 1, str(kept.value)


REUSABLE = {
    "plain": EMPTY_LIST,
    "chunked": chunked(b"[]"),
    "gzip": response(gzip.compress(b"[]"), "Content-Encoding: gzip"),
    "rate limit": response(b'{"message": "slow"}', status="429 Too Many Requests"),
    "error": response(b'{"message": "no"}', status="400 Bad Request"),
    "redirect": response(b"<html>", "Location: /", status="302 Found"),
    "empty": response(b"", status="503 Service Unavailable"),
}


@pytest.mark.parametrize("script", REUSABLE.values(), ids=REUSABLE)
def test_queries_share_one_connection_whatever_the_relay_responds(
    make_client: MakeClient, serve: Callable[..., Server], script: Script
) -> None:
    server = serve(script, EMPTY_LIST)
    client = make_client(base_url=server.base_url)
    with suppress(RelayError):
        client.query_once(["a"])
    assert client.query_once(["a"]) == client.query_once(["a"]) == {}
    assert (server.connections, server.completed) == (1, 3)


def test_queries_share_one_connection_through_a_tunnel(
    make_client: MakeClient, serve: Callable[..., Server], certificate: Path
) -> None:
    server = serve(EMPTY_LIST, tls=server_context(certificate), tunnel=TUNNEL)
    proxies = {"https": f"http://{server.netloc}"}
    client = make_client(base_url="https://127.0.0.1:9", verify=str(certificate), proxies=proxies)
    assert client.query_once(["a"]) == client.query_once(["a"]) == {}
    assert (server.connections, server.completed) == (1, 2)


FORMS = {
    "plain": response,
    "chunked": chunked,
    "gzip": lambda body: response(gzip.compress(body), "Content-Encoding: gzip"),
    "x-gzip": lambda body: response(gzip.compress(body), "Content-Encoding: X-GZip"),
    "deflate": lambda body: response(zlib.compress(body), "Content-Encoding: deflate"),
    "identity": lambda body: response(body, "Content-Encoding: identity"),
    "to the end": lambda body: [(0, b"HTTP/1.0 200 OK\r\n\r\n" + body), CLOSE],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("size", [2, 1000, 100_000])
def test_a_response_may_have_max_response_bytes_and_not_one_more(
    make_client: MakeClient, serve: Callable[..., Server], form: Callable[[bytes], Script], size: int
) -> None:
    fits, does_not = (serve(form(b"[]".rjust(length))) for length in (size, size + 1))
    assert make_client(base_url=fits.base_url, max_response_bytes=size).get_tasks(["a"]) == {}
    message = error_of(make_client(base_url=does_not.base_url, max_response_bytes=size))
    assert message.endswith(f": it is larger than max_response_bytes ({size})")


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "500 Error"])
def test_an_endless_response_is_read_no_further_than_max_response_bytes(
    make_client: MakeClient, serve: Callable[..., Server], status: str
) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {999 * MEGABYTE}\r\n\r\n".encode()
    server = serve([(0, head), *[(0, b" " * MEGABYTE)] * 999], EMPTY_LIST)
    client = make_client(base_url=server.base_url, max_response_bytes=2 * MEGABYTE)
    assert "max_response_bytes (2097152)" in error_of(client)
    assert server.completed == 0
    assert client.get_tasks(["a"]) == {}  # on a connection that holds nothing of the first response


def test_a_chunk_of_a_negative_size_is_not_read_to_the_end(
    make_client: MakeClient, serve: Callable[..., Server]
) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"
    server = serve([(0, head), *[(0, b" " * MEGABYTE)] * 300])
    tracemalloc.start()
    try:
        error_of(make_client(base_url=server.base_url, max_response_bytes=MEGABYTE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert server.completed == 0
    assert peak < 8 * MEGABYTE


def test_bytes_after_the_end_of_a_compressed_body_are_not_kept(
    make_client: MakeClient, serve: Callable[..., Server]
) -> None:
    packed = gzip.compress(b"[]")
    length = len(packed) + 100 * MEGABYTE
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n".encode()
    server = serve([(0, head + packed), *[(0, b" " * MEGABYTE)] * 100])
    tracemalloc.start()
    try:
        assert make_client(base_url=server.base_url).get_tasks(["a"]) == {}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MEGABYTE


@pytest.mark.parametrize("cookie", ["Set-Cookie2: a" + " a" * 30_000, "Set-Cookie: a=b" + ";a" * 30_000])
def test_cookies_are_not_even_parsed(
    make_client: MakeClient, serve: Callable[..., Server], cookie: str
) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + f"{cookie}\r\n" * 90 + "\r\n"
    client = make_client(base_url=serve([(0, head.encode() + b"[]")]).base_url)
    started = time.process_time()
    assert client.get_tasks(["a"]) == {}
    assert time.process_time() - started < 2  # seven seconds and more when they are


@cache
def bomb(wbits: int) -> bytes:
    """Compress 300 MB of blanks to less than half a megabyte."""
    compressor = zlib.compressobj(level=1, wbits=wbits)
    packed = b"".join(compressor.compress(b" " * MEGABYTE) for _ in range(300))
    return packed + compressor.flush()


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_a_small_response_that_expands_to_hundreds_of_megabytes_is_not_expanded(
    make_client: MakeClient, serve: Callable[..., Server], encoding: str, wbits: int
) -> None:
    server = serve(response(bomb(wbits), f"Content-Encoding: {encoding}"), EMPTY_LIST)
    client = make_client(base_url=server.base_url, max_response_bytes=MEGABYTE)
    tracemalloc.start()
    try:
        message = error_of(client)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.endswith(": it is larger than max_response_bytes (1048576)")
    assert peak < 16 * MEGABYTE
    assert client.get_tasks(["a"]) == {}


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, deflate", "x" * 9000])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_a_content_encoding_that_was_not_asked_for_is_a_transient_error_that_names_it(
    make_client: MakeClient, serve: Callable[..., Server], encoding: str, status: str
) -> None:
    twice = gzip.compress(gzip.compress(b"[]"))
    server = serve(response(twice, f"Content-Encoding: {encoding}", status=status))
    message = error_of(make_client(base_url=server.base_url))
    shown = "" if encoding.startswith("x") else f" '{encoding}'"
    assert f"its Content-Encoding{shown} was not requested" in message
    assert "was not requested" in message
    assert len(message) < 300


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_is_not_compressed_as_it_says_is_a_transient_error_that_names_it(
    make_client: MakeClient, serve: Callable[..., Server], encoding: str
) -> None:
    server = serve(response(b"[]", f"Content-Encoding: {encoding}"))
    assert error_of(make_client(base_url=server.base_url)).endswith(f"it is not valid {encoding}")


def test_a_response_without_a_body_needs_no_decompression(
    make_client: MakeClient, serve: Callable[..., Server]
) -> None:
    server = serve(response(b"", "Content-Encoding: gzip", status="503 Service Unavailable"))
    assert error_of(make_client(base_url=server.base_url)).endswith("responded 503. Try again later")


def test_many_tasks_fit_into_the_default_limits(
    make_client: MakeClient, serve: Callable[..., Server]
) -> None:
    ids = [f"task-{number}" for number in range(100)]
    rows = [{"id": task_id, "state": "completed", "request": {"prompt": "x" * 6000}} for task_id in ids]
    server = serve(response(json.dumps(rows).encode()))
    assert list(make_client(base_url=server.base_url).get_tasks(ids)) == ids
