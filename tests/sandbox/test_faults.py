from __future__ import annotations

import time
from collections import Counter

import pytest
import requests

from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedResponse


def statuses(client, sandbox, count):
    return [client.query(sandbox, sandbox.task_ids).status_code for _ in range(count)]


def test_faults_are_off_by_default(client, finished):
    assert set(statuses(client, finished, 20)) == {200}


def test_a_share_of_queries_is_rate_limited_without_retry_after(client):
    with Sandbox(tasks=1, faults=Faults(rate_limited=0.5)) as sandbox:
        responses = [client.query(sandbox, sandbox.task_ids) for _ in range(40)]
        limited = [response for response in responses if response.status_code == 429]
        assert 10 < len(limited) < 30
        assert all(response.content == b"" and "Retry-After" not in response.headers for response in limited)


def test_the_same_seed_affects_the_same_requests(client):
    runs = []
    for seed in (1, 1, 2):
        with Sandbox(tasks=1, seed=seed, faults=Faults(rate_limited=0.3, server_errors=0.3)) as sandbox:
            runs.append(statuses(client, sandbox, 30))
    assert runs[0] == runs[1] != runs[2]


def test_a_rate_limit_can_have_a_retry_after(client):
    with Sandbox(tasks=1, faults=Faults(rate_limited=1, retry_after=2)) as sandbox:
        response = client.query(sandbox, sandbox.task_ids)
        assert (response.status_code, response.headers["Retry-After"]) == (429, "2")
        assert "request id" in response.json()["error"]["message"]


def test_server_errors_come_with_three_statuses(client):
    with Sandbox(tasks=1, faults=Faults(server_errors=1)) as sandbox:
        responses = {(a := client.query(sandbox, sandbox.task_ids)).status_code: a for _ in range(30)}
        assert sorted(responses) == [500, 502, 503]
        assert responses[500].json()["code"] == "do_request_failed"
        assert responses[502].headers["Content-Type"].startswith("text/html")
        assert "error" in responses[503].json()


def test_shares_of_two_faults_do_not_hide_each_other(client):
    with Sandbox(tasks=1, faults=Faults(rate_limited=0.5, server_errors=0.5)) as sandbox:
        counts = Counter(statuses(client, sandbox, 60))
        assert counts[200] == 0
        assert counts[429] > 15


def test_faults_affect_status_queries_only_and_after_authentication(client):
    with Sandbox(tasks=1, faults=Faults(server_errors=1)) as sandbox:
        headers = {"Authorization": "Bearer sk-sandbox"}
        submit = client.post(
            f"{sandbox.base_url}/luma/generations", json={"user_prompt": "fox"}, headers=headers
        )
        assert submit.status_code == 200
        assert client.query(sandbox, [], Authorization="Bearer wrong").status_code == 401


def test_the_limit_is_a_sliding_minute_with_the_right_retry_after(client, clock):
    with Sandbox(tasks=1, clock=clock, faults=Faults(limit_per_minute=2)) as sandbox:
        assert statuses(client, sandbox, 1) == [200]
        clock.move(20)
        assert statuses(client, sandbox, 1) == [200]
        clock.move(9.5)
        response = client.query(sandbox, sandbox.task_ids)
        assert (response.status_code, response.headers["Retry-After"]) == (429, "31")
        clock.move(31)
        assert statuses(client, sandbox, 2) == [200, 429]
        assert client.query(sandbox, []).headers["Retry-After"] == "20"


def test_latency_is_added_and_faults_can_change_while_it_runs(client, finished):
    client.query(finished, [])
    finished.faults = Faults(latency=0.2)
    started = time.monotonic()
    assert statuses(client, finished, 1) == [200]
    assert time.monotonic() - started >= 0.2


def test_scripted_responses_come_first_in_order_and_byte_for_byte(client, finished):
    finished.script(
        ScriptedResponse(503, "<html>busy</html>", {"Retry-After": "7"}, content_type="text/html"),
        ScriptedResponse(body=[{"id": "x"}]),
        ScriptedResponse(body=None),
        ScriptedResponse(524, b"\xff\x00", content_type=None),
    )
    responses = [client.query(finished, finished.task_ids, Authorization="") for _ in range(4)]
    assert [response.status_code for response in responses] == [503, 200, 200, 524]
    assert (responses[0].headers["Retry-After"], responses[0].text) == ("7", "<html>busy</html>")
    assert responses[0].headers["Content-Type"].startswith("text/html")
    assert (responses[1].json(), responses[2].json()) == ([{"id": "x"}], None)
    assert (responses[3].content, responses[3].headers.get("Content-Type")) == (b"\xff\x00", None)
    assert statuses(client, finished, 1) == [200]
    assert [request.status for request in finished.requests] == [503, 200, 200, 524, 200]


def test_a_script_does_not_affect_submits(client, finished):
    finished.script(ScriptedResponse(500))
    headers = {"Authorization": "Bearer sk-sandbox"}
    submit = client.post(
        f"{finished.base_url}/luma/generations", json={"user_prompt": "fox"}, headers=headers
    )
    assert submit.status_code == 200
    assert statuses(client, finished, 2) == [500, 200]


@pytest.mark.parametrize("body", [b"", b"x", b'{"code": "success"}', b"x" * 100_000])
@pytest.mark.parametrize("accepts", ["gzip", "identity"])
def test_a_truncated_response_never_looks_complete(client, finished, body, accepts, uvicorn_log):
    finished.script(ScriptedResponse(body=body, truncated=True))
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        client.query(finished, finished.task_ids, **{"Accept-Encoding": accepts})
    assert statuses(client, finished, 1) == [200]
    assert uvicorn_log == []


def test_a_delayed_response_delays_no_other(client, finished):
    finished.script(ScriptedResponse(delay=5))
    with pytest.raises(requests.ReadTimeout):
        client.post(f"{finished.base_url}/luma/tasks", json={"ids": []}, timeout=0.2)
    assert statuses(client, finished, 1) == [200]


def test_a_share_of_downloads_is_rejected(client, finished):
    link = client.link(finished, finished.task_ids[0])
    finished.faults = Faults(rejected_downloads=1)
    assert client.get(link).status_code == 403


@pytest.mark.parametrize("video_bytes", [None, 3_000_000])
def test_a_share_of_downloads_is_truncated(client, video_bytes, uvicorn_log):
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=video_bytes) as sandbox:
        link = client.link(sandbox, sandbox.task_ids[0])
        complete = client.get(link).content
        sandbox.faults = Faults(truncated_downloads=1)
        got = b""
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):  # noqa: PT012
            for chunk in client.get(link, stream=True).iter_content(1000):
                got += chunk
        assert len(complete) * 0.4 < len(got) <= len(complete) // 2
        assert complete.startswith(got)
        assert client.head(link).headers["Content-Length"] == str(len(complete))
    assert uvicorn_log == []


def test_downloads_can_be_scripted(client, finished):
    link = client.link(finished, finished.task_ids[0])
    finished.script_downloads(
        ScriptedResponse(200, b"", content_type="video/mp4"),
        ScriptedResponse(503),
        ScriptedResponse(body=b"xy", truncated=True),
    )
    first = client.get(link)
    assert (first.status_code, first.headers["Content-Type"], first.content) == (200, "video/mp4", b"")
    assert client.get(link).status_code == 503
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        client.get(link)
    assert client.get(link).status_code == 200
    assert [download.status for download in finished.downloads] == [200, 503, 200, 200]
