"""What became of a batch of submits, and what is said of it in logs, errors, XCom and the manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_luma.arguments import FailWhen
from airflow_provider_luma.relay.money import Money
from airflow_provider_luma.relay.result import Outcome, judge
from airflow_provider_luma.relay.state import MAX_BYTES, fit_entries

_MAX_NAMED = 20


@dataclass
class BatchSubmits:
    """
    What became of the prompts of a batch.

    :param ids: of the Luma tasks, by position.
    :param rejected: the reason of each prompt that the relay rejected, by position.
    :param unknown: the positions of prompts that may have been charged for.
    :param not_submitted: how many were left out.
    :param stopped_by: why some were left out, for people.
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
        """Say whether prompts without an id fail a batch of so many."""
        unsuccessful = prompts - len(self.ids)
        return judge(prompts, unsuccessful, 0, fail_when, fail_fast=False) is Outcome.FAILED

    def summary(self) -> dict[str, Any]:
        """
        Return what goes into XCom as ``luma_submits``.

        Thousands of reasons do not fit into 64 KB: they are cut first, then ``rejected`` holds only the first
        of them, and ``rejected_not_listed`` the number of the others.
        """
        rejected = {str(position): self.rejected[position] for position in sorted(self.rejected)}
        listed = fit_entries(rejected, MAX_BYTES - 2_000)
        not_listed = len(rejected) - len(listed)
        return {
            "created": len(self.ids),
            "rejected": listed,
            "unknown": self.unknown,
            "not_submitted": self.not_submitted,
            **({"rejected_not_listed": not_listed} if not_listed else {}),
            **({"cost": {"amount": self.cost.amount, "unit": self.cost.unit}} if self.cost else {}),
        }

    def describe(self, prompts: int) -> str:
        """Return the counts in one line, and the first of the prompts without an id."""
        parts = [f"{len(self.ids)} of {prompts} prompts have a Luma task"]
        if self.cost is not None:
            parts.append(f"which cost {self.cost}")
        if self.rejected:
            named = [f"{position}: {self.rejected[position]}" for position in sorted(self.rejected)]
            left_out = len(named) - _MAX_NAMED
            reasons = "; ".join([*named[:_MAX_NAMED], *([f"and {left_out} more"] if left_out > 0 else [])])
            parts.append(f"{len(self.rejected)} were rejected ({reasons})")
        if self.unknown:
            parts.append(f"{len(self.unknown)} may have been charged for ({first_positions(self.unknown)})")
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
        rows = (
            {
                "position": position,
                "status": status.get(position, "not_submitted"),
                "id": self.ids.get(position),
                "reason": self.rejected.get(position),
            }
            for position in range(prompts)
        )
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def first_positions(positions: Sequence[int]) -> str:
    """Name the first few positions, and count the others."""
    named = ", ".join(map(str, positions[:_MAX_NAMED]))
    left_out = len(positions) - _MAX_NAMED
    return f"{named} and {left_out} more" if left_out > 0 else named
