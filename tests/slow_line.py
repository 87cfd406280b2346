"""A line to a server that is slow on the way there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_PIECE = 64 * 1024


@contextmanager
def slow_line(url: str, *, bytes_a_second: float) -> Iterator[str]:
    """Yield the address of a proxy to the server at ``url`` that hands on requests this slowly."""
    server = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                far = socket.create_connection((str(server.hostname), int(server.port or 80)))
                pause = _PIECE / bytes_a_second
                threading.Thread(target=_pump, args=(client, far, pause), daemon=True).start()
                threading.Thread(target=_pump, args=(far, client, 0.0), daemon=True).start()

    client_buffer = 4 * _PIECE  # else megabytes would seem to be sent
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, client_buffer)
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _pump(source: socket.socket, sink: socket.socket, pause: float) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            sink.sendall(piece)
            time.sleep(pause * len(piece) / _PIECE)
        sink.shutdown(socket.SHUT_WR)
