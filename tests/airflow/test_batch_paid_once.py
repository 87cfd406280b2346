"""A batch: one charge for each prompt, by the table of the phases, and a kill at every line."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError, LumaTaskFailedError
from airflow_provider_luma.exceptions import RelayTransientError, SubmitRecordError
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.submit.journal import HEADER_KEY, SEGMENT_SIZE, Header
from airflow_provider_luma.submit.record import ACTIONS, Action, Phase, SubmitRecord
from airflow_provider_luma.submit.record_store import AirflowRecordStore, object_name
from tests.airflow.generate_harness import KILLED, BatchTask, Store

# Each line takes a try of its own; `make test-kills` takes them all.
STEP = int(os.environ.get("LUMA_KILLS_STEP", "40"))
CREATED_BEFORE = "created-before-4665a07c"
PROMPTS = [f"cat dance {number}" for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "task_state.json")


def state_path(tmp_path: Path) -> str:
    (tmp_path / "state").mkdir(exist_ok=True)
    return (tmp_path / "state").as_uri()


def charges(sandbox: Sandbox, since: int = 0) -> Counter[str]:
    return Counter(body["user_prompt"] for body in sandbox.submits[since:])


def prompts_of(sandbox: Sandbox, ids: list[str]) -> list[str]:
    """Return what each task was created for."""
    created = dict(zip(sandbox.task_ids, sandbox.submits, strict=True))
    return [created[task_id]["user_prompt"] for task_id in ids]


CELLS = [
    pytest.param(phase, is_cleared, id=f"{phase or 'no record'}-{'cleared' if is_cleared else 'retry'}")
    for phase in ACTIONS
    for is_cleared in (False, True)
    if phase is not Phase.FAILED  # a batch does not wait for its generations
]


@pytest.mark.parametrize(("phase", "is_cleared"), CELLS)
def test_each_phase_leads_to_the_action_in_its_row(
    store: Store, sandbox: Sandbox, phase: Phase | None, is_cleared: bool
) -> None:
    task = BatchTask(store, prompts=PROMPTS[:2])
    if phase is not None:
        begun = SubmitRecord.sending(Generation(PROMPTS[1]), 0)
        kept = Phase.CREATED if phase is Phase.RETURNED else phase
        record = begun.at(kept, 0, id=CREATED_BEFORE if kept is Phase.CREATED else None, reason="as said")
        returned = {"successes": 1, "returned": 0} if phase is Phase.RETURNED else {}
        store.set(HEADER_KEY, Header(slots=2, **returned).to_dict())
        store.set(f"{HEADER_KEY}_0", {"version": 1, "prompts": "", "records": {"1": record.to_dict()}})
    if is_cleared:
        task.clear()
    ids = task.run()
    action = ACTIONS[phase][is_cleared]
    assert charges(sandbox) == Counter(PROMPTS[: 1 + (action is Action.SUBMIT)])
    assert task.submits["unknown"] == ([1] if action is Action.FAIL_UNKNOWN else [])
    if action is Action.SUBMIT:
        assert prompts_of(sandbox, ids) == PROMPTS[:2]
    else:
        assert ids[1:] == ([CREATED_BEFORE] if action is Action.RECONNECT else [])
    if action is Action.FAIL_UNKNOWN:
        reported = SubmitRecord.from_dict(store.get(f"{HEADER_KEY}_0")["records"]["1"])
        assert reported.phase is Phase.REPORTED


@pytest.mark.parametrize("way_back", ["retry", "clear"])
@pytest.mark.parametrize("place", ["task state store", "state_path"])
def test_a_kill_at_any_line_is_paid_for_once(
    sandbox: Sandbox, tmp_path: Path, place: str, way_back: str, quick_retries: Any
) -> None:
    """From the first record to the return: each prompt is charged once, or named as unknown."""
    line, died, unknown_outcomes, reconnects = 0, True, 0, 0
    while died:
        line += STEP
        (tmp_path / f"{line}").mkdir()
        store = Store(tmp_path / f"{line}" / "state.json") if place == "task state store" else None
        path = {} if store else {"state_path": (tmp_path / f"{line}").as_uri()}
        task = BatchTask(store, prompts=PROMPTS, max_parallel=2, **path)
        before = len(sandbox.submits)
        died = task.run_killed_at(line, since="Ledger.begin") == KILLED
        if not died:
            break
        left = len(sandbox.submits) - before
        is_returned = _head_of(task).returned is not None
        if way_back == "clear":
            task.clear()
        ids = task.run()
        if is_returned and way_back == "clear":  # who clears such a task wants other clips
            assert set(charges(sandbox, before).values()) == {2}
            continue
        unknown = task.submits["unknown"]
        assert len(unknown) <= 2
        expected = [prompt for position, prompt in enumerate(PROMPTS) if position not in unknown]
        assert prompts_of(sandbox, ids) == expected, f"line {line}"
        charged = charges(sandbox, before)
        assert charged.total() == len(charged)
        assert set(expected) <= set(charged)
        unknown_outcomes += len(unknown)
        reconnects += left
        assert task.run() == ids if way_back == "retry" else True
        assert charges(sandbox, before) == charged
    assert line > 400
    assert unknown_outcomes > 40 / STEP
    assert reconnects > 40 / STEP


def _head_of(task: BatchTask) -> Header:
    if task.store is not None:
        return Header.from_dict(task.store.get(HEADER_KEY))
    return Header.from_dict(json.loads((_folder_of(task) / "header.json").read_text()))


def _folder_of(task: BatchTask) -> Path:
    return Path(str(task.arguments["state_path"]).removeprefix("file://")) / object_name(task.instance)


def test_a_retry_submits_only_the_rest(store: Store, sandbox: Sandbox, quick_retries: Any) -> None:
    prompts = [f"cat dance {number}" for number in range(3 * SEGMENT_SIZE)]
    task = BatchTask(store, prompts=prompts, max_generations=SEGMENT_SIZE + 3)
    first = task.run_without_recording()
    assert task.submits["not_submitted"] == len(prompts) - len(first) == 2 * SEGMENT_SIZE - 3
    ids = task.run(max_generations=None)
    assert ids[: len(first)] == first
    assert prompts_of(sandbox, ids) == prompts
    assert charges(sandbox) == Counter(prompts)


def test_a_hint_never_advises_a_clear_that_pays_for_the_whole_batch_again(
    store: Store, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_luma.submit.record_store.CLEAR_DELETES_STATE", True)  # as on 3.4
    sandbox.script_submits(*[ScriptedResponse(status=502)] * 3, created=True)
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    with pytest.raises(RelayTransientError, match=r"have an unknown outcome.*keep task state"):
        task.run()
    with caplog.at_level("ERROR"):
        task.run()
    assert "If it does not show them: Clear this task with 'keep task state'" in caplog.text


def test_what_stops_a_batch_does_not_hide_an_unknown_outcome(store: Store, sandbox: Sandbox) -> None:
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    sandbox.script_submits(ScriptedResponse(status=401, body={"message": "the key has expired"}))
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    with pytest.raises(
        LumaNonRetryableError, match=r"the key has expired.*1 may have been charged for \(0\)"
    ):
        task.run()


def test_a_batch_without_a_journal_is_not_to_be_cleared(sandbox: Sandbox) -> None:
    sandbox.script_submits(*[ScriptedResponse(status=502)] * 3, created=True)
    with pytest.raises(RelayTransientError, match="Do not clear this task: it keeps no record"):
        BatchTask(None, prompts=PROMPTS, max_parallel=1).run()


def test_an_unknown_outcome_is_reported_by_position_and_not_resubmitted(
    store: Store, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1, fail_when="any")
    with pytest.raises(LumaTaskFailedError, match=r"1 may have been charged for \(0\)"):
        task.run()
    assert task.submits == {"created": 3, "rejected": {}, "unknown": [0], "not_submitted": 0}
    assert prompts_of(sandbox, task.instance.xcoms["return_value"]) == PROMPTS[1:]
    with caplog.at_level("ERROR"), pytest.raises(LumaTaskFailedError, match="may have been charged for"):
        task.run()
    assert "Skipping 1 prompts, at the positions 0" in caplog.text
    assert charges(sandbox) == Counter(PROMPTS)
    task.clear()
    ids = task.run()
    assert len(ids) == 4
    assert charges(sandbox) == Counter([PROMPTS[0], *PROMPTS])


def test_ids_of_an_earlier_run_are_not_those_of_a_try_that_submitted_nothing(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    store = FailingStore(tmp_path / "s.json")
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    task.run()
    task.clear()
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    task.run_without_recording(max_generations=1)
    store.failing = range(store.writes + 2, 1000)  # the unknown outcome cannot be marked as reported
    with pytest.raises(Exception, match="the api-server is gone"):
        task.run()
    assert task.submits == {"created": 0, "rejected": {}, "unknown": [0], "not_submitted": 3}
    assert task.instance.xcoms["return_value"] == []


def test_a_success_that_is_recorded_late_does_not_make_a_later_try_pay_again(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """A person has cleared the task meanwhile, and its next try has submitted a corrected prompt."""
    sandbox.script_submits(ScriptedResponse(status=400, body={"code": "invalid_request", "message": "no"}))
    path = state_path(tmp_path)
    task = BatchTask(None, prompts=["a cat", "a dog"], max_parallel=1, fail_when="all", state_path=path)
    first, context = task.prepare({})
    first.execute(context)  # type: ignore[arg-type]
    task.clear()
    task.run_without_recording(prompts=["a red cat", "a dog"])
    task.instance.task = first
    with pytest.raises(SubmitRecordError, match="another process has written it"):
        first.on_success_callback[-1](context)  # type: ignore[index,arg-type]
    task.run(prompts=["a red cat", "a dog"])
    assert charges(sandbox) == Counter(["a dog", "a red cat"])


def test_an_unreadable_segment_is_an_error_and_nothing_is_sent(tmp_path: Path, sandbox: Sandbox) -> None:
    prompts = [f"cat dance {number}" for number in range(SEGMENT_SIZE + 1)]
    task = BatchTask(None, prompts=prompts, state_path=state_path(tmp_path))
    task.run_without_recording()
    before = len(sandbox.requests)
    for content in ("", "{", "null", "[]", "{}", '{"version": 2, "records": {}}', "x" * 70_000):
        (_folder_of(task) / "1.json").write_text(content)
        with pytest.raises(LumaNonRetryableError, match=r"generate/-1/1\.json, cannot be read"):
            task.run()
    assert len(sandbox.requests) == before


def test_a_success_that_airflow_did_not_record_is_not_paid_for_again_when_cleared(
    store: Store, sandbox: Sandbox
) -> None:
    task = BatchTask(store, prompts=PROMPTS)
    first = task.run_without_recording()
    task.clear()
    assert task.run() == first
    assert len(sandbox.submits) == len(PROMPTS)
    task.clear()
    assert not set(task.run()) & set(first)
    assert len(sandbox.submits) == 2 * len(PROMPTS)


def test_a_success_that_airflow_rejected_was_not_returned(store: Store, sandbox: Sandbox) -> None:
    task = BatchTask(store, prompts=PROMPTS)
    task.instance.is_success_recorded = False
    first = task.run()
    task.clear()
    assert task.run() == first
    assert len(sandbox.submits) == len(PROMPTS)


def test_a_rejected_prompt_may_be_submitted_by_the_next_try(store: Store, sandbox: Sandbox) -> None:
    sandbox.script_submits(ScriptedResponse(status=400, body={"code": "invalid_request", "message": "no"}))
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    assert len(task.run_without_recording()) == 3
    assert task.submits["rejected"].keys() == {"0"}
    assert "no" in task.submits["rejected"]["0"]
    assert prompts_of(sandbox, task.run()) == PROMPTS
    assert charges(sandbox) == Counter(PROMPTS)


def test_changed_prompts_keep_the_tasks_of_what_was_submitted(
    store: Store, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    task = BatchTask(store, prompts=PROMPTS)
    first = task.run_without_recording()
    with caplog.at_level("WARNING"):
        assert task.run(prompts=["another", *PROMPTS[1:]]) == first
    assert "1 prompts render differently from what was submitted, at the positions 0" in caplog.text
    assert len(sandbox.submits) == 4


def test_a_longer_and_a_shorter_list_lose_no_task(
    store: Store, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    task = BatchTask(store, prompts=PROMPTS[:2])
    first = task.run_without_recording()
    longer = [*PROMPTS[:2], *(f"dog dance {number}" for number in range(SEGMENT_SIZE))]
    ids = BatchTask.run_without_recording(_with_prompts(task, longer))
    assert ids[:2] == first
    assert len(sandbox.submits) == len(longer)
    with caplog.at_level("WARNING"):
        assert _with_prompts(task, PROMPTS[:2]).run() == first
    assert "are not among the results" in caplog.text
    assert all(task_id in caplog.text for task_id in ids[2:])


def _edited(prompts: list[str], *edits: tuple[int, str | None]) -> list[str]:
    """Return the prompts after edits: an insertion before a position, or with ``None`` its removal."""
    edited = list(prompts)
    for position, prompt in edits:
        edited[position : position + (prompt is None)] = [] if prompt is None else [prompt]
    return edited


@pytest.mark.parametrize(
    "edits",
    [
        pytest.param([(0, None)], id="the rejected one is removed"),
        pytest.param([(0, "dog dance")], id="one is inserted at the start"),
        pytest.param([(0, None), (1, "dog dance")], id="the rejected one is removed, and one is inserted"),
        pytest.param([(3, "dog dance"), (0, None)], id="one is inserted, and the rejected one is removed"),
        pytest.param([(0, None), (0, None)], id="those at the start are removed"),
        pytest.param([(2, "cat dance 2"), (2, "cat dance 2")], id="one is wanted three times"),
    ],
)
@pytest.mark.parametrize("way_back", ["retry", "clear"])
def test_an_edited_list_pays_for_no_prompt_again(
    store: Store, sandbox: Sandbox, edits: list[tuple[int, str | None]], way_back: str
) -> None:
    """The prompt that a relay rejects is taken out of the table, and the ones behind it move up."""
    sandbox.script_submits(ScriptedResponse(status=400, body={"code": "invalid_request", "message": "no"}))
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    first = task.run_without_recording()
    assert prompts_of(sandbox, first) == PROMPTS[1:]
    edited = _edited(PROMPTS, *edits)
    _with_prompts(task, edited)
    for _ in range(2):
        if way_back == "clear":
            task.clear()
        ids = task.run_without_recording()
        assert prompts_of(sandbox, ids) == edited
        assert charges(sandbox) == Counter(PROMPTS[1:]) | Counter(edited)


def test_an_unknown_outcome_moves_with_its_prompt(
    store: Store, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    task.run_without_recording()
    assert task.submits["unknown"] == [0]
    _with_prompts(task, ["dog dance", *PROMPTS])
    task.run_without_recording()
    assert task.submits["unknown"] == [1]
    assert charges(sandbox) == Counter([*PROMPTS, "dog dance"])
    with caplog.at_level("WARNING"):
        _with_prompts(task, PROMPTS[2:]).run_without_recording()
    assert (
        "1 prompts are not in the list any more, and may have been submitted and charged for" in caplog.text
    )
    assert charges(sandbox) == Counter([*PROMPTS, "dog dance"])


def test_the_rest_of_a_list_is_the_rest(store: Store, sandbox: Sandbox) -> None:
    """A batch that stopped is given only what was left."""
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1, max_generations=2)
    assert len(task.run_without_recording()) == 2
    task.clear()
    task.arguments["max_generations"] = None
    ids = _with_prompts(task, PROMPTS[2:]).run_without_recording()
    assert prompts_of(sandbox, ids) == PROMPTS[2:]
    assert charges(sandbox) == Counter(PROMPTS)


@pytest.mark.parametrize(
    "edited",
    [
        pytest.param([*PROMPTS[2:], "dog dance"], id="the rest and more"),
        pytest.param([PROMPTS[2], "dog dance", PROMPTS[3]], id="one of the rest is replaced"),
        pytest.param([PROMPTS[1], PROMPTS[0], "dog dance"], id="moved and replaced"),
    ],
)
def test_new_prompts_in_place_of_submitted_ones_are_an_error(
    store: Store, sandbox: Sandbox, edited: list[str]
) -> None:
    """They may be the submitted ones, rendered differently."""
    task = BatchTask(store, prompts=PROMPTS)
    first = task.run_without_recording()
    task.clear()
    with pytest.raises(LumaNonRetryableError, match="Nothing was sent, as a prompt could be paid for twice"):
        _with_prompts(task, edited).run_without_recording()
    assert _with_prompts(task, PROMPTS).run_without_recording() == first
    assert charges(sandbox) == Counter(PROMPTS)


def test_prompts_that_render_differently_after_an_edit_are_not_paid_for_again(
    store: Store, sandbox: Sandbox
) -> None:
    sandbox.script_submits(ScriptedResponse(status=400, body={"code": "invalid_request", "message": "no"}))
    signed = lambda number: [f"cat dance, signed {number}-{name}" for name in "abc"]  # noqa: E731
    task = BatchTask(store, prompts=["rejected", *signed(1), "last"], max_parallel=1)
    task.run_without_recording()
    task.clear()
    for number in (2, 3):
        with pytest.raises(LumaNonRetryableError, match="render differently"):
            _with_prompts(task, [*signed(number), "last", "more"]).run_without_recording()
    assert len(sandbox.submits) == 4


def test_a_prompt_never_gets_the_task_of_another_that_stood_there(store: Store, sandbox: Sandbox) -> None:
    task = BatchTask(store, prompts=PROMPTS[:2])
    task.run_without_recording()
    _with_prompts(task, PROMPTS[1::-1]).run_without_recording()
    with pytest.raises(LumaNonRetryableError, match="are new"):
        _with_prompts(task, ["dog dance", PROMPTS[1]]).run_without_recording()
    assert charges(sandbox) == Counter(PROMPTS[:2])


def test_a_list_of_another_length_and_of_other_prompts_is_an_error(store: Store, sandbox: Sandbox) -> None:
    task = BatchTask(store, prompts=PROMPTS)
    task.run_without_recording()
    with pytest.raises(LumaNonRetryableError, match="are new, or render differently"):
        _with_prompts(task, ["dog dance"]).run()
    assert len(sandbox.submits) == len(PROMPTS)


def test_prompts_that_render_differently_with_each_try_are_paid_for_once(
    store: Store, sandbox: Sandbox
) -> None:
    task = BatchTask(store, prompts=PROMPTS)
    first = task.run_without_recording()
    for number in range(2):
        assert _with_prompts(task, [f"{prompt} {number}" for prompt in PROMPTS]).run() == first
    assert len(sandbox.submits) == len(PROMPTS)


def test_of_equal_prompts_the_one_that_was_paid_for_stays(store: Store, sandbox: Sandbox) -> None:
    sandbox.script_submits(ScriptedResponse(status=400, body={"code": "invalid_request", "message": "no"}))
    task = BatchTask(store, prompts=["cat", "cat", "dog"], max_parallel=1)
    first = task.run_without_recording()
    assert _with_prompts(task, ["cat", "dog"]).run() == first
    assert charges(sandbox) == Counter(["cat", "dog"])


@pytest.mark.parametrize("max_tries", [2, 0])
def test_retries_that_are_lowered_do_not_make_new_tasks_old_ones(
    store: Store, sandbox: Sandbox, max_tries: int
) -> None:
    """Clearing sets ``max_tries`` from the try number and the DAG's retries, so that it may fall."""
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    task.instance.max_tries = 3
    first = task.run()
    task.instance.max_tries = max_tries
    second = task.run_without_recording()
    assert not set(first) & set(second)
    assert task.run_without_recording() == second
    task.clear()
    assert task.run() == second
    assert charges(sandbox) == Counter([*PROMPTS, *PROMPTS])


