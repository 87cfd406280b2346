from __future__ import annotations

import itertools

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay import BatchResult, FailWhen, LumaTask, Outcome, TaskBatch, TaskState

REASON = "the relay gave no reason"


def tasks(**states):
    """Return the tasks of a response, one raw state for each id."""
    return {task_id: LumaTask(task_id, TaskState(state)) for task_id, state in states.items()}


def batch(ids="abc", *, grace=120.0):
    return TaskBatch(ids, started_at=1000, missing_grace=grace)


def result(*, completed=0, failed=0, missing=0, running=0):
    ids = [f"id-{n:02}" for n in range(completed + failed + missing + running)]
    reasons = dict.fromkeys(ids[completed : completed + failed], "moderated")
    final = completed + failed + missing
    return BatchResult(ids, reasons, ids[completed + failed : final], ids[final:])


def test_a_batch_begins_with_every_unique_id_pending_in_order():
    new = batch(["c", "a", "c", "b", "a"])
    assert new.pending_ids == ["c", "a", "b"]
    assert new.result == BatchResult(("c", "a", "b"), {}, (), ("c", "a", "b"))


def test_ids_may_come_from_any_iterable():
    assert batch(iter("ab")).pending_ids == ["a", "b"]


def test_each_state_is_terminal_or_pending():
    waiting = batch("abcd")
    waiting.update("abcd", tasks(d="completed", b="failed", c="processing", a="pending"), now=1001)
    assert waiting.pending_ids == ["a", "c"]
    assert waiting.result == BatchResult(("a", "b", "c", "d"), {"b": REASON}, (), ("a", "c"))


def test_a_terminal_id_never_becomes_pending_and_keeps_its_reason():
    waiting = batch("ab")
    moderated = LumaTask("b", TaskState.FAILED, raw={"failure_reason": "x"})
    waiting.update("ab", tasks(a="completed") | {"b": moderated}, now=1001)
    before = waiting.result
    waiting.update("ab", tasks(a="failed", b="completed"), now=1002)
    waiting.update("ab", tasks(a="processing", b="pending"), now=1003)
    waiting.update("ab", {}, now=9999)
    assert waiting.result == before == BatchResult(("a", "b"), {"b": "x"}, ())


def test_a_missing_id_never_becomes_pending():
    waiting = batch("a")
    waiting.update("a", {}, now=1000)
    waiting.update("a", {}, now=1120)
    waiting.update("a", tasks(a="completed"), now=1121)
    assert waiting.result == BatchResult(("a",), {}, ("a",))


def test_tasks_that_were_not_requested_are_ignored():
    waiting = batch("a")
    waiting.update("az", tasks(z="failed", a="completed"), now=1001)
    assert waiting.result == BatchResult(("a",), {}, ())


def test_only_requested_ids_can_be_absent():
    waiting = batch("ab")
    waiting.update("a", tasks(a="processing"), now=5000)
    assert waiting.pending_ids == ["a", "b"]


def test_an_earlier_result_does_not_change_with_the_batch():
    waiting = batch("ab")
    early = waiting.result
    waiting.update("ab", tasks(a="failed"), now=2000)
    assert early == BatchResult(("a", "b"), {}, (), ("a", "b"))


@pytest.mark.parametrize(
    ("seen", "absent", "missing"),
    [
        ([], [1000], False),
        ([], [1000, 1119.9], False),
        ([], [1000, 1120], True),
        ([], [1500], False),  # nobody polled for a while, which is no absence
        ([1100], [1220], False),
        ([1100], [1160, 1279], False),
        ([1100], [1160, 1280], True),
        ([1100, 1500], [1600, 1719], False),
    ],
)
def test_an_id_is_missing_after_absences_that_span_the_grace(seen, absent, missing):
    waiting = batch("a")
    for now in seen:
        waiting.update("a", tasks(a="pending"), now=now)
    for now in absent:
        waiting.update("a", {}, now=now)
    assert (waiting.pending_ids == []) == missing
    assert list(waiting.result.missing) == ["a"] * missing


def test_a_sighting_restarts_the_grace():
    waiting = batch("a")
    waiting.update("a", {}, now=1000)
    waiting.update("a", tasks(a="pending"), now=1060)
    waiting.update("a", {}, now=1120)
    assert waiting.pending_ids == ["a"]


def test_an_id_may_count_as_absent_from_the_start():
    waiting = TaskBatch("ab", started_at=1000, missing_grace=120, absent_since=1000)
    waiting.update("ab", tasks(b="pending"), now=1200)
    assert list(waiting.result.missing) == ["a"]


def test_without_grace_an_id_is_missing_at_the_second_response():
    waiting = batch("a", grace=0)
    waiting.update("a", {}, now=1000)
    assert waiting.result.missing == ()
    waiting.update("a", {}, now=1000)
    assert waiting.result.missing == ("a",)


