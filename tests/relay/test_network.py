from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
import requests

from airflow_provider_luma.exceptions import LumaValueError, RelayError, RelayTransientError
from airflow_provider_luma.relay import RelayClient, RetryPolicy
from airflow_provider_luma.relay.network import secrets_in_proxies
from airflow_provider_luma.relay.validation import parse_base_url
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse

FAR = "http://relay.invalid"

MakeClient = Callable[..., RelayClient]
Listen = Callable[..., tuple[str, Future[bytes]]]


@pytest.fixture
def other():
    with Sandbox(tasks=0) as other:
        yield other


def assert_no_secret(message: str, password: str) -> None:
    """No piece of the password is in an error, however it was written or torn."""
    pieces = {password, *re.split(r"[/?#@:]|%..", password)}
    assert [piece for piece in pieces if len(piece) > 2 and piece.lower() in message.lower()] == []


def error_of(client):
    with pytest.raises(RelayTransientError) as caught:
        client.get_tasks(["a"])
    return str(caught.value)


@pytest.mark.parametrize(
    ("host", "port", "base_url"),
    [
        ("relay.example", None, "https://relay.example"),
        ("relay.example", 8443, "https://relay.example:8443"),
        ("relay.example:8443", None, "https://relay.example:8443"),
        ("relay.example:8443", 80, "https://relay.example:8443"),
        ("https://relay.example", 8443, "https://relay.example:8443"),
        ("http://relay.example", None, "http://relay.example"),
        ("HTTPS://relay.example/", None, "https://relay.example"),
        (" https://relay.example// \n", None, "https://relay.example"),
        ("https://relay.example/gateway/v1/", 80, "https://relay.example:80/gateway/v1"),
        ("relay.example/gateway", None, "https://relay.example/gateway"),
        ("127.0.0.1:8000", None, "https://127.0.0.1:8000"),
        ("localhost", 8000, "https://localhost:8000"),
        ("[::1]", 8000, "https://[::1]:8000"),
    ],
)
def test_a_host_is_accepted_in_every_common_form(host, port, base_url):
    assert parse_base_url(host, port) == base_url


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "://",
        "http://",
        "ftp://relay.example",
        "file:///etc/passwd",
        "::1",
        "[::1",
        "//relay.example",
        "relay.example:port",
        "relay.example:99999",
        "https://relay.example?x=1",
        "https://relay.example#top",
    ],
)
def test_an_invalid_host_is_rejected_with_an_example(host):
    with pytest.raises(LumaValueError, match="is not the address of a Luma relay, like https://"):
        parse_base_url(host)


def test_a_host_with_credentials_is_rejected():
    with pytest.raises(LumaValueError, match="the key is the password"):
        parse_base_url("https://user:word@relay.example")


def test_the_path_of_the_base_url_is_kept(sandbox, make_client):
    base_url = f"{sandbox.base_url}/gateway/v1"
    assert f"The relay at {base_url} responded 200" in error_of(make_client(base_url=f"{base_url}/"))
    assert sandbox.requests[-1].path == "/gateway/v1/luma/tasks"


def test_an_unreachable_relay_is_named(make_client):
    message = error_of(make_client(base_url="http://127.0.0.1:9"))
    assert message.startswith("No response from the relay at http://127.0.0.1:9: ")
    assert "Connection refused" in message
    assert "object at 0x" not in message


def test_a_host_that_cannot_be_resolved_is_a_transient_error_that_names_it(make_client):
    assert "relay at http://relay example: " in error_of(make_client(base_url="http://relay example"))


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "relay..example"])
def test_a_host_that_can_have_no_address_is_invalid(make_client, host):
    with pytest.raises(LumaValueError, match=f"'http://{host}' is not the address of a Luma relay"):
        make_client(base_url=f"http://{host}")


def test_a_slow_response_times_out(sandbox, make_client):
    sandbox.script(ScriptedResponse(delay=5))
    started = time.monotonic()
    assert error_of(make_client(timeout=0.1)).endswith(f"{sandbox.base_url}: timed out (ReadTimeout)")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "response", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]"]
)
def test_a_truncated_or_malformed_response_is_a_transient_error(make_client, listen, response):
    base_url, _ = listen(response)
    assert f"No response from the relay at {base_url}: " in error_of(make_client(base_url=base_url))


def test_https_to_a_plain_port_is_a_transient_error(sandbox, make_client):
    base_url = sandbox.base_url.replace("http:", "https:")
    assert f"No response from the relay at {base_url}: SSL" in error_of(make_client(base_url=base_url))


def test_a_relay_that_recovers_is_reached_again(make_client):
    with Sandbox(tasks=1) as first:
        client = make_client(base_url=first.base_url, retry=RetryPolicy(max_attempts=9, initial_delay=0.01))
        client.get_tasks(first.task_ids)
    port = int(first.base_url.rpartition(":")[2])
    with Sandbox(tasks=1, relay_port=port) as second:
        assert list(client.get_tasks(second.task_ids)) == second.task_ids


def test_given_proxies_are_used(other, make_client):
    error_of(make_client("sk-a", FAR, proxies={"http": other.base_url}))
    assert other.requests[-1].path == f"{FAR}/luma/tasks"
    assert other.requests[-1].headers["authorization"] == "Bearer sk-a"


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_the_proxies_of_the_environment_are_used(other, make_client, monkeypatch, variable):
    monkeypatch.setenv(variable, other.base_url)
    error_of(make_client("sk-a", FAR))
    assert len(other.requests) == 1


