from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from airflow_provider_luma.relay import RelayClient, RetryPolicy
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch):
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Three tasks that are completed already."""
    with Sandbox(tasks=3, seconds=0, fail=0) as sandbox:
        yield sandbox


@pytest.fixture
def make_client(sandbox) -> Iterator[Callable[..., RelayClient]]:
    """Make clients of the sandbox that give up at the first error by default."""
    with ExitStack() as opened:

        def make(api_key=sandbox.api_key, base_url=sandbox.base_url, **arguments):
            return opened.enter_context(RelayClient(api_key, base_url, **{"retry": ONCE, **arguments}))

        yield make


@pytest.fixture
def client(make_client) -> RelayClient:
    return make_client()


@pytest.fixture
def query(sandbox, client) -> Callable[..., object]:
    """Query the ids "a" and "b" once; the relay responds with this."""

    def query(*response, **details):
        sandbox.script(ScriptedResponse(*response, **details))
        return client.query_once(["a", "b"])

    return query


@pytest.fixture
def listen() -> Iterator[Callable[..., tuple[str, Future[bytes]]]]:
    """Respond to one request with bytes that no web server sends; return the URL and the received bytes."""
    with ThreadPoolExecutor() as threads, ExitStack() as opened:

        def listen(response, *, tls: ssl.SSLContext | None = None):
            server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            scheme = "https" if tls else "http"
            return f"{scheme}://127.0.0.1:{server.getsockname()[1]}", threads.submit(
                _receive, server, response, tls
            )

        yield listen


def _receive(server: socket.socket, response: bytes, tls: ssl.SSLContext | None) -> bytes:
    server.settimeout(5)
    connection = server.accept()[0]
    connection.settimeout(5)
    with tls.wrap_socket(connection, server_side=True) if tls else connection as connection:
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(65536)
        connection.sendall(response)
    return received
