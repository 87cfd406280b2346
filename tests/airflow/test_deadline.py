"""
What an error means when the wait is nearly or just over, and which errors ``silent_fail`` tolerates.

One rule in every mode: a permanent error ends the wait. So does any other error unless ``silent_fail`` is
set; from the deadline on it counts as the timeout that it leads to. The last poll ends a moment after it.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import pytest

from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from tests.airflow.harness import AIRFLOW, run_source
from tests.airflow.sensor_harness import Wait, ended, responses, summary
from tests.airflow.test_poller import event_of, trigger

pytestmark = pytest.mark.usefixtures("airflow_db")

POLICIES = [({}, "failed"), ({"soft_fail": True}, "skipped"), ({"never_fail": True}, "skipped")]
POLICIES += [({"silent_fail": True}, "failed")]


@pytest.fixture
def short_last_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last poll may take half a second beyond the deadline: the same, on a faster clock."""
    for module in ("sensors.wait", "triggers.subscription"):
        monkeypatch.setattr(f"airflow_provider_luma.{module}.LAST_POLL_SECONDS", 0.5)


@pytest.mark.parametrize("before", [0, 1], ids=["at_once", "in_the_middle"])
@pytest.mark.parametrize(("policy", "state"), POLICIES)
@pytest.mark.usefixtures("short_last_poll")
def test_errors_that_last_beyond_the_deadline_are_a_timeout(
    wait: Wait, sandbox: Sandbox, policy: dict[str, Any], state: str, before: int
) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    running = ScriptedResponse(body=[{"id": endless, "state": "processing"}])
    sandbox.script(*[running] * before, *responses(*[503] * 99))
    run = wait([endless], timeout=1.5, **policy)
    assert ended(run, state)
    assert run.xcom("wait", "luma_summary") == summary(0, running=[endless])


@pytest.mark.usefixtures("quick_retries")
def test_errors_before_the_deadline_use_airflows_retries(wait: Wait, sandbox: Sandbox) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    sandbox.script(ScriptedResponse(body=[{"id": endless, "state": "processing"}]), *responses(*[503] * 99))
    assert ended(wait([endless], timeout=60, soft_fail=True), "failed", tries=2)


@pytest.mark.parametrize("before", [0, 1], ids=["at_once", "in_the_middle"])
@pytest.mark.parametrize(("policy", "state"), POLICIES)
@pytest.mark.usefixtures("short_last_poll")
def test_a_last_response_that_is_too_slow_is_a_timeout(
    wait: Wait, sandbox: Sandbox, policy: dict[str, Any], state: str, before: int
) -> None:
    task_id = sandbox.add_task(seconds=math.inf)
    running = ScriptedResponse(body=[{"id": task_id, "state": "processing"}])
    completed = ScriptedResponse(body=[{"id": task_id, "state": "completed"}], delay=20)
    sandbox.script(*[running] * before, *[completed] * 9)
    started = time.monotonic()
    run = wait([task_id], timeout=1.5, **policy)
    assert ended(run, state)
    assert run.xcom("wait", "luma_summary") == summary(0, running=[task_id])
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("policy", [{}, {"soft_fail": True}, {"silent_fail": True}])
def test_a_last_response_that_is_a_little_slow_counts(
    wait: Wait, sandbox: Sandbox, policy: dict[str, Any]
) -> None:
    task_id = sandbox.add_task(seconds=math.inf)
    sandbox.script(ScriptedResponse(body=[{"id": task_id, "state": "completed"}], delay=2))
    run = wait([task_id], timeout=1, **policy)
    assert ended(run, "success")
    assert run.xcom("wait") == [task_id]


def test_a_rate_limit_of_the_last_poll_is_waited_out(wait: Wait, sandbox: Sandbox) -> None:
    task_id = sandbox.add_task(seconds=0)
    running = ScriptedResponse(body=[{"id": task_id, "state": "processing"}])
    sandbox.script(running, *responses(429, headers={"Retry-After": "1"}))
    run = wait([task_id], timeout=2, poke_interval=60)
    assert ended(run, "success")
    assert run.xcom("wait") == [task_id]
    assert len(sandbox.requests) == 3


