"""
What a relay says of one Luma task.

Relays publish two shapes of ``POST /luma/tasks``: a bare array of Luma objects, and
``{"code", "message", "data": [rows]}`` whose rows wrap the Luma object in ``data``. Either may leave out
or null any key. :func:`read_tasks` reads both; nothing else in the package knows a JSON field name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import pendulum

Json: TypeAlias = Mapping[str, Any]

_EMPTY: Json = {}
_UNNAMED_FAILURE = "the relay gave no reason"


class TaskState(StrEnum):
    """The four states that the relay documents. ``COMPLETED`` and ``FAILED`` are terminal."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


MEDIA_KINDS = ("video", "thumbnail", "last_frame")

TERMINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.FAILED})

# The documented words, those of the wrapped rows (NOT_START, SUCCESS, ...), of the official API (queued,
# dreaming) and of the gateways in between.
_STATE_OF_WORD: Mapping[str, TaskState] = {
    **dict.fromkeys(("pending", "queued", "submitted", "not_start"), TaskState.PENDING),
    **dict.fromkeys(("processing", "in_progress", "dreaming", "running"), TaskState.PROCESSING),
    **dict.fromkeys(("completed", "success", "succeeded"), TaskState.COMPLETED),
    **dict.fromkeys(
        ("failed", "failure", "error", "cancelled", "canceled", "rejected", "expired"), TaskState.FAILED
    ),
}


@dataclass(frozen=True, slots=True)
class Media:
    """
    One file of a task.

    :param url: where to fetch it; ``None`` while the relay has no link. May be signed, so never log it.
    :param width: in pixels.
    :param height: in pixels.
    """

    url: str | None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class LumaTask:
    """
    One Luma task as the relay described it.

    :param id: the Luma task id, never the row number of a wrapped answer.
    :param state: what the state word means; a word that nobody documents counts as ``PROCESSING``.
    :param state_word: the word as it was answered.
    :param raw: the whole answer for this task, unknown keys included.
    """

    id: str
    state: TaskState
    state_word: str = ""
    raw: Json = field(default_factory=dict, repr=False)

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def knows_state_word(self) -> bool:
        return self.state_word.lower() in _STATE_OF_WORD

    @property
    def failure_reason(self) -> str | None:
        """Why it failed; ``None`` unless it did, for some relays keep a finished video's link there."""
        if self.state is not TaskState.FAILED:
            return None
        luma = _luma_object(self.raw)
        reason = luma.get("failure_reason") or self.raw.get("failure_reason") or self.raw.get("fail_reason")
        return str(reason or _UNNAMED_FAILURE)

    @property
    def prompt(self) -> str | None:
        luma = _luma_object(self.raw)
        return _text(_child(luma, "request").get("prompt")) or _text(luma.get("prompt"))

    @property
    def aspect_ratio(self) -> str | None:
        luma = _luma_object(self.raw)
        return _text(_child(luma, "request").get("aspect_ratio")) or _text(luma.get("aspect_ratio"))

    @property
    def created_at(self) -> pendulum.DateTime | None:
        return _time(_luma_object(self.raw).get("created_at")) or _time(self.raw.get("created_at"))

    @property
    def duration(self) -> float | None:
        """Length of the video in seconds."""
        for part in self._parts("video_raw", "video"):
            if (seconds := _number(part.get("duration"))) is not None:
                return seconds
        return None

    @property
    def video(self) -> Media | None:
        # download_url is the file without a watermark and may be empty even on a completed task.
        parts = list(self._parts("video_raw", "video"))
        links = [part.get("download_url") for part in parts] + [part.get("url") for part in parts]
        links.append(_child(_luma_object(self.raw), "assets").get("video"))
        return _media(parts, links)

    @property
    def thumbnail(self) -> Media | None:
        return self._picture("thumbnail")

    @property
    def last_frame(self) -> Media | None:
        return self._picture("last_frame")

    def media(self, kind: str) -> Media | None:
        """Return the file of this kind, one of :data:`MEDIA_KINDS`."""
        found: Media | None = getattr(self, kind)
        return found

    def _picture(self, name: str) -> Media | None:
        parts = list(self._parts(name))
        return _media(parts, [part.get("url") for part in parts])

    def _parts(self, *names: str) -> Iterator[Json]:
        """Yield the objects of these names, then their copies under ``artifact``."""
        luma = _luma_object(self.raw)
        for holder in (luma, _child(luma, "artifact")):
            for name in names:
                if part := _child(holder, name):
                    yield part


def read_tasks(rows: Iterable[Any]) -> dict[str, LumaTask]:
    """
    Read the rows of an answer, keyed by Luma task id.

    A row without an id is left out. Of two rows for one id a terminal one wins.
    """
    tasks: dict[str, LumaTask] = {}
    for row in rows:
        if isinstance(row, Mapping) and (task := read_task(row)) is not None:
            known = tasks.get(task.id)
            if known is None or not known.is_terminal:
                tasks[task.id] = task
    return tasks


def read_task(row: Json) -> LumaTask | None:
    """Read one row of either shape, ``None`` when it names no task."""
    luma = _luma_object(row)
    # Only text is an id: the integer "id" of a wrapped row is a database key.
    names = (row.get("task_id"), luma.get("id"), luma.get("task_id"), row.get("id"))
    task_id = next(filter(None, map(_text, names)), None)
    if task_id is None:
        return None
    state, word = _state(*(holder.get(key) for holder in (row, luma) for key in ("status", "state")))
    return LumaTask(task_id, state, word, row)


def _state(*words: Any) -> tuple[TaskState, str]:
    """Judge by the first terminal word, else by the first word at all."""
    spoken = [word for word in words if isinstance(word, str) and word]
    states = [_STATE_OF_WORD.get(word.lower(), TaskState.PROCESSING) for word in spoken]
    for state, word in zip(states, spoken, strict=True):
        if state in TERMINAL_STATES:
            return state, word
    return (states[0], spoken[0]) if spoken else (TaskState.PENDING, "")


def _luma_object(row: Json) -> Json:
    """Return the Luma object: what a wrapped row holds in ``data``, or the bare row itself."""
    inner = row.get("data")
    return inner if isinstance(inner, Mapping) and inner else row


def _child(holder: Json, name: str) -> Json:
    child = holder.get(name)
    return child if isinstance(child, Mapping) else _EMPTY


def _media(parts: list[Json], links: Iterable[Any]) -> Media | None:
    url = next((link for link in links if isinstance(link, str) and link), None)
    if not parts and url is None:
        return None
    return Media(url, _first_size(parts, "width"), _first_size(parts, "height"))


def _first_size(parts: Iterable[Json], name: str) -> int | None:
    sizes = (_number(part.get(name)) for part in parts)
    return next((int(size) for size in sizes if size), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < math.inf else None  # Python's JSON reads NaN, and 1e999 as infinity


def _time(value: Any) -> pendulum.DateTime | None:
    """Read ISO text or unix seconds or milliseconds; Go's zero time (year 1) and 0 mean "not yet"."""
    try:
        if isinstance(value, str) and value:
            moment = pendulum.parse(value)
        elif number := _number(value):
            moment = pendulum.from_timestamp(number / 1000 if number > 1e11 else number)
        else:
            return None
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return moment if isinstance(moment, pendulum.DateTime) and moment.year > 1 else None
