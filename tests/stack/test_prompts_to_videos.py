"""A hundred prompts through a real Airflow: submitted once each, waited for, downloaded, counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedResponse
from tests.stack.stack import Stack
from tests.stores import s3_server

PROMPTS = [f"cat dance number {number}" for number in range(100)]

GENERATE = """
from datetime import timedelta
from airflow.sdk import DAG, Param, task
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG("prompts", schedule=None, params={"prompts": Param([], type="array")}) as dag:

    @task
    def prompts(params: dict):
        return params["prompts"]

    generate = LumaGenerateOperator.partial(
        task_id="generate", retries=2, retry_delay=timedelta(seconds=1)
    ).expand(prompt=prompts())

    @task(trigger_rule="all_done")
    def submitted(ids):
        return [task_id for task_id in ids if task_id]

    wait = LumaTaskSensor(
        task_id="wait", luma_task_ids=submitted(generate.output), deferrable=True, poke_interval=3
    )
    LumaDownloadOperator(
        task_id="download", luma_task_ids=wait.output, destination="s3://s3@bucket/clips", manifest=True
    )
"""

WATCH = """
from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow_provider_luma.triggers.event import LumaTaskEventTrigger

trigger = LumaTaskEventTrigger(luma_task_ids=IDS, poke_interval=2)
clip = Asset("clip", watchers=[AssetWatcher(name="clips", trigger=trigger)])

with DAG("watching", schedule=[clip], is_paused_upon_creation=False) as dag:

    @task
    def ended(triggering_asset_events: dict):
        return [event.extra["payload"] for event in triggering_asset_events[clip]]

    ended()
"""


@pytest.mark.stack
def test_a_hundred_prompts_are_paid_once_each_and_downloaded(tmp_path: Path) -> None:
    faults = Faults(
        submits_rate_limited=0.1, submits_unavailable=0.05, submits_bad_gateway=0.03, retry_after=0.5
    )
    with (
        Sandbox(tasks=3, fail=0, seconds=40, faults=faults, seed=1) as sandbox,
        s3_server(tmp_path / "s3") as s3,
    ):
        watched = sandbox.task_ids
        connections = {
            "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection),
            "AIRFLOW_CONN_S3": s3.connection(),
        }
        stack = Stack(tmp_path, connections)
        dags = {"prompts.py": GENERATE, "watching.py": WATCH.replace("IDS", repr(watched))}
        with stack.running(dags):
            stack.trigger("prompts", {"prompts": PROMPTS})
            stack.until(lambda: stack.states("download").keys() >= {("success", 1)}, "all is downloaded", 500)
            states = stack.states("generate")
            payloads = stack.until_rows(
                "select value from xcom where dag_id = 'watching' and key = 'return_value'", len(watched)
            )
        charged = [body["user_prompt"] for body in sandbox.submits]
        clips = {path.stem for path in (s3.folder / "bucket/clips").glob("*.mp4")}
        (manifest,) = (s3.folder / "bucket/clips").glob("manifest-*.jsonl")
        lines = manifest.read_text().splitlines()
    doubtful = sum(number for (state, _), number in states.items() if state == "failed")
    print(f"{len(charged)} charges, {doubtful} in doubt, {len(clips)} clips")
    assert sorted(charged) == sorted(set(charged))
    assert len(charged) == len(clips) + sum(request.status == 502 for request in sandbox.requests)
    assert len(clips) == len(lines) == 100 - doubtful
    events = [payload for (value,) in payloads for payload in _loads(value)]
    assert {(event["id"], event["state"]) for event in events} == {
        (task_id, "completed") for task_id in watched
    }


ONE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaGenerateOperator

with DAG("one", schedule=None) as dag:
    LumaGenerateOperator(task_id="generate", prompt="cat dance", retries=1, retry_delay=timedelta(seconds=1))
"""


@pytest.mark.stack
def test_a_worker_killed_before_the_response_is_not_paid_for_twice(tmp_path: Path) -> None:
    with Sandbox(tasks=0) as sandbox:
        sandbox.script_submits(ScriptedResponse(delay=60), created=True)
        stack = Stack(tmp_path, {"AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection)})
        with stack.running({"one.py": ONE}):
            stack.trigger("one", {})
            stack.until(lambda: len(sandbox.submits) == 1, "the submit has arrived", 120)
            stack.kill_task()
            stack.until(
                lambda: stack.states("generate").keys() == {("failed", 2)}, "the retry has failed", 180
            )
        (log,) = tmp_path.glob("logs/dag_id=one/**/attempt=2.log")
        assert "ended after it began to submit" in log.read_text()
        assert len(sandbox.submits) == 1


def _loads(value: object) -> list[dict[str, str]]:
    return json.loads(value) if isinstance(value, str) else value  # type: ignore[return-value]
