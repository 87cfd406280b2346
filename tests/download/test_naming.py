from __future__ import annotations

import random
from pathlib import PurePosixPath
from typing import Any

import pytest

from airflow_provider_luma.download.naming import (
    candidate_names,
    file_name,
    manifest_name,
    object_names,
    parse_name_template,
    safe_id,
)
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask


def task(task_id: str, **raw: Any) -> LumaTask:
    return LumaTask(task_id, TaskState.COMPLETED, "completed", {"id": task_id} | raw)


def name(template: str, task: LumaTask) -> str:
    return object_names(parse_name_template(template), [task])[task.id]


CAT = task(
    "4665a07c-7641-4809-a133-10786201bb56",
    created_at="2024-12-22T13:38:40.139Z",
    request={"prompt": "cat dance / ../etc", "aspect_ratio": "16:9"},
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{id}", CAT.id),
        ("clips/{id}", f"clips/{CAT.id}"),
        ("{created_at:%Y-%m-%d}/{id}", f"2024-12-22/{CAT.id}"),
        ("{created_at:%Y/%m}/{id}", f"2024/12/{CAT.id}"),
        ("{prompt}-{aspect_ratio}", "cat-dance-etc-16-9"),
    ],
)
def test_templates_name_objects(template: str, expected: str) -> None:
    assert name(template, CAT) == expected


@pytest.mark.parametrize("template", ["{id}-{created_at:%Y}", "{id}-{created_at!s}", "{id}-{created_at!r}"])
def test_a_time_that_the_relay_did_not_report_is_unknown_in_every_format(template: str) -> None:
    (name,) = object_names(template, [task("clip", request={"prompt": "x"}, created_at=None)]).values()
    assert name == "clip-unknown"


@pytest.mark.parametrize("template", ["{id}-{prompt:%Y}", "{id:d}", "{id!x}"])
def test_an_invalid_format_of_a_field_is_named(template: str) -> None:
    with pytest.raises(LumaValueError, match="has a format that its field does not take"):
        object_names(template, [task("clip")])


def test_fields_that_the_relay_did_not_report_are_unknown() -> None:
    assert name("{created_at:%Y}/{prompt}/{id}", task("a")) == "unknown/unknown/a"


@pytest.mark.parametrize(
    "template",
    ["../{id}", "a/../{id}", "/{id}", "{id}/", "a//{id}", "./{id}", "", "a\\{id}", "{", "{}", "{0}", "{nope}",
     "{id.__class__}", "{id[0]}"],
)  # fmt: skip
def test_templates_that_are_invalid_or_leave_the_destination_are_rejected(template: str) -> None:
    with pytest.raises(LumaValueError, match="name_template"):
        parse_name_template(template)


@pytest.mark.parametrize(
    "task_id",
    [
        "../../x",
        "..",
        ".",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a b",
        ".hidden",
        "ü",
        "x" * 5000,
        "a\0b",
        "{id}",
        "a.b/../c",
    ],
)
@pytest.mark.parametrize("template", ["{id}", "clips/{id}", "{id}/{id}"])
def test_no_id_leaves_the_destination(task_id: str, template: str) -> None:
    path = PurePosixPath(name(template, task(task_id)))
    assert not path.is_absolute()
    assert not {"..", "."} & {*path.parts}
    assert len(path.parts) == len(PurePosixPath(template).parts)
    assert all(len(part) < 200 and part.isascii() and part.isprintable() for part in path.parts)


def test_no_two_ids_share_a_name() -> None:
    draw = random.Random(1)
    ids = {"".join(draw.choices("ab./-_ ü", k=draw.randint(1, 6))) for _ in range(50_000)}
    ids |= {safe_id(task_id) for task_id in ids}
    assert len({safe_id(task_id) for task_id in ids}) == len(ids)


@pytest.mark.parametrize("template", ["{id}\n", "a\x00{id}", "a\x1b[31m/{id}", "{created_at:%Y\t%m}"])
def test_templates_with_control_characters_are_rejected(template: str) -> None:
    with pytest.raises(LumaValueError, match="not printable"):
        parse_name_template(template)


def test_two_tasks_with_one_name_are_rejected() -> None:
    with pytest.raises(LumaValueError, match=r"a and b the same name.*\{id\}"):
        object_names("clip", [task("a"), task("b")])


def test_names_that_differ_only_in_case_do_not_collide() -> None:
    names = object_names("{id}", [task("clip"), task("CLIP"), task("Clip")]).values()
    assert len({name.casefold() for name in names}) == 3
    prompts = {"a": "cat", "b": "Cat", "c": "CAT", "d": "Dog"}
    tasks = [task(task_id, request={"prompt": prompt}) for task_id, prompt in prompts.items()]
    spelt = object_names("{prompt}", tasks)
    assert len({name.casefold() for name in spelt.values()}) == 4
    assert (spelt["a"], spelt["d"]) == ("cat", "Dog")
    assert spelt == object_names("{prompt}", tasks[::-1])


def test_the_same_name_is_rejected_also_where_others_differ_in_case() -> None:
    prompts = {"a": "cat", "b": "Cat", "c": "Cat"}
    with pytest.raises(LumaValueError, match="the same name"):
        object_names("{prompt}", [task(key, request={"prompt": prompt}) for key, prompt in prompts.items()])


@pytest.mark.parametrize(
    ("kind", "url", "media_type", "expected"),
    [
        ("video", "https://cdn/x/video.mp4?sig=a.webm", "video/mp4", "n.mp4"),
        ("video", "https://cdn/x/video.MOV", "video/quicktime", "n.mov"),
        ("video", "https://cdn/x/video.mp4", "video/webm", "n.webm"),
        ("video", "https://cdn/x/video.exe", "video/mp4", "n.mp4"),
        ("video", "http://[broken", "video/mp4", "n.mp4"),
        ("thumbnail", "https://imagedelivery.net/x/public", "image/jpeg", "n.thumbnail.jpg"),
        ("last_frame", "https://cdn/x.png", "image/png", "n.last_frame.png"),
        ("last_frame", "https://cdn/x.png", "image/webp", "n.last_frame.webp"),
    ],
)
def test_files_are_named_by_their_content_type(kind: Any, url: str, media_type: str, expected: str) -> None:
    assert file_name("n", kind, url, media_type) == expected
    assert expected in candidate_names("n", kind, url)


def test_no_two_runs_share_a_manifest() -> None:
    runs = [
        ("r", "d", "t", -1),
        ("r", "d", "t", 0),
        ("r", "d", "u", -1),
        ("r", "e", "t", -1),
        ("s", "d", "t", -1),
    ]
    names = {manifest_name(*run) for run in runs}
    assert len(names) == len(runs)
    assert manifest_name("manual__2024-12-22T13:38:40+00:00", "d", "t", -1).startswith(
        "manifest-manual__2024-12-22T13-38-40-00-00-"
    )
