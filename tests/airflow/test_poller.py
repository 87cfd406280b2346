"""Many triggers, one relay: which requests are sent, when, and which triggers an error affects."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_luma.relay import TaskBatch
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.triggers import registry
from airflow_provider_luma.triggers.luma import LumaTaskTrigger

MAX_IN_FLIGHT = 4


def trigger(*ids: str, conn_id: str = "luma_default", **arguments: Any) -> LumaTaskTrigger:
    arguments = {"timeout": 20, "poke_interval": 0.5} | arguments
    state = TaskBatch(ids, started_at=time.time()).dump()
    return LumaTaskTrigger(luma_task_ids=list(ids), luma_conn_id=conn_id, state=state, **arguments)


def result_of(event: dict[str, Any], *ids: str) -> dict[str, Any]:
    """Return the summary of the state that an event carries."""
    batch = TaskBatch.load(ids, event["state"])
    assert batch is not None
    return batch.result.summary()


async def event_of(trigger: LumaTaskTrigger, after: float = 0) -> dict[str, Any]:
    await asyncio.sleep(after)
    (event,) = [event.payload async for event in trigger.run()]
    return event


def together(*waits: Any) -> list[Any]:
    async def gathered() -> list[Any]:
        return await asyncio.gather(*waits, return_exceptions=True)

    return asyncio.run(gathered())


def nothing_is_left() -> bool:
    """Threads end by themselves, a moment after they are stopped."""
    deadline = time.monotonic() + 2
    while threads := [t for t in threading.enumerate() if t.name.startswith("luma-poll")]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return not threads


def test_a_thousand_triggers_cost_as_many_requests_as_one(connect: Callable[..., None]) -> None:
    requests: list[Any] = []
    with Sandbox(tasks=0, clock=lambda: len(requests) // 10) as sandbox:  # time passes from round to round
        requests = sandbox.requests
        connect(sandbox)
        ids = [sandbox.add_task(seconds=2) for _ in range(1000)]
        events = together(*(event_of(trigger(task_id, poke_interval=4)) for task_id in ids))
    assert all(event["status"] == "done" for event in events)
    assert [len(request.ids or ()) for request in requests] == [100] * 30
    assert nothing_is_left()


def test_an_id_that_many_wait_for_is_queried_once_a_round(sandbox: Sandbox) -> None:
    task_id = sandbox.add_task(seconds=0)
    together(*(event_of(trigger(task_id)) for _ in range(50)))
    assert [request.ids for request in sandbox.requests] == [[task_id]]


def test_an_id_in_flight_is_not_queried_again_by_a_late_trigger(sandbox: Sandbox) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script(ScriptedResponse(body=[{"id": task_id, "state": "completed"}], delay=1))
    events = together(event_of(trigger(task_id)), event_of(trigger(task_id), after=0.6))
    assert [event["status"] for event in events] == ["done", "done"]
    assert len(sandbox.requests) == 1


def test_late_trigger_does_not_wait_for_slow_one(sandbox: Sandbox) -> None:
    endless, quick = sandbox.add_task(seconds=math.inf), sandbox.add_task(seconds=0)

    async def joining() -> float:
        slow = asyncio.create_task(event_of(trigger(endless, poke_interval=60)))
        await asyncio.sleep(0.6)
        started = time.monotonic()
        await event_of(trigger(quick, poke_interval=60))
        slow.cancel()
        return time.monotonic() - started

    assert asyncio.run(joining()) < 1


def test_connections_never_mix(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(tasks=0, api_key="sk-other") as other:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(other.connection))
        here, there = sandbox.add_task(seconds=0), other.add_task(seconds=0)
        together(event_of(trigger(here)), event_of(trigger(there, conn_id="other")))
        assert [request.ids for request in sandbox.requests] == [[here]]
        assert [request.ids for request in other.requests] == [[there]]


def test_a_changed_connection_is_another_one(sandbox: Sandbox, connect: Callable[..., None]) -> None:
    with Sandbox(tasks=0) as other:
        here, there = sandbox.add_task(seconds=1.2), other.add_task(seconds=0)

        async def changing() -> None:
            before = asyncio.create_task(event_of(trigger(here)))
            await asyncio.sleep(0.5)
            connect(other)
            await event_of(trigger(there))
            assert (await before)["status"] == "done"

        asyncio.run(changing())
        assert {*map(tuple, (request.ids for request in sandbox.requests))} == {(here,)}
        assert [request.ids for request in other.requests] == [[there]]
    assert nothing_is_left()


def test_max_connections_limits_requests_in_flight(sandbox: Sandbox, connect: Callable[..., None]) -> None:
    connect(sandbox, batch_size=1)
    ids = [sandbox.add_task(seconds=0) for _ in range(12)]
    sandbox.script(
        *(ScriptedResponse(body=[{"id": i, "state": "completed"} for i in ids], delay=0.5) for _ in ids)
    )
    together(event_of(trigger(*ids)))
    starts = sorted(request.at for request in sandbox.requests)
    assert all(b - a >= 0.4 for a, b in zip(starts, starts[MAX_IN_FLIGHT:], strict=False))


def test_the_event_loop_never_blocks(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(4)]
    sandbox.script(*(ScriptedResponse(body=[], delay=1) for _ in ids))
    lags = []

    async def watched() -> None:
        waits = asyncio.gather(*(event_of(trigger(task_id)) for task_id in ids))
        while not waits.done():
            started = time.monotonic()
            await asyncio.sleep(0.01)
            lags.append(time.monotonic() - started - 0.01)

    asyncio.run(watched())
    assert sorted(lags)[int(len(lags) * 0.99)] < 0.05


def test_no_request_is_sent_during_a_rate_limit(sandbox: Sandbox, connect: Callable[..., None]) -> None:
    connect(sandbox, batch_size=1)
    ids = [sandbox.add_task(seconds=0) for _ in range(8)]
    rows = [{"id": task_id, "state": "completed"} for task_id in ids]
    sandbox.script(
        ScriptedResponse(status=429, headers={"Retry-After": "1"}),
        # So slow that the 429 has arrived before another request may take their place.
        *[ScriptedResponse(body=rows, delay=0.3)] * (MAX_IN_FLIGHT - 1),
    )
    joins_meanwhile = event_of(trigger(sandbox.add_task(seconds=0)), after=0.7)
    events = together(event_of(trigger(*ids)), joins_meanwhile)
    assert all(event["status"] == "done" for event in events)
    rejected_at = next(request.at for request in sandbox.requests if request.status == 429)
    in_flight = [request for request in sandbox.requests if rejected_at < request.at < rejected_at + 0.4]
    assert len(in_flight) < MAX_IN_FLIGHT
    assert not [r for r in sandbox.requests if rejected_at + 0.4 < r.at < rejected_at + 1]


def test_requests_per_minute_of_the_connection_is_respected(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, batch_size=1, max_requests_per_minute=300)
    together(event_of(trigger(*[sandbox.add_task(seconds=0) for _ in range(8)])))
    starts = [request.at for request in sandbox.requests]
    assert starts[-1] - starts[0] > 0.7 * 7 * 60 / 300


def test_max_connections_of_the_connection_is_respected(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, batch_size=1, max_in_flight=12)
    ids = [sandbox.add_task(seconds=0) for _ in range(12)]
    rows = [{"id": task_id, "state": "completed"} for task_id in ids]
    sandbox.script(*(ScriptedResponse(body=rows, delay=1) for _ in ids))
    together(event_of(trigger(*ids)))
    assert max(request.at for request in sandbox.requests) - min(r.at for r in sandbox.requests) < 0.9


def test_a_burst_of_429_fails_no_trigger(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(20)]
    sandbox.script(*[ScriptedResponse(status=429)] * 4)
    events = together(*(event_of(trigger(task_id)) for task_id in ids))
    assert all(event["status"] == "done" for event in events)


def test_a_rotated_key_fails_no_trigger(sandbox: Sandbox, connect: Callable[..., None]) -> None:
    ids = [sandbox.add_task(seconds=1) for _ in range(300)]

    async def rotating() -> list[dict[str, Any]]:
        waits = asyncio.gather(*(event_of(trigger(task_id)) for task_id in ids))
        await asyncio.sleep(0.6)
        sandbox.api_key = "sk-rotated"
        connect(sandbox)
        return await waits

    assert {event["status"] for event in asyncio.run(rotating())} == {"done"}


def test_a_rejected_key_that_did_not_change_fails_all_at_once(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=math.inf) for _ in range(1000)]
    sandbox.api_key = "sk-another"
    events = together(*(event_of(trigger(task_id)) for task_id in ids))
    assert {event["error"]["type"] for event in events} == {"RelayAuthenticationError"}
    assert len(sandbox.requests) <= MAX_IN_FLIGHT


def test_an_invalid_trigger_fails_alone(sandbox: Sandbox) -> None:
    good = sandbox.add_task(seconds=1)
    bad = trigger(sandbox.add_task(seconds=math.inf), poke_interval="soon")
    fault, event = together(event_of(bad), event_of(trigger(good)))
    assert isinstance(fault, TypeError)
    assert event["status"] == "done"


def test_an_error_of_one_batch_does_not_affect_the_others(
    sandbox: Sandbox, connect: Callable[..., None], quick_retries: RetryPolicy
) -> None:
    connect(sandbox, batch_size=1)
    first, second = sandbox.add_task(seconds=0), sandbox.add_task(seconds=0)
    sandbox.script(ScriptedResponse(status=400, body={"message": "bad id"}))
    events = together(event_of(trigger(first)), event_of(trigger(second)))
    assert sorted(event["status"] for event in events) == ["done", "error"]


def test_a_trigger_with_one_failed_batch_keeps_the_result_of_the_others(
    sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, batch_size=1)
    ids = [sandbox.add_task(seconds=0, failure_reason="moderation") for _ in range(3)]
    sandbox.script(ScriptedResponse(status=400, body={"message": "bad id"}))
    (event,) = together(event_of(trigger(*ids)))
    assert event["status"] == "error"
    (rejected,) = [request.ids for request in sandbox.requests if request.status == 400]
    summary = result_of(event, *ids)
    assert summary["running"] == rejected
    assert summary["failed"] == dict.fromkeys({*ids} - {*rejected}, "moderation")


def test_cancelling_one_leaves_the_others_and_the_last_cleans_up(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    sandbox.script(ScriptedResponse(body=[{"id": i, "state": "completed"} for i in ids], delay=0.8))

    async def cancelling() -> list[Any]:
        waits = [asyncio.create_task(event_of(trigger(task_id))) for task_id in ids]
        await asyncio.sleep(0.6)
        waits[0].cancel()
        return await asyncio.gather(*waits, return_exceptions=True)

    first, *others = asyncio.run(cancelling())
    assert isinstance(first, asyncio.CancelledError)
    assert [event["status"] for event in others] == ["done", "done"]
    assert len(sandbox.requests) == 1
    assert nothing_is_left()


def test_cancelling_all_leaves_nothing(sandbox: Sandbox) -> None:
    sandbox.script(ScriptedResponse(body=[], delay=5))

    async def cancelling() -> set[str]:
        wait = asyncio.create_task(event_of(trigger(sandbox.add_task())))
        await asyncio.sleep(0.6)
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)
        await asyncio.sleep(0)
        return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert asyncio.run(cancelling()) == set()
    assert not [pollers for pollers in registry._pollers.values() if pollers.by_connection]


def test_a_connection_is_read_once_for_triggers_that_start_together(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    original = registry.read_settings

    async def counting(conn_id: str) -> Any:
        reads.append(conn_id)
        return await original(conn_id)

    monkeypatch.setattr(registry, "read_settings", counting)
    ids = [sandbox.add_task(seconds=0) for _ in range(100)]
    together(*(event_of(trigger(task_id)) for task_id in ids))
    assert reads == ["luma_default"]


def test_the_last_to_leave_closes_and_the_next_starts_afresh(sandbox: Sandbox) -> None:
    async def visits() -> None:
        for _ in range(2):
            await event_of(trigger(sandbox.add_task(seconds=0)))
            assert not [pollers for pollers in registry._pollers.values() if pollers.by_connection]

    asyncio.run(visits())
    assert nothing_is_left()
    assert len(sandbox.requests) == 2
