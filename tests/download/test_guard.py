from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from airflow_provider_luma.download.download import Downloader
from airflow_provider_luma.download.guard import _GuardedAdapter, guarded_session
from airflow_provider_luma.download.staging import StagedFile
from airflow_provider_luma.exceptions import UnsafeURLError
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer

RELAY = "https://relay.example.com"


@pytest.fixture
def strict() -> Iterator[requests.Session]:
    with guarded_session(relay_url=RELAY, allowed_hosts=[], connections=1) as session:
        yield session


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
     "224.0.0.1", "::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(UnsafeURLError, match=r"cdn\.example\.com.*allowed_download_hosts"):
        _GuardedAdapter(RELAY, [], 1).check("cdn.example.com", 443, address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_pass(address: str) -> None:
    _GuardedAdapter(RELAY, [], 1).check("cdn.example.com", 443, address)


def test_only_the_relays_own_origin_and_allowed_hosts_may_be_elsewhere() -> None:
    adapter = _GuardedAdapter("http://10.0.0.1:8080", ["cdn.internal"], 1)
    adapter.check("10.0.0.1", 8080, "10.0.0.1")
    adapter.check("CDN.internal", 443, "10.0.0.2")
    with pytest.raises(UnsafeURLError):
        adapter.check("10.0.0.1", 22, "10.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nothing_is_sent_to_a_refused_host(strict: requests.Session, host: str) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(1000))

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(UnsafeURLError):
            strict.get(f"http://{host}:{listener.getsockname()[1]}/video.mp4?sig=secret", timeout=5)
        thread.join(5)
    assert heard == [b""]


def test_each_redirect_is_judged(sandbox: Sandbox, file: StagedFile) -> None:
    with guarded_session(relay_url=sandbox.cdn_url, allowed_hosts=[], connections=1) as session:
        sandbox.script_downloads(ScriptedAnswer(status=302, headers={"Location": f"{sandbox.base_url}/x"}))
        with pytest.raises(UnsafeURLError):
            Downloader(session, attempts=1).fetch(f"{sandbox.cdn_url}/a.mp4", file)
    assert len(sandbox.downloads) == 1
    assert sandbox.requests == []


def test_no_credentials_of_a_netrc_are_used(
    sandbox: Sandbox,
    downloader: Downloader,
    file: StagedFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password hush\n")
    monkeypatch.setenv("NETRC", str(netrc))
    sandbox.script_downloads(ScriptedAnswer(body=b"film", content_type="video/mp4"))
    downloader.fetch(f"{sandbox.cdn_url}/a.mp4", file)
    assert "authorization" not in sandbox.downloads[0].headers
