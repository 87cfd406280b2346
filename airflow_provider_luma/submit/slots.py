"""
The slot of each prompt in the journal, when the list may have been edited between two tries. No I/O.

A prompt is known by its fingerprint, the digest of all that it sends:

======================================  =================================================================
the prompt                              gets
======================================  =================================================================
is known from an earlier try            its slot, wherever it stands now; of equal prompts those come
                                        first that were paid for
is unknown; the list is as long as it   the slot of its position, as prompts may render differently with
was, and no known prompt has moved      each try: what was paid for is not paid for again
is unknown; the list was edited         a new slot
======================================  =================================================================

If the list has another length, none of its prompts is known, and earlier ones were paid for, it may be an
edited list or one that renders differently. That is an error, and nothing is sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import count

from airflow_provider_luma.exceptions import SubmitRecordError

# Of a digest, so that the fingerprints of a segment take a kilobyte. The prompts of a batch are few enough.
_SHORT_CHARS = 16


def shorten(fingerprint: str) -> str:
    """Return the part of a fingerprint by which the prompts of a batch are told apart."""
    return fingerprint[:_SHORT_CHARS]


def assign_slots(
    fingerprints: Sequence[str], known: Mapping[int, str], *, charged: Collection[int], was_as_long: bool
) -> list[int]:
    """
    Return the slot of each prompt.

    :param fingerprints: of the prompts, in their order.
    :param known: the fingerprints of the slots.
    :param charged: the slots whose prompts were charged for, or may have been.
    :param was_as_long: whether the last try had as many prompts.
    :raises SubmitRecordError: when the list was edited so much that a prompt could be paid for again.
    """
    slots = _find_known(fingerprints, known, charged)
    has_moved = any(slot != position for position, slot in slots.items())
    if was_as_long and not has_moved:
        return list(range(len(fingerprints)))
    if not slots and charged:
        raise SubmitRecordError(
            f"The prompt list changed completely: none of its {len(fingerprints)} prompts is one that an "
            "earlier try submitted. Nothing was sent. Restore the list, or trigger a new run. Check that "
            "templates render the same in every try"
        )
    unused = count(max([len(fingerprints) - 1, *known]) + 1)
    for position in range(len(fingerprints)):
        if position not in slots:
            slots[position] = next(unused) if position in known else position
    return [slots[position] for position in range(len(fingerprints))]


def _find_known(
    fingerprints: Sequence[str], known: Mapping[int, str], charged: Collection[int]
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
        slots = sorted(slots_of[fingerprint], key=lambda slot: slot not in charged)[: len(positions)]
        own = [position for position in positions if position in slots]
        others = [position for position in positions if position not in slots]
        found |= dict(zip(own, own, strict=True))
        found |= dict(zip(others, sorted(set(slots) - set(own)), strict=False))
    return found
