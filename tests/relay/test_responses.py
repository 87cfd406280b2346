from __future__ import annotations

import gzip
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import time_machine

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTaskNotFoundError,
    RelayTransientError,
)
from airflow_provider_luma.relay import TaskState
from airflow_provider_luma.sandbox import ScriptedResponse

SEED = Path(__file__).with_name("seed_answer.json").read_text()
HTML = "<!DOCTYPE html>\n<html><head><title>Dashboard</title></head><body></body></html>"
A = {"id": "a", "state": "completed"}
ROW = {"id": 1, "task_id": "b", "status": "FAILURE", "fail_reason": "moderated", "data": None}


@pytest.fixture
def error_of(query):
    """Return the error that a response is mapped to."""

    def error_of(*response, **details):
        with pytest.raises(RelayError) as caught:
            query(*response, **details)
        return caught.value

    return error_of


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ([A], ["a"]),
        ([A, {"id": "b"}], ["a", "b"]),
        ([{"id": "b"}, None, 5, {}, A], ["a", "b"]),
        ([{"id": "z"}], []),
        ([], []),
        (None, []),
        (A, ["a"]),
        (ROW, ["b"]),
        ({"code": "success", "message": "", "data": [ROW]}, ["b"]),
        ({"code": "success", "message": "", "data": ROW}, ["b"]),
        ({"code": "success", "message": "", "data": None}, []),
        ({"code": "success", "message": "", "data": []}, []),
        ({"code": "success", "message": ""}, []),
        ({"code": "", "data": [A]}, ["a"]),
        ({"code": 0, "data": [A]}, ["a"]),
        ({"code": 200, "message": "ok", "data": [A]}, ["a"]),
        ({"code": None, "data": [A]}, ["a"]),
        ({"data": [A]}, ["a"]),
        ({"data": A}, ["a"]),
        ({"success": True, "data": [A], "error": None}, ["a"]),
        ({"data": [A], "error": {"code": "", "message": ""}}, ["a"]),
    ],
)
def test_every_documented_shape_is_read(query, body, ids):
    assert list(query(200, body)) == ids


@pytest.mark.parametrize(
    "task",
    [
        {"id": "a", "state": "failed", "error": "moderation"},
        {"id": "a", "state": "failed", "code": "moderated", "failure_reason": "moderation"},
        {"id": "a", "state": "failed", "success": False, "failure_reason": "moderation"},
        {"task_id": "a", "status": "FAILURE", "error": {"message": "moderation"}, "data": None},
        {"id": "a", "state": "completed", "data": []},
        {"id": "a", "state": "completed", "data": None, "code": "success"},
        {"id": "a", "state": "processing", "error": "a detail"},
    ],
)
def test_a_task_without_a_list_is_read_as_in_one(query, task):
    (alone,), (listed,) = query(200, task).values(), query(200, [task]).values()
    assert (alone.id, alone.state, alone.failure_reason) == ("a", listed.state, listed.failure_reason)


@pytest.mark.parametrize(
    "envelope",
    [
        {"id": "request-1", "status": "error", "error": "no"},
        {"id": "request-1", "state": None, "error": "no"},
        {"id": 5, "state": "failed", "error": "no"},
        {"id": "request-1", "state": "failed", "error": "no", "data": [A]},
    ],
)
def test_an_error_with_an_id_of_its_own_is_no_task(error_of, envelope):
    assert isinstance(error_of(200, envelope), RelayTransientError)


def test_an_envelope_with_an_id_and_a_state_of_its_own_is_read(query):
    assert list(query(200, {"id": "request-1", "state": "success", "data": [A]})) == ["a"]


def test_the_documented_example_is_read_over_http(sandbox, client):
    task_id = json.loads(SEED)[0]["id"]
    sandbox.script(ScriptedResponse(body=SEED), ScriptedResponse(body=f"\ufeff{SEED}"))
    for _ in range(2):
        assert client.query_once([task_id])[task_id].prompt == "cat dance"


def test_any_success_status_is_accepted(query):
    assert list(query(201, [A])) == ["a"]


