from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.sandbox import Sandbox
from tests.airflow.harness import AIRFLOW
from tests.airflow.sensor_harness import MODES, Wait, waiter


@pytest.fixture(scope="session")
def airflow_db() -> None:
    from airflow.utils.db import initdb

    initdb()
    if AIRFLOW == (3, 0):
        _send_dates_as_supervisors_do()


def _send_dates_as_supervisors_do() -> None:
    """``dag.test()`` of Airflow 3.0 leaves out a trip through JSON, without which a date is a text."""
    from airflow.sdk.api.client import TaskInstanceOperations
    from airflow.sdk.execution_time.comms import TaskRescheduleStartDate

    original = TaskInstanceOperations.get_reschedule_start_date

    def sent(self: Any, *arguments: Any, **named: Any) -> TaskRescheduleStartDate:
        response = original(self, *arguments, **named)
        return TaskRescheduleStartDate.model_validate({"start_date": response.start_date})

    TaskInstanceOperations.get_reschedule_start_date = sent


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the connection ``luma_default`` lead to a sandbox, with more extra fields as given."""

    def connect(sandbox: Sandbox, **extra: object) -> None:
        connection = sandbox.connection
        connection["extra"] |= extra
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(connection))

    return connect


@pytest.fixture
def sandbox(connect: Callable[..., None]) -> Iterator[Sandbox]:
    """A relay without tasks, which ``luma_default`` leads to."""
    with Sandbox(tasks=0) as sandbox:
        connect(sandbox)
        yield sandbox


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> RetryPolicy:
    """Retries give up after three attempts and a fraction of a second: the same, on a faster clock."""
    policy = RetryPolicy(max_attempts=3, initial_delay=0.05, max_delay=1)
    monkeypatch.setattr("airflow_provider_luma.relay.client.RetryPolicy", lambda: policy)
    return policy


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def wait(mode: str) -> Wait:
    """Run a DAG of one sensor in each mode."""
    return waiter(mode)
