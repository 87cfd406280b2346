"""Waits for Luma tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_luma.airflow_exceptions import (
    AirflowRescheduleException,
    LumaTaskFailedError,
    TaskDeferralTimeout,
    fail_without_retry,
)
from airflow_provider_luma.arguments import FailWhen, check_number
from airflow_provider_luma.exceptions import RelayRateLimitError, TriggerEventError, error_from_dict
from airflow_provider_luma.metrics import count_tasks
from airflow_provider_luma.relay.batch import BatchResult, Outcome, TaskBatch, read_task_ids
from airflow_provider_luma.sensors.memory import recall, remember

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.hooks.luma import LumaHook

# How much later than the trigger's own deadline Airflow gives up on the trigger: only when it is not running.
TRIGGER_BACKSTOP = timedelta(minutes=2)

SUMMARY_KEY = "luma_summary"

# What fits into the TEXT column that MySQL has for a trigger's arguments, encrypted and as UUIDs.
IDS_FOR_MYSQL = 1000


class LumaTaskSensor(BaseSensorOperator):
    """
    Wait until every one of any number of Luma tasks is completed or failed.

    One request asks for a whole batch of ids, and only ids that are still open are asked for again. The
    outcome and the XComs are the same in the modes ``poke`` and ``reschedule`` and when deferred.

    Returns the completed ids in the order of ``luma_task_ids`` and pushes ``luma_summary``
    (``{"completed": n, "failed": {id: reason}, "missing": [id, ...], "running": n}``), also when it fails.

    .. seealso::
        The README of the package says what happens on each kind of failure.

    :param luma_task_ids: the Luma task ids: a list, an XComArg, one id, or a string that holds a list.
        Duplicates collapse; an empty list succeeds at once with ``[]``. (templated)
    :param luma_conn_id: the connection of type ``luma``. Default ``luma_default``. (templated)
    :param fail_when: ``"any"`` (default) fails when any task failed or is missing, ``"all"`` only when none
        completed, ``"never"`` not at all.
    :param fail_fast: fail as soon as nothing can save the outcome, instead of waiting for every id.
        Default False.
    :param missing_grace: seconds, default 120. For so long after the start, or after it was last seen, an id
        may be unknown to the relay; then it counts as missing.
    :param deferrable: wait in the triggerer instead of a worker slot, whatever ``mode`` says. Default:
        ``[operators] default_deferrable``.
    :raises LumaTaskFailedError: by ``fail_when``; not retried, skipped under ``soft_fail`` or ``never_fail``.
    :raises LumaNonRetryableError: when the relay refuses the key or the request, or an argument is wrong;
        likewise.
    :raises RelayTransientError: when trouble outlasted the retries of a request; Airflow's ``retries`` apply.
    :raises AirflowSensorTimeout: when ids are still running after ``timeout`` seconds.
    """

    template_fields: Sequence[str] = ("luma_task_ids", "luma_conn_id")
    ui_color = "#e6e0ff"

    def __init__(
        self,
        *,
        luma_task_ids: Any,
        luma_conn_id: str = "luma_default",
        fail_when: str = "any",
        fail_fast: bool = False,
        missing_grace: float = 120,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.luma_task_ids = luma_task_ids
        self.luma_conn_id = luma_conn_id
        self.fail_when = fail_when
        self.fail_fast = fail_fast
        self.missing_grace = missing_grace
        self.deferrable = deferrable
        self._batch: TaskBatch | None = None
        self._not_before = 0.0
        FailWhen.parse(fail_when)
        check_number("missing_grace", missing_grace, zero=True)

    @cached_property
    def hook(self) -> LumaHook:
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def execute(self, context: Context) -> list[str]:
        with self._skipping_as_told(), fail_without_retry():
            batch = self._current_batch(context)
        with self._skipping_as_told(), self._pushing_summary(context, lambda: batch.result):
            if not self.deferrable:
                with self._remembering(context, batch):
                    completed: list[str] = super().execute(context)
            elif done := self._first_poke(context):
                completed = done.xcom_value or []
            else:
                self._defer(context, batch)
            return completed

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once for every id that is still open."""
        with fail_without_retry():
            batch = self._current_batch(context)
            self._ask(batch)
        result = batch.result
        self.log.info("%s", result.progress())
        if self._outcome(result) is Outcome.RUNNING:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._conclude(result))

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> list[str]:
        """
        Go on where the trigger ended.

        :param event: what became of the ids, see :class:`LumaTaskTrigger`.
        :raises TriggerEventError: when the event is lost or says nothing that we know.
        """
        with self._skipping_as_told():
            event = _checked(event)
            with fail_without_retry():
                result = self._result_of(event, self._current_batch(context).open_ids)
            with self._pushing_summary(context, lambda: result):
                if event["status"] == "timeout":
                    raise AirflowSensorTimeout(f"Sensor has timed out after {self.timeout} seconds.")
                if event["status"] == "error":
                    with fail_without_retry():
                        raise error_from_dict(event["error"])
                return self._conclude(result)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        # Not the base sensor's, which under soft_fail skips even when a trigger breaks, as in no other mode.
        try:
            return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            with self._skipping_as_told():
                raise AirflowSensorTimeout(
                    f"No word from the trigger within {self.timeout} seconds; is a triggerer running?"
                ) from error

    def _current_batch(self, context: Context) -> TaskBatch:
        if self._batch is None:
            first = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
            self._batch = TaskBatch(
                read_task_ids(self.luma_task_ids),
                started_at=first.timestamp() if first else time.time(),
                missing_grace=self.missing_grace,
            )
            if first:
                recall(context, self._batch)
        return self._batch

    def _ask(self, batch: TaskBatch) -> None:
        if time.time() < self._not_before:
            return
        # Only poke mode waits on the spot when the relay asks to slow down: it holds its worker slot anyway.
        patience = 0.0 if self.reschedule or self.deferrable else self._time_left(batch)
        try:
            for asked, answered in self.hook.client.iter_tasks(batch.open_ids, max_delay=patience):
                batch.observe(asked, answered, now=time.time())
        except RelayRateLimitError as error:
            self._not_before = time.time() + (error.retry_after or 0)
            self.log.info("%s", error)

    def _time_left(self, batch: TaskBatch) -> float:
        return max(batch.started_at + self.timeout - time.time(), 0.0)

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        pause = self._not_before - time.time()
        if not self.reschedule:
            pause = min(pause, self.timeout - run_duration())
        return max(interval, pause)

    def _outcome(self, result: BatchResult) -> Outcome:
        return result.outcome(FailWhen.parse(self.fail_when), fail_fast=self.fail_fast)

    def _conclude(self, result: BatchResult) -> list[str]:
        """Turn what became of the batch into the sensor's return value or failure."""
        if not result.ids:
            self.log.info("luma_task_ids is empty: no Luma task to wait for")
        complaints = result.complaints()
        for complaint in complaints:
            self.log.warning("%s", complaint)
        if self._outcome(result) is Outcome.FAILED:
            raise LumaTaskFailedError(f"Luma tasks: {result.progress()}. {'; '.join(complaints)}")
        return result.completed

    def _first_poke(self, context: Context) -> PokeReturnValue:
        if self._is_part_of_expansion(context):
            return PokeReturnValue(is_done=not self._current_batch(context).open_ids, xcom_value=[])
        try:
            return self.poke(context)
        except (AirflowFailException, AirflowSkipException):
            raise
        except Exception:
            if not self.silent_fail:
                raise
            self.log.exception("The first poll failed; going on in the triggerer")
            return PokeReturnValue(is_done=False)

    @staticmethod
    def _is_part_of_expansion(context: Context) -> bool:
        """Say whether the first poll is the triggerer's, which polls for a whole expansion at once."""
        map_index = context["ti"].map_index
        return map_index is not None and map_index >= 0

    def _defer(self, context: Context, batch: TaskBatch) -> NoReturn:
        from airflow_provider_luma.triggers.luma import LumaTaskTrigger

        result = batch.result
        if result.running > IDS_FOR_MYSQL:
            self.log.info(
                "Deferring %d ids in one trigger. Where Airflow's database is MySQL, a trigger holds 64 KB, "
                "about %d ids: map over chunks of ids there, as example_luma_fan_out does",
                result.running,
                IDS_FOR_MYSQL,
            )
        self.defer(
            trigger=LumaTaskTrigger(
                luma_task_ids=batch.open_ids,
                luma_conn_id=self.luma_conn_id,
                started_at=batch.started_at,
                timeout=self.timeout,
                polled_at=None if self._is_part_of_expansion(context) else time.time(),
                not_before=self._not_before,
                poke_interval=self.poke_interval,
                exponential_backoff=self.exponential_backoff,
                max_wait=self.max_wait.total_seconds() if self.max_wait else None,
                fail_when=self.fail_when,
                fail_fast=self.fail_fast,
                missing_grace=self.missing_grace,
                silent_fail=self.silent_fail,
                completed=result.completed_count,
                failed=dict(result.failed),
                missing=list(result.missing),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self._time_left(batch)) + TRIGGER_BACKSTOP,
        )

    def _result_of(self, event: Mapping[str, Any], ids: Sequence[str]) -> BatchResult:
        if event["failed"] is not None:
            return BatchResult(ids, event["failed"], event["missing"], event["running"])
        # It did not fit into the event, so the relay is asked again.
        batch = TaskBatch(ids, started_at=0, missing_grace=0)
        batch.observe(ids, self.hook.client.get_tasks(ids), now=time.time())
        return batch.result

    @staticmethod
    @contextmanager
    def _remembering(context: Context, batch: TaskBatch) -> Iterator[None]:
        """Keep what is settled for the process that polls next."""
        known = batch.open_ids
        try:
            yield
        except AirflowRescheduleException:
            if batch.open_ids != known:
                remember(context, batch)
            raise

    @contextmanager
    def _pushing_summary(self, context: Context, result: Callable[[], BatchResult]) -> Iterator[None]:
        """Push the summary however the wait ends, but not while it goes on."""
        try:
            yield
        except AirflowRescheduleException:
            raise
        except Exception as error:
            self._push_summary(context, result())
            if isinstance(error, AirflowSensorTimeout):
                raise AirflowSensorTimeout(f"{error} Luma tasks: {result().progress()}") from error
            raise
        else:
            self._push_summary(context, result())

    @staticmethod
    def _push_summary(context: Context, result: BatchResult) -> None:
        context["ti"].xcom_push(SUMMARY_KEY, result.summary())
        count_tasks(
            {
                "completed": result.completed_count,
                "failed": len(result.failed),
                "missing": len(result.missing),
                "running": result.running,
            }
        )

    @contextmanager
    def _skipping_as_told(self) -> Iterator[None]:
        """Skip under ``soft_fail`` and ``never_fail`` alike in every mode, where the base sensor differs."""
        try:
            yield
        except (AirflowSensorTimeout, AirflowFailException) as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(f"Skipped instead of failed: {error}") from error
            raise
        except (AirflowSkipException, AirflowRescheduleException):
            raise
        except Exception as error:
            if self.never_fail:
                raise AirflowSkipException(f"Skipped instead of failed: {error}") from error
            raise


def _checked(event: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not isinstance(event, Mapping) or event.get("status") not in {"done", "timeout", "error"}:
        raise TriggerEventError(f"The trigger ended without saying how the wait ended: {event!r:.200}")
    return event
