"""
The slot of each prompt in the journal, also when the list of prompts was edited between two tries. No I/O.

A prompt is known by its fingerprint, the digest of all that it sends:

=================================================  =========================================================
situation                                          slots
=================================================  =========================================================
nothing was charged since the last success         the positions
each prompt is known                               theirs; of equal prompts those with an id come first
the list was never edited: it is as long as ever,  the positions: prompts may render differently with each
and each known prompt has always stood here        try, and what was paid for is not paid for again
some are unknown, and every prompt that may have   theirs; new slots for the unknown ones
been charged for is in the list
some are unknown, and some that may have been      none: the unknown ones may be new, or render differently.
charged for are not in the list                    An error; nothing is sent
=================================================  =========================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import count

from airflow_provider_luma.exceptions import SubmitRecordError

# Of a digest, so that the fingerprints of a segment take a kilobyte. The prompts of a batch are few enough.
_SHORT_CHARS = 16


def shorten(fingerprint: str) -> str:
    """Return the part of a fingerprint by which the prompts of a batch are told apart."""
    return fingerprint[:_SHORT_CHARS]


def assign_slots(
    fingerprints: Sequence[str], known: Mapping[int, str], *, charged: Mapping[int, bool], was_edited: bool
) -> list[int]:
    """
    Return the slot of each prompt.

    :param fingerprints: of the prompts, in their order.
    :param known: the fingerprints of the slots.
    :param charged: the slots whose prompts were charged for, or may have been, and whether they have an id.
    :param was_edited: whether the list was ever edited, also since the last try.
    :raises SubmitRecordError: when a prompt could be paid for again, or get the id of another one.
    """
    positions = range(len(fingerprints))
    if not charged:
        return list(positions)
    slots = _find_known(fingerprints, known, charged)
    if not was_edited and all(slot == position for position, slot in slots.items()):
        return list(positions)
    unknown = len(fingerprints) - len(slots)
    if unknown and (removed := len(charged.keys() - slots.values())):
        raise SubmitRecordError(
            f"{unknown} prompts are new, or render differently from earlier tries, and {removed} prompts "
            "that earlier tries submitted are not in the list any more. Nothing was sent, as a prompt could "
            "be paid for twice. Put the submitted prompts back into the list, in any order, or give the new "
            "ones to another Dag run"
        )
    unused = count(max(known) + 1)
    return [slots[position] if position in slots else next(unused) for position in positions]


def _find_known(
    fingerprints: Sequence[str], known: Mapping[int, str], charged: Mapping[int, bool]
) -> dict[int, int]:
    """Return the slots of the prompts that earlier tries knew, by position."""
    slots_of: dict[str, list[int]] = defaultdict(list)
    for slot in sorted(known):
        slots_of[known[slot]].append(slot)
    positions_of: dict[str, list[int]] = defaultdict(list)
    for position, fingerprint in enumerate(fingerprints):
        positions_of[fingerprint].append(position)
    found: dict[int, int] = {}
    for fingerprint, positions in positions_of.items():
        likeliest_first = sorted(
            slots_of[fingerprint], key=lambda slot: (slot not in charged, not charged.get(slot))
        )
        slots = likeliest_first[: len(positions)]
        own = [position for position in positions if position in slots]
        others = [position for position in positions if position not in slots]
        found |= dict(zip(own, own, strict=True))
        found |= dict(zip(others, sorted(set(slots) - set(own)), strict=False))
    return found
