"""
JSON of any kind without holding up the other threads of the process.

Python's decoder holds the interpreter's lock from the first byte to the last, and so do the values when they
are freed: in the triggerer the event loop stands still meanwhile. The cost is in the number of values, not of
bytes: eight megabytes of text take milliseconds, eight megabytes of empty lists take seconds. Surrogates, of
which some relays make an emoji, are slow as bytes, too: text that has any is decoded in slices. So are
numbers of many digits, of which only the first ones are read.
"""

from __future__ import annotations

import json
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

# Up to here the fast decoder takes well below 100 ms on a busy machine. A completed task counts for 200.
FAST_VALUES = 50_000

# Beyond, even freeing the values takes too long, and that many containers start a full garbage collection.
MAX_VALUES = 200_000
_VALUES_OF_A_CONTAINER = 10
_INT64, _MAX_INT64_CHARS = 2**63, 20
_MAX_NUMBER_CHARS = 60
# No double needs more than 24. From some 50 on, each may take ten microseconds.
_MAX_FLOAT_CHARS = 40
_SLICE_BYTES = 32 * 1024
_LONGEST_CHARACTER = 4


class TooManyValuesError(ValueError):
    """A body has more values than any response needs."""


def decode_json(body: bytes) -> Any:
    """
    Decode a body.

    :raises TooManyValuesError: when it has more than :data:`MAX_VALUES`.
    :raises ValueError: when it is no JSON.
    :raises RecursionError: when it is nested too deep.
    """
    values = count_values(body)
    text = _decode_text(body)
    if values <= FAST_VALUES:
        return json.loads(text, parse_int=_parse_int, parse_float=_parse_float)
    if values > MAX_VALUES:
        raise TooManyValuesError(f"more than {MAX_VALUES} JSON values")
    decoder = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float)
    # Slower, and lets other threads run in between.
    decoder.scan_once = py_make_scanner(decoder)  # type: ignore[attr-defined]
    return decoder.decode(text)


def _decode_text(body: bytes) -> str:
    """Decode UTF-8, and surrogates. Nothing redacts a key in the other encodings that json.loads detects."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        pieces, start = [], 0
        while start < len(body):
            end = _character_boundary(body, start + _SLICE_BYTES)
            pieces.append(body[start:end].decode(errors="surrogatepass"))
            start = end
        return "".join(pieces).removeprefix("\ufeff")


def _character_boundary(body: bytes, position: int) -> int:
    """Return where the character begins that a position may lie within."""
    starts = range(position, position - _LONGEST_CHARACTER, -1)
    return next((start for start in starts if start >= len(body) or body[start] & 0xC0 != 0x80), position)


def _parse_int(text: str) -> int | str | None:
    """Read an integer; one that no store takes stays text, as it may be an id; ``None`` for a longer one."""
    if len(text) <= _MAX_INT64_CHARS and abs(number := int(text)) < _INT64:
        return number
    return text if len(text) <= _MAX_NUMBER_CHARS else None


def _parse_float(text: str) -> float | None:
    """Read a fraction; a long one, as PHP writes it, by its first digits, and ``None`` if they do not do."""
    if len(text) <= _MAX_FLOAT_CHARS:
        return float(text)
    start = text[:_MAX_FLOAT_CHARS]
    return float(start) if "." in start and "e" not in text.lower() else None


def count_values(body: bytes) -> int:
    """Return an upper bound of a body's values; a list or an object counts as ten."""
    return body.count(b",") + _VALUES_OF_A_CONTAINER * (body.count(b"[") + body.count(b"{")) + 1
