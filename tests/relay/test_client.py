from __future__ import annotations

import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma import __version__
from airflow_provider_luma.exceptions import (
    LumaValueError,
    RelayAuthenticationError,
    RelayRateLimitError,
    RelayTransientError,
)
from airflow_provider_luma.relay import RelayClient, RetryPolicy, TaskState
from airflow_provider_luma.relay.task import PROBE_ID
from airflow_provider_luma.relay.validation import DEFAULT_BASE_URL
from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedResponse

A = {"id": "a", "state": "completed"}
BAD = ScriptedResponse(500, {"code": "do_request_failed", "message": "upstream request failed"})
BUSY = ScriptedResponse(429, content_type=None)
EMPTY_LIST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


def quick(attempts):
    return RetryPolicy(max_attempts=attempts, initial_delay=0.001, max_delay=0.003)


def busy(seconds):
    return ScriptedResponse(429, headers={"Retry-After": str(seconds)})


def requested_ids(sandbox):
    """Give the ids of each status query so far."""
    return [request.ids for request in sandbox.requests]


def test_a_request_holds_the_ids_and_nothing_else(make_client, listen):
    base_url, received = listen(EMPTY_LIST)
    assert make_client("sk-a", base_url).get_tasks(["a", "b"]) == {}
    head, body = received.result(5).split(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    assert body == b'{"ids": ["a", "b"]}'
    assert start == "POST /luma/tasks HTTP/1.1"
    assert dict(line.split(": ", 1) for line in lines) == {
        "Host": base_url.removeprefix("http://"),
        "User-Agent": f"airflow-provider-luma/{__version__}",
        "Accept": "application/json",
        "Accept-Encoding": "gzip",
        "Connection": "keep-alive",
        "Content-Type": "application/json",
        "Content-Length": "19",
        "Authorization": "Bearer sk-a",
    }


@pytest.mark.parametrize("shape", ["bare", "wrapped"])
def test_both_shapes_parse_to_the_same_tasks(make_client, shape):
    with Sandbox(tasks=8, seconds=0, fail=0.25, shape=shape) as sandbox:
        tasks = make_client(base_url=sandbox.base_url).get_tasks([*sandbox.task_ids, "stranger"])
        assert list(tasks) == sandbox.task_ids
        failed = [task for task in tasks.values() if task.state is TaskState.FAILED]
        assert len(failed) == 2
        assert all(task.failure_reason and not task.video for task in failed)
        assert sum(task.video is not None for task in tasks.values()) == 6
        assert make_client(base_url=sandbox.base_url).get_tasks(["stranger"]) == {}


def test_no_ids_send_no_request(sandbox, client):
    assert client.get_tasks([]) == {}
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(1, 100, [1]), (100, 100, [100]), (101, 100, [100, 1]), (3, 1, [1, 1, 1]), (10_000, 100, [100] * 100)],
)
def test_ids_are_queried_in_batches_and_in_order(sandbox, make_client, count, batch_size, sizes):
    ids = [f"4665a07c-7641-4809-a133-{n:012}" for n in range(count)]
    make_client(batch_size=batch_size).get_tasks(ids)
    assert [len(batch) for batch in requested_ids(sandbox)] == sizes
    assert list(chain.from_iterable(requested_ids(sandbox))) == ids


def test_the_result_is_keyed_by_the_requested_ids_in_their_order(sandbox, client):
    sandbox.script(ScriptedResponse(body=[{"id": "z"}, {"id": "b"}, A, {"id": "b", "state": "failed"}]))
    tasks = client.get_tasks(["a", "b", "a", "c"])
    assert [(task_id, task.id, task.state.value) for task_id, task in tasks.items()] == [
        ("a", "a", "completed"),
        ("b", "b", "failed"),
    ]


