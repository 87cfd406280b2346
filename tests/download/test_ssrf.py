from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airflow_provider_luma.download.downloader import Downloader
from airflow_provider_luma.download.retry import Link
from airflow_provider_luma.download.ssrf import AddressPolicy, is_public
from airflow_provider_luma.download.staging import StagedFile
from airflow_provider_luma.download.transport import Transport
from airflow_provider_luma.exceptions import DownloadError, UnsafeURLError
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse

RELAY = "https://relay.example.com"
STRICT = AddressPolicy(RELAY)

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.192", "192.0.0.8", "168.63.129.16",
    "100.100.100.200", "198.18.0.1", "192.0.2.1", "192.88.99.1", "::1", "::", "fe80::1%eth0", "fc00::1",
    "fd00:ec2::254", "fec0::1", "::10.0.0.1", "::1.1.1.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "64:ff9b:1::a9fe:a9fe", "2002:0a00:0001::1",
    "2002:a9fe:a9fe::", "2001::1", "2001:db8::1", "100::1", "3fff::1", "5f00::1", "ff02::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_a_socket_to_an_address_that_is_not_public_is_rejected(address: str) -> None:
    with pytest.raises(UnsafeURLError, match=r"cdn\.example\.com.*allowed_download_hosts"):
        STRICT.check_peer("cdn.example.com", 443, address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"])
def test_public_addresses_pass(address: str) -> None:
    STRICT.check_peer("cdn.example.com", 443, address)
    STRICT.check_host(address, 443)
    assert is_public(ipaddress.ip_address(address))


FORMS = [
    *PRIVATE, "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0", "[::1]",
    "[::ffff:a9fe:a9fe]",
    "169.254.169.254.", "localhost", "LOCALHOST.", "a.localhost", "metadata.google.internal", "printer.local",
    "metadata", "router.home.arpa",
]  # fmt: skip


@pytest.mark.parametrize("host", FORMS)
def test_literals_and_local_names_are_rejected_before_any_name_is_resolved(host: str) -> None:
    with pytest.raises(UnsafeURLError):
        STRICT.check_host(host, 80)


def test_only_the_relays_own_origin_and_allowed_hosts_may_be_private() -> None:
    policy = AddressPolicy("http://10.0.0.1:8080", ["cdn.internal", "10.0.0.7"])
    policy.check_host("10.0.0.1", 8080)
    policy.check_peer("10.0.0.1", 8080, "10.0.0.1")
    policy.check_host("CDN.internal.", 443)
    policy.check_peer("CDN.internal", 443, "10.0.0.2")
    policy.check_host("10.0.0.7", 80)
    with pytest.raises(UnsafeURLError):
        policy.check_host("10.0.0.1", 22)
    with pytest.raises(UnsafeURLError):
        policy.check_peer("10.0.0.1", 22, "10.0.0.1")


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """Yield an address on loopback, and what it is sent."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    received.append(connection.recv(1000))

        threading.Thread(target=listen, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", received


def download(transport: Transport, url: str, file: StagedFile) -> None:
    Downloader(transport).download(Link(lambda: None, url, timeout=0), file, "video", "a film")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "①②⑦.⓪.⓪.①", "127。0。0。1"])
def test_nothing_is_sent_to_a_rejected_host(file: StagedFile, host: str) -> None:
    with listening() as (address, received), pytest.raises(DownloadError):
        download(Transport(STRICT), f"http://{host}:{address.partition(':')[2]}/x.mp4?sig=hush", file)
    assert b"".join(received) == b""


def test_a_public_name_that_resolves_to_a_private_address_is_rejected(
    file: StagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: original("127.0.0.1", *rest, **named)
    )
    with listening() as (address, received), pytest.raises(UnsafeURLError, match=r"127\.0\.0\.1"):
        download(Transport(STRICT), f"http://cdn.example.com:{address.partition(':')[2]}/x.mp4", file)
    assert b"".join(received) == b""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["169.254.169.254", "10.0.0.5", "[::1]", "0x7f.1", "metadata.google.internal"]
)
def test_a_proxy_gets_no_request_for_a_private_address(file: StagedFile, scheme: str, host: str) -> None:
    with listening() as (address, received):
        proxies = dict.fromkeys(("http", "https"), f"http://{address}")
        with pytest.raises(UnsafeURLError):
            download(Transport(STRICT, proxies=proxies), f"{scheme}://{host}/latest/meta-data", file)
    assert received == []


def test_each_redirect_is_validated(sandbox: Sandbox, file: StagedFile) -> None:
    sandbox.script_downloads(ScriptedResponse(status=302, headers={"Location": f"{sandbox.base_url}/x"}))
    with pytest.raises(UnsafeURLError):
        download(Transport(AddressPolicy(sandbox.cdn_url)), f"{sandbox.cdn_url}/a.mp4", file)
    assert len(sandbox.downloads) == 1
    assert sandbox.requests == []
