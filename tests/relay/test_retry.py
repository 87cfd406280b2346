from __future__ import annotations

import asyncio
import logging

import pytest
from tenacity import AsyncRetrying, Retrying

from airflow_provider_luma.exceptions import (
    LumaValueError,
    RelayAuthenticationError,
    RelayInvalidRequestError,
    RelayPermanentError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTransientError,
)
from airflow_provider_luma.relay import RetryPolicy

DONE = "done"
TRANSIENT = RelayTransientError("502")
BUSY = RelayRateLimitError("429")

RETRY_AFTER_JITTER = 0.2


class Relay:
    """Says one thing after the other, the last one for ever."""

    def __init__(self, *sayings):
        self._sayings = list(sayings)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        saying = self._sayings.pop(0) if len(self._sayings) > 1 else self._sayings[0]
        if isinstance(saying, BaseException):
            raise saying
        return saying

    async def later(self):
        return self()


def drive(policy, relay, *, patience=float("inf")):
    """Ask under this policy; give the result or error, and the waits it wished for."""
    waits = []
    try:
        return Retrying(sleep=waits.append, **policy.retrying_kwargs(max_rate_limit_delay=patience))(
            relay
        ), waits
    except Exception as error:  # noqa: BLE001
        return error, waits


@pytest.mark.parametrize(
    ("sayings", "calls", "end"),
    [
        ([DONE], 1, DONE),
        ([TRANSIENT, DONE], 2, DONE),
        ([TRANSIENT, TRANSIENT, DONE], 3, DONE),
        ([TRANSIENT], 3, TRANSIENT),
        ([BUSY] * 50 + [DONE], 51, DONE),
        ([BUSY, TRANSIENT, BUSY, TRANSIENT, BUSY, DONE], 6, DONE),
        ([BUSY, TRANSIENT, BUSY, TRANSIENT, BUSY, TRANSIENT, DONE], 6, TRANSIENT),
        ([TRANSIENT, RelayAuthenticationError("401"), DONE], 2, RelayAuthenticationError),
        ([RelayAuthenticationError("401"), DONE], 1, RelayAuthenticationError),
        ([RelayPermissionError("402"), DONE], 1, RelayPermissionError),
        ([RelayInvalidRequestError("400"), DONE], 1, RelayInvalidRequestError),
        ([RelayPermanentError("?"), DONE], 1, RelayPermanentError),
        ([LumaValueError("?"), DONE], 1, LumaValueError),
        ([ZeroDivisionError("a bug of ours"), DONE], 1, ZeroDivisionError),
    ],
)
def test_only_transient_errors_use_up_the_three_attempts(sayings, calls, end):
    relay = Relay(*sayings)
    outcome, waits = drive(RetryPolicy(max_attempts=3), relay)
    assert outcome is end or isinstance(outcome, end if isinstance(end, type) else ())
    assert (relay.calls, len(waits)) == (calls, calls - 1)


@pytest.mark.parametrize(("attempts", "calls"), [(0, 1), (1, 1), (2, 2), (7, 7)])
def test_max_attempts_is_respected_and_is_at_least_one(attempts, calls):
    relay = Relay(TRANSIENT)
    assert drive(RetryPolicy(max_attempts=attempts), relay)[0] is TRANSIENT
    assert relay.calls == calls


def test_delays_double_from_initial_delay_to_max_delay():
    waits = drive(RetryPolicy(max_attempts=7, initial_delay=0.5, max_delay=4), Relay(TRANSIENT))[1]
    for wait, least in zip(waits, [0.5, 1, 2, 4, 4, 4], strict=True):
        assert least <= wait <= min(least + 0.5, 4)


def test_the_default_outlasts_an_outage_of_half_a_minute():
    assert sum(drive(RetryPolicy(), Relay(TRANSIENT))[1]) >= 30


def test_delays_are_jittered():
    assert len({drive(RetryPolicy(max_attempts=2), Relay(TRANSIENT))[1][0] for _ in range(20)}) > 10


def test_a_429_without_retry_after_backs_off_up_to_max_delay():
    waits = drive(RetryPolicy(initial_delay=0.5, max_delay=4), Relay(*[BUSY] * 2000, DONE))[1]
    assert 0.5 <= waits[0] <= 1
    assert waits[-1] == max(waits) == 4


@pytest.mark.parametrize(
    ("kind", "retry_after", "least"),
    [
        (RelayRateLimitError, 3, 3),
        (RelayRateLimitError, 120, 120),
        (RelayTransientError, 3, 3),
        (RelayTransientError, 120, 4),
    ],
)
def test_retry_after_is_respected_and_bounded_for_transient_errors(kind, retry_after, least):
    (wait,) = drive(RetryPolicy(max_delay=4), Relay(kind("later", retry_after=retry_after), DONE))[1]
    assert least <= wait <= least + RETRY_AFTER_JITTER


@pytest.mark.parametrize(
    ("error", "patience", "calls"),
    [
        (RelayRateLimitError("429", retry_after=5), 5.5, 2),
        (RelayRateLimitError("429", retry_after=5), 4.9, 1),
        (RelayRateLimitError("429", retry_after=0), 0, 1),
        (RelayRateLimitError("429", retry_after=0), 1.3, 2),  # 0.5 s, and at most 0.7 s of jitter
        (BUSY, 0, 1),
        (BUSY, 9, 2),
        (TRANSIENT, 0, 2),
    ],
)
def test_max_rate_limit_wait_bounds_rate_limits_only(error, patience, calls):
    relay = Relay(error, DONE)
    outcome, _ = drive(RetryPolicy(), relay, patience=patience)
    assert (relay.calls, outcome) == (calls, DONE if calls == 2 else error)


def test_the_error_that_ends_it_is_the_relays_own():
    assert drive(RetryPolicy(max_attempts=1), Relay(TRANSIENT))[0] is TRANSIENT


def test_one_policy_serves_any_number_of_requests():
    policy = RetryPolicy(max_attempts=2)
    for _ in range(3):
        relay = Relay(TRANSIENT)
        drive(policy, relay)
        assert relay.calls == 2


def test_the_policy_drives_asynchronous_requests_alike():
    relay = Relay(BUSY, BUSY, TRANSIENT, TRANSIENT)
    arguments = RetryPolicy(max_attempts=2, initial_delay=0.001).retrying_kwargs()
    with pytest.raises(RelayTransientError):
        asyncio.run(AsyncRetrying(**arguments)(relay.later))
    assert relay.calls == 4


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (RelayRateLimitError("slow down", status=429), logging.INFO),
        (RelayTransientError("gone", status=502), logging.WARNING),
    ],
)
def test_each_delay_is_logged_with_its_length_and_reason(caplog, error, level):
    caplog.set_level(logging.INFO)
    _, waits = drive(RetryPolicy(), Relay(error, DONE))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (level, f"Retrying in {waits[0]:.1f} s, after attempt 1: {error}")
    ]
