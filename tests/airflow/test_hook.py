from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaValueError, RelayPermissionError
from airflow_provider_luma.hooks.luma import LumaHook, RelaySettings
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse

Define = Callable[..., LumaHook]


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Define:
    """Define ``luma_default`` as JSON or a URI, and hook into it."""

    def define(connection: str | None = None, **fields: Any) -> LumaHook:
        value = connection or json.dumps({"conn_type": "luma", "password": "sk-1"} | fields)
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", value)
        return LumaHook()

    return define


def test_a_connection_needs_only_a_key(define: Define) -> None:
    assert define().settings == RelaySettings("sk-1", "https://api.quickrouter.ai")


def test_every_extra_field_is_read(define: Define) -> None:
    settings = define(
        host="http://relay.example.com/luma-proxy/",
        port=8080,
        extra={
            "timeout": 12.5,
            "batch_size": 50,
            "max_in_flight": 8,
            "max_requests_per_minute": "30",
            "verify": False,
            "proxies": {"https": "http://proxy:3128"},
            "allowed_download_hosts": ["cdn.internal"],
        },
    ).settings
    assert settings == RelaySettings(
        "sk-1",
        "http://relay.example.com:8080/luma-proxy",
        timeout=12.5,
        batch_size=50,
        max_in_flight=8,
        max_requests_per_minute=30,
        verify=False,
        proxies=(("https", "http://proxy:3128"),),
        allowed_download_hosts=("cdn.internal",),
    )


def test_a_uri_means_the_same_as_json(define: Define) -> None:
    uri = (
        "luma://:sk-1@relay.example.com:8443/?timeout=12.5&batch_size=50&verify=false"
        "&allowed_download_hosts=cdn.internal%2C+CDN2.internal"
    )
    assert define(uri).settings == RelaySettings(
        "sk-1",
        "https://relay.example.com:8443",
        timeout=12.5,
        batch_size=50,
        verify=False,
        allowed_download_hosts=("cdn.internal", "cdn2.internal"),
    )


def test_empty_form_fields_mean_the_defaults(define: Define) -> None:
    extra = {"timeout": None, "batch_size": None, "proxies": None, "allowed_download_hosts": ""}
    assert define(extra=extra).settings == RelaySettings("sk-1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout", "soon"),
        ("timeout", 0),
        ("timeout", "inf"),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("proxies", "http://user:secret@proxy"),
        ("proxies", [1]),
        ("proxies", {"https": "http://127.0.0.1;x/"}),
        ("proxies", {"https": "http://user:secret@a b:1"}),
        ("proxies", {"https": "http://proxy:secret"}),
        ("allowed_download_hosts", 7),
    ],
)
def test_an_unusable_extra_field_is_named(define: Define, field: str, value: Any) -> None:
    with pytest.raises(LumaValueError, match=rf"luma_default.*'{field}'") as error:
        _ = define(extra={field: value}).settings
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "http://[broken"},
        {"host": "http://user:secret@relay"},
        {"password": "sk 1"},
        {"extra": {"verify": "/no/such/bundle.pem"}},
    ],
)
def test_an_unusable_field_names_the_connection(define: Define, fields: dict[str, Any]) -> None:
    with pytest.raises(LumaValueError, match=r"The connection 'luma_default'") as error:
        _ = define(**fields).client
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("fields", [{"password": None}, {"password": ""}])
def test_a_connection_without_a_key_says_where_the_key_goes(define: Define, fields: dict[str, Any]) -> None:
    with pytest.raises(LumaValueError, match=r"luma_default.*no password"):
        _ = define(**fields).client


def test_unknown_extra_fields_are_named_and_sent_nowhere(
    sandbox: Sandbox, connect: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    connect(sandbox, webhook_target="elsewhere", rpm=54321)
    LumaHook().get_tasks([sandbox.add_task()])
    logged = capsys.readouterr().out
    assert "rpm, webhook_target" in logged
    assert "elsewhere" not in logged
    assert "54321" not in str(sandbox.requests[0])
    assert "elsewhere" not in str(sandbox.requests[0])


def test_download_hosts_that_can_never_match_are_named(
    define: Define, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ["cdn.internal", "10.0.0.5", "[::1]", "fd00::1", "under_score"]
    bad = ["*.internal", "https://cdn", "cdn:8443", "10.0.0.0/8", "münchen.example"]
    assert define(extra={"allowed_download_hosts": good}).settings
    assert "no host matches" not in capsys.readouterr().out
    assert define(extra={"allowed_download_hosts": [*good, *bad]}).settings
    logged = capsys.readouterr().out
    assert ", ".join(bad) in logged
    assert "under_score" not in logged


def test_tasks_come_in_the_order_of_the_ids(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(5)]
    assert [task.id for task in LumaHook().get_tasks([*ids, "unknown", ids[0]])] == ids


def test_the_connection_test_succeeds(sandbox: Sandbox) -> None:
    assert LumaHook().test_connection() == (
        True,
        f"The relay at {sandbox.base_url} accepts the API key. Its balance: unlimited.",
    )


@pytest.mark.parametrize(
    "response",
    [
        ScriptedResponse(
            status=400, body={"code": "task_not_exist", "message": "task_not_exist", "data": None}
        ),
        ScriptedResponse(body={"code": "success", "message": "", "data": None}),
        ScriptedResponse(body="null"),
    ],
    ids=["task_not_exist", "no_rows", "null"],
)
def test_an_unknown_probe_id_is_a_success(sandbox: Sandbox, response: ScriptedResponse) -> None:
    sandbox.script(response)
    assert LumaHook().test_connection()[0]


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (
            ScriptedResponse(status=401, body={"error": {"message": "Invalid token"}}),
            "Invalid token. Check the API key",
        ),
        (ScriptedResponse(body="<html>", content_type="text/html"), "Is this host a Luma relay?"),
        (ScriptedResponse(status=404, body="<html>", content_type="text/html"), "Is this host a Luma relay?"),
        (ScriptedResponse(status=403, body={"message": "no balance"}), "no balance. Check the permissions"),
    ],
    ids=["key", "dashboard", "404", "rights"],
)
def test_the_connection_test_says_what_to_fix(
    sandbox: Sandbox, response: ScriptedResponse, sentence: str
) -> None:
    sandbox.script(response)
    good, message = LumaHook().test_connection()
    assert not good
    assert sentence in message
    assert sandbox.base_url in message


