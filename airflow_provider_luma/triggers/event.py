"""Starts Dags when Luma tasks end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, TypedDict

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.batch import TaskBatch, parse_task_ids
from airflow_provider_luma.relay.schedule import PollSchedule
from airflow_provider_luma.triggers.fired_tasks import CONFIRM_SECONDS, FiredTasks
from airflow_provider_luma.triggers.registry import subscribed
from airflow_provider_luma.triggers.subscription import Subscription


class TaskEvent(TypedDict):
    """The payload of an event: ``state`` is ``completed`` or ``failed``."""

    id: str
    state: str
    failure_reason: str | None


class LumaTaskEventTrigger(BaseEventTrigger):
    """
    Fire an event for each of these Luma tasks when it is completed or failed, for ``AssetWatcher``.

    The payload is ``{"id": ..., "state": "completed" | "failed", "failure_reason": ...}``. Polls are shared
    with every other trigger of the connection. All errors are logged, and polling continues, as nobody
    would start a watcher again. On Airflow 3.3 and newer the asset's state store remembers which tasks have
    fired, where the trigger watches one asset, also when ids are added to ``luma_task_ids`` or taken out of
    it. A triggerer that dies within two seconds of an event fires it again, and without that store each
    restart fires again for tasks that have ended; a download that finds its videos at their destination does
    nothing. An id that the relay never knows never fires, and is polled until it is taken out of
    ``luma_task_ids``.

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
        self.luma_task_ids = parse_task_ids(luma_task_ids)
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
        # Airflow gives the state store to event triggers from 3.3 on.
        fired = FiredTasks(getattr(self, "asset_state_store", None))
        batch = TaskBatch(
            await fired.load_unfired(self.luma_task_ids), started_at=time.time(), missing_grace=math.inf
        )
        unfired = dict.fromkeys(batch.ids)
        while unfired:
            try:
                async with aclosing(self._watch(batch, unfired, fired)) as events:
                    async for event in events:
                        yield event
            except Exception as error:  # noqa: BLE001 - of any kind, as nobody would start a watcher again
                self.log.warning("Polling again in %.0f s: %s", self.poke_interval, error)
                await asyncio.sleep(self.poke_interval)
        self.log.info("All %d Luma tasks have ended", len(self.luma_task_ids))
        while not fired.is_saved:
            await asyncio.sleep(self._save_interval)
            await fired.save()
        await asyncio.Event().wait()  # Airflow would start a watcher that ends again, and it would fire twice

    async def _watch(
        self, batch: TaskBatch, unfired: dict[str, None], fired: FiredTasks
    ) -> AsyncGenerator[TriggerEvent, None]:
        subscription = Subscription(batch, PollSchedule(self.poke_interval), tolerates=lambda error: True)
        async with subscribed(self.luma_conn_id, subscription):
            while unfired:
                if not subscription.has_ended:
                    await self._sleep(subscription, fired)
                while subscription.warnings:
                    self.log.warning(
                        "Poll failed, retrying at the next interval: %s", subscription.warnings.pop(0)
                    )
                self.log.info("%s", batch.progress_message())
                running = set(batch.pending_ids)
                ended = [task_id for task_id in unfired if task_id not in running]
                for task_id in ended:
                    del unfired[task_id]
                    yield TriggerEvent(_payload(task_id, batch.failure_reason(task_id)))  # type: ignore[no-untyped-call]
                if ended:
                    await fired.add(ended)
                if subscription.error is not None:
                    raise subscription.error

    async def _sleep(self, subscription: Subscription, fired: FiredTasks) -> None:
        """Sleep until there are news, and save meanwhile what has fired."""
        while not fired.is_saved:
            await fired.save()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._save_interval):
                    await subscription.news()
                return
        await subscription.news()

    @property
    def _save_interval(self) -> float:
        return min(self.poke_interval, CONFIRM_SECONDS)


def _payload(task_id: str, reason: str | None) -> TaskEvent:
    return {
        "id": task_id,
        "state": "completed" if reason is None else "failed",
        "failure_reason": reason,
    }
