"""A wait that goes over several processes: rescheduled, deferred, cleared, or left alone by its trigger."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, TaskDeferred

from airflow_provider_luma.airflow_exceptions import LumaTaskFailedError
from airflow_provider_luma.airflow_version import AirflowRescheduleException, TaskDeferralError
from airflow_provider_luma.relay import LumaTask, TaskBatch, TaskState
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.sensors.luma import LumaTaskSensor


class Store:
    """Keeps values the way Airflow's task state store does, as JSON, over processes, retries and clears."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.is_down = False
        self.is_read_only = False

    def get(self, key: str, default: Any = None) -> Any:
        self._check()
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key: str, value: Any) -> None:
        self._check()
        if self.is_read_only:
            raise RuntimeError("the database is read-only")
        self.values[key] = json.dumps(value)

    def _check(self) -> None:
        if self.is_down:
            raise RuntimeError("the API server is not there")


class Process(dict[str, Any]):
    """
    The context of one process that runs the task, and its task instance.

    :param first: when the task was first rescheduled.
    :param reschedules: how often it was; default: once, where there is a ``first``.
    :param of_try: which try of the task this is a process of: Airflow gives each an id.
    """

    map_index = -1

    def __init__(
        self,
        store: Store | None = None,
        first: datetime | None = None,
        reschedules: int | None = None,
        of_try: int = 1,
    ) -> None:
        self.id = UUID(int=of_try)
        self.pushed: dict[str, Any] = {}
        self._first = first
        count = reschedules if reschedules is not None else int(first is not None)
        kept = {} if store is None else {"task_state_store": store}
        super().__init__({"ti": self, "task_reschedule_count": count} | kept)

    def get_first_reschedule_date(self, context: Any) -> datetime | None:
        return self._first

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def sensor(*ids: str, **arguments: Any) -> LumaTaskSensor:
    arguments = {"poke_interval": 1, "timeout": 60} | arguments
    return LumaTaskSensor(task_id="wait", luma_task_ids=list(ids), **arguments)


def poll(process: Process, *ids: str, **arguments: Any) -> datetime:
    """Run one process of a rescheduled sensor, and return when the next one is due."""
    with pytest.raises(AirflowRescheduleException) as caught:
        sensor(*ids, mode="reschedule", **arguments).execute(process)
    due: datetime = caught.value.reschedule_date
    return due


def now() -> datetime:
    return datetime.now(UTC)


def event(status: str, *ids: str, started_at: float | None = None, **states: str) -> dict[str, Any]:
    batch = TaskBatch(ids, started_at=started_at or time.time())
    batch.update(list(states), {i: LumaTask(i, TaskState(s)) for i, s in states.items()}, now=time.time())
    return json.loads(json.dumps({"status": status, "state": batch.dump()}))


def test_a_cleared_sensor_does_not_remember_what_was_missing_before(sandbox: Sandbox) -> None:
    store, endless = Store(), sandbox.add_task(seconds=math.inf)
    ids = ["late", endless]

    def missing() -> tuple[str, ...]:
        return TaskBatch.load(ids, store.get("luma_wait")["state"]).result.missing

    poll(Process(store), *ids, missing_grace=0, fail_when="never")
    poll(Process(store, first=now()), *ids, missing_grace=0, fail_when="never")
    assert missing() == ("late",)
    sandbox.add_task(task_id="late", seconds=math.inf)
    poll(Process(store, of_try=2), *ids, missing_grace=0, fail_when="never")
    poll(Process(store, first=now(), of_try=2), *ids, missing_grace=0, fail_when="never")
    assert missing() == ()
    assert [request.ids for request in sandbox.requests] == [ids] * 4


@pytest.mark.parametrize("fault", ["is_down", "is_read_only"])
def test_a_try_that_could_not_save_its_state_does_not_resume_that_of_the_try_before(
    sandbox: Sandbox, fault: str
) -> None:
    store, endless = Store(), sandbox.add_task(seconds=math.inf)
    ids = ["late", endless]
    poll(Process(store), *ids, missing_grace=0, fail_when="never")
    poll(Process(store, first=now()), *ids, missing_grace=0, fail_when="never")
    record = json.loads(store.values["luma_wait"])
    record["state"]["started_at"] -= 7200
    store.values["luma_wait"] = json.dumps(record)
    sandbox.add_task(task_id="late", seconds=math.inf)
    setattr(store, fault, True)
    poll(Process(store, of_try=2), *ids, timeout=3600)
    setattr(store, fault, False)
    poll(Process(store, first=now(), of_try=2), *ids, timeout=3600)
    assert sandbox.requests[-1].ids == ids


