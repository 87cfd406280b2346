"""When a request of a connection may leave."""

from __future__ import annotations

import asyncio


class RateLimiter:
    """Says when a request may leave: after a pause, and in step with a pace."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._spacing = 60 / requests_per_minute if requests_per_minute else 0.0
        self._paused_until = 0.0
        self._next_slot = 0.0

    async def acquire(self) -> None:
        loop = asyncio.get_running_loop()
        # Both may have moved on meanwhile.
        while loop.time() < (until := max(self._paused_until, self._next_slot)):
            await asyncio.sleep(until - loop.time())
        self._next_slot = loop.time() + self._spacing

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)