def test_removed_prompts_count_for_max_generations(store: Store, sandbox: Sandbox) -> None:
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1, max_generations=2)
    task.run_without_recording()
    _with_prompts(task, PROMPTS[1:]).run_without_recording()
    assert len(sandbox.submits) == 2
    assert task.submits["not_submitted"] == 2


def test_a_write_whose_response_was_lost_is_no_other_process(tmp_path: Path) -> None:
    store = LossyStore(tmp_path / "s.json")
    state = AirflowRecordStore(store, "key")
    assert state.load() is None
    store.lost = 1
    with pytest.raises(ConnectionError):
        state.save({"id": 1})
    state.save({"id": 2})
    store.set("key", {"id": 3})
    with pytest.raises(SubmitRecordError, match="another process has written it meanwhile"):
        state.save({"id": 4})


def test_of_two_processes_that_save_the_same_record_at_once_the_first_finds_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.json")
    first = AirflowRecordStore(store, "key")
    second = AirflowRecordStore(LateStore(tmp_path / "s.json"), "key")
    assert first.load() is second.load() is None
    first.save({"phase": "sending"})
    second.save({"phase": "sending"})
    with pytest.raises(SubmitRecordError, match="another process has written it meanwhile"):
        first.save({"phase": "not_created"})


class LateStore(Store):
    """Does not see yet what another process writes in the same instant."""

    def get(self, key: str, default: Any = None) -> Any:
        return None


