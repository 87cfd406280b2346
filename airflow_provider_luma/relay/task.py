"""
One Luma task as a relay describes it.

Relays publish two shapes of ``POST /luma/tasks``: a bare array of Luma objects, and
``{"code", "message", "data": [rows]}`` whose rows wrap the Luma object in ``data``. Either may leave out
or null any key. :func:`read_tasks` reads both; nothing else in the package knows the field names of a task.

A relay is not trusted: text is sanitized and truncated here, where it is read, and an id or a URL that is not
plain text counts as absent. :attr:`LumaTask.raw` alone is as the relay sent it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from reprlib import Repr
from typing import Any, TypeAlias

import pendulum

from airflow_provider_luma.relay.text import clean_text, redact_text

Json: TypeAlias = Mapping[str, Any]

MAX_ID_CHARS = 200
# A well-formed id that no relay can have given out.
PROBE_ID = "00000000-0000-0000-0000-000000000000"

_EMPTY: Json = {}
_UNNAMED_FAILURE = "the relay gave no reason"
_MAX_PROMPT_CHARS = 10_000
_MAX_WORD_CHARS = 60
_MAX_URL_CHARS = 8_000
_MAX_PIXELS = 2**31 - 1
_MAX_QUOTA = 1e12
_MAX_SECONDS = 366 * 24 * 3600
_PLAIN_ID = re.compile(rf"[!-~]{{1,{MAX_ID_CHARS}}}")


class _Excerpt(Repr):
    """Shows the beginning of any JSON, at a cost that does not grow with its size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 300
        self.maxlevel = 3

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(
            dict(islice(x.items(), self.maxdict + 1)), level
        )  # it sorts all that it gets


_excerpt = _Excerpt()


class TaskState(StrEnum):
    """The four states that the relay documents. ``COMPLETED`` and ``FAILED`` are terminal."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


_HTTP = re.compile(r"https?://", re.IGNORECASE)
_IMAGE = re.compile(r"\.(jpe?g|png|gif|webp)$", re.IGNORECASE)

MEDIA_KINDS = ("video", "thumbnail", "last_frame")

TERMINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.FAILED})

# The documented words, those of the wrapped rows (NOT_START, SUCCESS, ...), of the official API (queued,
# dreaming), of the gateways in between and of related relays (succeed, done, timed_out).
_STATE_OF_WORD: Mapping[str, TaskState] = {
    word: state
    for state, words in {
        TaskState.PENDING: "pending queued submitted not_start",
        TaskState.PROCESSING: "processing in_progress dreaming running",
        TaskState.COMPLETED: "completed complete success succeeded succeed done finished",
        TaskState.FAILED: "failed fail failure error cancelled canceled rejected moderated expired "
        "timeout timed_out",
    }.items()
    for word in words.split()
}

# In an undocumented word: what no relay says of a video that is ready.
_SPEAKS_AGAINST = re.compile(
    "fail|error|reject|block|moderat|violat|cancel|abort|expir|timeout|refund|denied|invalid|delet"
)


@dataclass(frozen=True, slots=True)
class Media:
    """
    One file of a task.

    :param url: where to fetch it; ``None`` while the relay has none. May be presigned, so never log it.
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

    :param id: the Luma task id, never the row number of a wrapped response.
    :param state: the meaning of the state word. An undocumented word means ``COMPLETED`` where the video's
        URL is there too and neither the word nor an error speaks against it, else ``PROCESSING``.
    :param state_word: the word as the relay sent it.
    :param raw: the complete JSON of this task, unknown keys included, and not cleaned.
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
        """Why it failed; ``None`` unless it did, for some relays keep a finished video's URL there."""
        if self.state is not TaskState.FAILED:
            return None
        reason = next(filter(None, _reasons(self.raw)), None)
        text = reason if isinstance(reason, str | None) else _excerpt.repr(reason)
        return redact_text(clean_text(text)) or _UNNAMED_FAILURE

    @property
    def prompt(self) -> str | None:
        luma = _luma_object(self.raw)
        return _prose(_child(luma, "request").get("prompt")) or _prose(luma.get("prompt"))

    @property
    def aspect_ratio(self) -> str | None:
        luma = _luma_object(self.raw)
        ratios = (_child(luma, "request").get("aspect_ratio"), luma.get("aspect_ratio"))
        return next(filter(None, (clean_text(ratio, _MAX_WORD_CHARS) for ratio in ratios)), None)

    @property
    def created_at(self) -> pendulum.DateTime | None:
        return _time(_luma_object(self.raw).get("created_at")) or _time(self.raw.get("created_at"))

    @property
    def duration(self) -> float | None:
        """Length of the video in seconds."""
        for part in _parts(self.raw, "video_raw", "video"):
            if (seconds := number(part.get("duration"), _MAX_SECONDS)) is not None:
                return seconds
        return None

    @property
    def quota(self) -> float | None:
        """
        The charge in the relay's quota.

        :meth:`~airflow_provider_luma.relay.client.RelayClient.get_cost` returns the money.
        """
        for holder in (self.raw, _luma_object(self.raw)):
            charged = number(holder.get("quota"), _MAX_QUOTA)
            if charged is not None and charged >= 0:
                return charged
        return None

    @property
    def video(self) -> Media | None:
        parts = list(_parts(self.raw, "video_raw", "video"))
        reason = self.raw.get("fail_reason")  # where older rows of a completed task keep its URL
        kept = self.state is TaskState.COMPLETED and str(reason).startswith(("http://", "https://"))
        return _media(parts, [*_video_links(self.raw), reason if kept else None])

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
        parts = list(_parts(self.raw, name))
        return _media(parts, [part.get("url") for part in parts])


