from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident
from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.triggers.event import LumaTaskEventTrigger
from airflow_provider_luma.triggers.fired_tasks import MAX_HASHES, FiredTasks

Connect = Callable[..., None]


async def events(trigger: LumaTaskEventTrigger, seconds: float) -> list[dict[str, Any]]:
    """Collect what a watcher fires in this time; it never ends by itself."""
    fired: list[dict[str, Any]] = []

    async def watch() -> None:
        async for event in trigger.run():
            fired.append(event.payload)  # noqa: PERF401 - kept also when it is cancelled

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch(), seconds)
    return fired


def trigger(ids: list[str], **arguments: Any) -> LumaTaskEventTrigger:
    return LumaTaskEventTrigger(luma_task_ids=ids, **{"poke_interval": 0.5} | arguments)


def test_each_task_that_ends_fires_once(sandbox: Sandbox) -> None:
    good, bad = sandbox.add_task(seconds=0), sandbox.add_task(seconds=1, failure_reason="moderation")
    endless = sandbox.add_task(seconds=1000)
    assert asyncio.run(events(trigger([good, bad, endless]), 4)) == [
        {"id": good, "state": "completed", "failure_reason": None},
        {"id": bad, "state": "failed", "failure_reason": "moderation"},
    ]
    assert [request.ids for request in sandbox.requests][-1] == [endless]


def test_each_event_has_its_whole_reason_however_many_tasks_fail(sandbox: Sandbox) -> None:
    reasons = [f"{number} {'x' * 280}" for number in range(100)]
    ids = [sandbox.add_task(seconds=0, failure_reason=reason) for reason in reasons]
    assert [event["failure_reason"] for event in asyncio.run(events(trigger(ids), 4))] == reasons


def test_a_watcher_whose_tasks_all_ended_polls_no_more(sandbox: Sandbox) -> None:
    assert len(asyncio.run(events(trigger([sandbox.add_task(seconds=0)]), 3))) == 1
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 400])
def test_watching_resumes_after_a_rejection(sandbox: Sandbox, status: int) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script(*[ScriptedResponse(status=status, body={"message": "no"})] * 2)
    assert [event["id"] for event in asyncio.run(events(trigger([task_id]), 5))] == [task_id]


def test_watchers_share_their_polls(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=1000) for _ in range(5)]

    async def watch() -> None:
        watchers = [asyncio.create_task(events(trigger([task_id], poke_interval=1), 5)) for task_id in ids]
        await asyncio.gather(*watchers)

    asyncio.run(watch())
    assert max(len(request.ids or ()) for request in sandbox.requests) == 5
    assert len(sandbox.requests) <= 8


def test_the_trigger_serializes_to_plain_json(sandbox: Sandbox) -> None:
    path, arguments = trigger(["a", "b"]).serialize()
    assert path == "airflow_provider_luma.triggers.event.LumaTaskEventTrigger"
    again = LumaTaskEventTrigger(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)


def test_an_invalid_interval_is_rejected() -> None:
    with pytest.raises(LumaValueError, match="poke_interval"):
        trigger(["a"], poke_interval=0)


class Memory:
    """The state store of the one asset that a trigger watches, as Airflow gives it to event triggers."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.failing_reads = self.failing_writes = 0

    async def aget(self, key: str, default: Any = None) -> Any:
        self.failing_reads -= 1
        if self.failing_reads >= 0:
            raise RuntimeError("API_SERVER_ERROR: 503")
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key: str, value: Any) -> None:
        self.failing_writes -= 1
        if self.failing_writes >= 0:
            raise RuntimeError("API_SERVER_ERROR: 503")
        self.values[key] = json.dumps(value)


class BlockingMemory:
    """As Airflow 3.3.0 and 3.3.1 have it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def get(self, key: str, default: Any = None) -> Any:
        return asyncio.run(self._memory.aget(key, default))

    def set(self, key: str, value: Any) -> None:
        asyncio.run(self._memory.aset(key, value))


