"""The one form in which a wait outlives its process."""

from __future__ import annotations

import json
import math
import random

import pytest

from airflow_provider_luma.relay import BatchResult, LumaTask, TaskBatch, TaskState
from airflow_provider_luma.relay.batch_state import (
    CUT_REASON,
    MAX_REASON_BYTES,
    fit_entries,
    fit_reasons,
    pack_codes,
    unpack_codes,
)

KINDS = ("completed", "failed", "processing", None)


def polled(number, *, reason="moderation", now=1000.0, ids=None):
    """Return a batch after one poll in which every fourth id completed, failed, ran and was left out."""
    ids = ids or [f"id-{n}" for n in range(number)]
    batch = TaskBatch(ids, started_at=500, missing_grace=120)
    tasks = {
        task_id: LumaTask(task_id, TaskState(kind), raw={"failure_reason": reason.format(n=n)})
        for n, task_id in enumerate(ids)
        if (kind := KINDS[n % 4])
    }
    batch.update(ids, tasks, now=now)
    return batch


def over_json(state):
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("number", [0, 1, 3, 8, 9, 300, 10_000])
def test_the_state_survives_dump_and_load(number):
    before = polled(number)
    after = TaskBatch.load(before.ids, over_json(before.dump()))
    assert after.dump() == before.dump()
    assert after.result == before.result
    assert (after.pending_ids, after.started_at) == (before.pending_ids, 500)


def test_an_absence_lasts_across_a_restart():
    before = polled(4, now=1000)
    for requested_at, missing in [(1119, []), (1120, ["id-3"])]:
        after = TaskBatch.load(before.ids, over_json(before.dump()), missing_grace=120)
        after.update(["id-3"], {}, now=requested_at)
        assert list(after.result.missing) == missing


def test_time_in_which_nobody_polled_is_no_absence():
    before = polled(4, now=1000)
    after = TaskBatch.load(before.ids, over_json(before.dump()), missing_grace=120)
    after.update(["id-2"], {}, now=9000)
    assert "id-2" in after.pending_ids


def test_absences_are_rounded_to_a_few_later_times():
    ids = [f"id-{n}" for n in range(100)]
    batch = TaskBatch(ids, started_at=0, missing_grace=1000)
    for n, task_id in enumerate(ids):
        batch.update([task_id], {}, now=float(n))
    state = over_json(batch.dump())
    assert len(state["absent"]) <= 16
    after = TaskBatch.load(ids, state, missing_grace=1000)
    after.update(ids, {}, now=1000.0)
    assert set(after.result.missing) <= set(ids[:1])  # none earlier than it should be
    after.update(ids, {}, now=1099.0)
    assert after.pending_ids == []


@pytest.mark.parametrize(
    ("grace", "interval", "seconds"),
    [
        (120, 60, 0.3),
        (120, 10, 0.3),
        (120, 1, 0.3),
        (120, 300, 0.3),
        (12, 1, 0.004),
        (0.5, 0.3, 0.01),
        (0, 1, 0.3),
    ],
)
def test_an_id_that_no_response_shows_becomes_missing_however_many_others_come_and_go(
    grace, interval, seconds
):
    """Each poll is a process, of 25 requests that take so many seconds each and leave other ids out."""
    pick = random.Random(1)
    ids = [f"id-{n}" for n in range(500)]
    batch = TaskBatch(ids, started_at=0, missing_grace=grace)
    now, first = 1_700_000_000.0, None
    while ids[0] in batch.pending_ids:
        for start in range(0, len(ids), 20):
            requested = ids[start : start + 20]
            seen = [i for i in requested if i != ids[0] and pick.random() > 0.1]
            tasks = {task_id: LumaTask(task_id, TaskState.PROCESSING) for task_id in seen}
            batch.update(requested, tasks, now=now)
            now += seconds
            first = first or now
        state = over_json(batch.dump())
        assert len(state["absent"]) <= 16
        batch = TaskBatch.load(ids, state, missing_grace=grace)
        now += interval
        assert now - first < 1.2 * grace + 3 * (interval + 25 * seconds)
    assert now - first >= grace


def test_repeated_dumps_and_loads_change_no_time():
    ids = [f"id-{n}" for n in range(100)]
    batch = TaskBatch(ids, started_at=0, missing_grace=50.1)
    for n, task_id in enumerate(ids):
        batch.update([task_id], {}, now=1_700_000_000 + n / 3)
    first = over_json(batch.dump())
    for _ in range(50):
        batch = TaskBatch.load(ids, over_json(batch.dump()), missing_grace=50.1)
    assert batch.dump() == first


def test_an_endless_grace_keeps_no_times():
    batch = TaskBatch(["a"], started_at=0, missing_grace=math.inf)
    batch.update(["a"], {}, now=1000)
    assert over_json(batch.dump())["absent"] == []


@pytest.mark.parametrize("ids", [["b", "a", "c", "d"], ["a", "b", "c"], ["a", "b", "c", "d", "e"], []])
def test_the_state_of_other_ids_is_rejected(ids):
    assert TaskBatch.load(ids, polled(4, ids=["a", "b", "c", "d"]).dump()) is None


