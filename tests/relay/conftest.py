from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from airflow_provider_luma.relay import RelayClient, RetryPolicy
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer

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
    """Make clients of the sandbox that give up at the first trouble, unless told otherwise."""
    with ExitStack() as opened:

        def make(api_key=sandbox.api_key, base_url=sandbox.base_url, **arguments):
            return opened.enter_context(RelayClient(api_key, base_url, **{"retry": ONCE, **arguments}))

        yield make


@pytest.fixture
def client(make_client) -> RelayClient:
    return make_client()


@pytest.fixture
def ask(sandbox, client) -> Callable[..., object]:
    """Ask for the ids "a" and "b" once, and let the relay answer this."""

    def ask(*answer, **details):
        sandbox.script(ScriptedAnswer(*answer, **details))
        return client.query_once(["a", "b"])

    return ask


@pytest.fixture
def listen() -> Iterator[Callable[..., tuple[str, Future[bytes]]]]:
    """Answer one request with bytes that no web server would send; give the address and what was heard."""
    with ThreadPoolExecutor() as threads, ExitStack() as opened:

        def listen(answer, *, tls: ssl.SSLContext | None = None):
            server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            scheme = "https" if tls else "http"
            return f"{scheme}://127.0.0.1:{server.getsockname()[1]}", threads.submit(
                _hear, server, answer, tls
            )

        yield listen


def _hear(server: socket.socket, answer: bytes, tls: ssl.SSLContext | None) -> bytes:
    server.settimeout(5)
    connection = server.accept()[0]
    connection.settimeout(5)
    with tls.wrap_socket(connection, server_side=True) if tls else connection as connection:
        heard = b""
        while not heard.endswith(b"}"):
            heard += connection.recv(65536)
        connection.sendall(answer)
    return heard
