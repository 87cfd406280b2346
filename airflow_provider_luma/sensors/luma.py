"""Waits for Luma tasks."""

from __future__ import annotations

import math
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

from airflow_provider_luma.airflow_exceptions import LumaTaskFailedError, fail_without_retry
from airflow_provider_luma.airflow_version import (
    AirflowRescheduleException,
    TaskDeferralError,
    TaskDeferralTimeout,
)
from airflow_provider_luma.arguments import FailWhen, validate_seconds
from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayTransientError,
    error_from_dict,
)
from airflow_provider_luma.relay.batch import parse_task_ids
from airflow_provider_luma.relay.result import Outcome
from airflow_provider_luma.relay.schedule import REREAD_SECONDS, PollSchedule
from airflow_provider_luma.sensors.wait import Wait, validate_event
from airflow_provider_luma.sensors.wait_store import WaitStore

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.hooks.luma import LumaHook

# How much later than the trigger's own deadline Airflow gives up on the trigger: only when it is not running.
TRIGGER_TIMEOUT_MARGIN = timedelta(minutes=2)

# What fits into the TEXT column that MySQL has for a trigger's arguments, encrypted and as UUIDs.
MYSQL_MAX_IDS = 700


class LumaTaskSensor(BaseSensorOperator):
    """
    Wait until every one of any number of Luma tasks is completed or failed.

    One request queries a batch of ids, and only ids that are still pending are polled again. The outcome and
    the XComs are the same in the modes ``poke`` and ``reschedule`` and when deferred.

    Returns the completed ids in the order of ``luma_task_ids`` and pushes ``luma_summary``
    (``{"completed": n, "failed": {id: reason}, "missing": [id, ...], "running": [id, ...]}``), also when it
    fails; ``failed_not_listed`` is the number of failed ids that ``failed`` has no room for, where there are
    any.

    :param luma_task_ids: the Luma task ids: a list (no set), an XComArg, one id, or a string that holds a
        list. Duplicates collapse; an empty list succeeds at once with ``[]``. (templated)
    :param luma_conn_id: the connection of type ``luma``. Default ``luma_default``. (templated)
    :param fail_when: ``"any"`` (default) fails when any task failed or is missing, ``"all"`` only when none
        completed, ``"never"`` not at all.
    :param fail_fast: fail as soon as nothing can save the outcome, instead of waiting for every id.
        Default False.
    :param missing_grace: seconds, default 120. An id that the relay's responses leave out for so long,
        without showing it in between, counts as missing.
    :param deferrable: wait in the triggerer instead of a worker slot, whatever ``mode`` says. Default:
        ``[operators] default_deferrable``.
    :raises LumaTaskFailedError: as ``fail_when`` decides; not retried, but skipped under ``soft_fail`` or
        ``never_fail``.
    :raises LumaNonRetryableError: when the relay rejects the key or the request, or an argument is invalid;
        likewise.
    :raises RelayTransientError: when a transient error outlasted the retries of a request; Airflow's
        ``retries`` apply.
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
        self._wait: Wait | None = None
        self._connection_read_at = -math.inf
        FailWhen.parse("fail_when", fail_when)
        validate_seconds("missing_grace", missing_grace, allow_zero=True)

    @cached_property
    def hook(self) -> LumaHook:
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def execute(self, context: Context) -> list[str]:
        with self._apply_failure_policy(context):
            wait = self._begin(context)
            if not wait.batch.ids:
                self.log.info("luma_task_ids is empty: no Luma task to wait for")
            if not self.deferrable:
                completed: list[str] = super().execute(context)
            elif (first := self._first_poll(context, wait)) and first.is_done:
                completed = first.xcom_value or []
            else:
                self._defer(context, wait)
            wait.push_summary(context)
            return completed

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Query every id that is still pending once.

        A transient error ends the wait, unless ``silent_fail`` tolerates it. Once ``timeout`` has expired it
        counts as the timeout that it leads to: the trigger decides by the same rule.
        """
        wait = self._begin(context)
        # Only poke mode waits on the spot for a rate limit: it holds its worker slot anyway.
        patient = not self.reschedule and not self.deferrable
        error: Exception | None = None
        try:
            with fail_without_retry(self.luma_conn_id):
                self._poll(wait, patient=patient)
        except AirflowFailException:
            raise
        except Exception as caught:
            error = caught
            if not self.silent_fail and self._time_left(wait) > 0:
                raise
            self.log.warning("The poll failed: %s", caught, exc_info=not isinstance(caught, RelayError))
        finally:
            wait.report()
        if self._outcome(wait) is not Outcome.RUNNING:
            return PokeReturnValue(is_done=True, xcom_value=self._finish(wait))
        if self._time_left(wait) <= 0:
            raise self._timeout_error(error)
        return PokeReturnValue(is_done=False)

    def _poll(self, wait: Wait, *, patient: bool) -> None:
        """Poll, and where that fails with a connection that was edited meanwhile, again with the new one."""
        try:
            wait.poll(self.hook.client, self._deadline(wait), patient=patient)
        except (RelayAuthenticationError, RelayTransientError) as error:
            if not self._reload_connection(error):
                raise
            self.log.info("The connection %r has changed; polling with its new settings", self.luma_conn_id)
            wait.poll(self.hook.client, self._deadline(wait), patient=patient)

    def _reload_connection(self, error: RelayError) -> bool:
        """
        Read the connection again, and return whether it has changed: :attr:`hook` is a new one then.

        After a transient error it is read only now and then, and one that cannot be read is no new error.
        """
        is_rejected, now = isinstance(error, RelayAuthenticationError), time.monotonic()
        if not is_rejected and now - self._connection_read_at < REREAD_SECONDS:
            return False
        self._connection_read_at = now
        old = self.hook
        del self.hook
        try:
            if self.hook.settings != old.settings:
                return True
        except Exception as unreadable:
            if is_rejected:
                raise
            self.log.warning("The connection %r cannot be read again: %s", self.luma_conn_id, unreadable)
        self.hook = old
        return False

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> list[str]:
        """
        Resume where the trigger ended.

        :param event: see :class:`~airflow_provider_luma.triggers.luma.LumaTaskTrigger`.
        :raises TriggerEventError: when the event is lost or invalid.
        """
        with self._apply_failure_policy(context):
            event = validate_event(event)
            same_ids = self._resume(context, event)
            wait = self._begin(context)
            if same_ids:
                wait.report()
            error = error_from_dict(event["error"]) if event.get("error") else None
            if error is not None and event["status"] == "error":
                with fail_without_retry(self.luma_conn_id):
                    raise error
            if same_ids and self._outcome(wait) is not Outcome.RUNNING:
                completed = self._finish(wait)
                wait.push_summary(context)
                return completed
            if same_ids and event["status"] == "timeout":
                raise self._timeout_error(error)
        changed = "fail_when or fail_fast" if same_ids else "luma_task_ids"
        self.log.warning("%s has changed during the wait, which continues", changed)
        return self.execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        # Not the base sensor's, whose rules for skipping differ from those of its other modes.
        try:
            return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralTimeout, TaskDeferralError) as error:
            with self._apply_failure_policy(context):
                wait = self._begin(context, is_resumed=True)
                if isinstance(error, TaskDeferralTimeout):
                    return self._poll_last(context, wait, error)
                raise

    def _poll_last(self, context: Context, wait: Wait, error: Exception) -> list[str]:
        """Poll once in place of a trigger that did not: the tasks may have ended while no triggerer ran."""
        try:
            completed = self.poke(context).xcom_value
        except AirflowSensorTimeout as timeout:
            raise AirflowSensorTimeout(
                f"The trigger did not fire within {self.timeout} seconds; is a triggerer running? {timeout}"
            ) from error
        wait.push_summary(context)
        return completed or []

    def on_kill(self) -> None:
        if self._wait is not None and self._wait.batch.pending_count:
            self.log.warning("%s", self._wait.batch.result.abandoned_message())

    @contextmanager
    def _apply_failure_policy(self, context: Context) -> Iterator[None]:
        """
        Decide what a failed wait means, alike in every mode: ``soft_fail`` skips for what no retry can help,
        ``never_fail`` for any error. The state is kept when the wait continues in another process.
        """
        try:
            yield
        except AirflowRescheduleException:
            if self._wait is not None:
                self._wait.save()
            raise
        except Exception as error:
            failure = error
            if self._wait is not None:
                self._wait.push_summary(context)
                if isinstance(error, AirflowSensorTimeout):
                    failure = AirflowSensorTimeout(f"{error} {self._wait.describe()}")
            final = isinstance(error, (AirflowSensorTimeout, AirflowFailException))
            skips = self.never_fail or (self.soft_fail and final)
            if skips and not isinstance(error, AirflowSkipException):
                raise AirflowSkipException(f"Skipped instead of failed: {failure}") from error
            if failure is error:
                raise
            raise failure from error

    def _begin(self, context: Context, *, is_resumed: bool = False) -> Wait:
        """Begin the wait, or resume it where an earlier process has left it."""
        if self._wait is None:
            # Only a rescheduled or resumed task looks for a kept state: a cleared one starts over.
            first = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
            # Airflow resumes a deferred task that has no event when its timeout is over.
            started_at = first.timestamp() if first else time.time() - (self.timeout if is_resumed else 0)
            self._wait = self._build_wait(context)
            self._wait.begin(started_at, is_continued=is_resumed or first is not None)
        return self._wait

    def _resume(self, context: Context, event: Mapping[str, Any]) -> bool:
        """Resume the wait of the trigger; ``False`` when that was for other ids."""
        self._wait = self._build_wait(context)
        return self._wait.load(event["state"])

    def _build_wait(self, context: Context) -> Wait:
        with fail_without_retry(self.luma_conn_id):
            ids = parse_task_ids(self.luma_task_ids)
        return Wait(ids, self.missing_grace, WaitStore(context), self.log)

    def _deadline(self, wait: Wait) -> float:
        return wait.batch.started_at + self.timeout

    def _time_left(self, wait: Wait) -> float:
        return max(self._deadline(wait) - time.time(), 0.0)

    def _timeout_error(self, error: Exception | None) -> AirflowSensorTimeout:
        why = f" The last poll failed: {error}." if error else ""
        return AirflowSensorTimeout(f"Sensor has timed out after {self.timeout} seconds.{why}")

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        # Not the base sensor's, which overflows after a thousand polls and knows no Retry-After.
        elapsed = run_duration()
        schedule = PollSchedule(self.poke_interval, self.exponential_backoff, self._max_wait_seconds)
        interval = schedule.interval_after(elapsed) if self.reschedule else schedule.interval(poke_count)
        pause = self._wait.not_before - time.time() if self._wait else 0.0
        return max(min(max(interval, pause), self.timeout - elapsed), 0.0)

    @property
    def _max_wait_seconds(self) -> float | None:
        return self.max_wait.total_seconds() if self.max_wait else None

    def _outcome(self, wait: Wait) -> Outcome:
        return wait.batch.outcome(FailWhen.parse("fail_when", self.fail_when), fail_fast=self.fail_fast)

    def _finish(self, wait: Wait) -> list[str]:
        """Return the completed ids of a wait that has its outcome, or fail."""
        result = wait.batch.result
        messages = result.failure_messages()
        for message in messages:
            self.log.warning("%s", message)
        if self._outcome(wait) is Outcome.FAILED:
            raise LumaTaskFailedError(f"Luma tasks: {result.progress_message()}. {'; '.join(messages)}")
        return result.completed

    def _first_poll(self, context: Context, wait: Wait) -> PokeReturnValue | None:
        """Poll once before deferring; mapped sensors leave that to the triggerer, for all of them at once."""
        if self._is_expanded(context) and wait.batch.pending_count:
            return None
        return self.poke(context)

    @staticmethod
    def _is_expanded(context: Context) -> bool:
        map_index = context["ti"].map_index
        return map_index is not None and map_index >= 0

    def _defer(self, context: Context, wait: Wait) -> NoReturn:
        from airflow_provider_luma.triggers.luma import LumaTaskTrigger

        batch = wait.batch
        if len(batch.ids) > MYSQL_MAX_IDS:
            self.log.info(
                "Deferring %d ids in one trigger. Where Airflow's database is MySQL, a trigger holds 64 KB, "
                "about %d ids: map over chunks of ids there, as example_luma_fan_out does",
                len(batch.ids),
                MYSQL_MAX_IDS,
            )
        wait.report()
        wait.save()
        self.defer(
            trigger=LumaTaskTrigger(
                luma_task_ids=list(batch.ids),
                luma_conn_id=self.luma_conn_id,
                state=batch.dump(),
                timeout=self.timeout,
                polled_at=None if self._is_expanded(context) else time.time(),
                not_before=wait.not_before,
                poke_interval=self.poke_interval,
                exponential_backoff=self.exponential_backoff,
                max_wait=self._max_wait_seconds,
                fail_when=self.fail_when,
                fail_fast=self.fail_fast,
                missing_grace=self.missing_grace,
                silent_fail=self.silent_fail,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self._time_left(wait)) + TRIGGER_TIMEOUT_MARGIN,
        )
