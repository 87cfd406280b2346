"""
Reads a row of a response: JSON in which any key may be absent, null or of another type.

Relays publish two shapes of a row: a bare Luma object, and a row that wraps the Luma object in ``data``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import pendulum

from airflow_provider_luma.relay.text import clean_text

Json: TypeAlias = Mapping[str, Any]

_EMPTY: Json = {}
_MAX_URL_CHARS = 8_000
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_IMAGE = re.compile(r"\.(jpe?g|png|gif|webp)$", re.IGNORECASE)


def luma_object(row: Json) -> Json:
    """Return the Luma object: what a wrapped row holds in ``data``, or the bare row itself."""
    inner = row.get("data")
    return inner if inner and isinstance(inner, Mapping) else row


def child(holder: Json, name: str) -> Json:
    child = holder.get(name)
    return child if isinstance(child, Mapping) else _EMPTY


def iter_reasons(row: Json) -> Iterator[Any]:
    """Yield what may say why a task failed, best first. A mere ``message`` may as well be a greeting."""
    luma = luma_object(row)
    for name in ("failure_reason", "fail_reason", "error", "error_message", "failure_code"):
        for holder in (luma, row):
            reason = holder.get(name)
            yield None if is_empty_error(reason) else reason


def is_empty_error(value: Any) -> bool:
    """Return whether an error says that there is none, such as ``{"code": 0, "message": ""}``."""
    return not any(value.values()) if isinstance(value, Mapping) else not value


def iter_parts(row: Json, *names: str) -> Iterator[Json]:
    """Yield the objects of these names, then their copies under ``artifact``."""
    luma = luma_object(row)
    for holder in (luma, child(luma, "artifact")):
        for name in names:
            if part := child(holder, name):
                yield part


def iter_video_urls(row: Json) -> Iterator[Any]:
    """Yield what may be the video's URL, best first: relays differ in where they put it."""
    luma = luma_object(row)
    parts = list(iter_parts(row, "video_raw", "video"))
    # download_url is the file without a watermark and may be empty even on a completed task.
    yield from (part.get("download_url") for part in parts)
    yield from (part.get("url") for part in parts)
    yield child(luma, "assets").get("video")
    for holder in (luma, row, child(luma, "result"), child(row, "result")):
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


def has_video(row: Json) -> bool:
    return any(
        is_valid_url(link) and _HTTP.match(link) and not _IMAGE.search(link.partition("?")[0])
        for link in iter_video_urls(row)
    )


def is_valid_url(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value == clean_text(value, _MAX_URL_CHARS)


def finite_number(value: Any, maximum: float = math.inf) -> float | None:
    """Return a JSON number of at most this size; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Python's JSON reads NaN, 1e999 as infinity, and integers that msgpack, and so XCom, has no room for.
    return value if abs(value) <= maximum and abs(value) < math.inf else None


def parse_time(value: Any) -> pendulum.DateTime | None:
    """Read ISO text or unix seconds or milliseconds; Go's zero time (year 1) and 0 mean "not yet"."""
    try:
        if isinstance(value, str) and value:
            moment = pendulum.parse(value)
        elif seconds := finite_number(value):
            moment = pendulum.from_timestamp(seconds / 1000 if seconds > 1e11 else seconds)
        else:
            return None
        if not isinstance(moment, pendulum.DateTime) or moment.year <= 1:
            return None
        _ = f"{moment.isoformat()}{moment:%c %z}"  # raises: an offset of a day or more is found out only here
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return moment
