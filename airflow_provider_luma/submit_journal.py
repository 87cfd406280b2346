"""
The journal of a batch: a record for each prompt, by position, saved in groups.

The phases, and what a later try does with each, are those of :mod:`airflow_provider_luma.submit_record`. The
records of neighbours form a *segment*, a JSON value below 64 KB. Beside the segments is the *head*, with what
belongs to the whole batch. The batch is *returned* by one write to the head: from then on a record counts as
returned that was created no later.

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
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.group_commit import GroupCommit
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.submit_record import Ledger, Phase, SubmitRecord
from airflow_provider_luma.task_state import StatePlace, TaskState, load_record, save_record

if TYPE_CHECKING:
    pass

VERSION = 1
HEAD_KEY = "luma_submits"

# Prompts of a segment. A flush writes a segment or two: small ones are more objects, large ones more bytes.
SEGMENT_SIZE = 64

# Of a reason in JSON, so that a segment of nothing but reasons stays below 64 KB.
_MAX_REASON_BYTES = 600


@dataclass(frozen=True)
class Head:
    """
    What belongs to the whole batch.

    :param prompts: how many there are.
    :param returned: ``max_tries`` of the task instance when Airflow recorded its success.
    """

    prompts: int
    returned: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, "prompts": self.prompts, "returned": self.returned}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """
        Read what :meth:`to_dict` gave.

        :raises SubmitRecordError: when it is something else.
        """
        _check_version(data)
        prompts, returned = data.get("prompts"), data.get("returned")
        if type(prompts) is not int or prompts < 0 or type(returned) not in {int, type(None)}:
            raise SubmitRecordError("it is no head of a journal")
        return cls(prompts, returned)


class Journal:
    """
    The records of a batch's submits, and what this try may do.

    :param place: where the records live.
    :param max_tries: of the task instance.
    :param prompts: how many the batch has now.
    :raises SubmitRecordError: when there is something that cannot be read.
    """

    def __init__(self, place: StatePlace, max_tries: int, prompts: int) -> None:
        self.place = place
        self.max_tries = max_tries
        self._head_state = place.open(HEAD_KEY, "head")
        earlier = load_record(self._head_state, Head.from_dict)
        self._head = earlier or Head(prompts)
        self._records: dict[int, SubmitRecord] = {}
        self._segments: dict[int, TaskState | None] = {}
        self._commits = GroupCommit(self._save_segment)
        for number in range(-(-max(self._head.prompts, prompts) // SEGMENT_SIZE)):
            self._open_segment(number)
        if earlier is None or earlier.prompts < prompts:
            self._save_head(replace(self._head, prompts=prompts))

    @property
    def positions(self) -> Collection[int]:
        """The positions that have a record."""
        return self._records.keys()

    def record(self, position: int) -> SubmitRecord | None:
        """Return the record of a prompt, ``None`` while there is none."""
        record, returned = self._records.get(position), self._head.returned
        is_created = record is not None and record.phase is Phase.CREATED
        if record is not None and is_created and returned is not None and record.max_tries <= returned:
            return record.at(Phase.RETURNED, returned)
        return record

    def ledger(self, position: int) -> PromptLedger:
        """Return the record of one prompt as :class:`DurableSubmit` takes it."""
        return PromptLedger(self, position)

    def mark_reported(self, positions: Iterable[int]) -> None:
        """Save that the unknown outcomes of an earlier try were logged."""
        for position in positions:
            record = self._records[position]
            self._records[position] = record.at(Phase.REPORTED, self.max_tries, reason=record.reason)
            self._commits.add(_segment_of(position))
        self.save_rest()

    def mark_returned(self) -> None:
        """Save that the ids were returned."""
        self._save_head(replace(self._head, returned=self.max_tries))

    def save_rest(self) -> None:
        """Save what a flush that failed has left."""
        self._commits.commit()

    def save(self, position: int, record: SubmitRecord) -> None:
        """Save the record of a prompt; one that cannot begin was not sent."""
        self._records[position] = replace(record, reason=_fit_reason(record.reason))
        try:
            self._commits.commit(_segment_of(position))
        except Exception:
            if record.phase is Phase.SENDING:
                self._records[position] = record.at(
                    Phase.NOT_CREATED, self.max_tries, reason="Its record could not be saved"
                )
            raise

    def _open_segment(self, number: int) -> None:
        state = self._segments[number] = self.place.open(f"{HEAD_KEY}_{number}", str(number))
        # Also where there is no head, which somebody may have deleted.
        self._records |= load_record(state, lambda data: _read_segment(data, number)) or {}

    def _save_segment(self, number: int) -> None:
        positions = _positions_of(number)
        records = {
            str(position): record.to_dict()
            for position in positions
            if (record := self._records.get(position)) is not None
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


def _segment_of(position: int) -> int:
    return position // SEGMENT_SIZE


def _positions_of(segment: int) -> range:
    return range(segment * SEGMENT_SIZE, (segment + 1) * SEGMENT_SIZE)


def _read_segment(data: Any, number: int) -> dict[int, SubmitRecord]:
    _check_version(data)
    if not isinstance(records := data.get("records"), Mapping):
        raise SubmitRecordError("it is no segment of a journal")
    expected = {str(position): position for position in _positions_of(number)}
    if strangers := records.keys() - expected.keys():
        raise SubmitRecordError(f"it has a record of the prompt {clean_text(min(strangers), 80)!r}")
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