class LossyStore(Store):
    """Takes a write, and loses its response."""

    lost = 0

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        super().set(key, value, retention=retention)
        self.lost -= 1
        if self.lost == 0:
            raise ConnectionError("the api-server went away")


def _with_prompts(task: BatchTask, prompts: list[str]) -> BatchTask:
    task.arguments["prompts"] = prompts
    return task


def test_two_tries_at_the_same_time_cannot_both_submit_a_prompt(tmp_path: Path, sandbox: Sandbox) -> None:
    from airflow_provider_luma.submit.journal import Journal
    from airflow_provider_luma.submit.record_store import StatePlace

    task = BatchTask(None, prompts=PROMPTS, state_path=state_path(tmp_path))
    context: Any = {"ti": task.instance}
    places = [StatePlace(context, task.arguments["state_path"], durable=True) for _ in range(2)]
    generations = [Generation(prompt) for prompt in PROMPTS]
    first = Journal(places[0], 0, generations)
    second = Journal(places[1], 0, generations)
    first.ledger(0).begin(Generation(PROMPTS[0]))
    with pytest.raises(Exception, match="another process has written it meanwhile"):
        second.ledger(0).begin(Generation(PROMPTS[0]))


class FailingStore(Store):
    """Fails for some writes, as a database may that goes away for a while."""

    failing: range = range(0)
    writes = 0

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.writes += 1
        if self.writes in self.failing:
            raise ConnectionError("the api-server is gone")
        super().set(key, value)