def test_a_rescheduled_sensor_queries_only_pending_ids(sandbox: Sandbox) -> None:
    store, first = Store(), now()
    ids = [sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf), "nowhere"]
    poll(Process(store), *ids, missing_grace=0, fail_when="never")
    for reschedules in (1, 2):
        poll(Process(store, first, reschedules), *ids, missing_grace=0, fail_when="never")
    assert [request.ids for request in sandbox.requests] == [ids, ids[1:], ids[1:2]]


def test_a_store_that_is_down_costs_a_repeated_query_and_no_more(sandbox: Sandbox) -> None:
    store, ids = Store(), [sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)]
    store.is_down = True
    for first in (None, now()):
        poll(Process(store, first), *ids)
    assert [request.ids for request in sandbox.requests] == [ids, ids]


def test_a_sighting_that_a_store_did_not_keep_ends_an_absence(sandbox: Sandbox) -> None:
    store, first, endless = Store(), now(), sandbox.add_task(seconds=math.inf)
    sandbox.script(ScriptedResponse(body=[]))
    poll(Process(store), endless, missing_grace=0.5)
    store.is_read_only = True
    for reschedules in (1, 2):
        poll(Process(store, first, reschedules), endless, missing_grace=0.5)
    store.is_read_only = False
    time.sleep(0.5)
    sandbox.script(ScriptedResponse(body=[]))
    poll(Process(store, first, 3), endless, missing_grace=0.5)


def test_an_absence_lasts_from_process_to_process(sandbox: Sandbox) -> None:
    store, first = Store(), now()
    poll(Process(store), "nowhere", missing_grace=0.5)
    poll(Process(store, first, 1), "nowhere", missing_grace=0.5)
    time.sleep(0.5)
    process = Process(store, first, 2)
    with pytest.raises(LumaTaskFailedError):
        sensor("nowhere", mode="reschedule", missing_grace=0.5).execute(process)
    assert process.pushed["luma_summary"]["missing"] == ["nowhere"]


def test_before_airflow_3_3_the_grace_counts_from_the_first_poll(sandbox: Sandbox) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    process = Process(first=now() - timedelta(seconds=200))
    with pytest.raises(LumaTaskFailedError, match="nowhere"):
        sensor("nowhere", endless, mode="reschedule", fail_fast=True, timeout=600).execute(process)
    assert process.pushed["luma_summary"]["missing"] == ["nowhere"]


def test_a_retry_after_of_a_day_ends_with_the_timeout_when_rescheduled(sandbox: Sandbox) -> None:
    sandbox.script(ScriptedResponse(429, headers={"Retry-After": "86000"}))
    due = poll(Process(Store()), sandbox.add_task(seconds=math.inf), timeout=3600)
    assert now() + timedelta(minutes=55) < due <= now() + timedelta(hours=1)


def test_a_retry_after_below_the_timeout_is_kept_when_rescheduled(sandbox: Sandbox) -> None:
    sandbox.script(ScriptedResponse(429, headers={"Retry-After": "600"}))
    due = poll(Process(Store()), sandbox.add_task(seconds=math.inf), timeout=3600)
    assert due > now() + timedelta(minutes=9)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize("polls", [1_025, 1_000_000])
def test_backoff_never_overflows(mode: str, polls: int) -> None:
    waiting = sensor("a", mode=mode, exponential_backoff=True, timeout=10**9, poke_interval=0.5)
    assert 0 < waiting._get_next_poke_interval(now(), lambda: 10**8, polls) <= 10**9


@pytest.mark.parametrize("next_kwargs", [{"error": "boom"}, {"error": "Trigger timeout"}])
@pytest.mark.parametrize(
    ("policy", "timeout_error", "other_error"),
    [
        ({}, AirflowSensorTimeout, TaskDeferralError),
        ({"soft_fail": True}, AirflowSkipException, TaskDeferralError),
        ({"never_fail": True}, AirflowSkipException, AirflowSkipException),
    ],
)
@pytest.mark.usefixtures("sandbox")
def test_a_trigger_that_failed_or_never_ran_respects_the_policy(
    policy: dict[str, Any], timeout_error: type, other_error: type, next_kwargs: dict[str, Any]
) -> None:
    process = Process(Store())
    expected = timeout_error if "timeout" in next_kwargs["error"] else other_error
    with pytest.raises(expected):
        sensor("a", "b", deferrable=True, **policy).resume_execution("__fail__", next_kwargs, process)
    assert process.pushed["luma_summary"]["running"] == ["a", "b"]


