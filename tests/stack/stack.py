"""A whole Airflow on loopback: PostgreSQL, api-server, scheduler, DAG processor, triggerers and workers."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import requests

from tests.stores import wait_for

# Forked task processes find Airflow's SDK imported, which spares each of them some seconds.
_PRELOAD = (
    "import airflow.sdk.execution_time.task_runner\nfrom airflow.sdk import DAG, task, BaseSensorOperator\n"
)

_PARTS = ("api-server", "scheduler", "dag-processor", "triggerer")
# A part by its name up to a number: several of a kind run beside each other.
_COMMANDS = {
    "triggerer": ("triggerer", "--skip-serve-logs"),
    "worker": (
        *("celery", "worker", "--celery-hostname", "{part}@%h", "--pid", "{home}/{part}.pid"),
        *("--concurrency", "4", "--skip-serve-logs", "--without-gossip", "--without-mingle"),
    ),
}


class Stack:
    """
    A running Airflow.

    :param home: a folder of its own.
    :param environment: connections and settings besides those that the stack needs.
    :param parts: what runs of it, such as ``worker-1`` and ``worker-2``.
    """

    def __init__(self, home: Path, environment: Mapping[str, str], parts: Sequence[str] = _PARTS) -> None:
        self._home = home
        self._parts = parts
        self._database_port, api_port = free_ports(2)
        self.api = f"http://127.0.0.1:{api_port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = os.environ | {
            "AIRFLOW_HOME": str(home / "airflow"),
            "PYTHONPATH": str(home / "settings"),
            "AIRFLOW__API__PORT": str(api_port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": "for-this-stack-only",
            "AIRFLOW__API_AUTH__JWT_SECRET": "for-this-stack-only-for-this-stack-only",
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.api}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "1000",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{self.database}",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
            **environment,
        }
        self._token = ""

    @property
    def database(self) -> str:
        return f"postgresql+psycopg2://{self._dsn}"

    @property
    def _dsn(self) -> str:
        return f"postgres@127.0.0.1:{self._database_port}/postgres"

    @contextmanager
    def running(self, dags: Mapping[str, str]) -> Iterator[None]:
        """Run it with these DAG files, and leave nothing running."""
        for folder in ("dags", "settings", "airflow", "logs"):
            (self._home / folder).mkdir()
        (self._home / "settings/airflow_local_settings.py").write_text(_PRELOAD)
        for name, source in dags.items():
            (self._home / "dags" / name).write_text(source)
        with ExitStack() as ending:
            ending.enter_context(_postgres(self._home / "postgres", self._database_port))
            self._run("db", "migrate")
            ending.callback(self.stop_all)
            for part in self._parts:
                self.start(part)
            self.until(self._is_responding, "the api-server responds", 90)
            yield

    def start(self, part: str) -> None:
        log = (self._home / f"{part}.log").open("ab")
        kind = part.rstrip("-0123456789")
        command = [word.format(part=part, home=self._home) for word in _COMMANDS.get(kind, (kind,))]
        (self._home / f"{part}.pid").unlink(missing_ok=True)
        self._processes[part] = subprocess.Popen(
            [sys.executable, "-m", "airflow", *command],
            env=self._environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def kill(self, part: str) -> None:
        """Kill it and its children the hard way: no clean-up of any kind."""
        process = self._processes.pop(part)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def session(self, part: str) -> list[int]:
        """Name the processes of a part."""
        leader = self._processes[part].pid
        processes = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.getsid(int(folder.name)) == leader:
                    processes.append(int(folder.name))
        return processes

    def kill_task(self) -> None:
        """Kill the processes that run tasks the hard way, but not those that look after them."""
        for process in self.session("scheduler"):
            with suppress(OSError):
                title = Path(f"/proc/{process}/cmdline").read_bytes()
                if title.startswith(b"airflow worker -- ") and b"LocalExecutor" not in title:
                    os.kill(process, signal.SIGKILL)

    def stop_all(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for part in list(self._processes):
            with suppress(subprocess.TimeoutExpired):
                self._processes[part].wait(10)
            with suppress(ProcessLookupError):
                self.kill(part)

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run as soon as the DAG is known."""
        self.until(lambda: self._request("PATCH", f"/dags/{dag_id}", {"is_paused": False}).ok, "the DAG", 90)
        response = self._request("POST", f"/dags/{dag_id}/dagRuns", {"conf": conf, "logical_date": None})
        response.raise_for_status()
        return response.json()["dag_run_id"]

    def mark_failed(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
        instance = task_id if map_index < 0 else f"{task_id}/{map_index}"
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{instance}"
        self._request("PATCH", path, {"new_state": "failed"}).raise_for_status()

    def states(self, task_id: str) -> Counter[tuple[str | None, int]]:
        """Count the instances of a task by state and number of tries."""
        rows = self.rows("select state, try_number from task_instance where task_id = %s", task_id)
        return Counter((state, tries) for state, tries in rows)

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with psycopg2.connect(f"postgresql://{self._dsn}") as connection, connection.cursor() as cursor:
            cursor.execute(query, arguments)
            return cursor.fetchall()

    def until_rows(self, query: str, number: int, seconds: float = 120) -> list[tuple[Any, ...]]:
        """Wait for so many rows, or more."""
        self.until(lambda: len(self.rows(query)) >= number, f"{number} rows", seconds)
        return self.rows(query)

    def log_of(self, part: str) -> str:
        return (self._home / f"{part}.log").read_text(errors="replace")

    def until(self, condition: Callable[[], bool], what: str, seconds: float) -> float:
        """Wait for something, and say how long it took."""
        started = time.monotonic()
        while not condition():
            if ended := [part for part, process in self._processes.items() if process.poll() is not None]:
                raise RuntimeError(f"{ended} ended by itself; the logs are in {self._home}")
            if time.monotonic() - started > seconds:
                raise TimeoutError(f"{what} did not come within {seconds} s; the logs are in {self._home}")
            time.sleep(0.5)
        took = time.monotonic() - started
        print(f"{took:6.1f} s until {what}", flush=True)
        return took

    def _run(self, *command: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "airflow", *command],
            env=self._environment,
            check=True,
            capture_output=True,
        )

    def _is_responding(self) -> bool:
        try:
            response = requests.get(f"{self.api}/auth/token", timeout=5)
            self._token = response.json()["access_token"]
        except (requests.RequestException, ValueError, KeyError):
            return False
        return True

    def _request(self, method: str, path: str, body: Any) -> requests.Response:
        return requests.request(
            method,
            f"{self.api}/api/v2{path}",
            data=json.dumps(body),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
            timeout=30,
        )


