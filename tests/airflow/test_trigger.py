from __future__ import annotations

import asyncio
import importlib
import json
import math
import time
from typing import Any

import pytest

from airflow_provider_luma.exceptions import TriggerEventError
from airflow_provider_luma.relay import LumaTask, TaskBatch, TaskState
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.relay.schedule import PollSchedule
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.sensors.luma import MYSQL_MAX_IDS, LumaTaskSensor
from airflow_provider_luma.triggers.luma import LumaTaskTrigger


def trigger(ids: list[str], *, started_at: float | None = None, **arguments: Any) -> LumaTaskTrigger:
    arguments = {"timeout": 20, "poke_interval": 0.2} | arguments
    batch = TaskBatch(ids, started_at=time.time() if started_at is None else started_at)
    return LumaTaskTrigger(
        luma_task_ids=ids, luma_conn_id="luma_default", **{"state": batch.dump()} | arguments
    )


def summary_of(event: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    batch = TaskBatch.load(ids, event["state"])
    assert batch is not None
    return batch.result.summary()


def settled(ids: list[str], **states: str) -> dict[str, Any]:
    """Return the state of a batch in which these ids have ended."""
    batch = TaskBatch(ids, started_at=time.time(), missing_grace=0)
    tasks = {i: LumaTask(i, TaskState(s), raw={"failure_reason": "why"}) for i, s in states.items()}
    batch.update([i for i in ids if i in states], tasks, now=time.time())
    return batch.dump()


def rebuilt(trigger: LumaTaskTrigger) -> LumaTaskTrigger:
    """Take a trigger the way it goes over the database to the triggerer."""
    from airflow.models.trigger import Trigger

    stored = Trigger.from_object(trigger)
    module, _, name = stored.classpath.rpartition(".")
    return getattr(importlib.import_module(module), name)(**stored.kwargs)


async def event_of(trigger: LumaTaskTrigger) -> dict[str, Any]:
    events = [event.payload async for event in trigger.run()]
    assert len(events) == 1
    return events[0]


def fire(trigger: LumaTaskTrigger) -> dict[str, Any]:
    return asyncio.run(event_of(trigger))


def test_the_trigger_survives_airflows_serialization() -> None:
    original = trigger(
        ["a", "b"],
        polled_at=1.5,
        max_wait=7.5,
        state=settled(["a", "b"], a="failed"),
        fail_fast=True,
    )
    assert rebuilt(original).serialize() == original.serialize()
    assert rebuilt(original).serialize()[0] == "airflow_provider_luma.triggers.luma.LumaTaskTrigger"


def test_it_carries_no_secret(sandbox: Sandbox) -> None:
    sandbox.api_key = "sk-very-secret"
    assert "sk-very-secret" not in json.dumps(trigger(["a"]).serialize())


def test_the_done_event_has_the_outcome_of_every_id(sandbox: Sandbox) -> None:
    ids = [
        "before",
        sandbox.add_task(seconds=0),
        sandbox.add_task(seconds=0.3, failure_reason="moderation"),
        "nowhere",
    ]
    event = fire(trigger(ids, missing_grace=0.3, state=settled(ids, before="failed")))
    assert event["status"] == "done"
    assert summary_of(event, ids) == {
        "completed": 1,
        "failed": {"before": "why", ids[2]: "moderation"},
        "missing": ["nowhere"],
        "running": [],
    }
    assert not [request for request in sandbox.requests if "before" in (request.ids or ())]


def test_a_timeout_comes_at_the_deadline_after_a_last_poll(sandbox: Sandbox) -> None:
    started = time.time()
    ids = [sandbox.add_task(seconds=math.inf)]
    # A short interval may have a point of the common grid within the second.
    event = fire(trigger(ids, timeout=1, poke_interval=24 * 3600, polled_at=started))
    assert event["status"] == "timeout"
    assert summary_of(event, ids)["running"] == ids
    assert 1 <= time.time() - started < 2
    assert len(sandbox.requests) == 1


def test_a_deadline_that_passed_during_an_outage_still_gets_one_poll(sandbox: Sandbox) -> None:
    long_ago = time.time() - 3600
    done, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    assert fire(trigger([done], started_at=long_ago, timeout=60))["status"] == "done"
    assert fire(trigger([endless], started_at=long_ago, timeout=60))["status"] == "timeout"


def test_a_response_that_hangs_past_the_deadline_does_not_delay_the_trigger(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_luma.triggers.subscription.LAST_POLL_SECONDS", 0.2)
    sandbox.script(ScriptedResponse(body=[], delay=20))
    started = time.monotonic()
    assert fire(trigger([sandbox.add_task()], timeout=0.3))["status"] == "timeout"
    assert time.monotonic() - started < 2


def test_a_restart_does_not_extend_the_deadline(sandbox: Sandbox) -> None:
    started_at = time.time() - 595
    first = trigger([sandbox.add_task(seconds=math.inf)], started_at=started_at, timeout=600)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(event_of(first), 1))
    restarted = time.time()
    assert fire(rebuilt(first))["status"] == "timeout"
    assert time.time() - restarted < 100


def test_an_id_left_out_once_after_an_outage_of_the_triggerer_is_not_missing(sandbox: Sandbox) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script(ScriptedResponse(body=[]))
    event = fire(trigger([task_id], started_at=time.time() - 3600, timeout=7200, missing_grace=120))
    assert summary_of(event, [task_id])["completed"] == 1


def test_an_absence_of_the_sensors_poll_ends_with_a_sighting_before_a_restart(sandbox: Sandbox) -> None:
    from airflow.providers.common.compat.sdk import TaskDeferred

    task_id = sandbox.add_task(seconds=math.inf)
    sandbox.script(ScriptedResponse(body=[]))
    sensor = LumaTaskSensor(
        task_id="wait", luma_task_ids=[task_id], deferrable=True, poke_interval=0.2, missing_grace=1
    )
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(Context())
    before = rebuilt(deferred.value.trigger)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(event_of(before), 2))
    assert len(sandbox.requests) > 2
    sandbox.script(ScriptedResponse(body=[]), ScriptedResponse(body=[{"id": task_id, "state": "completed"}]))
    event = fire(rebuilt(before))
    assert summary_of(event, [task_id])["completed"] == 1


