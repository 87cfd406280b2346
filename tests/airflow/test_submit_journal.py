"""The journal of a batch, in a state store, a local folder and a real S3."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.submit.conditional_writes import MAX_BYTES
from airflow_provider_luma.submit.group_commit import GroupCommit
from airflow_provider_luma.submit.journal import HEADER_KEY, SEGMENT_SIZE, Header, Journal
from airflow_provider_luma.submit.record import Action, Phase, fingerprint_of
from airflow_provider_luma.submit.record_store import StatePlace
from tests.airflow.generate_harness import Instance, Store
from tests.stores import S3

CAT = Generation("cat dance")
NUMBER = 2 * SEGMENT_SIZE + 1

OpenJournal = Callable[..., Journal]


@pytest.fixture(params=["task state store", "file", "s3"])
def open_journal(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> OpenJournal:
    context: Any = {"ti": Instance()}
    path = None
    if request.param == "task state store":
        context["task_state_store"] = Store(tmp_path / "state.json")
    elif request.param == "file":
        path = tmp_path.as_uri()
    else:
        s3: S3 = request.getfixturevalue("s3")
        monkeypatch.setenv("AIRFLOW_CONN_S3", s3.connection())
        path = f"s3://s3@bucket/{uuid.uuid4().hex}"
    return lambda max_tries=0, prompts=NUMBER: Journal(
        StatePlace(context, path, durable=True), max_tries, [CAT] * prompts
    )


def test_records_outlive_the_process(open_journal: OpenJournal) -> None:
    journal = open_journal()
    for position in (0, SEGMENT_SIZE - 1, SEGMENT_SIZE, NUMBER - 1):
        journal.ledger(position).begin(CAT)
        journal.ledger(position).mark(Phase.CREATED, id=f"task-{position}", quota=0.5)
    journal.ledger(1).begin(CAT)
    journal.ledger(1).mark(Phase.NOT_CREATED, reason="moderation")
    journal.ledger(2).begin(CAT)
    again = open_journal()
    assert [position for position in range(NUMBER) if again.record(position)] == [
        0,
        1,
        2,
        SEGMENT_SIZE - 1,
        SEGMENT_SIZE,
        NUMBER - 1,
    ]
    assert all(again.record(position) == journal.record(position) for position in range(NUMBER))
    assert [again.ledger(position).next_action() for position in range(4)] == [
        Action.RECONNECT,
        Action.SUBMIT,
        Action.FAIL_UNKNOWN,
        Action.SUBMIT,
    ]


def test_one_write_returns_the_whole_batch(open_journal: OpenJournal) -> None:
    journal = open_journal()
    for position in (0, NUMBER - 1):
        journal.ledger(position).begin(CAT)
        journal.ledger(position).mark(Phase.CREATED, id=f"task-{position}")
    journal.mark_returned()
    assert open_journal().ledger(0).next_action() is Action.RECONNECT
    cleared = open_journal(max_tries=1)
    assert [cleared.ledger(position).next_action() for position in (0, NUMBER - 1)] == [Action.SUBMIT] * 2
    cleared.ledger(0).begin(CAT)
    cleared.ledger(0).mark(Phase.CREATED, id="another")
    again = open_journal(max_tries=2)  # cleared once more, before it succeeded
    assert [again.ledger(position).next_action() for position in (0, NUMBER - 1)] == [
        Action.RECONNECT,
        Action.SUBMIT,
    ]


def test_threads_that_save_at_once_lose_nothing(open_journal: OpenJournal) -> None:
    journal = open_journal()

    def submit(position: int) -> None:
        journal.ledger(position).begin(CAT)
        journal.ledger(position).mark(Phase.CREATED, id=f"task-{position}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(submit, range(NUMBER)))
    again = open_journal()
    assert {position: again.record(position).id for position in range(NUMBER)} == {  # type: ignore[union-attr]
        position: f"task-{position}" for position in range(NUMBER)
    }


@pytest.mark.parametrize("reason", ["x" * 1000, "不" * 1000, "😀" * 1000, '"\\' * 500])
def test_a_segment_of_the_longest_reasons_and_ids_is_small(tmp_path: Path, reason: str) -> None:
    context: Any = {"ti": Instance()}
    journal = Journal(StatePlace(context, tmp_path.as_uri(), durable=True), 0, [CAT] * SEGMENT_SIZE)
    for position in range(SEGMENT_SIZE):
        journal._records[position] = _longest(reason, position)
        journal._commits.add(0)
    journal.save_rest()
    (segment,) = tmp_path.rglob("0.json")
    assert segment.stat().st_size <= MAX_BYTES
    again = Journal(StatePlace(context, tmp_path.as_uri(), durable=True), 0, [CAT] * SEGMENT_SIZE)
    assert again.record(0) == journal.record(0)


def _longest(reason: str, position: int) -> Any:
    from airflow_provider_luma.submit.journal import _fit_reason
    from airflow_provider_luma.submit.record import SubmitRecord

    begun = SubmitRecord.sending(CAT, 10**9)
    return begun.at(Phase.CREATED, 10**9, id=f"{position:0200}", reason=_fit_reason(reason), quota=1 / 3)


@pytest.mark.parametrize(
    "header",
    [{}, [], {"version": 1}, {"version": 1, "slots": -1}, {"version": 2, "slots": 1}, {"version": True}],
)
def test_a_header_that_cannot_be_read_is_an_error(tmp_path: Path, header: Any) -> None:
    store = Store(tmp_path / "state.json")
    store.set(HEADER_KEY, header)
    with pytest.raises(SubmitRecordError, match=r"cannot be read.*Nothing was sent. Restore it"):
        Journal(StatePlace({"ti": Instance(), "task_state_store": store}, None, durable=True), 0, [CAT])  # type: ignore[typeddict-item,typeddict-unknown-key]


def test_a_record_in_another_segment_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.json")
    place = StatePlace({"ti": Instance(), "task_state_store": store}, None, durable=True)  # type: ignore[typeddict-item,typeddict-unknown-key]
    journal = Journal(place, 0, [CAT])
    journal.ledger(0).begin(CAT)
    store.set(f"{HEADER_KEY}_1", store.get(f"{HEADER_KEY}_0"))
    store.set(HEADER_KEY, Header(SEGMENT_SIZE + 1).to_dict())
    with pytest.raises(SubmitRecordError, match="it has a record of the slot '0'"):
        Journal(place, 0, [CAT])


def test_a_journal_that_is_given_a_state_path_later_finds_its_records(tmp_path: Path) -> None:
    context: Any = {"ti": Instance(), "task_state_store": Store(tmp_path / "state.json")}
    journal = Journal(StatePlace(context, None, durable=True), 0, [CAT] * NUMBER)
    journal.ledger(NUMBER - 1).begin(CAT)
    later = Journal(StatePlace(context, tmp_path.as_uri(), durable=True), 0, [CAT] * NUMBER)
    assert later.ledger(NUMBER - 1).next_action() is Action.FAIL_UNKNOWN


@pytest.fixture(params=["file", "moto"])
def conditional_path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A state_path on a store that honours conditions."""
    if request.param == "file":
        return tmp_path.as_uri()
    moto: S3 = request.getfixturevalue("moto")
    monkeypatch.setenv("AIRFLOW_CONN_MOTO", moto.connection())
    return f"s3://moto@bucket/{uuid.uuid4().hex}"


