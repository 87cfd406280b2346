"""Which ids of a failed request are to blame, and what finding out costs."""

from __future__ import annotations

import pytest

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayInvalidRequestError,
    RelayTaskNotFoundError,
    RelayTransientError,
)
from airflow_provider_luma.relay import LumaTask, TaskState
from airflow_provider_luma.relay.bisection import MAX_PROBES, MAX_REQUESTS, Bisection, Evidence, find_tasks

IDS = [f"id-{n}" for n in range(100)]
INTERNAL = RelayTransientError("internal error", status=500)
REJECTED = RelayInvalidRequestError("no such id", status=400)
BROKEN_OFF = RelayTransientError("the response broke off", was_sent=True)
SHOWN = {"other": LumaTask("other", TaskState.COMPLETED)}


class Relay:
    """Fails every request that holds a bad id, and counts the requests of one poll."""

    def __init__(self, *bad, error=INTERNAL):
        self.bad, self.error, self.evidence = set(bad), error, Evidence()
        self.requests = 0

    def query(self, ids):
        self.requests += 1
        if self.bad & {*ids}:
            return self.error
        return {task_id: LumaTask(task_id, TaskState.COMPLETED) for task_id in ids}

    def open(self, ids=IDS, error=None):
        bisection = Bisection(ids, error or self.error, self.evidence)
        self.found = set()
        self.go_on(bisection)
        return bisection

    def go_on(self, bisection):
        while (requested := bisection.next_ids()) is not None:
            response = self.query(requested)
            bisection.take(requested, response)
            self.found |= set() if isinstance(response, Exception) else {*requested}

    def isolate(self, ids=IDS, error=None):
        """Return the ids that have an error, and keep in ``left`` those that are left to the next poll."""
        bisection = self.open(ids, error)
        bisection.finish()
        failed = [task_id for some, _ in bisection.errors for task_id in some]
        assert len({*failed, *self.found}) == len(failed) + len(self.found)
        self.left = [task_id for task_id in ids if task_id not in {*failed, *self.found}]
        return set(failed)


@pytest.mark.parametrize("error", [INTERNAL, REJECTED, BROKEN_OFF], ids=["500", "400", "broken_off"])
@pytest.mark.parametrize("bad", [0, 1, 42, 50, 98, 99])
def test_one_bad_id_fails_alone(bad, error):
    relay = Relay(IDS[bad], error=error)
    assert relay.isolate() == {IDS[bad]}
    assert relay.left == []
    assert relay.requests <= 16


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
def test_small_requests_are_isolated(number):
    for bad in IDS[:number]:
        assert Relay(bad).isolate(IDS[:number]) == {bad}


@pytest.mark.parametrize("error", [INTERNAL, REJECTED], ids=["500", "400"])
@pytest.mark.parametrize("number", range(1, MAX_PROBES + 1))
def test_ids_no_more_than_the_probes_are_told_apart_whichever_are_bad(number, error):
    ids = IDS[:number]
    for mask in range(1, 2**number):
        bad = {ids[n] for n in range(number) if mask >> n & 1}
        relay = Relay(*bad, error=error)
        assert relay.isolate(ids) == bad
        assert relay.left == []


@pytest.mark.parametrize("error", [INTERNAL, REJECTED], ids=["500", "400"])
@pytest.mark.parametrize("bad", [(3, 60, 61), (0, 99), (0, 49, 99)])
def test_several_bad_ids_fail_alone(bad, error):
    relay = Relay(*(IDS[n] for n in bad), error=error)
    assert relay.isolate() == {IDS[n] for n in bad}
    assert relay.left == []