def read_tasks(rows: Iterable[Any]) -> dict[str, LumaTask]:
    """
    Read the rows of a response, keyed by Luma task id.

    A row without an id is left out. Of several rows for one id that with the video wins, then a failed one,
    then a completed one.
    """
    tasks: dict[str, LumaTask] = {}
    for row in rows:
        if isinstance(row, Mapping) and (task := read_task(row)) is not None:
            known = tasks.get(task.id)
            if known is None or _weight(task) > _weight(known):
                tasks[task.id] = task
    return tasks


def read_task(row: Json) -> LumaTask | None:
    """Read one row of either shape, ``None`` when it names no task."""
    luma = _luma_object(row)
    # Only text is an id: the integer "id" of a wrapped row is a database key.
    names = (row.get("task_id"), luma.get("id"), luma.get("task_id"), row.get("id"))
    task_id = next((name for name in names if isinstance(name, str) and name), None)
    if task_id is None or not is_valid_id(task_id):
        return None
    state, word = _judge(row)
    return LumaTask(task_id, state, word, row)


def _weight(task: LumaTask) -> int:
    if not task.is_terminal:
        return 0
    if task.state is TaskState.FAILED:
        return 2
    return 3 if _has_video(task.raw) else 1


def is_valid_id(task_id: str) -> bool:
    """Return whether this can be the id of a Luma task: one short piece of plain text."""
    return bool(_PLAIN_ID.fullmatch(task_id)) or task_id == clean_text(task_id, MAX_ID_CHARS) != ""


def _judge(row: Json) -> tuple[TaskState, str]:
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
        return objections[0] if objections and not _has_video(row) else known[successes[0]]
    if known:
        return known[0]
    if not said:
        return TaskState.PENDING, ""
    objects = any(_SPEAKS_AGAINST.search(word.lower()) for _, word in said) or any(_reasons(row))
    return TaskState.PROCESSING if objects or not _has_video(row) else TaskState.COMPLETED, said[0][1]


def _state_words(row: Json) -> Iterator[str]:
    """Yield the words for the state, from the outermost on."""
    luma = _luma_object(row)
    for holder in (row,) if luma is row else (row, luma):
        for name in ("status", "state"):
            if word := clean_text(holder.get(name), _MAX_WORD_CHARS):
                yield word


