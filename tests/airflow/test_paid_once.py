"""One prompt, one charge: each phase of the record, for each kind of try, and a kill at every line."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout

from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError, LumaTaskFailedError
from airflow_provider_luma.exceptions import (
    LumaError,
    LumaValueError,
    RelayTransientError,
    SubmitRecordError,
)
from airflow_provider_luma.operators.luma import LumaGenerateOperator
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.submit.record import ACTIONS, Action, Phase, SubmitRecord
from airflow_provider_luma.submit.record_store import KEY, object_name
from tests.airflow.generate_harness import KILLED, GenerateTask, Store

# Each line takes a try of its own; `make test-kills` takes them all.
STEP = int(os.environ.get("LUMA_KILLS_STEP", "4"))
CREATED_BEFORE = "created-before-4665a07c"


class FailingStore(Store):
    """Fails from the second write on, as a database may that goes away right after the submit."""

    def __init__(self, file: Path, writes: int = 0) -> None:
        super().__init__(file)
        self._writes = writes

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._writes += 1
        if self._writes > 1:
            raise ConnectionError("the api-server is gone")
        super().set(key, value)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "task_state.json")


@pytest.fixture(params=["task state store", "state_path"])
def task(request: pytest.FixtureRequest, store: Store, tmp_path: Path, sandbox: Sandbox) -> GenerateTask:
    """A task whose record lives in either place."""
    if request.param == "state_path":
        return GenerateTask(None, state_path=state_path(tmp_path))
    return GenerateTask(store)


def state_path(tmp_path: Path) -> str:
    (tmp_path / "state").mkdir(exist_ok=True)
    return (tmp_path / "state").as_uri()


def write_record(task: GenerateTask, record: SubmitRecord) -> None:
    if task.store is not None:
        task.store.set(KEY, record.to_dict())
    else:
        _object_of(task).parent.mkdir(parents=True, exist_ok=True)
        _object_of(task).write_text(json.dumps(record.to_dict()))


def read_record(task: GenerateTask) -> SubmitRecord | None:
    if task.store is not None:
        data = task.store.get(KEY)
    else:
        file = _object_of(task)
        data = json.loads(file.read_text()) if file.exists() else None
    return None if data is None else SubmitRecord.from_dict(data)


def _object_of(task: GenerateTask) -> Path:
    folder = Path(str(task.arguments["state_path"]).removeprefix("file://"))
    return folder / f"{object_name(task.instance)}.json"


CELLS = [
    pytest.param(phase, is_cleared, id=f"{phase or 'no record'}-{'cleared' if is_cleared else 'retry'}")
    for phase in ACTIONS
    for is_cleared in (False, True)
]


@pytest.mark.parametrize(("phase", "is_cleared"), CELLS)
def test_each_phase_leads_to_the_action_in_its_row(
    task: GenerateTask, sandbox: Sandbox, phase: Phase | None, is_cleared: bool
) -> None:
    action = ACTIONS[phase][is_cleared]
    if phase is not None:
        begun = SubmitRecord.sending(Generation("cat dance"), task.instance.max_tries)
        write_record(task, begun.at(phase, begun.max_tries, id=CREATED_BEFORE, reason="it was said before"))
    if is_cleared:
        task.clear()
    if action is Action.SUBMIT:
        assert task.run() in sandbox.task_ids
    elif action is Action.RECONNECT:
        assert task.run() == CREATED_BEFORE
    elif action is Action.FAIL_UNKNOWN:
        with pytest.raises(LumaNonRetryableError, match="If not, clear this task to submit again"):
            task.run()
    else:
        with pytest.raises(LumaTaskFailedError, match="it was said before"):
            task.run()
    assert len(sandbox.submits) == (action is Action.SUBMIT)
    record = read_record(task)
    assert record is not None
    expected = {Action.FAIL_UNKNOWN: Phase.REPORTED, Action.FAIL_AGAIN: Phase.FAILED}.get(
        action, Phase.RETURNED
    )
    assert record.phase is expected


def test_the_documentation_shows_the_table_that_the_code_has() -> None:
    page = (Path(__file__).parents[2] / "docs/generate.md").read_text()
    words = {
        Action.SUBMIT: "submits",
        Action.FAIL_UNKNOWN: "fails: outcome unknown",
        Action.RECONNECT: "reconnects",
        Action.FAIL_AGAIN: "fails again",
    }
    for phase, (retry, cleared) in ACTIONS.items():
        name = f"`{phase}`" if phase else "no record"
        assert re.search(
            rf"^\| {name} \|[^|]*\| {words[retry]} \| {words[cleared]} \|$", page, re.MULTILINE
        ), name


@pytest.mark.parametrize("way_back", ["retry", "clear"])
def test_a_kill_at_any_line_is_paid_for_once(
    sandbox: Sandbox, tmp_path: Path, way_back: str, quick_retries: Any
) -> None:
    """After each kill comes a try, which fails, reconnects or submits: one charge at the most."""
    line, died, unknown_outcomes, reconnects = 0, True, 0, 0
    while died:
        line += STEP
        task = GenerateTask(Store(tmp_path / f"{line}.json"))
        before = len(sandbox.submits)
        died = task.run_killed_at(line) == KILLED
        if not died:
            break
        charged = len(sandbox.submits) - before
        left = read_record(task)
        if way_back == "clear":
            task.clear()
        try:
            task_id = task.run()
        except LumaNonRetryableError:
            unknown_outcomes += 1
            assert read_record(task).phase is Phase.REPORTED  # type: ignore[union-attr]
            assert len(sandbox.submits) - before == charged <= 1
            continue
        reconnects += charged
        record = read_record(task)
        assert record is not None
        assert (record.phase, record.id) == (Phase.RETURNED, task_id)
        # Airflow had recorded the success before: who clears such a task wants another clip.
        wants_another = way_back == "clear" and left is not None and left.phase is Phase.RETURNED
        assert len(sandbox.submits) - before == 1 + wants_another, f"line {line}"
    assert line > 200
    assert unknown_outcomes > 20 / STEP
    assert reconnects > 20 / STEP


def test_a_kill_at_any_line_of_an_unknown_outcome_is_never_paid_for_again_by_a_retry(
    sandbox: Sandbox, tmp_path: Path, quick_retries: Any
) -> None:
    line, died = 0, True
    while died:
        line += STEP
        task = GenerateTask(Store(tmp_path / f"{line}.json"))
        before = len(sandbox.submits)
        sandbox.script_submits(ScriptedResponse(status=502), created=True)
        died = task.run_killed_at(line) == KILLED
        charged = len(sandbox.submits) - before
        if charged:
            for _ in range(2):  # a retry, and one more: either may be the first to report the unknown outcome
                with pytest.raises(LumaNonRetryableError, match="may have created and charged for a task"):
                    task.run()
            assert len(sandbox.submits) - before == 1, f"line {line}"
        else:
            sandbox.clear_scripts()
    assert line > 200


def test_a_success_that_airflow_did_not_record_is_not_paid_for_again_when_cleared(
    task: GenerateTask, sandbox: Sandbox
) -> None:
    first = task.run_without_recording()
    task.clear()
    assert task.run() == first
    assert len(sandbox.submits) == 1
    task.clear()
    assert task.run() != first
    assert len(sandbox.submits) == 2


def test_an_unknown_outcome_is_reported_whatever_the_templates_render_to(
    task: GenerateTask, sandbox: Sandbox
) -> None:
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    with pytest.raises(LumaNonRetryableError):
        task.run(notify_hook="https://a.example/1")
    for prompt in ("dog dance", ""):  # the latter could not be submitted at all
        with pytest.raises(LumaNonRetryableError, match="may have created and charged for a task"):
            task.run(prompt=prompt)
    assert len(sandbox.submits) == 1


def test_a_created_task_is_reconnected_to_though_the_templates_render_differently(
    task: GenerateTask, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    first = task.run_without_recording()
    assert task.run(prompt="dog dance") == first
    assert "render differently" in capsys.readouterr().out
    assert len(sandbox.submits) == 1


def test_clearing_with_deletion_of_the_state_pays_again_only_without_state_path(
    store: Store, tmp_path: Path, sandbox: Sandbox
) -> None:
    unsafe = GenerateTask(store)
    unsafe.run_without_recording()
    unsafe.clear(keeps_state=False)
    unsafe.run()
    assert len(sandbox.submits) == 2
    safe = GenerateTask(Store(tmp_path / "other.json"), state_path=state_path(tmp_path))
    first = safe.run_without_recording()
    safe.clear(keeps_state=False)
    assert safe.run() == first
    assert len(sandbox.submits) == 3


def test_where_a_clear_deletes_the_state_the_log_names_the_button_to_use(
    store: Store,
    tmp_path: Path,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "airflow_provider_luma.submit.record_store.CLEAR_DELETES_STATE", True
    )  # as on Airflow 3.4
    GenerateTask(store).run()
    assert "Clear this task with 'keep task state'" in capsys.readouterr().out
    GenerateTask(store, state_path=state_path(tmp_path), prompt="dog dance").run()
    assert "keep task state" not in capsys.readouterr().out


def test_a_task_that_is_given_a_state_path_later_finds_its_earlier_record(
    store: Store, tmp_path: Path, sandbox: Sandbox
) -> None:
    task = GenerateTask(store)
    first = task.run_without_recording()
    task.arguments["state_path"] = state_path(tmp_path)
    assert task.run_without_recording() == first
    task.clear(keeps_state=False)
    assert task.run() == first
    assert len(sandbox.submits) == 1


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "null", "[]", "{}", '{"version": 2}', '{"version": 1, "phase": "paid"}', "x" * 70_000),
        '{"version": 1, "phase": "created", "max_tries": 0, "fingerprint": "f"}',
        '{"version": true, "phase": "returned", "max_tries": 0, "fingerprint": "f", "id": "a"}',
        '{"version": 1, "phase": "sending", "max_tries": Infinity, "fingerprint": "f"}',
        '{"version": 1, "phase": "sending", "max_tries": "1", "fingerprint": "f"}',
        '{"version": 1, "phase": "sending", "max_tries": true, "fingerprint": "f"}',
        f'{{"version": 1, "phase": "created", "max_tries": 0, "fingerprint": "f", "id": "{"a" * 60_000}"}}',
        '{"version": 1, "phase": "created", "max_tries": 0, "fingerprint": "f", "id": "\\ud83d"}',
        '{"version": 1, "phase": "created", "max_tries": 0, "fingerprint": "f", "id": 7}',
    ],
)
def test_a_record_that_cannot_be_read_is_an_error_and_nothing_is_sent(
    tmp_path: Path, sandbox: Sandbox, content: str
) -> None:
    task = GenerateTask(None, state_path=state_path(tmp_path))
    _object_of(task).parent.mkdir(parents=True)
    _object_of(task).write_text(content)
    with pytest.raises(LumaNonRetryableError, match=r"generate/-1\.json, cannot be read"):
        task.run()
    assert sandbox.requests == []


def test_two_tries_that_overlap_cannot_both_submit(task: GenerateTask) -> None:
    first, second = task.open_ledger(), task.open_ledger()
    first.begin(Generation("cat dance"))
    with pytest.raises(SubmitRecordError, match="another process has written it meanwhile"):
        second.begin(Generation("cat dance"))


def test_a_store_that_fails_before_the_submit_is_named_and_may_be_retried(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    task = GenerateTask(FailingStore(tmp_path / "s.json", writes=1))
    with pytest.raises(LumaError, match="task state store, cannot be written: ConnectionError"):
        task.run()
    assert sandbox.requests == []


@pytest.mark.parametrize("way_back", ["retry", "clear"])
def test_a_success_that_airflow_rejected_was_not_returned(
    task: GenerateTask, sandbox: Sandbox, way_back: str
) -> None:
    """As when it was cleared, or considered dead, while it ran: success callbacks are called nevertheless."""
    task.instance.is_success_recorded = False
    first = task.run()
    assert read_record(task).phase is Phase.CREATED  # type: ignore[union-attr]
    if way_back == "clear":
        task.clear()
    assert task.run() == first
    assert len(sandbox.submits) == 1


def test_a_reconnect_pushes_the_id_as_a_submit_does(task: GenerateTask, sandbox: Sandbox) -> None:
    first = task.run_without_recording()
    task.instance.xcoms.clear()
    task.run()
    assert task.instance.xcoms["luma_task"]["id"] == first


class RecordingStore(Store):
    """Remembers the phases that were saved."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.phases: list[str] = []

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        super().set(key, value, retention=retention)
        self.phases += [value["phase"]] if key == KEY else []


