"""The balance through the hook: read seldom, cached for a while, and shown where it is useful."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_luma.balance import MAX_AGE, MIN_INTERVAL, BalanceReader
from airflow_provider_luma.exceptions import RelayTransientError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.relay import Money, RelayClient, RetryPolicy
from airflow_provider_luma.sandbox import Sandbox
from tests.sandbox.conftest import HandClock

ENDPOINT = "/api/usage/token/"


def test_the_hook_returns_the_balance_and_queries_once_a_minute(connect: Callable[..., None]) -> None:
    with Sandbox(tasks=0, balance=12.5) as sandbox:
        connect(sandbox)
        hook = LumaHook()
        with ThreadPoolExecutor(8) as threads:
            balances = list(threads.map(lambda _: hook.get_balance(), range(50)))
        assert balances == [Money(12.5, "USD")] * 50
        assert [request.path for request in sandbox.requests].count(ENDPOINT) == 1


def test_a_relay_without_a_balance_is_logged_once(
    connect: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="airflow_provider_luma.balance")
    with Sandbox(tasks=0, billing=None) as sandbox:
        connect(sandbox)
        hook = LumaHook()
        assert [hook.get_balance() for _ in range(3)] == [None] * 3
        assert hook.test_connection() == (True, f"The relay at {sandbox.base_url} accepts the API key.")
    message = "The relay of the connection 'luma_default' does not report a balance"
    assert caplog.text.count(message) == 1


def test_the_connection_test_shows_the_balance(connect: Callable[..., None]) -> None:
    with Sandbox(tasks=0, balance=12.5) as sandbox:
        connect(sandbox)
        good, message = LumaHook().test_connection()
    assert good
    assert message.endswith("accepts the API key. Its balance: 12.50 USD.")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


class Read:
    """A reader of a sandbox's balance whose clock is the sandbox's."""

    def __init__(self, sandbox: Sandbox, clock: HandClock) -> None:
        client = RelayClient(sandbox.api_key, sandbox.base_url, retry=RetryPolicy(max_attempts=1))
        self.get = BalanceReader(client.get_balance, "luma_default", clock).get


def test_a_reading_is_renewed_after_a_minute(clock: HandClock) -> None:
    with Sandbox(tasks=0, balance=5, clock=clock) as sandbox:
        get = Read(sandbox, clock).get
        assert get() == Money(5, "USD")
        sandbox.balance = 4
        clock.move(MIN_INTERVAL - 1)
        assert get() == Money(5, "USD")
        clock.move(1)
        assert get() == Money(4, "USD")


def test_a_reading_counts_while_the_relay_is_down_for_twenty_minutes(clock: HandClock) -> None:
    with Sandbox(tasks=0, balance=5, clock=clock) as sandbox:
        get = Read(sandbox, clock).get
        get()
        sandbox.stop()
        clock.move(MIN_INTERVAL)
        assert get() == Money(5, "USD")
        clock.move(MAX_AGE)
        for _ in range(2):
            with pytest.raises(RelayTransientError):
                get()


def test_a_balance_that_was_never_read_is_an_error(clock: HandClock) -> None:
    with Sandbox(tasks=0, balance=5, clock=clock) as sandbox:
        get = Read(sandbox, clock).get
        sandbox.stop()
        with pytest.raises(RelayTransientError):
            get()


def test_an_error_says_when_the_next_query_may_be_due(clock: HandClock) -> None:
    """Who retries sooner meets the same error, and would count it as another one."""
    with Sandbox(tasks=0, balance=5, clock=clock) as sandbox:
        get = Read(sandbox, clock).get
        sandbox.stop()
        due = []
        for seconds in (0, 20, 20, 20):
            clock.move(seconds)
            with pytest.raises(RelayTransientError) as caught:
                get()
            due.append(caught.value.retry_after)
        assert due == [60, 40, 20, 60]