def test_json_is_parsed_whatever_its_content_type(query):
    for content_type in (None, "text/plain", "application/octet-stream", "text/html; charset=UTF-8"):
        assert list(query(200, [A], content_type=content_type)) == ["a"]


def test_compressed_responses_are_parsed(query):
    zipped = gzip.compress(json.dumps([A]).encode())
    assert query(200, zipped, {"Content-Encoding": "gzip"})["a"].state is TaskState.COMPLETED


@pytest.mark.parametrize("status", [200, 400, 404])
@pytest.mark.parametrize(
    "body",
    [
        {"code": "task_not_exist", "message": "task_not_exist", "data": None},
        {"error": {"message": "task_not_exist", "code": "task_not_exist"}},
    ],
)
def test_one_task_that_does_not_exist_is_absent_and_several_may_not_all_be(
    sandbox, client, error_of, status, body
):
    sandbox.script(ScriptedResponse(status, body))
    assert client.query_once(["a"]) == {}
    assert type(error_of(status, body)) is RelayTaskNotFoundError


STATUSES = [
    (400, RelayInvalidRequestError, "Correct the field that the message names"),
    (401, RelayAuthenticationError, "Check the API key"),
    (402, RelayInsufficientBalanceError, "Top up the account behind the API key"),
    (403, RelayPermissionError, "Check the permissions of the API key and of its account"),
    (404, RelayInvalidRequestError, "Correct the field that the message names"),
    (408, RelayTransientError, "Try again later"),
    (409, RelayInvalidRequestError, "Correct the field that the message names"),
    (413, RelayInvalidRequestError, "Correct the field that the message names"),
    (422, RelayInvalidRequestError, "Correct the field that the message names"),
    (425, RelayTransientError, "Try again later"),
    (429, RelayRateLimitError, "Lower max_requests_per_minute or max_parallel"),
    (500, RelayTransientError, "Try again later"),
    (502, RelayTransientError, "Try again later"),
    (503, RelayTransientError, "Try again later"),
    (504, RelayTransientError, "Try again later"),
    (524, RelayTransientError, "Try again later"),
]


@pytest.mark.parametrize(("status", "kind", "hint"), STATUSES)
@pytest.mark.parametrize("body", ["", "null", "not json", '"text"', "[]", "{}", "{"])
def test_each_status_maps_to_its_error_whatever_the_body(error_of, status, kind, hint, body):
    if status == 404 and body != "{}":
        kind, hint = RelayTransientError, "Try again later"
    error = error_of(status, body)
    assert (type(error), error.status) == (kind, status)
    assert str(status) in str(error)
    assert hint in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_permanent_error(error_of, status):
    error = error_of(status, HTML, {"Location": "https://other.example/luma/tasks"})
    assert (type(error), error.status) == (RelayInvalidRequestError, status)
    hint = "It redirects to https://other.example/luma/tasks. Use the relay's own URL instead"
    assert str(error).endswith(hint)


def test_the_query_of_a_redirect_is_redacted(error_of):
    error = error_of(302, "", {"Location": "https://login.example/?token=hush"})
    assert "It redirects to https://login.example/. " in str(error)
    assert "hush" not in str(error)


def test_a_redirect_without_a_location_is_permanent_too(error_of):
    assert type(error_of(301)) is RelayInvalidRequestError


@pytest.mark.parametrize(
    "location", ["http://[bad", "http://relay:port", "\xff\xfe", "//", "?", "\x80" * 9, "a" * 30_000]
)
def test_a_redirect_to_a_malformed_url_is_a_permanent_error(error_of, location):
    error = error_of(302, "", {"Location": location})
    assert (type(error), error.status) == (RelayInvalidRequestError, 302)
    assert "It redirects to" in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize("body", ["404 page not found", "", "[]", "null", '"gone"', HTML])
def test_a_404_of_a_gateway_is_transient_and_a_404_of_the_relay_is_permanent(error_of, body):
    assert type(error_of(404, body)) is RelayTransientError
    assert type(error_of(404, {"message": "404 page not found"})) is RelayInvalidRequestError


