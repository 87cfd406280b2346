"""One prompt, one charge: whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    RelayPermanentError,
    RelayPermissionError,
    RelayPromptRejectedError,
    RelayRateLimitError,
    RelayTransientError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay import RelayClient, TaskState
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedResponse
from tests.certificate import server_context, write_certificate
from tests.raw_relay import cutting_proxy, raw_relay

CAT = Generation("cat dance", aspect_ratio="9:16")
QUICK = RetryPolicy(max_attempts=3, initial_delay=0.05, max_delay=0.2)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tasks=0, seconds=0) as sandbox:
        yield sandbox


@pytest.fixture
def client(sandbox: Sandbox) -> RelayClient:
    return RelayClient(sandbox.api_key, sandbox.base_url, timeout=1, retry=QUICK)


def test_a_submit_creates_a_task_and_is_charged_once(sandbox: Sandbox, client: RelayClient) -> None:
    task = client.submit(CAT)
    assert sandbox.task_ids == [task.id]
    assert task.state is TaskState.PENDING
    assert sandbox.submits == [{"user_prompt": "cat dance", "aspect_ratio": "9:16"}]


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    "body",
    [
        {"id": "4665a07c", "state": "pending"},
        {"task_id": "4665a07c"},
        {"code": "success", "message": "", "data": {"task_id": "4665a07c", "task_status": "submitted"}},
        {"code": 0, "data": {"id": "4665a07c", "state": "queued"}},
        {"code": "success", "message": "", "data": "4665a07c"},
        [{"id": "4665a07c"}],
        {"code": "success", "data": [{"id": "4665a07c"}]},
    ],
)
def test_every_shape_of_the_response_is_parsed(
    sandbox: Sandbox, client: RelayClient, body: Any, status: int
) -> None:
    sandbox.script_submits(ScriptedResponse(status=status, body=body))
    assert client.submit(CAT).id == "4665a07c"


NAMED = {
    "a success code in capitals": ScriptedResponse(body={"code": "SUCCESS", "data": "4665a07c-7641"}),
    "the code 201": ScriptedResponse(body={"code": 201, "id": "4665a07c-7641"}),
    "the code 20000": ScriptedResponse(body={"code": 20000, "message": "ok", "id": "4665a07c-7641"}),
    "the code true": ScriptedResponse(body={"code": True, "data": {"taskId": "4665a07c-7641"}}),
    "a code that nobody knows": ScriptedResponse(body={"code": "queued_up", "data": {"id": "4665a07c-7641"}}),
    "an error beside it": ScriptedResponse(body={"id": "4665a07c-7641", "error": "prompt was shortened"}),
    "a redirect": ScriptedResponse(status=303, body={"id": "4665a07c-7641"}),
    "a redirect to the task": ScriptedResponse(
        status=303, headers={"Location": "https://relay.example/luma/generations/4665a07c-7641"}
    ),
    "a redirect to no URL": ScriptedResponse(
        status=302, headers={"Location": "http://[bad"}, body={"id": "4665a07c-7641"}
    ),
    "a lost client": ScriptedResponse(status=499, body={"id": "4665a07c-7641"}),
    "a server error": ScriptedResponse(status=500, body={"task_id": "4665a07c-7641", "error": "late"}),
    "a rate limit with a task": ScriptedResponse(
        status=429,
        body={"id": "4665a07c-7641", "state": "queued", "created_at": "2026-11-21", "assets": None},
    ),
    "a wrapped rate limit with a task": ScriptedResponse(
        status=429,
        body={"code": "success", "message": "", "data": {"id": "4665a07c-7641", "state": "queued"}},
    ),
    "a rejection with a task": ScriptedResponse(
        status=400, body={"id": "4665a07c-7641", "state": "dreaming", "assets": {}, "message": "x"}
    ),
    "a rejection that names a task": ScriptedResponse(
        status=400, body={"error": {"message": "x"}, "data": {"task_id": "4665a07c-7641"}}
    ),
    "a row of the database": ScriptedResponse(
        body={"code": "success", "data": {"id": 13917, "task_id": "4665a07c-7641", "data": None}}
    ),
    "a row whose own id is a text": ScriptedResponse(
        body={"code": "success", "data": {"id": "row-7", "data": {"id": "4665a07c-7641"}}}
    ),
    "a request id beside it": ScriptedResponse(body={"id": "req-17", "data": {"task_id": "4665a07c-7641"}}),
    "another wrapper": ScriptedResponse(body={"result": {"generation": {"id": "4665a07c-7641"}}}),
}
UUID = "4665a07c-7641-4809-a133-10786201bb56"


@pytest.mark.parametrize("body", [UUID, f'"{UUID}"', {"code": "success", "data": UUID}, {"result": UUID}])
def test_a_bare_id_is_accepted(sandbox: Sandbox, client: RelayClient, body: Any) -> None:
    sandbox.script_submits(ScriptedResponse(body=body), created=True)
    assert client.submit(CAT).id == UUID


@pytest.mark.parametrize("response", NAMED.values(), ids=NAMED)
def test_a_response_that_names_an_id_created_a_task(
    sandbox: Sandbox, client: RelayClient, response: ScriptedResponse
) -> None:
    sandbox.script_submits(response, created=True)
    assert client.submit(CAT).id == "4665a07c-7641"
    assert len(sandbox.requests) == 1


def test_a_number_is_an_id_where_there_is_no_other(sandbox: Sandbox, client: RelayClient) -> None:
    sandbox.script_submits(ScriptedResponse(body={"code": 0, "data": {"id": 13917}}), created=True)
    assert client.submit(CAT).id == "13917"


@pytest.mark.parametrize("digits", [18, 19, 20, 25])
def test_a_number_of_any_length_is_an_id(sandbox: Sandbox, client: RelayClient, digits: int) -> None:
    """Databases number rows with 19 digits, which JSON readers may have no integer for."""
    number = "1858473625847362560777777"[:digits]
    body = f'{{"code": 0, "message": "success", "data": {{"task_id": {number}}}}}'
    sandbox.script_submits(ScriptedResponse(body=body), created=True)
    assert client.submit(CAT).id == number


def test_an_unknown_outcome_shows_the_response_beside_its_message(
    sandbox: Sandbox, client: RelayClient
) -> None:
    body = {"code": "success", "message": "submitted", "data": {"job": "new-form-17"}}
    sandbox.script_submits(ScriptedResponse(body=body), created=True)
    with pytest.raises(SubmitOutcomeUnknownError, match="new-form-17"):
        client.submit(CAT)


@pytest.mark.parametrize("key_name", ["task_id", "request id"])
def test_a_rejection_full_of_blanks_is_parsed_in_time(
    sandbox: Sandbox, client: RelayClient, key_name: str
) -> None:
    """With a quadratic search the blanks would take minutes, beyond every bound of the request."""
    body = f'{{"message": "no", "{key_name}":{" " * 60_000}}}{" " * 60_000}'
    sandbox.script_submits(ScriptedResponse(status=400, body=body))
    with pytest.raises(RelayInvalidRequestError):
        client.submit(CAT)


def test_interim_responses_are_skipped() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    body = b'{"id": "4665a07c-7641"}'
    final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with raw_relay(interim + final + body) as relay, RelayClient("key", relay.url) as client:
        assert client.submit(CAT).id == "4665a07c-7641"
        assert len(relay.posts) == 1


LATE = "9d4b7516-77e5-481a-b015-48313946f33b"
UNKNOWN = {
    "500": ScriptedResponse(status=500, body={"message": "upstream"}),
    "502": ScriptedResponse(status=502, body="<html>", content_type="text/html"),
    "408": ScriptedResponse(status=408),
    "409": ScriptedResponse(status=409, body={"message": "conflict"}),
    "499": ScriptedResponse(status=499),
    "524": ScriptedResponse(status=524),
    "no response at all": ScriptedResponse(truncated=True),
    "truncated": ScriptedResponse(body={"id": "4665a07c" * 9}, truncated=True),
    "read timeout": ScriptedResponse(delay=3),
    "no id": ScriptedResponse(body={"state": "pending"}),
    "a code that nobody knows": ScriptedResponse(body={"code": 20000, "message": "ok"}),
    "a success without an id": ScriptedResponse(body={"code": "success", "data": "submitted"}),
    "no success, no reason": ScriptedResponse(body={"success": False, "message": "upstream timed out"}),
    "not JSON": ScriptedResponse(body="fine", content_type="text/plain"),
    "a web page": ScriptedResponse(body="<html>", content_type="text/html"),
    "a redirect": ScriptedResponse(status=302, headers={"Location": "https://elsewhere.example"}),
    "a redirect to no URL": ScriptedResponse(status=302, headers={"Location": "http://[bad"}),
    "a failure after it was passed on": ScriptedResponse(status=400, body={"code": "do_request_failed"}),
    "an id in an error": ScriptedResponse(
        status=400, body={"error": {"task_id": "4665a07c-7641", "message": "x"}}
    ),
    "an id in a detail": ScriptedResponse(status=402, body={"detail": {"task_id": "4665a07c-7641"}}),
    "an id as a number": ScriptedResponse(status=400, body={"message": "x", "task_id": 12345}),
    "ids in a list": ScriptedResponse(status=400, body={"message": "x", "task_ids": ["4665a07c-7641"]}),
    "a truncated rate limit": ScriptedResponse(status=429, body='{"task_id": "4665a07c-7641", "sta'),
    "JSON that is nested too deep": ScriptedResponse(
        status=400, body='{"task_id": "4665a07c-7641", "x": ' + "[" * 5000 + "]" * 5000 + "}"
    ),
    "JSON in a text": ScriptedResponse(
        status=400, body={"message": "x", "data": '{"task_id": "4665a07c-7641"}'}
    ),
    "a message that it was passed on": ScriptedResponse(
        status=400, body={"error": {"type": "x", "message": "do request failed: context deadline exceeded"}}
    ),
    "a type that it was passed on": ScriptedResponse(
        status=400, body={"error": {"type": "upstream_error", "message": "x"}}
    ),
    **{
        f"passed on, in other places: {body}": ScriptedResponse(status=400, body=body)
        for body in (
            "do request failed: context deadline exceeded",
            {"msg": "do request failed: EOF"},
            {"data": {"code": "do_request_failed"}, "message": "x"},
            {"errors": [{"code": "do_request_failed"}], "message": "x"},
            {"error": {"error": {"message": "read: connection reset by peer"}}},
            [{"message": "upstream timed out"}],
            {"message": "unexpected EOF"},
            {"message": "write: broken pipe"},
            {"message": "请求上游超时"},
            {"message": "上游服务返回错误"},
            {"error": {"message": "context canceled", "type": "new_api_error"}},
            {"error": {"message": 'Post "http://up.example/luma": net/http: request canceled'}},
            {"message": 'Post "http://up.example/luma": dial tcp: lookup failed'},
            {"message": "client disconnected"},
            {"message": "upstream returned status 500"},
            {"code": "fail", "message": "create task failed: upstream 500"},
            {"message": "invalid response from upstream"},
            {"message": "invalid character '<' looking for beginning of value"},
            {"message": "unexpected end of JSON input"},
            {"uuid": "luma_gen_abc123", "status": "queued"},
            {"data": {"video_id": "vid_123", "status": "queued"}},
        )
    },
    "a code behind another": ScriptedResponse(
        status=400, body={"code": "post_consume_quota_failed", "error": {"code": "x", "message": "x"}}
    ),
    **{
        f"{status} {number}": ScriptedResponse(status=status, body=body)
        for status in (429, 402)
        for number, body in enumerate(
            [
                {"code": "success", "message": "", "data": LATE},
                {"code": "success", "message": "", "data": {"id": LATE}},
                {"message": "queued", "task": LATE},
                {"message": "x", "generation": {"id": LATE}},
                {"id": "short-1", "state": "starting", "created_at": "2026", "message": "x"},
                [{"id": LATE}],
                LATE,
                {"message": f"task created {LATE} but notify failed"},
                {"message": "x", "items": [{"id": "short-1", "state": "queued"}]},
            ]
        )
    },
    "an error of a request": ScriptedResponse(body={"id": "req_8f2a91", "error": {"code": "server_busy"}}),
    "no success, and a text": ScriptedResponse(body={"success": False, "message": "x", "data": "ERR-10023"}),
    "an id and nothing else": ScriptedResponse(status=400, body={"id": "4665a07c-7641"}),
    "a request id of a server error": ScriptedResponse(
        status=500, body={"id": "req_8f2a91", "error": {"message": "x"}}
    ),
    "no id at all": ScriptedResponse(body={"code": "success", "data": {"id": 0, "task_id": ""}}),
    "the nil UUID": ScriptedResponse(body={"id": "00000000-0000-0000-0000-000000000000"}),
    "a null in words": ScriptedResponse(body={"id": "null"}),
    "a negative number": ScriptedResponse(body={"code": "fail", "data": {"id": -1}}),
    "a date": ScriptedResponse(body={"code": "success", "data": "2026-11-21"}),
    "a message with a number": ScriptedResponse(status=502, body="error-502", content_type="text/plain"),
    "a redirect to a login": ScriptedResponse(status=302, headers={"Location": "/luma/generations/login"}),
    "a redirect that names a task in its query": ScriptedResponse(
        status=302, headers={"Location": f"https://sso.example/?rd=/luma/generations/{UUID}"}
    ),
    "a redirect to an id with NUL": ScriptedResponse(
        status=303, headers={"Location": "/luma/generations/abc%00def1"}
    ),
    "an id with a line break": ScriptedResponse(body={"id": "4665a07c\nERROR forged"}),
    "an id that turns the line around": ScriptedResponse(body={"id": "4665a07c\u202e"}),
    **{
        f"200 {code}": ScriptedResponse(body={"code": code, "message": "x"})
        for code in (
            *(
                "bad_response_body",
                "bad_response_status_code",
                "invalid_response",
                "post_consume_quota_failed",
            ),
            *("load_balancer_timeout", "upstream_response_missing_id", 408, 409, 499),
        )
    },
    "400 bad_response_body": ScriptedResponse(status=400, body={"error": {"code": "bad_response_body"}}),
    "an invalid encoding": ScriptedResponse(body=b"x", headers={"Content-Encoding": "gzip"}),
    "an encoding that was not requested": ScriptedResponse(body=b"x", headers={"Content-Encoding": "br"}),
}


@pytest.mark.parametrize("response", UNKNOWN.values(), ids=UNKNOWN)
def test_a_response_that_proves_nothing_is_not_retried_and_says_so(
    sandbox: Sandbox, client: RelayClient, response: ScriptedResponse
) -> None:
    sandbox.script_submits(response, created=True)
    with pytest.raises(SubmitOutcomeUnknownError, match="may have created and charged for a task") as error:
        client.submit(CAT)
    assert len(sandbox.submits) == 1
    assert len(sandbox.requests) == 1
    assert sandbox.api_key not in str(error.value)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BROKEN = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 2",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "two lengths": HEAD + b"Content-Length: 18\r\nContent-Length: 19\r\n\r\n" + b'{"state":"pending"}',
    "a length that is none": HEAD + b"Content-Length: many\r\n\r\n" + b'{"state":"pending"',
    "a huge length": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{",
    "a header without a name": HEAD + b": x\r\nContent-Length: 9\r\n\r\n{",
    "a chunk that is none": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "too many headers": HEAD + b"X-A: b\r\n" * 200 + b"\r\n",
    "a redirect to no URL": b"HTTP/1.1 307 X\r\nLocation: http://[bad\r\nContent-Length: 0\r\n\r\n",
    "a redirect with a surrogate": b"HTTP/1.1 307 X\r\nLocation: \xed\xa0\xbd\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("response", BROKEN.values(), ids=BROKEN)
def test_a_response_that_breaks_the_protocol_is_an_unknown_outcome(response: bytes) -> None:
    with raw_relay(response) as relay:
        with pytest.raises(SubmitOutcomeUnknownError):
            RelayClient("sk-key", relay.url, timeout=2, retry=QUICK).submit(CAT)
        assert len(relay.posts) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls") / "relay.pem")


@pytest.mark.parametrize("cut", ["fin", "rst"])
@pytest.mark.parametrize("is_tunnel", [False, True])
def test_a_proxy_that_cuts_the_response_is_an_unknown_outcome(
    cut: str, is_tunnel: bool, certificate: Path
) -> None:
    tls = server_context(certificate) if is_tunnel else None
    response = HEAD + b'Content-Length: 18\r\n\r\n{"id": "4665a07c"}'
    with raw_relay(response, tls=tls) as relay, cutting_proxy(relay, cut=cut) as proxy:
        client = RelayClient(
            "sk-key",
            relay.url,
            proxies={"http": proxy.url, "https": proxy.url},
            verify=str(certificate) if tls else True,
            timeout=5,
            retry=QUICK,
        )
        with pytest.raises(SubmitOutcomeUnknownError):
            client.submit(CAT)
        assert len(relay.posts) == 1


@pytest.mark.parametrize("cut", ["refuse", "drop"])
def test_a_tunnel_that_failed_sent_nothing(cut: str, certificate: Path) -> None:
    with (
        raw_relay(b"", tls=server_context(certificate)) as relay,
        cutting_proxy(relay, cut=cut) as proxy,
        pytest.raises(RelayTransientError),
    ):
        RelayClient("sk-key", relay.url, proxies={"https": proxy.url}, timeout=5, retry=QUICK).submit(CAT)
    assert relay.posts == []


def test_a_certificate_that_is_not_trusted_sent_nothing(certificate: Path) -> None:
    with raw_relay(b"", tls=server_context(certificate)) as relay:
        with pytest.raises(RelayTransientError, match="certificate verify failed"):
            RelayClient("sk-key", relay.url, timeout=5, retry=QUICK).submit(CAT)
        assert relay.posts == []


def test_a_missing_ca_bundle_of_the_environment_sent_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    client = RelayClient(sandbox.api_key, sandbox.base_url.replace("http:", "https:"), timeout=5, retry=QUICK)
    with pytest.raises(RelayTransientError):
        client.submit(CAT)
    assert sandbox.submits == []


def test_a_dripping_response_is_an_unknown_outcome_in_time() -> None:
    def drip(listener: socket.socket) -> None:
        with suppress(OSError):
            client, _ = listener.accept()
            posts.append(client.recv(65536))
            for byte in HEAD * 100:
                client.sendall(bytes([byte]))
                time.sleep(0.05)

    posts: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(SubmitOutcomeUnknownError, match=r"request_timeout \(0.5 s\)"):
            RelayClient("sk-key", url, timeout=5, request_timeout=0.5, retry=QUICK).submit(CAT)
    assert len(posts) == 1


def test_a_429_with_retry_after_0_is_not_retried_endlessly(sandbox: Sandbox) -> None:
    limited = ScriptedResponse(status=429, headers={"Retry-After": "0"})
    sandbox.script_submits(*[limited] * 6)
    waits: list[float] = []
    client = RelayClient(
        sandbox.api_key,
        sandbox.base_url,
        retry=RetryPolicy(initial_delay=0.01, max_delay=1),
        event_hook=lambda error, seconds: waits.append(time.monotonic()),
    )
    client.submit(CAT)
    assert waits[-1] - waits[0] > 0.01 + 0.02 + 0.04 + 0.08 + 0.16 + 0.32


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.1"}])
def test_a_429_did_not_create_anything_and_is_waited_out(
    sandbox: Sandbox, client: RelayClient, headers: dict[str, str]
) -> None:
    sandbox.script_submits(*[ScriptedResponse(status=429, headers=headers)] * 4)
    client.submit(CAT)
    assert len(sandbox.submits) == 1


REJECTED = [
    (ScriptedResponse(status=401), RelayAuthenticationError),
    (ScriptedResponse(status=402), RelayInsufficientBalanceError),
    (
        ScriptedResponse(status=403, body={"code": "insufficient_user_quota", "message": "x"}),
        RelayInsufficientBalanceError,
    ),
    (
        ScriptedResponse(status=403, body={"error": {"code": "insufficient_quota"}}),
        RelayInsufficientBalanceError,
    ),
    (ScriptedResponse(status=403, body={"code": "access_denied"}), RelayPermissionError),
    (ScriptedResponse(status=400, body={"code": "invalid_request"}), RelayPromptRejectedError),
    (ScriptedResponse(status=413), RelayPromptRejectedError),
    (
        ScriptedResponse(status=404, body="404 page not found", content_type="text/plain"),
        RelayInvalidRequestError,
    ),
    (ScriptedResponse(status=422), RelayPromptRejectedError),
    (
        ScriptedResponse(status=400, body={"message": "blocked: a salmon swims upstream, a blog post"}),
        RelayPromptRejectedError,
    ),
    # The id of a request that was rejected, which some gateways give.
    (
        ScriptedResponse(status=400, body={"id": "req-17", "error": {"message": "x"}}),
        RelayPromptRejectedError,
    ),
    (
        ScriptedResponse(body={"code": "insufficient_user_quota", "message": "x"}),
        RelayInsufficientBalanceError,
    ),
    (
        ScriptedResponse(body={"code": "invalid_request", "message": "x", "data": None}),
        RelayPromptRejectedError,
    ),
    *[
        (
            ScriptedResponse(body={"code": "invalid_request", "message": "x", "data": data}),
            RelayPromptRejectedError,
        )
        for data in ({"id": 0, "task_id": ""}, {"id": 17, "username": "joe"}, "trace-9f31aa", "2026-11-21")
    ],
    (ScriptedResponse(status=401, body={"error": "invalid", "id": "req_8f2a91"}), RelayAuthenticationError),
    (ScriptedResponse(status=401, body={"message": "x", "id": "req_8f2a91"}), RelayAuthenticationError),
    (
        ScriptedResponse(status=400, body={"status": "error", "id": "req_8f2a91", "message": "blocked"}),
        RelayPromptRejectedError,
    ),
    (
        ScriptedResponse(status=400, body={"request_id": UUID, "message": f"blocked (request id: {UUID})"}),
        RelayPromptRejectedError,
    ),
    (
        ScriptedResponse(status=402, body={"id": "req_8f2a91", "status": 402, "error": {"message": "x"}}),
        RelayInsufficientBalanceError,
    ),
    (
        ScriptedResponse(status=400, body={"error": {"message": "x"}, "data": "ERR-10023"}),
        RelayPromptRejectedError,
    ),
    (
        ScriptedResponse(status=429, body={"error": {"code": "insufficient_quota", "message": "x"}}),
        RelayInsufficientBalanceError,
    ),
    *[
        (
            ScriptedResponse(status=status, body={"code": code, "message": message, "data": None}),
            RelayInsufficientBalanceError,
        )
        for status in (200, 403)
        for code, message in (
            ("pre_consume_token_quota_failed", "token quota is not enough, token remain quota: 0"),
            ("pre_consume_token_quota_failed", "x"),
            ("quota_not_enough", "user quota is not enough"),
        )
    ],
    *[
        (ScriptedResponse(status=status, body={"message": "no"}), RelayInvalidRequestError)
        for status in (404, 405, 407, 410, 451)
    ],
    *[
        (ScriptedResponse(body={"code": code, "message": "x"}), kind)
        for code, kind in (
            ("invalid_api_key", RelayAuthenticationError),
            ("quota_exceeded", RelayInsufficientBalanceError),
            ("access_denied", RelayPermissionError),
            ("model_not_found", RelayInvalidRequestError),
            ("sensitive_words_detected", RelayPromptRejectedError),
            ("task_not_exist", RelayPromptRejectedError),
        )
    ],
    (ScriptedResponse(status=404, body={"code": "task_not_exist"}), RelayPromptRejectedError),
]


@pytest.mark.parametrize(("response", "kind"), REJECTED)
def test_a_rejection_is_permanent(
    sandbox: Sandbox, client: RelayClient, response: ScriptedResponse, kind: type[RelayError]
) -> None:
    sandbox.script_submits(response)
    with pytest.raises(RelayError) as error:
        client.submit(CAT)
    assert type(error.value) is kind
    assert len(sandbox.requests) == 1


MODERATED: list[Any] = [
    {"message": "user sensitive words detected"},
    {"message": "输入内容包含敏感词"},
    {"error": {"message": "提示词违规", "type": "new_api_error", "code": "prompt_violation"}},
    {"message": "Your prompt was rejected by our safety system"},
    {"message": "It violates our usage policies"},
    {"message": "内容审核未通过"},
    {"detail": "403: Prompt contains blacklisted words"},
    {"detail": "Prompt not allowed because advanced moderation failed"},
    {"code": "content_policy_violation", "message": "x"},
]


@pytest.mark.parametrize("body", MODERATED, ids=str)
@pytest.mark.parametrize("status", [403, 451])
def test_moderation_rejects_the_prompt_whatever_the_status(
    sandbox: Sandbox, client: RelayClient, status: int, body: Any
) -> None:
    sandbox.script_submits(ScriptedResponse(status=status, body=body))
    with pytest.raises(RelayPromptRejectedError):
        client.submit(CAT)


@pytest.mark.parametrize(
    "message",
    [
        "该账号因违规被封禁",
        "Your account was suspended for violating our content policy",
        "用户已被封禁",
        "no",
    ],
)
def test_a_403_for_an_account_is_not_about_the_prompt(
    sandbox: Sandbox, client: RelayClient, message: str
) -> None:
    sandbox.script_submits(ScriptedResponse(status=403, body={"message": message}))
    with pytest.raises(RelayPermissionError):
        client.submit(CAT)


def test_an_insufficient_balance_has_the_relays_message() -> None:
    with Sandbox(tasks=0, balance=1) as sandbox:
        client = RelayClient(sandbox.api_key, sandbox.base_url)
        client.submit(CAT)
        with pytest.raises(RelayInsufficientBalanceError, match=r"balance 0, needs 1\. Top up"):
            client.submit(CAT)
        assert len(sandbox.submits) == 1


def test_an_unreachable_relay_is_retried() -> None:
    with Sandbox(tasks=0) as gone:
        port = int(gone.base_url.rpartition(":")[2])
    late = Sandbox(tasks=0, relay_port=port)
    patient = RetryPolicy(max_attempts=7, initial_delay=0.2, max_delay=1)
    threading.Timer(0.7, late.start).start()
    try:
        RelayClient(late.api_key, f"http://127.0.0.1:{port}", retry=patient).submit(CAT)
        assert len(late.submits) == 1
    finally:
        late.stop()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_request_that_was_not_sent_is_a_transient_error(url: str) -> None:
    with pytest.raises(RelayTransientError, match="No response from the relay"):
        RelayClient("sk-key", url, retry=QUICK).submit(CAT)


def test_an_unreachable_proxy_is_a_transient_error(sandbox: Sandbox) -> None:
    proxies = {"http": "http://127.0.0.1:9"}
    with pytest.raises(RelayTransientError):
        RelayClient(sandbox.api_key, sandbox.base_url, proxies=proxies, retry=QUICK).submit(CAT)
    assert sandbox.submits == []


def test_a_connection_that_idled_and_was_closed_harms_no_submit() -> None:
    """A server that closes each kept-alive connection after its first response."""
    bodies: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        bodies.append(b"")
                        while b"cat dance" not in bodies[-1]:  # what is left unread would break it off
                            bodies[-1] += connection.recv(65536)
                        response = b'{"id": "4665a07c"}'
                        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18"
                        connection.sendall(head + b"\r\n\r\n" + response)

        threading.Thread(target=serve, daemon=True).start()
        client = RelayClient(
            "sk-key", f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10, retry=QUICK
        )
        assert [client.submit(CAT).id for _ in range(3)] == ["4665a07c"] * 3
    assert len(bodies) == 3
    assert all(b"\r\nConnection: close\r\n" in body for body in bodies)  # so that none is kept at all


def test_a_hundred_submits_through_all_faults_charge_once_each() -> None:
    faults = Faults(
        submits_rate_limited=0.2,
        submits_unavailable=0.1,
        submits_bad_gateway=0.1,
        submits_response_lost=0.1,
        retry_after=0.01,
    )
    with Sandbox(tasks=0, faults=faults, seed=3) as sandbox:
        client = RelayClient(sandbox.api_key, sandbox.base_url, retry=QUICK)
        submitted, uncertain = [], 0
        for number in range(100):
            try:
                submitted.append(client.submit(Generation(f"cat dance {number}")).id)
            except SubmitOutcomeUnknownError:
                uncertain += 1
        prompts = [body["user_prompt"] for body in sandbox.submits]
    assert len(prompts) == len(set(prompts))
    assert len(submitted) + uncertain == 100
    assert uncertain > 10


def test_one_task_is_queried_by_its_path(sandbox: Sandbox, client: RelayClient) -> None:
    task_id = client.submit(CAT).id
    task = client.get_task(task_id)
    assert task is not None
    assert (task.id, task.state) == (task_id, TaskState.COMPLETED)
    assert client.get_task("nobody") is None


def test_a_video_is_extended(sandbox: Sandbox, client: RelayClient) -> None:
    first = client.submit(CAT).id
    second = client.submit(Generation("and on", extend_task_id=first)).id
    assert second != first
    assert len(sandbox.submits) == 2
    with pytest.raises(RelayInvalidRequestError, match="task_not_exist"):
        client.submit(Generation("and on", extend_task_id="nobody"))


@pytest.mark.parametrize("status", [400, 404])
def test_the_task_that_cannot_be_extended_is_not_the_one_that_was_created(
    sandbox: Sandbox, client: RelayClient, status: int
) -> None:
    body = {"code": "invalid_request", "message": "cannot be extended", "data": {"task_id": "4665a07c-7641"}}
    sandbox.script_submits(ScriptedResponse(status=status, body=body))
    with pytest.raises(RelayInvalidRequestError, match="cannot be extended"):
        client.submit(Generation("and on", extend_task_id="4665a07c-7641"))


def test_a_truncated_gzip_body_is_an_unknown_outcome(sandbox: Sandbox, client: RelayClient) -> None:
    body = gzip.compress(b'{"id": "4665a07c-7641"}')[:-9]
    sandbox.script_submits(ScriptedResponse(body=body, headers={"Content-Encoding": "gzip"}), created=True)
    with pytest.raises(SubmitOutcomeUnknownError, match="gzip is truncated"):
        client.submit(CAT)


def test_a_failing_event_hook_loses_no_id(sandbox: Sandbox) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("statsd is gone")

    client = RelayClient(sandbox.api_key, sandbox.base_url, event_hook=fail)
    assert client.submit(CAT).id == sandbox.task_ids[0]


def test_a_key_that_the_relay_echoes_is_nowhere_in_the_task(sandbox: Sandbox, client: RelayClient) -> None:
    body = {"id": "4665a07c-7641", "request": {"headers": {"Authorization": f"Bearer {sandbox.api_key}"}}}
    sandbox.script_submits(ScriptedResponse(body=body))
    assert sandbox.api_key not in str(client.submit(CAT).raw)


@pytest.mark.parametrize(
    "body",
    [
        {"task_id": "source-7641", "id": "4665a07c-7641"},
        {"id": "4665a07c-7641", "data": {"task_id": "source-7641"}},
        {"id": "4665a07c-7641", "generation": {"id": "source-7641"}},
    ],
)
def test_the_extended_task_is_not_mistaken_for_the_new_one(
    sandbox: Sandbox, client: RelayClient, body: Any
) -> None:
    sandbox.script_submits(ScriptedResponse(body=body), created=True)
    assert client.submit(Generation("and on", extend_task_id="source-7641")).id == "4665a07c-7641"


@pytest.mark.parametrize("spelling", ["sk-with/slash-1234", "sk-with\\/slash-1234", "sk-with%2Fslash-1234"])
def test_an_echo_of_the_key_is_redacted_as_json_writes_it(spelling: str) -> None:
    with Sandbox(tasks=0, api_key="sk-with/slash-1234") as sandbox:
        sandbox.script_submits(ScriptedResponse(body=f'{{"id": "4665a07c-7641", "echo": "{spelling}"}}'))
        task = RelayClient(sandbox.api_key, sandbox.base_url).submit(CAT)
    assert task.raw["echo"] == "***"


def test_a_key_that_is_a_common_word_garbles_no_response() -> None:
    with Sandbox(tasks=0, api_key="id") as sandbox:
        sandbox.script_submits(ScriptedResponse(body={"id": "4665a07c-7641"}))
        assert RelayClient("id", sandbox.base_url).submit(CAT).id == "4665a07c-7641"


def test_a_rate_limit_with_a_request_id_that_is_a_uuid_is_waited_out(
    sandbox: Sandbox, client: RelayClient
) -> None:
    body = {"error": {"message": f"slow down (request id: {UUID})", "request_id": UUID}}
    sandbox.script_submits(ScriptedResponse(status=429, body=body))
    assert client.submit(CAT).id == sandbox.task_ids[0]


@pytest.mark.parametrize(
    "response",
    [
        ScriptedResponse(body={"code": "success", "data": UUID}),
        ScriptedResponse(body=UUID),
        ScriptedResponse(status=303, headers={"Location": f"/luma/generations/{UUID}"}),
    ],
)
def test_the_task_that_is_extended_by_itself_is_no_new_one(
    sandbox: Sandbox, client: RelayClient, response: ScriptedResponse
) -> None:
    sandbox.script_submits(response)
    with pytest.raises(SubmitOutcomeUnknownError):
        client.submit(Generation("and on", extend_task_id=UUID))


ID = "4665a07c-7641-4809-a133-10786201bb56"
HEAD = f'{{"id": "{ID}", "state": "pending"'.encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(HEAD + b', "prompt": "' + "猫".encode("gbk") + b'"}', id="a prompt in another encoding"),
        pytest.param(HEAD + b', "prompt": "' + "猫".encode()[:-1] + b'"}', id="a character cut in two"),
        pytest.param(HEAD + b', "prompt": "a cat\ndances"}', id="a raw line break"),
        pytest.param(b"data: " + HEAD + b"}\n\n", id="an event of a stream"),
        pytest.param(HEAD + b"}\nserved by x", id="text behind it"),
        pytest.param(json.dumps((HEAD + b"}").decode()).encode(), id="JSON as a text"),
    ],
)
@pytest.mark.parametrize("status", [200, 429])
def test_what_is_nearly_json_and_names_an_id_created_a_task(status: int, body: bytes) -> None:
    with raw_relay(_raw(status, body)) as relay:
        client = RelayClient("sk-1", relay.url)
        assert client.submit(Generation("cat dance")).id == ID
        assert len(relay.posts) == 1


@pytest.mark.parametrize("status", [400, 429])
def test_a_task_id_in_what_python_prints_leaves_the_outcome_unknown(status: int) -> None:
    body = b"{'task_id': 'luma_gen_abc123', 'state': 'queued'}"
    with raw_relay(_raw(status, body)) as relay:
        with pytest.raises(SubmitOutcomeUnknownError, match="luma_gen_abc123"):
            RelayClient("sk-1", relay.url).submit(Generation("cat dance"))
        assert len(relay.posts) == 1


@pytest.mark.parametrize(
    "body",
    [
        {
            "code": "invalid_request",
            "message": "Invalid value for field 'task_id': must be a finished generation",
        },
        {"detail": "Validation failed: {'task_id': ['Generation is not completed.']}"},
        {"detail": "Validation failed: {'task_id': 'required'}"},
        {"message": "unexpected keyword 'job_id': not permitted"},
    ],
)
def test_an_error_of_validation_that_quotes_a_field_is_a_rejection(
    sandbox: Sandbox, client: RelayClient, body: Any
) -> None:
    sandbox.script_submits(ScriptedResponse(status=422, body=body))
    with pytest.raises(RelayPermanentError) as caught:
        client.submit(Generation("and on", extend_task_id=UUID))
    assert not isinstance(caught.value, SubmitOutcomeUnknownError)


def test_an_id_in_capital_fields_beside_a_429_created_a_task() -> None:
    body = json.dumps({"Message": "slow down", "Data": {"Id": ID, "Status": "pending"}}).encode()
    with raw_relay(_raw(429, body)) as relay:
        assert RelayClient("sk-1", relay.url).submit(Generation("cat dance")).id == ID
        assert len(relay.posts) == 1


@pytest.mark.parametrize("status", [200, 400, 429, 502])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f'not allowed: a neon sign that says {{"task_id": "{ID}"}}', id="of the prompt"),
        pytest.param('Bad gateway: no response from backend {"id": "worker-17"}', id="of a proxy"),
    ],
)
def test_json_within_a_text_names_no_task(status: int, text: str) -> None:
    client_error = (RelayInvalidRequestError, SubmitOutcomeUnknownError, RelayRateLimitError)
    with raw_relay(_raw(status, text.encode())) as relay, pytest.raises(client_error):
        RelayClient("sk-1", relay.url).submit_once(Generation("cat dance"))


def test_a_long_body_that_is_nearly_json_names_its_task() -> None:
    body = b'{"data": {"prompt": "' + b"a cat\ndances " * 500 + b'", "id": "' + ID.encode() + b'"}}'
    with raw_relay(_raw(200, body)) as relay:
        assert RelayClient("sk-1", relay.url).submit(Generation("cat dance")).id == ID


def test_json_in_a_web_page_names_no_task() -> None:
    body = f'<html><script>state = {{"id": "{ID}"}}</script></html>'.encode()
    with raw_relay(_raw(200, body)) as relay, pytest.raises(SubmitOutcomeUnknownError):
        RelayClient("sk-1", relay.url).submit(Generation("cat dance"))


def _raw(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
