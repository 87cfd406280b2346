from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.generation import Generation


def test_only_what_was_given_is_sent() -> None:
    assert Generation("cat dance").body == {"user_prompt": "cat dance"}
    full = Generation(
        "cat dance",
        aspect_ratio="9:16",
        loop=False,
        image_url="https://images.example/cat.jpg",
        model_name="ray-v2",
        resolution="720p",
        duration="5s",
        extra_body={"style": "anime"},
    )
    assert full.path == "/luma/generations"
    assert full.body == {
        "user_prompt": "cat dance",
        "aspect_ratio": "9:16",
        "loop": False,
        "image_url": "https://images.example/cat.jpg",
        "model_name": "ray-v2",
        "resolution": "720p",
        "duration": "5s",
        "style": "anime",
    }


def test_a_video_is_made_longer_by_its_own_path() -> None:
    assert Generation("and again", extend_task_id="a/../b").path == "/luma/generations/a%2F..%2Fb/extend"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt": ""}, "prompt must be a text of 3 to 5000 characters, not 0 characters"),
        ({"prompt": "  a "}, "not 1 characters"),
        ({"prompt": "x" * 5001}, "not 5001 characters"),
        ({"prompt": None}, "prompt must be a text"),
        (
            {"aspect_ratio": "2:1"},
            "aspect_ratio must be one of 1:1, 4:3, 3:4, 16:9, 9:16, 21:9, 9:21, not '2:1'",
        ),
        ({"resolution": "8k"}, "resolution must be one of 540p, 720p, 1080p, 4k"),
        ({"loop": "yes"}, "loop must be True or False"),
        ({"expand_prompt": 1}, "expand_prompt must be True or False"),
        ({"duration": "long"}, "duration must be seconds"),
        ({"model_name": " "}, "model_name must be a text that is not empty"),
        ({"image_url": "s3://bucket/cat.jpg"}, "image_url must be an address with http or https or data"),
        ({"notify_hook": "hook"}, "notify_hook must be an address with http or https"),
        ({"extend_task_id": "a", "aspect_ratio": "1:1"}, "aspect_ratio cannot be given with extend_task_id"),
        ({"extra_body": ["a"]}, "extra_body must be a dict"),
        ({"extra_body": {"user_prompt": "dog"}}, "extra_body gives 'user_prompt' a second time"),
        ({"loop": True, "extra_body": {"loop": False}}, "extra_body gives 'loop' a second time"),
    ],
)
def test_what_cannot_be_right_is_named_with_what_it_may_be(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(LumaValueError) as error:
        Generation(**{"prompt": "cat dance"} | wrong)
    assert told in str(error.value)


def test_no_signed_link_stands_in_an_error() -> None:
    with pytest.raises(LumaValueError) as error:
        Generation("cat dance", image_url="s3://bucket/cat.jpg?X-Amz-Signature=hush")
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("image", ["https://a.example/b.jpg", "data:image/png;base64,AAAA", "iVBORw0KGgo"])
def test_an_image_is_a_link_or_base64(image: str) -> None:
    assert Generation("cat dance", image_url=image).body["image_url"] == image
