"""
Starts a real Airflow on loopback with the embedded sandbox, runs the example once, and says where to look.

Everything is in ``.demo/ui``; Airflow's own output in ``airflow.log`` there. Ends with Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from airflow_provider_luma.sandbox import Sandbox  # noqa: E402 - after the path
from scripts.demo import DAG_ID, PROMPTS  # noqa: E402
from tests.stores import free_port  # noqa: E402

HOME = ROOT / ".demo/ui"
CLIPS = HOME / "clips"
LOG = HOME / "airflow.log"
PATIENCE = 300


def main() -> None:
    CLIPS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Airflow has to end, too
    once = "--once" in sys.argv  # for those who only want to see that it starts
    with Sandbox(tasks=0, seconds=20) as sandbox, airflow(sandbox) as api:
        print(f"Running the Dag {DAG_ID} on the sandbox; one prompt will fail ...", flush=True)
        run_id = trigger(api)
        run = f"{api.url}/dags/{DAG_ID}/runs/{run_id}"
        print(f"\n  The run, with its tab Clips: {run}/plugin/luma-run-clips", flush=True)
        print(f"  The gallery as a page:       {api.url}/luma/clips/{DAG_ID}/{run_id}", flush=True)
        state = api.until(lambda: finished(api, run_id), "the run ends")
        print(f"\nThe run ended: {state}. The clips are in {CLIPS.relative_to(ROOT)}.", flush=True)
        if once:
            return
        print("Ctrl-C ends Airflow and the sandbox.", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


class Api:
    """Airflow's REST API; everybody is an administrator there."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._process = process
        self._session = requests.Session()

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Return the response; ``None`` while there is none."""
        try:
            if "Authorization" not in self._session.headers:
                token = self._session.get(f"{self.url}/auth/token", timeout=10).json()["access_token"]
                self._session.headers["Authorization"] = f"Bearer {token}"
            response = self._session.request(method, f"{self.url}/api/v2{path}", json=body, timeout=30)
        except (requests.RequestException, ValueError, KeyError):
            return None
        return response.json() if response.ok else None

    def until(self, condition: Any, what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"Not reached: {what}. Airflow's log is {LOG.relative_to(ROOT)}")
            time.sleep(1)
        return found


@contextmanager
def airflow(sandbox: Sandbox) -> Iterator[Api]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        # Airflow starts its parts by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": os.urandom(32).hex(),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        "AIRFLOW__LUMA__GALLERY_PATHS": CLIPS.as_uri(),
        "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection),
    }
    print(f"Starting Airflow at {url} (half a minute) ...", flush=True)
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Api(url, process)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, how)
            process.wait(15)


def trigger(api: Api) -> str:
    api.until(lambda: api.request("PATCH", f"/dags/{DAG_ID}", {"is_paused": False}), "the Dag is known")
    conf = {"prompts": PROMPTS, "destination": CLIPS.as_uri()}
    run = api.request("POST", f"/dags/{DAG_ID}/dagRuns", {"conf": conf, "logical_date": None})
    return str(run["dag_run_id"])


def finished(api: Api, run_id: str) -> str | None:
    run = api.request("GET", f"/dags/{DAG_ID}/dagRuns/{run_id}")
    return run["state"] if run and run["state"] in {"success", "failed"} else None


if __name__ == "__main__":
    main()
