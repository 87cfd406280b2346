"""
Runs the Dag from prompts to downloaded clips in a real Airflow on the embedded sandbox, and shows the result.

Airflow's own output goes to ``.demo/airflow.log``.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
CLIPS = HOME / "clips"
LOG = HOME / "airflow.log"
DAG_ID = "example_luma_generate"
PROMPTS = [
    "a paper boat crossing a puddle after the rain",
    "cat dance",
    "a lighthouse in a storm, seen from the sea",
    "blacklisted words, which the relay rejects",
    "two foxes chasing each other through fresh snow",
]
OURS = re.compile(r"^\S+ \[\w+ *\] (.*?) +\[[\w.]*airflow_provider_luma[\w.]*?\.(\w+)\]")


def main() -> int:
    screen = prepare()
    from airflow_provider_luma.sandbox import Sandbox

    with Sandbox(tasks=0, seconds=12) as sandbox:
        os.environ["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps(sandbox.connection)
        print(f"A sandbox relay at {sandbox.base_url} stands in for Luma; one prompt will fail.", file=screen)
        print(f"Running the Dag {DAG_ID} (example_dags/{DAG_ID}.py) ...\n", file=screen)
        dag = load_dag()
        with progress(screen):
            run = dag.test(run_conf={"prompts": PROMPTS, "destination": CLIPS.as_uri()})
        report(screen, run)
        print(
            f"\n{len(PROMPTS)} prompts, {len(sandbox.submits)} charges, {len(sandbox.requests)} requests "
            f"to the relay, {len(sandbox.downloads)} downloads.",
            file=screen,
        )
    print(f"Airflow's own log: {LOG.relative_to(ROOT)}", file=screen)
    return 0 if str(run.state) == "success" else 1


def prepare() -> Any:
    """Give Airflow a home here and its output a file; return what is still the screen."""
    CLIPS.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
    }
    screen = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print("Starting Airflow (a database of its own in .demo) ...", file=screen)
    return screen


def load_dag() -> Any:
    from airflow.utils.db import initdb

    initdb()
    sys.path.insert(0, str(ROOT / "example_dags"))
    return importlib.import_module(DAG_ID).dag


@contextmanager
def progress(screen: Any) -> Iterator[None]:
    """Show what the provider's sensor, trigger and operator write into the log, as it comes."""
    stop = threading.Event()
    follower = threading.Thread(target=follow, args=(screen, time.monotonic(), stop))
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def follow(screen: Any, started: float, stop: threading.Event) -> None:
    with LOG.open() as log:
        log.seek(0, os.SEEK_END)
        while not (stop.is_set() and log.tell() == LOG.stat().st_size):
            if (line := OURS.search(log.readline())) is not None:
                print(f"  {time.monotonic() - started:4.0f} s  {line[2]:<21} {line[1]}", file=screen)
            else:
                time.sleep(0.05)


def report(screen: Any, run: Any) -> None:
    records, summary = xcom(run, "download", "return_value"), xcom(run, "wait", "luma_summary")
    print(f"\nThe Dag run ended: {run.state}.\n", file=screen)
    print(f"Downloaded to {CLIPS.relative_to(ROOT)}:", file=screen)
    table(
        screen,
        [("task", "prompt", "seconds", "KB", "file")]
        + [
            (
                record["id"][:8],
                record["prompt"],
                f"{record['duration']:.1f}",
                f"{record['video']['size'] / 1000:.0f}",
                Path(record["video"]["uri"]).name,
            )
            for record in records
        ],
    )
    print("\nFailed:", file=screen)
    table(screen, [("task", "reason"), *((task_id[:8], why) for task_id, why in summary["failed"].items())])


def table(screen: Any, rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(),
            file=screen,
        )


def xcom(run: Any, task_id: str, key: str) -> Any:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(XComModel.value).filter_by(run_id=run.run_id, dag_id=DAG_ID, task_id=task_id, key=key)
    with create_session() as session:
        value = session.scalars(query).one()
    return json.loads(value) if isinstance(value, str) else value


if __name__ == "__main__":
    sys.exit(main())
