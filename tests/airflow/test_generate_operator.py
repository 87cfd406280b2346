from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from tests.airflow.generate_harness import GenerateTask, Instance, Store
from tests.airflow.harness import AIRFLOW, Run, load_source, run_source

pytestmark = pytest.mark.usefixtures("airflow_db")


def generate(**arguments: Any) -> Run:
    return run_source(
        "generating",
        f"""
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaGenerateOperator

        with DAG("generating", schedule=None, params={{"what": "cat"}}) as dag:
            LumaGenerateOperator(
                task_id="generate", **{ {"prompt": "cat dance", "retry_delay": 0} | arguments!r}
            )
        """,
    )


def ended(run: Run, state: str, tries: int = 1) -> bool:
    return (run.states["generate"], run.tries["generate"]) == (state, tries)


def test_a_prompt_becomes_a_luma_task(sandbox: Sandbox) -> None:
    run = generate(prompt="{{ params.what }} dance", aspect_ratio="9:16", loop=True)
    assert ended(run, "success")
    assert sandbox.submits == [{"user_prompt": "cat dance", "aspect_ratio": "9:16", "loop": True}]
    assert [run.xcom("generate")] == sandbox.task_ids
    assert run.xcom("generate", "luma_task")["id"] == sandbox.task_ids[0]
    assert run.xcom("generate", "luma_task")["state"] == "pending"
    assert '"queue_state": null' in run.xcom("generate", "luma_task")["response"]


