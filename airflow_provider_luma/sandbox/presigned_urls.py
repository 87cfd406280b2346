"""Presigned URLs of media, which expire as those of object stores do."""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_luma.sandbox.clock import Clock

MAX_TTL = 7 * 24 * 3600


class PresignedURLs:
    """
    Signs the CDN's URLs and verifies them.

    :param clock: dates a URL, and decides whether it has expired.
    :param ttl: seconds for which a URL is valid; 7 days, the most that S3 allows, if None.
    """

    def __init__(self, clock: Clock, ttl: float | None = None) -> None:
        self.cdn_url = ""
        self._clock = clock
        self._ttl = MAX_TTL if ttl is None else ttl

    def sign(self, task_id: str, names: tuple[str, ...], now: float) -> list[str]:
        """Return the URLs of these files of a task."""
        query = f"X-Amz-Date={self._clock.iso(now)}&X-Amz-Expires={self._ttl}"
        folder = f"{self.cdn_url}/dream-machine/{quote(task_id, safe='')}"
        signature = _signature(task_id, query)
        return [f"{folder}/{name}?{query}&X-Amz-Signature={signature}" for name in names]

    def rejection(self, task_id: str, query: Mapping[str, str], now: float) -> str | None:
        """Return why a URL with this query is rejected; None if it is valid."""
        date, ttl = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        signature = _signature(task_id, f"X-Amz-Date={date}&X-Amz-Expires={ttl}")
        if query.get("X-Amz-Signature") != signature:
            return "The request signature does not match"
        age = self._clock.unix(now) - datetime.fromisoformat(date).timestamp()
        return "Request has expired" if age > float(ttl) else None


def _signature(task_id: str, query: str) -> str:
    # One signature for all files of a task: a response may hold hundreds of URLs.
    return hmac.digest(b"sandbox", f"{task_id}?{query}".encode(), "sha256").hex()
