from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.relay.decode import decode_json
from airflow_provider_luma.relay.media import Media
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import parse_task, parse_tasks

SEED = Path(__file__).with_name("seed_answer.json").read_text()
SEED_ID = "4665a07c-7641-4809-a133-10786201bb56"
CDN = "https://storage.cdn-luma.com/dream-machine/b0d67582-c6f0-4973-a89c-3fea9d46d5e9"
SIGNED = "https://r2.example/a.mp4?X-Amz-Signature=1"

BARE = {"id": "a", "state": "completed"}
ROW = {"id": 13917, "task_id": "a", "status": "SUCCESS", "data": {"id": "a", "state": "completed"}}


@pytest.fixture
def seed():
    return parse_tasks(json.loads(SEED))[SEED_ID]


def test_every_field_of_the_documented_example_is_parsed(seed):
    assert (seed.id, seed.state, seed.raw_state) == (SEED_ID, TaskState.COMPLETED, "completed")
    assert (seed.prompt, seed.aspect_ratio, seed.duration) == ("cat dance", "16:9", 5.041667)
    assert seed.created_at.isoformat() == "2024-12-22T13:38:40.139000+00:00"
    assert seed.is_terminal
    assert seed.is_known_state
    assert seed.failure_reason is None


def test_the_documented_example_has_three_files(seed):
    video = "35049450-c008-4607-b1d0-0b025599f15d/video0b6619468da8e409da860706bbf26bbad.mp4"
    last_frame = "606108d9-9daf-4265-84fb-595f18240ac5/video_0_last_frame.jpg"
    thumbnail = "https://imagedelivery.net/1KomXrSWiTojGGip43n0SQ/e4268de5-4a74-45ff-67b8-dc46df12de00/public"
    assert seed.media("video") == Media(f"{CDN}/{video}", 1360, 752)
    assert seed.media("last_frame") == Media(f"{CDN}/{last_frame}", 1360, 752)
    assert seed.media("thumbnail") == Media(thumbnail, 1360, 752)


def test_the_documented_row_of_a_wrapped_response_is_parsed():
    task_id = "9d4b7516-77e5-481a-b015-48313946f33b"
    row = {
        "id": 13917,
        "created_at": "2024-07-01T07:35:13.568Z",
        "task_id": task_id,
        "platform": "luma_free",
        "status": "IN_PROGRESS",
        "fail_reason": "",
        "submit_time": 1719819313,
        "finish_time": 0,
        "data": {
            "id": task_id,
            "state": "processing",
            "video": None,
            "prompt": "cat dance",
            "created_at": "2024-07-01T07:35:13.498000Z",
        },
    }
    task = parse_tasks([row])[task_id]
    assert (task.state, task.prompt, task.video) == (TaskState.PROCESSING, "cat dance", None)
    assert task.created_at.isoformat() == "2024-07-01T07:35:13.498000+00:00"


def test_the_raw_response_is_kept():
    row = {**ROW, "quota": 250000, "data": {"id": "a", "news": {"x": [1]}}}
    assert parse_task(row).raw == row


@pytest.mark.parametrize(
    "extra", [{"data": {}}, {"data": None}, {"task_id": "a"}, {"task_id": "a", "data": None}]
)
def test_a_bare_task_with_some_keys_of_a_row_is_parsed_completely(extra):
    task = parse_task(BARE | {"prompt": "cat dance"} | extra)
    assert (task.id, task.state, task.prompt) == ("a", TaskState.COMPLETED, "cat dance")


def test_a_presigned_url_is_not_in_the_repr():
    assert "Signature" not in repr(parse_task(BARE | {"video": {"url": SIGNED}}))


