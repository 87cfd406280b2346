"""
A thousand prompts on Celery: parts of the stack, the relay and the store fail meanwhile, and nothing is lost.

Two workers, two triggerers, Redis and PostgreSQL. The prompts are submitted by a mapped task each, and by one
batch. What came of it goes to ``benchmarks/celery.md`` and ``benchmarks/celery-batch.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
from collections import Counter
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.sandbox import Sandbox
from airflow_provider_luma.sandbox.media import video
from tests.stack.stack import Stack, free_ports, redis
from tests.stores import s3_server

TASKS = int(os.environ.get("LUMA_CELERY_TASKS", "1000"))
BYTES = 500_000
PARTS = (
    *("api-server", "scheduler", "dag-processor"),
    *("triggerer-1", "triggerer-2", "worker-1", "worker-2"),
)
PACKAGES = ("apache-airflow", "apache-airflow-providers-celery", "celery")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

DAG = """
from datetime import timedelta
from airflow.sdk import DAG, Param, task
from airflow_provider_luma.operators.luma import (
    LumaDownloadOperator,
    LumaGenerateBatchOperator,
    LumaGenerateOperator,
)
from airflow_provider_luma.sensors.luma import LumaTaskSensor

AGAIN = {"retries": 5, "retry_delay": timedelta(seconds=5)}

with DAG("thousand", schedule=None, params={"prompts": Param([], type="array")}) as dag:

    @task(**AGAIN)
    def prompts(params: dict):
        return params["prompts"]

    GENERATE

    @task(trigger_rule="all_done", **AGAIN)
    def chunks(ids):
        ids = [task_id for task_id in ids if task_id]
        return [ids[start : start + 50] for start in range(0, len(ids), 50)]

    wait = LumaTaskSensor.partial(
        task_id="wait", deferrable=True, poke_interval=5, timeout=1800, fail_when="never", **AGAIN
    ).expand(luma_task_ids=chunks(generate.output))
    LumaDownloadOperator.partial(
        task_id="download", destination="s3://s3@bucket/clips", manifest=True, max_parallel=2, **AGAIN
    ).expand(luma_task_ids=wait.output)
"""

GENERATE = {
    "mapped": 'LumaGenerateOperator.partial(task_id="generate", **AGAIN).expand(prompt=prompts())',
    "batch": ('LumaGenerateBatchOperator(task_id="generate", prompts=prompts(), fail_when="never", **AGAIN)'),
}
# So that a batch lasts long enough for what happens to it.
EXTRA = {"mapped": {}, "batch": {"max_requests_per_minute": 600}}

SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
    # A worker that dies is noticed, and what it had not begun is given to the other, in a minute, not in ten.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "45",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
}


class StackFaults:
    """What is done to the stack, each thing once, and written down."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.log: list[str] = []

    def kill(self, part: str, seconds: float = 10) -> None:
        """Kill a part and everything that it started the hard way; another is there after a while."""
        self._say(f"`kill -9` of {part}, another after {seconds:.0f} s")
        self._stack.kill(part)
        time.sleep(seconds)
        self._stack.start(part)

    def outage(self, what: str, opened: ExitStack, again: Any, seconds: float) -> None:
        """Let a server be gone for so long."""
        self._say(f"{what} gone for {seconds:.0f} s")
        opened.close()
        time.sleep(seconds)
        opened.enter_context(again())

    def _say(self, what: str) -> None:
        self.log.append(what)
        print(f"  ----- {what}", flush=True)