def test_an_id_not_found_at_first_may_turn_up():
    waiting = batch("a")
    waiting.update("a", {}, now=1060)
    waiting.update("a", tasks(a="completed"), now=1070)
    assert waiting.result.completed == ["a"]


SOME = {"completed": 1, "failed": 1}
LOST = {"completed": 1, "missing": 1}
DEAD = {"failed": 1, "missing": 1}
R, C, F = Outcome.RUNNING, Outcome.COMPLETED, Outcome.FAILED


@pytest.mark.parametrize(
    ("counts", "running", "any_", "any_fast", "all_", "all_fast", "never", "never_fast"),
    [
        ({}, 0, C, C, C, C, C, C),
        ({"completed": 2}, 0, C, C, C, C, C, C),
        ({"completed": 2}, 1, R, R, R, R, R, R),
        ({}, 2, R, R, R, R, R, R),
        (SOME, 0, F, F, C, C, C, C),
        (SOME, 1, R, F, R, R, R, R),
        (LOST, 0, F, F, C, C, C, C),
        (LOST, 1, R, F, R, R, R, R),
        (DEAD, 0, F, F, F, F, C, C),
        (DEAD, 1, R, F, R, R, R, R),
    ],
)
def test_the_outcome_follows_fail_when_and_fail_fast(
    counts, running, any_, any_fast, all_, all_fast, never, never_fast
):
    outcomes = [
        result(**counts, running=running).outcome(fail_when, fail_fast=fail_fast)
        for fail_when, fail_fast in itertools.product(FailWhen, (False, True))
    ]
    assert outcomes == [any_, any_fast, all_, all_fast, never, never_fast]


def test_every_pending_id_is_awaited_unless_fail_fast():
    assert result(failed=1, running=1).outcome(FailWhen.ANY) is Outcome.RUNNING


def test_fail_when_is_one_of_three_values():
    assert [FailWhen.parse("fail_when", word) for word in ("any", "all", "never")] == list(FailWhen)


@pytest.mark.parametrize("word", ["some", "", "ANY", None, [], True])
def test_any_other_fail_when_is_rejected_with_the_three_values(word):
    with pytest.raises(LumaValueError, match="'any', 'all', 'never'"):
        FailWhen.parse("fail_when", word)


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({}, "0 of 0 completed"),
        ({"completed": 2}, "2 of 2 completed"),
        ({"running": 2}, "0 of 2 completed, 2 running"),
        ({"completed": 1, "missing": 2}, "1 of 3 completed, 2 missing"),
        ({"completed": 412, "failed": 3, "running": 585}, "412 of 1000 completed, 3 failed, 585 running"),
        (
            {"completed": 1, "failed": 2, "missing": 3, "running": 4},
            "1 of 10 completed, 2 failed, 3 missing, 4 running",
        ),
    ],
)
def test_progress_is_one_line_with_the_counts(counts, line):
    assert result(**counts).progress_message() == line


def test_completed_ids_keep_the_order_of_the_request():
    mixed = BatchResult(("d", "b", "a", "c"), {"b": "x"}, ("c",))
    assert (mixed.completed, mixed.completed_count) == (["d", "a"], 2)


def test_messages_name_failures_then_the_missing_in_order():
    mixed = BatchResult(("d", "b", "a", "c"), {"a": "x", "d": "y"}, ("c", "b"))
    unknown = "the relay does not know this id"
    assert mixed.failure_messages() == ["d: y", "a: x", f"b: {unknown}", f"c: {unknown}"]
    assert result(completed=1).failure_messages() == []


@pytest.mark.parametrize(
    ("failed", "missing", "lines", "last"),
    [
        (20, 0, 20, "id-19: moderated"),
        (21, 0, 21, "and 1 more"),
        (10, 11, 21, "and 1 more"),
        (1000, 0, 21, "and 980 more"),
    ],
)
def test_failure_messages_are_twenty_and_a_count(failed, missing, lines, last):
    messages = result(failed=failed, missing=missing).failure_messages()
    assert (len(messages), messages[-1]) == (lines, last)


def test_the_summary_is_plain_and_complete():
    mixed = BatchResult(("d", "b", "a", "c"), {"a": "x"}, ("c",), ("b",))
    assert mixed.summary() == {"completed": 1, "failed": {"a": "x"}, "missing": ["c"], "running": ["b"]}


def test_ten_thousand_ids_are_updated_quickly():
    ids = [f"id-{n}" for n in range(10_000)]
    waiting = batch(ids)
    for now in (4000, 5000):
        waiting.update(ids, tasks(**dict.fromkeys(ids[::2], "completed")), now=now)
    assert waiting.result.completed == ids[::2]
    assert len(waiting.result.failure_messages()) == 21
