"""Faults on purpose: shares of requests that fail, and responses scripted one by one."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import deque
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Faults:
    """
    Faults of a sandbox, all off by default. A share is the part of requests affected, from 0 to 1.

    :param rate_limited: share of status queries that get a 429.
    :param retry_after: the ``Retry-After`` of those, in seconds; None sends neither the header nor a body.
    :param server_errors: share of status queries that get a 500, 502 (an HTML page) or 503.
    :param latency: seconds added to each response of the relay and of the CDN.
    :param truncated_downloads: share of downloads whose connection is closed half way.
    :param rejected_downloads: share of downloads that get a 403.
    :param submits_rate_limited: share of submits that get a 429, without a task.
    :param submits_unavailable: share of submits that get a 503 before a task is created.
    :param submits_bad_gateway: share of submits that create a task, are charged and then get a 502.
    :param submits_response_lost: share of submits that create a task, are charged and then get no response.
    :param limit_per_minute: how many status queries a minute are served; those above get a 429 whose
        ``Retry-After`` is right. No limit if None.
    """

    rate_limited: float = 0.0
    retry_after: float | None = None
    server_errors: float = 0.0
    latency: float = 0.0
    truncated_downloads: float = 0.0
    rejected_downloads: float = 0.0
    submits_rate_limited: float = 0.0
    submits_unavailable: float = 0.0
    submits_bad_gateway: float = 0.0
    submits_response_lost: float = 0.0
    limit_per_minute: int | None = None

    def __post_init__(self) -> None:
        for share in fields(self):
            if share.name in {"retry_after", "latency", "limit_per_minute"}:
                continue
            if not 0 <= getattr(self, share.name) <= 1:
                raise ValueError(f"{share.name} is a share from 0 to 1, not {getattr(self, share.name)}")


@dataclass(frozen=True)
class ScriptedResponse:
    """
    One response, byte for byte.

    :param status: the HTTP status.
    :param body: bytes and text are sent as they are, anything else as JSON.
    :param headers: sent besides ``Content-Type`` and ``Content-Length``.
    :param content_type: None leaves the header out.
    :param delay: seconds before the response begins.
    :param truncated: close the connection half way through the body.
    """

    status: int = 200
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = "application/json"
    delay: float = 0.0
    truncated: bool = False

    @property
    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        if isinstance(self.body, str):
            return self.body.encode()
        return json.dumps(self.body, ensure_ascii=False, check_circular=False, separators=(",", ":")).encode()


class FaultSampler:
    """Samples the fault of a request: the same faults for the same seed and number of requests."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def draw(self, *shares: float) -> int | None:
        """Return the index of the fault that applies, each with its share as probability; None if none."""
        drawn = self._random.random()
        return next(
            (index for index, total in enumerate(itertools.accumulate(shares)) if drawn < total), None
        )

    def choose(self, responses: Sequence[ScriptedResponse]) -> ScriptedResponse:
        return self._random.choice(responses)


class SlidingWindow:
    """
    A rate limit: a sliding window over the requests that were served.

    :param seconds: its length.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._served: deque[float] = deque()

    def admit(self, limit: int, now: float) -> int:
        """Count a request and return 0, or return the full seconds after which it would be admitted."""
        while self._served and self._served[0] <= now - self._seconds:
            self._served.popleft()
        if len(self._served) < limit:
            self._served.append(now)
            return 0
        return math.ceil(self._served[-limit] + self._seconds - now) if limit else round(self._seconds)
