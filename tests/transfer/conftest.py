from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from airflow_provider_luma.sandbox import Sandbox
from airflow_provider_luma.transfer.download import Downloader
from airflow_provider_luma.transfer.guard import guarded_session


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
