"""Text from outside, made safe for logs, JSON columns, msgpack and terminals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE_CHARS = 300

# Lone surrogates break UTF-8 and with it msgpack, PostgreSQL rejects NUL, and control and bidirectional
# characters forge log lines.
_HOSTILE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_QUERY = re.compile(r"(?<=[^\s?#])[?#][^\s'\")>]+")
# Some have a quote or a parenthesis, at which a query within a text seems to end, or are percent-encoded.
_SIGNATURE = re.compile(
    r"((?:signature|credential|token|secret|access_?key(?:_?id)?|(?<![a-z])sig|api_?key)(?:=|%3D))[^\s\"<>]+",
    re.IGNORECASE,
)
# Up to the last "@", as a password may hold one; behind slashes as JSON may write them.
_USERINFO = re.compile(r"(/\\{0,4}/)[^\s/?#]*@")
_SPACE = re.compile(r"\s+")

# User and password of a URL.
USER_INFO = re.compile(r"(?<=//)[^/]*@")
SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(value: Any, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """
    Return ``value`` as one line of at most ``max_chars`` characters that any encoder accepts.

    :param value: a ``str``; anything else gives ``""``.
    :param max_chars: a longer text is truncated, and ends with an ellipsis.
    """
    if not isinstance(value, str):
        return ""
    text = _SPACE.sub(" ", _HOSTILE.sub(" ", value[: 4 * max_chars])).strip()
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def list_first(texts: Sequence[str], limit: int) -> list[str]:
    """Return the first texts, and after them how many more there are."""
    left_out = len(texts) - limit
    return [*texts[:limit], *([f"and {left_out} more"] if left_out > 0 else [])]


def redact_text(text: str) -> str:
    """Drop queries, credentials and signatures of the URLs within a text."""
    if "/" in text:
        text = _QUERY.sub("?…", _USERINFO.sub(r"\1", text))
    return _SIGNATURE.sub(r"\1…", text)