def test_an_id_that_is_not_saved_at_once_is_saved_at_the_end(tmp_path: Path, sandbox: Sandbox) -> None:
    store = FailingStore(tmp_path / "s.json")
    store.failing = range(4, 6)  # all is saved until ``sending``, ``created`` is not
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    with pytest.raises(Exception, match="the api-server is gone") as error:
        task.run()
    assert not isinstance(error.value, LumaNonRetryableError)
    assert task.instance.xcoms["return_value"] == sandbox.task_ids
    assert prompts_of(sandbox, task.run()) == PROMPTS
    assert charges(sandbox) == Counter(PROMPTS)


def test_an_id_that_cannot_be_saved_at_all_is_in_the_error_and_reported_by_a_retry(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    store = FailingStore(tmp_path / "s.json")
    store.failing = range(4, 100)
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    with pytest.raises(LumaNonRetryableError) as error:
        task.run()
    (task_id,) = sandbox.task_ids
    assert f"Luma task {task_id} was created and charged" in str(error.value)
    store.failing = range(0)
    assert prompts_of(sandbox, task.run()) == PROMPTS[1:]
    assert task.submits["unknown"] == [0]
    assert charges(sandbox) == Counter(PROMPTS)


def test_nothing_is_sent_before_its_record_is_saved(tmp_path: Path, sandbox: Sandbox) -> None:
    store = FailingStore(tmp_path / "s.json")
    store.failing = range(3, 100)
    task = BatchTask(store, prompts=PROMPTS)
    with pytest.raises(Exception, match="the api-server is gone"):
        task.run()
    assert sandbox.submits == []
    store.failing = range(0)
    assert prompts_of(sandbox, task.run()) == PROMPTS


def test_any_exception_of_a_submit_is_an_unknown_outcome(
    store: Store, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mistake of ours would, after the request was sent."""
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1)
    with monkeypatch.context() as patched:
        patched.setattr("airflow_provider_luma.relay.client.RelayClient.submit_once", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            task.run()
    assert task.submits == {"created": 0, "rejected": {}, "unknown": [0], "not_submitted": 3}
    assert prompts_of(sandbox, task.run()) == PROMPTS[1:]
    assert task.submits["unknown"] == [0]


def test_a_store_that_fails_before_the_first_submit_leaves_every_prompt_unsubmitted(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    store = FailingStore(tmp_path / "s.json")
    sandbox.script_submits(ScriptedResponse(status=502), created=True)
    task = BatchTask(store, prompts=PROMPTS, max_parallel=1, max_generations=1)
    task.run_without_recording()
    store.failing = range(store.writes + 1, 1000)
    task.clear()  # the unknown outcome was reported: it may be submitted again
    task.clear()
    with pytest.raises(Exception, match="the api-server is gone"):
        task.run()
    assert task.submits["created"] == 0
    assert task.submits["not_submitted"] + len(task.submits["unknown"]) == 4
    assert len(sandbox.submits) == 1
