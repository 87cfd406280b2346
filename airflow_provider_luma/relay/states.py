"""The state of a Luma task, and the names that relays give it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum

from airflow_provider_luma.relay.row import Json, has_video, iter_reasons, luma_object
from airflow_provider_luma.relay.text import clean_text

MAX_STATE_CHARS = 60


class TaskState(StrEnum):
    """The four states that the relay documents. ``COMPLETED`` and ``FAILED`` are terminal."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


TERMINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.FAILED})

# The documented names, those of the wrapped rows (NOT_START, SUCCESS, ...), of the official API (queued,
# dreaming), of the gateways in between and of related relays (succeed, done, timed_out).
# Relays separate their words as they like: "in-progress", "IN_PROGRESS", "Timed Out".
_SEPARATORS = re.compile(r"[\s_-]+")
_STATE_ALIASES: Mapping[str, TaskState] = {
    _SEPARATORS.sub("", name): state
    for state, names in {
        TaskState.PENDING: "pending queued in_queue submitted not_start not_started",
        TaskState.PROCESSING: "processing in_progress dreaming running",
        TaskState.COMPLETED: "completed complete success succeeded succeed done finished",
        TaskState.FAILED: "failed fail failure error cancelled canceled rejected moderated expired "
        "timeout timed_out",
    }.items()
    for name in names.split()
}

# Parts of undocumented names that rule out a video that is ready.
_RULES_OUT_A_VIDEO = re.compile(
    "fail|error|reject|block|moderat|violat|cancel|abort|expir|timeout|refund|denied|invalid|delet"
)


def is_documented(raw_state: str) -> bool:
    """Return whether a relay documents the state."""
    return _fold(raw_state) in _STATE_ALIASES


def parse_state(row: Json) -> tuple[TaskState, str]:
    """
    Return the state, and the relay's name for it.

    A failed state wins wherever it stands: an envelope may say "success" of the query whose task has failed.
    Then a completed one, unless the states further in say that the task is running and there is no video.
    Then the first running one. Only if every state is undocumented, or there is none in words, does a video
    mean completed.
    """
    states = [(_state_of(raw_state), raw_state) for raw_state in _iter_raw_states(row)]
    known = [(state, raw_state) for state, raw_state in states if state is not None]
    if failures := [pair for pair in known if pair[0] is TaskState.FAILED]:
        return failures[0]
    successes = [index for index, (state, _) in enumerate(known) if state is TaskState.COMPLETED]
    if successes:
        overrides = known[successes[-1] + 1 :]
        return overrides[0] if overrides and not has_video(row) else known[successes[0]]
    if known:
        return known[0]
    raw_state = states[0][1] if states else ""
    is_ruled_out = any(_RULES_OUT_A_VIDEO.search(word.lower()) for _, word in states)
    if not is_ruled_out and not any(iter_reasons(row)) and has_video(row):
        return TaskState.COMPLETED, raw_state
    return TaskState.PROCESSING if states else TaskState.PENDING, raw_state


def _iter_raw_states(row: Json) -> Iterator[str]:
    """Yield the relay's names for the state, from the outermost on."""
    luma = luma_object(row)
    for holder in (row,) if luma is row else (row, luma):
        for name in ("status", "state"):
            if raw_state := clean_text(holder.get(name), MAX_STATE_CHARS):
                yield raw_state


def _state_of(raw_state: str) -> TaskState | None:
    """Return the state of a name; an undocumented one that ends in "ing" is one of a running task."""
    name = _fold(raw_state)
    return _STATE_ALIASES.get(name) or (TaskState.PROCESSING if name.endswith("ing") else None)


def _fold(raw_state: str) -> str:
    return _SEPARATORS.sub("", raw_state.lower())