@pytest.mark.parametrize(
    ("row", "task_id"),
    [
        ({"id": "a"}, "a"),
        ({"id": 13917, "task_id": "a"}, "a"),
        ({"id": "13917", "task_id": "a", "data": {"id": "b"}}, "a"),
        ({"id": 13917, "data": {"id": "a"}}, "a"),
        ({"id": 13917, "task_id": None, "data": {"task_id": "a"}}, "a"),
        ({"id": 13917, "task_id": 13917, "data": {"id": "a"}}, "a"),
        ({"id": "a", "data": {}}, "a"),
        ({"id": "a", "data": {"state": "completed"}}, "a"),
        ({"id": 13917}, None),
        ({"id": 13917, "data": {"id": 13918}}, None),
        ({"id": "", "task_id": ""}, None),
        ({"state": "completed"}, None),
        ({}, None),
    ],
)
def test_the_id_is_the_luma_id_and_never_the_number_of_a_row(row, task_id):
    task = parse_task(row)
    assert (task and task.id) == task_id


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("pending queued submitted not_start IN_QUEUE not-started", TaskState.PENDING),
        ("processing in_progress in-progress InProgress dreaming running unknown", TaskState.PROCESSING),
        ("completed complete success succeeded succeed done finished", TaskState.COMPLETED),
        ("failed failure error cancelled canceled rejected expired timeout timed_out", TaskState.FAILED),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "state": "WORD"},
        {"id": "a", "status": "WORD"},
        {"task_id": "a", "state": "WORD"},
        {"task_id": "a", "status": "WORD", "data": None},
        {"task_id": "a", "status": None, "data": {"state": "WORD"}},
        {"task_id": "a", "data": {"status": "WORD"}},
    ],
    ids=str,
)
def test_each_documented_state_is_parsed_in_any_case_and_place(words, state, row):
    for word in words.split():
        for spelled in (word, word.upper(), word.title()):
            assert parse_task(json.loads(json.dumps(row).replace("WORD", spelled))).state is state


@pytest.mark.parametrize(
    ("status", "inner", "state"),
    [
        ("IN_PROGRESS", "completed", TaskState.COMPLETED),
        ("IN_PROGRESS", "failed", TaskState.FAILED),
        ("SUCCESS", "processing", TaskState.PROCESSING),
        ("SUCCESS", "queued", TaskState.PENDING),
        ("SUCCESS", "half_baked", TaskState.COMPLETED),
        ("SUCCESS", "rendering", TaskState.PROCESSING),
        ("UNKNOWN", "processing", TaskState.PROCESSING),
        ("FAILURE", "processing", TaskState.FAILED),
        ("FAILURE", "completed", TaskState.FAILED),
        ("QUEUED", "processing", TaskState.PENDING),
        ("", "processing", TaskState.PROCESSING),
    ],
)
def test_where_row_and_task_disagree_a_failure_wins_then_the_video_then_the_task(status, inner, state):
    assert parse_task({"task_id": "a", "status": status, "data": {"state": inner}}).state is state


def test_an_undocumented_state_is_running_and_reported_as_unknown():
    task = parse_task({"id": "a", "state": "half_baked"})
    assert (task.state, task.raw_state) == (TaskState.PROCESSING, "half_baked")
    assert not task.is_known_state


@pytest.mark.parametrize("state", [None, "", 2, True, ["completed"], {"completed": 1}])
def test_a_state_that_is_no_string_is_pending(state):
    assert parse_task({"id": "a", "state": state}).state is TaskState.PENDING
    assert parse_task({"id": "a"}).state is TaskState.PENDING


@pytest.mark.parametrize(
    ("created_at", "read"),
    [
        ("2024-12-22T13:38:40.139Z", "2024-12-22T13:38:40.139000+00:00"),
        ("2024-12-22T13:38:40.139409Z", "2024-12-22T13:38:40.139409+00:00"),
        ("2024-12-22T13:38:40.139409123Z", "2024-12-22T13:38:40.139409+00:00"),
        ("2024-12-22T13:38:40Z", "2024-12-22T13:38:40+00:00"),
        ("2024-12-22T21:38:40+08:00", "2024-12-22T21:38:40+08:00"),
        ("2024-12-22T13:38:40", "2024-12-22T13:38:40+00:00"),
        (1734874720, "2024-12-22T13:38:40+00:00"),
        (1734874720.5, "2024-12-22T13:38:40.500000+00:00"),
        (1734874720139, "2024-12-22T13:38:40.139000+00:00"),
    ],
)
def test_times_are_read_as_text_seconds_and_milliseconds(created_at, read):
    assert parse_task(BARE | {"created_at": created_at}).created_at.isoformat() == read
    assert parse_task(ROW | {"created_at": created_at, "data": None}).created_at.isoformat() == read


@pytest.mark.parametrize(
    "created_at",
    [
        "0001-01-01T00:00:00Z",
        -62135596800,
        -62135596800000,
        0,
        "",
        None,
        True,
        "soon",
        "2024-13-45T99:99:99Z",
        "4024122/T133840",
        "12::1.5",
        "P1D",
        "2024-12-22T13:38:40-99:99",
        "2024-12-22T13:38:40+24:00",
        10**400,
        float("nan"),
        float("inf"),
        [1734874720],
    ],
)
def test_an_invalid_time_is_absent(created_at):
    assert parse_task(BARE | {"created_at": created_at}).created_at is None


