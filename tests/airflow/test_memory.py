from __future__ import annotations

import json
from typing import Any

from airflow_provider_luma.relay import LumaTask, TaskBatch, TaskState
from airflow_provider_luma.sensors.memory import recall, remember


class Store(dict[str, str]):
    """Keeps values the way Airflow's task state store does: as JSON."""

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self[key]) if key in self else default

    def set(self, key: str, value: Any) -> None:
        self[key] = json.dumps(value)


def settled(ids: list[str]) -> TaskBatch:
    batch = TaskBatch(ids, started_at=0, missing_grace=0)
    failed = LumaTask(ids[1], TaskState.FAILED, raw={"failure_reason": "moderation"})
    completed = [LumaTask(task_id, TaskState.COMPLETED) for task_id in ids[3:]]
    batch.observe(ids[1:], {task.id: task for task in [failed, *completed]}, now=1)
    return batch


def test_what_was_settled_is_known_again() -> None:
    ids = [f"id-{n}" for n in range(300)]
    context = {"task_state_store": Store()}
    before, after = settled(ids), TaskBatch(ids, started_at=0)
    remember(context, before)
    recall(context, after)
    assert after.open_ids == before.open_ids == ["id-0"]
    assert after.result == before.result


def test_ten_thousand_completed_ids_stay_small() -> None:
    store = Store()
    remember({"task_state_store": store}, settled([f"id-{n}" for n in range(10_000)]))
    assert sum(map(len, store.values())) < 4_000


def test_other_ids_are_not_mistaken_for_these() -> None:
    context = {"task_state_store": Store()}
    remember(context, settled(["a", "b", "c", "d"]))
    batch = TaskBatch(["b", "a", "c", "d"], started_at=0)
    recall(context, batch)
    assert batch.open_ids == ["b", "a", "c", "d"]


def test_an_airflow_without_such_a_store_just_asks_again() -> None:
    batch = settled(["a", "b", "c", "d"])
    remember({}, batch)
    recall({}, batch)
    assert batch.open_ids == ["a"]