@contextmanager
def _postgres(folder: Path, port: int) -> Iterator[None]:
    """Run PostgreSQL with files of its own; as the user postgres if we are root, which it rejects."""
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    tool = str((tools[-1] if tools else Path(shutil.which("initdb") or "initdb").parent) / "{}")
    root = getpass.getuser() == "root"
    as_user = ["runuser", "-u", "postgres", "--"] if root else []
    folder.mkdir()
    if root:
        shutil.chown(folder, "postgres")
        for parent in folder.parents:
            parent.chmod(parent.stat().st_mode | 0o011)
            if parent.parent == Path("/tmp"):  # noqa: S108 - where pytest keeps its folders, which are our own
                break
    data = str(folder / "data")
    subprocess.run(
        [*as_user, tool.format("initdb"), "-D", data, "-U", "postgres", "-A", "trust"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    server = subprocess.Popen(
        [
            *(*as_user, tool.format("postgres"), "-D", data, "-p", str(port), "-k", str(folder)),
            *("-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=300"),
        ],
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(port)
        yield
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(20)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg2.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres").close()
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def free_ports(number: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [int(opened.getsockname()[1]) for opened in sockets]


@contextmanager
def redis(folder: Path, port: int) -> Iterator[str]:
    """Run a Redis that keeps its data over a restart; yield its URL."""
    folder.mkdir(exist_ok=True)
    options = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--appendonly", "yes")
    with subprocess.Popen(
        [str(shutil.which("redis-server")), *options], stdout=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