def test_a_transient_error_loses_no_earlier_response(sandbox, make_client):
    sandbox.script(ScriptedResponse(body=[A]), BAD)
    batches = make_client(batch_size=1).iter_tasks(["a", "b"])
    ids, responded = next(batches)
    assert (list(ids), list(responded)) == (["a"], ["a"])
    with pytest.raises(RelayTransientError, match="responded 500: upstream request failed"):
        next(batches)


@pytest.mark.parametrize(("errors", "attempts", "sent"), [(0, 3, 1), (2, 3, 3), (3, 3, 3), (9, 1, 1)])
def test_transient_errors_are_retried_a_bounded_number_of_times(sandbox, make_client, errors, attempts, sent):
    sandbox.script(*[BAD] * errors, *[ScriptedResponse(body=[A])] * 9)
    try:
        assert "a" in make_client(retry=quick(attempts)).get_tasks(["a"])
        assert errors < attempts
    except RelayTransientError:
        assert errors >= attempts
    assert len(sandbox.requests) == sent


def test_every_batch_has_its_own_attempts(sandbox, make_client):
    fine = ScriptedResponse(body=[])
    sandbox.script(BAD, BAD, fine, BAD, BAD, fine)
    make_client(retry=quick(3), batch_size=1).get_tasks(["a", "b"])
    assert requested_ids(sandbox) == [["a"]] * 3 + [["b"]] * 3


def test_a_rate_limit_uses_up_no_attempt(sandbox, make_client):
    sandbox.script(*[BUSY] * 40, BAD, *[BUSY] * 40, ScriptedResponse(body=[A]))
    assert "a" in make_client(retry=quick(2)).get_tasks(["a"])
    assert len(sandbox.requests) == 82


def test_retry_after_of_a_rate_limit_is_respected(sandbox, make_client):
    sandbox.script(busy(0.3))
    make_client(retry=quick(1)).get_tasks(["a"])
    first, second = sandbox.requests
    assert 0.3 <= second.at - first.at < 1


@pytest.mark.parametrize("response", [busy(60), busy(formatdate(time.time() + 3600, usegmt=True))])
def test_a_retry_after_above_the_limit_ends_at_once(sandbox, client, response):
    sandbox.script(response)
    started = time.monotonic()
    with pytest.raises(RelayRateLimitError) as caught:
        list(client.iter_tasks(["a"], max_delay=30))
    assert time.monotonic() - started < 1
    assert caught.value.retry_after >= 60


def test_the_limit_for_rate_limits_is_shared_by_all_batches(sandbox, make_client):
    sandbox.script(busy(0.4), ScriptedResponse(body=[A]), busy(0.4))
    batches = make_client(batch_size=1).iter_tasks(["a", "b"], max_delay=0.75)
    assert next(batches)[1].keys() == {"a"}
    with pytest.raises(RelayRateLimitError):
        next(batches)


def test_without_a_limit_to_wait_a_rate_limit_is_raised(sandbox, client):
    sandbox.script(busy(0))
    with pytest.raises(RelayRateLimitError):
        list(client.iter_tasks(["a"], max_delay=0))


def test_a_rejected_key_is_not_retried(sandbox, make_client):
    with pytest.raises(RelayAuthenticationError):
        make_client("sk-wrong", retry=quick(5)).get_tasks(["a"])
    assert len(sandbox.requests) == 1


def test_every_kind_of_transient_error_is_outlasted(make_client):
    faults = Faults(rate_limited=0.3, retry_after=0, server_errors=0.3)
    with Sandbox(tasks=40, seconds=0, faults=faults) as sandbox:
        client = make_client(base_url=sandbox.base_url, batch_size=4, retry=quick(20))
        assert list(client.get_tasks(sandbox.task_ids)) == sandbox.task_ids
        assert len(sandbox.requests) > 10


def test_a_ping_queries_an_impossible_task_once(sandbox, make_client):
    make_client(retry=quick(5)).ping()
    assert requested_ids(sandbox) == [[PROBE_ID]]
    assert PROBE_ID not in sandbox.task_ids


