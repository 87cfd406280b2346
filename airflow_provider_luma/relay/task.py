"""
One Luma task as a relay describes it.

Relays publish two shapes of ``POST /luma/tasks``: a bare array of Luma objects, and
``{"code", "message", "data": [rows]}`` whose rows wrap the Luma object in ``data``. Either may leave out
or null any key. :func:`parse_tasks` reads both, with the field names that ``row`` and ``media`` know.

A relay is not trusted: text is sanitized and truncated here, where it is read, and an id or a URL that is not
plain text counts as absent. :attr:`LumaTask.raw` alone is as the relay sent it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from reprlib import Repr
from typing import Any

import pendulum

from airflow_provider_luma.relay.media import Media, parse_media
from airflow_provider_luma.relay.row import (
    Json,
    child,
    finite_number,
    has_video,
    iter_parts,
    iter_reasons,
    iter_video_urls,
    luma_object,
    parse_time,
)
from airflow_provider_luma.relay.states import (
    MAX_STATE_CHARS,
    TERMINAL_STATES,
    TaskState,
    is_documented,
    parse_state,
)
from airflow_provider_luma.relay.text import clean_text, redact_text

MAX_ID_CHARS = 200
# A well-formed id that no relay can have given out.
PROBE_ID = "00000000-0000-0000-0000-000000000000"

_UNNAMED_FAILURE = "the relay gave no reason"
_MAX_PROMPT_CHARS = 10_000
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


@dataclass(frozen=True, slots=True)
class LumaTask:
    """
    One Luma task as the relay described it.

    :param id: the Luma task id, never the row number of a wrapped response.
    :param state: the parsed state. An undocumented one means ``COMPLETED`` if the video's URL is there and
        neither the state nor an error rules that out, otherwise ``PROCESSING``.
    :param raw_state: the state as the relay sent it.
    :param raw: the complete JSON of this task, unknown keys included, and not sanitized.
    """

    id: str
    state: TaskState
    raw_state: str = ""
    raw: Json = field(default_factory=dict, repr=False)

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def is_known_state(self) -> bool:
        return is_documented(self.raw_state)

    @property
    def failure_reason(self) -> str | None:
        """Why it failed; ``None`` unless it did, for some relays keep a finished video's URL there."""
        if self.state is not TaskState.FAILED:
            return None
        reason = next(filter(None, iter_reasons(self.raw)), None)
        text = reason if isinstance(reason, str | None) else _excerpt.repr(reason)
        return redact_text(clean_text(text)) or _UNNAMED_FAILURE

    @property
    def prompt(self) -> str | None:
        luma = luma_object(self.raw)
        return _clean_prompt(child(luma, "request").get("prompt")) or _clean_prompt(luma.get("prompt"))

    @property
    def aspect_ratio(self) -> str | None:
        luma = luma_object(self.raw)
        ratios = (child(luma, "request").get("aspect_ratio"), luma.get("aspect_ratio"))
        return next(filter(None, (clean_text(ratio, MAX_STATE_CHARS) for ratio in ratios)), None)

    @property
    def created_at(self) -> pendulum.DateTime | None:
        return parse_time(luma_object(self.raw).get("created_at")) or parse_time(self.raw.get("created_at"))

    @property
    def duration(self) -> float | None:
        """Length of the video in seconds."""
        for part in iter_parts(self.raw, "video_raw", "video"):
            if (seconds := finite_number(part.get("duration"), _MAX_SECONDS)) is not None:
                return seconds
        return None

    @property
    def quota(self) -> float | None:
        """
        The charge in the relay's quota.

        :meth:`~airflow_provider_luma.relay.client.RelayClient.get_cost` returns the money.
        """
        for holder in (self.raw, luma_object(self.raw)):
            charged = finite_number(holder.get("quota"), _MAX_QUOTA)
            if charged is not None and charged >= 0:
                return charged
        return None

    @property
    def video(self) -> Media | None:
        parts = list(iter_parts(self.raw, "video_raw", "video"))
        reason = self.raw.get("fail_reason")  # where older rows of a completed task keep its URL
        kept = self.state is TaskState.COMPLETED and str(reason).startswith(("http://", "https://"))
        return parse_media(parts, [*iter_video_urls(self.raw), reason if kept else None])

    @property
    def thumbnail(self) -> Media | None:
        return self._image("thumbnail")

    @property
    def last_frame(self) -> Media | None:
        return self._image("last_frame")

    def media(self, kind: str) -> Media | None:
        """Return the file of this kind, one of :data:`MEDIA_KINDS`."""
        found: Media | None = getattr(self, kind)
        return found

    def _image(self, name: str) -> Media | None:
        parts = list(iter_parts(self.raw, name))
        return parse_media(parts, [part.get("url") for part in parts])


def parse_tasks(rows: Iterable[Any]) -> dict[str, LumaTask]:
    """
    Parse the rows of a response, keyed by Luma task id.

    A row without an id is left out. Of several rows for one id that with the video wins, then a failed one,
    then a completed one.
    """
    tasks: dict[str, LumaTask] = {}
    ranks: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Mapping) and (task := parse_task(row)) is not None:
            # Ranked once, as a row may hold so many URLs that to look at them again for each other row of
            # its id takes minutes.
            rank = _rank(task)
            if rank > ranks.get(task.id, -1):
                tasks[task.id], ranks[task.id] = task, rank
    return tasks


def parse_task(row: Json) -> LumaTask | None:
    """Parse a row of either shape; ``None`` if it identifies no task."""
    luma = luma_object(row)
    # Only text is an id: the integer "id" of a wrapped row is a database key.
    names = (row.get("task_id"), luma.get("id"), luma.get("task_id"), row.get("id"))
    task_id = next((name for name in names if isinstance(name, str) and name), None)
    if task_id is None or not is_valid_id(task_id):
        return None
    state, raw_state = parse_state(row)
    return LumaTask(task_id, state, raw_state, row)


def _rank(task: LumaTask) -> int:
    if not task.is_terminal:
        return 0
    if task.state is TaskState.FAILED:
        return 2
    return 3 if has_video(task.raw) else 1


def is_valid_id(task_id: str) -> bool:
    """Return whether this can be the id of a Luma task: one short piece of plain text."""
    return bool(_PLAIN_ID.fullmatch(task_id)) or task_id == clean_text(task_id, MAX_ID_CHARS) != ""


def _clean_prompt(value: Any) -> str | None:
    return clean_text(value, _MAX_PROMPT_CHARS) or None
