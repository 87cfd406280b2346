"""
The journal of a batch: a record for each prompt, saved in groups.

The phases, and what a later try does with each, are those of :mod:`airflow_provider_luma.submit.record`. Each
prompt has a *slot* for its record, which is its position until the list of prompts is edited; then they find
their slots again, see :mod:`airflow_provider_luma.submit.journal_slots`. Neighbouring slots form a *segment*,
a JSON value below 64 KB: the records, and the shortened fingerprints of the prompts for which they are.
Beside the segments is the *header*, with what belongs to the whole batch. The batch is *returned* by one
write to the header, which counts Airflow's *successes*: from then on a record that was written before counts
as returned.

Saving is a *group commit*: one flush runs at a time, see :mod:`airflow_provider_luma.submit.group_commit`.

==================================  =====================================================================
act                                 if the process dies after this step
==================================  =====================================================================
all prompts are validated           no header: the next try submits all
the fingerprints are saved          no records: the next try submits all
the header is saved                 likewise; ``returned`` of an earlier try comes too late
a flush saves ``sending``           unknown outcomes are reported, of at most ``max_parallel`` prompts
the requests leave                  likewise
a response arrives                  likewise
the id is logged                    likewise; the id is in the log
a flush saves ``created``           the next try knows the id
a flush is interrupted              each segment is as it was before, or as after it
``returned`` is in the header       the task is a success; cleared, it submits all again
==================================  =====================================================================

A header or a segment that cannot be read is an error, never "no records". A flush that fails leaves its
segments to the next one.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.submit.group_commit import GroupCommit
from airflow_provider_luma.submit.journal_slots import assign_slots, shorten
from airflow_provider_luma.submit.record import (
    Action,
    Ledger,
    Phase,
    SubmitRecord,
    fingerprint_of,
    next_action,
)
from airflow_provider_luma.submit.record_store import (
    RecordStore,
    StatePlace,
    load_record,
    lost_record,
    save_record,
)

if TYPE_CHECKING:
    from airflow_provider_luma.relay.generation import Generation

VERSION = 1
HEADER_KEY = "luma_journal"

# Slots of a segment. A flush writes a segment or two: small ones are more objects, large ones more bytes.
SEGMENT_SIZE = 64

# Of a reason in JSON, so that a segment of nothing but reasons stays below 64 KB.
_MAX_REASON_BYTES = 570


@dataclass(frozen=True)
class Header:
    """
    The part of the journal that belongs to the whole batch.

    :param slots: how many there are.
    :param is_edited: whether the list of prompts was edited since there were charges.
    :param successes: how often Airflow recorded a success.
    :param returned: ``max_tries`` of the task instance when it last did.
    """

    slots: int = 0
    is_edited: bool = False
    successes: int = 0
    returned: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **vars(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """
        Read what :meth:`to_dict` gave.

        :raises SubmitRecordError: when it is something else.
        """
        _check_version(data)
        header = cls(data.get("slots"), data.get("is_edited"), data.get("successes"), data.get("returned"))
        counts = (header.slots, header.successes)
        if (
            any(type(number) is not int or number < 0 for number in counts)
            or type(header.is_edited) is not bool
            or type(header.returned) not in {int, type(None)}
        ):
            raise SubmitRecordError("it is not the header of a journal")
        return header


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
        self._header_store = place.open(HEADER_KEY, "header")
        header = load_record(self._header_store, Header.from_dict)
        self._has_header = header is not None
        self._is_claimed = False
        self._header = header or Header()
        self._records: dict[int, SubmitRecord] = {}
        self._fingerprints: dict[int, str] = {}
        self._segments: dict[int, RecordStore | None] = {}
        self._commits = GroupCommit(self._save_segment)
        had_records = place.has_records
        self._open_segments(max(self._header.slots, len(generations)))
        if had_records and header is None and not self._fingerprints:
            raise lost_record(self._header_store)
        self._slots = self._assign_slots([shorten(fingerprint_of(item)) for item in generations])

    def _assign_slots(self, fingerprints: Sequence[str]) -> list[int]:
        """Find the slot of each prompt, and save which prompts the new slots are for."""
        charged = {slot: record for slot, record in self._records.items() if self._may_be_charged(slot)}
        was_edited = self._header.is_edited or len(fingerprints) != self._header.slots
        slots = assign_slots(
            fingerprints,
            self._fingerprints | {slot: shorten(record.fingerprint) for slot, record in charged.items()},
            charged={slot: record.id is not None for slot, record in charged.items()},
            was_edited=was_edited,
        )
        self._open_segments(max(slots, default=-1) + 1)
        for slot, fingerprint in zip(slots, fingerprints, strict=True):
            if slot not in charged and self._fingerprints.get(slot) != fingerprint:
                self._fingerprints[slot] = fingerprint
                self._commits.add(_segment_of(slot))
        self.save_rest()
        header = replace(
            self._header,
            slots=max([*slots, *charged, self._header.slots - 1 if charged else -1], default=-1) + 1,
            is_edited=bool(charged) and (was_edited or slots != list(range(len(slots)))),
        )
        if header != self._header or not self._has_header:
            self._save_header(header)
        return slots

    def claim(self) -> None:
        """
        Make it this try's, before it submits: an earlier one that saves ``returned`` from now on is too late.

        :raises LumaError: when it could not be saved.
        """
        if not self._is_claimed:
            self._save_header(self._header)

    def _may_be_charged(self, slot: int) -> bool:
        """Return whether a try since the last success was charged for a slot's prompt, or may have been."""
        return next_action(self._record_in(slot), self.max_tries) in {Action.RECONNECT, Action.FAIL_UNKNOWN}

    def record(self, position: int) -> SubmitRecord | None:
        """Return the record of a prompt, ``None`` while there is none."""
        return self._record_in(self._slots[position])

    def removed(self) -> list[SubmitRecord]:
        """Return the records of prompts that may have been charged for, and are not in the list now."""
        slots = sorted(self._records.keys() - set(self._slots))
        return [self._records[slot] for slot in slots if self._may_be_charged(slot)]

    @property
    def resubmit_hint(self) -> str:
        return self.place.clear_hint("submit such prompts again")

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
        """
        Save that the ids were returned.

        :raises LumaError: when it could not be saved.
        """
        self._save_header(
            replace(self._header, successes=self._header.successes + 1, returned=self.max_tries)
        )

    def save_rest(self) -> None:
        """Save what a flush that failed has left."""
        self._commits.commit()

    def save(self, position: int, record: SubmitRecord) -> None:
        """
        Save the record of a prompt; one that cannot begin was not sent.

        :raises LumaError: when it could not be saved.
        """
        slot = self._slots[position]
        if record.phase is Phase.SENDING:
            record = replace(record, successes=self._header.successes)
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
        record, returned = self._records.get(slot), self._header.returned
        if record is None or record.phase is not Phase.CREATED or returned is None:
            return record
        return (
            record.at(Phase.RETURNED, returned)
            if (record.successes or 0) < self._header.successes
            else record
        )

    def _open_segments(self, slots: int) -> None:
        """Read the segments of that many slots; none that the header counts may be missing."""
        for number in range(len(self._segments), -(-slots // SEGMENT_SIZE)):
            state = self._segments[number] = self.place.open(f"{HEADER_KEY}_{number}", str(number))
            segment = load_record(state, partial(_parse_segment, number=number))
            if state is not None and segment is None and number * SEGMENT_SIZE < self._header.slots:
                raise lost_record(state)
            if segment is not None:
                if segment[1] and not self._has_header:
                    raise lost_record(self._header_store)
                self._fingerprints |= segment[0]
                self._records |= segment[1]

    def _save_segment(self, number: int) -> None:
        slots = _slots_of(number)
        records = {
            str(slot): record.to_dict() for slot in slots if (record := self._records.get(slot)) is not None
        }
        prompts = [self._fingerprints.get(slot) for slot in slots]
        save_record(
            self._segments[number], {"version": VERSION, "prompts": _join(prompts), "records": records}
        )

    def _save_header(self, header: Header) -> None:
        save_record(self._header_store, header.to_dict())
        self._header, self._has_header, self._is_claimed = header, True, True


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
    def resubmit_hint(self) -> str:
        return self._journal.resubmit_hint

    def save(self, record: SubmitRecord) -> None:
        self._journal.save(self._position, record)


def _segment_of(slot: int) -> int:
    return slot // SEGMENT_SIZE


def _slots_of(segment: int) -> range:
    return range(segment * SEGMENT_SIZE, (segment + 1) * SEGMENT_SIZE)


def _parse_segment(data: Any, number: int) -> tuple[dict[int, str], dict[int, SubmitRecord]]:
    """Return the fingerprints of the prompts, and the records, by slot."""
    _check_version(data)
    records, prompts = data.get("records"), data.get("prompts")
    if not isinstance(records, Mapping) or not isinstance(prompts, str):
        raise SubmitRecordError("it is not a segment of a journal")
    slots = _slots_of(number)
    expected = {str(slot): slot for slot in slots}
    if strangers := records.keys() - expected.keys():
        raise SubmitRecordError(f"it has a record of the slot {clean_text(min(strangers), 80)!r}")
    fingerprints = {slot: part for slot, part in zip(slots, prompts.split(","), strict=False) if part}
    return fingerprints, {expected[key]: SubmitRecord.from_dict(record) for key, record in records.items()}


def _join(fingerprints: Sequence[str | None]) -> str:
    return ",".join(part or "" for part in fingerprints).rstrip(",")


def _check_version(data: Any) -> None:
    version = data.get("version") if isinstance(data, Mapping) else None
    if type(version) is not int or version != VERSION:
        raise SubmitRecordError(
            f"its version is {version!r:.20}, and this release reads only version {VERSION}"
        )


def _fit_reason(reason: str | None) -> str | None:
    """Truncate a reason to what a segment has room for; a character takes up to twelve bytes in JSON."""
    if reason is None or len(json.dumps(reason)) <= _MAX_REASON_BYTES:
        return reason
    length = bisect_right(
        range(len(reason)), _MAX_REASON_BYTES, key=lambda end: len(json.dumps(reason[:end]))
    )
    return f"{reason[: length - 1].rstrip()}…"
