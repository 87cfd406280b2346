"""Where downloads may go: a relay must not be able to send a worker into its own network."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from airflow_provider_luma.exceptions import UnsafeLinkError


def guarded_session(*, relay_url: str, allowed_hosts: Collection[str], connections: int) -> requests.Session:
    """
    Return a session that talks to public addresses only, and never with anybody's credentials.

    The address that a socket is really connected to is judged, before anything is sent, so that no name
    server can tell one thing to a check and another to the connection.

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
        super().__init__(pool_connections=connections, pool_maxsize=connections)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = {
            "http": _pool_class(HTTPConnectionPool, HTTPConnection, self.check),
            "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, self.check),
        }

    def check(self, host: str, port: int, address: str) -> None:
        host = host.strip("[]").lower()
        if (host, port) == self._relay or host in self._allowed_hosts:
            return
        # "::ffff:127.0.0.1" is 127.0.0.1, and a zone ("%eth0") is no part of the address.
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not ip.is_global or ip.is_multicast:
            raise UnsafeLinkError(
                f"the link leads to {host}, whose address {ip} is not public; if that is right, "
                "add the host to allowed_download_hosts in the connection's extra"
            )


def _pool_class(pool: type[Any], connection: type[Any], check: Any) -> type[Any]:
    class GuardedConnection(connection):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            made: socket.socket = super()._new_conn()
            try:
                check(self.host, self.port, made.getpeername()[0])
            except BaseException:
                made.close()
                raise
            return made

    class GuardedPool(pool):  # type: ignore[misc]
        ConnectionCls: ClassVar[type[Any]] = GuardedConnection

    return GuardedPool
