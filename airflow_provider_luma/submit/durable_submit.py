"""
Submits one generation using its record, so that no crash and no later try pays for it again.

The phases of the record, and what a later try does in each, are the table in
:mod:`airflow_provider_luma.submit.record`. The acts of a try, and what a crash after each leaves:

==================================  =====================================================================
act                                 if the process dies after this step
==================================  =====================================================================
everything is validated             no record: the next try submits
``sending`` is saved                the next try fails: outcome unknown
the request leaves                  likewise
the response arrives                likewise
the id is logged                    likewise; the id is in the log
``created`` is saved                the next try reconnects
==================================  =====================================================================
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError, LumaTaskFailedError
from airflow_provider_luma.exceptions import (
    UNKNOWN_OUTCOME_HINT,
    LumaError,
    RelayError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.submit.record import Action, Ledger, Phase

if TYPE_CHECKING:
    from airflow_provider_luma.relay.generation import Generation
    from airflow_provider_luma.relay.task import LumaTask

log = logging.getLogger(__name__)

_STOPPED = "The task was stopped before the submit was sent"
_IF_NOT_SAVED = {
    Phase.NOT_CREATED: "the next try will report its outcome as unknown, although no Luma task was created",
    Phase.REPORTED: "the next try will report its outcome as unknown again",
    Phase.FAILED: "the next try will reconnect to it",
}
_NO_RESPONSE_SEEN = "An earlier try of this task ended after it began to submit, before it saw a response"


class SubmitStoppedError(LumaError):
    """The task was stopped before the submit was sent, so that nothing is tried again."""


class DurableSubmit:
    """
    One submit and its record.

    :param ledger: keeps the record.
    :param label: names it among others in the log, such as ``Prompt 17``.
    """

    def __init__(self, ledger: Ledger, label: str = "") -> None:
        self._ledger = ledger
        self._prefix = f"{label}: " if label else ""

    def reconnect(self) -> str | None:
        """
        Return the id that an earlier try got, ``None`` when this one may submit.

        :raises SubmitOutcomeUnknownError: when an earlier try may have created a task.
        :raises LumaTaskFailedError: when the generation of an earlier try failed.
        """
        record, action = self._ledger.record, self._ledger.next_action()
        if record is None or action is Action.SUBMIT:
            return None
        if action is Action.FAIL_UNKNOWN:
            self._report_unknown_outcome(record.reason or f"{_NO_RESPONSE_SEEN}. {UNKNOWN_OUTCOME_HINT}")
        if action is Action.FAIL_AGAIN:
            reason = (record.reason or "The generation failed").rstrip(".")
            raise LumaTaskFailedError(f"{reason}. To submit again, clear this task")
        log.info("Reconnecting to Luma task %s, which an earlier try submitted", record.id)
        return record.id

    def submit(
        self, send: Callable[[Generation], LumaTask], generation: Generation, stopped: threading.Event
    ) -> LumaTask:
        """
        Submit a generation that was validated.

        :param send: the client's method.
        :param stopped: set when nothing may leave any more.
        :raises SubmitOutcomeUnknownError: when a task may have been created.
        :raises RelayError: when it is proven that none was.
        :raises SubmitStoppedError: when it was stopped before.
        :raises LumaNonRetryableError: when one was created, and its id could not be saved.
        """
        _check_stopped(stopped)
        self._ledger.begin(generation)
        try:
            _check_stopped(stopped)
            task = send(generation)
        except SubmitOutcomeUnknownError as error:
            self._report_unknown_outcome(str(error), error)
        except RelayError as error:
            self._try_mark(Phase.NOT_CREATED, clean_text(str(error)))
            raise
        except BaseException as error:
            if isinstance(error, SubmitStoppedError) or not getattr(error, "was_sent", True):
                self._try_mark(Phase.NOT_CREATED, _STOPPED)
            raise
        log.info("%sLuma task %s was created", self._prefix, task.id)
        self._mark_created(task)
        return task

    def mark_failed(self, reason: str) -> None:
        """Save that the generation failed; a clear may submit it again."""
        self._try_mark(Phase.FAILED, reason)

    def _report_unknown_outcome(
        self, message: str, error: SubmitOutcomeUnknownError | None = None
    ) -> NoReturn:
        """Log the unknown outcome before the record says that it was reported, and fail."""
        log.error("%s%s", self._prefix, message)
        self._try_mark(Phase.REPORTED, message)
        raise SubmitOutcomeUnknownError(
            f"{message}. If the relay's task log shows the task, wait for its id with LumaTaskSensor. "
            f"If not, {self._ledger.resubmit_hint}"
        ) from error

    def _mark_created(self, task: LumaTask) -> None:
        try:
            self._ledger.mark(Phase.CREATED, id=task.id, quota=task.quota)
        except Exception as error:
            raise LumaNonRetryableError(
                f"Luma task {task.id} was created and charged, but its record could not be saved: "
                f"{clean_text(str(error))}. Wait for the id with LumaTaskSensor"
            ) from error

    def _try_mark(self, phase: Phase, reason: str) -> None:
        """Save a phase beside an error that matters more; without it the next try fails: outcome unknown."""
        try:
            self._ledger.mark(phase, reason=reason)
        except Exception:
            log.exception(
                "%sThe record of the submit could not be saved; %s", self._prefix, _IF_NOT_SAVED[phase]
            )


def _check_stopped(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise SubmitStoppedError(_STOPPED)
