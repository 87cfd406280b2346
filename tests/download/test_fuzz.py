"""Names that relays and users make up never collide and never leave the folder."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma.download.naming import file_name, object_names, read_name_template
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.task import MEDIA_KINDS, LumaTask, TaskState
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
        name = object_names(read_name_template(template), [clip])[task_id]
        assert stays_inside(name)
        assert name.strip("/") == name


@given(st.sampled_from(MEDIA_KINDS), st.text() | st.from_regex(r"https://[a-z.]+/[\w./%?=-]*"))
def test_a_link_decides_nothing_but_a_suffix(kind: str, url: str) -> None:
    with suppress(ValueError):  # of an address that is none, which no download survives
        assert file_name("clip", kind, url).startswith("clip.")
        assert "/" not in file_name("clip", kind, url)