def test_a_task_that_ends_while_it_waits_for_a_rate_limit_was_not_sent(
    tmp_path: Path, sandbox: Sandbox, quick_retries: Any
) -> None:
    sandbox.script_submits(*[ScriptedResponse(status=429, headers={"Retry-After": "0.1"})] * 2)
    task = GenerateTask(RecordingStore(tmp_path / "s.json"))
    task.run()
    assert task.store.phases == [*["sending", "not_created"] * 2, "sending", "created", "returned"]  # type: ignore[union-attr]
    assert len(sandbox.submits) == 1


def test_the_signature_of_a_url_in_the_response_is_not_in_xcom(task: GenerateTask, sandbox: Sandbox) -> None:
    url = "https://cdn.example/first.png?X-Amz-Signature=5ec7e7"
    sandbox.script_submits(ScriptedResponse(body={"id": "4665a07c", "image_url": url}))
    task.run()
    assert "https://cdn.example/first.png" in task.instance.xcoms["luma_task"]["response"]
    assert "5ec7e7" not in str(task.instance.xcoms)


def test_the_intervals_of_a_wait_may_be_timedeltas() -> None:
    operator = LumaGenerateOperator(
        task_id="generate", prompt="cat", timeout=timedelta(hours=1), poke_interval=timedelta(seconds=5)
    )
    assert (operator.timeout, operator.poke_interval) == (3600, 5)
    with pytest.raises(LumaValueError, match="timeout"):
        LumaGenerateOperator(task_id="generate", prompt="cat", timeout=timedelta(0))


