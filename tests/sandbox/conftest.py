from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_luma.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


class Client(requests.Session):
    """Asks a sandbox as its user would; no proxy of the environment comes between."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False

    def query(self, sandbox: Sandbox, task_ids: object, **headers: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {sandbox.api_key}", **headers}
        return self.post(f"{sandbox.base_url}/luma/tasks", json={"ids": task_ids}, headers=headers, timeout=5)

    def tasks(self, sandbox: Sandbox, *task_ids: str) -> dict[str, Any]:
        """Return the rows of these tasks, or of all, in a bare sandbox, by task id."""
        return {task["id"]: task for task in self.query(sandbox, task_ids or sandbox.task_ids).json()}

    def link(self, sandbox: Sandbox, task_id: str) -> str:
        return str(self.tasks(sandbox, task_id)[task_id]["video"]["download_url"])


@pytest.fixture
def uvicorn_log(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """Collect what uvicorn logs, which should be nothing, while the test runs."""
    records: list[logging.LogRecord] = []

    def collect(record: logging.LogRecord) -> bool:
        if is_uvicorn := record.name.startswith("uvicorn"):
            records.append(record)
        return not is_uvicorn

    caplog.handler.addFilter(collect)
    yield records
    caplog.handler.removeFilter(collect)  # pytest has one handler for all tests


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def finished() -> Iterator[Sandbox]:
    """Three tasks that are completed already."""
    with Sandbox(tasks=3, seconds=0, fail=0) as sandbox:
        yield sandbox