ENVELOPES = [
    {"error": {"message": "no channel", "type": "new_api_error", "param": "", "code": ""}},
    {"error": {"message": "no channel", "code": "model_not_found"}},
    {"error": "no channel"},
    {"code": "fail_to_fetch_task", "message": "no channel", "data": None},
    {"detail": "no channel"},
    {"detail": {"reason": "no channel", "code": 1}},
    {"success": False, "message": "no channel"},
]


@pytest.mark.parametrize(("status", "kind", "hint"), STATUSES)
@pytest.mark.parametrize("body", ENVELOPES, ids=json.dumps)
def test_the_relays_message_is_read_from_every_envelope(sandbox, error_of, status, kind, hint, body):
    error = error_of(status, body)
    assert type(error) is kind
    assert f"The relay at {sandbox.base_url} responded {status}: no channel. {hint}" == str(error)


@pytest.mark.parametrize(
    "body", [body for body in ENVELOPES if body != {"detail": "no channel"}], ids=json.dumps
)
def test_an_error_with_status_200_is_still_an_error(error_of, body):
    error = error_of(200, body)
    assert (type(error), error.status) == (RelayTransientError, 200)
    assert "responded 200 with the error 'no channel'" in str(error)


@pytest.mark.parametrize("body", [{"code": "too_many", "data": [A]}, {"code": 5, "data": None}])
def test_an_error_code_is_reported_without_a_message(error_of, body):
    assert f"with the error '{body['code']}'" in str(error_of(200, body))


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "[",
        '[{"id": "a"',
        "nonsense",
        '"a"',
        "5",
        "true",
        "{}",
        '{"data": "a"}',
        '{"data": {}}',
        '{"data": {"tasks": []}}',
        '{"message": "hello"}',
        '{"items": [], "count": 0}',
        b"\xff\xfe\x00",
        "[" * 10_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_list_of_tasks_is_a_transient_error(error_of, body):
    error = error_of(200, body)
    assert (type(error), error.status) == (RelayTransientError, 200)
    assert "something other than the JSON of a list of tasks" in str(error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, RelayTransientError), (404, RelayTransientError), (403, RelayPermissionError)],
)
@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", None])
def test_a_web_page_hints_at_the_host(sandbox, error_of, status, kind, content_type):
    error = error_of(status, f"\n {HTML}", content_type=content_type)
    assert type(error) is kind
    assert f"The relay at {sandbox.base_url} responded {status}" in str(error)
    assert "a web page" in str(error)
    assert str(error).endswith("Is this host a Luma relay?")
    assert "Dashboard" not in str(error)


def test_a_web_page_with_an_error_status_is_a_transient_error(error_of):
    error = error_of(502, HTML, content_type="text/html")
    assert type(error) is RelayTransientError
    assert str(error).endswith("responded 502: a web page. Try again later")


def test_a_truncated_response_is_a_transient_error(error_of):
    error = error_of(200, [A] * 50, truncated=True)
    assert (type(error), error.status) == (RelayTransientError, None)
    assert "No response from the relay" in str(error)