@pytest.mark.parametrize(("response", "kind"), [(BAD, RelayTransientError), (BUSY, RelayRateLimitError)])
def test_a_ping_is_not_retried(sandbox, make_client, response, kind):
    sandbox.script(response)
    with pytest.raises(kind):
        make_client(retry=quick(5)).ping()
    assert len(sandbox.requests) == 1


def test_a_ping_accepts_task_not_exist_as_success(sandbox, client):
    sandbox.script(
        ScriptedResponse(400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})
    )
    client.ping()


def test_an_unknown_state_is_logged_once(sandbox, client, caplog):
    words = ("half_baked", "half_baked", "raw", "QUEUED")
    ids = [sandbox.add_task(raw_state=word, seconds=math.inf) for word in words]
    for _ in range(3):
        assert not any(task.is_terminal for task in client.get_tasks(ids).values())
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(message.split("'")[1] for message in warnings) == ["half_baked", "raw"]


def test_one_client_serves_many_threads(sandbox, make_client):
    client = make_client(max_connections=4)
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(client.get_tasks, [[task_id] for task_id in sandbox.task_ids * 40]))
    assert [list(response) for response in responses] == [[task_id] for task_id in sandbox.task_ids * 40]


def test_cookies_of_the_relay_are_not_kept(sandbox, client):
    sandbox.script(ScriptedResponse(body=[], headers={"Set-Cookie": "session=1; Path=/"}))
    client.get_tasks(["a"])
    client.get_tasks(["a"])
    assert "cookie" not in sandbox.requests[-1].headers


def test_the_default_relay_is_the_documented_one():
    with RelayClient("sk-a") as client:
        assert client.base_url == DEFAULT_BASE_URL == "https://api.quickrouter.ai"


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"max_response_bytes": 0},
        *({name: wrong} for name in ("timeout", "request_timeout") for wrong in (0, -1.5, math.nan)),
    ],
    ids=str,
)
def test_invalid_arguments_are_rejected_at_once(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(LumaValueError, match=f"{name} must be .*above 0"):
        RelayClient("sk-a", **arguments)


@pytest.mark.parametrize("name", ["timeout", "request_timeout"])
@pytest.mark.parametrize("seconds", [24 * 3600 + 1, 1e20, math.inf])
def test_a_timeout_is_at_most_a_day(name: str, seconds: float) -> None:
    with pytest.raises(LumaValueError, match=f"{name} must be above 0 and at most 86400 seconds, not "):
        RelayClient("sk-a", **{name: seconds})
    RelayClient("sk-a", **{name: 24 * 3600}).close()


@pytest.mark.parametrize("verify", ["", "/no/such/bundle.pem", "true"])
def test_the_path_of_a_missing_ca_bundle_is_rejected(verify: str) -> None:
    with pytest.raises(LumaValueError, match="verify is neither true nor false nor the path of a CA bundle"):
        RelayClient("sk-a", verify=verify)


def test_a_ca_bundle_may_be_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").touch()
    for verify in (True, False, str(tmp_path), str(tmp_path / "bundle.pem")):
        RelayClient("sk-a", verify=verify).close()


@pytest.mark.parametrize(
    ("video", "meaning"),
    [(None, "running"), ({"url": "https://cdn.test/a.mp4"}, "completed, as its video is there")],
)
def test_the_log_says_how_an_unknown_state_is_treated(make_client, listen, caplog, video, meaning):
    row = json.dumps([{"id": "a", "state": "ready", "video": video}]).encode()
    base_url, _ = listen(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(row), row))
    make_client("sk-a", base_url).get_tasks(["a"])
    assert f"Unknown task state 'ready'; treating the task as {meaning}" in caplog.text


def test_many_unknown_states_do_not_fill_the_log(make_client, listen, caplog):
    rows = json.dumps([{"id": f"id-{n}", "state": f"word-{n}"} for n in range(500)]).encode()
    base_url, _ = listen(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(rows), rows))
    make_client("sk-a", base_url).get_tasks(["a"])
    assert caplog.text.count("Unknown task state") == 50