def test_a_missing_folder_is_an_error_and_not_an_absent_record(tmp_path: Path, sandbox: Sandbox) -> None:
    task = GenerateTask(None, state_path=state_path(tmp_path))
    task.run_without_recording()
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    with pytest.raises(LumaNonRetryableError, match="Create or mount it"):
        task.run()
    assert len(sandbox.submits) == 1


def test_the_id_is_in_log_and_error_when_its_record_cannot_be_saved(
    tmp_path: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    task = GenerateTask(FailingStore(tmp_path / "s.json"))
    with caplog.at_level("INFO"), pytest.raises(LumaNonRetryableError) as error:
        task.run()
    (task_id,) = sandbox.task_ids
    assert f"Luma task {task_id} was created and charged, but its record could not be saved" in str(
        error.value
    )
    assert f"Luma task {task_id} was created" in caplog.messages
    task.store = Store(tmp_path / "s.json")
    with pytest.raises(LumaNonRetryableError, match="before it saw a response"):
        task.run()
    assert len(sandbox.submits) == 1


@pytest.mark.parametrize(
    ("extra", "arguments", "message"),
    [
        ({"verify": "/nowhere/ca.pem"}, {}, "path of a CA bundle"),
        ({"proxies": {"http": "http://user:pa#ss@proxy:1"}}, {}, "is not a URL like"),
        ({"timeout": "inf"}, {}, "timeout"),
        ({}, {"extra_body": {"at": float("nan")}}, "cannot be sent as JSON"),
        ({}, {"extra_body": {"at": object()}}, "cannot be sent as JSON"),
        ({"state_path": "bucket/_luma"}, {}, "state_path must be the URL"),
        ({"state_path": "file://data/_luma"}, {}, "state_path must be an absolute path"),
        ({"state_path": "ftp://data/_luma"}, {}, "No object storage for state_path"),
    ],
)
def test_an_invalid_generation_fails_before_its_record_is_saved(
    store: Store, sandbox: Sandbox, connect: Any, extra: Any, arguments: Any, message: str
) -> None:
    connect(sandbox, **extra)
    task = GenerateTask(store, **arguments)
    with pytest.raises(LumaNonRetryableError, match=message) as error:
        task.run()
    assert "pa#ss" not in str(error.value)
    assert store.get(KEY) is None
    assert sandbox.requests == []


def test_a_submit_that_was_provably_not_sent_may_be_sent_by_the_next_try(
    task: GenerateTask, sandbox: Sandbox, connect: Any, quick_retries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        gone = {"conn_type": "luma", "host": "http://127.0.0.1:9", "password": "k"}
        patched.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(gone))
        with pytest.raises(Exception, match="No response from the relay"):
            task.run()
        assert read_record(task).phase is Phase.NOT_CREATED  # type: ignore[union-attr]
    assert task.run() in sandbox.task_ids
    assert len(sandbox.submits) == 1


WAITING = {"wait_for_completion": True, "poke_interval": 0.05}


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("way_back", ["retry", "clear"])
def test_a_rejection_while_waiting_keeps_the_record(
    task: GenerateTask, sandbox: Sandbox, status: int, way_back: str
) -> None:
    body = {"code": "insufficient_user_quota", "message": "no"} if status == 403 else {"message": "no"}
    sandbox.script(ScriptedResponse(status=status, body=body))
    with pytest.raises(LumaNonRetryableError):
        task.run(**WAITING)
    if way_back == "clear":
        task.clear()
    sandbox.add_task(task_id=sandbox.task_ids[0], seconds=0)
    assert task.run(**WAITING)["id"] == sandbox.task_ids[0]
    assert len(sandbox.submits) == 1


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 1e300, 10**400])
@pytest.mark.parametrize("name", ["timeout", "poke_interval"])
def test_a_wait_beyond_what_a_clock_can_measure_is_an_error_of_the_dag(name: str, number: float) -> None:
    with pytest.raises(LumaValueError, match=name):
        LumaGenerateOperator(task_id="generate", prompt="cat dance", **{name: number})


def test_a_task_that_is_no_longer_completed_is_not_returned(task: GenerateTask, sandbox: Sandbox) -> None:
    """As where two servers of a relay differ: the sensor saw it completed."""
    running = sandbox.add_task(seconds=3600)
    sandbox.script_submits(ScriptedResponse(body={"id": running}))
    sandbox.script(ScriptedResponse(body=[{"id": running, "state": "completed"}]))
    with pytest.raises(RelayTransientError, match="was completed, and now is"):
        task.run(**WAITING)
    assert read_record(task).phase is Phase.CREATED  # type: ignore[union-attr]


def test_a_task_that_failed_after_all_ends_the_record(task: GenerateTask, sandbox: Sandbox) -> None:
    bad = sandbox.add_task(seconds=0, failure_reason="moderation")
    sandbox.script_submits(ScriptedResponse(body={"id": bad}))
    sandbox.script(ScriptedResponse(body=[{"id": bad, "state": "completed"}]))
    with pytest.raises(LumaTaskFailedError, match="moderation"):
        task.run(**WAITING)
    assert read_record(task).phase is Phase.FAILED  # type: ignore[union-attr]


def test_only_a_generation_that_failed_ends_the_record(task: GenerateTask, sandbox: Sandbox) -> None:
    bad = sandbox.add_task(seconds=0, failure_reason="moderation")
    sandbox.script_submits(ScriptedResponse(body={"id": bad}))
    with pytest.raises(LumaTaskFailedError, match="moderation"):
        task.run(**WAITING)
    assert read_record(task).phase is Phase.FAILED  # type: ignore[union-attr]
    with pytest.raises(LumaTaskFailedError, match="moderation"):  # a retry, as after a worker that died
        task.run(**WAITING)
    task.clear()
    task.run()
    assert len(sandbox.submits) == 1


def test_an_unreadable_connection_at_the_resumption_is_not_retried_without_a_record(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next try would submit again."""
    task = GenerateTask(None, wait_for_completion=True, deferrable=True)
    operator, context = task.prepare({})
    server_context = SimpleNamespace(should_retry=True)
    task.instance._ti_context_from_server = server_context  # type: ignore[attr-defined]
    monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
    with pytest.raises(Exception, match="luma_default"):
        operator.resume_execution("execute_complete", {"event": {}}, context)  # type: ignore[arg-type]
    assert server_context.should_retry is False


def test_an_execution_timeout_while_it_connects_leaves_no_doubt(
    task: GenerateTask, sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(8)]  # the backlog is full: no SYN is answered any more
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        sandbox_connection = os.environ["AIRFLOW_CONN_LUMA_DEFAULT"]
        host = f"http://127.0.0.1:{full.getsockname()[1]}"
        os.environ["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps(sandbox.connection | {"host": host})
        with pytest.raises(AirflowTaskTimeout), timeout(2):
            task.run()
        for client in waiting:
            client.close()
    os.environ["AIRFLOW_CONN_LUMA_DEFAULT"] = sandbox_connection
    assert read_record(task).phase is Phase.NOT_CREATED  # type: ignore[union-attr]
    assert task.run() in sandbox.task_ids
    assert len(sandbox.submits) == 1


@pytest.mark.parametrize("error", [ConnectionError, AirflowTaskTimeout])
def test_a_lost_write_of_the_intent_leaves_no_doubt(
    tmp_path: Path, sandbox: Sandbox, error: type[BaseException]
) -> None:
    class LosingStore(Store):
        writes = 0

        def set(self, key: str, value: Any, *, retention: Any = None) -> None:
            super().set(key, value)
            self.writes += 1
            if self.writes == 1:
                raise error("the response to the write was lost")

    task = GenerateTask(LosingStore(tmp_path / "state.json"))
    with pytest.raises((LumaError, AirflowTaskTimeout), match="response to the write was lost"):
        task.run()
    assert task.run() in sandbox.task_ids
    assert len(sandbox.submits) == 1


def test_a_stop_in_the_wait_for_a_rate_limit_submits_nothing(task: GenerateTask, sandbox: Sandbox) -> None:
    sandbox.script_submits(ScriptedResponse(status=429, headers={"Retry-After": "60"}))
    started = time.monotonic()
    with pytest.raises(LumaError, match="stopped before the submit was sent"):
        task.run_stopped(lambda: time.sleep(1))
    assert time.monotonic() - started < 30
    assert sandbox.submits == []
    assert task.run() in sandbox.task_ids
