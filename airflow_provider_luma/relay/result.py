"""The progress or outcome of a batch of tasks, its messages and its summary."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NotRequired, TypedDict

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.relay.batch_state import MAX_BYTES, fit_entries, json_size
from airflow_provider_luma.relay.text import list_first

_MAX_MESSAGES = 20

_SUMMARY_FRAME_BYTES = 200
_MIN_FAILED_BYTES = 8_000


class Outcome(StrEnum):
    """The outcome of a batch so far."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class LumaSummary(TypedDict):
    """
    The summary of a batch of tasks.

    ``completed`` is a count, ``failed`` has the reason of each failed id, ``missing`` and ``running`` have
    ids. ``failed_not_listed`` counts failures that are left out of ``failed``.
    """

    completed: int
    failed: dict[str, str]
    missing: list[str]
    running: list[str]
    failed_not_listed: NotRequired[int]


@dataclass(frozen=True)
class BatchResult:
    """
    The result of a batch of tasks, ended or not. Every id that is in none of the collections has completed.

    :param ids: all ids, in the order of the request.
    :param failed: the reason of each failed id.
    :param missing: the ids that the relay does not know.
    :param running: the ids that are still pending.
    """

    ids: Sequence[str]
    failed: Mapping[str, str]
    missing: Collection[str]
    running: Collection[str] = ()

    @property
    def completed_count(self) -> int:
        return len(self.ids) - len(self.failed) - len(self.missing) - len(self.running)

    @property
    def completed(self) -> list[str]:
        """The completed ids in the order of the request."""
        others = {*self.failed, *self.missing, *self.running}
        return [task_id for task_id in self.ids if task_id not in others]

    def outcome(self, fail_when: FailWhen, *, fail_fast: bool = False) -> Outcome:
        """
        Judge the batch.

        :param fail_when: which failures fail the batch.
        :param fail_fast: do not wait for pending ids once nothing can save the batch.
        """
        unsuccessful = len(self.failed) + len(self.missing)
        return judge(len(self.ids), unsuccessful, len(self.running), fail_when, fail_fast)

    def progress_message(self) -> str:
        """Return the counts in one line, without those that are zero, save the completed."""
        return progress_message(len(self.ids), len(self.failed), len(self.missing), len(self.running))

    def failure_messages(self) -> list[str]:
        """Return a line for each failed or missing id, the first few of them and then a count."""
        failed = [f"{task_id}: {self.failed[task_id]}" for task_id in self.ids if task_id in self.failed]
        missing = [f"{task_id}: the relay does not know this id" for task_id in self._ordered(self.missing)]
        return list_first([*failed, *missing], _MAX_MESSAGES)

    def running_message(self) -> str:
        """Return the ids that are still running in one line, the first few of them and then a count."""
        return ", ".join(list_first(self._ordered(self.running), _MAX_MESSAGES))

    def abandoned_message(self) -> str:
        """Name the tasks that are still running when a wait is stopped."""
        return (
            f"The wait was stopped. {len(self.running)} Luma tasks are still running at the relay, "
            f"and are charged: {self.running_message()}"
        )

    def summary(self) -> LumaSummary:
        """
        Return the summary, within 64 KB where the ids leave room.

        ``missing`` and ``running`` are complete, as they hold the user's own ids. ``failed`` gets what they
        leave of 64 KB, and 8 KB at the least. Where that is not enough for thousands of failures, their
        reasons are truncated first, then it holds only the first of them, and ``failed_not_listed``
        counts the others.
        """
        missing, running = self._ordered(self.missing), self._ordered(self.running)
        failed = {task_id: self.failed[task_id] for task_id in self._ordered(self.failed)}
        room = max(
            MAX_BYTES - _SUMMARY_FRAME_BYTES - json_size({"missing": missing, "running": running}),
            _MIN_FAILED_BYTES,
        )
        listed = fit_entries(failed, room)
        not_listed = len(failed) - len(listed)
        summary: LumaSummary = {
            "completed": self.completed_count,
            "failed": listed,
            "missing": missing,
            "running": running,
        }
        if not_listed:
            summary["failed_not_listed"] = not_listed
        return summary

    def _ordered(self, some: Collection[str]) -> list[str]:
        wanted = frozenset(some)
        return [task_id for task_id in self.ids if task_id in wanted] if wanted else []


def judge(total: int, unsuccessful: int, running: int, fail_when: FailWhen, fail_fast: bool) -> Outcome:
    """Judge a batch by its counts, see :meth:`BatchResult.outcome`."""
    if fail_when is FailWhen.ANY:
        fails = unsuccessful > 0
    else:
        fails = fail_when is FailWhen.ALL and 0 < unsuccessful == total
    if running and not (fail_fast and fails):
        return Outcome.RUNNING
    return Outcome.FAILED if fails else Outcome.COMPLETED


def progress_message(total: int, failed: int, missing: int, running: int) -> str:
    """Return counts in one line, see :meth:`BatchResult.progress_message`."""
    counts = {"failed": failed, "missing": missing, "running": running}
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    return ", ".join([f"{total - failed - missing - running} of {total} completed", *parts])