def test_a_try_that_another_one_has_overtaken_saves_nothing(conditional_path: str) -> None:
    """As a worker that was suspended, and taken for dead, while the next try paid for the rest."""
    context: Any = {"ti": Instance()}
    first, second = (
        Journal(StatePlace(context, conditional_path, durable=True), 0, [CAT] * 3) for _ in range(2)
    )
    for position in range(3):
        second.ledger(position).begin(CAT)
        second.ledger(position).mark(Phase.CREATED, id=f"paid-{position}")
    for position in range(3):
        with pytest.raises(SubmitRecordError, match="another process has written it meanwhile"):
            first.ledger(position).begin(CAT)
    with pytest.raises(SubmitRecordError, match="another process has written it meanwhile"):
        first.save_rest()
    again = Journal(StatePlace(context, conditional_path, durable=True), 0, [CAT] * 3)
    assert [record.id for position in range(3) if (record := again.record(position))] == [
        "paid-0",
        "paid-1",
        "paid-2",
    ]


def test_records_that_moved_to_a_state_path_survive_that_the_state_is_deleted(
    tmp_path: Path, conditional_path: str
) -> None:
    store = Store(tmp_path / "state.json")
    context: Any = {"ti": Instance(), "task_state_store": store}
    journal = Journal(StatePlace(context, None, durable=True), 0, [CAT] * NUMBER)
    for position in (0, NUMBER - 1):
        journal.ledger(position).begin(CAT)
        journal.ledger(position).mark(Phase.CREATED, id=f"paid-{position}")
    Journal(StatePlace(context, conditional_path, durable=True), 0, [CAT] * NUMBER)
    store.wipe()  # as a clear does from Airflow 3.4 on
    again = Journal(StatePlace(context, conditional_path, durable=True), 1, [CAT] * NUMBER)
    assert [position for position in range(NUMBER) if again.record(position)] == [0, NUMBER - 1]
    again.ledger(1).begin(CAT)