def test_given_proxies_come_before_those_of_the_environment(sandbox, other, make_client, monkeypatch):
    monkeypatch.setenv("http_proxy", sandbox.base_url)
    error_of(make_client("sk-a", FAR, proxies={"http": other.base_url}))
    assert (len(sandbox.requests), len(other.requests)) == (0, 1)


def test_the_environment_may_exempt_the_relay(sandbox, other, client, monkeypatch):
    monkeypatch.setenv("http_proxy", other.base_url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert client.get_tasks(sandbox.task_ids)
    assert other.requests == []


PASSWORDS = [
    "hushhush",
    "hush%23hush",
    "hush%2Fhush",
    "hush%3Fhush",
    "hush%40hush",
    "12345:hush",
]
MALFORMED = [
    "hush@hush",
    "hush[hush]",
    "hush\\hush",
    "hush#hush",
    "hush/hush",
    "hush?hush",
    "12345#hush",
    "12345/hush",
    "12345?hush",
    "a/b@hush#c",
]
SCHEMES = ["http://", "https://", ""]


def test_the_credentials_that_a_proxy_echoes_are_in_no_error(make_client: MakeClient, listen: Listen) -> None:
    basic = base64.b64encode(b"user:s3cret-word").decode()
    body = f'{{"message": "no Proxy-Authorization: Basic {basic}"}}'.encode()
    head = f"HTTP/1.1 407 No\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    proxy, _ = listen(head.encode() + body)
    proxies = {"http": proxy.replace("//", "//user:s3cret-word@")}
    with pytest.raises(RelayError) as error:
        make_client("sk-a", "http://relay.example", proxies=proxies).get_tasks(["a"])
    message = str(error.value)
    assert "Proxy-Authorization: Basic ***" in message


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("password", PASSWORDS)
def test_the_password_of_a_given_proxy_is_in_no_error(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, scheme: str, password: str
) -> None:
    caplog.set_level(logging.DEBUG)
    proxies = {"http": f"{scheme}user:{password}@127.0.0.1:9"}
    assert_no_secret(error_of(make_client("sk-a", FAR, proxies=proxies)) + caplog.text, password)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("password", MALFORMED)
def test_a_proxy_with_an_unencoded_password_is_rejected_without_repeating_it(
    scheme: str, password: str
) -> None:
    with pytest.raises(LumaValueError, match="Percent-encode special characters of the password") as caught:
        RelayClient("sk-a", proxies={"http": f"{scheme}user:{password}@127.0.0.1:9"})
    assert_no_secret(str(caught.value), password)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("password", PASSWORDS)
def test_the_password_of_a_proxy_of_the_environment_is_in_no_error(
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    password: str,
) -> None:
    monkeypatch.setenv("http_proxy", f"{scheme}user:{password}@127.0.0.1:9")
    assert_no_secret(error_of(make_client("sk-a", FAR)), password)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("password", [*MALFORMED, "pa@HushHush/x", "h\u00fcsh@h\u00fcsh/x", "hush\thush"])
def test_an_invalid_proxy_of_the_environment_is_rejected_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch, scheme: str, password: str
) -> None:
    monkeypatch.setenv("http_proxy", f"{scheme}user:{password}@127.0.0.1:9")
    with pytest.raises(LumaValueError, match="The environment's proxy for 'http' is not a URL") as caught:
        RelayClient("sk-a", FAR)
    assert_no_secret(str(caught.value), password)


def test_the_password_of_a_proxy_that_wants_another_is_in_no_error(
    make_client: MakeClient, listen: Listen
) -> None:
    proxy, received = listen(b"HTTP/1.1 407 hush%23hush\r\nContent-Length: 9\r\n\r\nhush#hush")
    proxies = {"http": proxy.replace("://", "://user:hush%23hush@")}
    with pytest.raises(RelayError) as caught:
        make_client("sk-a", FAR, proxies=proxies).get_tasks(["a"])
    assert b"Proxy-Authorization: Basic dXNlcjpodXNoI2h1c2g=" in received.result(5)
    assert_no_secret(str(caught.value), "hush#hush")


@pytest.mark.parametrize(
    "proxy", ["", "http://", "ftp://proxy:3128", "http://proxy:99999", "http://proxy:port", "http://[::1"]
)
def test_an_invalid_proxy_is_rejected(proxy: str) -> None:
    with pytest.raises(LumaValueError, match=r"proxies\['https'\] is not a URL like 'http://"):
        RelayClient("sk-a", proxies={"https": proxy})


@pytest.mark.parametrize(
    "proxy", ["proxy", "proxy:3128", "http://proxy", "https://proxy:3128", "socks5h://u:p@[::1]:1080"]
)
def test_a_proxy_may_be_given_with_and_without_a_scheme(proxy: str) -> None:
    RelayClient("sk-a", proxies={"https": proxy, "http://relay.example": proxy}).close()


def test_a_proxy_password_is_redacted_as_requests_encodes_it() -> None:
    said = requests.auth._basic_auth_str("user", "p\u00e4ss").removeprefix("Basic ")
    assert said in secrets_in_proxies({"https": "http://user:p%C3%A4ss@proxy:3128"})
