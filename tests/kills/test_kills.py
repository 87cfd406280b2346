"""One charge for a prompt, wherever its worker is killed: on a real Airflow, with its own state store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.airflow_version import HAS_TASK_STATE_STORE
from airflow_provider_luma.sandbox import Sandbox

STEP = os.environ.get("LUMA_KILLS_STEP", "1")
PLACES = ["state_path", *(["task state store"] if HAS_TASK_STATE_STORE else [])]


def kills(tmp_path: Path, sandbox: Sandbox, *arguments: str) -> list[dict[str, Any]]:
    """Run the zygote; count the charges of each of its kills."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "state").mkdir()
    environment = os.environ | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection),
    }
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=environment, check=True, capture_output=True
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kills.zygote", "--step", STEP, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr.txt").open("wb"),
        text=True,
    )
    assert process.stdout
    assert process.stdin
    rows, charged = [], 0
    for text in process.stdout:
        if text.startswith('{"line"'):  # the others are logs
            rows.append(json.loads(text) | {"charges": len(sandbox.submits) - charged})
            charged = len(sandbox.submits)
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.wait() == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
    return rows


@pytest.mark.kills
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["retry", "clear"])
def test_a_worker_killed_at_any_line_is_paid_for_once(tmp_path: Path, place: str, way: str) -> None:
    path = ["--state-path", (tmp_path / "state").as_uri()] if place == "state_path" else []
    with Sandbox(tasks=0, seconds=0) as sandbox:
        rows = kills(tmp_path, sandbox, "--clear", way, *path)
    print(*rows, sep="\n")
    killed = [row for row in rows if row["died"]]
    assert len(killed) > 60 / int(STEP)
    assert all(row["charges"] <= 1 + (way == "clear" and row["returned_before"]) for row in killed)
    # A task that did not succeed reports that it may have been charged.
    assert {row["state"] for row in killed} == {"success", "failed"}
    assert all(row["charges"] == 1 for row in killed if row["state"] == "success")


@pytest.mark.kills
def test_a_clear_that_deletes_the_state_is_safe_with_state_path(tmp_path: Path) -> None:
    if not HAS_TASK_STATE_STORE:
        pytest.skip("this Airflow has no state that a clear could delete")
    with Sandbox(tasks=0, seconds=0) as sandbox:
        rows = kills(tmp_path, sandbox, "--clear", "delete", "--state-path", (tmp_path / "state").as_uri())
    assert all(row["charges"] <= 1 + row["returned_before"] for row in rows if row["died"])
