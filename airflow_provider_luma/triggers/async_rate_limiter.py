"""The pace of the requests of a connection."""

from __future__ import annotations

import asyncio

from airflow_provider_luma.relay.rate_limiter import RateLimiter


class AsyncRateLimiter:
    """Holds requests back on an event loop, see :class:`RateLimiter`."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._limiter = RateLimiter(requests_per_minute)

    async def acquire(self) -> None:
        loop = asyncio.get_running_loop()
        # It may have grown meanwhile.
        while delay := self._limiter.delay(loop.time()):
            await asyncio.sleep(delay)
        self._limiter.take(loop.time())

    def pause(self, seconds: float) -> None:
        self._limiter.pause(asyncio.get_running_loop().time(), seconds)
