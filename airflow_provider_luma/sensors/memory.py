"""What a rescheduled sensor keeps between its polls, where Airflow (3.3 and newer) has a place for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.relay.batch import TaskBatch

_KEY = "luma_settled"


def recall(context: Context, batch: TaskBatch) -> None:
    """Settle in a fresh batch what earlier polls of the same ids had settled."""
    store: Any = context.get("task_state_store")
    kept = store.get(_KEY) if store is not None else None
    if not isinstance(kept, dict) or kept.get("ids") != _digest(batch.open_ids):
        return
    ids, bits = batch.open_ids, int(kept["completed"], 16)
    completed = [task_id for position, task_id in enumerate(ids) if bits >> position & 1]
    batch.restore(completed=completed, failed=kept["failed"], missing=kept["missing"])


def remember(context: Context, batch: TaskBatch) -> None:
    """Keep what is settled: the completed ids as bits by position, so that thousands stay small."""
    store: Any = context.get("task_state_store")
    if store is None:
        return
    result, still_open = batch.result, set(batch.open_ids)
    others = still_open.union(result.failed, result.missing)
    bits = "".join("0" if task_id in others else "1" for task_id in reversed(result.ids))
    store.set(
        _KEY,
        {
            "ids": _digest(result.ids),
            "completed": f"{int(bits or '0', 2):x}",
            "failed": dict(result.failed),
            "missing": list(result.missing),
        },
    )


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()
