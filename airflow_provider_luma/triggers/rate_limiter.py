"""The pace of the requests of a connection."""

from __future__ import annotations

import asyncio

from airflow_provider_luma.relay.pace import Pace


class RateLimiter:
    """Holds requests back on an event loop, see :class:`Pace`."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._pace = Pace(requests_per_minute)

    async def acquire(self) -> None:
        loop = asyncio.get_running_loop()
        # It may have grown meanwhile.
        while delay := self._pace.delay(loop.time()):
            await asyncio.sleep(delay)
        self._pace.take(loop.time())

    def pause(self, seconds: float) -> None:
        self._pace.pause(asyncio.get_running_loop().time(), seconds)
