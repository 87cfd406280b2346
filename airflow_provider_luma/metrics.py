"""What the provider tells Airflow's metrics; the README lists it. Tags are few-valued: never an id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_luma.exceptions import RelayError, RelayPermanentError, RelayRateLimitError

if TYPE_CHECKING:
    from airflow_provider_luma.download.records import Summary

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


def count_downloads(summary: Summary, seconds: float) -> None:
    """Count the videos of a download task by outcome, and the downloaded bytes."""
    numbers = {outcome: summary[outcome] for outcome in _OUTCOMES}
    for outcome, number in numbers.items():
        if number:
            Stats.incr("luma.videos", number, tags={"outcome": outcome})
    Stats.incr("luma.bytes", summary["bytes"])
    Stats.timing("luma.download_duration", seconds * 1000)


def count_pause(conn_id: str) -> None:
    """Count that the relay made a whole connection pause."""
    Stats.incr("luma.pauses", tags={"conn_id": conn_id})


def gauge_round(conn_id: str, ids: int) -> None:
    """Show how many ids a round of polling asks for."""
    Stats.gauge("luma.open_ids", ids, tags={"conn_id": conn_id})


def _outcome(error: RelayError | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, RelayRateLimitError):
        return "rate_limited"
    return "refused" if isinstance(error, RelayPermanentError) else "trouble"
