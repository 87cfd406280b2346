"""Starts DAGs when Luma tasks end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_luma.exceptions import LumaValueError, RelayError
from airflow_provider_luma.relay.batch import read_task_ids
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.triggers.poller import Poller, shared_poller


class LumaTaskEventTrigger(BaseEventTrigger):
    """
    Fire an event for each of these Luma tasks when it is completed or failed, for ``AssetWatcher``.

    The payload is ``{"id": ..., "state": "completed" | "failed", "failure_reason": ...}``. Polls are shared
    with every other trigger of the connection. Trouble, also a refusal, is logged and outlasted, as nobody
    would start a watcher anew. A watcher that starts anew, as when the triggerer restarts, fires again for
    tasks that are over; an archive that finds its videos there does nothing.

    :param luma_task_ids: the Luma task ids.
    :param luma_conn_id: the connection. Default ``luma_default``.
    :param poke_interval: seconds between polls. Default 60.
    """

    def __init__(
        self, *, luma_task_ids: list[str], luma_conn_id: str = "luma_default", poke_interval: float = 60
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if poke_interval <= 0:
            raise LumaValueError(f"poke_interval must be above 0 seconds, not {poke_interval!r}")
        self.luma_task_ids = read_task_ids(luma_task_ids)
        self.luma_conn_id = luma_conn_id
        self.poke_interval = poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "luma_task_ids": self.luma_task_ids,
                "luma_conn_id": self.luma_conn_id,
                "poke_interval": self.poke_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        open_ids = dict.fromkeys(self.luma_task_ids)
        while open_ids:
            try:
                async with shared_poller(self.luma_conn_id) as poller:
                    while open_ids:
                        for task in await self._ended(poller, list(open_ids)):
                            del open_ids[task.id]
                            yield TriggerEvent(_payload(task))  # type: ignore[no-untyped-call]
                        await self._interval()
            except (RelayError, LumaValueError) as error:
                self.log.warning("Asking again in %.0f s: %s", self.poke_interval, error)
                await self._interval()
        self.log.info("All %d Luma tasks are over", len(self.luma_task_ids))
        await asyncio.Event().wait()  # Airflow would start a watcher that ends anew, and it would fire again

    async def _ended(self, poller: Poller, ids: list[str]) -> list[LumaTask]:
        answers = [answered async for _, answered in poller.iter_tasks(ids)]
        wanted = set(ids)
        tasks = {task.id: task for answered in answers for task in answered.values()}
        self.log.info("%d of %d are over", sum(task.is_terminal for task in tasks.values()), len(ids))
        return [task for task in tasks.values() if task.is_terminal and task.id in wanted]

    async def _interval(self) -> None:
        """Sleep until the next multiple of the interval, so that triggers fall into step."""
        now = time.time()
        await asyncio.sleep(math.floor(now / self.poke_interval + 1) * self.poke_interval - now)


def _payload(task: LumaTask) -> dict[str, str | None]:
    return {"id": task.id, "state": task.state.value, "failure_reason": task.failure_reason}
