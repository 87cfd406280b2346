from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer
from airflow_provider_luma.triggers.event import LumaTaskEventTrigger

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
    good, bad = sandbox.add_task(seconds=0), sandbox.add_task(seconds=1, fails="moderation")
    endless = sandbox.add_task(seconds=1000)
    assert asyncio.run(events(trigger([good, bad, endless]), 4)) == [
        {"id": good, "state": "completed", "failure_reason": None},
        {"id": bad, "state": "failed", "failure_reason": "moderation"},
    ]
    assert [request.ids for request in sandbox.requests][-1] == [endless]


def test_a_watcher_that_has_seen_all_asks_no_more(sandbox: Sandbox) -> None:
    assert len(asyncio.run(events(trigger([sandbox.add_task(seconds=0)]), 3))) == 1
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 400])
def test_watching_goes_on_after_a_rejection(sandbox: Sandbox, status: int) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script(*[ScriptedAnswer(status=status, body={"message": "no"})] * 2)
    assert [event["id"] for event in asyncio.run(events(trigger([task_id]), 5))] == [task_id]


def test_watchers_share_their_polls(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=1000) for _ in range(5)]

    async def watch() -> None:
        watchers = [asyncio.create_task(events(trigger([task_id], poke_interval=1), 5)) for task_id in ids]
        await asyncio.gather(*watchers)

    asyncio.run(watch())
    assert max(len(request.ids or ()) for request in sandbox.requests) == 5
    assert len(sandbox.requests) <= 8


def test_it_travels_as_plain_json(sandbox: Sandbox) -> None:
    path, arguments = trigger(["a", "b"]).serialize()
    assert path == "airflow_provider_luma.triggers.event.LumaTaskEventTrigger"
    again = LumaTaskEventTrigger(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)


def test_an_invalid_interval_is_rejected() -> None:
    with pytest.raises(LumaValueError, match="poke_interval"):
        trigger(["a"], poke_interval=0)
