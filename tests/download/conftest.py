from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.download.download import Downloader
from airflow_provider_luma.download.guard import guarded_session
from airflow_provider_luma.download.staging import StagedFile, Staging
from airflow_provider_luma.sandbox import Sandbox
from tests.serving import Quiet, serving


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tasks=0) as sandbox:
        yield sandbox


@pytest.fixture
def stopped() -> threading.Event:
    return threading.Event()


@pytest.fixture
def downloader(sandbox: Sandbox, stopped: threading.Event) -> Iterator[Downloader]:
    """May download from loopback; begins a download up to three times."""
    with guarded_session(relay_url=sandbox.base_url, allowed_hosts=["127.0.0.1"], connections=8) as session:
        yield Downloader(session, timeout=5, stopped=stopped, attempts=3)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    (tmp_path / "staging").mkdir()
    return Staging(str(tmp_path / "staging"))


@pytest.fixture
def file(staging: Staging) -> Iterator[StagedFile]:
    with staging.file() as file:
        yield file


@pytest.fixture
def chunked_server() -> Iterator[str]:
    """A server that sends without end and does not tell how much: the link to it."""

    class Endless(Quiet):
        def do_GET(self) -> None:
            self.answer(b"", "video/mp4")
            with suppress(OSError):
                while True:
                    self.wfile.write(b"film" * 10_000)

    with serving(Endless) as address:
        yield f"{address}/film.mp4"


@pytest.fixture
def destination(destination_url: str) -> ObjectStoragePath:
    return ObjectStoragePath(destination_url)
