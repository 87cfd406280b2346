from __future__ import annotations

import json
import logging
import math
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.generation import ASPECT_RATIOS, RESOLUTIONS, Generation

EVERYTHING: dict[str, Any] = {
    "aspect_ratio": "9:16",
    "loop": False,
    "image_url": "https://images.example/cat.jpg",
    "model_name": "ray-v2",
    "resolution": "720p",
    "duration": "5s",
}
LOOPED: list[Any] = []
LOOPED.append(LOOPED)


def test_only_what_was_given_is_sent() -> None:
    assert Generation("cat dance").body == {"user_prompt": "cat dance"}
    full = Generation("cat dance", **EVERYTHING, extra_body={"style": "anime"})
    assert full.path == "/luma/generations"
    assert full.body == {"user_prompt": "cat dance", **EVERYTHING, "style": "anime"}
    assert json.loads(full.to_json()) == full.body


def test_a_video_is_extended_by_its_own_path() -> None:
    assert Generation("and again", extend_task_id="a/../b").path == "/luma/generations/a%2F..%2Fb/extend"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": ""}, "prompt must be a non-empty string, not ''"),
        ({"prompt": " \n"}, "prompt must be a non-empty string"),
        ({"prompt": None}, "prompt must be a non-empty string, not None"),
        ({"prompt": 5}, "prompt must be a non-empty string, not 5"),
        ({"aspect_ratio": 1.5}, "aspect_ratio must be a non-empty string, not 1.5"),
        ({"resolution": ""}, "resolution must be a non-empty string"),
        ({"loop": "yes"}, "loop must be True or False, not 'yes'"),
        ({"expand_prompt": 1}, "expand_prompt must be True or False"),
        ({"duration": True}, "duration must be a string such as '5s' or a number, not True"),
        ({"duration": ["5s"]}, "duration must be a string such as '5s' or a number"),
        ({"model_name": " "}, "model_name must be a non-empty string"),
        ({"image_url": "s3://bucket/cat.jpg"}, "image_url must be a URL with http or https or data"),
        ({"image_end_url": "file:///cat.jpg"}, "image_end_url must be a URL with http or https or data"),
        ({"notify_hook": "hook"}, "notify_hook must be a URL with http or https"),
        ({"notify_hook": "data:,x"}, "notify_hook must be a URL with http or https"),
        ({"extend_task_id": ""}, "extend_task_id must be a non-empty string"),
        ({"extra_body": ["a"]}, "extra_body must be a dict"),
        (
            {"image_url": b"s3://bucket/cat.jpg"},
            "image_url must be a non-empty string, not a value of the type",
        ),
        ({"extra_body": {1: "a"}}, "extra_body must be a dict"),
        ({"extra_body": {"user_prompt": "dog"}}, "extra_body gives 'user_prompt' a second time"),
        ({"loop": True, "extra_body": {"loop": False}}, "extra_body gives 'loop' a second time"),
    ],
)
def test_a_field_that_cannot_be_sent_is_named_with_what_it_may_be(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(LumaValueError) as error:
        Generation(**{"prompt": "cat dance"} | wrong)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 12, 22, tzinfo=UTC),
        math.nan,
        math.inf,
        {1, 2},
        b"x",
        object(),
        LOOPED,
        {"a": [-math.inf]},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_an_extra_body_that_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(LumaValueError, match="The fields cannot be sent as JSON: "):
        Generation("cat dance", extra_body={"style": value})


UNDOCUMENTED = [
    ({"prompt": "a "}, ["prompt has 1 characters, not 3 to 6000"]),
    ({"prompt": "x" * 6001}, ["prompt has 6001 characters, not 3 to 6000"]),
    ({"aspect_ratio": "5:4"}, [f"aspect_ratio '5:4' is none of {', '.join(ASPECT_RATIOS)}"]),
    ({"resolution": "8k"}, ["resolution '8k' is none of 360p, 540p, 720p, 1080p, 4k"]),
    ({"duration": "long"}, ["duration 'long' is not in seconds, such as '5s'"]),
    ({"duration": 0}, ["duration '0' is not in seconds, such as '5s'"]),
    (
        {"extend_task_id": "a", "aspect_ratio": "1:1", "duration": "9s"},
        [
            f"{name} is not among the documented fields of an extend request"
            for name in ("aspect_ratio", "duration")
        ],
    ),
]


@pytest.mark.parametrize(("fields", "warnings"), UNDOCUMENTED)
def test_an_undocumented_value_is_sent_with_a_warning(
    caplog: pytest.LogCaptureFixture, fields: dict[str, Any], warnings: list[str]
) -> None:
    generation = Generation(**{"prompt": "cat dance"} | fields)
    assert caplog.records == []
    generation.warn_undocumented()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f"{warning}; it is sent nevertheless, as relays differ") for warning in warnings
    ]
    sent = json.loads(generation.to_json())
    assert sent["user_prompt"] == generation.prompt
    assert all(sent[name] == fields[name] for name in fields.keys() & sent.keys())


@pytest.mark.parametrize(
    "fields",
    [
        *({"aspect_ratio": ratio} for ratio in ASPECT_RATIOS),
        *({"resolution": resolution} for resolution in RESOLUTIONS),
        *({"duration": duration} for duration in ("5s", "10s", "9", 5)),
        *({"prompt": prompt} for prompt in ("cat", "x" * 6000)),
        {"extend_task_id": "a", "loop": True, "image_end_url": "https://images.example/cat.jpg"},
        EVERYTHING,
    ],
    ids=lambda fields: repr(fields)[:30],
)
def test_documented_values_are_sent_without_a_warning(
    caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    Generation(**{"prompt": "cat dance"} | fields).warn_undocumented()
    assert caplog.records == []


def test_a_warning_is_one_line_whatever_the_value(caplog: pytest.LogCaptureFixture) -> None:
    Generation("cat dance", resolution="\ud83d\n\x00" + "8" * 9999).warn_undocumented()
    (warning,) = caplog.messages
    warning.encode()
    assert warning.isprintable()
    assert len(warning) < 300


def test_no_presigned_url_stands_in_an_error() -> None:
    with pytest.raises(LumaValueError) as error:
        Generation("cat dance", image_url="s3://bucket/cat.jpg?X-Amz-Signature=hush")
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("image", ["https://a.example/b.jpg", "data:image/png;base64,AAAA", "iVBORw0KGgo"])
def test_an_image_is_a_url_or_base64(image: str) -> None:
    assert Generation("cat dance", image_url=image).body["image_url"] == image


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_url": "s3://AKIA7:5ecret/K7M@bucket/a.png"}, r"image_url must .* not one with 's3'"),
        ({"image_url": "s3://bucket/a.png?token=5ecret"}, r"image_url must .* not one with 's3'"),
        ({"notify_hook": "bot:5ecret@hooks.example/done"}, r"notify_hook must .* not one without a scheme"),
        ({"notify_hook": "hooks.example/done#token=5ecret"}, r"notify_hook must .* not one without a scheme"),
        ({"image_end_url": {"url": "https://x/5ecret"}}, "image_end_url must be a non-empty string"),
        ({"extra_body": '{"api_key": "5ecret"}'}, "extra_body must be a dict of fields"),
    ],
)
def test_no_secret_of_a_field_is_in_its_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LumaValueError, match=message) as error:
        Generation("cat dance", **fields)
    assert not re.search("5ecret|AKIA7|bot|bucket|hooks", str(error.value))
