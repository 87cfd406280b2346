"""
The record of a submit, by which a prompt is paid for once, also after failures.

Each task instance of a generate operator has one record, which all of its tries share. It is written before
each act and never deleted to mean something. A try that starts looks its phase up in this table:

============= =========================================== ====================== ======================
phase         written                                     a retry                a cleared task
============= =========================================== ====================== ======================
(no record)                                               submits                submits
sending       before the request may leave                fails: outcome unknown fails: outcome unknown
not_created   after proof that no Luma task was created   submits                submits
reported      after the unknown outcome was logged        fails: outcome unknown submits
created       after the response, with the id             reconnects             reconnects
returned      after Airflow recorded the task's success   reconnects             submits
failed        after the generation failed                 fails again            submits
============= =========================================== ====================== ======================

``max_tries``, which Airflow raises with each clear, distinguishes a cleared task from a retry. A crash
between two of these lines leaves the earlier line behind, so the next try errs on the side that does not
pay: it fails, or reconnects.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.relay.row import finite_number
from airflow_provider_luma.relay.task import is_valid_id
from airflow_provider_luma.relay.text import clean_text

if TYPE_CHECKING:
    from airflow_provider_luma.relay.generation import Generation

VERSION = 1

_MAX_REASON_CHARS = 2000


class Phase(StrEnum):
    """The progress of a submit."""

    SENDING = "sending"
    NOT_CREATED = "not_created"
    REPORTED = "reported"
    CREATED = "created"
    RETURNED = "returned"
    FAILED = "failed"


class Action(StrEnum):
    """The action of a try."""

    SUBMIT = "submit"
    FAIL_UNKNOWN = "fail: outcome unknown"
    RECONNECT = "reconnect"
    FAIL_AGAIN = "fail again"


# For each phase: what a retry does, and what a cleared task does.
ACTIONS: Mapping[Phase | None, tuple[Action, Action]] = {
    None: (Action.SUBMIT, Action.SUBMIT),
    Phase.SENDING: (Action.FAIL_UNKNOWN, Action.FAIL_UNKNOWN),
    Phase.NOT_CREATED: (Action.SUBMIT, Action.SUBMIT),
    Phase.REPORTED: (Action.FAIL_UNKNOWN, Action.SUBMIT),
    Phase.CREATED: (Action.RECONNECT, Action.RECONNECT),
    Phase.RETURNED: (Action.RECONNECT, Action.SUBMIT),
    Phase.FAILED: (Action.FAIL_AGAIN, Action.SUBMIT),
}

_WITH_ID = frozenset({Phase.CREATED, Phase.RETURNED, Phase.FAILED})


@dataclass(frozen=True)
class SubmitRecord:
    """
    The known facts of a submit.

    :param phase: its progress.
    :param max_tries: of the task instance when this was written.
    :param fingerprint: of what was submitted.
    :param id: the Luma task's, once it is known.
    :param reason: why the phase was reached, human-readable.
    :param quota: the charge in the relay's own quota, where the relay reports it.
    :param successes: of a batch: how many the task instance had when this was submitted.
    """

    phase: Phase
    max_tries: int
    fingerprint: str
    id: str | None = None
    reason: str | None = None
    quota: float | None = None
    successes: int | None = None

    @classmethod
    def sending(cls, generation: Generation, max_tries: int) -> Self:
        """Begin the record of a submit."""
        return cls(Phase.SENDING, max_tries, fingerprint_of(generation))

    def at(
        self,
        phase: Phase,
        max_tries: int,
        *,
        id: str | None = None,  # noqa: A002
        reason: str | None = None,
        quota: float | None = None,
    ) -> Self:
        """Return this record at a later phase."""
        quota = self.quota if quota is None else quota
        return replace(self, phase=phase, max_tries=max_tries, id=id or self.id, reason=reason, quota=quota)

    def to_dict(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if value is not None}
        return {"version": VERSION, **facts, "phase": self.phase.value}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """
        Read what :meth:`to_dict` gave.

        :raises SubmitRecordError: when it is something else: it must not be taken for no record.
        """
        try:
            if type(data["version"]) is not int or data["version"] != VERSION:
                raise SubmitRecordError(f"it has the version {data['version']!r:.20}, not {VERSION}")
            record = cls(
                Phase(data["phase"]),
                data["max_tries"],
                data["fingerprint"],
                data.get("id"),
                clean_text(data.get("reason"), _MAX_REASON_CHARS) or None,
                finite_number(data.get("quota")),
                data.get("successes"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SubmitRecordError(
                f"it is not a record of a submit: {clean_text(repr(error), 80)}"
            ) from None
        if type(record.max_tries) is not int or type(record.successes) not in {int, type(None)}:
            raise SubmitRecordError("its max_tries or its successes is not an integer")
        if not isinstance(record.fingerprint, str):
            raise SubmitRecordError("its fingerprint is not a string")
        if record.id is None and record.phase in _WITH_ID:
            raise SubmitRecordError(f"its phase is {record.phase.value!r}, but it has no id")
        if record.id is not None and not (isinstance(record.id, str) and is_valid_id(record.id)):
            raise SubmitRecordError("its id is not a valid task id")
        return record


class Ledger(ABC):
    """
    The place of the record of one submit, for the tries of one task instance.

    :param max_tries: of the task instance, which each clear raises.
    """

    def __init__(self, max_tries: int) -> None:
        self.max_tries = max_tries

    @property
    @abstractmethod
    def record(self) -> SubmitRecord | None:
        """The record, ``None`` while there is none."""

    @property
    @abstractmethod
    def resubmit_hint(self) -> str:
        """The advice for submitting again, once the relay's task log shows no task."""

    @abstractmethod
    def save(self, record: SubmitRecord) -> None:
        """
        Save the record.

        :raises LumaError: when it could not be saved.
        """

    def next_action(self) -> Action:
        """Return what this try does, by the table of the phases."""
        return next_action(self.record, self.max_tries)

    def begin(self, generation: Generation) -> None:
        """
        Save ``sending``: the submit may leave from now on.

        :raises LumaError: when it could not be saved; nothing may be sent then.
        """
        sending = SubmitRecord.sending(generation, self.max_tries)
        try:
            self.save(sending)
        except SubmitRecordError:  # another process has written it
            raise
        except BaseException:  # also Airflow's execution_timeout
            with suppress(Exception):  # the write may have arrived, and says what did not happen
                self.save(sending.at(Phase.NOT_CREATED, self.max_tries, reason="Its record was not saved"))
            raise

    def mark(
        self,
        phase: Phase,
        *,
        id: str | None = None,  # noqa: A002
        reason: str | None = None,
        quota: float | None = None,
    ) -> None:
        """
        Save that the submit reached a phase.

        :raises LumaError: when it could not be saved.
        """
        if self.record is not None:
            self.save(self.record.at(phase, self.max_tries, id=id, reason=reason, quota=quota))


def next_action(record: SubmitRecord | None, max_tries: int) -> Action:
    """Return what a try does that finds this record."""
    if record is None:
        return ACTIONS[None][0]
    retry, cleared = ACTIONS[record.phase]
    return retry if max_tries == record.max_tries else cleared


def fingerprint_of(generation: Generation) -> str:
    """Return a digest of what a generation sends, in whatever order its fields are given."""
    fields = json.dumps(json.loads(generation.to_json()), sort_keys=True)
    return hashlib.sha256(f"{generation.path}\n{fields}".encode()).hexdigest()