def _meaning(word: str) -> TaskState | None:
    """Return what a word means; an undocumented one that ends in "ing" is what a relay does just now."""
    word = word.lower()
    return _STATE_OF_WORD.get(word) or (TaskState.PROCESSING if word.endswith("ing") else None)


def _has_video(row: Json) -> bool:
    return any(
        _valid_url(link) and _HTTP.match(link) and not _IMAGE.search(link.partition("?")[0])
        for link in _video_links(row)
    )


def _reasons(row: Json) -> Iterator[Any]:
    """Yield what may say why a task failed, best first. A mere ``message`` may as well be a greeting."""
    luma = _luma_object(row)
    for name in ("failure_reason", "fail_reason", "error", "error_message", "failure_code"):
        for holder in (luma, row):
            yield holder.get(name)


def _luma_object(row: Json) -> Json:
    """Return the Luma object: what a wrapped row holds in ``data``, or the bare row itself."""
    inner = row.get("data")
    return inner if inner and isinstance(inner, Mapping) else row


def _child(holder: Json, name: str) -> Json:
    child = holder.get(name)
    return child if isinstance(child, Mapping) else _EMPTY


def _parts(row: Json, *names: str) -> Iterator[Json]:
    """Yield the objects of these names, then their copies under ``artifact``."""
    luma = _luma_object(row)
    for holder in (luma, _child(luma, "artifact")):
        for name in names:
            if part := _child(holder, name):
                yield part


def _video_links(row: Json) -> Iterator[Any]:
    """Yield what may be the video's URL, best first: relays differ in where they put it."""
    luma = _luma_object(row)
    parts = list(_parts(row, "video_raw", "video"))
    # download_url is the file without a watermark and may be empty even on a completed task.
    yield from (part.get("download_url") for part in parts)
    yield from (part.get("url") for part in parts)
    yield _child(luma, "assets").get("video")
    for holder in (luma, row, _child(luma, "result"), _child(row, "result")):
        yield from (holder.get(name) for name in ("video_url", "result_url"))
        yield from _listed(holder.get("result_urls"))
        yield from _listed(holder.get("output"))
    yield luma.get("url")


def _listed(value: Any) -> Iterator[Any]:
    """Yield the URLs of a list of URLs, or of objects that hold one of a video."""
    for item in value if isinstance(value, list) else []:
        if not isinstance(item, Mapping):
            yield item
        elif item.get("type") in (None, "", "video"):
            yield item.get("url")


def _media(parts: list[Json], links: Iterable[Any]) -> Media | None:
    url = next(filter(_valid_url, links), None)
    if not parts and url is None:
        return None
    return Media(url, _first_size(parts, "width"), _first_size(parts, "height"))


def _first_size(parts: Iterable[Json], name: str) -> int | None:
    sizes = (number(part.get(name), _MAX_PIXELS) for part in parts)
    return next((int(size) for size in sizes if size), None)


def _valid_url(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value == clean_text(value, _MAX_URL_CHARS)


def _prose(value: Any) -> str | None:
    return clean_text(value, _MAX_PROMPT_CHARS) or None


def number(value: Any, maximum: float = math.inf) -> float | None:
    """Return a JSON number of at most this size; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Python's JSON reads NaN, 1e999 as infinity, and integers that msgpack, and so XCom, has no room for.
    return value if abs(value) <= maximum and abs(value) < math.inf else None


def _time(value: Any) -> pendulum.DateTime | None:
    """Read ISO text or unix seconds or milliseconds; Go's zero time (year 1) and 0 mean "not yet"."""
    try:
        if isinstance(value, str) and value:
            moment = pendulum.parse(value)
        elif seconds := number(value):
            moment = pendulum.from_timestamp(seconds / 1000 if seconds > 1e11 else seconds)
        else:
            return None
        if not isinstance(moment, pendulum.DateTime) or moment.year <= 1:
            return None
        f"{moment.isoformat()}{moment:%c %z}"  # an offset of a day or more is found out only here
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return moment
