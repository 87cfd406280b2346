from __future__ import annotations

import json
import time

import pytest

from airflow_provider_luma.relay.text import clean_text, redact_text


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


@pytest.mark.parametrize(
    "text",
    [
        "https://b.example/in.png?response-content-disposition=clip(1).png&OSSAccessKeyId=SECRET&Signature=SECRET",
        "'https://b.example/in.png?name=a'b&X-Amz-Credential=SECRET%2F20261121&X-Amz-Signature=SECRET'",
        "https://b.example/in.png?filename*%3DUTF-8''clip.mp4&X-Amz-Security-Token=SECRET",
        "https://b.example/in.png?Expires=1 &Signature=SECRET",
        "https%3A%2F%2Fb.example%2Fin.png%3FExpires%3D1%26Signature%3DSECRET",
        "host:443 in.png?sig=SECRET",
        "https://b.example/in.png;X-Amz-Signature=SECRET",
        "token=SECRET",
        "https://user:SECRET@host/x",
        "https://user:p@SECRET@host/x?a=b",
        "//user:SECRET@host",
        r'{"url": "https:\/\/user:SECRET@host\/x?a=b"}',
        r'{"text": "{\"url\": \"https:\\/\\/user:p@SECRET@host\\/x\"}"}',
    ],
)
def test_no_signature_of_a_url_is_left(text: str) -> None:
    assert "SECRET" not in redact_text(text)


def test_redaction_keeps_the_words_around_a_url() -> None:
    assert redact_text("https://a.example to b@c.example") == "https://a.example to b@c.example"
    assert redact_text(r"https:\/\/u:p@h@a.example\/x") == r"https:\/\/a.example\/x"
    text = "the link 'https://cdn.example/v.mp4?a=b' (signature expired) is design=flat"
    assert redact_text(text) == "the link 'https://cdn.example/v.mp4?…' (signature expired) is design=flat"


def test_a_long_text_is_redacted_in_time() -> None:
    begun = time.process_time()
    redact_text("sig" * 100_000 + "%3" * 100_000 + "access_" * 50_000)
    redact_text("https://" + "a" * 500_000 + ("//" + "\\" * 9) * 50_000)
    assert time.process_time() - begun < 1