@pytest.mark.parametrize(
    ("models", "is_good", "sentences"),
    [
        (
            ["luma_video_api"],
            False,
            [
                "Allow the model luma_video_fetch_tasks",
                "may submit, but not query tasks (luma_video_fetch_tasks)",
            ],
        ),
        (["luma_video_fetch_tasks"], True, ["may query tasks, but not submit (luma_video_api)"]),
        (["luma_video_api", "luma_video_fetch_tasks"], True, ["accepts the API key."]),
        (["gpt-image-1"], False, ["Allow the model luma_video_fetch_tasks"]),
    ],
)
def test_the_connection_test_lists_the_models_that_a_key_is_limited_to(
    connect: Callable[..., None], models: list[str], is_good: bool, sentences: list[str]
) -> None:
    with Sandbox(tasks=0, models=models) as sandbox:
        connect(sandbox)
        good, message = LumaHook().test_connection()
    assert good is is_good
    for sentence in sentences:
        assert sentence in message


def test_a_submit_with_a_key_limited_to_models_names_the_missing_model(connect: Callable[..., None]) -> None:
    with Sandbox(tasks=0, models=["luma_video_fetch_tasks"]) as sandbox:
        connect(sandbox)
        with pytest.raises(RelayPermissionError, match="Allow the model luma_video_api for this API key"):
            LumaHook().client.submit(Generation("cat dance"))
        assert sandbox.submits == []


def test_the_connection_test_names_a_host_that_cannot_be_reached(define: Define) -> None:
    good, message = define(host="http://127.0.0.1:9").test_connection()
    assert not good
    assert "http://127.0.0.1:9" in message
    assert "refused" in message


def test_the_connection_test_sends_one_query(define: Define, sandbox: Sandbox) -> None:
    sandbox.script(*[ScriptedResponse(status=503)] * 3)
    assert not LumaHook().test_connection()[0]
    assert len(sandbox.requests) == 1


def test_the_key_is_in_no_repr(define: Define) -> None:
    hook = define(extra={"proxies": {"https": "http://u:hush@proxy"}})
    assert "sk-1" not in f"{hook!r} {hook.settings!r} {hook.client!r} {vars(hook)!r}"
    assert "hush" not in f"{hook!r} {hook.settings!r} {hook.client!r} {vars(hook)!r}"


@pytest.mark.parametrize(
    ("connection", "problem"),
    [
        ({"extra": "[1]"}, "extra"),
        ({"extra": '"text"'}, "extra"),
        ({"extra": {"timeout": 10**400}}, "'timeout'"),
        ({"extra": {"max_requests_per_minute": 10**400}}, "'max_requests_per_minute'"),
        ({"extra": {"proxies": "[" * 100_000}}, "'proxies'"),
        ({"host": "http://a..b"}, "not the address of a Luma relay"),
        ({"host": f"http://{'a' * 300}.example"}, "not the address of a Luma relay"),
    ],
)
def test_a_connection_that_cannot_be_used_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any], problem: str
) -> None:
    given = {"conn_type": "luma", "host": "http://127.0.0.1:9", "password": "sk-0123456789", **connection}
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(given))
    with pytest.raises(LumaValueError, match=problem):
        LumaHook().client  # noqa: B018


def test_the_relays_own_get_task_page_a_task(define: Define) -> None:
    assert define().settings.get_task_page("1") is None
    settings = define(extra={"task_page": "https://relay.example.com/tasks/{id}?tab=log"}).settings
    assert settings.get_task_page("a/b c") == "https://relay.example.com/tasks/a%2Fb%20c?tab=log"


@pytest.mark.parametrize(
    "page", ["javascript:alert('{id}')", "https://relay.example.com/tasks", "/tasks/{id}"]
)
def test_a_page_that_is_none_is_rejected(define: Define, page: str) -> None:
    with pytest.raises(LumaValueError, match="'task_page': must be an http"):
        _ = define(extra={"task_page": page}).settings
