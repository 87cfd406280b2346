"""
Measures what waiting costs a triggerer: ours beside a deferrable HttpSensor per id and beside doing nothing.

Each case runs its triggers on an event loop in a process of its own, against one relay in another process.
``python benchmarks/wait.py`` prints the table and writes it to ``benchmarks/wait.md``.

The peer gets an endpoint of its own, which responds with 404 until the task is done, because its trigger
takes any other response for success, so that it could not wait at ``/luma/tasks`` at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTERVAL = 5
STEADY = 20  # seconds of waiting that are measured, four intervals
FINISHING = 10  # seconds over which the tasks then finish, one after the other
WARM_UP = 10
STARTING = 12  # seconds that the process with the triggers has for its imports

CASES = [
    ("idle triggers (floor)", "idle", (100, 1000)),
    ("HttpSensor per id (peer)", "peer", (100, 1000)),
    ("ours, mapped per id", "mapped", (100, 1000, 10_000)),
    ("ours, one sensor", "one", (100, 1000, 10_000)),
]


@dataclass(frozen=True)
class Relay:
    """A relay in another process, and when its tasks finish."""

    connection: dict[str, Any]
    peer_url: str
    ids: list[str]
    done_at: dict[str, float]
    count: Callable[[], int]


@dataclass(frozen=True)
class Measured:
    requests_a_round: float
    cpu_a_minute: float
    memory: float
    lags: list[float]
    delays: list[float]


def serve(number: int, pipe: Any) -> None:
    """Run the relay until told to end; tell how many requests there were when asked."""
    from airflow_provider_luma.sandbox import Sandbox
    from airflow_provider_luma.sandbox.loopback import Loopback

    started = time.monotonic()
    finish = started + STARTING + WARM_UP + STEADY + 2 * INTERVAL
    with Sandbox(tasks=0) as sandbox:
        done_at = {}
        for index in range(number):
            moment = finish + FINISHING * index / number
            done_at[sandbox.add_task(seconds=moment - time.monotonic())] = moment
        peer_requests = [0]

        async def peer(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            peer_requests[0] += 1
            done = time.monotonic() >= done_at[scope["path"].rpartition("/")[2]]
            status = 200 if done else 404
            await send(
                {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]}
            )
            await send({"type": "http.response.body", "body": b"{}"})

        loopback = Loopback("127.0.0.1", [(0, peer)])
        pipe.send((sandbox.connection, loopback.urls[0], done_at))
        while pipe.recv() == "count":
            pipe.send(len(sandbox.requests) + peer_requests[0])
        loopback.stop()


@contextlib.contextmanager
def relay(number: int) -> Iterator[Relay]:
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(number, there))
    server.start()

    def count() -> int:
        here.send("count")
        return int(here.recv())

    try:
        connection, peer_url, done_at = here.recv()
        yield Relay(connection, peer_url, list(done_at), done_at, count)
    finally:
        here.send("end")
        server.join()


def triggers(kind: str, relay: Relay) -> list[tuple[list[str], AsyncIterator[Any]]]:
    """Return the trigger of each wait, with the ids that it waits for."""
    if kind == "idle":
        return [([task_id], idle(relay.done_at[task_id])) for task_id in relay.ids]
    if kind == "peer":
        from airflow.providers.http.triggers.http import HttpSensorTrigger

        return [
            (
                [i],
                HttpSensorTrigger(
                    endpoint=i, http_conn_id="peer", method="GET", poke_interval=INTERVAL
                ).run(),
            )
            for i in relay.ids
        ]
    from airflow_provider_luma.relay import TaskBatch
    from airflow_provider_luma.triggers.luma import LumaTaskTrigger

    groups = [relay.ids] if kind == "one" else [[task_id] for task_id in relay.ids]
    now = time.time()
    return [
        (
            ids,
            LumaTaskTrigger(
                luma_task_ids=ids,
                luma_conn_id="luma",
                state=TaskBatch(ids, started_at=now).dump(),
                timeout=600,
                poke_interval=INTERVAL,
            ).run(),
        )
        for ids in groups
    ]


async def idle(done_at: float) -> AsyncIterator[None]:
    while time.monotonic() < done_at:
        await asyncio.sleep(INTERVAL)
    yield None


def measure(kind: str, number: int, pipe: Any) -> None:
    """Run the triggers of one case and send what was measured."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what triggers log is written, but nobody reads it here
    with relay(number) as served:
        os.environ["AIRFLOW_CONN_LUMA"] = json.dumps(served.connection)
        os.environ["AIRFLOW_CONN_PEER"] = json.dumps({"conn_type": "http", "host": served.peer_url})
        import airflow.providers.http.triggers.http  # noqa: F401 - every case begins with the same imports

        import airflow_provider_luma.triggers.luma  # noqa: F401

        pipe.send(asyncio.run(watch(kind, served)))


