"""The poller of each connection, in each event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from airflow_provider_luma.exceptions import LumaValueError, RelayTransientError
from airflow_provider_luma.hooks.luma import RelaySettings
from airflow_provider_luma.triggers.poller import Poller, read_settings
from airflow_provider_luma.triggers.subscription import Subscription


class _Pollers:
    """The pollers of one event loop."""

    def __init__(self) -> None:
        self.by_connection: dict[str, Poller] = {}
        self.reads: dict[str, asyncio.Task[RelaySettings]] = {}

    async def join(self, conn_id: str, subscription: Subscription) -> None:
        try:
            settings = await self._settings(conn_id)
        except LumaValueError:
            raise
        except Exception as error:
            raise RelayTransientError(f"The connection {conn_id!r} cannot be read: {error}") from error
        # Subscriptions of other settings stay with their poller until the relay rejects its key.
        self._poller(conn_id, settings).add(subscription)

    def leave(self, subscription: Subscription) -> None:
        poller = subscription.poller
        if poller is None:
            return
        poller.remove(subscription)
        if not poller.subscriptions:
            self._close(poller)

    def _poller(self, conn_id: str, settings: RelaySettings) -> Poller:
        """Return the running poller of these settings, a new one if need be."""
        poller = self.by_connection.get(conn_id)
        if poller is None or poller.settings != settings or not poller.is_running:
            poller = self.by_connection[conn_id] = Poller(conn_id, settings, self._replace)
        return poller

    async def _settings(self, conn_id: str) -> RelaySettings:
        """Read a connection; triggers that start meanwhile share the reading."""
        if conn_id not in self.reads:
            self.reads[conn_id] = asyncio.create_task(read_settings(conn_id))
            self.reads[conn_id].add_done_callback(lambda _: self.reads.pop(conn_id))
        return await asyncio.shield(self.reads[conn_id])

    def _replace(self, old: Poller, settings: RelaySettings) -> None:
        if not old.subscriptions:  # they have left meanwhile, and nobody would close the new one
            return
        new = self._poller(old.conn_id, settings)
        now = time.monotonic()
        for subscription in list(old.subscriptions):
            subscription.restart_poll(now)
            new.add(subscription)
        old.subscriptions.clear()
        self._close(old)

    def _close(self, poller: Poller) -> None:
        if self.by_connection.get(poller.conn_id) is poller:
            del self.by_connection[poller.conn_id]
        poller.close()


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pollers] = WeakKeyDictionary()


@asynccontextmanager
async def subscribed(conn_id: str, subscription: Subscription) -> AsyncIterator[None]:
    """
    Have a batch kept up to date by the poller of a connection; the last to leave closes it.

    :raises LumaValueError: when the connection cannot be used.
    :raises RelayTransientError: when it cannot be read, which may pass.
    """
    pollers = _pollers.setdefault(asyncio.get_running_loop(), _Pollers())
    await pollers.join(conn_id, subscription)
    try:
        yield
    finally:
        pollers.leave(subscription)