def test_a_rate_limit_that_ends_just_after_the_deadline_is_waited_out(
    wait: Wait, sandbox: Sandbox, mode: str
) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script(*responses(429, headers={"Retry-After": "4"}))
    run = wait([task_id], timeout=2)
    assert ended(run, "success")
    assert run.xcom("wait") == [task_id]
    first, last = sandbox.requests
    remembers = mode != "reschedule" or AIRFLOW >= (3, 3)
    assert last.at - first.at >= (4 if remembers else 2)


@pytest.mark.usefixtures("short_last_poll")
def test_a_rate_limit_that_outlasts_the_last_poll_is_a_timeout(
    wait: Wait, sandbox: Sandbox, mode: str
) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script(*responses(*[429] * 9, headers={"Retry-After": "30"}))
    run = wait([task_id], timeout=2)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(0, running=[task_id])
    remembers = mode != "reschedule" or AIRFLOW >= (3, 3)
    assert len(sandbox.requests) == (1 if remembers else 2)


@pytest.mark.usefixtures("short_last_poll")
def test_a_rejected_key_is_never_a_timeout(wait: Wait, sandbox: Sandbox, capsys: Any) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    sandbox.script(*[ScriptedResponse(401, {"message": "no such key"}, delay=1)] * 9)
    assert ended(wait([endless], timeout=0.7), "failed")
    assert "no such key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("policy", "state", "tries"),
    [
        ({}, "failed", 2),
        ({"soft_fail": True}, "failed", 2),
        ({"never_fail": True}, "skipped", 1),
        ({"silent_fail": True}, "failed", 1),
        ({"silent_fail": True, "soft_fail": True}, "skipped", 1),
    ],
)
def test_a_missing_connection_may_be_created_later(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any], state: str, tries: int
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT", raising=False)
    run = wait(["a"], timeout=2, **policy)
    assert ended(run, state, tries)
    assert run.xcom("wait", "luma_summary") == summary(0, running=["a"])


@pytest.mark.parametrize(
    ("policy", "state"),
    [({}, "failed"), ({"soft_fail": True}, "skipped"), ({"silent_fail": True}, "failed")],
)
def test_a_connection_without_a_key_fails_at_once(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any], state: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", '{"conn_type": "luma"}')
    assert ended(wait(["a"], timeout=300, **policy), state)


@pytest.mark.parametrize(
    ("connection", "policy", "states"),
    [
        (None, {"silent_fail": True, "timeout": 2}, {"failed"}),
        (None, {"silent_fail": True, "soft_fail": True, "timeout": 2}, {"skipped"}),
        (None, {"never_fail": True}, {"skipped"}),
        ('{"conn_type": "luma"}', {"silent_fail": True, "soft_fail": True}, {"skipped"}),
        ('{"conn_type": "luma"}', {"silent_fail": True}, {"failed"}),
    ],
)
def test_the_triggerer_treats_a_connection_alike(
    monkeypatch: pytest.MonkeyPatch, connection: str | None, policy: dict[str, Any], states: set[str]
) -> None:
    """A mapped sensor leaves its first poll to the triggerer."""
    monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT", raising=False)
    if connection:
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection)
    arguments = {"retries": 1, "retry_delay": 0, "poke_interval": 0.3, "deferrable": True} | policy
    run = run_source(
        "mapped",
        f"""
        from airflow.sdk import DAG
        from airflow_provider_luma.sensors.luma import LumaTaskSensor

        with DAG("mapped", schedule=None) as dag:
            LumaTaskSensor.partial(task_id="wait", **{arguments!r}).expand(luma_task_ids=[["a"]])
        """,
    )
    assert set(run.states.values()) == states
    assert set(run.tries.values()) == {1}


def test_a_connection_that_comes_back_is_used_under_silent_fail(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def coming_back() -> dict[str, Any]:
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        waiting = asyncio.create_task(event_of(trigger(sandbox.add_task(seconds=0), silent_fail=True)))
        await asyncio.sleep(1)
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(sandbox.connection))
        return await waiting

    assert asyncio.run(coming_back())["status"] == "done"
