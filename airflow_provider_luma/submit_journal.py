"""
The journal of a batch: a record for each prompt, saved in groups.

The phases, and what a later try does with each, are those of :mod:`airflow_provider_luma.submit_record`. Each
record has a *slot*, which is the position of its prompt until the list of prompts is edited; then the prompts
find their records again, see :func:`assign_slots`. The records of neighbours form a *segment*, a JSON value
below 64 KB. Beside the segments is the *head*, with what belongs to the whole batch. The batch is *returned*
by one write to the head: from then on a record counts as returned that was created no later.

Saving is a *group commit*: one flush runs at a time, see :mod:`airflow_provider_luma.group_commit`.

==================================  =====================================================================
act                                 after a crash behind it
==================================  =====================================================================
all prompts are validated           no head: the next try submits all
the head is saved                   no records: the next try submits all
a flush saves ``sending``           unknown outcomes are reported, of at most ``max_parallel`` prompts
the requests leave                  likewise
a response arrives                  likewise
the id is logged                    likewise; the id is in the log
a flush saves ``created``           the next try knows the id
a flush is interrupted              each segment is as it was before, or as after it
``returned`` is saved in the head   the task is a success; cleared, it submits all again
==================================  =====================================================================

A head or a segment that cannot be read is an error, never "no records". A flush that fails leaves its
segments to the next one.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.group_commit import GroupCommit
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.submit_record import Ledger, Phase, SubmitRecord, fingerprint_of
from airflow_provider_luma.task_state import StatePlace, TaskState, load_record, save_record

if TYPE_CHECKING:
    from airflow_provider_luma.relay.generation import Generation

VERSION = 1
HEAD_KEY = "luma_submits"

# Slots of a segment. A flush writes a segment or two: small ones are more objects, large ones more bytes.
SEGMENT_SIZE = 64

# Of a reason in JSON, so that a segment of nothing but reasons stays below 64 KB.
_MAX_REASON_BYTES = 600


@dataclass(frozen=True)
class Head:
    """
    What belongs to the whole batch.

    :param slots: how many there are.
    :param returned: ``max_tries`` of the task instance when Airflow recorded its success.
    """

    slots: int
    returned: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, "slots": self.slots, "returned": self.returned}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """
        Read what :meth:`to_dict` gave.

        :raises SubmitRecordError: when it is something else.
        """
        _check_version(data)
        slots, returned = data.get("slots"), data.get("returned")
        if type(slots) is not int or slots < 0 or type(returned) not in {int, type(None)}:
            raise SubmitRecordError("it is no head of a journal")
        return cls(slots, returned)


class Journal:
    """
    The records of a batch's submits, and what this try may do.

    :param place: where the records live.
    :param max_tries: of the task instance.
    :param generations: of the prompts, as the batch has them now.
    :raises SubmitRecordError: when there is something that cannot be read.
    """

    def __init__(self, place: StatePlace, max_tries: int, generations: Sequence[Generation]) -> None:
        self.place = place
        self.max_tries = max_tries
        self._head_state = place.open(HEAD_KEY, "head")
        earlier = load_record(self._head_state, Head.from_dict)
        self._head = earlier or Head(0)
        self._records: dict[int, SubmitRecord] = {}
        self._segments: dict[int, TaskState | None] = {}
        self._commits = GroupCommit(self._save_segment)
        self._open_segments(max(self._head.slots, len(generations)))
        recorded = {slot: record.fingerprint for slot, record in self._records.items()}
        self._slots = assign_slots([fingerprint_of(generation) for generation in generations], recorded)
        slots = max(self._slots, default=-1) + 1
        self._open_segments(slots)
        if earlier is None or earlier.slots < slots:
            self._save_head(replace(self._head, slots=slots))

    def record(self, position: int) -> SubmitRecord | None:
        """Return the record of a prompt, ``None`` while there is none."""
        return self._record_in(self._slots[position])

    def removed(self) -> list[SubmitRecord]:
        """Return the records of prompts that the batch does not have any more."""
        slots = self._records.keys() - set(self._slots)
        return [record for slot in sorted(slots) if (record := self._record_in(slot)) is not None]

    def ledger(self, position: int) -> PromptLedger:
        """Return the record of one prompt as :class:`DurableSubmit` takes it."""
        return PromptLedger(self, position)

    def mark_reported(self, positions: Iterable[int]) -> None:
        """Save that the unknown outcomes of an earlier try were logged."""
        for slot in (self._slots[position] for position in positions):
            record = self._records[slot]
            self._records[slot] = record.at(Phase.REPORTED, self.max_tries, reason=record.reason)
            self._commits.add(_segment_of(slot))
        self.save_rest()

    def mark_returned(self) -> None:
        """Save that the ids were returned."""
        self._save_head(replace(self._head, returned=self.max_tries))

    def save_rest(self) -> None:
        """Save what a flush that failed has left."""
        self._commits.commit()

    def save(self, position: int, record: SubmitRecord) -> None:
        """Save the record of a prompt; one that cannot begin was not sent."""
        slot = self._slots[position]
        self._records[slot] = replace(record, reason=_fit_reason(record.reason))
        try:
            self._commits.commit(_segment_of(slot))
        except Exception:
            if record.phase is Phase.SENDING:
                self._records[slot] = record.at(
                    Phase.NOT_CREATED, self.max_tries, reason="Its record could not be saved"
                )
            raise

    def _record_in(self, slot: int) -> SubmitRecord | None:
        record, returned = self._records.get(slot), self._head.returned
        is_created = record is not None and record.phase is Phase.CREATED
        if record is not None and is_created and returned is not None and record.max_tries <= returned:
            return record.at(Phase.RETURNED, returned)
        return record

    def _open_segments(self, slots: int) -> None:
        """Read the segments of so many slots; they may be there without a head, if somebody deleted it."""
        for number in range(len(self._segments), -(-slots // SEGMENT_SIZE)):
            state = self._segments[number] = self.place.open(f"{HEAD_KEY}_{number}", str(number))
            self._records |= load_record(state, lambda data, number=number: _read_segment(data, number)) or {}  # type: ignore[misc]

    def _save_segment(self, number: int) -> None:
        records = {
            str(slot): record.to_dict()
            for slot in _slots_of(number)
            if (record := self._records.get(slot)) is not None
        }
        save_record(self._segments[number], {"version": VERSION, "records": records})

    def _save_head(self, head: Head) -> None:
        save_record(self._head_state, head.to_dict())
        self._head = head


class PromptLedger(Ledger):
    """The record of one prompt."""

    def __init__(self, journal: Journal, position: int) -> None:
        super().__init__(journal.max_tries)
        self._journal = journal
        self._position = position

    @property
    def record(self) -> SubmitRecord | None:
        return self._journal.record(self._position)

    @property
    def clear_hint(self) -> str:
        return self._journal.place.clear_hint

    def save(self, record: SubmitRecord) -> None:
        self._journal.save(self._position, record)


def assign_slots(fingerprints: Sequence[str], recorded: Mapping[int, str]) -> list[int]:
    """
    Return the slot of each prompt.

    A prompt takes its own position's record, if it is what was submitted there; else the record of the same
    prompt elsewhere, as the list was edited; else, as prompts may render differently with each try, that of
    its own position, unless another prompt has it; else a slot without a record.

    :param fingerprints: of the prompts, in their order.
    :param recorded: the fingerprints of the records, by slot.
    """
    slots = {position: position for position, own in enumerate(fingerprints) if recorded.get(position) == own}
    moved: dict[str, list[int]] = defaultdict(list)
    for slot in sorted(recorded.keys() - slots.keys(), reverse=True):
        moved[recorded[slot]].append(slot)
    for position, own in enumerate(fingerprints):
        if position not in slots and moved[own]:
            slots[position] = moved[own].pop()
    taken = set(slots.values())
    unused = count(max([len(fingerprints) - 1, *recorded]) + 1)
    return [
        slots.get(position, position if position not in taken else next(unused))
        for position in range(len(fingerprints))
    ]


def _segment_of(slot: int) -> int:
    return slot // SEGMENT_SIZE


def _slots_of(segment: int) -> range:
    return range(segment * SEGMENT_SIZE, (segment + 1) * SEGMENT_SIZE)


def _read_segment(data: Any, number: int) -> dict[int, SubmitRecord]:
    _check_version(data)
    if not isinstance(records := data.get("records"), Mapping):
        raise SubmitRecordError("it is no segment of a journal")
    expected = {str(slot): slot for slot in _slots_of(number)}
    if strangers := records.keys() - expected.keys():
        raise SubmitRecordError(f"it has a record of the slot {clean_text(min(strangers), 80)!r}")
    return {expected[key]: SubmitRecord.from_dict(record) for key, record in records.items()}


def _check_version(data: Any) -> None:
    version = data.get("version") if isinstance(data, Mapping) else None
    if type(version) is not int or version != VERSION:
        raise SubmitRecordError(f"it has the version {version!r:.20}, not {VERSION}")


def _fit_reason(reason: str | None) -> str | None:
    """Cut a reason to what a segment has room for; a character takes up to twelve bytes in JSON."""
    if reason is None or len(json.dumps(reason)) <= _MAX_REASON_BYTES:
        return reason
    length = bisect_right(
        range(len(reason)), _MAX_REASON_BYTES, key=lambda end: len(json.dumps(reason[:end]))
    )
    return f"{reason[: length - 1].rstrip()}…"
