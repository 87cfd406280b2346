"""Relays and proxies that break off as no web server does, and count what they were sent."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Handle = Callable[[socket.socket], None]


@dataclass
class Counted:
    """
    A server that is listening.

    :param posts: the bodies of the POST requests that arrived, complete or not.
    """

    url: str
    posts: list[bytes] = field(default_factory=list)


@contextmanager
def raw_relay(response: bytes, *, tls: ssl.SSLContext | None = None) -> Iterator[Counted]:
    """Answer each POST with these bytes, and close."""
    with _listening("https" if tls else "http") as (counted, listener):

        def handle(client: socket.socket) -> None:
            with tls.wrap_socket(client, server_side=True) if tls else client as peer:
                counted.posts.append(_read_request(peer))
                peer.sendall(response)

        _serve(listener, handle)
        yield counted


@contextmanager
def cutting_proxy(relay: Counted, *, cut: str) -> Iterator[Counted]:
    """
    Pass a request on, plainly or through a tunnel, and break off when the relay responds.

    :param relay: where requests go.
    :param cut: ``fin`` closes the connection, ``rst`` resets it; ``refuse`` rejects the tunnel; ``drop``
        closes every connection.
    """
    with _listening("http") as (counted, listener):

        def handle(client: socket.socket) -> None:
            with client:
                if cut == "drop":
                    return
                head = _read_head(client)
                method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
                if method == b"CONNECT":
                    if cut == "refuse":
                        client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                        return
                    host, _, port = target.partition(b":")
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    _tunnel(client, (host.decode(), int(port)), relay)
                else:
                    parts = urlsplit(target.decode())
                    head = head.replace(target, parts.path.encode(), 1)
                    with socket.create_connection((str(parts.hostname), int(parts.port or 80))) as far:
                        far.sendall(_read_body(client, head))
                        far.recv(65536)
                if cut == "rst":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        _serve(listener, handle)
        yield counted


def _tunnel(client: socket.socket, address: tuple[str, int], relay: Counted) -> None:
    """Pass bytes on both ways until the relay has read a request: what it sends then is its response."""
    with socket.create_connection(address) as far:
        threading.Thread(target=_pump, args=(client, far), daemon=True).start()
        while (piece := far.recv(65536)) and not relay.posts:
            client.sendall(piece)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)


@contextmanager
def _listening(scheme: str) -> Iterator[tuple[Counted, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Counted(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"), listener


def _serve(listener: socket.socket, handle: Handle) -> None:
    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.settimeout(10)
                with suppress(OSError):
                    handle(client)

    threading.Thread(target=serve, daemon=True).start()


def _read_request(peer: socket.socket) -> bytes:
    return _read_body(peer, _read_head(peer))


def _read_head(peer: socket.socket) -> bytes:
    read = b""
    while b"\r\n\r\n" not in read and (piece := peer.recv(65536)):
        read += piece
    return read


def _read_body(peer: socket.socket, read: bytes) -> bytes:
    head, _, body = read.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ),
        0,
    )
    while len(body) < length and (piece := peer.recv(65536)):
        body += piece
    return head + b"\r\n\r\n" + body