class SlowMemory(Memory):
    """Takes the calls of all triggers one by one, as a triggerer does, so that each waits its turn."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = asyncio.Lock()

    async def aget(self, key: str, default: Any = None) -> Any:
        async with self._turn:
            await asyncio.sleep(0.005)
            return await super().aget(key, default)

    async def aset(self, key: str, value: Any) -> None:
        async with self._turn:
            await asyncio.sleep(0.005)
            await super().aset(key, value)


class SharedMemory(Memory):
    """Is read by each of several triggerers before any of them has written."""

    def __init__(self, triggerers: int) -> None:
        super().__init__()
        self._have_read = Barrier(triggerers, timeout=60)
        self._readers: set[int] = set()

    async def aget(self, key: str, default: Any = None) -> Any:
        record = await super().aget(key, default)
        if get_ident() not in self._readers:
            self._readers.add(get_ident())
            await asyncio.to_thread(self._have_read.wait)
        return record


class BrokenMemory:
    async def aget(self, key: str, default: Any = None) -> Any:
        raise ValueError("Task has 2 concrete inlets and outlets")

    aset = aget


def watcher(ids: list[str], memory: Any, **arguments: Any) -> LumaTaskEventTrigger:
    watching = trigger(ids, **arguments)
    watching.asset_state_store = memory
    return watching


def test_a_bad_batch_does_not_hold_back_the_events_of_a_good_one(sandbox: Sandbox, connect: Connect) -> None:
    connect(sandbox, batch_size=1)
    bad, good = sandbox.add_task(seconds=0), sandbox.add_task(seconds=0)
    sandbox.script(ScriptedResponse(status=400, body={"message": "no"}))
    fired = asyncio.run(events(trigger([bad, good], poke_interval=1000), 3))
    assert len(fired) == 1


@pytest.mark.parametrize("blocking", [False, True])
def test_an_event_does_not_fire_again_after_a_restart(sandbox: Sandbox, blocking: bool) -> None:
    memory = Memory()
    store = BlockingMemory(memory) if blocking else memory
    ids = [sandbox.add_task(seconds=0), sandbox.add_task(seconds=0, failure_reason="moderation")]
    late = sandbox.add_task(seconds=6)
    assert len(asyncio.run(events(watcher([*ids, late], store), 4))) == 2
    again = asyncio.run(events(watcher([*ids, late], store), 8))
    assert [event["id"] for event in again] == [late]


def test_an_event_that_airflow_may_not_have_stored_fires_again(sandbox: Sandbox) -> None:
    memory, task_id = Memory(), sandbox.add_task(seconds=0)
    for _ in range(2):
        assert len(asyncio.run(events(watcher([task_id], memory), 1.5))) == 1


def test_a_read_that_fails_is_repeated_before_anything_fires(sandbox: Sandbox) -> None:
    memory, ids = Memory(), [sandbox.add_task(seconds=0) for _ in range(2)]
    assert len(asyncio.run(events(watcher(ids, memory), 4))) == 2
    memory.failing_reads = 2
    assert asyncio.run(events(watcher(ids, memory), 5)) == []
    memory.failing_reads = 1
    late = sandbox.add_task(seconds=0)
    assert [event["id"] for event in asyncio.run(events(watcher([*ids, late], memory), 5))] == [late]


@pytest.mark.parametrize("endless", [0, 1])
def test_a_write_that_fails_is_repeated(sandbox: Sandbox, endless: int) -> None:
    memory, task_id = Memory(), sandbox.add_task(seconds=0)
    ids = [task_id] + [sandbox.add_task(seconds=1000) for _ in range(endless)]
    memory.failing_writes = 3
    assert len(asyncio.run(events(watcher(ids, memory), 6))) == 1
    assert asyncio.run(events(watcher(ids, memory), 3)) == []


def test_what_has_fired_is_remembered_when_the_list_of_ids_changes(sandbox: Sandbox) -> None:
    memory, ids = Memory(), [sandbox.add_task(seconds=0) for _ in range(3)]
    assert len(asyncio.run(events(watcher([*ids, "never-known"], memory), 4))) == 3
    assert asyncio.run(events(watcher(ids, memory), 2)) == []
    new = sandbox.add_task(seconds=0)
    fired = asyncio.run(events(watcher([new, *reversed(ids)], memory), 4))
    assert [event["id"] for event in fired] == [new]
    assert asyncio.run(events(watcher([*ids, new], memory), 2)) == []


def test_watchers_of_one_asset_forget_nothing_of_each_other(sandbox: Sandbox) -> None:
    memory, ids = Memory(), [sandbox.add_task(seconds=0) for _ in range(2)]
    for task_id in ids:
        assert len(asyncio.run(events(watcher([task_id], memory), 4))) == 1
    assert asyncio.run(events(watcher(ids, memory), 2)) == []


@pytest.mark.parametrize("watchers", [2, 3])
def test_watchers_of_one_asset_that_fire_together_erase_nothing_of_each_other(
    sandbox: Sandbox, watchers: int
) -> None:
    ids = [sandbox.add_task(seconds=1) for _ in range(watchers)]

    async def watch(memory: Memory) -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*[events(watcher([task_id], memory), 5) for task_id in ids])

    memory = SlowMemory()
    assert [len(fired) for fired in asyncio.run(watch(memory))] == [1] * watchers
    restarted = SlowMemory()
    restarted.values = memory.values
    assert asyncio.run(watch(restarted)) == [[]] * watchers


@pytest.mark.parametrize("triggerers", [2, 3])
def test_triggerers_that_write_together_write_again_until_all_is_remembered(
    monkeypatch: pytest.MonkeyPatch, triggerers: int
) -> None:
    monkeypatch.setattr("airflow_provider_luma.triggers.fired_tasks.STORING_SECONDS", 0)
    monkeypatch.setattr("airflow_provider_luma.triggers.fired_tasks.CONFIRM_SECONDS", 1)
    memory, ids = SharedMemory(triggerers), [f"task-{n}" for n in range(triggerers)]

    async def fire(task_id: str) -> None:
        fired = FiredTasks(memory)
        await fired.add([task_id])
        while not fired.is_saved:
            await asyncio.sleep(0.1)
            await fired.save()

    with ThreadPoolExecutor() as threads:  # each has an event loop of its own, as a triggerer has
        list(threads.map(lambda task_id: asyncio.run(fire(task_id)), ids))
    restarted = Memory()
    restarted.values = memory.values
    assert asyncio.run(FiredTasks(restarted).load_unfired([*ids, "new"])) == ["new"]


def test_watchers_of_too_many_ids_do_not_erase_what_the_other_has_just_fired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airflow_provider_luma.triggers.fired_tasks.STORING_SECONDS", 0)
    monkeypatch.setattr("airflow_provider_luma.triggers.fired_tasks.CONFIRM_SECONDS", 0)
    memory, number = Memory(), MAX_HASHES + 500
    watchers = [(FiredTasks(memory), f"watcher-{n}") for n in range(2)]

    async def fire() -> None:
        for fired, name in watchers:
            await fired.add([f"{name}-{n}" for n in range(number)])
            await fired.save()
        for fired, name in watchers:
            await fired.add([f"{name}-last"])
        for fired, _ in watchers:
            await fired.save()

    asyncio.run(fire())
    assert [fired.is_saved for fired, _ in watchers] == [True, True]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_luma.triggers.fired_tasks.STORING_SECONDS", 0)
    memory, number = Memory(), MAX_HASHES + 500
    ids = [f"{n:08}-7641-4809-a133-10786201bb56" for n in range(number)]

    async def fire(some: list[str]) -> int:
        fired = FiredTasks(memory)
        unfired = await fired.load_unfired(some)
        await fired.add(unfired)
        return len(unfired)

    for start in range(0, number, 1000):
        asyncio.run(fire(ids[start : start + 1000]))
    assert sum(map(len, memory.values.values())) < 65_535
    assert asyncio.run(fire(ids[-MAX_HASHES:])) == 0
    assert asyncio.run(fire(ids)) == 500
    assert asyncio.run(fire(ids)) == 0  # its own are all kept


@pytest.mark.parametrize("damage", [b"null", b"[]", b'{"version": 1}', b'{"version": 1, "hashes": 5}'])
def test_a_damaged_memory_is_none(sandbox: Sandbox, damage: bytes) -> None:
    memory = Memory()
    memory.values["luma_fired"] = damage.decode()
    assert len(asyncio.run(events(watcher([sandbox.add_task(seconds=0)], memory), 2))) == 1


def test_a_watcher_without_a_state_store_still_fires(sandbox: Sandbox) -> None:
    assert len(asyncio.run(events(watcher([sandbox.add_task(seconds=0)], BrokenMemory()), 2))) == 1


def test_a_watcher_outlasts_every_kind_of_error(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = dict(sandbox.connection)
    monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")  # the connection does not exist: no error of ours

    async def watch() -> list[dict[str, Any]]:
        watching = asyncio.create_task(events(trigger([sandbox.add_task(seconds=0)]), 5))
        await asyncio.sleep(1.5)
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(connection))
        return await watching

    assert len(asyncio.run(watch())) == 1