async def watch(kind: str, served: Relay) -> Measured:
    before = rss()
    delays: list[float] = []
    lags: list[float] = []

    async def follow(ids: list[str], events: AsyncIterator[Any]) -> None:
        async for _ in events:
            break
        delays.append(time.monotonic() - max(served.done_at[task_id] for task_id in ids))

    waits = asyncio.gather(*(follow(ids, events) for ids, events in triggers(kind, served)))
    await asyncio.sleep(WARM_UP)
    cpu, requests = time.process_time(), served.count()
    await asyncio.sleep(STEADY)
    cpu, requests = time.process_time() - cpu, served.count() - requests
    # By itself, because looking a hundred times a second costs more than a thousand idle triggers.
    watching = asyncio.create_task(watch_lag(lags))
    await asyncio.sleep(2 * INTERVAL)
    watching.cancel()
    await waits
    return Measured(
        requests / (STEADY / INTERVAL), cpu * 60 / STEADY, (peak_rss() - before) / 2**20, lags, delays
    )


async def watch_lag(lags: list[float]) -> None:
    while True:
        started = time.monotonic()
        await asyncio.sleep(0.01)
        lags.append(time.monotonic() - started - 0.01)


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parsing_cost(number: int) -> float:
    """CPU seconds a minute that asking and reading the responses costs by itself, without any trigger."""
    from airflow_provider_luma.relay import RelayClient

    with relay(number) as served:
        client = RelayClient(served.connection["password"], served.connection["host"])
        client.get_tasks(served.ids)
        started = time.process_time()
        for _ in range(5):
            client.get_tasks(served.ids)
        return (time.process_time() - started) / 5 * 60 / INTERVAL


def run(kind: str, number: int) -> Measured:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=measure, args=(kind, number, there))
    process.start()
    measured = here.recv()
    process.join()
    return measured


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def row(name: str, number: int, m: Measured, peer_cpu: dict[int, float]) -> str:
    ratio = f"{m.cpu_a_minute / peer_cpu[number]:.3f}" if number in peer_cpu else "-"
    lags, delays = m.lags, m.delays
    return (
        f"| {name} | {number:,} | {m.requests_a_round:.1f} | {m.cpu_a_minute:.2f} | {ratio} | {m.memory:.0f} "
        f"| {percentile(lags, 0.5) * 1000:.1f} / {percentile(lags, 0.99) * 1000:.1f} "
        f"| {statistics.median(delays):.2f} / {percentile(delays, 0.99):.2f} |"
    )


def main() -> None:
    multiprocessing.set_start_method("spawn")
    results = [(name, number, run(kind, number)) for name, kind, numbers in CASES for number in numbers]
    peer_cpu = {number: m.cpu_a_minute for name, number, m in results if "peer" in name}
    lines = [
        f"One run, polls every {INTERVAL} s, {os.cpu_count()} cores shared with the relay. CPU and memory",
        "are those of the process that holds the triggers; memory is what the case added to it at its peak.",
        "",
        "| triggers | ids | requests a round | CPU s a minute | CPU, peer = 1 | MiB added "
        "| loop lag ms p50 / p99 | terminal to event s p50 / p99 |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, number, m, peer_cpu) for name, number, m in results),
        "",
        *(
            f"Querying {number:,} ids and reading the responses, by itself: "
            f"{parsing_cost(number):.2f} CPU s a minute."
            for number in (1000, 10_000)
        ),
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
