"""
Submits a batch of generations using its journal, several at once.

Threads take the prompts that are to be submitted (:mod:`airflow_provider_luma.submit.plan`), in their order:

==================================  =====================================================================
outcome of a submit                 effect
==================================  =====================================================================
created                             the next prompt
rejected: moderation, invalid       the reason is kept; the next prompt
rejected: key, balance              the batch stops
rejected: anything else             the reason is kept; the next prompt, until a few of these follow each
                                    other without a created task; then the batch stops
429                                 all submits pause, see :mod:`.throttle`; the prompt is tried again, behind
                                    those with fewer attempts
not sent: transient error           likewise, until too many follow each other; then the batch stops
the balance cannot be read          nothing is sent; otherwise as a transient error
unknown                             the prompt is left alone; all submits pause, as after a transient error
the record cannot be saved          the batch stops
==================================  =====================================================================

A rejected prompt has no Luma task, so that a later try submits it again. A batch that stops waits for the
submits that are in flight, and lets no other leave.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_not_exception_type, stop_after_attempt, wait_exponential

from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError
from airflow_provider_luma.exceptions import (
    LumaError,
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayPermanentError,
    RelayPromptRejectedError,
    RelayRateLimitError,
    RelayTransientError,
    SubmitOutcomeUnknownError,
    SubmitRecordError,
)
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.submit.durable_submit import DurableSubmit, SubmitStoppedError
from airflow_provider_luma.submit.plan import plan_submits
from airflow_provider_luma.submit.record import Action, Phase
from airflow_provider_luma.submit.result import SubmitResult, first_of
from airflow_provider_luma.submit.throttle import Permit, SubmitThrottle
from airflow_provider_luma.threads import StoppedError, call_abandonable, start_thread

if TYPE_CHECKING:
    from airflow_provider_luma.relay.client import RelayClient
    from airflow_provider_luma.relay.generation import Generation
    from airflow_provider_luma.submit.journal import Journal

log = logging.getLogger(__name__)

PROGRESS_INTERVAL = 10.0
# In a row without a created task, each of which may be about its prompt or about all of them.
MAX_REJECTIONS = 3
# A stop has two seconds: for submits that are in flight, and for what is not saved yet.
_SECONDS_TO_STOP = 1.2
_SECONDS_TO_SAVE = 0.5
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class SubmitLimits:
    """
    Limits that stop a batch before all of its prompts are submitted.

    :param max_generations: how many of its prompts may have been submitted, those of earlier tries included.
    :param check_balance: returns why the balance is too low for the next submit, ``None`` when it is not;
        raises :class:`RelayError` when it cannot be checked.
    """

    max_generations: int | None = None
    check_balance: Callable[[], str | None] = lambda: None


class BatchSubmitter:
    """
    Submits what the journal says is to be submitted.

    :param client: sends each submit once; this class decides what is sent again.
    :param journal: of these generations.
    :param generations: in the order of the prompts, all of them validated.
    :param throttle: says when a submit may leave.
    :param limits: when to stop.
    :param stopped: set by a stop from outside, at any time.
    :param report_progress: takes a human-readable line, every ten seconds.
    :param count_rate_limit: is called for each 429.
    """

    def __init__(
        self,
        client: RelayClient,
        journal: Journal,
        generations: Sequence[Generation],
        throttle: SubmitThrottle,
        limits: SubmitLimits,
        *,
        stopped: threading.Event,
        report_progress: Callable[[str], None] = lambda line: None,
        count_rate_limit: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._journal = journal
        self._generations = generations
        self._throttle = throttle
        self._limits = limits
        self._stopped = stopped
        self._report_progress = report_progress
        self._count_rate_limit = count_rate_limit
        # Guards what follows, and the throttle.
        self._changed = threading.Condition()
        # By the number of attempts so far, then by position.
        self._waiting: list[tuple[int, int]] = []
        self._removed = 0
        self._rejections = 0
        self._has_warned_of_balance = False
        self._rejected: dict[int, str] = {}
        self._stopped_by: str | None = None
        self._error: Exception | None = None

    def run(self, max_parallel: int) -> None:
        """
        Submit until nothing is left to, or something stops the batch; see :meth:`submits`.

        :raises RelayTransientError: when no thread could be started; nothing was sent.
        :raises LumaError: when the records cannot be read or saved before the first submit.
        """
        self._waiting = [(0, position) for position in plan_submits(self._journal, self._generations)]
        if self._waiting:
            self._journal.claim()
        self._removed = len(self._journal.removed())
        futures: list[Future[None]] = []
        try:
            self._start(futures, min(max_parallel, len(self._waiting)))
            self._watch(futures)
        except BaseException:  # such as Airflow's execution_timeout
            self._stopped.set()
            raise
        finally:
            if self._stopped.is_set():
                self._stop("the task was stopped")
                wait(futures, timeout=_SECONDS_TO_STOP)
            self._save_rest()

    def _start(self, futures: list[Future[None]], number: int) -> None:
        try:
            while len(futures) < number:
                futures.append(start_thread(self._work, f"luma-submit-{len(futures)}")[0])
        except RuntimeError as error:  # the system has no room for another thread
            if not futures:
                raise RelayTransientError(f"Nothing was sent to the relay: {error}") from error
            log.warning("Only %d submits at once instead of %d: %s", len(futures), number, error)

    def submits(self) -> SubmitResult:
        """Return the result of each prompt, by the journal."""
        with self._changed:
            waiting = {position for _, position in self._waiting}
            result = SubmitResult(
                rejected=dict(self._rejected),
                not_submitted=len(waiting),
                stopped_by=self._stopped_by,
                error=self._error,
            )
        quota = 0.0
        for position in range(len(self._generations)):
            if position in waiting or position in result.rejected:
                continue
            ledger = self._journal.ledger(position)
            record, action = ledger.record, ledger.next_action()
            if record is not None and record.id is not None and action is Action.RECONNECT:
                result.ids[position] = record.id
                quota += record.quota or 0.0
            elif action is Action.FAIL_UNKNOWN:
                result.unknown.append(position)
            else:  # a stop or the store came before its submit
                result.not_submitted += 1
        if quota and not self._stopped.is_set():
            result.cost = self._client.get_cost_of_quota(quota)
        if shared := result.shared_ids():
            log.warning(
                "The relay gave %d prompts the id of another prompt: %s", len(shared), first_of(shared)
            )
        return result

    def _watch(self, futures: Sequence[Future[None]]) -> None:
        """Wait for the threads, and say every now and then how far they are."""
        running = set(futures)
        next_line = time.monotonic() + PROGRESS_INTERVAL
        while running and not self._stopped.is_set():
            _, running = wait(running, timeout=_POLL_SECONDS)
            if time.monotonic() >= next_line:
                next_line += PROGRESS_INTERVAL
                self._report()
        self._report()

    def _report(self) -> None:
        with self._changed:
            left, in_flight, rejected = len(self._waiting), self._throttle.in_flight, len(self._rejected)
        number = len(self._generations)
        line = f"{number - left - in_flight} of {number} prompts are submitted, {rejected} of them rejected"
        log.info("%s", line)
        if not self._stopped.is_set():  # a stop has no time for it, nor for one that is in flight
            with suppress(StoppedError, RuntimeError):  # the latter where the system has no room for a thread
                call_abandonable(
                    lambda: self._report_progress(line), stopped=self._stopped, name="luma-submit-progress"
                )

    def _work(self) -> None:
        while (taken := self._next_prompt()) is not None:
            (attempts, position), permit = taken
            try:
                self._submit(attempts, position, permit)
            except LumaNonRetryableError as error:  # created, and the record could not be saved yet
                self._release()
                self._stop(clean_text(str(error)), error)
            except Exception as error:  # noqa: BLE001 - of the store, before anything was sent
                record = self._journal.record(position)
                is_unknown = record is not None and record.phase is Phase.SENDING
                self._release(requeue=None if is_unknown else (attempts, position))
                self._stop(clean_text(str(error)), error)

    def _next_prompt(self) -> tuple[tuple[int, int], Permit] | None:
        """Wait until the next prompt may be submitted; ``None`` when none may any more."""
        with self._changed:
            while self._waiting and self._stopped_by is None and not self._stopped.is_set():
                delay = self._throttle.delay(time.monotonic())
                if self._is_exhausted():
                    if self._throttle.in_flight == 0:
                        self._stop(f"max_generations={self._limits.max_generations} is reached")
                    delay = None  # one that is in flight may be rejected
                if delay == 0:
                    return heapq.heappop(self._waiting), self._throttle.enter(time.monotonic())
                if self._stopped_by is None:
                    self._changed.wait(delay)
        return None

    def _is_exhausted(self) -> bool:
        """Return whether one more submit could exceed ``max_generations``; unknown outcomes count."""
        if self._limits.max_generations is None:
            return False
        begun = len(self._generations) - len(self._waiting) - len(self._rejected)
        return begun + self._removed >= self._limits.max_generations

    def _submit(self, attempts: int, position: int, permit: Permit) -> None:
        submit = DurableSubmit(self._journal.ledger(position), f"Prompt {position}")
        if not self._has_balance(attempts, position, permit):
            return
        try:
            submit.submit(self._client.submit_once, self._generations[position], self._stopped)
        except RelayPromptRejectedError as error:
            self._reject(position, permit, error)
        except (RelayAuthenticationError, RelayInsufficientBalanceError) as error:
            self._release(requeue=(attempts, position))
            self._stop(clean_text(str(error)), error)
        except RelayPermanentError as error:
            self._reject(position, permit, error, blames_prompt=False)
        except SubmitOutcomeUnknownError as error:
            self._pause(permit, error)
        except SubmitStoppedError:
            self._release(requeue=(attempts, position))
        except RelayError as error:  # a rate limit, or not sent
            self._pause(permit, error, requeue=(attempts + 1, position))
        else:
            with self._changed:
                self._rejections = 0
                self._throttle.end_judged(permit)
                self._changed.notify_all()

    def _has_balance(self, attempts: int, position: int, permit: Permit) -> bool:
        """Return whether the balance allows another submit; it does not while it cannot be checked."""
        try:
            too_low = self._limits.check_balance()
        except RelayError as error:
            if not self._has_warned_of_balance:
                self._has_warned_of_balance = True
                log.warning("Nothing is submitted while min_balance cannot be checked: %s", error)
            unchecked = RelayTransientError(
                f"min_balance cannot be checked: {error}", retry_after=error.retry_after
            )
            self._pause(permit, unchecked, requeue=(attempts, position))
            return False
        if too_low:
            self._release(requeue=(attempts, position))
            self._stop(too_low)
        return not too_low

    def _release(self, *, requeue: tuple[int, int] | None = None) -> None:
        with self._changed:
            self._throttle.end_unsent()
            if requeue is not None:
                heapq.heappush(self._waiting, requeue)
            self._changed.notify_all()

    def _reject(
        self, position: int, permit: Permit, error: RelayPermanentError, *, blames_prompt: bool = True
    ) -> None:
        """Keep the reason of a rejection; several in a row that may not be about their prompts are enough."""
        reason = clean_text(str(error))
        log.warning("Prompt %d was rejected: %s", position, reason)
        with self._changed:
            self._rejected[position] = reason
            self._rejections += 0 if blames_prompt else 1
            if self._rejections >= min(MAX_REJECTIONS, len(self._generations)):
                text = f"{self._rejections} submits in a row were rejected. The last one: {error}"
                self._stop(reason, RelayPermanentError(text))
            self._throttle.end_judged(permit)
            self._changed.notify_all()

    def _pause(self, permit: Permit, error: RelayError, *, requeue: tuple[int, int] | None = None) -> None:
        """Let all submits pause after one that the relay did not judge, or give up."""
        is_rate_limit = isinstance(error, RelayRateLimitError)
        if is_rate_limit:
            self._count_rate_limit()
        with self._changed:
            seconds = self._throttle.end_failed(permit, error, time.monotonic())
            if requeue is not None:
                heapq.heappush(self._waiting, requeue)
            if self._throttle.has_given_up:
                text = f"Too many submits in a row {_failure_of(error)}. The last one: {error}"
                self._stop(clean_text(str(error)), RelayTransientError(text))
            self._changed.notify_all()
        if seconds:
            level = logging.INFO if is_rate_limit else logging.WARNING
            log.log(level, "All submits pause for %.1f s: %s", seconds, error)

    def _stop(self, why: str, error: Exception | None = None) -> None:
        """Let no other submit leave; the first reason counts, and an error before any other reason."""
        with self._changed:
            if self._stopped_by is None or (error is not None and self._error is None):
                self._stopped_by = why
                self._error = error
            self._changed.notify_all()

    def _save_rest(self) -> None:
        """Save what the store did not take at once, unless a stop has no time for that."""
        patient = Retrying(
            stop=stop_after_attempt(1 if self._stopped.is_set() else 5),
            wait=wait_exponential(0.5, max=8),
            retry=retry_if_not_exception_type(SubmitRecordError),
            reraise=True,
        )
        try:
            saving = start_thread(lambda: patient(self._journal.save_rest), "luma-submit-journal")[0]
            saving.result(_SECONDS_TO_SAVE if self._stopped.is_set() else None)
        except Exception:
            log.exception(
                "The journal of the submits could not be saved; the next try will report prompts that "
                "were in flight as unknown"
            )
        else:
            if isinstance(self._error, LumaNonRetryableError) and self._error.__cause__ is not None:
                self._error = LumaError(
                    f"The journal could not be saved at first, and is saved now: {self._error.__cause__}. "
                    "A retry submits the rest"
                )


def _failure_of(error: RelayError) -> str:
    if isinstance(error, SubmitOutcomeUnknownError):
        return "have an unknown outcome"
    return "could not be sent"
