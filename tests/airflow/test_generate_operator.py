from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_luma.operators.luma import LumaGenerateOperator
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer
from tests.airflow.harness import AIRFLOW, Run, run_source

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
    assert run.xcom("generate", "luma_task")["answer"]["state"] == "pending"


@pytest.mark.parametrize(
    "wrong", [{"prompt": ""}, {"aspect_ratio": "2:1"}, {"extra_body": {"user_prompt": "x"}}]
)
def test_what_cannot_be_right_fails_before_anything_is_sent(sandbox: Sandbox, wrong: dict[str, Any]) -> None:
    assert ended(generate(**wrong, retries=2), "failed")
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "answer",
    [ScriptedAnswer(status=502), ScriptedAnswer(cut=True), ScriptedAnswer(body={"state": "pending"})],
)
def test_what_may_have_been_paid_is_not_retried(
    sandbox: Sandbox, answer: ScriptedAnswer, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.script_submits(answer, created=True)
    assert ended(generate(retries=3), "failed")
    assert len(sandbox.submits) == 1
    assert "may have created a task" in capsys.readouterr().out


def test_trouble_before_the_relay_is_reached_is_retried(
    sandbox: Sandbox, connect: Any, quick_retries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_LUMA_DEFAULT", '{"conn_type": "luma", "host": "http://127.0.0.1:9", "password": "k"}'
    )
    assert ended(generate(retries=1), "failed", tries=2)


def test_the_account_that_cannot_pay_is_told_so(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = {"code": "insufficient_user_quota", "message": "balance 0, needs 1"}
    sandbox.script_submits(ScriptedAnswer(status=403, body=refusal))
    assert ended(generate(retries=2), "failed")
    log = " ".join(capsys.readouterr().out.split())  # Airflow 3.0 wraps its lines
    assert "balance 0, needs 1; top up the account" in log


def test_prompts_are_mapped_straight_into_the_sensor(sandbox: Sandbox) -> None:
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
def test_it_waits_when_told_and_returns_the_finished_task(deferrable: bool, connect: Any) -> None:
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
    bad = sandbox.add_task(seconds=0, fails="moderation")
    sandbox.script_submits(ScriptedAnswer(body={"id": bad}))
    run = generate(wait_for_completion=True, deferrable=deferrable, poke_interval=0.5, retries=2)
    assert ended(run, "failed")
    assert "moderation" in capsys.readouterr().out


def test_a_retry_takes_up_what_an_earlier_try_paid_for(sandbox: Sandbox, quick_retries: Any) -> None:
    sandbox.script(*[ScriptedAnswer(status=500)] * 3)
    run = generate(wait_for_completion=True, retries=1, poke_interval=0.5)
    assert ended(run, "success", tries=2)
    assert len(sandbox.submits) == (1 if AIRFLOW >= (3, 3) else 2)  # older ones cannot remember what was paid
    assert run.xcom("generate")["id"] == sandbox.task_ids[-1]


# What a worker does that dies at this point; the store outlives it, as Airflow's does.
class Store(dict[str, Any]):
    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


class TaskInstance:
    map_index = -1
    max_tries = 1

    def xcom_push(self, key: str, value: Any) -> None:
        pass


def executed(store: Store, max_tries: int = 1, **arguments: Any) -> Any:
    operator = LumaGenerateOperator(task_id="generate", **{"prompt": "cat dance"} | arguments)
    instance = TaskInstance()
    instance.max_tries = max_tries
    return operator.execute({"ti": instance, "task_state_store": store})  # type: ignore[typeddict-item]


def test_a_worker_that_died_after_its_submit_does_not_pay_again(sandbox: Sandbox) -> None:
    store = Store()
    first = executed(store)
    assert executed(store) == first  # Airflow never heard of the success
    assert len(sandbox.submits) == 1


def test_a_cleared_task_submits_anew_and_so_does_another_prompt(sandbox: Sandbox) -> None:
    store = Store()
    first = executed(store)
    assert executed(store, max_tries=2) != first
    executed(store, prompt="dog dance")
    assert len(sandbox.submits) == 3


def test_a_worker_that_died_before_the_answer_leaves_a_doubt_once(sandbox: Sandbox) -> None:
    from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError

    class Dies(BaseException):
        pass

    class DyingStore(Store):
        def set(self, key: str, value: Any) -> None:
            super().set(key, value)
            if "id" not in value:
                raise Dies

    store = DyingStore()
    with pytest.raises(Dies):
        executed(store)
    with pytest.raises(
        LumaNonRetryableError, match=r"ended after it began to submit.*may have created a task"
    ):
        executed(store)
    assert sandbox.submits == []
    executed(Store(store))
    assert len(sandbox.submits) == 1
