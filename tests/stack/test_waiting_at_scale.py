"""What dag.test() cannot show: many deferred sensors in a real triggerer, which is killed meanwhile."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from tests.stack.stack import Stack

SENSORS = 300
INTERVAL = 5

DAG = f"""
from airflow.sdk import DAG, Param, task
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG("waiting", schedule=None, params={{"ids": Param([], type="array")}}) as dag:

    @task
    def ids(params: dict):
        return params["ids"]

    LumaTaskSensor.partial(
        task_id="wait", deferrable=True, poke_interval={INTERVAL}, timeout=1200
    ).expand(luma_task_ids=ids())
"""


@pytest.mark.stack
def test_three_hundred_sensors_share_their_polls_and_survive(tmp_path: Path) -> None:
    now = 0.0
    with Sandbox(tasks=0, clock=lambda: now) as sandbox:
        ids = [sandbox.add_task(seconds=1) for _ in range(SENSORS)]
        stack = Stack(tmp_path, {"AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection)})
        with stack.running({"waiting.py": DAG}):
            run_id = stack.trigger("waiting", {"ids": ids})
            stack.until(
                lambda: stack.states("wait")["deferred", 1] == SENSORS, f"{SENSORS} sensors are deferred", 600
            )
            print(f"{len(sandbox.requests)} requests while they came")
            _check_that_polls_are_shared(sandbox)

            stack.kill("triggerer")
            sandbox.requests.clear()
            stack.start("triggerer")
            stack.until(lambda: _asked_for_all(sandbox), "a new triggerer asks for every id", 120)
            _check_that_polls_are_shared(sandbox)

            stack.mark_failed("waiting", run_id, "wait", 7)
            sandbox.script(*[ScriptedResponse(status=429, headers={"Retry-After": "1"})] * 20)
            time.sleep(2 * INTERVAL)
            assert stack.states("wait") == {("deferred", 1): SENSORS - 1, ("failed", 1): 1}

            now = 1000.0
            stack.until(
                lambda: sum(stack.states("wait")[state, 1] for state in ("success", "failed")) == SENSORS,
                "all sensors have ended",
                600,
            )
            assert stack.states("wait") == {("success", 1): SENSORS - 1, ("failed", 1): 1}
            assert {request.status for request in sandbox.requests} == {200, 429}
            assert sandbox.api_key not in stack.log_of("triggerer")


def _check_that_polls_are_shared(sandbox: Sandbox) -> None:
    """Once all have fallen into step, each round is three requests of a hundred ids."""
    time.sleep(2 * INTERVAL)
    seen = len(sandbox.requests)
    time.sleep(4 * INTERVAL)
    sizes = [len(request.ids or ()) for request in sandbox.requests[seen:]]
    assert sizes == [100] * len(sizes)
    assert 3 * 3 <= len(sizes) <= 3 * 5


def _asked_for_all(sandbox: Sandbox) -> bool:
    return len({task_id for request in sandbox.requests for task_id in request.ids or ()}) == SENSORS