@pytest.mark.parametrize("wrong", [{"prompt": ""}, {"loop": "yes"}, {"extra_body": {"user_prompt": "x"}}])
def test_invalid_arguments_fail_before_anything_is_sent(sandbox: Sandbox, wrong: dict[str, Any]) -> None:
    assert ended(generate(**wrong, retries=2), "failed")
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "response",
    [
        ScriptedResponse(status=502),
        ScriptedResponse(truncated=True),
        ScriptedResponse(body={"state": "pending"}),
    ],
)
def test_a_submit_that_may_have_been_charged_is_not_retried(
    sandbox: Sandbox, response: ScriptedResponse, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.script_submits(response, created=True)
    assert ended(generate(retries=3), "failed")
    assert len(sandbox.submits) == 1
    log = " ".join(capsys.readouterr().out.split())
    assert "may have created and charged for a task" in log
    assert "wait for its id with LumaTaskSensor" in log


def test_an_error_before_the_relay_is_reached_is_retried(
    sandbox: Sandbox, connect: Any, quick_retries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_LUMA_DEFAULT", '{"conn_type": "luma", "host": "http://127.0.0.1:9", "password": "k"}'
    )
    assert ended(generate(retries=1), "failed", tries=2)


def test_an_insufficient_balance_is_reported(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    rejection = {"code": "insufficient_user_quota", "message": "balance 0, needs 1"}
    sandbox.script_submits(ScriptedResponse(status=403, body=rejection))
    assert ended(generate(retries=2), "failed")
    log = " ".join(capsys.readouterr().out.split())  # Airflow 3.0 wraps its lines
    assert "balance 0, needs 1. Top up the account" in log


def test_a_task_links_to_its_page_at_the_relay(sandbox: Sandbox, connect: Any) -> None:
    from airflow.models.taskinstancekey import TaskInstanceKey

    from airflow_provider_luma.links.clips import ClipsLink, RelayPageLink

    connect(sandbox, task_page="https://relay.example.com/tasks/{id}")
    run = generate()
    key = TaskInstanceKey(run.dag_id, "generate", run.run_id)
    assert (
        RelayPageLink().get_link(None, ti_key=key) == f"https://relay.example.com/tasks/{sandbox.task_ids[0]}"
    )
    path = ClipsLink().get_link(None, ti_key=key)
    assert unquote(path) == f"/luma/clips/{run.dag_id}/{run.run_id}/generate/-1"


@pytest.mark.parametrize(
    "page", ["javascript:alert(1)", "data:text/html,x", "//[", "https:///x", "http:x", "http:/x", 7, None]
)
def test_a_page_that_is_none_is_no_link(page: Any) -> None:
    from airflow_provider_luma.links.clips import web_page_of

    assert web_page_of({"page": page}) is None
    assert web_page_of(page) is None


def test_mapped_prompts_go_straight_into_the_sensor(sandbox: Sandbox) -> None:
    run = run_source(
        "mapped_prompts",
        """
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaGenerateOperator
        from airflow_provider_luma.sensors.luma import LumaTaskSensor

        with DAG("mapped_prompts", schedule=None) as dag:
            generate = LumaGenerateOperator.partial(task_id="generate").expand(
                prompt=["cat dance", "dog dance", "fox dance"]
            )
            LumaTaskSensor(task_id="wait", luma_task_ids=generate.output, poke_interval=0.5)
        """,
    )
    assert set(run.states.values()) == {"success"}
    assert run.xcom("wait") == [run.xcom("generate", map_index=index) for index in range(3)]
    assert len(sandbox.submits) == 3


@pytest.mark.parametrize("deferrable", [False, True])
def test_with_wait_it_returns_the_finished_task(deferrable: bool, connect: Any) -> None:
    with Sandbox(tasks=0, seconds=1.5) as sandbox:
        connect(sandbox)
        run = generate(wait_for_completion=True, deferrable=deferrable, poke_interval=0.5)
    assert ended(run, "success")
    record = run.xcom("generate")
    assert (record["id"], record["state"], record["prompt"]) == (
        sandbox.task_ids[0],
        "completed",
        "cat dance",
    )
    assert record["duration"] == 2.0
    assert len(sandbox.submits) == 1


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_generation_that_failed_fails_the_task_without_a_retry(
    sandbox: Sandbox, deferrable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = sandbox.add_task(seconds=0, failure_reason="moderation")
    sandbox.script_submits(ScriptedResponse(body={"id": bad}))
    run = generate(wait_for_completion=True, deferrable=deferrable, poke_interval=0.5, retries=2)
    assert ended(run, "failed")
    assert "moderation" in capsys.readouterr().out


HAS_STORE = AIRFLOW >= (3, 3)


@pytest.mark.parametrize("keeps", ["state_path", "what Airflow has"])
@pytest.mark.parametrize("deferrable", [False, True])
def test_errors_while_waiting_never_lead_to_a_second_submit(
    sandbox: Sandbox, quick_retries: Any, keeps: str, deferrable: bool, tmp_path: Path
) -> None:
    sandbox.script(*[ScriptedResponse(status=500)] * 3)
    (tmp_path / "state").mkdir()
    place = {"state_path": (tmp_path / "state").as_uri()} if keeps == "state_path" else {}
    run = generate(wait_for_completion=True, retries=1, poke_interval=0.5, deferrable=deferrable, **place)
    if HAS_STORE or place:
        assert ended(run, "success", tries=2)
        assert run.xcom("generate")["id"] == sandbox.task_ids[-1]
    else:
        assert ended(run, "failed")
    assert len(sandbox.submits) == 1


UNPUSHABLE = """
    from airflow.sdk import DAG
    from airflow_provider_luma.operators.luma import LumaGenerateOperator

    class Unpushable(LumaGenerateOperator):
        def execute(self, context):
            super().execute(context)
            return object()  # which no XCom takes

    with DAG("unpushable", schedule=None) as dag:
        Unpushable(task_id="generate", prompt="cat dance", retries=2, retry_delay=0)
    """


def test_an_xcom_that_cannot_be_pushed_never_leads_to_a_second_submit(sandbox: Sandbox) -> None:
    run = run_source("unpushable", UNPUSHABLE)
    assert ended(run, "failed", tries=3 if HAS_STORE else 1)
    assert len(sandbox.submits) == 1


def test_a_record_is_marked_returned_after_airflow_recorded_the_success(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    generate(state_path=(tmp_path / "state").as_uri())
    (record,) = (tmp_path / "state").rglob("*.json")
    assert json.loads(record.read_text())["phase"] == "returned"


RETRIES = """
    from airflow.sdk import DAG
    from airflow_provider_luma.operators.luma import LumaGenerateOperator

    with DAG("retries", schedule=None, default_args={default_args}) as dag:
        plain = LumaGenerateOperator(task_id="plain", prompt="cat dance", {arguments})
        mapped = LumaGenerateOperator.partial(task_id="mapped", {arguments}).expand(prompt=["cat dance"])
    """


@pytest.mark.parametrize(
    ("default_args", "arguments", "retries"),
    [
        ("{}", "", 2 if HAS_STORE else 0),
        ("{}", "durable=False", 0),
        ("{}", "state_path='file:///tmp/luma'", 2),
        ("{}", "retries=5", 5),
        ("{'retries': 4}", "", 4),
        ("{'durable': False}", "", 0),
    ],
)
def test_the_default_of_retries_depends_on_whether_a_record_is_kept(
    monkeypatch: pytest.MonkeyPatch, default_args: str, arguments: str, retries: int
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DEFAULT_TASK_RETRIES", "7")
    dag = load_source("retries", RETRIES.format(default_args=default_args, arguments=arguments))
    assert dag.get_task("plain").retries == retries
    assert dag.get_task("mapped").retries == retries


def test_a_stop_names_the_luma_task_that_is_still_running(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = GenerateTask(Store(tmp_path / "state.json"))
    task_id = task.run()
    assert task.instance.task is not None
    task.instance.task.on_kill()
    assert f"Luma task {task_id} is still running at the relay, and is charged" in capsys.readouterr().out


def test_a_stopped_sensor_names_the_luma_tasks_that_are_still_running(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [sandbox.add_task(seconds=0), sandbox.add_task(seconds=60)]
    sensor = LumaTaskSensor(task_id="wait", luma_task_ids=ids)
    sensor.on_kill()  # before it began
    sensor.poke({"ti": Instance()})  # type: ignore[typeddict-item]
    sensor.on_kill()
    assert (
        f"1 Luma tasks are still running at the relay, and are charged: {ids[1]}" in capsys.readouterr().out
    )
