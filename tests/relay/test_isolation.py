"""Which ids of a failed request are to blame, and what finding out costs."""

from __future__ import annotations

import pytest

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayInvalidRequestError,
    RelayTransientError,
)
from airflow_provider_luma.relay import LumaTask, TaskState
from airflow_provider_luma.relay.isolation import MAX_REQUESTS, Evidence, Isolation

IDS = [f"id-{n}" for n in range(100)]
INTERNAL = RelayTransientError("internal error", status=500)
REJECTED = RelayInvalidRequestError("no such id", status=400)


class Relay:
    """Fails every request that holds a bad id, and counts the requests."""

    def __init__(self, *bad, error=INTERNAL, evidence=None):
        self.bad, self.error, self.evidence = set(bad), error, evidence or Evidence()
        self.requests = 0

    def isolate(self, ids=IDS, error=None):
        isolation = Isolation(ids, error or self.error, self.evidence)
        while (requested := isolation.next_ids()) is not None:
            self.requests += 1
            known = {task_id: LumaTask(task_id, TaskState.COMPLETED) for task_id in requested}
            isolation.take(requested, self.error if self.bad & {*requested} else known)
        covered = [task_id for ids, _ in isolation.outcomes for task_id in ids]
        assert sorted(covered) == sorted(ids)  # each of them once
        return {i for ids, outcome in isolation.outcomes if isinstance(outcome, Exception) for i in ids}


@pytest.mark.parametrize("error", [INTERNAL, REJECTED], ids=["500", "400"])
@pytest.mark.parametrize("bad", [0, 1, 42, 50, 98, 99])
def test_one_bad_id_fails_alone(bad, error):
    relay = Relay(IDS[bad], error=error)
    assert relay.isolate() == {IDS[bad]}
    assert relay.requests <= 16


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
def test_small_requests_are_isolated(number):
    for bad in IDS[:number]:
        assert Relay(bad).isolate(IDS[:number]) == {bad}


def test_several_bad_ids_fail_alone():
    assert Relay(IDS[3], IDS[60], IDS[61]).isolate() == {IDS[3], IDS[60], IDS[61]}


def test_a_bad_first_and_last_id_fail_alone_where_the_relay_has_responded_to_others():
    relay = Relay(IDS[0], IDS[-1], evidence=Evidence(responds=True))
    assert relay.isolate() == {IDS[0], IDS[-1]}


@pytest.mark.parametrize("error", [INTERNAL, REJECTED], ids=["500", "400"])
def test_a_relay_that_is_down_gets_two_more_requests_a_poll(error):
    relay = Relay(*IDS, error=error)
    for _ in range(10):
        assert relay.isolate() == {*IDS}
    assert relay.requests == 2


@pytest.mark.parametrize("evidence", [Evidence(), Evidence(responds=True)])
def test_the_number_of_requests_is_bounded(evidence):
    relay = Relay(*IDS[1:-1], evidence=evidence)
    assert {*IDS[1:-1]} <= relay.isolate()
    assert relay.requests == MAX_REQUESTS


@pytest.mark.parametrize(
    "error",
    [
        RelayTransientError("no connection"),
        RelayAuthenticationError("key", status=401),
        RuntimeError("a bug"),
    ],
)
def test_an_error_that_no_id_caused_is_not_isolated(error):
    relay = Relay("id-1")
    assert relay.isolate(error=error) == {*IDS}
    assert relay.requests == 0


def test_an_error_that_no_id_caused_ends_the_isolation():
    relay = Relay("id-99", error=RelayAuthenticationError("key", status=401))
    assert "id-98" in relay.isolate(error=INTERNAL)
    assert relay.requests == 2
