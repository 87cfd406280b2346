"""The results of a batch of submits, and their messages in logs, errors, XCom and the manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.relay.batch_state import MAX_BYTES, fit_entries, json_size
from airflow_provider_luma.relay.money import Money
from airflow_provider_luma.relay.result import Outcome, judge
from airflow_provider_luma.relay.text import list_first

_MAX_NAMED = 20
# A position and its separator are 8 bytes at most, and the list so takes a quarter of the XCom.
_MAX_UNKNOWN_LISTED = 2_000


class Cost(TypedDict):
    """An amount of money, in the relay's unit."""

    amount: float
    unit: str


class LumaSubmits(TypedDict):
    """
    The XCom ``luma_submits`` of a batch of submits.

    ``created`` and ``not_submitted`` are counts, ``rejected`` has reasons by position, ``unknown`` has
    positions. ``rejected_not_listed`` and ``unknown_not_listed`` count those without room. ``cost`` is there
    only if the relay reports charges, ``page_template``, a URL with ``{id}``, only if the connection names
    the relay's page of a task.
    """

    created: int
    rejected: dict[str, str]
    unknown: list[int]
    not_submitted: int
    rejected_not_listed: NotRequired[int]
    unknown_not_listed: NotRequired[int]
    cost: NotRequired[Cost]
    page_template: NotRequired[str]


class SubmitManifestRow(TypedDict):
    """
    A row of the manifest of a batch of submits.

    ``status`` is ``created``, ``rejected``, ``unknown`` or ``not_submitted``.
    """

    position: int
    status: str
    id: str | None
    reason: str | None


class SubmitManifest(TypedDict):
    """
    The return value of a batch of submits with a manifest: its URL, and the count of created tasks.

    Without a URL when the try ended before it wrote the manifest.
    """

    manifest: str | None
    created: int


@dataclass
class SubmitResult:
    """
    The results of the prompts of a batch.

    :param ids: of the Luma tasks, by position.
    :param rejected: the reason of each prompt that the relay rejected, by position.
    :param unknown: the positions of prompts that may have been charged for.
    :param not_submitted: how many were left out.
    :param stopped_by: why some were left out, human-readable.
    :param error: what stopped the batch, where the task must fail by it.
    :param cost: what the relay said that it charged; of those tasks of which it said so.
    """

    ids: dict[int, str] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)
    not_submitted: int = 0
    stopped_by: str | None = None
    error: Exception | None = None
    cost: Money | None = None

    def fails(self, prompts: int, fail_when: FailWhen) -> bool:
        """Return whether prompts without an id fail a batch of that many."""
        unsuccessful = prompts - len(self.ids)
        return judge(prompts, unsuccessful, 0, fail_when, fail_fast=False) is Outcome.FAILED

    def shared_ids(self) -> list[str]:
        """Return the positions of prompts with one id, and the id."""
        first: dict[str, int] = {}
        pairs = [
            (first.setdefault(task_id, position), position, task_id) for position, task_id in self.ids.items()
        ]
        return [f"{earlier} and {later} ({task_id})" for earlier, later, task_id in pairs if earlier != later]

    def summary(self) -> LumaSubmits:
        """
        Return what goes into XCom as ``luma_submits``.

        It is within 64 KB. ``unknown`` holds the first 2,000 positions, ``rejected`` what fits beside them:
        reasons are truncated first, then left out. What is not listed is counted.
        """
        rejected = {str(position): self.rejected[position] for position in sorted(self.rejected)}
        unknown = self.unknown[:_MAX_UNKNOWN_LISTED]
        listed = fit_entries(rejected, MAX_BYTES - 2_000 - json_size(unknown))
        summary: LumaSubmits = {
            "created": len(self.ids),
            "rejected": listed,
            "unknown": unknown,
            "not_submitted": self.not_submitted,
        }
        if not_listed := len(rejected) - len(listed):
            summary["rejected_not_listed"] = not_listed
        if not_listed := len(self.unknown) - len(unknown):
            summary["unknown_not_listed"] = not_listed
        if self.cost:
            summary["cost"] = {"amount": self.cost.amount, "unit": self.cost.unit}
        return summary

    def describe(self, prompts: int) -> str:
        """Return the counts in one line, and the first of the prompts without an id."""
        parts = [f"{len(self.ids)} of {prompts} prompts have a Luma task"]
        if self.cost is not None:
            parts.append(f"which cost {self.cost}")
        if self.rejected:
            named = [f"{position}: {self.rejected[position]}" for position in sorted(self.rejected)]
            reasons = "; ".join(list_first(named, _MAX_NAMED))
            parts.append(f"{len(self.rejected)} were rejected ({reasons})")
        if self.unknown:
            parts.append(f"{len(self.unknown)} may have been charged for ({first_of(self.unknown)})")
        if self.not_submitted:
            why = f", because {self.stopped_by}" if self.stopped_by else ""
            parts.append(f"{self.not_submitted} were not submitted{why}")
        return ", ".join(parts)

    def manifest(self, prompts: int) -> bytes:
        """Return a row of JSON for each prompt."""
        status = {
            **dict.fromkeys(self.ids, "created"),
            **dict.fromkeys(self.rejected, "rejected"),
            **dict.fromkeys(self.unknown, "unknown"),
        }
        rows: Iterator[SubmitManifestRow] = (
            {
                "position": position,
                "status": status.get(position, "not_submitted"),
                "id": self.ids.get(position),
                "reason": self.rejected.get(position),
            }
            for position in range(prompts)
        )
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def first_of(items: Sequence[object]) -> str:
    """Name the first few, such as positions, and count the others."""
    return ", ".join(list_first([*map(str, items)], _MAX_NAMED))
