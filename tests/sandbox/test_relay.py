from __future__ import annotations

import re

import pytest

from airflow_provider_luma.sandbox import Sandbox

BARE_KEYS = [
    "artifact",
    "created_at",
    "id",
    "last_frame",
    "request",
    "state",
    "thumbnail",
    "video",
    "video_raw",
]
MEDIA_KEYS = {
    "last_frame": ["height", "media_type", "palette", "url", "width"],
    "thumbnail": ["height", "media_type", "palette", "url", "width"],
    "video": ["download_url", "height", "url", "width"],
    "video_raw": ["duration", "height", "media_type", "url", "width"],
}
STRANGER = "00000000-0000-4000-8000-000000000000"


def rows(client, sandbox):
    return {row["task_id"]: row for row in client.query(sandbox, sandbox.task_ids).json()["data"]}


def test_a_completed_bare_task_has_the_documented_keys(client, finished):
    task_id = finished.task_ids[0]
    task = client.tasks(finished)[task_id]
    assert list(task) == BARE_KEYS
    assert {name: list(task[name]) for name in MEDIA_KEYS} == MEDIA_KEYS
    assert task["artifact"] == {
        "created_at": "0001-01-01T00:00:00Z",
        **{name: task[name] for name in MEDIA_KEYS},
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task["created_at"])
    assert task["request"]["aspect_ratio"] == "16:9"
    assert task["video"]["download_url"].startswith(
        f"{finished.cdn_url}/dream-machine/{task_id}/video.mp4?X-Amz-"
    )
    assert task["last_frame"]["palette"] is None
    assert task["thumbnail"]["palette"]["grid"]


def test_an_unfinished_bare_task_has_the_same_keys_with_nulls(client):
    with Sandbox(tasks=1, seconds=100) as sandbox:
        (task,) = client.tasks(sandbox).values()
        assert list(task) == BARE_KEYS
        assert [name for name in BARE_KEYS if task[name] is None] == ["artifact", *MEDIA_KEYS]


def test_responses_are_out_of_order_and_hold_each_known_task_once(client, finished):
    one, two, three = finished.task_ids
    response = client.query(finished, [one, two, STRANGER, three, two]).json()
    assert [task["id"] for task in response] == [three, two, one]


def test_no_match_is_an_empty_array_or_null_data(client, finished):
    assert client.query(finished, [STRANGER]).json() == []
    with Sandbox(tasks=1, shape="wrapped") as wrapped:
        assert client.query(wrapped, [STRANGER]).json() == {"code": "success", "message": "", "data": None}
        assert client.query(wrapped, []).json()["data"] == []


def test_wrapped_rows_move_through_the_documented_states(client, clock):
    with Sandbox(tasks=0, shape="wrapped", clock=clock) as sandbox:
        done, failed = (
            sandbox.add_task(seconds=100),
            sandbox.add_task(seconds=100, failure_reason="Job failed"),
        )
        words = []
        for step in (0, 20, 20, 60):
            clock.move(step)
            words.append(tuple(rows(client, sandbox)[task_id]["status"] for task_id in (done, failed)))
        assert words == [
            ("NOT_START", "NOT_START"),
            ("QUEUED", "QUEUED"),
            ("IN_PROGRESS", "IN_PROGRESS"),
            ("SUCCESS", "FAILURE"),
        ]


def test_wrapped_rows_carry_an_integer_id_unix_times_and_the_inner_task(client, clock):
    with Sandbox(tasks=0, shape="wrapped", clock=clock) as sandbox:
        task_id = sandbox.add_task(seconds=100)
        failed = sandbox.add_task(seconds=100, failure_reason="Job failed")
        fresh = rows(client, sandbox)[task_id]
        assert (fresh["data"], fresh["start_time"], fresh["finish_time"]) == (None, 0, 0)
        clock.move(100)
        row = rows(client, sandbox)[task_id]
        assert isinstance(row["id"], int)
        assert (row["data"]["id"], row["data"]["state"]) == (task_id, "completed")
        assert row["data"]["video"]["download_url"]
        assert [row["start_time"] - row["submit_time"], row["finish_time"] - row["submit_time"]] == [25, 100]
        failure = rows(client, sandbox)[failed]
        assert failure["fail_reason"] == failure["data"]["failure_reason"] == "Job failed"


def test_some_successes_have_the_url_where_failures_have_their_reason(client):
    with Sandbox(tasks=4, seconds=0, fail=0, shape="wrapped") as sandbox:
        found = rows(client, sandbox).values()
        assert {row["status"] for row in found} == {"SUCCESS"}
        assert sorted(row["fail_reason"].split("/dream-machine/")[0] for row in found) == [
            "", "", sandbox.cdn_url, sandbox.cdn_url,
        ]  # fmt: skip


