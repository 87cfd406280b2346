"""The action of a try for each prompt, from the table in :mod:`airflow_provider_luma.submit.record`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_luma.submit.record import Action, SubmitRecord, fingerprint_of
from airflow_provider_luma.submit.result import first_of

if TYPE_CHECKING:
    from airflow_provider_luma.relay.generation import Generation
    from airflow_provider_luma.submit.journal import Journal

log = logging.getLogger(__name__)


def plan_submits(journal: Journal, generations: Sequence[Generation]) -> list[int]:
    """Return the positions that this try submits, and say what earlier tries have left of the others."""
    actions = [journal.ledger(position).next_action() for position in range(len(generations))]
    unknown = _positions(actions, Action.FAIL_UNKNOWN)
    known = _positions(actions, Action.RECONNECT)
    if known:
        log.info("Reconnecting to %d Luma tasks, which earlier tries submitted", len(known))
    _warn_changed(journal, generations, [*unknown, *known])
    _warn_removed(journal.removed())
    if unknown:
        log.error(
            "Skipping %d prompts, at the positions %s: an earlier try may have submitted and been "
            "charged for them. Check the relay's task log. If it does not show them: %s",
            len(unknown),
            first_of(unknown),
            journal.resubmit_hint,
        )
        journal.mark_reported(unknown)
    return _positions(actions, Action.SUBMIT)


def _positions(actions: Sequence[Action], wanted: Action) -> list[int]:
    return [position for position, action in enumerate(actions) if action is wanted]


def _warn_changed(journal: Journal, generations: Sequence[Generation], positions: Sequence[int]) -> None:
    changed = [
        position
        for position in positions
        if (record := journal.record(position)) is not None
        and record.fingerprint != fingerprint_of(generations[position])
    ]
    if changed:
        log.warning(
            "%d prompts render differently from what was submitted, at the positions %s: "
            "their Luma tasks are those of what was submitted",
            len(changed),
            first_of(changed),
        )


def _warn_removed(removed: Sequence[SubmitRecord]) -> None:
    """Name the Luma tasks of prompts that were taken out of the list since an earlier try."""
    ids = [record.id for record in removed if record.id]
    unknown = len(removed) - len(ids)
    if ids:
        log.warning(
            "%d prompts were submitted and are not in the list any more; their Luma tasks are not among the "
            "results: %s",
            len(ids),
            ", ".join(ids),
        )
    if unknown:
        log.warning(
            "%d prompts are not in the list any more, and may have been submitted and charged for. Check the "
            "relay's task log",
            unknown,
        )
