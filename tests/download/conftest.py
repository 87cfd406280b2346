from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.arguments import IfExists
from airflow_provider_luma.download.downloader import Downloader, DownloadLimits
from airflow_provider_luma.download.fresh_links import FreshLinks
from airflow_provider_luma.download.pool import DownloadPool, DownloadResult
from airflow_provider_luma.download.ssrf import AddressPolicy
from airflow_provider_luma.download.staging import StagedFile, Staging
from airflow_provider_luma.download.stores.base import NamedStore
from airflow_provider_luma.download.stores.s3 import PART_BYTES
from airflow_provider_luma.download.task_download import DownloadOptions, TaskDownloader
from airflow_provider_luma.download.transport import Transport
from airflow_provider_luma.operators.destination import open_store
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.sandbox import Sandbox
from tests.serving import Quiet, serving

Run = Callable[..., DownloadResult]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tasks=0) as sandbox:
        yield sandbox


@pytest.fixture
def stopped() -> threading.Event:
    return threading.Event()


def create_downloader(stopped: threading.Event | None = None, **limits: Any) -> Downloader:
    """May download from loopback; retries soon, and at most three attempts in a row without progress."""
    transport = Transport(AddressPolicy("https://relay.example.com", ["127.0.0.1"]), timeout=5)
    return Downloader(
        transport, DownloadLimits(**{"max_attempts": 3, "initial_delay": 0.05} | limits), stopped=stopped
    )


@pytest.fixture
def downloader(stopped: threading.Event) -> Downloader:
    return create_downloader(stopped)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    (tmp_path / "staging").mkdir()
    return Staging(str(tmp_path / "staging"), crc32_above=PART_BYTES)


@pytest.fixture
def file(staging: Staging) -> Iterator[StagedFile]:
    with staging.file() as file:
        yield file


@pytest.fixture
def chunked_server() -> Iterator[str]:
    """A server that sends without end and gives no length: the URL of its file."""

    class Endless(Quiet):
        def do_GET(self) -> None:
            self.respond(b"", "video/mp4")
            with suppress(OSError):
                while True:
                    self.wfile.write(b"film" * 10_000)

    with serving(Endless) as address:
        yield f"{address}/film.mp4"


@pytest.fixture
def store(destination_url: str) -> NamedStore:
    return NamedStore(open_store(destination_url, None, max_parallel=8, fsync=True))


@pytest.fixture
def relay(sandbox: Sandbox) -> RelayClient:
    return RelayClient(sandbox.api_key, sandbox.base_url)


@pytest.fixture
def run(
    sandbox: Sandbox, relay: RelayClient, stopped: threading.Event, store: NamedStore, staging: Staging
) -> Run:
    """Download the videos of these ids, or of all, into the store."""

    def run(ids: list[str] | None = None, **arguments: Any) -> DownloadResult:
        limits = {
            key: arguments.pop(key) for key in list(arguments) if key in DownloadLimits.__dataclass_fields__
        }
        downloader = create_downloader(stopped, **{"link_timeout": 5} | limits)
        task_downloader = TaskDownloader(
            downloader,
            FreshLinks(relay.query_once).get,
            store,
            staging,
            DownloadOptions(**{"if_exists": IfExists.SKIP} | arguments),
        )
        sandbox.downloads.clear()
        tasks = relay.get_tasks(ids or sandbox.task_ids)
        return DownloadPool(task_downloader).download(list(tasks.values()))

    return run
