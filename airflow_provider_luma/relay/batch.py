"""
The state of a wait for many tasks: pure, so that every mode decides alike.

Each id is in one of four phases::

    pending ──seen running──▶ pending (no longer absent)
       │ ────left out───────▶ pending (absent since then), after missing_grace: missing
       │ ────completed──────▶ completed
       └─────failed─────────▶ failed

``completed``, ``failed`` and ``missing`` are final. An id becomes missing only after absences that span
``missing_grace``, without a sighting in between: one response that leaves an id out proves nothing, because a
relay may query another backend next time.

Crash windows: a process may end, or fail to keep its state, between a poll and the next. Then an older state
is loaded, with more pending ids than there are, which costs queries, and with absences that a sighting may
have ended::

    who loads a state                        its absences
    a rescheduled sensor, of the poll before  count
    a rescheduled sensor, of an older poll    are forgotten
    a rescheduled sensor, of an earlier try   are not loaded, nor is anything else of it
    a sensor that its trigger left alone      are forgotten: it loads what it knew when it deferred
    a trigger, begun or restarted             are forgotten: it loads what the sensor knew when it deferred
    a sensor, of the event of its trigger     count

:meth:`TaskBatch.dump` is the one form in which a wait outlives its process: the task state store (mode
``reschedule``), the arguments of the trigger and its event carry it. It holds no id, only a code by position
and a digest of the ids, so that it stays small and is never taken for the state of other ids.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, Self, TypeVar

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.batch_state import (
    digest_ids,
    fit_reasons,
    merge_times,
    pack_codes,
    unpack_codes,
)
from airflow_provider_luma.relay.result import BatchResult, Outcome, judge, progress_message
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import MAX_ID_CHARS, LumaTask, is_valid_id

T = TypeVar("T")

STATE_VERSION = 2

# What a dump says of an id; the codes after these name a time of "absent", then a reason of "reasons".
_PENDING, _COMPLETED, _MISSING, _OTHERS = range(4)

_NO_ID = re.compile(r"""[\s,;'"(){}\[\]]""")


class TaskBatch:
    """
    Follows a batch of tasks from response to response.

    :param ids: Luma task ids; duplicates collapse, order is kept.
    :param started_at: when the wait began, in the same seconds as ``now`` of :meth:`update`.
    :param missing_grace: seconds for which an id may be absent from the responses.
    :param absent_since: since when an id that is absent now counts as absent. Default: since the first
        response that leaves it out.
    """

    __slots__ = ("_failed", "_ids", "_missing", "_missing_grace", "_pending", "started_at")

    def __init__(
        self,
        ids: Iterable[str],
        *,
        started_at: float,
        missing_grace: float = 120,
        absent_since: float | None = None,
    ) -> None:
        self.started_at = started_at
        self._missing_grace = missing_grace
        self._pending: dict[str, float | None] = dict.fromkeys(ids, absent_since)
        self._ids = tuple(self._pending)
        self._failed: dict[str, str] = {}
        self._missing: dict[str, None] = {}

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def pending_ids(self) -> list[str]:
        return list(self._pending)

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    @property
    def result(self) -> BatchResult:
        return BatchResult(self._ids, fit_reasons(self._failed), tuple(self._missing), tuple(self._pending))

    def failure_reason(self, task_id: str) -> str | None:
        """Return why a task failed, not truncated as all reasons together are; otherwise ``None``."""
        return self._failed.get(task_id)

    def progress_message(self) -> str:
        """Return the counts in one line, as ``BatchResult.progress_message`` does."""
        return progress_message(len(self._ids), len(self._failed), len(self._missing), len(self._pending))

    def outcome(self, fail_when: FailWhen, *, fail_fast: bool = False) -> Outcome:
        """Judge the batch as ``BatchResult.outcome`` does, at the cost of a comparison."""
        unsuccessful = len(self._failed) + len(self._missing)
        return judge(len(self._ids), unsuccessful, len(self._pending), fail_when, fail_fast)

    def update(self, requested: Iterable[str], tasks: Mapping[str, LumaTask], *, now: float) -> bool:
        """
        Take in a response.

        :param requested: the ids of the request.
        :param tasks: the tasks that it knows, by id.
        :return: whether an id has become final.
        """
        pending_before = len(self._pending)
        for task_id in requested:
            if task_id not in self._pending:
                continue
            task = tasks.get(task_id)
            if task is None:
                self._mark_absent(task_id, now)
            elif task.is_terminal:
                self._mark_terminal(task)
            else:
                self._pending[task_id] = None
        return len(self._pending) != pending_before

    @property
    def has_absences(self) -> bool:
        return any(since is not None for since in self._pending.values())

    def forget_absences(self) -> None:
        """Start the grace period over, where an id may have been seen since this state was kept."""
        self._pending = dict.fromkeys(self._pending)

    def dump(self) -> dict[str, Any]:
        """Return all that is known, as JSON of at most some 35 KB for 10,000 ids; :meth:`load` reads it."""
        absent, reasons = self._absences(), fit_reasons(self._failed)
        code_of_time = _numbered(absent.values(), _OTHERS)
        code_of_reason = _numbered(reasons.values(), _OTHERS + len(code_of_time))
        code_of = dict.fromkeys(self._ids, _COMPLETED)
        code_of |= dict.fromkeys(self._pending, _PENDING) | dict.fromkeys(self._missing, _MISSING)
        code_of |= {task_id: code_of_time[since] for task_id, since in absent.items()}
        code_of |= {task_id: code_of_reason[reason] for task_id, reason in reasons.items()}
        return {
            "version": STATE_VERSION,
            "ids": digest_ids(self._ids),
            "started_at": self.started_at,
            "absent": list(code_of_time),
            "reasons": list(code_of_reason),
            "codes": pack_codes(list(code_of.values())),
        }

    @classmethod
    def load(cls, ids: Iterable[str], state: Any, *, missing_grace: float = 120) -> Self | None:
        """
        Rebuild a batch from :meth:`dump`.

        :return: ``None`` when ``state`` is none, or that of other ids or of another version of this package.
        """
        try:
            batch = cls(ids, started_at=float(state["started_at"]), missing_grace=missing_grace)
            if (state["version"], state["ids"]) != (STATE_VERSION, digest_ids(batch._ids)):
                return None
            batch._restore(state)
        except (LookupError, TypeError, ValueError):
            return None
        return batch

    @staticmethod
    def is_state(state: Any) -> bool:
        """Return whether this has the form of :meth:`dump`, of whatever ids."""
        started_at = state.get("started_at") if isinstance(state, Mapping) else None
        return isinstance(started_at, int | float) and state.get("version") == STATE_VERSION

    def _restore(self, state: Mapping[str, Any]) -> None:
        times, reasons = _listed(state, "absent", (int, float)), _listed(state, "reasons", (str,))
        for task_id, code in zip(self._ids, unpack_codes(state["codes"], len(self._ids)), strict=True):
            if code == _PENDING:
                continue
            if _OTHERS <= code < _OTHERS + len(times):
                self._pending[task_id] = times[code - _OTHERS]
                continue
            del self._pending[task_id]
            if code == _MISSING:
                self._missing[task_id] = None
            elif code != _COMPLETED:
                self._failed[task_id] = reasons[code - _OTHERS - len(times)]

    def _absences(self) -> dict[str, float]:
        """Return since when the absent ids are absent, in a few different times."""
        if self._missing_grace == math.inf:
            return {}
        absent = {task_id: since for task_id, since in self._pending.items() if since is not None}
        merged = merge_times(absent.values(), self._missing_grace)
        return {task_id: merged[since] for task_id, since in absent.items()}

    def _mark_terminal(self, task: LumaTask) -> None:
        del self._pending[task.id]
        if task.state is TaskState.FAILED:
            self._failed[task.id] = str(task.failure_reason)

    def _mark_absent(self, task_id: str, now: float) -> None:
        since = self._pending[task_id]
        if since is None:
            self._pending[task_id] = now
        elif now - since >= self._missing_grace:
            del self._pending[task_id]
            self._missing[task_id] = None


def _listed(state: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> list[Any]:
    values = state[name]
    if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
        raise TypeError(f"{name} is not a list of {kinds}")
    return values


def _numbered(values: Iterable[T], first: int) -> dict[T, int]:
    return {value: number for number, value in enumerate(dict.fromkeys(values), start=first)}


def parse_task_ids(value: Any) -> list[str]:
    """
    Read the ``luma_task_ids`` argument as users and templates give it.

    :param value: a list (or another iterable) of ids, a single id, or a string that holds a list as JSON or
        Python writes it, which is what a template renders to.
    :return: the ids without duplicates, in order.
    :raises LumaValueError: when something in it is not an id, or it has no order.
    """
    if isinstance(value, str):
        value = _ids_in_text(value)
    if isinstance(value, Set) and not isinstance(value, KeysView):
        raise LumaValueError(
            "luma_task_ids must be a list, not a set: a set has another order in each process, "
            "so that a wait could not be resumed"
        )
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise LumaValueError(f"luma_task_ids must be a list of ids, one id or a JSON list, not {value!r:.80}")
    ids = list(value)
    for position, task_id in enumerate(ids):
        if not isinstance(task_id, str) or not task_id.strip():
            raise LumaValueError(f"luma_task_ids[{position}] must be a non-empty string, not {task_id!r:.80}")
        if not is_valid_id(task_id.strip()):
            raise LumaValueError(
                f"luma_task_ids[{position}] must be one line of plain text of at most {MAX_ID_CHARS} "
                f"characters, not {task_id[:60]!a}"
            )
    return list(dict.fromkeys(task_id.strip() for task_id in ids))


def _ids_in_text(text: str) -> Any:
    text = text.strip()
    if not text.startswith("["):
        if text in {"None", "null"} or _NO_ID.search(text):
            raise LumaValueError(
                f"luma_task_ids is {text[:80]!r}, which is not a task id. Did a template render to None? "
                "Pass several ids as a list"
            )
        return [text]
    for read in (json.loads, ast.literal_eval):  # Jinja renders a Python list the way Python writes it
        with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return read(text)
    raise LumaValueError(
        f"luma_task_ids looks like a list but cannot be read as one: {text[:80]!r}. "
        "Pass the XComArg itself, or render it with the tojson filter"
    )