@pytest.mark.parametrize("state", [None, {}, [], "x", 5, {"version": 1}])
def test_an_invalid_state_is_rejected(state):
    assert TaskBatch.load(["a"], state) is None
    assert not TaskBatch.is_state(state)


@pytest.mark.parametrize("field", ["version", "ids", "started_at", "absent", "reasons", "codes"])
@pytest.mark.parametrize("value", [None, 17, "x", "AAAA", [["why", "x"]], [[1]], {"a": 1}])
def test_a_damaged_state_is_rejected(field, value):
    batch = polled(4)
    loaded = TaskBatch.load(batch.ids, batch.dump() | {field: value})
    assert loaded is None or (field, value) == ("started_at", 17)


def test_ten_thousand_ids_that_completed_are_a_few_kilobytes():
    assert len(json.dumps(polled(10_000).dump())) < 8_000


@pytest.mark.parametrize(
    "reason",
    ["moderation", "{n} " + "x" * 290, "x" * 280 + " {n}", "{n}", "\U0001f600" * 290 + "{n}"],
    ids=["same", "differs_first", "differs_last", "short", "four_bytes"],
)
def test_no_reasons_make_a_state_or_a_summary_large(reason):
    ids = [f"{n:036}" for n in range(40_000)]
    batch = polled(0, ids=ids, reason=reason)
    assert len(batch.result.failed) == 10_000
    state = over_json(batch.dump())
    assert len(json.dumps(state)) < 48_000  # as a trigger's argument it grows by a third, being encrypted
    summary = batch.result.summary()
    assert len(json.dumps({"failed": summary["failed"]})) < 64_000
    assert len(summary["failed"]) + summary["failed_not_listed"] == 10_000
    assert TaskBatch.load(ids, state).result.summary() == summary


@pytest.mark.parametrize("kinds", [2, 40, 400, 5_000])
def test_no_spread_of_reasons_makes_a_state_large(kinds):
    ids = [f"{n:036}" for n in range(10_000)]
    pick = random.Random(1)
    batch = TaskBatch(ids, started_at=0, missing_grace=10**6)
    for n, task_id in enumerate(ids):
        raw = {"failure_reason": f"reason {pick.randrange(kinds)}"}
        failed = {task_id: LumaTask(task_id, TaskState.FAILED, raw=raw)} if pick.random() < 0.5 else {}
        batch.update([task_id], failed, now=float(n))
    state = over_json(batch.dump())
    assert len(json.dumps(state)) < 40_000
    assert TaskBatch.load(ids, state).result == batch.result


def summary_of(failed, running):
    ids = [f"{n:08}-7641-4809-a133-10786201bb56" for n in range(failed + running)]
    reasons = {task_id: f"{task_id} {'x' * 260}" for task_id in ids[:failed]}
    return BatchResult(ids, reasons, (), ids[failed:]).summary()


@pytest.mark.parametrize(("failed", "running"), [(9_000, 0), (9_000, 1_000), (300, 1_300), (1, 1_400)])
def test_a_summary_stays_below_64_kb_where_the_running_ids_leave_room(failed, running):
    summary = summary_of(failed, running)
    assert len(summary["running"]) == running
    assert len(summary["failed"]) + summary.get("failed_not_listed", 0) == failed
    assert len(json.dumps(summary)) <= 64_000


def test_failures_add_little_to_a_summary_that_running_ids_fill():
    summary = summary_of(5_000, 5_000)
    assert len(summary["running"]) == 5_000
    assert 0 < len(summary["failed"]) == 5_000 - summary["failed_not_listed"]
    assert len(json.dumps(summary)) - len(json.dumps(summary["running"])) <= 8_200


def test_a_truncated_reason_is_marked():
    reasons = {f"id-{n}": f"{n} {'x' * 290}" for n in range(1000)}
    fitted = fit_reasons(reasons)
    assert list(fitted) == list(reasons)
    assert all(reason.endswith("(cut)") or reason == CUT_REASON for reason in fitted.values())
    assert len(json.dumps(sorted(set(fitted.values())))) < MAX_REASON_BYTES
    assert fit_reasons(fitted) == fitted


def test_reasons_that_fit_are_not_truncated():
    reasons = {f"id-{n}": f"{n} {'x' * 290}" for n in range(60)}
    assert fit_reasons(reasons) == reasons


def test_the_first_entries_are_kept_if_not_all_fit():
    entries = {f"id-{n}": "why" for n in range(1000)}
    fitted = fit_entries(entries, 1000)
    assert list(fitted) == list(entries)[: len(fitted)]
    assert 900 < len(json.dumps(fitted)) <= 1000


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1000])
def test_codes_survive(length):
    for codes in ([0] * length, list(range(length)), [65_535] * length):
        assert unpack_codes(pack_codes(codes), length) == codes


def test_codes_that_would_expand_are_rejected():
    with pytest.raises(ValueError, match="bytes for 8 codes"):
        unpack_codes(pack_codes([0] * 8_000_000), 8)
