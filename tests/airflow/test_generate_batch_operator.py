"""The batch operator against the sandbox: its requests, pauses, stops, logs and XComs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError, LumaTaskFailedError
from airflow_provider_luma.exceptions import LumaError, LumaValueError, RelayTransientError
from airflow_provider_luma.operators.luma import LumaGenerateBatchOperator
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.submit.record_store import object_name
from airflow_provider_luma.submit.result import SubmitResult
from airflow_provider_luma.submit.throttle import MAX_UNKNOWN_OUTCOMES
from tests.airflow.generate_harness import BatchTask, Store
from tests.airflow.harness import Run, run_source
from tests.stores import S3, free_port

CATS = [f"cat dance {number}" for number in range(12)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "task_state.json")


@pytest.fixture
def open_sandbox(connect: Callable[..., None]) -> Iterator[Callable[..., Sandbox]]:
    """Start a sandbox with arguments, which ``luma_default`` leads to."""
    opened: list[Sandbox] = []

    def open_sandbox(extra: dict[str, Any] | None = None, **arguments: Any) -> Sandbox:
        sandbox = Sandbox(tasks=0, **arguments)
        sandbox.start()
        opened.append(sandbox)
        connect(sandbox, **extra or {})
        return sandbox

    yield open_sandbox
    for sandbox in opened:
        sandbox.stop()


def generate(body: str, **arguments: Any) -> Run:
    return run_source(
        "batching",
        f"""
        from airflow.sdk import DAG, task
        from airflow_provider_luma.operators.luma import LumaGenerateBatchOperator
        from airflow_provider_luma.sensors.luma import LumaTaskSensor

        ARGUMENTS = {{"task_id": "generate", "retry_delay": 0}} | {arguments!r}

        with DAG("batching", schedule=None, params={{"what": "cat"}}) as dag:
            {body}
        """,
    )


def submits_by_prompt(sandbox: Sandbox) -> dict[str, str]:
    return {
        body["user_prompt"]: task_id for task_id, body in zip(sandbox.task_ids, sandbox.submits, strict=True)
    }


@pytest.mark.usefixtures("airflow_db")
def test_strings_and_dicts_become_luma_tasks_in_their_order(sandbox: Sandbox) -> None:
    prompts = ["{{ params.what }} dance", {"prompt": "dog dance", "aspect_ratio": "1:1"}, "fox dance"]
    run = generate("LumaGenerateBatchOperator(**ARGUMENTS)", prompts=prompts, aspect_ratio="9:16", loop=True)
    assert run.states["generate"] == "success"
    ids = submits_by_prompt(sandbox)
    assert run.xcom("generate") == [ids["cat dance"], ids["dog dance"], ids["fox dance"]]
    assert {body["user_prompt"]: (body["aspect_ratio"], body["loop"]) for body in sandbox.submits} == {
        "cat dance": ("9:16", True),
        "dog dance": ("1:1", True),
        "fox dance": ("9:16", True),
    }
    assert run.xcom("generate", "luma_submits") == {
        "created": 3,
        "rejected": {},
        "unknown": [],
        "not_submitted": 0,
    }


@pytest.mark.usefixtures("airflow_db")
def test_the_page_of_the_connection_is_that_of_each_task(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, task_page="https://relay.example.com/tasks/{id}")
    run = generate("LumaGenerateBatchOperator(**ARGUMENTS)", prompts=["cat dance"])
    assert run.xcom("generate", "luma_submits")["page_template"] == "https://relay.example.com/tasks/{id}"


@pytest.mark.usefixtures("airflow_db")
def test_prompts_come_from_a_mapped_task_and_ids_go_to_the_sensor(connect: Any) -> None:
    with Sandbox(tasks=0, seconds=0.5) as sandbox:
        connect(sandbox)
        run = generate(
            """
            @task
            def write(what: str):
                return f"{what} dance"

            generate = LumaGenerateBatchOperator(
                prompts=write.expand(what=["cat", "dog", "fox"]), **ARGUMENTS
            )
            LumaTaskSensor(task_id="wait", luma_task_ids=generate.output, poke_interval=0.5)
            """
        )
        ids = submits_by_prompt(sandbox)
    assert set(run.states.values()) == {"success"}
    assert run.xcom("wait") == [ids["cat dance"], ids["dog dance"], ids["fox dance"]]


@pytest.mark.usefixtures("airflow_db")
def test_a_mapped_batch_has_a_journal_for_each_of_its_instances(sandbox: Sandbox, tmp_path: Path) -> None:
    run = generate(
        'LumaGenerateBatchOperator.partial(**ARGUMENTS).expand(prompts=[["cat dance"], ["dog dance"], []])',
        state_path=tmp_path.as_uri(),
    )
    ids = submits_by_prompt(sandbox)
    assert [run.xcom("generate", map_index=index) for index in range(3)] == [
        [ids["cat dance"]],
        [ids["dog dance"]],
        [],
    ]
    assert {header.parent.name for header in tmp_path.rglob("header.json")} == {"0", "1", "2"}


@pytest.mark.usefixtures("airflow_db")
def test_created_ids_are_in_xcom_also_when_the_task_fails(sandbox: Sandbox) -> None:
    run = generate(
        "LumaGenerateBatchOperator(**ARGUMENTS)", prompts=["cat dance", "a forbidden dance"], retries=2
    )
    assert (run.states["generate"], run.tries["generate"]) == ("failed", 1)
    assert run.xcom("generate") == sandbox.task_ids
    submits = run.xcom("generate", "luma_submits")
    assert submits["created"] == 1
    assert "sensitive words" in submits["rejected"]["1"]


@pytest.mark.usefixtures("airflow_db")
def test_airflow_retries_transient_errors_and_each_prompt_is_charged_once(
    sandbox: Sandbox, quick_retries: Any, tmp_path: Path
) -> None:
    sandbox.script_submits(*[ScriptedResponse(status=502)] * MAX_UNKNOWN_OUTCOMES, created=True)
    run = generate(
        "LumaGenerateBatchOperator(**ARGUMENTS)",
        prompts=CATS,
        retries=1,
        max_parallel=1,
        fail_when="never",
        state_path=tmp_path.as_uri(),
    )
    assert (run.states["generate"], run.tries["generate"]) == ("success", 2)
    assert run.xcom("generate", "luma_submits")["unknown"] == list(range(MAX_UNKNOWN_OUTCOMES))
    assert sorted(body["user_prompt"] for body in sandbox.submits) == sorted(CATS)


def test_rejected_prompts_respect_fail_when(sandbox: Sandbox, store: Store) -> None:
    some = ["cat dance", "a forbidden dance"]
    with pytest.raises(LumaTaskFailedError, match=r"1 were rejected \(1: .*sensitive words"):
        BatchTask(store, prompts=some, fail_when="any").run()
    assert len(BatchTask(None, prompts=some, fail_when="all").run()) == 1
    with pytest.raises(LumaTaskFailedError, match="0 of 1 prompts have a Luma task"):
        BatchTask(None, prompts=some[1:], fail_when="all").run()
    assert BatchTask(None, prompts=some[1:], fail_when="never").run() == []


@pytest.mark.parametrize("prompts", [[], "[]"])
def test_an_empty_list_of_prompts_is_no_error(sandbox: Sandbox, store: Store, prompts: Any) -> None:
    task = BatchTask(store, prompts=prompts, fail_when="any")
    assert task.run() == []
    assert sandbox.requests == []
    assert task.submits["created"] == 0


def test_a_list_of_other_length_between_two_batches_of_reasons_stays_small(
    sandbox: Sandbox, store: Store
) -> None:
    rejection = {"code": "invalid_request", "message": "不" * 300}
    sandbox.script_submits(*[ScriptedResponse(status=400, body=rejection)] * 300)
    task = BatchTask(store, prompts=[f"cat {number}" for number in range(300)])
    assert task.run() == []
    assert len(json.dumps(task.submits)) <= 64 * 1024
    listed = len(task.submits["rejected"])
    assert listed + task.submits.get("rejected_not_listed", 0) == 300


@pytest.mark.parametrize("unknown", [1, 2_000, 50_000])
@pytest.mark.parametrize("rejected", [0, 50_000])
def test_the_summary_is_bounded_whatever_becomes_of_the_prompts(unknown: int, rejected: int) -> None:
    reasons = dict.fromkeys(range(50_000, 50_000 + rejected), "不" * 300)
    summary = SubmitResult(unknown=list(range(unknown)), rejected=reasons).summary()
    assert len(json.dumps(summary)) <= 64 * 1024
    assert summary["unknown"] == list(range(len(summary["unknown"])))
    assert len(summary["unknown"]) == min(unknown, 2_000) == unknown - summary.get("unknown_not_listed", 0)
    assert len(summary["rejected"]) + summary.get("rejected_not_listed", 0) == rejected
    assert summary["rejected"] or not rejected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["cat dance", ""]}, r"prompts\[1\]: prompt must be a non-empty string"),
        ({"prompts": ["cat dance", "\0"]}, r"prompts\[1\]: prompt must be a non-empty string"),
        ({"prompts": ["\ud83d"]}, r"prompts\[0\]: prompt must be a non-empty string"),
        ({"prompts": ["cat \ud83d"]}, r"prompts\[0\]: prompt is not Unicode text"),
        ({"prompts": "cat dance"}, "prompts is not a list of prompts"),
        ({"prompts": {"prompt": "cat"}}, "prompts must be a list of texts or dicts"),
        ({"prompts": {"cat dance"}}, "prompts must be a list of texts or dicts, not of the type set"),
        (
            {"prompts": {"cat": 1}.keys()},
            "prompts must be a list of texts or dicts, not of the type dict_keys",
        ),
        ({"prompts": (cat for cat in CATS)}, "prompts must be a list of texts or dicts, not of the type gen"),
        ({"prompts": [3]}, r"prompts\[0\]: a prompt must be a text or a dict of fields"),
        ({"prompts": [{"promt": "cat"}]}, r"prompts\[0\]: unknown field 'promt'; the fields are prompt,"),
        ({"prompts": [{"aspect_ratio": "1:1"}]}, r"prompts\[0\]: there is no prompt"),
        ({"prompts": ["cat"], "prompts_path": "file:///x.csv"}, "Give either prompts or prompts_path"),
        ({}, "Give either prompts or prompts_path"),
        ({"prompts": ["cat"], "manifest": True}, "manifest=True needs a state_path"),
        ({"prompts": ["cat"], "extra_body": {"at": float("nan")}}, r"prompts\[0\]: .*cannot be sent as JSON"),
    ],
)
def test_invalid_arguments_fail_before_anything_is_sent(
    sandbox: Sandbox, store: Store, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(LumaNonRetryableError, match=message):
        BatchTask(store, **arguments).run()
    assert sandbox.requests == []
    assert store.get("luma_journal") is None


@pytest.mark.parametrize(
    "wrong",
    [{"max_parallel": 0}, {"max_generations": -1}, {"min_balance": -0.5}, {"fail_when": "sometimes"}],
)
def test_wrong_arguments_fail_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises(LumaValueError, match=next(iter(wrong))):
        LumaGenerateBatchOperator(task_id="generate", prompts=["cat"], **wrong)


def test_undocumented_values_warn_once(
    sandbox: Sandbox, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        BatchTask(store, prompts=CATS, aspect_ratio="5:5").run()
    warnings = [message for message in caplog.messages if "aspect_ratio" in message]
    assert len(warnings) == 1
    assert warnings[0].startswith("12 prompts: aspect_ratio '5:5' is none of")


TABLES = {
    "prompts.jsonl": '"cat dance"\n\n{"prompt": "dog, dance", "loop": false, "extra_body": {"seed": 1}}\n',
    "prompts.csv": (
        '\ufeffprompt,aspect_ratio,loop,extra_body\r\ncat dance,,,\r\n"dog, dance",,FALSE,"{""seed"": 1}"\r\n'
    ),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("place", ["file", "s3"])
def test_a_table_of_prompts_is_read_from_object_storage(
    sandbox: Sandbox, store: Store, tmp_path: Path, s3: S3, monkeypatch: Any, name: str, place: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_S3", s3.connection())
    url = (tmp_path / name).as_uri() if place == "file" else f"s3://s3@bucket/{name}"
    ObjectStoragePath(url).write_bytes(TABLES[name].encode())
    ids = BatchTask(store, prompts_path=url, aspect_ratio="1:1", loop=True).run()
    by_prompt = submits_by_prompt(sandbox)
    assert ids == [by_prompt["cat dance"], by_prompt["dog, dance"]]
    assert sorted(sandbox.submits, key=str) == sorted(
        [
            {"user_prompt": "cat dance", "aspect_ratio": "1:1", "loop": True},
            {"user_prompt": "dog, dance", "aspect_ratio": "1:1", "loop": False, "seed": 1},
        ],
        key=str,
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'"cat"\n{"prompt": 3}\n', "line 2: prompt must be a non-empty string"),
        ("p.jsonl", b'"cat"\n\n{"prompt"\n', "line 3 is not JSON"),
        ("p.jsonl", b'"cat"\n' + b"[" * 100_000, "line 2 is not JSON"),
        ("p.jsonl", b'"cat"\n"\xff"\n', "line 2 is not UTF-8"),
        ("p.jsonl", b'"' + b"x" * (16 * 1024 * 1024) + b'"', "line 1 has more than"),
        ("p.csv", b"prompt\ncat\n,\n", "line 3: it has more values than the header"),
        ("p.csv", b"prompt,loop\ncat,maybe\n", "line 2: loop must be True or False"),
        ("p.csv", b"prompt,loop\ncat,\n\n,true\n", "line 4: there is no prompt"),
        (
            "p.csv",
            b'prompt,loop\ncat,\n"two\nlines",\n',
            "line 3: unexpected end of data. A cell in quotes ends in its line, .* into JSONL",
        ),
        ("p.csv", b'prompt\ncat\n"dog\n' + b"fox\n" * 1000, "line 3: unexpected end of data"),
        ("p.csv", b'prompt,loop\n"cat,\ndog,\n"a ""b"" c",\n', "line 2: unexpected end of data"),
        ("p.csv", b'prompt\n"cat\rdog"\n', "line 2: unexpected end of data"),
        ("p.csv", b'prompt\n"a cat" and a dog\n', "line 2: ',' expected after '\"'"),
        ("p.csv", b"prompt\ncat\n\0\x01\n", "line 3: prompt must be a non-empty string"),
        ("p.jsonl", b'"cat"\n"\\u0000\\u200b \\u001b"\n', "line 2: prompt must be a non-empty"),
        (
            "p.jsonl",
            b'"cat"\n"dog \\ud83d"\n',
            "line 2: prompt is not Unicode text: character 4 is a lone surr",
        ),
        ("p.csv", b"prompt,id\ncat,7\n", "line 2: unknown field 'id'"),
        ("p.csv", b"prompt,extra_body\ncat,{\n", "line 2: extra_body is not JSON"),
        ("p.csv", b"prompt\n" + b"x" * 200_000 + b"\n", "line 2: field larger than field limit"),
        ("p.txt", b"cat\n", "must end in .jsonl, .ndjson or .csv"),
        ("p.csv", None, "There is no table of prompts at prompts_path"),
    ],
)
def test_an_error_in_a_table_names_the_line_and_nothing_is_sent(
    sandbox: Sandbox, store: Store, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LumaNonRetryableError, match=message):
        BatchTask(store, prompts_path=(tmp_path / name).as_uri()).run()
    assert sandbox.requests == []


def test_an_empty_balance_stops_the_batch_at_once(open_sandbox: Any, store: Store) -> None:
    sandbox = open_sandbox(balance=5, price=1)
    task = BatchTask(store, prompts=[f"cat {number}" for number in range(200)])
    with pytest.raises(LumaNonRetryableError, match="pre-deduct failed, balance 0, needs 1"):
        task.run()
    assert len(sandbox.submits) == 5
    assert len(sandbox.requests) <= 5 + 8
    assert task.submits == {"created": 5, "rejected": {}, "unknown": [], "not_submitted": 195}
    sandbox.balance = 1000
    assert len(task.run()) == len(sandbox.submits) == 200


def test_a_rejected_key_stops_the_batch_at_once(sandbox: Sandbox, store: Store) -> None:
    sandbox.script_submits(*[ScriptedResponse(status=401, body={"message": "no"})] * 200)
    task = BatchTask(store, prompts=[f"cat {number}" for number in range(200)])
    with pytest.raises(LumaNonRetryableError):
        task.run()
    assert len(sandbox.requests) <= 8
    assert task.submits["not_submitted"] == 200


def test_rate_limits_slow_all_submits_down_and_fail_nothing(
    sandbox: Sandbox, store: Store, quick_retries: Any, caplog: pytest.LogCaptureFixture
) -> None:
    storm = [ScriptedResponse(429, headers={"Retry-After": "0.2"})] * 10 + [ScriptedResponse(429)] * 20
    sandbox.script_submits(*storm)
    started = time.monotonic()
    with caplog.at_level("INFO"):
        ids = BatchTask(store, prompts=CATS).run()
    assert len(ids) == len(sandbox.submits) == len(CATS)
    pauses = [message for message in caplog.messages if message.startswith("All submits pause")]
    # The eight that left together, then one at a time.
    assert 20 < len(pauses) <= 30
    assert time.monotonic() - started > 2


def test_a_limit_of_concurrent_generations_is_waited_out(open_sandbox: Any, quick_retries: Any) -> None:
    sandbox = open_sandbox(max_running=3, seconds=0.5)
    ids = BatchTask(None, prompts=CATS).run()
    assert sorted(ids) == sorted(sandbox.task_ids)
    assert len(ids) == len(CATS)
    rejected = sum(request.status == 429 for request in sandbox.requests)
    assert 0 < rejected < 3 * len(CATS)


def test_the_connections_requests_per_minute_hold_for_submits(open_sandbox: Any) -> None:
    sandbox = open_sandbox({"max_requests_per_minute": 600})
    BatchTask(None, prompts=CATS).run()
    times = [request.at for request in sandbox.requests]
    assert max(times) - min(times) > 0.1 * (len(CATS) - 2)


def test_max_generations_counts_all_tries_and_rejected_prompts_do_not_count(
    sandbox: Sandbox, store: Store
) -> None:
    prompts = ["a forbidden dance", *CATS]
    task = BatchTask(store, prompts=prompts, max_generations=5, fail_when="any")
    for left in (7, 8):  # the second try does not come to the rejected prompt
        with pytest.raises(
            LumaTaskFailedError, match=f"{left} were not submitted, because max_generations.*lear this"
        ):
            task.run()
        assert len(sandbox.submits) == 5
        assert task.submits["not_submitted"] == left


def test_an_unknown_outcome_counts_as_a_generation(sandbox: Sandbox, store: Store) -> None:
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    task = BatchTask(store, prompts=CATS, max_generations=3, max_parallel=1)
    assert len(task.run()) == 2
    assert len(sandbox.submits) == 3


def test_the_error_after_an_unknown_outcome_advises_a_look_at_the_log_before_a_clear(
    sandbox: Sandbox, store: Store
) -> None:
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    task = BatchTask(store, prompts=CATS, max_parallel=1, fail_when="any")
    with pytest.raises(LumaTaskFailedError, match="Before you clear this task, check the relay's task log"):
        task.run()


def test_min_balance_stops_before_the_next_submit(open_sandbox: Any, store: Store) -> None:
    sandbox = open_sandbox(balance=2.5, price=1)
    task = BatchTask(store, prompts=CATS, min_balance=3, fail_when="any")
    with pytest.raises(LumaTaskFailedError, match=r"because the balance of 2\.50 USD is below min_balance=3"):
        task.run()
    assert sandbox.submits == []
    assert task.submits["not_submitted"] == len(CATS)
    sandbox.balance = 50
    assert len(task.run()) == len(CATS)


def test_a_relay_that_reports_no_balance_does_not_stop_the_batch(
    sandbox: Sandbox, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert len(BatchTask(store, prompts=CATS, min_balance=3).run()) == len(CATS)


def test_reported_charges_are_summed_up(open_sandbox: Any, store: Store) -> None:
    sandbox = open_sandbox(balance=50, price=0.25)
    task_id = sandbox.add_task()
    sandbox.script_submits(
        ScriptedResponse(body={"code": "success", "data": {"task_id": task_id, "quota": 125_000}}),
        ScriptedResponse(body={"code": "success", "data": {"task_id": "4665a07c-2", "quota": 62_500}}),
    )
    task = BatchTask(store, prompts=CATS[:3])
    task.run()
    assert task.submits["cost"] == {"amount": pytest.approx(0.375), "unit": "USD"}
    task.run()
    assert task.submits["cost"]["amount"] == pytest.approx(0.375)


def test_an_unreachable_relay_ends_the_try_and_the_next_submits_the_rest(
    connect: Any, store: Store, quick_retries: Any
) -> None:
    port = free_port()
    sandbox = Sandbox(tasks=0, relay_port=port)
    with sandbox:
        connect(sandbox)
        first = BatchTask(store, prompts=CATS, max_generations=4)
        first.run_without_recording()
    task = BatchTask(store, prompts=CATS)
    with pytest.raises(RelayTransientError, match="Too many submits in a row"):
        task.run()
    assert task.submits == {"created": 4, "rejected": {}, "unknown": [], "not_submitted": 8}
    assert sorted(task.instance.xcoms["return_value"]) == sorted(sandbox.task_ids)
    with sandbox:
        assert len(task.run()) == 12
    assert sorted(body["user_prompt"] for body in sandbox.submits) == sorted(CATS)


def test_a_gateway_that_fails_every_submit_leaves_few_unknown_outcomes(
    sandbox: Sandbox, store: Store, quick_retries: Any
) -> None:
    sandbox.script_submits(*[ScriptedResponse(status=502)] * 500)
    task = BatchTask(store, prompts=[f"cat {number}" for number in range(500)])
    with pytest.raises(RelayTransientError, match="Too many submits in a row"):
        task.run()
    assert len(task.submits["unknown"]) < 8 + MAX_UNKNOWN_OUTCOMES
    assert task.submits["not_submitted"] == 500 - len(task.submits["unknown"])


def test_a_stop_sends_no_further_submit_and_writes_the_results(
    sandbox: Sandbox, store: Store, monkeypatch: Any
) -> None:
    prompts = [f"cat {number}" for number in range(5000)]
    task = BatchTask(store, prompts=prompts, fail_when="any")
    stopped: list[float] = []

    def wait() -> None:
        while len(sandbox.submits) < 20:
            time.sleep(0.01)
        stopped.append(time.monotonic())

    with pytest.raises(Exception, match="were not submitted, because the task was stopped"):
        task.run_stopped(wait)
    assert time.monotonic() - stopped[0] < 5
    created = len(sandbox.submits)
    assert task.submits["created"] == created < 5000
    assert task.instance.xcoms["return_value"] != []
    assert task.submits["unknown"] == []
    time.sleep(0.3)
    assert len(sandbox.submits) == created
    task.arguments["prompts"] = prompts[: created + 8]
    assert len(task.run()) == len(sandbox.submits) == created + 8


def test_a_stop_before_the_first_submit_sends_nothing(sandbox: Sandbox, store: Store) -> None:
    with pytest.raises(Exception, match="were not submitted"):
        BatchTask(store, prompts=CATS).run_stopped()
    assert sandbox.submits == []


def test_a_submit_that_hangs_does_not_delay_a_stop(sandbox: Sandbox, store: Store) -> None:
    sandbox.script_submits(ScriptedResponse(delay=30))
    task = BatchTask(store, prompts=CATS, max_parallel=1)
    started = time.monotonic()
    with pytest.raises(Exception, match="may have been charged for"):
        task.run_stopped(lambda: time.sleep(0.5))
    assert time.monotonic() - started < 10
    assert task.submits["unknown"] == [0]
    task.run()
    assert task.submits["unknown"] == [0]
    assert len(sandbox.submits) == len(CATS) - 1


class SlowProgress(Store):
    """Takes longer to save the progress than a stop may take."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.begun, self.released = threading.Event(), threading.Event()

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        if key == "luma_progress":
            self.begun.set()
            self.released.wait(60)
        super().set(key, value, retention=retention)


