"""
The compact form of what is known of many ids: positions as bits, texts cut to a budget.

Ten thousand ids are 1.7 KB a set here and 400 KB as a list, so that a state fits wherever Airflow keeps one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence

# Where a trigger's arguments or an event end: a TEXT column of MySQL.
MAX_BYTES = 64_000

# What the reasons of one state may take: encrypted and with the rest they stay far below MAX_BYTES.
MAX_REASON_BYTES = 24_000

CUT_REASON = "(cut: too many different reasons)"
_CUT_MARK = "… (cut)"
_CUT_LENGTHS = (100, 40)
_GROUP_OVERHEAD = 60


def digest_ids(ids: Sequence[str]) -> str:
    """Return what tells one list of ids from another, order included."""
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:32]


def pack_positions(positions: Iterable[int], length: int) -> str:
    """Return positions below ``length`` as text."""
    bits = bytearray((length + 7) // 8)
    for position in positions:
        bits[position >> 3] |= 1 << (position & 7)
    return base64.b64encode(zlib.compress(bytes(bits), 6)).decode()


def unpack_positions(packed: str, length: int) -> list[int]:
    """
    Return the positions of :func:`pack_positions`.

    :raises ValueError: when it is none of its texts, or of another length.
    """
    decompressor = zlib.decompressobj()
    try:
        bits = decompressor.decompress(base64.b64decode(packed, validate=True), length // 8 + 2)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(bits) != (length + 7) // 8:
        raise ValueError(f"{len(bits)} bytes for {length} positions")
    return [position for position in range(length) if bits[position >> 3] >> (position & 7) & 1]


def fit_reasons(reasons: Mapping[str, str], max_bytes: int = MAX_REASON_BYTES) -> dict[str, str]:
    """
    Cut reasons, longest first, until the different ones among them fit; a cut reason says so.

    :param reasons: by id.
    :param max_bytes: what the different reasons may take together as JSON.
    """
    fitted = dict(reasons)
    for length in _CUT_LENGTHS:
        if _size(fitted.values()) <= max_bytes:
            return fitted
        fitted = {task_id: cut_text(reason, length) for task_id, reason in fitted.items()}
    kept: dict[str, None] = {}
    size = _size([CUT_REASON])
    for reason in dict.fromkeys(fitted.values()):
        size += _size([reason])
        if size > max_bytes:
            break
        kept[reason] = None
    return {task_id: reason if reason in kept else CUT_REASON for task_id, reason in fitted.items()}


def fit_entries(entries: Mapping[str, str], max_bytes: int) -> dict[str, str]:
    """Cut the texts of a dictionary until it fits as JSON, then leave out its last entries."""
    fitted = dict(entries)
    for length in _CUT_LENGTHS:
        if _json_size(fitted) <= max_bytes:
            return fitted
        fitted = {key: cut_text(text, length) for key, text in fitted.items()}
    kept: dict[str, str] = {}
    size = 2
    for key, text in fitted.items():
        size += _json_size(key) + _json_size(text) + 4
        if size > max_bytes:
            break
        kept[key] = text
    return kept


def cut_text(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters, which says so where it was cut."""
    return text if len(text) <= length else text[: length - len(_CUT_MARK)] + _CUT_MARK


def _size(reasons: Iterable[str]) -> int:
    return sum(_json_size(reason) + _GROUP_OVERHEAD for reason in set(reasons))


def _json_size(value: object) -> int:
    return len(json.dumps(value))
