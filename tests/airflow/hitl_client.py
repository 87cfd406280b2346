"""A person who responds to required actions through Airflow's API, as its pages do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from httpx import HTTPStatusError

_DETAILS = "/api/v2/dags/~/dagRuns/~/hitlDetails"


class Person:
    """
    Reads the open questions, and answers them.

    :param answers: for the id of each task, chooses among its options.
    """

    def __init__(self, **answers: Callable[[list[str]], list[str]]) -> None:
        self._answers = answers
        self._read: dict[str, list[dict[str, Any]]] = {}

    def read(self, task_id: str) -> list[dict[str, Any]]:
        """Return the question of a task."""
        return self._read.get(task_id, [])

    def respond(self, client: Any) -> None:
        """Answer all open questions."""
        response = client.get(_DETAILS, params={"response_received": False})
        response.raise_for_status()
        for detail in response.json()["hitl_details"]:
            instance = detail["task_instance"]
            task_id = instance["task_id"]
            path = (
                f"/api/v2/dags/{instance['dag_id']}/dagRuns/{instance['dag_run_id']}/taskInstances/{task_id}"
            )
            response = client.patch(
                f"{path}/{instance['map_index']}/hitlDetails",
                json={"chosen_options": self._answers[task_id](detail["options"]), "params_input": {}},
            )
            response.raise_for_status()
            self._read.setdefault(task_id, []).append(detail)


@contextmanager
def at_the_api(person: Person, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a person respond until the end of the block."""
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from fastapi.testclient import TestClient

    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "True")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "for-these-tests-only" * 4)
    purge_cached_app()
    left = threading.Event()
    with TestClient(create_app(apps="core")) as client:
        token = client.get("/auth/token").json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"

        def sit() -> None:
            while not left.wait(0.5):
                with suppress(HTTPStatusError):  # a busy api-server; a person tries again
                    person.respond(client)

        thread = threading.Thread(target=sit)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()
    purge_cached_app()
