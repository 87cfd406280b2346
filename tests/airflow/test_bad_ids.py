"""One id with which a relay fails hurts no other: in every mode, and among triggers that share a request."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from airflow_provider_luma.relay.bisection import MAX_PROBES
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.sandbox import Sandbox
from airflow_provider_luma.triggers.event import LumaTaskEventTrigger
from tests.airflow.sensor_harness import Wait, ended, responses, summary
from tests.airflow.test_poller import event_of, result_of, together, trigger
from tests.airflow.test_poller_faults import connect_to
from tests.serving import Quiet, serving

IDS = [f"id-{n:02}" for n in range(50)]


@contextmanager
def relay_that_fails_with(*bad: str, status: int, code: str = "") -> Iterator[tuple[str, list[list[str]]]]:
    """Serve a relay that fails every request that holds a bad id, and completes every other task."""
    requests: list[list[str]] = []

    class Relay(Quiet):
        def do_POST(self) -> None:
            ids = self.read_json()["ids"]
            requests.append(ids)
            if not {*ids}.isdisjoint(bad):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps({"message": "no luck with this id", "code": code}).encode())
            else:
                rows = [{"id": task_id, "state": "completed"} for task_id in ids]
                self.respond(json.dumps(rows).encode(), "application/json")

    with serving(Relay) as url:
        yield url, requests


@pytest.mark.parametrize("status", [500, 400, 404])
def test_an_id_on_which_the_relay_fails_ends_only_its_own_trigger(
    monkeypatch: pytest.MonkeyPatch, quick_retries: RetryPolicy, status: int
) -> None:
    with relay_that_fails_with(IDS[17], status=status) as (url, requests):
        connect_to(monkeypatch, url)
        events = together(*(event_of(trigger(task_id, timeout=300)) for task_id in IDS))
    assert Counter(event["status"] for event in events) == {"done": 49, "error": 1}
    assert events[17]["error"]["status"] == status
    assert len(requests) <= quick_retries.max_attempts + 16


@pytest.mark.parametrize("status", [500, 400])
def test_the_neighbours_of_two_bad_ids_are_not_affected(
    monkeypatch: pytest.MonkeyPatch, quick_retries: RetryPolicy, status: int
) -> None:
    with relay_that_fails_with("bad-1", "bad-2", status=status) as (url, requests):
        connect_to(monkeypatch, url)
        events = together(
            *(event_of(trigger(*ids, timeout=300)) for ids in (["bad-1"], IDS[:20], ["bad-2"])),
        )
    assert [event["status"] for event in events] == ["error", "done", "error"]
    assert result_of(events[1], *IDS[:20])["completed"] == 20
    assert len(requests) <= quick_retries.max_attempts + 40


@pytest.mark.usefixtures("airflow_db")
def test_an_unknown_id_of_a_relay_that_names_none_makes_no_other_missing(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relay_that_fails_with("gone", status=400, code="task_not_exist") as (url, _):
        connect_to(monkeypatch, url)
        run = wait([*IDS, "gone"], missing_grace=0.5, fail_when="never")
    assert ended(run, "success")
    assert run.xcom("wait", "luma_summary") == summary(50, missing=["gone"])


def test_an_unknown_id_of_a_relay_that_names_none_is_missing_in_its_own_trigger_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with relay_that_fails_with("gone-1", "gone-2", status=400, code="task_not_exist") as (url, _):
        connect_to(monkeypatch, url)
        events = together(
            *(event_of(trigger(*ids, missing_grace=0.5)) for ids in (["gone-1"], IDS[:20], ["gone-2"]))
        )
    assert {event["status"] for event in events} == {"done"}
    assert result_of(events[0], "gone-1")["missing"] == ["gone-1"]
    assert result_of(events[1], *IDS[:20])["completed"] == 20


@contextmanager
def relay_that_breaks_with(bad: str, fault: str) -> Iterator[str]:
    """Serve a relay whose response to every request that holds a bad id cannot be used."""

    class Relay(Quiet):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            ids = self.read_json()["ids"]
            body = json.dumps([{"id": task_id, "state": "completed"} for task_id in ids]).encode()
            is_bad = bad in ids
            self.close_connection = is_bad
            if is_bad and fault == "no_response":
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            if is_bad:  # else the next request may meet the connection while it is closed
                self.send_header("Connection", "close")
            if is_bad and fault in {"gzip", "br"}:
                self.send_header("Content-Encoding", fault)
            self.end_headers()
            self.wfile.write(body[:-5] if is_bad and fault in {"truncated", "endless"} else body)
            while is_bad and fault == "endless" and not over.wait(0.1):
                self.wfile.flush()

    over = threading.Event()
    with serving(Relay) as url:
        yield url
        over.set()


@pytest.mark.parametrize("fault", ["no_response", "truncated", "gzip", "br", "endless"])
def test_an_id_whose_response_cannot_be_used_ends_its_own_trigger_alone(
    monkeypatch: pytest.MonkeyPatch, quick_retries: RetryPolicy, fault: str
) -> None:
    with relay_that_breaks_with("bad", fault) as url:
        connect_to(monkeypatch, url, request_timeout=1)
        bad, good = together(event_of(trigger("bad", timeout=300)), event_of(trigger(*IDS, timeout=300)))
    assert (bad["status"], good["status"]) == ("error", "done")


@pytest.mark.parametrize("fault", ["no_response", "gzip"])
@pytest.mark.usefixtures("airflow_db", "quick_retries")
def test_a_response_that_cannot_be_used_leaves_nothing_unknown_of_the_others(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with relay_that_breaks_with(IDS[0], fault) as url:
        connect_to(monkeypatch, url)
        run = wait(IDS, retries=0)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(49, running=IDS[:1])


@pytest.mark.parametrize("status", [500, 400])
def test_a_watcher_fires_for_the_good_ids_between_two_bad_ones(
    monkeypatch: pytest.MonkeyPatch, quick_retries: RetryPolicy, status: int
) -> None:
    async def fired(number: int) -> list[str]:
        waiting = LumaTaskEventTrigger(luma_task_ids=IDS[:10], poke_interval=1)
        events = aiter(waiting.run())
        return [(await anext(events)).payload["id"] for _ in range(number)]

    with relay_that_fails_with(IDS[0], IDS[9], status=status) as (url, _):
        connect_to(monkeypatch, url)
        (ids,) = together(asyncio.wait_for(fired(8), 60))
    assert sorted(ids) == IDS[1:9]


@pytest.mark.parametrize("status", [500, 400])
@pytest.mark.usefixtures("airflow_db", "quick_retries")
def test_bad_ids_at_both_ends_of_a_request_leave_nothing_unknown_of_the_others(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with relay_that_fails_with(IDS[0], IDS[29], status=status) as (url, _):
        connect_to(monkeypatch, url, batch_size=30)
        run = wait(IDS, retries=0)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(48, running=[IDS[0], IDS[29]])


@pytest.mark.usefixtures("airflow_db", "quick_retries")
def test_a_success_of_a_later_request_is_evidence_for_the_earlier_ones(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, *others = IDS
    with relay_that_fails_with(bad, *others[:19], status=500) as (url, requests):
        connect_to(monkeypatch, url, batch_size=20, max_in_flight=1)
        run = wait(IDS, retries=0)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(30, running=IDS[:20])
    assert len(requests) > 3 + MAX_PROBES + 2  # it went on with the first request after the others


def test_a_huge_row_ends_only_its_own_trigger(
    sandbox: Sandbox, connect: Callable[..., None], quick_retries: RetryPolicy
) -> None:
    connect(sandbox, max_response_bytes=300_000)
    ids = [sandbox.add_task(seconds=0, failure_reason="x" * 400_000 if n == 17 else None) for n in range(50)]
    events = together(*(event_of(trigger(task_id, timeout=300)) for task_id in ids))
    assert Counter(event["status"] for event in events) == {"done": 49, "error": 1}
    assert "max_response_bytes (300000)" in events[17]["error"]["message"]


@pytest.mark.parametrize("status", [500, 400])
@pytest.mark.usefixtures("airflow_db", "quick_retries")
def test_a_bad_id_hides_no_outcome_of_the_others(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with relay_that_fails_with(IDS[17], status=status) as (url, _):
        connect_to(monkeypatch, url)
        run = wait(IDS, retries=0)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(49, running=[IDS[17]])


@pytest.mark.usefixtures("airflow_db", "quick_retries")
def test_a_huge_row_hides_no_outcome_of_the_others(
    wait: Wait, sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, max_response_bytes=300_000)
    ids = [sandbox.add_task(seconds=0, failure_reason="x" * 400_000 if n == 17 else None) for n in range(50)]
    run = wait(ids, silent_fail=True, timeout=2)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(49, running=[ids[17]])


@pytest.mark.usefixtures("airflow_db", "quick_retries")
def test_fail_fast_and_silent_fail_decide_alike_beside_a_bad_id(
    wait: Wait, sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, max_response_bytes=300_000)
    failed = sandbox.add_task(seconds=0.5, failure_reason="moderation")
    huge = sandbox.add_task(seconds=0, failure_reason="x" * 400_000)
    run = wait([failed, huge, sandbox.add_task(seconds=math.inf)], silent_fail=True, fail_fast=True)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary")["failed"] == {failed: "moderation"}


@pytest.mark.parametrize("ids", [["good"], ["good", "bad"], ["good", "bad", "good-2", "good-3"]], ids=len)
def test_one_transient_error_during_the_search_ends_no_good_trigger(
    monkeypatch: pytest.MonkeyPatch, quick_retries: RetryPolicy, ids: list[str]
) -> None:
    hiccups = iter([502])

    class Relay(Quiet):
        def do_POST(self) -> None:
            queried = self.read_json()["ids"]
            status = 500 if "bad" in queried else next(hiccups, 200) if queried == ["good"] else 200
            rows = [{"id": task_id, "state": "completed"} for task_id in queried]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(rows).encode() if status == 200 else b"{}")

    with serving(Relay) as url:
        connect_to(monkeypatch, url)
        events = together(*(event_of(trigger(task_id, timeout=300)) for task_id in ids))
    assert {task_id for task_id, event in zip(ids, events, strict=True) if event["status"] == "error"} == {
        *ids
    } & {"bad"}


def test_a_relay_that_closes_connections_unannounced_ends_no_good_trigger(
    monkeypatch: pytest.MonkeyPatch, quick_retries: RetryPolicy
) -> None:
    class Relay(Quiet):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            ids = self.read_json()["ids"]
            body = json.dumps([{"id": task_id, "state": "completed"} for task_id in ids]).encode()
            self.send_response(500 if "bad" in ids else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
            time.sleep(0.005)  # the next request may come meanwhile

    with serving(Relay) as url:
        connect_to(monkeypatch, url)
        for _ in range(3):
            waits = [event_of(trigger(task_id, timeout=300)) for task_id in ["bad", *IDS]]
            assert Counter(event["status"] for event in together(*waits)) == {"done": 50, "error": 1}


def test_a_relay_that_is_down_gets_few_extra_requests(
    sandbox: Sandbox, connect: Callable[..., None], quick_retries: RetryPolicy
) -> None:
    connect(sandbox, batch_size=10, max_in_flight=1)
    sandbox.script(*responses(*[500] * 100))
    ids = [sandbox.add_task(seconds=0) for _ in range(50)]
    (event,) = together(event_of(trigger(*ids, timeout=300)))
    assert event["status"] == "error"
    assert len(sandbox.requests) == 5 * quick_retries.max_attempts + MAX_PROBES
    assert result_of(event, *ids)["running"] == ids
