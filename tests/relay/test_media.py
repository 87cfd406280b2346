from __future__ import annotations

import pytest

from airflow_provider_luma.relay.media import MEDIA_KINDS, Media
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import parse_task

BARE = {"id": "a", "state": "completed"}
ROW = {"id": 13917, "task_id": "a", "status": "SUCCESS"}


def video_url(**luma):
    """Read the video's link in both shapes, which must agree."""
    bare, row = parse_task(BARE | luma), parse_task(ROW | {"data": {"id": "a"} | luma})
    assert bare.video == row.video
    return bare.video and bare.video.url


@pytest.mark.parametrize(
    ("luma", "url"),
    [
        ({"video": {"download_url": "d", "url": "v"}, "video_raw": {"url": "r"}}, "d"),
        ({"video": {"download_url": "", "url": "watermarked"}, "video_raw": {"url": "r"}}, "r"),
        ({"video": {"download_url": None, "url": "v"}, "video_raw": None}, "v"),
        ({"video": {"url": "v"}, "video_raw": {"url": ""}, "assets": {"video": "s"}}, "v"),
        ({"video": None, "assets": {"video": "s"}}, "s"),
        ({"video": {"url": 5}, "assets": {"video": ["s"]}}, None),
        ({"video": None, "artifact": {"video": {"download_url": "ad"}}}, "ad"),
        ({"video": {"url": ""}, "artifact": {"video_raw": {"url": "ar"}}}, "ar"),
        ({"video": {"url": "v"}, "artifact": {"video": {"url": "av"}}}, "v"),
        ({"video": {}, "video_raw": [], "assets": None, "artifact": "none"}, None),
        ({}, None),
    ],
)
def test_the_best_url_wins(luma, url):
    assert video_url(**luma) == url


def test_a_completed_task_without_a_url_is_completed():
    task = parse_task(BARE | {"video": {"url": "", "width": 1360, "height": 752}})
    assert (task.state, task.video) == (TaskState.COMPLETED, Media(None, 1360, 752))
    assert parse_task(BARE | dict.fromkeys(MEDIA_KINDS)).video is None


def test_images_fall_back_to_their_copies():
    copies = {"artifact": {"thumbnail": {"url": "t", "width": 8}, "last_frame": {"url": "l"}}}
    task = parse_task(BARE | copies | {"thumbnail": {"url": "", "height": 9}})
    assert (task.thumbnail, task.last_frame) == (Media("t", 8, 9), Media("l"))


@pytest.mark.parametrize(
    ("luma", "duration"),
    [
        ({"video_raw": {"duration": 5.041667}}, 5.041667),
        ({"video_raw": {"duration": None}, "video": {"duration": 9}}, 9),
        ({"artifact": {"video_raw": {"duration": 5}}}, 5),
        ({"video_raw": {"duration": "5s"}}, None),
        ({"video_raw": {"duration": True}}, None),
        ({"video_raw": {"duration": float("inf")}}, None),
        ({}, None),
    ],
)
def test_the_duration_is_a_number_or_absent(luma, duration):
    assert parse_task(BARE | luma).duration == duration