def test_the_task_was_created_when_the_inner_object_says_or_else_the_row():
    inner = ROW | {"created_at": 1, "data": {"created_at": "2024-07-01T07:35:13Z"}}
    zero = ROW | {"created_at": 1719819313, "data": {"created_at": "0001-01-01T00:00:00Z"}}
    assert parse_task(inner).created_at.timestamp() == parse_task(zero).created_at.timestamp() == 1719819313


def test_prompt_and_ratio_are_read_at_the_top_level_too():
    task = parse_task(BARE | {"prompt": "cat dance", "aspect_ratio": "1:1", "request": {"prompt": ""}})
    assert (task.prompt, task.aspect_ratio) == ("cat dance", "1:1")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "a", "state": "failed", "failure_reason": "moderated"}, "moderated"),
        ({"id": "a", "state": "failed", "fail_reason": "moderated"}, "moderated"),
        ({**ROW, "status": "FAILURE", "data": None, "fail_reason": "moderated"}, "moderated"),
        (
            {**ROW, "status": "FAILURE", "data": {"failure_reason": "moderated"}, "fail_reason": "x"},
            "moderated",
        ),
        (
            {**ROW, "status": "FAILURE", "data": {"failure_reason": None}, "fail_reason": "moderated"},
            "moderated",
        ),
        ({**ROW, "status": "FAILURE", "failure_reason": "moderated", "fail_reason": ""}, "moderated"),
        ({"id": "a", "state": "failed"}, "the relay gave no reason"),
        ({"id": "a", "state": "failed", "failure_reason": ""}, "the relay gave no reason"),
        (
            {
                "id": "a",
                "state": "failed",
                "failure_reason": "no image at https://a.example/b.png?sig=5ec7e7",
            },
            "no image at https://a.example/b.png?…",
        ),
        ({"id": "a", "state": "failed", "failure_reason": {"code": 1}}, "{'code': 1}"),
        ({"id": "a", "state": "failed", "error": "nsfw"}, "nsfw"),
        ({**ROW, "status": "FAILURE", "data": {"error_message": "nsfw"}}, "nsfw"),
        ({"id": "a", "state": "failed", "error": "nsfw", "fail_reason": "moderated"}, "moderated"),
    ],
)
def test_a_failed_task_always_gives_a_reason(row, reason):
    assert parse_task(row).failure_reason == reason


@pytest.mark.parametrize("status", ["SUCCESS", "IN_PROGRESS", "half_baked", None])
def test_a_reason_alone_is_no_failure(status):
    task = parse_task({"task_id": "a", "status": status, "fail_reason": SIGNED, "data": None})
    assert task.state is not TaskState.FAILED
    assert task.failure_reason is None


def test_of_two_rows_for_one_task_the_finished_one_counts():
    done, running = {"id": "a", "state": "completed"}, {"id": "a", "state": "processing"}
    for rows in ([done, running], [running, done]):
        assert parse_tasks(rows)["a"].state is TaskState.COMPLETED


def test_of_two_finished_rows_the_one_with_a_video_counts():
    video = {"id": "a", "state": "completed", "video": {"url": SIGNED}}
    bare, failed = {"id": "a", "state": "completed"}, {"id": "a", "state": "failed"}
    running = {"id": "a", "state": "processing"}
    for rows in itertools.permutations([video, bare, failed, running]):
        assert parse_tasks(rows)["a"].video.url == SIGNED
    for rows in itertools.permutations([bare, failed, running]):
        assert parse_tasks(rows)["a"].state is TaskState.FAILED


def test_the_urls_of_a_row_are_looked_at_once_however_many_rows_follow_for_its_id():
    class Urls(list):
        looked_at = 0

        def __iter__(self):
            Urls.looked_at += 1
            return super().__iter__()

    rows = [{"id": "a", "state": "completed", "output": Urls(["x"])}]
    parse_tasks(rows)
    once, Urls.looked_at = Urls.looked_at, 0
    parse_tasks(rows + [{"id": "a", "state": "completed"}] * 100)
    assert Urls.looked_at == once


def test_rows_that_name_no_task_are_left_out():
    assert list(parse_tasks([None, 1, "a", [], {}, {"id": 5}, {"id": "a"}])) == ["a"]


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("half \ud83d", "half"),
        ("a\x00b\nc\u202ed", "a b c d"),
        ("x" * 1000, "x" * 299 + "…"),
        ({"deep": {"deeper": "y" * 10_000}}, None),
        ([[[[[[[[["x"]]]]]]]]], None),
        ("\x00", "the relay gave no reason"),
    ],
)
def test_a_reason_is_one_short_line_that_any_encoder_accepts(reason, kept):
    read = parse_task({"id": "a", "state": "failed", "failure_reason": reason}).failure_reason
    assert kept in (None, read)
    assert 0 < len(read) <= 300
    assert read.encode().isascii() or "…" in read
    assert read.isprintable()


