"""Runs ASGI applications on loopback in a thread: accepts at once, and stops at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

TIMEOUT = 10.0


class Loopback:
    """
    Applications served from one thread, each on a port of its own. The constructor returns when they accept.

    :param host: the address all of them listen on.
    :param apps: the applications by their ports; a port of 0 takes a free one.
    """

    def __init__(self, host: str, apps: list[tuple[int, ASGIApp]]) -> None:
        sockets = _listen(host, [port for port, _ in apps])
        self.urls = [_url(sock) for sock in sockets]
        self._servers = {sock: _Server(app) for sock, (_, app) in zip(sockets, apps, strict=True)}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="luma-sandbox", daemon=True)
        self._thread.start()
        if not all(server.started_up.wait(TIMEOUT) for server in self._servers.values()):
            self.stop()
            raise RuntimeError(f"the sandbox's servers did not start within {TIMEOUT} seconds")

    def stop(self) -> None:
        """Drop all connections, also those during a response, and end the thread."""
        for server in self._servers.values():
            self._loop.call_soon_threadsafe(server.exit)
        self._thread.join(TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(_serve(self._servers))


class _Server(uvicorn.Server):
    """Serves one application; its requests find an ``abort`` in their scope, which closes the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.started_up = threading.Event()
        self._app = app
        self._exiting = asyncio.Event()
        config = uvicorn.Config(
            self._serve_request,
            http="h11",
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_up.set()

    async def main_loop(self) -> None:
        # Uvicorn's own checks ten times a second whether to exit. The tick keeps the Date header right.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._exiting.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Uvicorn's own waits for clients, at least a tenth of a second.
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1)

    def exit(self) -> None:
        self.should_exit = True
        self._exiting.set()

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["abort"] = functools.partial(self._abort, scope["client"])
        await self._app(scope, receive, send)

    def _abort(self, client: tuple[str, int]) -> None:
        for connection in list(self.server_state.connections):
            if getattr(connection, "client", None) == client:
                connection.transport.close()


async def _serve(servers: Mapping[socket.socket, _Server]) -> None:
    await asyncio.gather(*(server.serve([sock]) for sock, server in servers.items()))


def _listen(host: str, ports: list[int]) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server((host, port), family=family)) for port in ports]
        for sock in sockets:
            # Without it a body that follows its head in a second segment waits for the client's late ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.pop_all()
    return sockets


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
