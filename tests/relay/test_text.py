from __future__ import annotations

import json

import pytest

from airflow_provider_luma.relay.text import clean_text


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        ("moderation", "moderation"),
        ("half an emoji \ud83d", "half an emoji"),
        ("a whole one \U0001f600", "a whole one \U0001f600"),
        ("nul\x00 and\r\nnew lines\tand \x1b[31mcolour", "nul and new lines and [31mcolour"),
        ("right\u202eto left", "right to left"),
        (None, ""),
        (17, ""),
    ],
)
def test_text_from_outside_is_one_harmless_line(value: object, cleaned: str) -> None:
    assert clean_text(value) == cleaned


def test_long_text_is_cut_and_says_so() -> None:
    assert clean_text("x" * 3_000_000) == "x" * 299 + "…"
    assert clean_text("x" * 300) == "x" * 300


def test_any_text_survives_utf8_and_json() -> None:
    for code in range(0x110000):
        chunk = clean_text(f"a{chr(code)}b")
        assert json.loads(json.dumps(chunk).encode()) == chunk
        chunk.encode()
