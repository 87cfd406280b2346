"""The clock that a sandbox uses throughout, and the format of its times."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """
    Reads a steady clock and dates its readings.

    :param read: gives seconds that only grow; where they start does not matter.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.now = read
        self._offset = time.time() - read()

    def unix(self, at: float) -> float:
        return at + self._offset

    def date(self, at: float) -> datetime:
        return datetime.fromtimestamp(self.unix(at), UTC)

    def iso(self, at: float, precision: Literal["milliseconds", "microseconds"] = "milliseconds") -> str:
        return self.date(at).isoformat(timespec=precision).removesuffix("+00:00") + "Z"
