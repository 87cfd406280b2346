"""
SSRF protection: a relay's response must not make a worker read its own network.

Three judgements, since each sees what the others cannot:

==========================  =====================================================================
literal addresses           always, also behind a proxy, in every form that a resolver takes
                            (``127.1``, ``0x7f000001``, ``[::ffff:10.0.0.1]``)
names that are never public ``localhost``, ``*.internal``, ``*.local`` and names without a dot
the connected socket        before anything is sent, which defeats DNS rebinding; behind a proxy it is
                            the proxy that resolves names, so that it has to decide this
==========================  =====================================================================

``ipaddress.is_global`` alone is not enough: it differs between patch releases of Python, and calls some
addresses of cloud metadata services and some embedded IPv4 addresses global.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import TypeAlias
from urllib.parse import urlsplit

from airflow_provider_luma.exceptions import UnsafeURLError
from airflow_provider_luma.relay.text import clean_text

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_DEFAULT_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # shared address space; Alibaba's metadata service lives here
        "168.63.129.16/32",  # Azure's platform endpoint
        "192.0.0.0/24",  # IETF protocols; Oracle's metadata service lives here
        "192.88.99.0/24",  # relays of 6to4
        "198.18.0.0/15",
        "240.0.0.0/4",
        "::/96",  # IPv4-compatible: the IPv4 address in it is reached on some systems
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b:1::/48",  # local NAT64
        "100::/64",
        "2001::/23",  # IETF protocols, Teredo among them
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fec0::/10",  # site-local
    )
)
_NEVER_PUBLIC_NAMES = (".localhost", ".local", ".internal", ".localdomain", ".home.arpa")


class AddressPolicy:
    """
    Decides which hosts may be downloaded from.

    :param relay_url: the relay, whose own origin may be downloaded from wherever it is.
    :param allowed_hosts: host names that may be downloaded from although their address is not public.
    """

    def __init__(self, relay_url: str, allowed_hosts: Collection[str] = ()) -> None:
        relay = urlsplit(relay_url)
        self._relay = (relay.hostname, relay.port or _DEFAULT_PORTS.get(relay.scheme))
        self._allowed_hosts = frozenset(_normalized(host) for host in allowed_hosts)

    def check_host(self, host: str, port: int) -> None:
        """
        Judge a host by what is written, before any name is resolved.

        :raises UnsafeURLError: when it is a literal address, or a kind of name, that is not public.
        """
        if self._is_allowed(host, port):
            return
        host = _normalized(host)
        if (literal := _literal(host)) is not None:
            _check_address(host, literal)
        elif "." not in host or f".{host}".endswith(_NEVER_PUBLIC_NAMES):
            raise _unsafe(host, "a name that is not public")

    def check_peer(self, host: str, port: int, address: str) -> None:
        """
        Judge the address that a socket is connected to.

        :raises UnsafeURLError: when it is not public.
        """
        if not self._is_allowed(host, port):
            _check_address(_normalized(host), ipaddress.ip_address(address.partition("%")[0]))

    def _is_allowed(self, host: str, port: int) -> bool:
        host = _normalized(host)
        return (host, port) == self._relay or host in self._allowed_hosts


def is_public(address: IPAddress) -> bool:
    """Return whether an address, or the IPv4 address that is embedded in it, is on the public internet."""
    ip = _effective_ip(address)
    if any(ip in network for network in _NEVER_PUBLIC if network.version == ip.version):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _check_address(host: str, address: IPAddress) -> None:
    if not is_public(address):
        raise _unsafe(host, f"the address {_effective_ip(address)}, which is not public")


def _unsafe(host: str, reason: str) -> UnsafeURLError:
    return UnsafeURLError(
        f"The URL leads to {clean_text(host, 100)}: {reason}. If that is right, "
        "add the host to allowed_download_hosts"
    )


def _normalized(host: str) -> str:
    return host.strip("[]").lower().rstrip(".")


def _literal(host: str) -> IPAddress | None:
    """Read an address in any form that resolvers take, such as ``127.1`` or ``2130706433``."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0])
    with suppress(OSError, ValueError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def _effective_ip(ip: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(ip.packed[-4:])
    return ip.ipv4_mapped or ip.sixtofour or ip
