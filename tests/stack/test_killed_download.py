"""What dag.test() cannot show: a worker that is terminated while it downloads videos."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from airflow_provider_luma.sandbox import Faults, Sandbox
from tests.stack.stack import Stack

GIB = 2**30

DAG = """
from airflow.sdk import DAG, Param
from airflow_provider_luma.operators.luma import LumaDownloadOperator

with DAG("archiving", schedule=None, params={"ids": Param([], type="array"), "to": ""}) as dag:
    LumaDownloadOperator(
        task_id="download", luma_task_ids="{{ params.ids | tojson }}", destination="{{ params.to }}"
    )
"""


@pytest.mark.stack
def test_a_download_that_is_marked_failed_ends_within_two_seconds_and_leaves_no_video(tmp_path: Path) -> None:
    with Sandbox(tasks=8, seconds=0, fail=0, video_bytes=4 * GIB, faults=Faults(latency=0.5)) as sandbox:
        connection = sandbox.connection
        connection["extra"]["timeout"] = 60
        stack = Stack(
            tmp_path, {"AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(connection), "TMPDIR": str(tmp_path)}
        )
        clips = tmp_path / "clips"
        with stack.running({"archiving.py": DAG}):
            run_id = stack.trigger("archiving", {"ids": sandbox.task_ids, "to": clips.as_uri()})
            stack.until(lambda: len(sandbox.downloads) == 8, "eight downloads are under way", 120)
            time.sleep(1)
            stack.mark_failed("archiving", run_id, "download", -1)
            stack.until(lambda: "Task killed!" in _log(tmp_path), "the worker has ended", 60)
            assert _writing_in(tmp_path) == []
        log = _log(tmp_path)
        terminated = next(at for event, at in log.items() if event.endswith("Terminating process"))
        stopped = log["Task failed with exception"]
        print(f"{(stopped - terminated).total_seconds():.1f} s to stop")
        assert (stopped - terminated).total_seconds() < 2
        assert list(clips.glob("*.mp4")) == []  # claims stay


def _log(home: Path) -> dict[str, datetime]:
    """Read when each event of the task was logged."""
    (log,) = home.glob("logs/dag_id=archiving/**/attempt=1.log")
    lines = map(json.loads, log.read_text().splitlines())
    return {line["event"]: datetime.fromisoformat(line["timestamp"]) for line in lines}


def _writing_in(folder: Path) -> list[str]:
    """Find the files without a name in this folder that processes still hold."""
    targets = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            targets.append(str(link.readlink()))
    return [target for target in targets if target.startswith(str(folder)) and target.endswith("(deleted)")]
