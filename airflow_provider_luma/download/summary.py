"""The outcome of every id that was requested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from airflow_provider_luma.download.pool import DownloadResult
from airflow_provider_luma.download.records import DownloadSummary, ManifestRow, Record
from airflow_provider_luma.relay.result import BatchResult
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.relay.text import clean_text, list_first

_MAX_MESSAGES = 20


class DownloadReport:
    """
    Joins what the relay says and what was downloaded.

    :param ids: all ids, in the order of the request.
    :param tasks: what the relay knows of them.
    :param result: what happened to the completed ones.
    """

    def __init__(self, ids: Sequence[str], tasks: Mapping[str, LumaTask], result: DownloadResult) -> None:
        self.result = result
        self.batch = BatchResult(
            ids,
            failed={
                task.id: clean_text(str(task.failure_reason))
                for task in tasks.values()
                if task.state is TaskState.FAILED
            },
            missing=[task_id for task_id in ids if task_id not in tasks],
        )
        self._running = {task.id: task.state for task in tasks.values() if not task.is_terminal}

    @property
    def errors(self) -> dict[str, str]:
        """The reason of each id that another attempt may download."""
        running = {task_id: f"still {state.value}" for task_id, state in self._running.items()}
        return {task_id: str(error) for task_id, error in self.result.errors.items()} | running

    @property
    def summary(self) -> DownloadSummary:
        counts = self.result.counts
        return {
            "completed": counts.downloaded + counts.unchanged,
            "downloaded": counts.downloaded,
            "unchanged": counts.unchanged,
            "errors": counts.failed,
            "failed": len(self.batch.failed),
            "missing": len(self.batch.missing),
            "running": len(self._running),
            "bytes": sum(file["size"] for file in self.result.downloaded_files),
        }

    def messages(self) -> list[str]:
        """Say what is not downloaded and why, the first few of each kind."""
        errors = [f"{task_id}: {reason}" for task_id, reason in self.errors.items()]
        return [*list_first(errors, _MAX_MESSAGES), *self.batch.failure_messages()]

    def manifest_rows(self) -> Iterator[Record | ManifestRow]:
        """Yield the row of each id."""
        records = {record["id"]: record for record in self.result.records}
        for task_id in self.batch.ids:
            yield records.get(task_id) or self._row_without_record(task_id)

    def _row_without_record(self, task_id: str) -> ManifestRow:
        state: str | None
        if task_id in self.batch.failed:
            state, status, error = "failed", "failed", self.batch.failed[task_id]
        elif task_id in self._running:
            state, status, error = self._running[task_id].value, "running", self.errors[task_id]
        elif task_id in self.result.errors:
            state, status, error = "completed", "error", str(self.result.errors[task_id])
        else:
            state, status, error = None, "missing", "the relay does not know this id"
        return {"id": task_id, "state": state, "status": status, "error": error}
