"""Names that relays and users make up never collide and never leave the folder."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma.download.naming import (
    candidate_names,
    file_name,
    object_names,
    parse_name_template,
)
from airflow_provider_luma.download.response import parse_retry_after
from airflow_provider_luma.download.sidecar import parse_sidecar
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.media import MEDIA_KINDS
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask
from tests.strategies import JSON

IDS = st.text(min_size=1) | st.from_regex(r"[a-zA-Z0-9._/\\ -]{1,20}", fullmatch=True) | st.just("..")
PARTS = (
    "{id}",
    "{prompt}",
    "{aspect_ratio}",
    "{created_at:%Y/%m}",
    "{created_at}",
    "{id:>9}",
    "/",
    "..",
    "a",
)
TEMPLATES = st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=6).map("".join)


def task(task_id: str, **raw: Any) -> LumaTask:
    return LumaTask(task_id, TaskState.COMPLETED, "completed", {"id": task_id} | raw)


def stays_inside(name: str) -> bool:
    return os.path.normpath(f"/archive/clips/{name}") == f"/archive/clips/{name}"


@given(st.lists(IDS, unique=True, max_size=30))
@example(["a", "A", "a.0123456789abcdef", "../a", "a/b", "a b", "a-b"])
def test_no_two_ids_share_a_name(ids: list[str]) -> None:
    names = object_names("{id}", map(task, ids))
    assert len(set(names.values())) == len(ids)
    assert all(stays_inside(name) and "/" not in name for name in names.values())


@given(TEMPLATES, IDS, JSON, JSON, JSON)
def test_no_name_leaves_the_folder(template: str, task_id: str, prompt: Any, ratio: Any, time: Any) -> None:
    clip = task(task_id, request={"prompt": prompt, "aspect_ratio": ratio}, created_at=time)
    with suppress(LumaValueError):
        name = object_names(parse_name_template(template), [clip])[task_id]
        assert stays_inside(name)
        assert name.strip("/") == name


@given(st.sampled_from(MEDIA_KINDS), st.text() | st.from_regex(r"https://[a-z.]+/[\w./%?=-]*"))
def test_a_url_decides_only_a_suffix(kind: Any, url: str) -> None:
    media_type = "video/mp4" if kind == "video" else "image/jpeg"
    assert file_name("clip", kind, url, media_type) in candidate_names("clip", kind, url)
    assert all(name.startswith("clip.") and "/" not in name for name in candidate_names("clip", kind, url))


@given(st.text() | st.from_regex(r"https?://[\w.\[\]:@-]*/[\w./%?=#-]*"))
def test_any_url_is_redacted(url: str) -> None:
    shown = redact_url(url)
    assert "?" not in shown
    shown.encode()


@given(st.binary() | JSON.map(lambda row: json.dumps(row).encode()))
def test_any_bytes_are_a_valid_sidecar_or_none(content: bytes) -> None:
    state = parse_sidecar(content)
    assert state.task_id is None or isinstance(state.task_id, str)


@given(st.dictionaries(st.sampled_from(["id", "status", "video", "thumbnail", "publishing"]), JSON))
def test_any_row_is_a_valid_sidecar_or_none(row: dict[str, Any]) -> None:
    parse_sidecar(json.dumps({"id": "a", "status": "downloading", **row}).encode())


@given(st.text())
def test_any_retry_after_is_a_bounded_number_or_none(value: str) -> None:
    seconds = parse_retry_after(value)
    assert seconds is None or 0 <= seconds <= 24 * 3600
