"""Our triggers in Airflow's own trigger runner, a process of its own, which no relay may end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_luma.relay import TaskBatch
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from tests.airflow.harness import AIRFLOW

OWN_PROCESS = "LUMA_TEST_TRIGGER_RUNNER"
IS_OWN_PROCESS = OWN_PROCESS in os.environ

pytestmark = [
    pytest.mark.usefixtures("airflow_db"),
    pytest.mark.skipif(AIRFLOW < (3, 2), reason="the runner takes its triggers otherwise"),
]


class Runner:
    """Airflow's trigger runner with its supervisor, without a scheduler around them."""

    def __init__(self) -> None:
        from airflow.jobs.job import Job
        from airflow.jobs.triggerer_job_runner import TriggererJobRunner, TriggerRunnerSupervisor
        from airflow.utils.session import create_session

        job = Job(job_type=TriggererJobRunner.job_type)
        with create_session() as session:
            session.add(job)
            session.flush()
            session.expunge(job)
        self.supervisor = TriggerRunnerSupervisor.start(job=job, capacity=10)

    def run(self, trigger_id: int, trigger: LumaTaskTrigger) -> dict[str, Any]:
        """Run a trigger and return its event."""
        from airflow.executors.workloads import RunTrigger
        from airflow.models.trigger import Trigger

        stored = Trigger.from_object(trigger)
        self.supervisor.running_triggers.add(trigger_id)
        self.supervisor.creating_triggers.append(
            RunTrigger(id=trigger_id, classpath=stored.classpath, encrypted_kwargs=stored.encrypted_kwargs)
        )
        deadline = time.monotonic() + 300
        while not self.supervisor.events:
            assert time.monotonic() < deadline
            assert self.supervisor.is_alive(), "the trigger runner has died"
            assert not self.supervisor.failed_triggers
            self.supervisor._service_subprocess(0.2)
        payload: dict[str, Any] = self.supervisor.events.popleft().event.payload
        return payload


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.supervisor.kill(force=True)


def trigger(*ids: str) -> LumaTaskTrigger:
    state = TaskBatch(ids, started_at=time.time()).dump()
    return LumaTaskTrigger(
        luma_task_ids=list(ids), luma_conn_id="luma_default", state=state, timeout=60, poke_interval=1
    )


@pytest.mark.skipif(not IS_OWN_PROCESS, reason="test_the_trigger_runner_in_a_process_of_its_own runs it")
def test_no_reason_and_no_error_crashes_the_trigger_runner(sandbox: Sandbox, runner: Runner) -> None:
    for number, reason in enumerate([r'"half \ud83d"', r'"\u0000"', json.dumps("x" * 3_000_000)], start=1):
        body = f'[{{"id": "a", "state": "failed", "failure_reason": {reason}, "prompt": {reason}}}]'
        sandbox.script(ScriptedResponse(body=body))
        assert runner.run(number, trigger("a"))["status"] == "done"
    sandbox.script(ScriptedResponse(400, r'{"message": "half \ud83d\u0000", "code": "\ud83d"}'))
    assert runner.run(10, trigger("a"))["status"] == "error"
    good = sandbox.add_task(seconds=0)
    assert runner.run(11, trigger(good))["status"] == "done"
    assert runner.supervisor.is_alive()


@pytest.mark.skipif(IS_OWN_PROCESS, reason="is what runs the others")
def test_the_trigger_runner_in_a_process_of_its_own() -> None:
    """The supervisor forks, which in a process with other tests' threads may hang."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = os.environ | {OWN_PROCESS: "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout
