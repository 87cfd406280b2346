"""Where records are kept must be the same for every try, else a later try takes them for none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError
from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.submit.record import Action, SubmitRecord
from tests.airflow.generate_harness import BatchTask, GenerateTask, Store

Connect = Callable[..., None]
TASKS = [pytest.param(GenerateTask, id="one"), pytest.param(BatchTask, id="batch")]
ARGUMENTS: dict[type[GenerateTask], dict[str, Any]] = {
    GenerateTask: {},
    BatchTask: {"prompts": ["cat dance", "dog dance"]},
}


@pytest.fixture
def connect_with(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Define a connection of the sandbox with extra fields."""

    def connect(conn_id: str, **extra: Any) -> None:
        connection = sandbox.connection | {"extra": {**sandbox.connection.get("extra", {}), **extra}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    return connect


def folder(tmp_path: Path, name: str) -> str:
    (tmp_path / name).mkdir()
    return (tmp_path / name).as_uri()


@pytest.mark.parametrize("kind", TASKS)
def test_a_retry_with_another_connection_does_not_pay_again(
    tmp_path: Path, sandbox: Sandbox, connect_with: Connect, kind: type[GenerateTask]
) -> None:
    places = [folder(tmp_path, "a"), folder(tmp_path, "b")]
    connect_with("relay_a", state_path=places[0])
    connect_with("relay_b", state_path=places[1])
    task = kind(Store(tmp_path / "state.json"), **ARGUMENTS[kind], luma_conn_id="relay_a")
    first = task.run_without_recording()
    charged = len(sandbox.submits)
    task.arguments["luma_conn_id"] = "relay_b"
    with pytest.raises(LumaNonRetryableError, match=f"kept below {places[0]}, .* below {places[1]}"):
        task.run()
    task.arguments["luma_conn_id"] = "relay_a"
    assert task.run() == first
    assert len(sandbox.submits) == charged


@pytest.mark.parametrize("kind", TASKS)
def test_a_state_path_that_is_taken_away_is_an_error(
    tmp_path: Path, sandbox: Sandbox, kind: type[GenerateTask]
) -> None:
    task = kind(Store(tmp_path / "state.json"), **ARGUMENTS[kind], state_path=folder(tmp_path, "a"))
    task.run_without_recording()
    charged = len(sandbox.submits)
    del task.arguments["state_path"]
    with pytest.raises(LumaNonRetryableError, match="Use the same state_path and luma_conn_id"):
        task.run()
    assert len(sandbox.submits) == charged


def test_records_that_an_idle_try_has_moved_do_not_hide_those_of_a_later_try(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """A state_path is added, taken away and added again; the try that had it first saved nothing by it."""
    store = Store(tmp_path / "state.json")
    path = folder(tmp_path, "a")
    task = GenerateTask(store)
    sandbox.script_submits(ScriptedResponse(status=402, body={"message": "insufficient balance"}))
    with pytest.raises(LumaNonRetryableError):
        task.run()
    with pytest.raises(LumaNonRetryableError, match="image_url"):
        task.run(state_path=path, image_url="ftp://x")
    first = task.run_without_recording()
    assert task.run(state_path=path) == first
    assert len(sandbox.task_ids) == 1


def test_a_copy_never_replaces_what_another_try_has_begun(tmp_path: Path, sandbox: Sandbox) -> None:
    """The other try has saved ``sending`` below the new state_path, and has not remembered it yet."""
    store = Store(tmp_path / "state.json")
    task = GenerateTask(store, state_path=folder(tmp_path, "a"))
    sandbox.script_submits(ScriptedResponse(status=402, body={"message": "insufficient balance"}))
    with pytest.raises(LumaNonRetryableError):
        task.run(state_path=None)
    sending = SubmitRecord.sending(Generation("cat dance"), task.instance.max_tries)
    first, second = task.open_ledger(), task.open_ledger()
    assert first.next_action() is second.next_action() is Action.SUBMIT
    with pytest.raises(SubmitRecordError, match="another process has written it"):
        first.save(sending)
    second.save(sending)
    store.set("luma_state_path", None)
    assert task.open_ledger().next_action() is Action.FAIL_UNKNOWN


def test_a_retry_that_only_reconnects_needs_no_store_that_can_be_written(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    class ReadOnly(Store):
        def set(self, key: str, value: Any, *, retention: Any = None) -> None:
            raise ConnectionError("the store is full")

    task = BatchTask(Store(tmp_path / "state.json"), prompts=["cat", "dog"])
    first = task.run_without_recording()
    task.store = ReadOnly(tmp_path / "state.json")
    assert task.run_without_recording() == first


def test_a_batch_that_submits_nothing_remembers_where_it_moved_its_records(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    task = BatchTask(Store(tmp_path / "state.json"), prompts=["cat", "dog"], max_generations=1)
    task.run_without_recording()
    task.run_without_recording(state_path=folder(tmp_path, "a"))
    with pytest.raises(LumaNonRetryableError, match="Use the same state_path"):
        task.run(max_generations=2)
    assert len(sandbox.submits) == 1


def test_a_place_in_which_nothing_was_saved_may_change(tmp_path: Path, sandbox: Sandbox) -> None:
    task = GenerateTask(Store(tmp_path / "state.json"), state_path=(tmp_path / "not there").as_uri())
    with pytest.raises(Exception, match="not there"):
        task.run()
    task.arguments["state_path"] = folder(tmp_path, "a")
    task.run()
    assert len(sandbox.submits) == 1


def test_a_slash_at_the_end_is_no_other_place(tmp_path: Path, sandbox: Sandbox) -> None:
    task = GenerateTask(Store(tmp_path / "state.json"), state_path=folder(tmp_path, "a"))
    first = task.run_without_recording()
    task.arguments["state_path"] += "/"
    assert task.run() == first
    assert len(sandbox.submits) == 1


@pytest.mark.parametrize("luma_conn_id", ["{{ params.relay }}", "relay_{{ ti.try_number }}"])
def test_a_templated_connection_gives_no_place_where_none_can_be_remembered(
    tmp_path: Path, sandbox: Sandbox, connect_with: Connect, luma_conn_id: str
) -> None:
    connect_with("relay_1", state_path=folder(tmp_path, "a"))
    task = GenerateTask(None, luma_conn_id=luma_conn_id)
    operator, context = task.prepare({})
    operator.luma_conn_id = "relay_1"  # as rendered
    with pytest.raises(LumaNonRetryableError, match="Give state_path to the operator itself"):
        operator.execute(context)  # type: ignore[arg-type]
    assert not sandbox.submits


@pytest.mark.parametrize(
    "state_path",
    [
        *(5, ["/data"], b"/data", Path("/data"), "data", "s3://", "s3://[bad/x", "nowhere"),
        *("s3://bucket/_luma#prod", "s3://bucket/_luma?versionId=1", "file://host/data"),
    ],
)
def test_a_state_path_that_is_none_is_a_clear_error(
    tmp_path: Path, sandbox: Sandbox, state_path: Any
) -> None:
    task = GenerateTask(Store(tmp_path / "state.json"), state_path=state_path)
    with pytest.raises(LumaNonRetryableError, match="state_path must be"):
        task.run()
    assert not sandbox.submits


@pytest.mark.parametrize("kind", TASKS)
def test_a_volume_that_is_not_mounted_does_not_pay_again(
    tmp_path: Path, sandbox: Sandbox, kind: type[GenerateTask]
) -> None:
    """Its mount point is there, and empty; the task state store knows that there were records."""
    task = kind(Store(tmp_path / "state.json"), **ARGUMENTS[kind], state_path=folder(tmp_path, "volume"))
    first = task.run_without_recording()
    charged = len(sandbox.submits)
    (tmp_path / "volume").rename(tmp_path / "elsewhere")
    folder(tmp_path, "volume")
    with pytest.raises(LumaNonRetryableError, match=r"is missing, .*not mounted\. Nothing was sent"):
        task.run()
    (tmp_path / "volume").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "volume")
    assert task.run() == first
    assert len(sandbox.submits) == charged


@pytest.mark.parametrize("kind", TASKS)
def test_a_templated_connection_names_no_state_path_where_a_clear_forgets_it(
    tmp_path: Path,
    sandbox: Sandbox,
    connect_with: Connect,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[GenerateTask],
) -> None:
    monkeypatch.setattr("airflow_provider_luma.submit.record_store.CLEAR_DELETES_STATE", True)  # as on 3.4
    connect_with("relay_a", state_path=folder(tmp_path, "a"))
    task = kind(Store(tmp_path / "state.json"), **ARGUMENTS[kind], luma_conn_id="{{ params.relay }}")
    operator, context = task.prepare({})
    operator.luma_conn_id = "relay_a"  # as it renders
    with pytest.raises(LumaNonRetryableError, match="Give state_path to the operator itself"):
        operator.execute(context)  # type: ignore[arg-type]
    assert sandbox.submits == []


def test_an_extra_that_is_not_json_is_an_error_and_not_an_empty_one(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sandbox.connection | {"extra": '{"state_path": "file:///data/_luma",}'}
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(connection))
    with pytest.raises(LumaNonRetryableError, match="extra of the connection 'luma_default' is not a JSON"):
        GenerateTask(None).run()
    assert sandbox.submits == []


def test_a_moved_batch_does_not_go_back_to_what_it_was_before(tmp_path: Path, sandbox: Sandbox) -> None:
    prompts = [f"cat dance {number}" for number in range(4)]
    task = BatchTask(Store(tmp_path / "state.json"), prompts=prompts, max_generations=1, max_parallel=1)
    task.run_without_recording()
    task.arguments |= {"state_path": folder(tmp_path, "a"), "max_generations": None}
    task.run_without_recording()
    (segment,) = (tmp_path / "a").rglob("0.json")
    segment.unlink()
    with pytest.raises(LumaNonRetryableError, match=r"0\.json, is missing"):
        task.run()
    assert len(sandbox.submits) == len(prompts)


def test_a_batch_that_is_killed_while_it_moves_finds_all_of_its_records(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    task = BatchTask(Store(tmp_path / "state.json"), prompts=["cat dance", "dog dance"])
    first = task.run_without_recording()
    task.arguments["state_path"] = folder(tmp_path, "a")
    task.run_without_recording()
    (segment,) = (tmp_path / "a").rglob("0.json")
    segment.unlink()  # as if it had not come to this one
    assert task.run() == first
    assert len(sandbox.submits) == 2


def test_an_error_of_the_store_shows_no_secret(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DownStore(Store):
        def get(self, key: str, default: Any = None) -> Any:
            raise ConnectionError("could not connect to http://gw:Pa55word-of-gw@127.0.0.1:1/x")

    with pytest.raises(Exception, match="cannot be read at the moment") as error:
        GenerateTask(DownStore(tmp_path / "state.json")).run()
    assert "Pa55word" not in str(error.value)
