"""The state of a Luma task, and the words by which relays say it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum

from airflow_provider_luma.relay.row import Json, has_video, iter_reasons, luma_object
from airflow_provider_luma.relay.text import clean_text

MAX_WORD_CHARS = 60


class TaskState(StrEnum):
    """The four states that the relay documents. ``COMPLETED`` and ``FAILED`` are terminal."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


TERMINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.FAILED})

# The documented words, those of the wrapped rows (NOT_START, SUCCESS, ...), of the official API (queued,
# dreaming), of the gateways in between and of related relays (succeed, done, timed_out).
# Relays separate them as they like: "in-progress", "IN_PROGRESS", "Timed Out".
_SEPARATORS = re.compile(r"[\s_-]+")
_STATE_OF_WORD: Mapping[str, TaskState] = {
    _SEPARATORS.sub("", word): state
    for state, words in {
        TaskState.PENDING: "pending queued in_queue submitted not_start not_started",
        TaskState.PROCESSING: "processing in_progress dreaming running",
        TaskState.COMPLETED: "completed complete success succeeded succeed done finished",
        TaskState.FAILED: "failed fail failure error cancelled canceled rejected moderated expired "
        "timeout timed_out",
    }.items()
    for word in words.split()
}

# In an undocumented word: what no relay says of a video that is ready.
_RULES_OUT_A_VIDEO = re.compile(
    "fail|error|reject|block|moderat|violat|cancel|abort|expir|timeout|refund|denied|invalid|delet"
)


def is_known(word: str) -> bool:
    """Return whether a word is documented."""
    return _fold(word) in _STATE_OF_WORD


def parse_state(row: Json) -> tuple[TaskState, str]:
    """
    Return the state, and the word that says it.

    A word for failed counts wherever it stands: an envelope may say "success" of the query whose task has
    failed. Then one for completed, unless the words further in say that the task is running and there is no
    video. Then the first for running. Only where every word is undocumented does a video mean completed.
    """
    said = [(_meaning(word), word) for word in _state_words(row)]
    known = [(state, word) for state, word in said if state is not None]
    if failures := [one for one in known if one[0] is TaskState.FAILED]:
        return failures[0]
    successes = [n for n, (state, _) in enumerate(known) if state is TaskState.COMPLETED]
    if successes:
        objections = known[successes[-1] + 1 :]
        return objections[0] if objections and not has_video(row) else known[successes[0]]
    if known:
        return known[0]
    if not said:
        return TaskState.PENDING, ""
    objects = any(_RULES_OUT_A_VIDEO.search(word.lower()) for _, word in said) or any(iter_reasons(row))
    return TaskState.PROCESSING if objects or not has_video(row) else TaskState.COMPLETED, said[0][1]


def _state_words(row: Json) -> Iterator[str]:
    """Yield the words for the state, from the outermost on."""
    luma = luma_object(row)
    for holder in (row,) if luma is row else (row, luma):
        for name in ("status", "state"):
            if word := clean_text(holder.get(name), MAX_WORD_CHARS):
                yield word


def _meaning(word: str) -> TaskState | None:
    """Return what a word means; an undocumented one that ends in "ing" is what a relay does just now."""
    word = _fold(word)
    return _STATE_OF_WORD.get(word) or (TaskState.PROCESSING if word.endswith("ing") else None)


def _fold(word: str) -> str:
    return _SEPARATORS.sub("", word.lower())