@pytest.mark.parametrize("number", [2, 6, 20])
def test_rejections_alone_are_no_sign_of_a_relay_that_is_down(number):
    for good in (0, number // 2, number - 1):
        ids = IDS[:number]
        assert Relay(*({*ids} - {ids[good]}), error=REJECTED).isolate(ids) == {*ids} - {ids[good]}


@pytest.mark.parametrize(
    ("error", "bound"), [(INTERNAL, MAX_PROBES), (BROKEN_OFF, MAX_PROBES), (REJECTED, MAX_REQUESTS)]
)
def test_a_poll_in_which_nothing_succeeds_is_bounded(error, bound):
    relay = Relay(*IDS, error=error)
    for _ in range(10):
        assert relay.isolate() == {*IDS}
    assert relay.requests == bound


def test_a_relay_that_goes_down_during_a_poll_gets_a_bounded_number_of_requests():
    relay = Relay(*IDS)
    relay.evidence.take(SHOWN)
    for _ in range(10):
        assert relay.isolate()
    assert relay.requests == MAX_REQUESTS


def test_a_later_success_overturns_the_verdict():
    relay = Relay(*IDS)
    bisection = relay.open()
    assert relay.requests == MAX_PROBES
    assert bisection.is_open
    probed = {task_id for ids, _ in bisection.errors for task_id in ids}
    relay.bad = probed
    relay.evidence.take(SHOWN)
    relay.go_on(bisection)
    assert relay.found == {*IDS} - probed
    assert not bisection.is_open


@pytest.mark.parametrize("step", [2, 3, 6, 20])
def test_many_bad_ids_fail_alone_in_as_many_polls_as_they_take(step):
    bad, ids, failed = {*IDS[::step]}, IDS, set()
    while ids:
        relay = Relay(*bad)
        relay.evidence.take(SHOWN)
        found_bad = relay.isolate(ids)
        assert found_bad
        assert relay.requests <= MAX_REQUESTS
        failed |= found_bad
        ids = relay.left
    assert failed == bad


def test_contiguous_bad_ids_hide_no_large_group():
    relay = Relay(*IDS[:50])
    relay.evidence.take(SHOWN)
    relay.isolate()
    assert {*IDS[50:]} <= relay.found


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


def test_an_error_that_is_not_about_ids_ends_the_search():
    relay = Relay(*IDS, error=RelayAuthenticationError("key", status=401))
    assert relay.isolate(error=INTERNAL) == {*IDS}
    assert relay.requests == 1


class Hiccup(Relay):
    """Fails, besides bad ids, the first query of a good one alone."""

    def __init__(self, *bad, good, error):
        super().__init__(*bad)
        self.good, self.hiccup = good, error

    def query(self, ids):
        if ids == [self.good] and self.hiccup:
            self.requests += 1
            error, self.hiccup = self.hiccup, None
            return error
        return super().query(ids)


@pytest.mark.parametrize("error", [INTERNAL, BROKEN_OFF], ids=["502", "closed"])
@pytest.mark.parametrize("ids", [IDS[:2], IDS[:4], IDS])
def test_one_transient_error_of_a_good_id_alone_is_repeated(ids, error):
    for _ in range(20):
        relay = Hiccup(ids[0], good=ids[1], error=error)
        assert relay.isolate(ids) == {ids[0]}
        assert relay.left == []
        assert relay.requests <= 16 + 2


@pytest.mark.parametrize("number", [1, 10, 20])
def test_a_connection_that_fails_once_during_the_search_blames_no_id(number):
    class Cut(Relay):
        def query(self, ids):
            response = super().query(ids)
            return RelayTransientError("no connection") if self.requests == number else response

    relay = Cut(*IDS[:10])
    relay.evidence.take(SHOWN)
    assert relay.isolate() <= {*IDS[:10]}
    assert {*relay.left} >= {*IDS} - {*IDS[:10]} - relay.found


class Forgetful(Relay):
    """Responds ``task_not_exist`` to every request that holds an unknown id; alone such an id is absent."""

    def query(self, ids):
        self.requests += 1
        if len(ids) > 1 and self.bad & {*ids}:
            return RelayTaskNotFoundError("task_not_exist", status=400)
        return {task_id: LumaTask(task_id, TaskState.COMPLETED) for task_id in ids if task_id not in self.bad}

    def requested(self, ids):
        response = self.query(ids)
        if isinstance(response, Exception):
            raise response
        return response


UNKNOWN = RelayTaskNotFoundError("task_not_exist", status=400)


@pytest.mark.parametrize("step", [100, 50, 34])
def test_an_unknown_id_makes_no_other_absent(step):
    relay = Forgetful(*IDS[::step])
    assert relay.isolate(error=UNKNOWN) == set()
    assert relay.found == {*IDS}  # each of them was shown, or is absent alone
    assert relay.left == []
    assert {*find_tasks(IDS, UNKNOWN, relay.requested)} == {*IDS} - relay.bad


def test_ids_that_are_all_unknown_cost_a_bounded_number_of_requests_a_poll():
    relay = Forgetful(*IDS)
    relay.evidence.take(SHOWN)
    for _ in range(10):
        assert relay.isolate(error=UNKNOWN) == set()
    assert relay.requests == MAX_REQUESTS


def test_more_unknown_ids_than_a_poll_can_isolate_are_left_to_the_next():
    ids, polls, relay = IDS, 0, None
    while ids:
        relay = Forgetful(*IDS[::5])
        assert relay.isolate(ids, error=UNKNOWN) == set()
        assert relay.found
        ids, polls = relay.left, polls + 1
    assert polls < 20


def test_a_single_query_of_unknown_ids_that_takes_too_many_requests_raises():
    relay = Forgetful(*IDS)
    with pytest.raises(RelayTaskNotFoundError):
        find_tasks(IDS, UNKNOWN, relay.requested)
    assert relay.requests == MAX_REQUESTS
