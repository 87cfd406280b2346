"""
Measures what submitting thousands of prompts costs: the batch operator beside a mapped task for each prompt.

``python benchmarks/submit.py`` runs both on Celery (``LUMA_BENCH_PROMPTS``, 1,000), then one task with
``LUMA_BENCH_LARGE`` (10,000) prompts and its journal in each place, and writes ``benchmarks/submit.md``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

PROMPTS = int(os.environ.get("LUMA_BENCH_PROMPTS", "1000"))
LARGE = int(os.environ.get("LUMA_BENCH_LARGE", "10000"))
SMALL = LARGE // 20
BYTES = 100_000
FIGURES = Path(__file__).parent / "submit.md"

SOURCE = """
from datetime import timedelta
from airflow.sdk import DAG, Param, task
from airflow_provider_luma.operators.luma import (
    LumaDownloadOperator,
    LumaGenerateBatchOperator,
    LumaGenerateOperator,
)
from airflow_provider_luma.sensors.luma import LumaTaskSensor

def dag_of(kind):
    with DAG(kind, schedule=None, params={"prompts": Param([], type="array")}) as dag:

        @task
        def prompts(params: dict):
            return params["prompts"]

        @task
        def chunks(ids):
            return [ids[start : start + 50] for start in range(0, len(ids), 50)]

        if kind == "batch":
            generate = LumaGenerateBatchOperator(task_id="generate", prompts=prompts())
        else:
            generate = LumaGenerateOperator.partial(task_id="generate").expand(prompt=prompts())
        wait = LumaTaskSensor(
            task_id="wait", luma_task_ids=generate.output, deferrable=True, poke_interval=5, timeout=1800
        )
        LumaDownloadOperator.partial(
            task_id="download", destination=f"DESTINATION/{kind}", manifest=True, fsync=False
        ).expand(luma_task_ids=chunks(wait.output))
    return dag

