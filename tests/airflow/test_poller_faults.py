"""What a relay or a connection does wrong hurts no other trigger, and passes."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.relay import TaskBatch
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.relay.schedule import PollSchedule
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.triggers import registry
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from airflow_provider_luma.triggers.poller import _grid_offset
from airflow_provider_luma.triggers.request import query_slim
from airflow_provider_luma.triggers.subscription import Subscription
from tests.airflow.test_poller import event_of, nothing_is_left, result_of, together, trigger


@contextmanager
def relay_that_drips(good: dict[str, Any], drips: int) -> Iterator[tuple[str, list[None]]]:
    """
    Serve a relay whose first responses never end: a byte every tenth of a second.

    :return: where it is, and a list that has an item for each response that has begun to drip.
    """
    served = iter(range(10**6))
    dripping: list[None] = []
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            while connection.recv(65536):
                if next(served) >= drips:
                    body = json.dumps([good]).encode()
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    continue
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n[")
                dripping.append(None)
                while not over.wait(0.1):
                    connection.sendall(b" ")

    def guarded(connection: socket.socket) -> None:
        with suppress(OSError):
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=guarded, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", dripping
        over.set()


def connect_to(monkeypatch: pytest.MonkeyPatch, host: str, *, key: str = "sk-any", **extra: Any) -> None:
    connection = {"conn_type": "luma", "host": host, "password": key, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(connection))


def test_endless_responses_release_their_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    with relay_that_drips({"id": "a", "state": "completed"}, drips=4) as (host, _):
        connect_to(monkeypatch, host, request_timeout=1, timeout=5, batch_size=1)
        dripped = [event_of(trigger(f"drip-{n}", timeout=1)) for n in range(4)]
        *timed_out, good = together(*dripped, event_of(trigger("a"), after=0.5))
    assert good["status"] == "done"
    assert {event["status"] for event in timed_out} == {"timeout"}
    assert nothing_is_left()


@pytest.mark.parametrize("number", [4, 40])
def test_abandoned_polls_free_their_slots_and_threads_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    async def abandoning() -> None:
        keeper = asyncio.create_task(event_of(trigger("other", polled_at=time.time(), poke_interval=600)))
        for start in range(0, number, 4):  # as many as run at once
            waits = [asyncio.create_task(event_of(trigger(f"drip-{start + n}"))) for n in range(4)]
            while len(dripping) < start + 4:
                await asyncio.sleep(0.02)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        assert (await event_of(trigger("a", timeout=600)))["status"] == "done"
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    with relay_that_drips({"id": "a", "state": "completed"}, drips=number) as (host, dripping):
        # Neither limit ends a request before the test is over.
        connect_to(monkeypatch, host, request_timeout=3600, timeout=3600, batch_size=1)
        asyncio.run(abandoning())
        assert nothing_is_left()
    assert "pool is full" not in caplog.text


def test_a_request_in_flight_ends_with_its_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    async def leaving() -> None:
        wait = asyncio.create_task(event_of(trigger("drip")))
        while not dripping:
            await asyncio.sleep(0.02)
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)

    with relay_that_drips({}, drips=1) as (host, dripping):
        connect_to(monkeypatch, host, request_timeout=3600, timeout=3600)
        asyncio.run(leaving())
        assert nothing_is_left()


def test_a_key_that_is_accepted_again_serves_the_triggers_after_it(sandbox: Sandbox) -> None:
    async def rejecting() -> list[str]:
        keeper = asyncio.create_task(event_of(trigger(sandbox.add_task(seconds=math.inf), poke_interval=600)))
        await asyncio.sleep(1)
        sandbox.script(ScriptedResponse(status=401, body={"message": "no"}))
        rejected = await event_of(trigger(sandbox.add_task(seconds=0)))
        accepted = await event_of(trigger(sandbox.add_task(seconds=0)))
        keeper.cancel()
        return [rejected["status"], accepted["status"]]

    assert asyncio.run(rejecting()) == ["error", "done"]


def test_a_key_that_is_rotated_moves_every_trigger_to_a_new_loop(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    async def seen(status: int) -> None:
        while not [request for request in sandbox.requests if request.status == status]:
            await asyncio.sleep(0.05)

    async def rotating() -> list[str]:
        ids = [sandbox.add_task(seconds=math.inf) for _ in range(3)]
        waits = [asyncio.create_task(event_of(trigger(task_id, timeout=120))) for task_id in ids]
        await seen(200)
        sandbox.api_key = "sk-rotated"
        connect(sandbox)
        await seen(401)
        for task_id in ids:
            sandbox.add_task(task_id=task_id, seconds=0)
        return [(await wait)["status"] for wait in waits]

    assert asyncio.run(rotating()) == ["done"] * 3
    rejected = [request for request in sandbox.requests if request.status == 401]
    assert 1 <= len(rejected) <= 4
    assert nothing_is_left()


def test_a_rotated_key_moves_no_trigger_to_a_loop_that_has_ended(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    async def rotating() -> tuple[bool, str | None]:
        pollers, schedule = registry._Pollers(), PollSchedule(60)
        before, after = (
            Subscription(TaskBatch([sandbox.add_task(seconds=0)], started_at=time.time()), schedule)
            for _ in range(2)
        )
        await pollers.join("luma_default", before)
        connect(sandbox, max_in_flight=2)
        await pollers.join("luma_default", after)
        old, new = before.poller, after.poller
        assert old is not None
        assert new is not None
        new._loop.cancel()
        await asyncio.wait([new._loop])
        pollers._replace(old, new.settings)
        assert before.poller is not None
        is_running = before.poller.is_running
        if is_running:
            await before.news()
        for subscription in (before, after):
            pollers.leave(subscription)
        return is_running, before.status

    assert asyncio.run(rotating()) == (True, "done")
    assert nothing_is_left()


def test_a_connection_that_breaks_while_triggers_wait_fails_only_them(
    sandbox: Sandbox, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaking() -> list[Any]:
        waits = [asyncio.create_task(event_of(trigger(sandbox.add_task(seconds=math.inf)))) for _ in range(2)]
        await asyncio.sleep(0.8)
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", '{"conn_type": "luma"}')
        sandbox.api_key = "sk-another"
        return [(await wait)["error"]["message"] for wait in waits]

    messages = asyncio.run(breaking())
    assert all("no password" in message for message in messages)


def test_a_huge_response_delays_no_other_trigger(
    sandbox: Sandbox, connect: Callable[..., None], quick_retries: RetryPolicy
) -> None:
    gc.collect()
    gc.freeze()  # a full collection of what the tests hold takes longer than everything else here
    connect(sandbox, max_response_bytes=8_000_000)
    bodies = [
        b"[" + b"[]," * 17_000 + b"[]]",
        b"[" + b"[]," * 2_600_000 + b"[]]",
        b'["' + b"x" * 7_900_000 + b'"]',
    ]

    def watched(body: bytes) -> float:
        sandbox.script(*[ScriptedResponse(body=body)] * 3)
        return lag(trigger(sandbox.add_task(seconds=0)))

    longest = [min(watched(body) for _ in range(3)) for body in bodies]
    gc.unfreeze()
    assert max(longest) < 0.1, longest


def test_ten_thousand_different_reasons_delay_no_other_trigger(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    gc.collect()
    gc.freeze()
    connect(sandbox, batch_size=10_000)
    ids = [f"{n:08}-7641-4809-a133-10786201bb56" for n in range(10_000)]
    zwj = "\U0001f469\u200d\U0001f680"  # takes the longest to clean
    rows = [{"id": task_id, "state": "failed", "failure_reason": f"{task_id} {zwj * 50}"} for task_id in ids]
    sandbox.script(*[ScriptedResponse(body=json.dumps(rows, ensure_ascii=False).encode())] * 3)
    longest = min(lag(trigger(*ids)) for _ in range(3))
    gc.unfreeze()
    assert longest < 0.1


def test_many_triggers_of_one_response_leave_turns_to_the_event_loop(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0, failure_reason="x" * 290) for _ in range(100)]
    triggers = [trigger(*ids) for _ in range(100)]
    updated, ended = [0], [0]

    async def watched() -> list[dict[str, Any]]:
        waits = [asyncio.create_task(event_of(waiting)) for waiting in triggers]
        while ended[-1] < len(waits):
            await asyncio.sleep(0)
            batches = [waiting._batch for waiting in triggers]
            updated.append(sum(batch is not None and not batch.pending_count for batch in batches))
            ended.append(sum(wait.done() for wait in waits))
        return [await wait for wait in waits]

    assert {event["status"] for event in asyncio.run(watched())} == {"done"}
    for numbers in (updated, ended):
        assert max(later - earlier for earlier, later in pairwise(numbers)) <= 10


def test_the_start_of_a_round_leaves_turns_to_the_event_loop(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, batch_size=100_000)
    sandbox.script(ScriptedResponse(body=[], delay=20))
    triggers = [trigger(*(f"{n}-{m}" for m in range(1_000))) for n in range(20)]

    async def watched() -> list[int]:
        waits = [asyncio.create_task(event_of(waiting)) for waiting in triggers]
        assigned = [0]
        while assigned[-1] < 20_000:
            await asyncio.sleep(0)
            pollers = registry._pollers.get(asyncio.get_running_loop())
            assigned.append(sum(len(p._in_flight) for p in pollers.by_connection.values()) if pollers else 0)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return assigned

    assert max(later - earlier for earlier, later in pairwise(asyncio.run(watched()))) <= 1_000


def test_a_reason_is_cleaned_once_however_many_wait_for_it(sandbox: Sandbox) -> None:
    task_id = sandbox.add_task(seconds=0, failure_reason="see https://relay.example/a?key=b " * 20)
    client = LumaHook().client
    task = query_slim(client, [task_id], client.exchange())[task_id]
    assert task.failure_reason
    assert task.failure_reason is task.failure_reason


def lag(waiting: LumaTaskTrigger) -> float:
    """
    Return how long the event loop was held at the most while a trigger ran.

    In seconds of this process on a processor, if that is less: others may take the core meanwhile.
    """

    async def watched() -> float:
        wait = asyncio.create_task(event_of(waiting))
        longest = 0.0
        while not wait.done():
            started, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(0.005)
            passed = time.monotonic() - started
            assert passed < 1  # as a loop that waits for something uses no processor
            longest = max(longest, min(passed - 0.005, time.process_time() - cpu))
        assert (await wait)["status"] in {"done", "error"}
        return longest

    return asyncio.run(watched())


@pytest.mark.parametrize("reason", [r'"\ud83d"', r'"\u0000"', json.dumps("x" * 3_000_000)])
def test_an_event_can_be_encoded_whatever_the_reason(sandbox: Sandbox, reason: str) -> None:
    body = f'[{{"id": "a", "state": "failed", "fail_reason": {reason}}}]'
    sandbox.script(ScriptedResponse(body=body))
    (event,) = together(event_of(trigger("a")))
    assert len(json.dumps(event, ensure_ascii=False).encode()) < 2_000
    assert list(result_of(event, "a")["failed"]) == ["a"]


@pytest.mark.parametrize("status", [400, 401, 503])
def test_an_error_event_can_be_encoded_whatever_the_relay_sends(
    sandbox: Sandbox, quick_retries: RetryPolicy, status: int
) -> None:
    body = r'{"message": "\ud83d\u0000 ' + "x" * 100_000 + r'", "code": "\ud83d"}'
    sandbox.script(*[ScriptedResponse(status, body, headers={"X-Request-Id": "\xff" * 3000})] * 3)
    (event,) = together(event_of(trigger("a")))
    assert event["status"] == "error"
    assert len(json.dumps(event, ensure_ascii=False).encode()) < 8_000


def test_polls_of_different_connections_are_jittered() -> None:
    offsets = {round(_grid_offset(f"sk-{n}")) % 60 for n in range(500)}
    assert len(offsets) > 50
    assert _grid_offset("sk-a") == _grid_offset("sk-a")


def test_a_wait_in_which_nothing_changes_logs_nothing(sandbox: Sandbox, capsys: Any) -> None:
    endless, good = sandbox.add_task(seconds=math.inf), sandbox.add_task(seconds=0)
    (event,) = together(event_of(trigger(endless, good, timeout=3, poke_interval=0.3)))
    assert event["status"] == "timeout"
    assert len(sandbox.requests) > 5
    # When it changed, and at the end.
    assert capsys.readouterr().out.count("1 of 2 completed, 1 running") == 2


def test_a_wait_in_which_nothing_changes_logs_now_and_then(
    sandbox: Sandbox, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_luma.triggers.subscription.QUIET_SECONDS", 1)
    together(event_of(trigger(sandbox.add_task(seconds=math.inf), timeout=4, poke_interval=0.3)))
    assert 2 <= capsys.readouterr().out.count("0 of 1 completed, 1 running") <= 5


def test_silent_fail_logs_the_error_it_ignored(
    sandbox: Sandbox, capsys: Any, quick_retries: RetryPolicy
) -> None:
    sandbox.script(*[ScriptedResponse(status=503, body={"message": "no channel"})] * 3)
    (event,) = together(event_of(trigger(sandbox.add_task(seconds=0), silent_fail=True)))
    assert event["status"] == "done"
    assert [
        line
        for line in capsys.readouterr().out.splitlines()
        if "silent_fail" in line and "no channel" in line
    ]


def test_errors_of_a_poll_that_are_alike_are_one_line(
    sandbox: Sandbox, connect: Callable[..., None], capsys: Any, quick_retries: RetryPolicy
) -> None:
    connect(sandbox, batch_size=1)
    sandbox.script(*[ScriptedResponse(status=503, body={"message": "no channel"})] * 1000)
    ids = [sandbox.add_task(seconds=0) for _ in range(20)]
    (event,) = together(event_of(trigger(*ids, silent_fail=True, timeout=4, poke_interval=2)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "silent_fail" in line]
    assert event["status"] == "timeout"
    assert 1 <= len(lines) <= 3


@pytest.mark.parametrize("silent_fail", [True, False])
def test_a_connection_that_cannot_be_read_at_a_rejection_is_a_transient_error(
    sandbox: Sandbox, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, silent_fail: bool
) -> None:
    async def rotating() -> dict[str, Any]:
        running = sandbox.add_task(seconds=2)
        wait = asyncio.create_task(event_of(trigger(running, timeout=60, silent_fail=silent_fail)))
        while not sandbox.requests:
            await asyncio.sleep(0.05)
        sandbox.api_key = "sk-rotated"
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        while not [request for request in sandbox.requests if request.status == 401]:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        connect(sandbox)
        return await wait

    event = asyncio.run(rotating())
    if silent_fail:
        assert event["status"] == "done"
    else:
        assert event["error"]["type"] == "RelayTransientError"
        assert "cannot be read" in event["error"]["message"]


def test_setting_back_the_clock_delays_no_poll(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() - shift[0])

    async def waiting() -> dict[str, Any]:
        wait = asyncio.create_task(event_of(trigger(sandbox.add_task(seconds=math.inf), timeout=5)))
        while not sandbox.requests:
            await asyncio.sleep(0.05)
        shift[0] = 600.0
        return await asyncio.wait_for(wait, 60)

    assert asyncio.run(waiting())["status"] == "timeout"
    assert len(sandbox.requests) > 3


def test_a_state_of_other_ids_fails_its_own_trigger_alone(sandbox: Sandbox) -> None:
    other = trigger("a")
    other.state = TaskBatch(["b"], started_at=0).dump()
    fault, event = together(event_of(other), event_of(trigger(sandbox.add_task(seconds=0))))
    assert "not that of its luma_task_ids" in str(fault)
    assert event["status"] == "done"


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15])
def test_a_trigger_that_is_cancelled_as_its_request_begins_leaves_its_id_to_the_next(
    sandbox: Sandbox, delay: float
) -> None:
    task_id = sandbox.add_task(seconds=0)

    async def scenario() -> dict[str, Any]:
        other = trigger(sandbox.add_task(seconds=math.inf), poke_interval=2)
        keeper = asyncio.create_task(event_of(other))
        await asyncio.sleep(1)
        cancelled = asyncio.create_task(event_of(trigger(task_id)))
        await asyncio.sleep(delay)
        asyncio.get_running_loop().call_later(0.39, cancelled.cancel)
        time.sleep(0.4)  # noqa: ASYNC251 - another trigger that blocks the loop, so that both fall together
        with suppress(asyncio.CancelledError):
            await cancelled
        event = await event_of(trigger(task_id, timeout=8))
        keeper.cancel()
        return event

    assert asyncio.run(scenario())["status"] == "done"


def test_an_id_that_a_relay_rejects_fails_only_its_own_trigger(sandbox: Sandbox) -> None:
    good = sandbox.add_task(seconds=0)
    sandbox.script(
        ScriptedResponse(status=400, body={"message": "bad is no id"}),
        ScriptedResponse(body=[{"id": good, "state": "completed"}]),
        ScriptedResponse(status=400, body={"message": "bad is no id"}),
    )
    first, second = together(event_of(trigger(good)), event_of(trigger("bad")))
    assert first["status"] == "done"
    assert second["status"] == "error"
    assert [request.ids for request in sandbox.requests] == [[good, "bad"], [good], ["bad"]]