@pytest.mark.parametrize("has_store", [True, False])
def test_tasks_that_ended_while_no_triggerer_ran_are_completed(sandbox: Sandbox, has_store: bool) -> None:
    store = Store() if has_store else None
    ids = [sandbox.add_task(seconds=1), sandbox.add_task(seconds=1)]
    with pytest.raises(TaskDeferred):
        sensor(*ids, deferrable=True, timeout=1).execute(Process(store))
    time.sleep(1)
    process = Process(store)
    resumed = sensor(*ids, deferrable=True, timeout=1)
    assert resumed.resume_execution("__fail__", {"error": "Trigger timeout"}, process) == ids
    assert process.pushed["luma_summary"]["completed"] == 2


def test_the_last_poll_without_a_trigger_names_the_ids_that_are_running(sandbox: Sandbox) -> None:
    completed, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    process = Process()
    waiting = sensor(completed, endless, deferrable=True)
    with pytest.raises(AirflowSensorTimeout, match="is a triggerer running"):
        waiting.resume_execution("__fail__", {"error": "Trigger timeout"}, process)
    assert process.pushed["luma_summary"]["running"] == [endless]


def test_ids_missing_from_an_event_are_polled_and_not_returned(sandbox: Sandbox) -> None:
    completed, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    done = event("done", "other", other="completed", started_at=time.time() - 59)
    process = Process()
    with pytest.raises(AirflowSensorTimeout):
        sensor(completed, endless).execute_complete(process, done)
    assert process.pushed["luma_summary"] == {
        "completed": 1, "failed": {}, "missing": [], "running": [endless]
    }  # fmt: skip


def test_the_event_is_trusted_and_nothing_is_queried_again(sandbox: Sandbox) -> None:
    ids = ["a", "b", "c"]
    process = Process()
    done = event("done", *ids, a="completed", b="failed", c="completed")
    assert sensor(*ids, fail_when="never").execute_complete(process, done) == ["a", "c"]
    assert process.pushed["luma_summary"]["failed"] == {"b": "the relay gave no reason"}
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "edited", [{"fail_fast": False}, {"fail_when": "never", "fail_fast": True}, {"fail_when": "all"}]
)
def test_a_wait_whose_arguments_changed_continues_while_ids_are_running(
    sandbox: Sandbox, edited: dict[str, Any]
) -> None:
    running = [sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)]
    ids = ["failed", *running]
    done, process = event("done", *ids, failed="failed"), Process()  # as of fail_when="any", fail_fast=True
    with pytest.raises(TaskDeferred) as deferred:
        sensor(*ids, deferrable=True, **edited).execute_complete(process, done)
    batch = TaskBatch.load(ids, deferred.value.trigger.state)
    assert batch is not None
    assert (batch.result.completed, [*batch.result.failed]) == ([running[0]], ["failed"])
    assert batch.started_at == done["state"]["started_at"]
    assert [request.ids for request in sandbox.requests] == [running]
    assert process.pushed == {}


@pytest.mark.parametrize("status", ["done", "timeout"])
def test_an_event_is_judged_by_the_present_arguments(status: str) -> None:
    ids, process = ["failed", "running"], Process()
    with pytest.raises(LumaTaskFailedError):
        sensor(*ids, fail_fast=True).execute_complete(process, event(status, *ids, failed="failed"))
    assert process.pushed["luma_summary"]["running"] == ["running"]


def test_a_deferred_timeout_names_the_running_ids() -> None:
    ids = [f"id-{n}" for n in range(26)]
    process = Process()
    with pytest.raises(
        AirflowSensorTimeout, match=r"1 of 26 completed, 25 running\. Still .*id-20, and 5 more"
    ):
        sensor(*ids).execute_complete(process, event("timeout", *ids, **{"id-0": "completed"}))
    assert process.pushed["luma_summary"]["running"] == ids[1:]


def test_progress_is_kept_before_deferring_and_on_return(sandbox: Sandbox) -> None:
    store, ids = Store(), [sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)]
    with pytest.raises(TaskDeferred):
        sensor(*ids, deferrable=True).execute(Process(store))
    assert store.get("luma_progress") == "1 of 2 completed, 1 running"
    sensor(*ids).execute_complete(Process(store), event("done", *ids, **dict.fromkeys(ids, "completed")))
    assert store.get("luma_progress") == "2 of 2 completed"


@pytest.mark.parametrize("task_id", ["x" * 201, "a\ud83d", "a\x00b"])
def test_an_impossible_id_is_rejected_before_any_request(sandbox: Sandbox, task_id: str) -> None:
    with pytest.raises(Exception, match="must be one line of plain text"):
        sensor(task_id).execute(Process())
    assert sandbox.requests == []
