"""The provider's metrics, listed in ``docs/operating.md``. Tags have few values: never an id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_luma.exceptions import (
    RelayError,
    RelayPermanentError,
    RelayRateLimitError,
    SubmitOutcomeUnknownError,
)

if TYPE_CHECKING:
    from airflow_provider_luma.download.records import DownloadSummary
    from airflow_provider_luma.relay.money import Money

_OUTCOMES: tuple[Literal["downloaded", "unchanged", "errors"], ...] = ("downloaded", "unchanged", "errors")


def count_request(error: RelayError | None, seconds: float) -> None:
    """Count a request to the relay by its outcome, and time it."""
    Stats.incr("luma.requests", tags={"outcome": _outcome(error)})
    Stats.timing("luma.request_duration", seconds * 1000)


def count_tasks(numbers: Mapping[str, int]) -> None:
    """Count what became of the tasks of a wait that has ended, by state."""
    for state, number in numbers.items():
        if number:
            Stats.incr("luma.tasks", number, tags={"state": state})


def count_downloads(summary: DownloadSummary, seconds: float) -> None:
    """Count the videos of a download task by outcome, and the downloaded bytes."""
    numbers = {outcome: summary[outcome] for outcome in _OUTCOMES}
    for outcome, number in numbers.items():
        if number:
            Stats.incr("luma.videos", number, tags={"outcome": outcome})
    Stats.incr("luma.bytes", summary["bytes"])
    Stats.timing("luma.download_duration", seconds * 1000)


def count_rate_limit_pause(conn_id: str) -> None:
    """Count that a 429 paused every request of a connection."""
    Stats.incr("luma.rate_limit_pauses", tags={"conn_id": conn_id})


def record_pending_ids(conn_id: str, ids: int) -> None:
    """Record how many ids the subscriptions of a polling round wait for."""
    Stats.gauge("luma.pending_ids", ids, tags={"conn_id": conn_id})


def record_balance(conn_id: str, balance: Money) -> None:
    """Record what an account can still spend, unless there is no limit."""
    if not balance.is_unlimited:
        Stats.gauge("luma.balance", balance.amount, tags={"conn_id": conn_id, "unit": balance.unit})


def _outcome(error: RelayError | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, RelayRateLimitError):
        return "rate_limited"
    if isinstance(error, SubmitOutcomeUnknownError):
        return "outcome_unknown"
    return "rejected" if isinstance(error, RelayPermanentError) else "transient_error"