def test_the_key_is_checked_and_can_be_rotated(client, finished):
    for headers in (
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "sk-sandbox"},
    ):
        response = client.query(finished, finished.task_ids, **headers)
        assert response.status_code == 401
        error = response.json()["error"]
        assert re.search(r"\(request id: \d{20,}\)$", error["message"])
        assert (error["type"], error["code"]) == ("new_api_error", "")
    old = finished.api_key
    finished.api_key = "sk-new"
    assert client.query(finished, []).status_code == 200
    assert client.query(finished, [], Authorization=f"Bearer {old}").status_code == 401
    assert finished.connection["password"] == "sk-new"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"ids": "a"}', b'{"ids": [1]}', b'{"ids": null}', b"{"]
)
def test_a_malformed_query_is_invalid(client, finished, body):
    headers = {"Authorization": "Bearer sk-sandbox"}
    response = client.post(f"{finished.base_url}/luma/tasks", data=body, headers=headers)
    assert response.status_code == 400
    assert (response.json()["code"], response.json()["data"]) == ("invalid_request", None)


def test_too_many_ids_are_invalid_where_there_is_a_limit(client):
    with Sandbox(tasks=3, max_ids=2) as sandbox:
        assert client.query(sandbox, sandbox.task_ids[:2]).status_code == 200
        assert client.query(sandbox, sandbox.task_ids).json()["code"] == "invalid_request"


def test_a_submit_creates_a_task(client, clock):
    body = {
        "user_prompt": "a fox",
        "aspect_ratio": "9:16",
        "loop": True,
        "model_name": "ray-v2",
        "image_url": None,
    }
    headers = {"Authorization": "Bearer sk-sandbox"}
    with Sandbox(tasks=0, seconds=100, clock=clock) as sandbox:
        response = client.post(f"{sandbox.base_url}/luma/generations", json=body, headers=headers).json()
        assert list(response) == [
            "id", "prompt", "state", "queue_state", "created_at", "batch_id", "video", "video_raw", "liked",
            "estimate_wait_seconds", "thumbnail", "last_frame",
        ]  # fmt: skip
        assert re.search(r"\.\d{6}Z$", response["created_at"])
        clock.move(100)
        task = client.tasks(sandbox)[response["id"]]
        assert (task["state"], task["request"]) == ("completed", {"aspect_ratio": "9:16", "prompt": "a fox"})
        assert sandbox.submits == [body]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "user_prompt is required"),
        ({"user_prompt": ""}, "user_prompt is required"),
        (["user_prompt"], "user_prompt is required"),
        ({"user_prompt": "a fox", "loop": "true"}, "loop must be a bool"),
    ],
)
def test_a_malformed_submit_is_invalid(client, finished, body, message):
    headers = {"Authorization": "Bearer sk-sandbox"}
    response = client.post(f"{finished.base_url}/luma/generations", json=body, headers=headers)
    assert (response.status_code, response.json()["message"]) == (400, message)
    assert finished.submits == []


def test_a_submit_needs_the_key(client, finished):
    response = client.post(f"{finished.base_url}/luma/generations", json={"user_prompt": "a fox"})
    assert (response.status_code, finished.submits) == (401, [])


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/luma/tasks"), ("POST", "/v1/luma/tasks")]
)
def test_any_other_path_is_the_dashboard(client, finished, method, path):
    response = client.request(method, finished.base_url + path)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert "<html>" in response.text


@pytest.mark.parametrize(("accepts", "encoding"), [("gzip", "gzip"), ("identity", None)])
def test_responses_are_compressed_for_clients_that_accept_it(client, finished, accepts, encoding):
    response = client.query(finished, finished.task_ids, **{"Accept-Encoding": accepts})
    assert response.headers.get("Content-Encoding") == encoding
    assert len(response.json()) == 3


def test_requests_are_recorded(client, clock):
    with Sandbox(tasks=2, clock=clock) as sandbox:
        client.query(sandbox, sandbox.task_ids)
        clock.move(5)
        client.query(sandbox, "none", Authorization="Bearer wrong")
        client.get(sandbox.base_url + "/pricing")
        query, rejected, page = sandbox.requests
        assert (query.at, query.method, query.path) == (1000.0, "POST", "/luma/tasks")
        assert (query.ids, query.status) == (sandbox.task_ids, 200)
        assert query.headers["authorization"] == "Bearer sk-sandbox"
        assert (rejected.at, rejected.ids, rejected.status) == (1005.0, None, 401)
        assert (page.method, page.path, page.ids, page.status) == ("GET", "/pricing", None, 200)
        sandbox.requests.clear()
        assert sandbox.requests == []