@pytest.mark.parametrize("name", ["header.json", "0.json", "1.json"])
def test_a_missing_part_of_the_journal_is_an_error(tmp_path: Path, name: str) -> None:
    """As after a lifecycle rule that expired what was not written for long."""
    context: Any = {"ti": Instance()}
    prompts = [CAT] * (SEGMENT_SIZE + 1)
    journal = Journal(StatePlace(context, tmp_path.as_uri(), durable=True), 0, prompts)
    for position in (0, SEGMENT_SIZE):
        journal.ledger(position).begin(CAT)
    (part,) = tmp_path.rglob(name)
    part.unlink()
    with pytest.raises(SubmitRecordError, match=rf"/{name}, is missing, .*Nothing was sent"):
        Journal(StatePlace(context, tmp_path.as_uri(), durable=True), 0, prompts)


def test_the_order_of_fields_does_not_make_another_prompt() -> None:
    bodies = [{"seed": 1, "fps": 24}, {"fps": 24, "seed": 1}]
    one, other = (fingerprint_of(Generation("cat dance", extra_body=body)) for body in bodies)
    assert one == other


def test_changes_during_a_flush_share_the_next_one() -> None:
    saved: list[int] = []
    began, may_end = threading.Event(), threading.Event()

    def save(segment: int) -> None:
        saved.append(segment)
        began.set()
        assert may_end.wait(30)

    commits = GroupCommit(save)
    threads = [threading.Thread(target=commits.commit, args=(0,))]
    threads[0].start()
    assert began.wait(30)
    threads += [threading.Thread(target=commits.commit, args=(number % 2,)) for number in range(10)]
    for thread in threads[1:]:
        thread.start()
    while len(commits._changed._waiters) < 10:  # type: ignore[attr-defined]
        time.sleep(0.01)
    may_end.set()
    for thread in threads:
        thread.join(30)
    assert saved == [0, 0, 1]


def test_a_failed_flush_is_raised_to_its_callers_and_repeated_by_the_next() -> None:
    saved: list[int] = []
    failing = {1}

    def save(segment: int) -> None:
        if segment in failing:
            raise ConnectionError("gone")
        saved.append(segment)

    commits = GroupCommit(save)
    with pytest.raises(ConnectionError):
        commits.commit(1)
    commits.commit(0)
    assert saved == [0]
    failing.clear()
    commits.commit()
    assert saved == [0, 1]
