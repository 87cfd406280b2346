"""What became of every id that a run was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_luma.download.archive import Archive
from airflow_provider_luma.relay.result import BatchResult
from airflow_provider_luma.relay.task import LumaTask, TaskState

_COMPLAINTS_LIMIT = 20


class Report:
    """
    Joins what the relay says and what was archived.

    :param ids: all ids, in the order of the request.
    :param tasks: what the relay knows of them.
    :param archive: what became of the completed ones.
    """

    def __init__(self, ids: Sequence[str], tasks: Mapping[str, LumaTask], archive: Archive) -> None:
        self.archive = archive
        self.result = BatchResult(
            ids,
            failed={
                task.id: str(task.failure_reason) for task in tasks.values() if task.state is TaskState.FAILED
            },
            missing=[task_id for task_id in ids if task_id not in tasks],
        )
        self._running = {task.id: task.state for task in tasks.values() if not task.is_terminal}

    @property
    def unfinished(self) -> dict[str, str]:
        """Why, of each id that another try may archive."""
        running = {
            task_id: f"still {state.value}; wait for it with LumaTaskSensor"
            for task_id, state in self._running.items()
        }
        return {task_id: str(error) for task_id, error in self.archive.errors.items()} | running

    @property
    def summary(self) -> dict[str, int]:
        count = self.archive.count
        return {
            "completed": count.downloaded + count.unchanged,
            "downloaded": count.downloaded,
            "unchanged": count.unchanged,
            "errors": count.failed,
            "failed": len(self.result.failed),
            "missing": len(self.result.missing),
            "running": len(self._running),
            "bytes": sum(file["size"] for file in self.archive.moved),
        }

    def complaints(self) -> list[str]:
        """Say what is not archived and why, the first few of each kind."""
        unfinished = [f"{task_id}: {reason}" for task_id, reason in self.unfinished.items()]
        left_out = len(unfinished) - _COMPLAINTS_LIMIT
        more = [f"and {left_out} more"] if left_out > 0 else []
        return [*unfinished[:_COMPLAINTS_LIMIT], *more, *self.result.failure_messages()]

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """Yield a line of the manifest for each id."""
        records = {record["id"]: record for record in self.archive.records}
        for task_id in self.result.ids:
            yield records.get(task_id) or self._not_archived(task_id)

    def _not_archived(self, task_id: str) -> dict[str, Any]:
        if task_id in self.result.failed:
            state, status, error = "failed", "failed", self.result.failed[task_id]
        elif task_id in self._running:
            state, status, error = self._running[task_id].value, "running", self.unfinished[task_id]
        elif task_id in self.archive.errors:
            state, status, error = "completed", "error", str(self.archive.errors[task_id])
        else:
            state, status, error = None, "missing", "the relay does not know this id"
        return {"id": task_id, "state": state, "status": status, "error": error}