@pytest.mark.parametrize("stops_during_write", [False, True])
def test_a_progress_that_is_slow_to_save_does_not_delay_a_stop(
    sandbox: Sandbox, tmp_path: Path, stops_during_write: bool
) -> None:
    store = SlowProgress(tmp_path / "task_state.json")
    sandbox.script_submits(ScriptedResponse(delay=0 if stops_during_write else 5))
    task = BatchTask(store, prompts=CATS, max_parallel=1)
    started = time.monotonic()
    with pytest.raises(LumaError):
        task.run_stopped(lambda: store.begun.wait(30) if stops_during_write else time.sleep(0.5))
    assert time.monotonic() - started < 30
    assert store.begun.is_set() is stops_during_write
    store.released.set()


def test_a_manifest_has_a_row_for_each_prompt(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    prompts = ["cat dance", "a forbidden dance", "dog dance"]
    task = BatchTask(
        None, prompts=prompts, manifest=True, max_parallel=1, state_path=(tmp_path / "state").as_uri()
    )
    for _ in range(2):
        returned = task.run()
        assert returned["created"] == 1
        manifest = Path(returned["manifest"].removeprefix("file://"))
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        assert [(row["position"], row["status"]) for row in rows] == [
            (0, "unknown"),
            (1, "rejected"),
            (2, "created"),
        ]
        assert rows[2]["id"] == sandbox.task_ids[1]
        assert "sensitive words" in rows[1]["reason"]


@pytest.mark.usefixtures("airflow_db")
def test_a_manifest_that_cannot_be_written_loses_no_xcom(sandbox: Sandbox, tmp_path: Path) -> None:
    task = BatchTask(None, prompts=CATS[:3], manifest=True, state_path=tmp_path.as_uri())
    (tmp_path / object_name(task.instance) / "manifest.jsonl").mkdir(parents=True)
    with pytest.raises(LumaError, match=r"The manifest .* cannot be written"):
        task.run()
    assert task.instance.xcoms["luma_submits"]["created"] == len(sandbox.submits) == 3
    assert task.instance.xcoms["return_value"] == {"manifest": None, "created": 3}


def test_a_stopped_try_names_no_manifest_of_an_earlier_one(sandbox: Sandbox, tmp_path: Path) -> None:
    """That one has the rows of the list as it was."""
    task = BatchTask(None, prompts=CATS[:3], manifest=True, state_path=tmp_path.as_uri())
    task.run_without_recording()
    with pytest.raises(LumaError, match="3 of 4"):
        task.run_stopped(prompts=CATS[:4])
    assert task.instance.xcoms["return_value"] == {"manifest": None, "created": 3}


@pytest.mark.parametrize(
    "response",
    [
        ScriptedResponse(status=403, body={"error": {"code": "content_moderation", "message": "no"}}),
        ScriptedResponse(status=403, body={"message": "sensitive words detected"}),
    ],
)
def test_a_prompt_that_moderation_rejects_by_a_403_does_not_stop_the_others(
    sandbox: Sandbox, store: Store, response: ScriptedResponse
) -> None:
    sandbox.script_submits(response)
    task = BatchTask(store, prompts=CATS[:4], fail_when="never", max_parallel=1)
    assert len(task.run()) == 3
    assert list(task.instance.xcoms["luma_submits"]["rejected"]) == ["0"]


@pytest.mark.parametrize(
    "response",
    [
        ScriptedResponse(status=400, body={"message": "the quota is not enough"}),
        ScriptedResponse(
            status=403, body={"code": "pre_consume_token_quota_failed", "message": "the quota is not enough"}
        ),
    ],
)
def test_a_balance_that_is_too_low_stops_the_batch_whatever_the_status(
    sandbox: Sandbox, store: Store, response: ScriptedResponse
) -> None:
    sandbox.script_submits(*[response] * 4)
    task = BatchTask(store, prompts=CATS[:4], max_parallel=1)
    with pytest.raises(LumaNonRetryableError, match="the quota is not enough"):
        task.run()
    assert len(sandbox.requests) == 1
    assert task.submits == {"created": 0, "rejected": {}, "unknown": [], "not_submitted": 4}


def test_no_signature_of_a_url_is_in_the_reason_of_a_rejection(sandbox: Sandbox, store: Store) -> None:
    message = "failed to fetch https://cdn.example/a.png?X-Amz-Signature=5ec7e7 (400)"
    sandbox.script_submits(ScriptedResponse(status=400, body={"message": message}))
    task = BatchTask(store, prompts=CATS[:1], fail_when="never")
    task.run()
    assert "https://cdn.example/a.png?…" in str(task.instance.xcoms)
    assert "5ec7e7" not in str(task.instance.xcoms) + str(store.get("luma_journal_0"))


def test_a_machine_that_cannot_start_all_threads_submits_with_fewer(
    sandbox: Sandbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    started: list[str] = []

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith("luma-submit-") and thread.name[-1].isdigit():
            started.append(thread.name)
            if len(started) > 2:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)  # no real limit hits these threads alone
    assert len(BatchTask(store, prompts=CATS).run()) == len(CATS)
    assert len(started) == 3


@pytest.mark.usefixtures("airflow_db")
def test_without_a_journal_airflow_retries_nothing_after_a_submit(
    sandbox: Sandbox, quick_retries: Any
) -> None:
    sandbox.script_submits(ScriptedResponse(), *[ScriptedResponse(status=502)] * 3, created=True)
    run = generate(
        "LumaGenerateBatchOperator(**ARGUMENTS)", prompts=CATS, retries=2, max_parallel=1, durable=False
    )
    assert (run.states["generate"], run.tries["generate"]) == ("failed", 1)


@pytest.mark.usefixtures("airflow_db")
def test_without_a_journal_a_try_that_created_nothing_may_be_retried(
    sandbox: Sandbox, quick_retries: Any, monkeypatch: Any
) -> None:
    gone = {"conn_type": "luma", "host": "http://127.0.0.1:9", "password": "k"}
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(gone))
    run = generate("LumaGenerateBatchOperator(**ARGUMENTS)", prompts=CATS, retries=1, durable=False)
    assert (run.states["generate"], run.tries["generate"]) == ("failed", 2)


def test_progress_is_in_the_task_state_store(sandbox: Sandbox, store: Store) -> None:
    BatchTask(store, prompts=["cat dance", "a forbidden dance"]).run()
    assert store.get("luma_progress") == "2 of 2 prompts are submitted, 1 of them rejected"
