"""
The compact form of what is known of many ids: a code by position, and texts truncated to a budget.

Ten thousand ids are at most 16 KB here and 400 KB as a list, so that a state fits wherever Airflow keeps one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence

# Where a trigger's arguments or an event end: a TEXT column of MySQL.
MAX_BYTES = 64_000

# What the reasons of one state may take: encrypted, with 700 ids, they still fit into MySQL's column.
MAX_REASON_BYTES = 18_000

CUT_REASON = "(cut: too many different reasons)"
_CUT_MARK = "… (cut)"
_CUT_LENGTHS = (100, 40)
_SEPARATOR_BYTES = 4
_MIN_SPAN_SECONDS = 0.001


def digest_ids(ids: Sequence[str]) -> str:
    """Return a digest of a list of ids, order included."""
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:32]


def pack_codes(codes: Sequence[int]) -> str:
    """Return codes below 65,536 as text."""
    low, high = bytes(code & 0xFF for code in codes), bytes(code >> 8 for code in codes)
    return base64.b64encode(zlib.compress(low + high, 6)).decode()


def unpack_codes(packed: str, length: int) -> list[int]:
    """
    Return the codes of :func:`pack_codes`.

    :raises ValueError: when it is none of its texts, or of another length.
    """
    try:
        plain = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), 2 * length + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(plain) != 2 * length:
        raise ValueError(f"{len(plain)} bytes for {length} codes")
    return [low | high << 8 for low, high in zip(plain[:length], plain[length:], strict=True)]


def merge_times(times: Iterable[float], span: float) -> dict[float, float]:
    """
    Return for each time one of at most 16, no newer than the newest and less than ``span / 5`` later.

    Times that lie further back than ``span`` become one that does, too. Merged again beside newer ones,
    times move no further, so that none drifts along with the newest: they are drawn to a grid whose step is a
    power of two, which floating-point numbers divide without an error.

    Example: a span of 120 gives steps of 16, so that of the times 880, 900, 1000, 1001, 1010 and 1100 the
    first two become 976, which is further back than the span, the next two 1008, the next one 1024, and the
    newest stays.

    :param span: in seconds; what matters of a time is whether it lies that far back.
    """
    step = 2.0 ** math.frexp(max(span, _MIN_SPAN_SECONDS) / 12)[1]
    different = set(times)
    newest = max(different, default=0.0)
    oldest = math.floor((newest - span) / step) * step
    return {time: min(max(math.ceil(time / step) * step, oldest), newest) for time in different}


def fit_reasons(reasons: Mapping[str, str], max_bytes: int = MAX_REASON_BYTES) -> dict[str, str]:
    """
    Truncate reasons until the different ones among them fit; a truncated reason says so.

    It is called in the triggerer's event loop, so its cost does not depend on how long the reasons are.

    :param reasons: by id.
    :param max_bytes: what the different reasons may take together as JSON.
    """
    shown = {reason: reason for reason in reasons.values()}
    for length in _CUT_LENGTHS:
        if len(_first_that_fit(shown.values(), max_bytes)) == len(set(shown.values())):
            break
        shown = {reason: cut_text(text, length) for reason, text in shown.items()}
    else:
        kept = _first_that_fit([CUT_REASON, *shown.values()], max_bytes)
        shown = {reason: text if text in kept else CUT_REASON for reason, text in shown.items()}
    return {task_id: shown[reason] for task_id, reason in reasons.items()}


def fit_entries(entries: Mapping[str, str], max_bytes: int) -> dict[str, str]:
    """Truncate the texts of a dictionary until it fits as JSON, then leave out its last entries."""
    fitted = dict(entries)
    for length in _CUT_LENGTHS:
        if json_size(fitted) <= max_bytes:
            return fitted
        fitted = {key: cut_text(text, length) for key, text in fitted.items()}
    kept: dict[str, str] = {}
    size = 2
    for key, text in fitted.items():
        size += json_size(key) + json_size(text) + _SEPARATOR_BYTES
        if size > max_bytes:
            break
        kept[key] = text
    return kept


def cut_text(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters, which says so where it was truncated."""
    return text if len(text) <= length else text[: length - len(_CUT_MARK)] + _CUT_MARK


def json_size(value: object) -> int:
    """Return how many bytes a value is as JSON."""
    return len(json.dumps(value))


def _first_that_fit(texts: Iterable[str], max_bytes: int) -> set[str]:
    """Return the different texts, up to the first that does not fit any more."""
    kept: set[str] = set()
    size = 0
    for text in texts:
        if text not in kept:
            size += json_size(text) + _SEPARATOR_BYTES
            if size > max_bytes:
                break
            kept.add(text)
    return kept
