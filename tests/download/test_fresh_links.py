from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_luma.download.fresh_links import FreshLinks
from airflow_provider_luma.exceptions import RelayInvalidRequestError, RelayTransientError
from airflow_provider_luma.relay.task import LumaTask, parse_tasks

THREADS = 20


class Relay:
    """Knows every id but "unknown", and rejects a request with "bad" in it."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []

    def query(self, ids: Sequence[str]) -> dict[str, LumaTask]:
        self.requests.append(list(ids))
        if "down" in ids:
            raise RelayTransientError("503")
        if "bad" in ids:
            raise RelayInvalidRequestError("bad id")
        return parse_tasks([{"id": task_id, "state": "completed"} for task_id in ids if task_id != "unknown"])


def get_all(links: FreshLinks, ids: Sequence[str]) -> list[LumaTask | Exception | None]:
    """Ask from a thread for each id, all at the same moment."""
    barrier = threading.Barrier(len(ids))

    def get(task_id: str) -> LumaTask | Exception | None:
        barrier.wait()
        try:
            return links.get(task_id)
        except Exception as error:  # noqa: BLE001
            return error

    with ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(get, ids))


def test_threads_share_a_request_and_get_their_own_task() -> None:
    relay = Relay()
    ids = [f"task-{number}" for number in range(THREADS - 1)] + ["unknown"]
    tasks = get_all(FreshLinks(relay.query), ids)
    assert [task.id if isinstance(task, LumaTask) else task for task in tasks] == [*ids[:-1], None]
    assert [sorted(request) for request in relay.requests] == [sorted(ids)]


def test_a_request_has_no_more_ids_than_the_limit() -> None:
    relay = Relay()
    ids = [f"task-{number}" for number in range(THREADS)]
    assert None not in get_all(FreshLinks(relay.query, batch_size=8), ids)
    assert sorted(len(request) for request in relay.requests) == [4, 8, 8]


def test_an_id_that_the_relay_rejects_is_an_error_of_its_own_only() -> None:
    relay = Relay()
    good, bad, other = get_all(FreshLinks(relay.query), ["good", "bad", "other"])
    assert isinstance(good, LumaTask)
    assert isinstance(other, LumaTask)
    assert isinstance(bad, RelayInvalidRequestError)


def test_a_transient_error_is_not_multiplied() -> None:
    relay = Relay()
    errors = get_all(FreshLinks(relay.query), ["down", "a", "b"])
    assert all(isinstance(error, RelayTransientError) for error in errors)
    assert len(relay.requests) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_a_later_request_queries_again(number: int) -> None:
    relay = Relay()
    links = FreshLinks(relay.query)
    for _ in range(number):
        links.get("a")
    assert len(relay.requests) == number
