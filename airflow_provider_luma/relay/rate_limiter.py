"""The time at which a request may leave. No I/O, so that threads and event loops keep to the same pace."""

from __future__ import annotations


class RateLimiter:
    """
    Says when a request may leave: after a pause, and in step with a pace.

    ``now`` is in seconds of any clock that only grows.
    """

    def __init__(self, requests_per_minute: float | None) -> None:
        self._spacing = 60 / requests_per_minute if requests_per_minute else 0.0
        self._paused_until = 0.0
        self._next_slot = 0.0

    def delay(self, now: float) -> float:
        """Return the seconds until a request may leave."""
        return max(self._paused_until - now, self._next_slot - now, 0.0)

    def take(self, now: float) -> None:
        """Let a request leave."""
        self._next_slot = now + self._spacing

    def pause(self, now: float, seconds: float) -> None:
        """Let none leave for so long."""
        self._paused_until = max(self._paused_until, now + seconds)
