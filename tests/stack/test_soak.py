"""
Waits and downloads in a loop on one stack: triggerer and worker grow no further than a bound.

What was seen goes to ``benchmarks/soak.md``.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_provider_luma.sandbox import Sandbox
from tests.stack.stack import Stack, free_ports, redis
from tests.stores import s3_server

MINUTES = float(os.environ.get("LUMA_SOAK_MINUTES", "20"))
CLIPS = 20
PARTS = ("api-server", "scheduler", "dag-processor", "triggerer", "worker")
WATCHED = ("triggerer", "worker")
FIGURES = Path(__file__).parents[2] / "benchmarks/soak.md"
# What a process may gain in the whole run although nothing leaks, such as the heap's own habits.
NOISE = {"MiB": 8.0, "threads": 1.0, "sockets": 1.0, "temporary files": 0.5}

DAG = """
from airflow.sdk import DAG, Param
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG("soaking", schedule=None, params={"ids": Param([], type="array"), "to": ""}) as dag:
    wait = LumaTaskSensor.partial(task_id="wait", deferrable=True, poke_interval=1).expand(
        luma_task_ids=LumaTaskSensor(
            task_id="chunks", luma_task_ids="{{ params.ids | tojson }}", deferrable=True, poke_interval=1
        ).output.map(lambda task_id: [task_id])
    )
    LumaDownloadOperator(
        task_id="download", luma_task_ids="{{ params.ids | tojson }}", destination="{{ params.to }}"
    ).set_upstream(wait)
"""


@pytest.mark.soak
def test_nothing_grows(tmp_path: Path) -> None:
    (redis_port,) = free_ports(1)
    (tmp_path / "temporary").mkdir()
    with (
        Sandbox(tasks=0, seconds=3, video_bytes=500_000) as sandbox,
        s3_server(tmp_path / "s3") as s3,
        redis(tmp_path / "redis", redis_port) as address,
    ):
        environment = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": address,
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",
            "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection),
            "AIRFLOW_CONN_S3": s3.connection(),
            "TMPDIR": str(tmp_path / "temporary"),
        }
        stack = Stack(tmp_path, environment, PARTS)
        samples: dict[str, list[dict[str, float]]] = {part: [] for part in WATCHED}
        with stack.running({"soaking.py": DAG}):
            over = time.monotonic() + MINUTES * 60
            rounds = 0
            while time.monotonic() < over:
                ids = [sandbox.add_task() for _ in range(CLIPS)]
                stack.trigger("soaking", {"ids": ids, "to": f"s3://s3@bucket/{rounds}"})
                rounds += 1
                stack.until(lambda: finished(stack) == rounds, f"round {rounds} is downloaded", 300)  # noqa: B023
                for part in WATCHED:
                    samples[part].append(held(stack.session(part), tmp_path / "temporary"))
                print(" ", {part: samples[part][-1] for part in WATCHED}, flush=True)
            ((failed,),) = stack.rows("select count(*) from dag_run where state = 'failed'")
        downloaded = len(list((s3.folder / "bucket").glob("*/*.mp4")))
    lines = list(table(samples))
    print("\n".join(line for line, _ in lines))
    assert failed == 0
    assert downloaded == rounds * CLIPS
    if MINUTES >= 20:
        write_figures(rounds, downloaded, [line for line, _ in lines])
    assert [line for line, grows in lines if grows] == []


def finished(stack: Stack) -> int:
    ((number,),) = stack.rows("select count(*) from dag_run where state in ('success', 'failed')")
    return int(number)


def held(processes: list[int], temporary: Path) -> dict[str, float]:
    """Add up what these processes hold; memory that they share is counted once."""
    memory = threads = sockets = 0
    for process in processes:
        with suppress(OSError):
            folder = Path(f"/proc/{process}")
            rollup = (folder / "smaps_rollup").read_text()
            memory += int(rollup.partition("\nPss:")[2].split()[0])
            threads += len(list((folder / "task").iterdir()))
            sockets += sum(name.startswith("socket:") for name in opened(folder))
    files = sum(1 for path in temporary.rglob("*") if path.is_file())
    return {"MiB": memory / 1024, "threads": threads, "sockets": sockets, "temporary files": files}


def opened(process: Path) -> Iterator[str]:
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            yield str(descriptor.readlink())


def table(samples: dict[str, list[dict[str, float]]]) -> Iterator[tuple[str, bool]]:
    """Give a line for each thing that is watched, and whether it grows by more than noise."""
    for part, taken in samples.items():
        settled = taken[len(taken) // 3 :]  # caches fill and modules are imported before
        for what, allowed in NOISE.items():
            values = [sample[what] for sample in settled]
            growth, error = trend(values)
            grows = growth - 2 * error > 0 and growth > allowed
            first, last = statistics.median(values[:5]), statistics.median(values[-5:])
            levels = f"{first:.1f} | {last:.1f} | {max(values):.1f}"
            yield f"| {part} | {what} | {levels} | {growth:+.2f} ± {error:.2f} |", grows


def trend(values: list[float]) -> tuple[float, float]:
    """Fit a line; give what it rises over all values, and the standard error of that."""
    steps = list(range(len(values)))
    if len(values) < 3:
        return 0.0, float("inf")
    slope, start = statistics.linear_regression(steps, values)
    rest = sum((value - start - slope * step) ** 2 for step, value in zip(steps, values, strict=True))
    spread = sum((step - statistics.mean(steps)) ** 2 for step in steps)
    return slope * steps[-1], (rest / (len(values) - 2) / spread) ** 0.5 * steps[-1]


def write_figures(rounds: int, downloaded: int, lines: list[str]) -> None:
    bounds = ", ".join(f"{allowed:g} {what}" for what, allowed in NOISE.items())
    FIGURES.write_text(
        f"""# Soak

`make soak`: for {MINUTES:.0f} minutes a stack (CeleryExecutor, a worker of four processes, a triggerer)
waited for {CLIPS} clips with as many deferred sensors and downloaded them to S3, again and again: {rounds}
rounds, {downloaded} clips. After each round the resources of a part's processes were added up; the first
third of the rounds fills caches and is left out. The last column is a line's rise over the rest, with its
standard error. The run fails where a rise is beyond its error and above a bound: {bounds}.

| part | resource | at first | at last | at most | trend |
|---|---|---|---|---|---|
"""
        + "\n".join(lines)
        + "\n",
    )