def test_the_sensors_poll_is_not_repeated_before_the_interval_is_over(sandbox: Sandbox) -> None:
    started = time.time()
    fire(trigger([sandbox.add_task(seconds=0)], polled_at=started, not_before=started + 0.8))
    assert time.time() - started >= 0.8
    assert len(sandbox.requests) == 1


def test_a_relay_error_becomes_an_error_event_with_the_relays_message(
    sandbox: Sandbox, quick_retries: RetryPolicy
) -> None:
    sandbox.script(*[ScriptedResponse(status=503, body={"message": "no channel"})] * 9)
    event = fire(trigger([sandbox.add_task()]))
    assert event["status"] == "error"
    assert event["error"]["type"] == "RelayTransientError"
    assert event["error"]["status"] == 503
    assert "no channel" in event["error"]["message"]


def test_a_connection_that_cannot_be_used_becomes_an_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", '{"conn_type": "luma"}')
    event = fire(trigger(["a"]))
    assert event["error"]["type"] == "LumaValueError"
    assert "no password" in event["error"]["message"]


def test_a_bug_is_raised_and_not_blamed_on_the_relay(sandbox: Sandbox) -> None:
    with pytest.raises(TypeError):
        fire(trigger([sandbox.add_task(seconds=math.inf)], poke_interval="soon"))


def test_ten_thousand_failures_of_three_hundred_characters_fit_into_an_event(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0, failure_reason=f"{n} {'x' * 400}") for n in range(10_000)]
    event = fire(trigger(ids))
    assert len(json.dumps(event)) < 64_000
    arguments = rebuilt(trigger(ids, state=event["state"])).serialize()[1]
    assert len(json.dumps(arguments | {"luma_task_ids": []})) < 64_000
    summary = summary_of(event, ids)
    assert len(json.dumps(summary)) < 64_000
    assert len(summary["failed"]) + summary["failed_not_listed"] == 10_000
    assert all("cut" in reason for reason in summary["failed"].values())


