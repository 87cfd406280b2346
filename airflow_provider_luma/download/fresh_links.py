"""
Fresh URLs for many threads: those that need one at the same moment share one request to the relay.

The first thread opens a batch, waits ``COALESCE_SECONDS`` for others, and sends the request. They wait for
it; a thread that comes later opens the next batch. An error is everybody's, as that of a request of their own
would have been; but a request that the relay rejects is repeated for each id alone, so that no id is
an error because of another's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from airflow_provider_luma.exceptions import RelayPermanentError
from airflow_provider_luma.relay.task import LumaTask

COALESCE_SECONDS = 0.25

Tasks = Mapping[str, LumaTask]


@dataclass
class _Batch:
    ids: dict[str, None] = field(default_factory=dict)
    tasks: Future[Tasks] = field(default_factory=Future)


class FreshLinks:
    """
    Queries the relay for tasks again.

    :param query: sends one request for these ids.
    :param batch_size: at most how many ids a request has.
    """

    def __init__(self, query: Callable[[Sequence[str]], Tasks], *, batch_size: int = 100) -> None:
        self._query = query
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._open: _Batch | None = None

    def get(self, task_id: str) -> LumaTask | None:
        """
        Return the task as it is now; ``None`` when the relay does not know it.

        :raises RelayError: when the relay did not respond, or rejects this id.
        """
        with self._lock:
            batch = self._open
            if is_first := batch is None:
                batch = self._open = _Batch()
            batch.ids[task_id] = None
            if len(batch.ids) >= self._batch_size:
                self._open = None
        if is_first:
            self._send(batch)
        try:
            return batch.tasks.result().get(task_id)
        except RelayPermanentError:
            if len(batch.ids) == 1:
                raise
        return self._query([task_id]).get(task_id)

    def _send(self, batch: _Batch) -> None:
        time.sleep(COALESCE_SECONDS)
        with self._lock:
            if self._open is batch:
                self._open = None
        try:
            batch.tasks.set_result(self._query(list(batch.ids)))
        except BaseException as error:  # noqa: BLE001 - each thread that waits raises it
            batch.tasks.set_exception(error)