def test_a_damaged_compressed_response_is_a_transient_error(error_of):
    assert type(error_of(200, "[]", {"Content-Encoding": "gzip"})) is RelayTransientError


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5),
        ("0", 0),
        ("1.5", 1.5),
        ("-5", 0),
        ("Sun, 22 Dec 2024 13:39:10 GMT", 30),
        ("Sun, 22 Dec 2024 13:38:00 GMT", 0),
        ("Sun, 22 Dec 99999 13:38:00 GMT", None),
        ("Sun, 22 Dec 9999999999999999999 13:38:00 GMT", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("2024-12-22T13:39:10Z", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_read_in_seconds_and_as_a_date(error_of, status, header, seconds):
    with time_machine.travel(datetime(2024, 12, 22, 13, 38, 40, tzinfo=UTC), tick=False):
        assert error_of(status, "", {"Retry-After": header}).retry_after == seconds


def test_a_429_without_retry_after_has_none(error_of):
    error = error_of(429, content_type=None)
    assert (type(error), error.retry_after) == (RelayRateLimitError, None)
    assert str(error).endswith("responded 429. Lower max_requests_per_minute or max_parallel")


@pytest.mark.parametrize(
    ("status", "body", "headers", "request_id"),
    [
        (500, "", {"X-Oneapi-Request-Id": "2024-a"}, "2024-a"),
        (401, "", {"X-Request-Id": "2024-b"}, "2024-b"),
        (401, {"error": {"message": "no (request id: 20241222a_B.1)"}}, {}, "20241222a_B.1"),
        (401, {"error": {"message": "no (request id: text)"}}, {"X-Request-Id": "header"}, "header"),
        (403, "Request ID:20241222", {}, "20241222"),
        (200, HTML, {"X-Request-Id": "2024-c"}, "2024-c"),
        (200, {"code": "x"}, {"X-Request-Id": "2024-d"}, "2024-d"),
        (500, {"error": {"message": "no request id"}}, {}, None),
        (500, "", {}, None),
    ],
)
def test_the_request_id_is_found_in_header_or_text(error_of, status, body, headers, request_id):
    assert error_of(status, body, headers).request_id == request_id


@pytest.mark.parametrize(
    "body", ["x" * 100_000, {"error": {"message": "x" * 100_000}}, {"detail": "x" * 100_000}]
)
def test_a_long_message_is_truncated(error_of, body):
    assert 300 < len(str(error_of(500, body))) < 420


HOSTILE = "\\ud83d two\\u0000 words\\r\\n2024-12-22 ERROR forged \\u202e\\u001b[31m"


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
@pytest.mark.parametrize(
    "body",
    [
        f'{{"error": {{"message": "{HOSTILE}"}}}}',
        f'{{"error": {{"message": "{HOSTILE}{"x" * 3_000_000}"}}}}',
        f'{{"code": "{HOSTILE}", "message": "{HOSTILE}"}}',
        f'{{"detail": "{HOSTILE}", "error": "{HOSTILE}"}}',
    ],
    ids=["short", "3 MB", "code", "detail"],
)
def test_the_relays_message_is_one_short_line_that_any_encoder_accepts(error_of, status, body):
    error = error_of(status, body, {"X-Request-Id": "2024 a\x85"})
    for text in (str(error), error.request_id):
        text.encode()
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", text)
        assert len(text) < 500
    assert "two words 2024-12-22 ERROR forged [31m" in str(error)


@pytest.mark.parametrize(
    "body", ["\x00\ud83d two\r\nwords".encode(errors="surrogatepass"), b"\xff\xfe" * 9999]
)
def test_a_message_that_is_no_json_is_sanitized_too(error_of, body):
    text = str(error_of(500, body, content_type="text/plain"))
    text.encode()
    assert text.isprintable()
    assert len(text) < 500


def test_plain_text_is_reported_as_it_is(error_of):
    assert '{"remark":"余额不足"}' in str(error_of(400, {"remark": "余额不足"}))
    assert "responded 400: Bad things. " in str(error_of(400, "Bad things\n", content_type="text/plain"))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            {"code": "rate_limit_exceeded", "message": "Request quota of 60 per minute reached"},
            RelayRateLimitError,
        ),
        ({"message": "You exceeded the quota of 60 requests per minute"}, RelayRateLimitError),
        ({"message": "You have exceeded your quota of 3 concurrent generations"}, RelayRateLimitError),
        ({"code": "rate_limit", "message": "quota is not enough for more requests"}, RelayRateLimitError),
        (
            {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}},
            RelayInsufficientBalanceError,
        ),
    ],
)
def test_a_rate_limit_that_speaks_of_a_quota_is_no_empty_account(error_of, body, kind):
    assert type(error_of(429, body)) is kind


@pytest.mark.parametrize("status", [400, 403, 429])
@pytest.mark.parametrize(
    "message",
    [
        "user quota is not enough",
        "token quota is not enough, token remain quota: 0",
        "The balance is not enough",
        "not enough quota",
        "Not enough balance for this model",
        "用户额度不足",
        "帳戶餘額不足",
    ],
)
def test_an_empty_account_is_known_by_its_message(error_of, status, message):
    error = error_of(status, {"code": "fail", "message": message})
    assert type(error) is RelayInsufficientBalanceError
    assert str(error).endswith("Top up the account behind the API key")