@pytest.mark.parametrize("letter", ["x", "\U0001f600"])
def test_the_arguments_of_a_trigger_of_700_ids_fit_into_a_column_of_mysql(letter: str) -> None:
    from airflow.models.trigger import Trigger

    ids = [f"{n:08}-7641-4809-a133-10786201bb56" for n in range(MYSQL_MAX_IDS)]
    batch = TaskBatch(ids, started_at=time.time())
    for n, task_id in enumerate(ids[:-100]):
        failed = LumaTask(task_id, TaskState.FAILED, raw={"failure_reason": f"{n} {letter * 290}"})
        batch.update([task_id], {task_id: failed}, now=time.time())
    for n, task_id in enumerate(ids[-100:]):
        batch.update([task_id], {}, now=time.time() + n / 7)
    stored = Trigger.from_object(trigger(ids, state=batch.dump(), polled_at=time.time(), max_wait=7.5))
    assert len(stored.encrypted_kwargs) < 2**16


def test_ten_thousand_failures_with_the_same_reason_keep_it_complete(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0, failure_reason="moderation") for _ in range(10_000)]
    batch = TaskBatch.load(ids, fire(trigger(ids))["state"])
    assert batch is not None
    assert batch.result.failed == dict.fromkeys(ids, "moderation")


class Context(dict[str, Any]):
    """The little that ``execute_complete`` needs of a running task: somewhere to push to."""

    map_index = -1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        super().__init__(ti=self)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        {"status": "success"},
        "done",
        {"status": "done"},
        {"status": "done", "state": {"version": 0}},
    ],
)
def test_a_lost_or_unknown_event_fails_loudly(event: Any) -> None:
    sensor = LumaTaskSensor(task_id="wait", luma_task_ids=["a"], soft_fail=True)
    with pytest.raises(TriggerEventError, match="lost or invalid"):
        sensor.execute_complete(Context(), event)


@pytest.mark.parametrize(
    ("arguments", "waits"),
    [
        ({"poke_interval": 60}, [60, 60, 60]),
        ({"poke_interval": 60, "max_wait": 20}, [20, 20, 20]),
        ({"poke_interval": 60, "exponential_backoff": True}, [30, 60, 120, 240]),
        ({"poke_interval": 60, "exponential_backoff": True, "max_wait": 100}, [30, 60, 100, 100]),
        ({"poke_interval": 1, "exponential_backoff": True}, [1, 1, 2, 4]),
    ],
)
def test_poll_intervals_grow_by_the_sensors_backoff(arguments: dict[str, Any], waits: list[float]) -> None:
    # From a moment on the grid, where nothing is drawn back.
    schedule = PollSchedule(**arguments)
    moment = 60_000_000
    for polls, seconds in enumerate(waits, start=1):
        assert schedule.next_poll(moment, polls) - moment == seconds


@pytest.mark.parametrize("polls", [1_025, 10**9])
def test_no_number_of_polls_overflows(polls: int) -> None:
    schedule = PollSchedule(60, exponential_backoff=True)
    assert math.isfinite(schedule.next_poll(time.time(), polls))
    assert PollSchedule(60, exponential_backoff=True, max_wait=600).interval(polls) == 600
    assert math.isfinite(schedule.interval_after(1e12))


def test_triggers_that_started_apart_poll_together_from_the_second_poll_on() -> None:
    schedule = PollSchedule(60)
    assert {schedule.next_poll(6000 + started, 1) for started in range(60)} == {6060}
    assert {schedule.next_poll(6007 + started, 1, offset=7) for started in range(60)} == {6067}


def test_a_killed_trigger_names_the_luma_tasks_that_are_still_running(
    connect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def kill(waiting: LumaTaskTrigger) -> None:
        """End it as the triggerer does for a user."""
        task = asyncio.create_task(event_of(waiting))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await waiting.on_kill()

    with Sandbox(tasks=0, seconds=60) as sandbox:
        connect(sandbox)
        ids = [sandbox.add_task(seconds=0), sandbox.add_task(), sandbox.add_task()]
        asyncio.run(kill(trigger(ids)))
    assert (
        "The wait was stopped. 2 Luma tasks are still running at the relay, and are charged: "
        f"{ids[1]}, {ids[2]}" in capsys.readouterr().out
    )