def test_a_huge_reason_is_sanitized_in_time():
    """Counted in Python's own comparisons, of which sorting its keys would need millions."""

    class Key(str):
        compared = 0

        def __lt__(self, other):
            Key.compared += 1
            return super().__lt__(other)

    value = {"x": [["y"] * 1000] * 1000}
    large = {Key(f"{n * 7919 % 190_000}"): value for n in range(190_000)}
    read = parse_task({"id": "a", "state": "failed", "failure_reason": [large] * 9}).failure_reason
    assert Key.compared < 1000
    assert len(read) <= 300
    assert read.startswith("[{")


@pytest.mark.parametrize("task_id", ["x" * 201, "a\ud83d", "a\x00b", "a\nb", " a", "\u202ea"])
def test_an_invalid_id_identifies_no_task(task_id):
    assert parse_task({"id": task_id, "state": "completed"}) is None


@pytest.mark.parametrize("task_id", ["x" * 200, "luma_gen_abc123", "a b", "ключ"])
def test_plain_text_is_an_id(task_id):
    assert parse_task({"id": task_id, "state": "completed"}).id == task_id


def test_raw_states_prompts_and_urls_are_sanitized_too():
    row = {"id": "a", "state": "st\ud83d" * 100, "prompt": "a\x00b", "video": {"url": "https://x/\ud83d"}}
    task = parse_task(row)
    assert task.raw_state.isprintable()
    assert len(task.raw_state) <= 60
    assert (task.prompt, task.video.url) == ("a b", None)


LINKS = [
    {"video": {"url": SIGNED}},
    {"video_raw": {"url": SIGNED}},
    {"artifact": {"video": {"download_url": SIGNED}}},
    {"assets": {"video": SIGNED}},
    {"video_url": SIGNED},
    {"result_url": SIGNED},
    {"data": {"url": SIGNED}},
    {"data": {"id": "a", "video_url": SIGNED}},
    {"result": {"video_url": SIGNED}},
    {"result_urls": [SIGNED]},
    {"output": [{"type": "video", "url": SIGNED}]},
    {"output": [{"type": "image", "url": "https://x/a.jpg"}, {"url": SIGNED}]},
]


@pytest.mark.parametrize("place", LINKS, ids=str)
@pytest.mark.parametrize("word", ["completed", "ready", "succeed"])
def test_a_url_is_found_in_every_known_place_and_makes_an_unknown_state_completed(place, word):
    task = parse_task({"task_id": "a", "status": word} | place)
    assert task.state is TaskState.COMPLETED
    assert task.video.url == SIGNED


@pytest.mark.parametrize(
    "row",
    [
        {"status": "success", "data": {"id": "a", "state": "processing", "video": None}},
        {"task_id": "a", "status": "SUCCESS", "data": {"id": "a", "state": "queued"}},
        {"id": "a", "status": "success", "state": "processing"},
        {
            "task_id": "a",
            "status": "UNKNOWN",
            "data": {"id": "a", "state": "processing", "video_url": SIGNED},
        },
        {"id": "a", "status": "odd", "state": "queued", "video_url": SIGNED},
    ],
    ids=str,
)
def test_a_running_task_with_a_url_is_not_completed(row):
    task = parse_task(row)
    assert not task.is_terminal
    assert task.is_known_state


def test_a_success_with_its_url_is_completed_whatever_the_inner_object_says():
    row = {"task_id": "a", "status": "SUCCESS", "data": {"state": "processing"}, "video_url": SIGNED}
    assert parse_task(row).state is TaskState.COMPLETED


