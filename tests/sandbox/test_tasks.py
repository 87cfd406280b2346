from __future__ import annotations

import uuid

import pytest

from airflow_provider_luma.sandbox import Faults, Sandbox


def states(client, sandbox):
    return [task["state"] for task in client.tasks(sandbox).values()]


def test_a_task_is_pending_for_a_quarter_of_its_time_then_processing_then_completed(client, clock):
    with Sandbox(tasks=0, clock=clock) as sandbox:
        sandbox.add_task(seconds=100)
        seen = []
        for step in (0, 24.9, 0.1, 74.9, 0.1):
            clock.move(step)
            seen += states(client, sandbox)
        assert seen == ["pending", "pending", "processing", "processing", "completed"]


def test_finish_times_are_spread_from_four_tenths_of_the_time_to_all_of_it(client, clock):
    with Sandbox(tasks=7, seconds=100, fail=0, clock=clock) as sandbox:
        done = []
        for step in (39.9, 0.2, 10, 10, 10, 10, 10, 9.7, 0.2):
            clock.move(step)
            done.append(states(client, sandbox).count("completed"))
        assert done == [0, 1, 2, 3, 4, 5, 6, 6, 7]


@pytest.mark.parametrize(
    ("tasks", "fail", "failures"),
    [(10, 0.3, 3), (10, 0.01, 1), (10, 0, 0), (10, 1, 10), (0, 0.5, 0), (7, 0.2, 1)],
)
def test_a_share_of_the_tasks_fails(tasks, fail, failures):
    sandbox = Sandbox(tasks=tasks, fail=fail)
    reasons = [task.failure_reason for task in sandbox._store.tasks.values() if task.failure_reason]
    assert len(reasons) == failures


def test_a_seed_gives_the_same_tasks_again():
    first, again, other = (Sandbox(tasks=9, seed=seed) for seed in (1, 1, 2))
    assert first.task_ids == again.task_ids != other.task_ids
    assert all(str(uuid.UUID(task_id)) == task_id for task_id in first.task_ids)
    fates = [
        [(t.failure_reason, t.seconds, t.prompt) for t in s._store.tasks.values()] for s in (first, again)
    ]
    assert fates[0] == fates[1]


def test_a_failed_task_has_a_reason_and_no_media(client):
    with Sandbox(tasks=0) as sandbox:
        task_id = sandbox.add_task(seconds=0, failure_reason="Frame moderation failed")
        task = client.tasks(sandbox)[task_id]
        assert (task["state"], task["failure_reason"]) == ("failed", "Frame moderation failed")
        assert task["video"] is task["thumbnail"] is task["artifact"] is None


def test_a_task_can_be_missing_for_a_while_or_always(client, clock):
    with Sandbox(tasks=0, clock=clock) as sandbox:
        late = sandbox.add_task(visible_after=3, seconds=1)
        sandbox.add_task(never_visible=True)
        assert client.tasks(sandbox) == {}
        clock.move(3)
        assert list(client.tasks(sandbox)) == [late]
        clock.move(1e9)
        assert list(client.tasks(sandbox)) == [late]


def test_a_url_can_come_later_than_completion(client, clock):
    with Sandbox(tasks=0, clock=clock) as sandbox:
        task_id = sandbox.add_task(seconds=1, link_delay=2)
        clock.move(2.9)
        task = client.tasks(sandbox)[task_id]
        assert (task["state"], task["video"]) == ("completed", None)
        clock.move(0.1)
        assert client.link(sandbox, task_id)


def test_a_state_word_can_be_chosen_and_a_task_replaced(client):
    with Sandbox(tasks=0) as sandbox:
        task_id = sandbox.add_task(task_id="luma_gen_abc123", prompt="a fox", raw_state="dreaming")
        task = client.tasks(sandbox)[task_id]
        assert (task["id"], task["state"], task["request"]["prompt"]) == (
            "luma_gen_abc123",
            "dreaming",
            "a fox",
        )
        sandbox.add_task(task_id=task_id, seconds=0)
        assert states(client, sandbox) == ["completed"]


@pytest.mark.parametrize("wrong", [{"tasks": -1}, {"fail": 1.1}, {"shape": "round"}, {"video_bytes": 100}])
def test_invalid_arguments_are_rejected(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Sandbox(**wrong)


def test_a_share_of_faults_is_between_0_and_1():
    with pytest.raises(ValueError, match="truncated_downloads is a share"):
        Faults(truncated_downloads=30)
