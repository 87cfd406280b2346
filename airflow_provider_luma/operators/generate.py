"""
Submits a generation to a Luma relay.

The submit itself, and what a crash in it leaves: :mod:`airflow_provider_luma.submit.durable_submit`. What
follows:

==================================  =====================================================================
act                                 if the process dies after this step
==================================  =====================================================================
the XCom ``luma_task`` is pushed    the next try reconnects
``execute`` returns                 the next try reconnects
Airflow records the success         the task is a success; cleared, it reconnects once
``returned`` is saved               the task is a success; cleared, it submits again
==================================  =====================================================================
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from airflow.providers.common.compat.sdk import conf

from airflow_provider_luma.airflow_exceptions import LumaTaskFailedError, fail_without_retry
from airflow_provider_luma.arguments import to_seconds
from airflow_provider_luma.exceptions import (
    LumaValueError,
    RelayError,
    RelayTransientError,
    SubmitOutcomeUnknownError,
    TriggerEventError,
)
from airflow_provider_luma.operators.base import BaseGenerateOperator
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import PROBE_ID, LumaTask
from airflow_provider_luma.relay.text import clean_text, redact_text
from airflow_provider_luma.submit.airflow_internals import Retries, is_success_recorded
from airflow_provider_luma.submit.durable_submit import DurableSubmit
from airflow_provider_luma.submit.record import Phase, fingerprint_of
from airflow_provider_luma.submit.record_store import SubmitLedger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.download.records import TaskDescription
    from airflow_provider_luma.sensors.luma import LumaTaskSensor

XCOM_TASK_KEY = "luma_task"

_MAX_RESPONSE_CHARS = 2000


class LumaTaskXCom(TypedDict):
    """
    The XCom ``luma_task`` of a generate task.

    ``response`` is the relay's response as JSON, truncated to 2,000 characters. ``state`` and ``response``
    are ``None`` after a try that reconnected. ``page`` is the URL of the relay's own page of the task, where
    the connection names one.
    """

    id: str
    state: str | None
    response: str | None
    page: NotRequired[str]


class LumaGenerateOperator(BaseGenerateOperator):
    """
    Submit a generation, which costs money, and return the id of the Luma task.

    A prompt is paid for once. A submit is retried only where it was provably not sent, and on a rate limit
    (429). Where the relay may have created a task, the Airflow task fails without a retry and says so.

    With ``durable=True`` a record of the submit is kept, in the task state store of Airflow 3.3 and newer or
    at ``state_path``. A retry after the worker died, and a task that is cleared before it succeeded,
    reconnect to the same Luma task. A task that is cleared after it succeeded submits again.

    Pushes ``{"id", "state", "response"}`` as the XCom ``luma_task``, with ``page`` where the connection names
    the relay's own page of a task; ``state`` and ``response`` are ``None`` after a try that reconnected. A
    Luma task cannot be cancelled: relays document no way to.

    .. seealso::
        :doc:`generate`, whose section *Durable execution* says what each kind of clear does.

    :param prompt: the text. (templated)
    :param aspect_ratio: such as ``16:9``. (templated)
    :param loop: whether the end leads into the beginning.
    :param expand_prompt: whether the relay may embellish the prompt.
    :param image_url: the first image: an http(s) URL, or Base64. (templated)
    :param image_end_url: the last image, likewise. (templated)
    :param model_name: such as ``ray-v2``; relays differ. (templated)
    :param resolution: such as ``720p``. (templated)
    :param duration: such as ``5s``; relays differ. (templated)
    :param notify_hook: an http(s) URL that the relay calls at the end. (templated)
    :param extend_task_id: the Luma task whose video this one extends. (templated)
    :param extra_body: further fields that a relay takes, sent as they are. (templated)
    :param luma_conn_id: the connection of type ``luma``. Default ``luma_default``. (templated)
    :param wait_for_completion: wait as :class:`~airflow_provider_luma.sensors.luma.LumaTaskSensor` does, push
        its ``luma_summary``, and return the finished task's record (``id``, ``state``, ``prompt``,
        ``aspect_ratio``, ``created_at``, ``duration``, ``width``, ``height``) instead of the id. The sensor's
        other parameters cannot be set. Default False.
    :param poke_interval: seconds, or a ``timedelta``, between two polls while it waits. Default 60.
    :param timeout: seconds, or a ``timedelta``, to wait at most. Default 7200.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param durable: keep a record of the submit, so that no try submits again what an earlier one did. Default
        True; without effect on Airflow 3.0 to 3.2 where there is no ``state_path``.
    :param state_path: a folder in object storage, such as ``s3://conn_id@bucket/_luma``, for the record; it
        survives every kind of clear on every Airflow. Wins over the connection's extra field ``state_path``.
        Not templated, as each try must find the same record. Default: the task state store, if there is one.
    :param retries: Airflow's own. Default 2 on Airflow 3.3 and newer or with the argument ``state_path``,
        else 0. With ``state_path`` only in the connection's extra on 3.0 to 3.2, set it to 2 yourself.
    :raises LumaNonRetryableError: when the relay rejects the request, an argument is invalid, the record
        cannot be read, or a Luma task may have been created; not retried.
    :raises LumaTaskFailedError: when it waited and the generation failed; not retried.
    :raises RelayTransientError: when the relay could not be reached at all; Airflow's ``retries`` apply.
    """

    template_fields: Sequence[str] = ("prompt", *BaseGenerateOperator.template_fields)

    _ledger: SubmitLedger | None = None
    # Of the class, so that an operator can be copied before it runs: an event cannot.
    _stopped: threading.Event | None = None

    def __init__(
        self,
        *,
        prompt: str,
        wait_for_completion: bool = False,
        poke_interval: float | timedelta = 60,
        timeout: float | timedelta = 7200,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.wait_for_completion = wait_for_completion
        self.poke_interval = to_seconds("poke_interval", poke_interval)
        self.timeout = to_seconds("timeout", timeout)
        self.deferrable = deferrable
        self.on_success_callback = [*self.on_success_callback, _mark_returned]

    def execute(self, context: Context) -> str | TaskDescription:
        with fail_without_retry(self.luma_conn_id):
            ledger = self._open_ledger(context)
            task_id = self._reconnect(context, ledger) or self._submit(context, ledger)
        if not self.wait_for_completion:
            return task_id
        return self._wait(context, ledger, task_id, None)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> TaskDescription:
        """Resume where the trigger ended, as the sensor's ``execute_complete`` does."""
        with fail_without_retry(self.luma_conn_id):
            ledger = self._open_ledger(context)
            task_id = self._submitted_id(context, ledger)
        return self._wait(context, ledger, task_id, event or {})

    def on_kill(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
        record = self._ledger.record if self._ledger is not None else None
        if record is not None and record.id is not None:
            self.log.warning("Luma task %s is still running at the relay, and is charged", record.id)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        # First of all: the connection may be unreadable, and the base class raises when the trigger failed.
        retries = Retries(context)
        retries.forbid()
        with fail_without_retry(self.luma_conn_id):
            if self._has_own_place(context) or self._open_ledger(context).place.is_durable:
                retries.restore()
        return super().resume_execution(next_method, next_kwargs, context)

    def _open_ledger(self, context: Context) -> SubmitLedger:
        if self._ledger is None:
            self._ledger = SubmitLedger(self._open_place(context), context["ti"].max_tries)
        return self._ledger

    def _reconnect(self, context: Context, ledger: SubmitLedger) -> str | None:
        """Return the id that an earlier try got, ``None`` when this one may submit."""
        task_id = DurableSubmit(ledger).reconnect()
        if task_id is None or ledger.record is None:
            return None
        if self._fingerprint() not in {ledger.record.fingerprint, None}:
            self.log.warning(
                "The fields of this task render differently from what was submitted as Luma task %s", task_id
            )
        self._push_task(context, {"id": task_id, "state": None, "response": None})
        return task_id

    def _submit(self, context: Context, ledger: SubmitLedger) -> str:
        from tenacity import Retrying, sleep_using_event

        self._stopped = stopped = threading.Event()
        generation = self._build_generation()
        generation.warn_undocumented()
        self.hook.client.validate_submit(generation)
        if self.wait_for_completion:
            self._build_sensor(PROBE_ID)  # raises now what would be found out after the charge
        client = self.hook.client
        # Each attempt leaves its own phase in the record.
        submit = Retrying(**client.retry.retrying_kwargs(), sleep=sleep_using_event(stopped))
        with _without_retries(context, ledger):
            task = submit(DurableSubmit(ledger).submit, client.submit_once, generation, stopped)
        if ledger.place.is_lost_by_a_clear:
            self.log.info("If this task fails later: %s", ledger.place.clear_hint("reconnect"))
        self._push_task(context, _build_xcom(task))
        return task.id

    def _push_task(self, context: Context, pushed: LumaTaskXCom) -> None:
        if page := self.hook.settings.get_task_page(pushed["id"]):
            pushed["page"] = page
        context["ti"].xcom_push(XCOM_TASK_KEY, pushed)

    def _submitted_id(self, context: Context, ledger: SubmitLedger) -> str:
        if ledger.record is not None and ledger.record.id is not None:
            return ledger.record.id
        ti = context["ti"]
        pushed = ti.xcom_pull(task_ids=self.task_id, key=XCOM_TASK_KEY, map_indexes=ti.map_index)
        if not isinstance(pushed, Mapping) or not pushed.get("id"):
            raise TriggerEventError(
                "The id of the submitted Luma task is in neither a record nor the XCom 'luma_task'. "
                "It is in the log of this task"
            )
        return str(pushed["id"])

    def _wait(
        self, context: Context, ledger: SubmitLedger, task_id: str, event: Mapping[str, Any] | None
    ) -> TaskDescription:
        """Wait by the sensor's own code, and describe the finished task."""
        from airflow_provider_luma.download.records import describe

        sensor = self._build_sensor(task_id)
        try:
            if event is None:
                sensor.execute(context)
            else:
                sensor.execute_complete(context, event)
            task = self._get_completed(task_id)
        except LumaTaskFailedError as error:
            self._mark_failed(ledger, task_id, error)
            raise
        except Exception:
            self.log.warning(
                "Luma task %s was created, and may still be running at the relay. %s",
                task_id,
                ledger.place.clear_hint("reconnect to it"),
            )
            raise
        return describe(task)

    def _mark_failed(self, ledger: SubmitLedger, task_id: str, error: LumaTaskFailedError) -> None:
        """Save that the generation failed, if it did: an id that the relay does not know may come back."""
        try:
            if self._get_task(task_id).state is not TaskState.FAILED:
                return
        except Exception as unknown:  # noqa: BLE001 - the failure of the wait matters more
            self.log.warning(
                "The state of Luma task %s is not known; it is not submitted again: %s", task_id, unknown
            )
            return
        DurableSubmit(ledger).mark_failed(clean_text(str(error)))

    def _get_completed(self, task_id: str) -> LumaTask:
        task = self._get_task(task_id)
        if task.state is TaskState.FAILED:
            raise LumaTaskFailedError(f"Luma task {task_id} failed: {task.failure_reason}.")
        if task.state is not TaskState.COMPLETED:  # as where two servers of a relay differ
            raise RelayTransientError(f"Luma task {task_id} was completed, and now is {task.state.value}")
        return task

    def _get_task(self, task_id: str) -> LumaTask:
        with fail_without_retry(self.luma_conn_id):
            for task in self.hook.get_tasks([task_id]):
                return task
        raise RelayTransientError(f"The relay does not know the Luma task {task_id} at the moment")

    def _fingerprint(self) -> str | None:
        try:
            return fingerprint_of(self._build_generation())
        except LumaValueError:
            return None

    def _build_generation(self) -> Generation:
        return Generation(self.prompt, **self._fields())

    def _build_sensor(self, task_id: str) -> LumaTaskSensor:
        from airflow_provider_luma.sensors.luma import LumaTaskSensor

        return LumaTaskSensor(
            task_id=self.task_id,
            luma_task_ids=[task_id],
            luma_conn_id=self.luma_conn_id,
            poke_interval=self.poke_interval,
            timeout=self.timeout,
            deferrable=self.deferrable,
        )


@contextmanager
def _without_retries(context: Context, ledger: SubmitLedger) -> Iterator[None]:
    """Where no record is kept, forbid Airflow's retries from the submit on, unless it created nothing."""
    if ledger.place.is_durable:
        yield
        return
    retries = Retries(context)
    retries.forbid()
    try:
        yield
    except SubmitOutcomeUnknownError:
        raise
    except RelayError:
        retries.restore()
        raise


def _mark_returned(context: Context) -> None:
    """Save that the id was returned. Airflow calls success callbacks after it has recorded the success."""
    ti: Any = context["ti"]
    # Airflow 3.0 keeps the operator before rendering in context["task"].
    ledger: SubmitLedger | None = ti.task._ledger  # noqa: SLF001 - the operator's own callback
    if ledger is None or ledger.record is None or ledger.record.phase is not Phase.CREATED:
        return
    if is_success_recorded(ti):
        ledger.mark(Phase.RETURNED)


def _build_xcom(task: LumaTask) -> LumaTaskXCom:
    response = clean_text(json.dumps(dict(task.raw), ensure_ascii=False), _MAX_RESPONSE_CHARS)
    return {"id": task.id, "state": task.state.value, "response": redact_text(response)}
