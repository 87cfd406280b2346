"""The API key goes to the relay and nowhere else."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_luma.exceptions import LumaValueError, RelayError
from airflow_provider_luma.relay import RelayClient, RetryPolicy
from airflow_provider_luma.relay.validation import parse_base_url
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse

KEY = "sk-Zq3v8LkT0pW5xY7bN2mC4dF6gH9jR1sA"
BODIES = [
    {"error": {"message": f"Incorrect API key provided: {KEY} (request id: 1)"}},
    {"code": KEY, "message": "", "data": None},
    {"detail": {"reason": f"token {KEY}"}},
    {"success": False, "message": f"Bearer {KEY}"},
    {"unknown": f"key={KEY}"},
    f"no such key: {KEY}",
]


def text_of(error):
    """Give all that an error and those behind it say."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), *map(str, error.args), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def http_response(body, status=200):
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def error_of(client):
    with pytest.raises(RelayError) as caught:
        client.get_tasks(["a"])
    return caught.value


@pytest.mark.parametrize("body", BODIES, ids=str)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 429, 500])
def test_a_key_that_the_relay_echoes_is_in_no_message_and_no_log(sandbox, make_client, caplog, status, body):
    caplog.set_level(logging.DEBUG)
    sandbox.script(*[ScriptedResponse(status, body)] * 2, ScriptedResponse(401, body))
    error = error_of(make_client(KEY, retry=RetryPolicy(max_attempts=2, initial_delay=0.001)))
    assert "***" in str(error) or status == 200
    assert KEY not in text_of(error)
    assert KEY not in caplog.text


ESCAPED = "".join(f"\\u{ord(char):04X}" for char in KEY)
PARTLY_ESCAPED = KEY[:5] + "".join(f"\\u{ord(char):04x}" for char in KEY[5:])


@pytest.mark.parametrize(
    "echo",
    [
        KEY.encode(),
        ESCAPED.encode(),
        PARTLY_ESCAPED.encode(),
    ],
    ids=["plain", "escaped", "partly escaped"],
)
def test_a_key_in_a_task_is_redacted_however_json_escapes_it(make_client, listen, echo):
    body = b'{"id": "a", "state": "failed", "failure_reason": "no key ' + echo + b'"}'
    url, _ = listen(http_response(body))
    (found,) = make_client(KEY, base_url=url).get_tasks(["a"]).values()
    assert "no key ***" in str(found.failure_reason)
    assert KEY not in repr(found) + str(found.raw)


@pytest.mark.parametrize("padding", [0, 100_000, 262_144 - 20, 262_144 - 1, 262_144, 600_000])
def test_a_key_is_redacted_wherever_it_is_in_a_long_response(make_client, listen, padding):
    echo = "x" * padding + f"{KEY} {PARTLY_ESCAPED} {ESCAPED}" + "x" * padding + ESCAPED
    url, _ = listen(http_response(f'[{{"id": "a", "state": "failed", "extra": "{echo}"}}]'.encode()))
    (found,) = make_client(KEY, base_url=url).get_tasks(["a"]).values()
    assert found.raw["extra"] == "x" * padding + "*** *** ***" + "x" * padding + "***"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_key_in_another_encoding_is_in_no_error(make_client, listen, encoding, status):
    body = f'{{"error": {{"message": "no key {KEY}"}}}}'.encode(encoding)
    url, _ = listen(http_response(body, status))
    error = error_of(make_client(KEY, base_url=url))
    assert KEY[:8] not in text_of(error).replace(" ", "")


@pytest.mark.parametrize("left", range(8, len(KEY) + 1))
def test_no_part_of_a_key_is_left_where_a_long_message_is_truncated(sandbox, make_client, left):
    sandbox.script(ScriptedResponse(401, {"error": {"message": "x" * (299 - left) + " " + KEY}}))
    assert KEY[:8] not in text_of(error_of(make_client(KEY)))


def test_a_key_is_in_no_repr_and_in_no_log_of_a_success(sandbox, make_client, caplog):
    caplog.set_level(logging.DEBUG)
    client = make_client()
    client.get_tasks(sandbox.task_ids)
    assert repr(client) == f"RelayClient('{sandbox.base_url}')"
    assert "POST /luma/tasks" in caplog.text
    assert sandbox.api_key not in caplog.text


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:9", "http://relay.invalid"])
def test_a_key_is_in_no_error_of_an_unreachable_relay(make_client, base_url):
    assert KEY not in text_of(error_of(make_client(KEY, base_url)))


def test_a_key_is_in_no_error_of_a_truncated_or_slow_response(sandbox, make_client):
    sandbox.script(ScriptedResponse(body=[{}] * 50, truncated=True), ScriptedResponse(delay=2))
    for _ in range(2):
        assert KEY not in text_of(error_of(make_client(KEY, timeout=0.1)))


@pytest.mark.parametrize(
    "spelled", [KEY, f" {KEY} ", f"{KEY}\n", f"\r\n{KEY}\t", f"Bearer {KEY}", f" Bearer  {KEY}\n"]
)
def test_a_key_is_stripped_of_pasted_whitespace(sandbox, make_client, spelled):
    sandbox.api_key = KEY
    make_client(spelled).get_tasks(sandbox.task_ids)
    assert sandbox.requests[-1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("spelled", ["", "  ", "\n", "Bearer ", " Bearer \n"])
def test_a_client_needs_a_key(spelled):
    with pytest.raises(LumaValueError, match="key of the Luma relay is empty"):
        RelayClient(spelled)


@pytest.mark.parametrize(
    "spelled", [f"{KEY} x", f"{KEY}\nX-Evil: 1", f"bearer {KEY}", f"{KEY}é", f"{KEY}\x00", f"{KEY}\u200b"]
)
def test_an_invalid_key_is_rejected_without_repeating_it(spelled):
    with pytest.raises(LumaValueError, match="has spaces or characters that no key has") as caught:
        RelayClient(spelled)
    assert KEY not in text_of(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        f"https://{KEY}@relay.example",
        f"https://user:{KEY}@relay.example",
        f"https://user:{KEY}@relay.example?x=1",
        f"ftp://user:{KEY}@relay.example",
        f"https://relay.example/?key={KEY}",
        f"https://relay.example/#{KEY}",
    ],
)
def test_a_key_in_the_host_is_rejected_without_repeating_it(host):
    with pytest.raises(LumaValueError) as caught:
        parse_base_url(host)
    assert KEY not in text_of(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_does_not_forward_the_key(sandbox, client, status):
    with Sandbox() as other:
        sandbox.script(ScriptedResponse(status, headers={"Location": f"{other.base_url}/luma/tasks"}))
        error_of(client)
        assert (len(sandbox.requests), other.requests) == (1, [])


def test_a_redirect_within_the_relay_is_not_followed_either(sandbox, client):
    sandbox.script(ScriptedResponse(307, headers={"Location": "/luma/tasks"}))
    error_of(client)
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("variable", ["HOME", "NETRC"])
def test_a_netrc_does_not_replace_the_key(sandbox, client, tmp_path, monkeypatch, variable):
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv(variable, str(tmp_path if variable == "HOME" else netrc))
    assert client.get_tasks(sandbox.task_ids)
    assert sandbox.requests[-1].headers["authorization"] == f"Bearer {sandbox.api_key}"