@pytest.mark.parametrize(
    "row",
    [
        {"state": "moderation_failed"},
        {"state": "Blocked"},
        {"state": "REFUNDED"},
        {"state": "cancelling"},
        {"state": "starting"},
        {"state": "upscaling"},
        {"state": "odd", "error": "nsfw"},
        {"state": "odd", "error_message": "nsfw"},
        {"state": "odd", "failure_code": "moderation"},
        {"data": {"state": "odd", "error": {"code": "nsfw"}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("link", [{"video": {"url": SIGNED}}, {"video_url": SIGNED}], ids=["video", "echo"])
def test_a_url_does_not_complete_a_task_with_an_error_or_a_known_state(row, link):
    assert parse_task({"task_id": "a"} | row | link).state is TaskState.PROCESSING


@pytest.mark.parametrize("word", ["ready", "uploaded", "published", "ok", "archived"])
def test_an_unknown_state_with_a_url_is_completed_despite_a_message_or_an_empty_error(word):
    row = {"id": "a", "state": word, "video": {"url": SIGNED}, "error": None, "message": "here you are"}
    assert parse_task(row).state is TaskState.COMPLETED


@pytest.mark.parametrize("word", [{}, {"state": None}, {"status": 2}, {"state": ""}])
def test_a_url_without_a_state_in_words_is_completed(word):
    row = {"id": "a", "video": {"url": SIGNED}} | word
    assert parse_task(row).state is TaskState.COMPLETED
    assert parse_task(row | {"error": "nsfw"}).state is TaskState.PENDING


@pytest.mark.parametrize("word", ["processing", "pending", "failed"])
def test_a_url_does_not_change_a_known_state(word):
    assert parse_task({"id": "a", "state": word, "video_url": SIGNED}).state is TaskState(word)


def test_a_success_needs_no_url():
    assert parse_task({"id": "a", "state": "completed"}).state is TaskState.COMPLETED


def test_a_url_in_the_reason_of_an_older_row_is_the_video():
    row = {"task_id": "a", "status": "SUCCESS", "fail_reason": SIGNED}
    assert parse_task(row).video.url == SIGNED
    assert parse_task(row | {"fail_reason": "none"}).video is None
    assert parse_task(row | {"status": "FAILURE"}).video is None


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "status": "success", "state": "failed", "failure_reason": "moderation"},
        {"task_id": "a", "status": "SUCCESS", "data": {"id": "a", "state": "failed"}},
        {"id": "a", "state": "failed ", "video": {"url": "https://cdn.example/a.mp4"}},
        {"id": "a", "state": "fail", "failure_reason": "x", "video": {"url": "https://cdn.example/a.mp4"}},
        {"id": "a", "state": "Failed\n"},
    ],
)
def test_a_failed_task_is_failed_whatever_its_other_fields(row: dict[str, Any]) -> None:
    task = parse_task(row)
    assert task is not None
    assert task.state is TaskState.FAILED


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "state": "rendering", "video_url": "N/A"},
        {"id": "a", "state": "rendering", "video_url": "null"},
        {"id": "a", "state": "rendering", "output": ["pending"]},
        {"id": "a", "state": "rendering", "output": ["https://cdn.example/thumb.jpg?x=1"]},
        {"id": "a", "state": "blurred", "failure_reason": "x", "url": "https://relay.example/generations/a"},
    ],
)
def test_an_undocumented_state_without_a_video_is_running(row: dict[str, Any]) -> None:
    task = parse_task(row)
    assert task is not None
    assert task.state is TaskState.PROCESSING


def test_a_number_of_thousands_of_digits_does_not_harm_its_row() -> None:
    body = b'[{"id": "a", "state": "completed", "quota": ' + b"9" * 5000 + b"}]"
    assert decode_json(body) == [{"id": "a", "state": "completed", "quota": None}]


@pytest.mark.parametrize(
    "number", [1e300, 2**31, 2**70, -(2**70), 10**400, float("nan"), float("inf"), True, "9"]
)
def test_a_number_too_large_for_a_column_is_absent(number):
    part = {"url": "https://r2.example/a.mp4", "width": number, "height": number, "duration": number}
    task = parse_task(BARE | {"video": part})
    assert (task.video.width, task.video.height, task.duration) == (None, None, None)


def test_the_largest_numbers_are_kept():
    task = parse_task(BARE | {"video": {"width": 2**31 - 1, "height": 752.0, "duration": 31_536_000}})
    assert (task.video.width, task.video.height, task.duration) == (2**31 - 1, 752, 31_536_000)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("in progress", TaskState.PROCESSING),
        ("Timed Out", TaskState.FAILED),
        ("not started", TaskState.PENDING),
    ],
)
def test_a_known_word_is_known_with_any_separator_and_a_link_does_not_complete_it(word, state):
    task = parse_task({"id": "a", "state": word, "video_url": "https://cdn.example/submitted.mp4"})
    assert task.state is state
    assert task.is_known_state


@pytest.mark.parametrize("error", [{}, {"code": 0, "message": ""}, {"message": None}])
def test_an_error_object_without_content_speaks_against_no_video(error):
    row = {"id": "a", "state": "ok_ready", "error": error, "video": {"url": "https://cdn.example/a.mp4"}}
    assert parse_task(row).state is TaskState.COMPLETED
    assert parse_task(row | {"state": "failed"}).failure_reason == "the relay gave no reason"
