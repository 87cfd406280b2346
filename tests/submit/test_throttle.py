"""When a submit of a batch may leave: pure, on a clock of the test's own."""

from __future__ import annotations

import pytest

from airflow_provider_luma.exceptions import (
    RelayRateLimitError,
    RelayTransientError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.submit.throttle import MAX_UNKNOWN_OUTCOMES, SubmitThrottle

RETRY = RetryPolicy(max_attempts=3, initial_delay=1, max_delay=8)


def throttle(max_parallel: int = 4, per_minute: float | None = None) -> SubmitThrottle:
    return SubmitThrottle(max_parallel, per_minute, RETRY)


def test_max_in_flight_is_respected() -> None:
    opened = throttle(2)
    first = opened.enter(0)
    opened.enter(0)
    assert opened.delay(0) is None
    opened.end_judged(first)
    assert opened.delay(0) == 0


def test_submits_respect_the_pace() -> None:
    opened = throttle(per_minute=60)
    opened.enter(0)
    assert opened.delay(0.25) == 0.75


def test_a_rate_limit_pauses_all_submits_and_then_lets_one_leave_at_a_time() -> None:
    opened = throttle()
    passes = [opened.enter(0) for _ in range(4)]
    assert 30 <= opened.end_failed(passes[0], RelayRateLimitError("slow", retry_after=30), 0) < 31
    for other in passes[1:3]:  # they left before: one pause for all of them, but the longest
        opened.end_failed(other, RelayRateLimitError("slow", retry_after=10), 1)
    opened.end_judged(passes[3])
    assert 29 <= (opened.delay(1) or 0) < 30
    probe = opened.enter(31)
    assert opened.delay(31) is None
    opened.end_judged(probe)
    opened.enter(31)
    assert opened.delay(31) == 0


@pytest.mark.parametrize("retry_after", [None, 0.0, 0.5])
def test_rate_limits_back_off_whatever_they_say_and_never_give_up(retry_after: float | None) -> None:
    opened = throttle()
    error = RelayRateLimitError("slow", retry_after=retry_after)
    pauses = [opened.end_failed(opened.enter(0), error, 0) for _ in range(50)]
    assert all(delay <= pause <= delay + 1 for delay, pause in zip((1, 2, 4, 8), pauses, strict=False))
    assert 8 <= pauses[-1] <= 9
    assert not opened.has_given_up


def test_consecutive_transient_errors_give_up_and_a_response_resets_the_count() -> None:
    opened = throttle()
    for _ in range(RETRY.max_attempts - 1):
        opened.end_failed(opened.enter(0), RelayTransientError("gone"), 0)
    opened.end_judged(opened.enter(0))
    assert not opened.has_given_up
    for _ in range(RETRY.max_attempts):
        assert not opened.has_given_up
        opened.end_failed(opened.enter(0), RelayTransientError("gone"), 0)
    assert opened.has_given_up


def test_a_few_consecutive_unknown_outcomes_give_up() -> None:
    opened = throttle()
    together = [opened.enter(0) for _ in range(4)]
    for permit in together:  # those that were under way together count as one
        opened.end_failed(permit, SubmitOutcomeUnknownError("502"), 0)
    for _ in range(MAX_UNKNOWN_OUTCOMES - 1):
        assert not opened.has_given_up
        opened.end_failed(opened.enter(0), SubmitOutcomeUnknownError("502"), 0)
    assert opened.has_given_up


def test_a_submit_that_left_before_a_pause_does_not_end_it() -> None:
    opened = throttle()
    early, late = opened.enter(0), opened.enter(0)
    opened.end_failed(early, RelayRateLimitError("slow", retry_after=5), 0)
    opened.end_judged(late)
    opened.enter(6)
    assert opened.delay(6) is None
