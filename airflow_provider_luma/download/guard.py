"""Where downloads may go: a relay must not be able to send a worker into its own network."""

from __future__ import annotations

import ipaddress
import socket
import weakref
from collections.abc import Collection
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from airflow_provider_luma.exceptions import UnsafeURLError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def guarded_session(*, relay_url: str, allowed_hosts: Collection[str], connections: int) -> requests.Session:
    """
    Return a session that talks to public addresses only, and never with anybody's credentials.

    The address that a socket is really connected to is judged, before anything is sent, so that no name
    server can tell one thing to a check and another to the connection. Closing the session ends also the
    downloads under way in other threads.

    :param relay_url: the relay, whose own origin may be downloaded from wherever it is.
    :param allowed_hosts: host names that may be downloaded from although their address is not public.
    :param connections: how many downloads run at once.
    """
    session = requests.Session()
    session.auth = _no_credentials  # else requests would look into a .netrc
    adapter = _GuardedAdapter(relay_url, allowed_hosts, connections)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _GuardedAdapter(HTTPAdapter):
    def __init__(self, relay_url: str, allowed_hosts: Collection[str], connections: int) -> None:
        relay = urlsplit(relay_url)
        self._relay = (relay.hostname, relay.port or {"https": 443, "http": 80}[relay.scheme])
        self._allowed_hosts = frozenset(allowed_hosts)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        super().__init__(pool_connections=connections, pool_maxsize=connections)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = {
            "http": _pool_class(HTTPConnectionPool, HTTPConnection, self),
            "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, self),
        }

    def check(self, host: str, port: int, address: str) -> None:
        host = host.strip("[]").lower()
        if (host, port) == self._relay or host in self._allowed_hosts:
            return
        ip = _destination(address)
        if not ip.is_global or ip.is_multicast:
            raise UnsafeURLError(
                f"the link leads to {host}, whose address {ip} is not public; if that is right, "
                "add the host to allowed_download_hosts in the connection's extra"
            )

    def watch(self, connected: socket.socket) -> None:
        self._sockets.add(connected)

    def close(self) -> None:
        """Wake also the threads that wait for bytes, which a pool does not do."""
        for connected in list(self._sockets):
            with suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # past TLS, which would say goodbye first
        super().close()


def _destination(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address without its zone ("%eth0"); "::ffff:127.0.0.1" and the like are 127.0.0.1."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(ip.packed[-4:])
    return ip.ipv4_mapped or ip.sixtofour or ip


def _pool_class(pool: type[Any], connection: type[Any], guard: _GuardedAdapter) -> type[Any]:
    class GuardedConnection(connection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            guard.watch(self.sock)

        def _new_conn(self) -> socket.socket:
            made: socket.socket = super()._new_conn()
            try:
                guard.check(self.host, self.port, made.getpeername()[0])
            except BaseException:
                made.close()
                raise
            return made

    class GuardedPool(pool):  # type: ignore[misc]
        ConnectionCls: ClassVar[type[Any]] = GuardedConnection

    return GuardedPool