batch, mapped = dag_of("batch"), dag_of("mapped")
"""

SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
}
PARTS = ("api-server", "scheduler", "dag-processor", "triggerer", "worker-1", "worker-2")


def compare_on_celery(folder: Path) -> list[str]:
    """Run both DAGs one after the other; give a row for each."""
    from airflow_provider_luma.sandbox import Sandbox
    from tests.stack.stack import Stack, free_ports, redis

    rows = []
    with ExitStack() as opened:
        sandbox = opened.enter_context(Sandbox(tasks=0, seconds=10, video_bytes=BYTES))
        address = opened.enter_context(redis(folder / "redis", free_ports(1)[0]))
        environment = SETTINGS | {
            "AIRFLOW__CELERY__BROKER_URL": address,
            "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection),
        }
        stack = Stack(folder, environment, PARTS)
        source = SOURCE.replace("DESTINATION", (folder / "clips").as_uri())
        opened.enter_context(stack.running({"submitting.py": source}))
        for kind in ("batch", "mapped"):
            before, cpu, started = len(sandbox.submits), cpu_seconds(stack), time.monotonic()
            stack.trigger(kind, {"prompts": [f"{kind} dance {number}" for number in range(PROMPTS)]})
            stack.until(partial(has_ended, stack, kind), f"the run of {kind} has ended", 5400)
            wall, cpu = time.monotonic() - started, cpu_seconds(stack) - cpu
            clips = len(list((folder / "clips" / kind).glob("*.mp4")))
            assert len(sandbox.submits) - before == clips == PROMPTS, (len(sandbox.submits) - before, clips)
            rows.append(f"| {kind} | {PROMPTS} | {wall:.0f} | {cpu:.0f} |")
            print(rows[-1], flush=True)
    return rows


def has_ended(stack: Any, dag_id: str) -> bool:
    ((state,),) = stack.rows("select state from dag_run where dag_id = %s", dag_id)
    return state in {"success", "failed"}


def cpu_seconds(stack: Any) -> float:
    """Sum up what the parts of Airflow, and the task processes that they have run, took of the CPU."""
    ticks = 0
    for process in {process for part in PARTS for process in stack.session(part)}:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(pipe: Any) -> None:
    from airflow_provider_luma.sandbox import Sandbox

    with Sandbox(tasks=0) as sandbox:
        pipe.send(sandbox.connection)
        pipe.recv()
        pipe.send(len(sandbox.submits))


@contextmanager
def relay() -> Iterator[Callable[[], int]]:
    """Run a relay in a process of its own, which the default connection leads to; counts the submits."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there,))
    server.start()
    os.environ["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps(here.recv())

    def count() -> int:
        here.send("count")
        return int(here.recv())

    try:
        yield count
    finally:
        server.terminate()
        server.join()


def measure(where: str, path: str | None, number: int, pipe: Any) -> None:
    """Submit so many prompts in one task, with a journal at ``path``, and send a row."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with relay() as count:
        from airflow_provider_luma import submit_journal
        from airflow_provider_luma.operators.luma import LumaGenerateBatchOperator
        from tests.airflow.generate_harness import Instance

        written: list[int] = []
        save = submit_journal.save_record

        def counted(state: Any, record: dict[str, Any]) -> None:
            if state is not None:
                written.append(len(json.dumps(record)))
            save(state, record)

        submit_journal.save_record = counted
        task = LumaGenerateBatchOperator(
            task_id="generate", prompts=[f"cat dance {n}" for n in range(number)], state_path=path
        )
        ti: Any = Instance()
        memory = [rss()]
        watch = sample(memory)
        cpu, started = time.process_time(), time.monotonic()
        ids = task.execute({"ti": ti})
        wall, cpu = time.monotonic() - started, time.process_time() - cpu
        watch()
        assert len(set(ids)) == count() == number
    tenth, end = memory[len(memory) // 10], memory[-1]
    pipe.send(
        f"| {where} | {number} | {wall:.0f} | {1000 * cpu / number:.1f} | {len(written) / number:.2f} "
        f"| {sum(written) / number / 1000:.1f} | {max(written, default=0) / 1000:.0f} "
        f"| {tenth / 2**20:.0f} | {end / 2**20:.0f} |"
    )


def sample(memory: list[int]) -> Callable[[], None]:
    """Look at the memory four times a second until told to end."""
    import threading

    over = threading.Event()

    def look() -> None:
        while not over.wait(0.25):
            memory.append(rss())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_journals(folder: Path) -> list[str]:
    from tests.stores import s3_server

    rows = []
    with s3_server(folder / "s3") as s3:
        os.environ["AIRFLOW_CONN_S3"] = s3.connection()
        (folder / "state").mkdir()
        places = {
            "none": (None, SMALL),
            "a local folder": ((folder / "state").as_uri(), SMALL),
            "S3": ("s3://s3@bucket/small", SMALL),
            "S3, ten thousand": ("s3://s3@bucket/large", LARGE),
        }
        for where, (path, number) in places.items():
            here, there = multiprocessing.Pipe()
            process = multiprocessing.Process(target=measure, args=(where.split(",")[0], path, number, there))
            process.start()
            there.close()
            rows.append(here.recv())
            print(rows[-1], flush=True)
            process.join()
    return rows


def main() -> None:
    multiprocessing.set_start_method("spawn")
    kinds = sys.argv[1:] or ["celery", "journal"]
    measured = {}
    with tempfile.TemporaryDirectory() as name:
        os.environ["AIRFLOW_HOME"] = f"{name}/home"
        for kind in kinds:
            folder = Path(name) / kind
            folder.mkdir()
            measured[kind] = compare_on_celery(folder) if kind == "celery" else measure_journals(folder)
    _RAW.parent.mkdir(exist_ok=True)
    tables = (json.loads(_RAW.read_text()) if _RAW.exists() else {}) | measured
    _RAW.write_text(json.dumps(tables))
    FIGURES.write_text(_page(tables))


_RAW = Path(__file__).parents[1] / "build/bench-submit.json"


def _page(tables: dict[str, list[str]]) -> str:
    versions = f"apache-airflow {version('apache-airflow')}, Python {platform.python_version()}"
    celery = "\n".join(tables.get("celery", []))
    journal = "\n".join(tables.get("journal", []))
    return f"""From the prompts to the downloaded clips on Celery, without faults: two workers of four
processes, a triggerer, PostgreSQL and Redis share {os.cpu_count()} cores with the relay; {versions}.
CPU is that of all parts of Airflow, task processes included.

| `generate` is | prompts | wall s | CPU s |
|---|---|---|---|
{celery}

One task, eight submits at once, the relay in another process. Memory is that of the task's process, after a
tenth of the time and at the end.

| journal in | prompts | wall s | CPU ms a prompt | writes a prompt | KB a prompt | largest KB | MiB | MiB |
|---|---|---|---|---|---|---|---|---|
{journal}
"""


if __name__ == "__main__":
    main()