@pytest.mark.celery
@pytest.mark.parametrize("kind", GENERATE)
def test_a_thousand_prompts_survive_kills_and_outages(tmp_path: Path, kind: str) -> None:
    relay_port, cdn_port, s3_port, redis_port = free_ports(4)
    prompts = [f"cat dance number {n}" + (" blacklisted" if n % 50 == 7 else "") for n in range(TASKS)]
    sandbox = Sandbox(tasks=0, seconds=60, relay_port=relay_port, cdn_port=cdn_port, video_bytes=BYTES)
    with ExitStack() as relay, ExitStack() as s3, ExitStack() as broker:
        relay.enter_context(sandbox)
        connection = sandbox.connection
        connection["extra"] |= EXTRA[kind]
        store = s3.enter_context(s3_server(tmp_path / "s3", s3_port))
        address = broker.enter_context(redis(tmp_path / "redis", redis_port))
        stack = Stack(
            tmp_path,
            {
                **SETTINGS,
                "AIRFLOW__CELERY__BROKER_URL": address,
                "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(connection),
                "AIRFLOW_CONN_S3": store.connection(),
            },
            PARTS,
        )
        faults = StackFaults(stack)
        clips = store.folder / "bucket/clips"
        dag = DAG.replace("GENERATE", f"generate = {GENERATE[kind]}")
        with stack.running({"thousand.py": dag}):
            started = time.monotonic()
            stack.trigger("thousand", {"prompts": prompts})
            with Watch(stack, sandbox) as watch:
                stack.until(lambda: len(sandbox.submits) >= TASKS * 0.2, "a fifth is submitted", 900)
                faults.kill("worker-1")
                stack.until(lambda: len(sandbox.submits) >= TASKS * 0.4, "two fifths are submitted", 900)
                faults.outage("the relay", relay, lambda: sandbox, 30)
                if kind == "batch":  # one of the two workers has the task
                    stack.until(lambda: len(sandbox.submits) >= TASKS * 0.5, "half is submitted", 900)
                    faults.kill("worker-2")
                stack.until(lambda: len(sandbox.submits) >= TASKS * 0.6, "three fifths are submitted", 900)
                faults.outage("Redis", broker, lambda: redis(tmp_path / "redis", redis_port), 5)
                stack.until(
                    lambda: ended_as(stack.states("wait"), "deferred") > 0,
                    "a sensor waits in a triggerer",
                    1800,
                )
                faults.kill("triggerer-1")
                stack.until(
                    lambda: len(list(clips.glob("*.mp4"))) >= TASKS * 0.1, "clips are downloaded", 900
                )
                faults.outage("S3", s3, lambda: s3_server(tmp_path / "s3", s3_port), 20)
                faults.kill("worker-2")
                stack.until(lambda: ended(stack), "the run has ended", 1800)
            seconds = time.monotonic() - started
            states = {task: stack.states(task) for task in ("generate", "wait", "download")}
            submits = [json.loads(v) if isinstance(v, str) else v for (v,) in stack.rows(SUBMITS)]
            summaries = [json.loads(v) if isinstance(v, str) else v for (v,) in stack.rows(SUMMARIES)]
        lines = [
            json.loads(line)
            for manifest in clips.glob("manifest-*.jsonl")
            for line in manifest.read_text().splitlines()
        ]
    charged = Counter(body["user_prompt"] for body in sandbox.submits)
    downloaded = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in clips.glob("*.mp4")}
    failed = [task_id for summary in summaries for task_id in summary["failed"]]
    unknown, known = (ended_as(states["generate"], state) for state in ("failed", "success"))
    if kind == "batch":
        assert known == 1
        unknown, known = len(submits[0]["unknown"]), submits[0]["created"]
    tries = sum(number * tries for counted in states.values() for (_, tries), number in counted.items())
    figures = {
        "prompts": TASKS,
        "charges": charged.total(),
        "charged twice": sum(number > 1 for number in charged.values()),
        "submits of unknown outcome, which were not repeated": unknown,
        "videos downloaded": len(downloaded),
        "of them complete and identical": sum(identical(*clip) for clip in downloaded.items()),
        "failed generations, reported": len(failed),
        "requests to the relay": len(sandbox.requests),
        "of them status queries": sum(request.ids is not None for request in sandbox.requests),
        "downloads": len(sandbox.downloads),
        "tries of tasks": tries,
        "tries of tasks a second": f"{tries / seconds:.1f}",
        "tasks running at once, at the most": watch.running,
        "wall time": f"{seconds:.0f} s",
    }
    table = "\n".join(f"| {what} | {figure} |" for what, figure in figures.items())
    print(table)
    assert figures["charged twice"] == 0
    assert unknown + known == TASKS
    assert unknown <= TASKS * 0.05
    assert len(downloaded) + len(failed) == known
    assert all(identical(*clip) for clip in downloaded.items())
    moved = Counter(line["id"] for line in lines if line["status"] in {"downloaded", "unchanged"})
    assert moved == Counter(list(downloaded))
    assert {path.suffix for path in clips.iterdir()} == {".mp4", ".json", ".jsonl"}
    assert len(list(clips.glob("*.json"))) == len(downloaded)
    if TASKS >= 1000:
        write_figures(kind, table, faults.log)


SUBMITS = "select value from xcom where task_id = 'generate' and key = 'luma_submits'"
SUMMARIES = "select value from xcom where task_id = 'wait' and key = 'luma_summary'"


class Watch:
    """Looks once a second how many tasks run."""

    def __init__(self, stack: Stack, sandbox: Sandbox) -> None:
        self._stack = stack
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._sandbox = sandbox
        self.running = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        seen = 0
        while not self._over.wait(1):
            ((running,),) = self._stack.rows("select count(*) from task_instance where state = 'running'")
            self.running = max(self.running, running)
            if len(self._sandbox.submits) >= seen + TASKS / 10:
                seen = len(self._sandbox.submits)
                print(f"  {seen} submitted", flush=True)


def ended_as(states: Counter[tuple[str | None, int]], wanted: str) -> int:
    return sum(number for (state, _), number in states.items() if state == wanted)


def ended(stack: Stack) -> bool:
    return stack.rows("select state from dag_run where dag_id = 'thousand'")[0][0] in {"success", "failed"}


def identical(task_id: str, digest: str) -> bool:
    return digest == hashlib.sha256(b"".join(video(task_id, BYTES).chunks(0, BYTES))).hexdigest()


def write_figures(kind: str, table: str, faults: list[str]) -> None:
    happened = "\n".join(f"{number}. {fault}" for number, fault in enumerate(faults, 1))
    title, submitted, name, last = PAGES[kind]
    (BENCHMARKS / name).write_text(
        f"""# {title}

`make test-celery`: prompts are submitted {submitted}, waited for by deferred sensors of 50 ids each,
downloaded to S3 by one task for each 50. Two workers of four processes, two triggerers, a scheduler and an
api-server, Redis and PostgreSQL, the relay, the CDN and the S3 server share {os.cpu_count()} cores;
{", ".join(f"{name} {version(name)}" for name in PACKAGES)}, Python {platform.python_version()}.

Failures injected, in this order:

{happened}

| | |
|---|---|
{table}
{last}""",
    )


PAGES = {
    "mapped": (
        "A thousand prompts on Celery",
        "one a task",
        "celery.md",
        "\nMost of the time is Airflow's own: it starts a process for each task instance.\n",
    ),
    "batch": ("A thousand prompts in one task on Celery", "in one batch", "celery-batch.md", ""),
}
