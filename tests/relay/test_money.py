"""What a relay tells of balance, prices and charges, over HTTP; hostile responses among them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.exceptions import RelayError, RelayRateLimitError, RelayTransientError
from airflow_provider_luma.relay import LumaTask, Money, RelayClient, TaskState
from airflow_provider_luma.relay.account import Account
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.sandbox import Sandbox
from airflow_provider_luma.sandbox.account import CUSTOM_SYMBOL
from tests.relay.conftest import ONCE
from tests.serving import Quiet, serving

Response = tuple[int, Any]

ABSENT = (404, {"error": {"message": "Invalid URL"}})

STATUS = {"success": True, "data": {"quota_per_unit": 500_000, "quota_display_type": "USD"}}
PAGE = (200, "<!doctype html><title>Dashboard</title>")
KEY, SUBSCRIPTION, USAGE = "/api/usage/token/", "/dashboard/billing/subscription", "/dashboard/billing/usage"


def of_key(left: Any, **more: Any) -> Response:
    return 200, {"code": True, "message": "ok", "data": {"total_available": left, **more}}


@contextmanager
def relay(
    responses: Mapping[str, Response], otherwise: Response = ABSENT
) -> Iterator[tuple[RelayClient, list[str]]]:
    """Yield a client of a relay with these responses by path, and the list of the requested paths."""
    asked: list[str] = []

    class Relay(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, body = responses.get(self.path, otherwise)
            content = body if isinstance(body, bytes) else body if isinstance(body, str) else json.dumps(body)
            content = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if content[:1] == b"<" else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(Relay) as url, RelayClient("sk-0123456789", url, retry=ONCE, timeout=2) as client:
        yield client, asked


def of_sandbox(**options: Any) -> AbstractContextManager[tuple[Sandbox, RelayClient]]:
    @contextmanager
    def opened() -> Iterator[tuple[Sandbox, RelayClient]]:
        with (
            Sandbox(tasks=0, **options) as sandbox,
            RelayClient(sandbox.api_key, sandbox.base_url, retry=ONCE) as client,
        ):
            yield sandbox, client

    return opened()


@pytest.mark.parametrize("billing", ["token", "dashboard"])
@pytest.mark.parametrize(
    ("unit", "name"), [("USD", "USD"), ("CNY", "CNY"), ("TOKENS", "tokens"), ("CUSTOM", CUSTOM_SYMBOL)]
)
def test_the_balance_is_in_the_relays_unit(billing: Any, unit: str, name: str) -> None:
    with of_sandbox(balance=100, price=14, unit=unit, billing=billing) as (_, client):
        client.submit(Generation("cat dance"))
        balance = client.get_balance()
        assert balance is not None
        assert (balance.amount, balance.unit) == (pytest.approx(86), name)


@pytest.mark.parametrize("billing", ["token", "dashboard"])
def test_a_key_without_a_limit_is_unlimited(billing: Any) -> None:
    with of_sandbox(billing=billing) as (_, client):
        balance = client.get_balance()
        assert balance == Money(math.inf, "USD")
        assert (balance.is_unlimited, str(balance)) == (True, "unlimited")


def test_a_relay_may_report_no_balance() -> None:
    with of_sandbox(billing=None) as (_, client):
        assert client.get_balance() is None
        assert client.get_price() is None


@pytest.mark.parametrize(
    "otherwise",
    [
        ABSENT,
        (404, "Not Found"),
        (404, "<html>"),
        (405, ""),
        (501, {"error": "no"}),
        (401, {"error": {"message": "log in"}}),
        (403, {"success": False, "message": "no rights"}),
    ],
    ids=range(7),
)
def test_a_relay_without_the_endpoints_has_no_balance(otherwise: Response) -> None:
    with relay({}, otherwise) as (client, asked):
        assert client.get_balance() is None
        assert client.get_price() is None
        assert client.get_cost(LumaTask("a", TaskState.PENDING)) is None
        assert set(asked) - {"/api/status"} == {KEY, SUBSCRIPTION, "/api/pricing"}


UNREADABLE: list[Response] = [
    PAGE,
    (302, ""),
    (400, {"message": "no"}),
    (401, "<html>log in"),
    (403, "<html>Just a moment"),
    (429, ""),
    (503, ""),
    (200, {"success": False, "message": "busy"}),
    (200, {"code": False, "message": "no"}),
    (200, {"code": 500, "data": {}}),
    (200, {"error": {"message": "x", "type": "upstream_error"}}),
    (200, {"message": "We are deploying"}),
    (200, ""),
    (200, "null"),
    (200, "[]"),
    (200, "{"),
    (200, {}),
    (200, {"data": None}),
    (200, {"data": "1000"}),
    (200, "[" * 100_000),
    (200, b"\xff\xfe"),
]
ACCOUNT = {SUBSCRIPTION: (200, {"hard_limit_usd": 1000}), USAGE: (200, {"total_usage": 0})}


@pytest.mark.parametrize("path", ["/api/status", KEY, SUBSCRIPTION, USAGE])
@pytest.mark.parametrize("unreadable", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_balance_of_which_a_part_cannot_be_read_is_an_error(path: str, unreadable: Response) -> None:
    healthy = {"/api/status": (200, STATUS), KEY: of_key(500_000), **ACCOUNT}
    responses = {**healthy, path: unreadable}
    with relay(responses) as (client, _):
        if unreadable is PAGE and path == SUBSCRIPTION:  # as where there is nothing
            assert client.get_balance() == Money(1, "USD")
        else:
            with pytest.raises(RelayError):
                client.get_balance()
        responses[path] = healthy[path]
        assert client.get_balance() == Money(1, "USD")


@pytest.mark.parametrize(
    "responses",
    [
        pytest.param({SUBSCRIPTION: (200, {"hard_limit_usd": 5})}, id="no usage"),
        pytest.param({KEY: (200, {"code": True, "data": {"name": "k"}})}, id="a key without an amount"),
    ],
)
def test_a_part_of_a_balance_is_not_the_absence_of_one(responses: dict[str, Response]) -> None:
    """Else min_balance would have no effect."""
    with relay({"/api/status": (200, STATUS), **responses}) as (client, _), pytest.raises(RelayError):
        client.get_balance()


@pytest.mark.parametrize("path", [KEY, SUBSCRIPTION])
@pytest.mark.parametrize("gone", [ABSENT, PAGE, (404, "404 page not found")], ids=str)
def test_an_endpoint_that_was_there_does_not_vanish(path: str, gone: Response) -> None:
    responses = {"/api/status": (200, STATUS), KEY: of_key(500_000), **ACCOUNT}
    with relay(responses) as (client, _):
        client.get_balance()
        responses[path] = gone
        with pytest.raises(RelayTransientError):
            client.get_balance()


def test_a_404_of_a_gateway_is_no_proof_that_a_relay_has_no_unit() -> None:
    responses = {"/api/status": (404, "404 page not found"), KEY: of_key(1_000_000)}
    with relay(responses) as (client, _):
        with pytest.raises(RelayTransientError):
            client.get_balance()
        responses["/api/status"] = (200, STATUS)
        assert client.get_balance() == Money(2, "USD")


def test_a_relay_without_a_unit_reports_its_quota() -> None:
    with relay({KEY: of_key(1000)}) as (client, asked):
        assert [client.get_balance() for _ in range(2)] == [Money(1000, "quota")] * 2
        assert asked.count("/api/status") == 1


@pytest.mark.parametrize(
    "amount",
    ["NaN", "Infinity", "-Infinity", "1e999", "1e30", "1" * 400, '"12 USD"', "true", "[1]", '{"a": 1}'],
)
def test_an_invalid_amount_cannot_be_read(amount: str) -> None:
    key = f'{{"code": true, "data": {{"total_available": {amount}, "unlimited_quota": "yes"}}}}'
    limit, used = f'{{"hard_limit_usd": {amount}}}', '{"total_usage": 0}'
    responses = {"/api/status": (200, STATUS), SUBSCRIPTION: (200, '{"hard_limit_usd": 5}')}
    for invalid in (
        {KEY: (200, key)},
        {SUBSCRIPTION: (200, limit), USAGE: (200, used)},
        {USAGE: (200, f'{{"total_usage": {amount}}}')},
    ):
        with relay({**responses, **invalid}) as (client, _), pytest.raises(RelayTransientError):
            client.get_balance()
    with relay({**responses, USAGE: (200, used)}) as (client, _):
        assert client.get_balance() == Money(5, "USD")


def test_an_overdrawn_account_has_a_negative_balance() -> None:
    with relay({"/api/status": (200, STATUS), KEY: of_key(-250_000)}) as (client, _):
        assert client.get_balance() == Money(-0.5, "USD")


def test_the_available_quota_of_an_unlimited_key_is_ignored() -> None:
    with relay({"/api/status": (200, STATUS), KEY: of_key(-5, unlimited_quota=True)}) as (client, _):
        assert client.get_balance() == Money(math.inf, "USD")


def test_the_account_may_have_less_than_the_key() -> None:
    account = {SUBSCRIPTION: (200, {"hard_limit_usd": 10}), USAGE: (200, {"total_usage": "900"})}
    for key in (of_key(5_000_000), of_key(0, unlimited_quota=True)):
        with relay({"/api/status": (200, STATUS), KEY: key, **account}) as (client, _):
            assert client.get_balance() == Money(1, "USD")


def test_one_balance_endpoint_is_enough() -> None:
    with relay({"/api/status": (200, STATUS), KEY: of_key(500_000)}) as (client, _):
        assert client.get_balance() == Money(1, "USD")
    with relay({"/api/status": (200, STATUS), **ACCOUNT}) as (client, _):
        assert client.get_balance() == Money(1000, "USD")


def test_a_rate_limit_is_raised_and_not_waited_out() -> None:
    with of_sandbox(balance=5) as (_, client):
        for _ in range(20):
            assert client.get_balance() == Money(5, "USD")
        with pytest.raises(RelayRateLimitError):  # the older form may be that of an account with more
            client.get_balance()
    with relay({"/api/status": (200, STATUS), KEY: (429, "")}) as (client, asked):
        with pytest.raises(RelayRateLimitError):
            client.get_balance()
        assert asked.count(KEY) == 1


def test_a_unit_that_cannot_be_read_now_is_not_guessed() -> None:
    responses = {"/api/status": (503, ""), KEY: of_key(5)}
    with relay(responses) as (client, _), pytest.raises(RelayTransientError):
        client.get_balance()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"quota_per_unit": 100, "display_in_currency": True}, Money(10, "USD")),
        ({"quota_per_unit": 100, "display_in_currency": False}, Money(1000, "tokens")),
        ({"quota_per_unit": 100}, Money(10, "USD")),
        ({"quota_per_unit": 100, "quota_display_type": "tokens"}, Money(1000, "tokens")),
        (
            {"quota_per_unit": 100, "quota_display_type": "CNY", "usd_exchange_rate": 7.5},
            Money(75, "CNY"),
        ),
        ({"quota_per_unit": 100, "quota_display_type": "CNY"}, Money(1000, "quota")),
        (
            {"quota_per_unit": 100, "quota_display_type": "CUSTOM", "custom_currency_exchange_rate": 2},
            Money(20, "CUSTOM"),
        ),
        (
            {
                "quota_per_unit": 100,
                "quota_display_type": "CUSTOM",
                "custom_currency_exchange_rate": 2,
                "custom_currency_symbol": "\x1b[31m\ud83d" + "¤" * 500,
            },
            Money(20, "[31m " + "¤" * 10 + "…"),
        ),
        ({"quota_per_unit": 100, "quota_display_type": "CUSTOM"}, Money(1000, "quota")),
        ({"quota_per_unit": 100, "quota_display_type": "SHELLS"}, Money(1000, "quota")),
        ({"quota_per_unit": "100"}, Money(10, "USD")),
        ({"quota_per_unit": "1e2", "quota_display_type": "USD"}, None),
        ({"quota_per_unit": 0}, None),
        ({"quota_per_unit": -1}, None),
        ({"quota_per_unit": 1e-300}, None),
        ({"quota_per_unit": 100, "quota_display_type": "CNY", "usd_exchange_rate": 0}, None),
        ({"quota_per_unit": None}, None),
        ({}, Money(1000, "quota")),
    ],
)
def test_the_unit_is_the_relays_or_its_quota_and_never_guessed(status: Any, expected: Money | None) -> None:
    with relay({"/api/status": (200, {"success": True, "data": status}), KEY: of_key(1000)}) as (client, _):
        if expected is None:
            with pytest.raises(RelayTransientError, match="no valid"):
                client.get_balance()
        else:
            assert client.get_balance() == expected


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (Money(12.5, "USD"), "12.50 USD"),
        (Money(0.0035, "USD"), "0.0035 USD"),
        (Money(0.35, "USD"), "0.35 USD"),
        (Money(1_250_000, "tokens"), "1,250,000 tokens"),
        (Money(-0.5, "CNY"), "-0.50 CNY"),
        (Money(0, "USD"), "0 USD"),
    ],
)
def test_money_is_formatted_for_people(money: Money, text: str) -> None:
    assert str(money) == text


def test_the_cost_of_many_clips_is_a_product() -> None:
    assert Money(0.35, "USD") * 3 == Money(pytest.approx(1.05), "USD")


@pytest.mark.parametrize("unit", ["USD", "CNY", "TOKENS", "CUSTOM"])
def test_a_price_is_in_the_unit_of_the_balance(unit: str) -> None:
    with of_sandbox(price=700, balance=1400, unit=unit) as (sandbox, client):
        price, balance = client.get_price(), client.get_balance()
        assert price is not None
        assert balance is not None
        assert price.unit == balance.unit
        assert price.amount == pytest.approx(700)
        assert client.get_price(extend=True) == price
        client.submit(Generation("cat dance"))
        assert sandbox.balance == pytest.approx(balance.amount - price.amount)


ROW = {"model_name": "luma_video_api", "quota_type": 1, "model_price": 0.4}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"data": [ROW]}, 0.4),
        ({"data": [ROW], "group_ratio": {"default": 1, "vip": 0.5, "dear": 3}}, 1.2),
        ({"data": [{**ROW, "enable_groups": ["vip"]}], "group_ratio": {"default": 1, "vip": 0.5}}, 0.2),
        ({"data": [{**ROW, "enable_groups": ["all"]}], "group_ratio": {"default": 1, "vip": 2}}, 0.8),
        ({"data": [{**ROW, "enable_groups": [["vip"], 3]}], "group_ratio": {"default": "1"}}, 0.4),
        ({"data": [ROW], "group_ratio": ["x"]}, 0.4),
        ({"data": [{**ROW, "quota_type": 0}]}, None),
        ({"data": [{**ROW, "billing_mode": "tiered_expr"}]}, None),
        ({"data": [{**ROW, "model_price": -1}]}, None),
        ({"data": [{**ROW, "model_price": "0.4"}]}, None),
        ({"data": [{"model_name": "gpt-5"}, 7, None]}, None),
        ({"data": {}}, None),
        ({"success": False, "data": [ROW]}, None),
    ],
)
def test_a_price_is_that_for_the_dearest_group(body: Any, expected: float | None) -> None:
    with relay({"/api/status": (200, STATUS), "/api/pricing": (200, body)}) as (client, _):
        price = client.get_price()
        assert (price and round(price.amount, 9)) == expected


def test_a_price_without_a_unit_is_in_us_dollars() -> None:
    with relay({"/api/pricing": (200, {"data": [ROW]})}) as (client, _):
        assert client.get_price() == Money(0.4, "USD")


def test_a_relay_of_wrapped_rows_reports_the_charge() -> None:
    with of_sandbox(price=0.35, shape="wrapped") as (sandbox, client):
        task = client.submit(Generation("cat dance"))
        assert client.get_cost(task) == Money(pytest.approx(0.35), "USD")
        assert client.get_cost(client.get_tasks([task.id])[task.id]) == Money(pytest.approx(0.35), "USD")
        assert [request.path for request in sandbox.requests].count("/api/status") == 1


def test_a_relay_of_bare_tasks_does_not_report_the_charge() -> None:
    with of_sandbox() as (sandbox, client):
        assert client.get_cost(client.submit(Generation("cat dance"))) is None
        assert len(sandbox.requests) == 1


def test_a_cost_that_cannot_be_read_stops_nothing_and_is_queried_once() -> None:
    task = LumaTask("a", TaskState.PENDING, raw={"task_id": "a", "quota": 5})
    with relay({}, (503, "")) as (client, asked):
        assert [client.get_cost(task) for _ in range(3)] == [None] * 3
        assert asked == ["/api/status"]


@pytest.mark.parametrize(
    ("raw", "quota"),
    [
        ({"quota": 7}, 7),
        ({"quota": 0}, 0),
        ({"quota": 7, "data": {"quota": 8}}, 7),
        ({"data": {"quota": 8}}, 8),
        ({"quota": -1}, None),
        ({"quota": math.nan}, None),
        ({"quota": math.inf}, None),
        ({"quota": "7"}, None),
        ({"quota": True}, None),
        ({}, None),
    ],
)
def test_a_charge_is_a_number_from_zero_up(raw: Any, quota: float | None) -> None:
    assert LumaTask("a", TaskState.PENDING, raw=raw).quota == quota


def test_a_key_that_the_relay_echoes_is_redacted() -> None:
    body = {"error": {"message": "database: sk-0123456789"}}
    with relay({}, (500, body)) as (client, _), pytest.raises(RelayTransientError) as error:
        client.get_balance()
    assert "0123456789" not in str(error.value)


def test_a_response_is_bounded() -> None:
    huge = b'{"data": {"total_available": 5, "name": "' + b"x" * 9_000_000 + b'"}}'
    with (
        relay({KEY: (200, huge)}) as (client, _),
        pytest.raises(RelayTransientError, match="larger than max_response_bytes"),
    ):
        client.get_balance()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
_names = st.sampled_from(
    [
        "data",
        "total_available",
        "unlimited_quota",
        "hard_limit_usd",
        "total_usage",
        "quota_per_unit",
        "quota_display_type",
        "usd_exchange_rate",
        "custom_currency_exchange_rate",
        "custom_currency_symbol",
        "display_in_currency",
        "group_ratio",
        "model_name",
        "quota_type",
        "model_price",
        "enable_groups",
    ]
)
_bodies = st.none() | st.dictionaries(
    _names, _json | st.dictionaries(_names, _json) | st.lists(st.dictionaries(_names, _json))
)


@given(st.lists(_bodies, min_size=5, max_size=5))
def test_fuzz_any_object_is_parsed(bodies: list[dict[str, Any] | None]) -> None:
    paths = ("/api/status", KEY, SUBSCRIPTION, USAGE, "/api/pricing")
    get: Callable[[str], Any] = dict(zip(paths, bodies, strict=True)).get
    account = Account(get)
    found = [account.get_price(extend=False), account.get_price(extend=True)]
    with suppress(RelayTransientError):
        found.append(account.get_balance())
    for money in found:
        if money is not None:
            assert not math.isnan(money.amount)
            assert money.unit == money.unit.strip() != ""
            str(money).encode()


def test_every_error_is_a_relay_error() -> None:
    client = RelayClient("sk-0123456789", "http://127.0.0.1:9", retry=ONCE)
    with pytest.raises(RelayError):
        client.get_balance()
    assert client.get_price() is None
