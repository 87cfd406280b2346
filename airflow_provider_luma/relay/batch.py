"""The state of a wait for many tasks: pure, so that every way of waiting decides alike."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.task import LumaTask, TaskState

_COMPLAINTS_LIMIT = 20
_NO_ID = re.compile(r"""[\s,;'"(){}\[\]]""")


class Outcome(StrEnum):
    """How a batch stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class BatchResult:
    """
    How a batch of tasks stands or ended. What is not said of an id means that it completed.

    :param ids: all ids, in the order of the request.
    :param failed: the reason of each failed id.
    :param missing: the ids that the relay does not know.
    :param running: how many ids are still open.
    """

    ids: Sequence[str]
    failed: Mapping[str, str]
    missing: Collection[str]
    running: int = 0

    @property
    def completed_count(self) -> int:
        return len(self.ids) - len(self.failed) - len(self.missing) - self.running

    @property
    def completed(self) -> list[str]:
        """The completed ids in the order of the request, once nothing is running."""
        missing = frozenset(self.missing)
        return [task_id for task_id in self.ids if task_id not in self.failed and task_id not in missing]

    def outcome(self, fail_when: FailWhen, *, fail_fast: bool = False) -> Outcome:
        """
        Judge the batch.

        :param fail_when: which failures fail the batch.
        :param fail_fast: do not wait for open ids once nothing can save the batch.
        """
        fails = self._fails(fail_when)
        if self.running and not (fail_fast and fails):
            return Outcome.RUNNING
        return Outcome.FAILED if fails else Outcome.COMPLETED

    def _fails(self, fail_when: FailWhen) -> bool:
        unsuccessful = len(self.failed) + len(self.missing)
        if fail_when is FailWhen.ANY:
            return unsuccessful > 0
        return fail_when is FailWhen.ALL and 0 < unsuccessful == len(self.ids)

    def progress(self) -> str:
        """Say in one line how far the batch is."""
        return progress_line(self.completed_count, len(self.failed), len(self.missing), self.running)

    def complaints(self) -> list[str]:
        """Say of each failed or missing id what is wrong, the first few of them and then a count."""
        failed = [f"{task_id}: {self.failed[task_id]}" for task_id in self.ids if task_id in self.failed]
        missing = [f"{task_id}: the relay does not know this id" for task_id in self._missing_in_order()]
        complaints = failed + missing
        left_out = len(complaints) - _COMPLAINTS_LIMIT
        return complaints[:_COMPLAINTS_LIMIT] + ([f"and {left_out} more"] if left_out > 0 else [])

    def summary(self) -> dict[str, Any]:
        """Return what goes into XCom as ``luma_summary``."""
        return {
            "completed": self.completed_count,
            "failed": dict(self.failed),
            "missing": self._missing_in_order(),
            "running": self.running,
        }

    def _missing_in_order(self) -> list[str]:
        missing = frozenset(self.missing)
        return [task_id for task_id in self.ids if task_id in missing] if missing else []


class TaskBatch:
    """
    Follows a batch of tasks from answer to answer.

    A terminal id never reopens. An id that the relay leaves out of its answers is open for
    ``missing_grace`` seconds, counted from the start of the wait or from when it was last seen, then missing.

    :param ids: Luma task ids; duplicates collapse, order is kept.
    :param started_at: when the wait began, in the same seconds as ``now`` of :meth:`observe`.
    :param missing_grace: in seconds.
    """

    def __init__(self, ids: Iterable[str], *, started_at: float, missing_grace: float = 120) -> None:
        self.started_at = started_at
        self._present_at = dict.fromkeys(ids, started_at)
        self._missing_grace = missing_grace
        self._ids = tuple(self._present_at)
        self._failed: dict[str, str] = {}
        self._missing: list[str] = []

    @property
    def open_ids(self) -> list[str]:
        return list(self._present_at)

    @property
    def result(self) -> BatchResult:
        return BatchResult(self._ids, dict(self._failed), tuple(self._missing), len(self._present_at))

    def observe(self, asked: Iterable[str], answered: Mapping[str, LumaTask], *, now: float) -> None:
        """Take in what the relay answered for the ids that it was ``asked`` for."""
        for task_id in asked:
            if task_id not in self._present_at:
                continue
            task = answered.get(task_id)
            if task is None:
                self._note_absence(task_id, now)
            elif task.is_terminal:
                self._settle(task)
            else:
                self._present_at[task_id] = now

    def restore(self, *, completed: Iterable[str], failed: Mapping[str, str], missing: Iterable[str]) -> None:
        """Take over what was found out before, elsewhere."""
        missing = list(missing)
        for task_id in (*completed, *failed, *missing):
            del self._present_at[task_id]
        self._failed.update(failed)
        self._missing.extend(missing)

    def _settle(self, task: LumaTask) -> None:
        del self._present_at[task.id]
        if task.state is TaskState.FAILED:
            self._failed[task.id] = str(task.failure_reason)

    def _note_absence(self, task_id: str, now: float) -> None:
        if now - self._present_at[task_id] >= self._missing_grace:
            del self._present_at[task_id]
            self._missing.append(task_id)


def progress_line(completed: int, failed: int, missing: int, running: int) -> str:
    """Say such counts in words, leaving out what there is none of but for the completed."""
    others = {"failed": failed, "missing": missing, "running": running}
    told = [f"{count} {word}" for word, count in others.items() if count]
    return ", ".join([f"{completed} of {completed + sum(others.values())} completed", *told])


def read_task_ids(value: Any) -> list[str]:
    """
    Read the ``luma_task_ids`` argument as users and templates give it.

    :param value: a list (or another iterable) of ids, a single id, or a string that holds a list as JSON or
        Python writes it, which is what a template renders to.
    :return: the ids without duplicates, in order.
    :raises LumaValueError: when something in it is not an id.
    """
    if isinstance(value, str):
        value = _ids_in_text(value)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise LumaValueError(f"luma_task_ids must be a list of ids, one id or a JSON list, not {value!r:.80}")
    ids = list(value)
    for position, task_id in enumerate(ids):
        if not isinstance(task_id, str) or not task_id.strip():
            raise LumaValueError(
                f"luma_task_ids[{position}] must be a non-empty string, not {task_id!r:.80}; nothing was sent"
            )
    return list(dict.fromkeys(task_id.strip() for task_id in ids))


def _ids_in_text(text: str) -> Any:
    text = text.strip()
    if not text.startswith("["):
        if text in {"None", "null"} or _NO_ID.search(text):
            raise LumaValueError(
                f"luma_task_ids is {text[:80]!r}, which is no id. A template of an XCom that is not there "
                "renders to None; several ids are a list"
            )
        return [text]
    for read in (json.loads, ast.literal_eval):  # Jinja renders a Python list the way Python writes it
        with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return read(text)
    raise LumaValueError(
        f"luma_task_ids looks like a list but cannot be read as one: {text[:80]!r}. "
        "Pass the XComArg itself, or render it with the tojson filter"
    )
