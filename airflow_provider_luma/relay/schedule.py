"""The time of the next poll of a wait: one rule for the sensor's modes and the triggers."""

from __future__ import annotations

import math
from dataclasses import dataclass

# What the last poll may take beyond the deadline, in every mode: after an outage there is still one.
LAST_POLL_SECONDS = 10

# A wait logs its progress at least this often, in seconds.
QUIET_SECONDS = 300
# How often a connection is read again while its relay fails, in every mode: it may have been corrected.
REREAD_SECONDS = 10
# Doubling ends here, so that no number of polls overflows a float.
_MAX_DOUBLINGS = 40


@dataclass(frozen=True, slots=True)
class PollSchedule:
    """
    The delays between polls.

    :param poke_interval: seconds.
    :param exponential_backoff: double the interval from poll to poll, beginning with half of it.
    :param max_wait: at most how many seconds between polls.
    """

    poke_interval: float = 60
    exponential_backoff: bool = False
    max_wait: float | None = None

    def interval(self, polls: int) -> float:
        """Return the seconds to wait after that many polls."""
        seconds = self.poke_interval
        if self.exponential_backoff:
            seconds = max(self.poke_interval * 2.0 ** min(polls - 2, _MAX_DOUBLINGS), 1)
        return seconds if self.max_wait is None else min(seconds, self.max_wait)

    def interval_after(self, elapsed: float) -> float:
        """Return the seconds to wait after that many seconds of waiting, where nobody counts the polls."""
        polls, total = 1, self.interval(1)
        while total <= elapsed and polls < _MAX_DOUBLINGS:
            polls += 1
            total += self.interval(polls)
        return self.interval(polls)

    def next_poll(self, polled_at: float, polls: int, offset: float = 0) -> float:
        """
        Return when the poll after that of ``polled_at`` is due: after the interval, drawn back to the grid.

        The grid makes waits that began apart poll together, which costs one request instead of many.

        :param polls: how many there have been.
        :param offset: by how many seconds the grid is shifted against multiples of the interval.
        """
        wait = self.interval(polls)
        step = self.poke_interval if self.poke_interval and wait % self.poke_interval == 0 else wait
        if not step:
            return polled_at
        return math.floor((polled_at + wait - offset) / step) * step + offset
