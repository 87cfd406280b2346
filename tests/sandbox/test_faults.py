from __future__ import annotations

import time
from collections import Counter

import pytest
import requests

from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedAnswer


def statuses(client, sandbox, count):
    return [client.ask(sandbox, sandbox.task_ids).status_code for _ in range(count)]


def test_faults_are_off_by_default(client, finished):
    assert set(statuses(client, finished, 20)) == {200}


def test_a_share_of_queries_is_rate_limited_with_nothing_said(client):
    with Sandbox(tasks=1, faults=Faults(rate_limited=0.5)) as sandbox:
        answers = [client.ask(sandbox, sandbox.task_ids) for _ in range(40)]
        limited = [answer for answer in answers if answer.status_code == 429]
        assert 10 < len(limited) < 30
        assert all(answer.content == b"" and "Retry-After" not in answer.headers for answer in limited)


def test_the_same_seed_strikes_the_same_requests(client):
    runs = []
    for seed in (1, 1, 2):
        with Sandbox(tasks=1, seed=seed, faults=Faults(rate_limited=0.3, server_errors=0.3)) as sandbox:
            runs.append(statuses(client, sandbox, 30))
    assert runs[0] == runs[1] != runs[2]


def test_a_rate_limit_can_say_when_to_come_back(client):
    with Sandbox(tasks=1, faults=Faults(rate_limited=1, retry_after=2)) as sandbox:
        answer = client.ask(sandbox, sandbox.task_ids)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
        assert "request id" in answer.json()["error"]["message"]


def test_server_errors_come_in_their_kinds(client):
    with Sandbox(tasks=1, faults=Faults(server_errors=1)) as sandbox:
        answers = {(a := client.ask(sandbox, sandbox.task_ids)).status_code: a for _ in range(30)}
        assert sorted(answers) == [500, 502, 503]
        assert answers[500].json()["code"] == "do_request_failed"
        assert answers[502].headers["Content-Type"].startswith("text/html")
        assert "error" in answers[503].json()


def test_shares_of_two_faults_do_not_hide_each_other(client):
    with Sandbox(tasks=1, faults=Faults(rate_limited=0.5, server_errors=0.5)) as sandbox:
        counts = Counter(statuses(client, sandbox, 60))
        assert counts[200] == 0
        assert counts[429] > 15


def test_faults_strike_status_queries_alone_and_not_before_the_key(client):
    with Sandbox(tasks=1, faults=Faults(server_errors=1)) as sandbox:
        headers = {"Authorization": "Bearer sk-sandbox"}
        submit = client.post(
            f"{sandbox.base_url}/luma/generations", json={"user_prompt": "fox"}, headers=headers
        )
        assert submit.status_code == 200
        assert client.ask(sandbox, [], Authorization="Bearer wrong").status_code == 401


def test_the_limit_is_a_sliding_minute_and_tells_when_it_has_room(client, clock):
    with Sandbox(tasks=1, clock=clock, faults=Faults(limit_per_minute=2)) as sandbox:
        assert statuses(client, sandbox, 1) == [200]
        clock.move(20)
        assert statuses(client, sandbox, 1) == [200]
        clock.move(9.5)
        answer = client.ask(sandbox, sandbox.task_ids)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "31")
        clock.move(31)
        assert statuses(client, sandbox, 2) == [200, 429]
        assert client.ask(sandbox, []).headers["Retry-After"] == "20"


def test_slow_answers_take_their_time_and_faults_can_change_while_it_runs(client, finished):
    client.ask(finished, [])
    finished.faults = Faults(slow=0.2)
    started = time.monotonic()
    assert statuses(client, finished, 1) == [200]
    assert time.monotonic() - started >= 0.2


def test_scripted_answers_come_first_in_order_and_word_for_word(client, finished):
    finished.script(
        ScriptedAnswer(503, "<html>busy</html>", {"Retry-After": "7"}, content_type="text/html"),
        ScriptedAnswer(body=[{"id": "x"}]),
        ScriptedAnswer(body=None),
        ScriptedAnswer(524, b"\xff\x00", content_type=None),
    )
    answers = [client.ask(finished, finished.task_ids, Authorization="") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [503, 200, 200, 524]
    assert (answers[0].headers["Retry-After"], answers[0].text) == ("7", "<html>busy</html>")
    assert answers[0].headers["Content-Type"].startswith("text/html")
    assert (answers[1].json(), answers[2].json()) == ([{"id": "x"}], None)
    assert (answers[3].content, answers[3].headers.get("Content-Type")) == (b"\xff\x00", None)
    assert statuses(client, finished, 1) == [200]
    assert [request.status for request in finished.requests] == [503, 200, 200, 524, 200]


def test_a_script_leaves_submits_alone(client, finished):
    finished.script(ScriptedAnswer(500))
    headers = {"Authorization": "Bearer sk-sandbox"}
    submit = client.post(
        f"{finished.base_url}/luma/generations", json={"user_prompt": "fox"}, headers=headers
    )
    assert submit.status_code == 200
    assert statuses(client, finished, 2) == [500, 200]


@pytest.mark.parametrize("body", [b"", b"x", b'{"code": "success"}', b"x" * 100_000])
@pytest.mark.parametrize("accepts", ["gzip", "identity"])
def test_a_cut_answer_never_looks_whole(client, finished, body, accepts, uvicorn_log):
    finished.script(ScriptedAnswer(body=body, cut=True))
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        client.ask(finished, finished.task_ids, **{"Accept-Encoding": accepts})
    assert statuses(client, finished, 1) == [200]
    assert uvicorn_log == []


def test_a_delayed_answer_is_late_alone(client, finished):
    finished.script(ScriptedAnswer(delay=5))
    with pytest.raises(requests.ReadTimeout):
        client.post(f"{finished.base_url}/luma/tasks", json={"ids": []}, timeout=0.2)
    assert statuses(client, finished, 1) == [200]


def test_downloads_are_refused_by_share(client, finished):
    link = client.link(finished, finished.task_ids[0])
    finished.faults = Faults(refused_downloads=1)
    assert client.get(link).status_code == 403


@pytest.mark.parametrize("video_bytes", [None, 3_000_000])
def test_downloads_are_cut_half_way(client, video_bytes, uvicorn_log):
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=video_bytes) as sandbox:
        link = client.link(sandbox, sandbox.task_ids[0])
        whole = client.get(link).content
        sandbox.faults = Faults(cut_downloads=1)
        got = b""
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):  # noqa: PT012
            for chunk in client.get(link, stream=True).iter_content(1000):
                got += chunk
        assert len(whole) * 0.4 < len(got) <= len(whole) // 2
        assert whole.startswith(got)
        assert client.head(link).headers["Content-Length"] == str(len(whole))
    assert uvicorn_log == []


def test_downloads_can_be_scripted(client, finished):
    link = client.link(finished, finished.task_ids[0])
    finished.script_downloads(
        ScriptedAnswer(200, b"", content_type="video/mp4"),
        ScriptedAnswer(503),
        ScriptedAnswer(body=b"xy", cut=True),
    )
    first = client.get(link)
    assert (first.status_code, first.headers["Content-Type"], first.content) == (200, "video/mp4", b"")
    assert client.get(link).status_code == 503
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        client.get(link)
    assert client.get(link).status_code == 200
    assert [download.status for download in finished.downloads] == [200, 503, 200, 200]
