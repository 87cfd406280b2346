"""Submits generations to a Luma relay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, conf

from airflow_provider_luma.airflow_exceptions import fail_without_retry
from airflow_provider_luma.arguments import check_number
from airflow_provider_luma.exceptions import LumaValueError, RelayError, TriggerEventError
from airflow_provider_luma.operators.memory import SubmitMemory
from airflow_provider_luma.relay.generation import Generation

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.hooks.luma import LumaHook
    from airflow_provider_luma.sensors.luma import LumaTaskSensor

TASK_KEY = "luma_task"


class LumaGenerateOperator(BaseOperator):
    """
    Submit a generation, which costs money, and return the id of the Luma task.

    A submit is sent again only where it surely did not arrive: where no connection came about, or the relay
    asked to slow down (429). Where it broke off otherwise (a timeout, a cut connection, a 5xx), a Luma task
    may have been created: the Airflow task fails without a retry and says so. On Airflow 3.3 and newer the id
    is kept in the task state store at once, so that a retry, or clearing the task, after the worker died
    takes up the same Luma task; after one that died between the submit and its answer it fails as above.
    Clearing a task that succeeded submits again. Airflow 3.0 to 3.2 have no such place: there a retry after
    the worker died pays again, for which reason ``retries`` is 0 unless ``default_args`` or the task say
    otherwise.

    Pushes what the relay answered as ``luma_task``. There is no cancelling: relays document no way to.

    :param prompt: 3 to 5000 characters. (templated)
    :param aspect_ratio: ``1:1``, ``4:3``, ``3:4``, ``16:9``, ``9:16``, ``21:9`` or ``9:21``. (templated)
    :param loop: whether the end leads into the beginning.
    :param expand_prompt: whether the relay may embellish the prompt.
    :param image_url: the first image: an http(s) link, or Base64. (templated)
    :param image_end_url: the last image, likewise. (templated)
    :param model_name: such as ``ray-v2``; relays differ. (templated)
    :param resolution: ``540p``, ``720p``, ``1080p`` or ``4k``. (templated)
    :param duration: such as ``5s``; relays differ. (templated)
    :param notify_hook: an http(s) address that the relay calls at the end. (templated)
    :param extend_task_id: the Luma task whose video is made longer by this. (templated)
    :param extra_body: fields that a relay has besides, sent as they are. (templated)
    :param luma_conn_id: the connection of type ``luma``. Default ``luma_default``. (templated)
    :param wait_for_completion: wait as :class:`LumaTaskSensor` does and return the finished task's record
        instead of the id. Default False.
    :param poke_interval: seconds between two polls while it waits. Default 60.
    :param timeout: seconds to wait at the most. Default 7200.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param retries: Airflow's own; default 0, for the reason above.
    :raises LumaNonRetryableError: when the relay refuses, an argument is wrong, or the submit broke off so that
        a task may have been created; not retried.
    :raises LumaTaskFailedError: when it waited and the generation failed; not retried.
    :raises RelayTransientError: when the relay could not be reached at all; Airflow's ``retries`` apply.
    """

    template_fields: Sequence[str] = (
        "prompt",
        "aspect_ratio",
        "image_url",
        "image_end_url",
        "model_name",
        "resolution",
        "duration",
        "notify_hook",
        "extend_task_id",
        "extra_body",
        "luma_conn_id",
    )
    ui_color = "#e6e0ff"

    def __init__(
        self,
        *,
        prompt: str,
        aspect_ratio: str | None = None,
        loop: bool | None = None,
        expand_prompt: bool | None = None,
        image_url: str | None = None,
        image_end_url: str | None = None,
        model_name: str | None = None,
        resolution: str | None = None,
        duration: str | None = None,
        notify_hook: str | None = None,
        extend_task_id: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        luma_conn_id: str = "luma_default",
        wait_for_completion: bool = False,
        poke_interval: float = 60,
        timeout: float = 7200,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        retries: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, **kwargs)
        self.prompt = prompt
        self.aspect_ratio = aspect_ratio
        self.loop = loop
        self.expand_prompt = expand_prompt
        self.image_url = image_url
        self.image_end_url = image_end_url
        self.model_name = model_name
        self.resolution = resolution
        self.duration = duration
        self.notify_hook = notify_hook
        self.extend_task_id = extend_task_id
        self.extra_body = extra_body
        self.luma_conn_id = luma_conn_id
        self.wait_for_completion = wait_for_completion
        self.poke_interval = poke_interval
        self.timeout = timeout
        self.deferrable = deferrable
        check_number("poke_interval", poke_interval)
        check_number("timeout", timeout)

    @cached_property
    def hook(self) -> LumaHook:
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def execute(self, context: Context) -> str | dict[str, Any]:
        with fail_without_retry():
            memory = SubmitMemory(context, self._generation())
            task_id = memory.recall()
            if task_id is None:
                task_id = self._submit(context, memory)
            else:
                self.log.info("Luma task %s was submitted by an earlier try; nothing is paid again", task_id)
        if not self.wait_for_completion:
            memory.give(task_id)
            return task_id
        context["ti"].xcom_push("luma_task_id", task_id)
        return self._waited(context, memory, task_id, None)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Go on where the trigger ended, see :meth:`LumaTaskSensor.execute_complete`."""
        task_id = context["ti"].xcom_pull(
            task_ids=self.task_id, key="luma_task_id", map_indexes=context["ti"].map_index
        )
        if not task_id:
            raise TriggerEventError(
                "The id of the submitted Luma task is lost; find it in the log of this task"
            )
        with fail_without_retry():
            memory = SubmitMemory(context, self._generation())
        return self._waited(context, memory, task_id, event or {})

    def _generation(self) -> Generation:
        return Generation(
            self.prompt,
            aspect_ratio=self.aspect_ratio,
            loop=self.loop,
            expand_prompt=self.expand_prompt,
            image_url=self.image_url,
            image_end_url=self.image_end_url,
            model_name=self.model_name,
            resolution=self.resolution,
            duration=self.duration,
            notify_hook=self.notify_hook,
            extend_task_id=self.extend_task_id,
            extra_body=self.extra_body or {},
        )

    def _submit(self, context: Context, memory: SubmitMemory) -> str:
        client = self.hook.client  # before anything is written down: a connection may be wrong
        memory.begin()
        try:
            task = client.submit(self._generation())
        except (RelayError, LumaValueError):
            memory.forget()
            raise
        memory.keep(task.id)
        self.log.info("Luma task %s was submitted", task.id)
        context["ti"].xcom_push(
            TASK_KEY, {"id": task.id, "state": task.state.value, "answer": dict(task.raw)}
        )
        return task.id

    def _waited(
        self, context: Context, memory: SubmitMemory, task_id: str, event: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Wait by the sensor's own code, and describe what came of it."""
        from airflow_provider_luma.download.records import describe

        sensor = self._sensor(task_id)
        try:
            if event is None:
                sensor.execute(context)
            else:
                sensor.execute_complete(context, event)
        except AirflowFailException:
            memory.forget()  # this generation will not come; who clears the task wants another
            raise
        (task,) = self.hook.get_tasks([task_id])
        memory.give(task_id)
        return describe(task)

    def _sensor(self, task_id: str) -> LumaTaskSensor:
        from airflow_provider_luma.sensors.luma import LumaTaskSensor

        return LumaTaskSensor(
            task_id=self.task_id,
            luma_task_ids=[task_id],
            luma_conn_id=self.luma_conn_id,
            poke_interval=self.poke_interval,
            timeout=self.timeout,
            deferrable=self.deferrable,
        )
