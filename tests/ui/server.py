"""A real api-server on loopback, on the database of the tests, with users who may see different things."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.stores import free_port

# The simple auth manager lets users without a role log in, and see nothing.
USERS = {"admin": "ADMIN", "viewer": "VIEWER", "outsider": ""}


@dataclass(frozen=True)
class ApiServer:
    """A running api-server."""

    url: str
    log: Path

    def session(self, user: str | None) -> requests.Session:
        """Return the session of a user, or one without a login."""
        session = requests.Session()
        if user is not None:
            answer = session.post(
                f"{self.url}/auth/token", json={"username": user, "password": user}, timeout=30
            )
            answer.raise_for_status()
            session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        return session


@contextmanager
def api_server(folder: Path, environment: Mapping[str, str], path: str = "") -> Iterator[ApiServer]:
    """
    Serve Airflow's UI until the end of the block.

    :param path: below which it is served.
    """
    port = free_port()
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps({user: user for user in USERS}))
    log = folder / "api-server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ
            | {
                "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}{path}",
                "AIRFLOW__API__WORKERS": "1",
                "AIRFLOW__API__SECRET_KEY": "for-these-tests-only",
                "AIRFLOW__API_AUTH__JWT_SECRET": "for-these-tests-only" * 4,
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(
                    f"{user}:{role}" for user, role in USERS.items()
                ),
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = ApiServer(f"http://127.0.0.1:{port}{path}", log)
        _wait_for(process, server)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(process: subprocess.Popen[bytes], server: ApiServer) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if requests.get(f"{server.url}/api/v2/version", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise RuntimeError(f"The api-server does not respond:\n{server.log.read_text(errors='replace')[-4000:]}")
