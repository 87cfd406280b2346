"""Common parts of operators that submit generations: the fields, and the place of their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_luma.airflow_version import HAS_TASK_STATE_STORE, get_merged_default_args
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.generation import FIELDS, FLAGS
from airflow_provider_luma.submit.record_store import StatePlace

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.hooks.luma import LumaHook

# Where records are kept, a retry is the safe way back from a dead worker; elsewhere it may be charged twice.
DURABLE_RETRIES = 2

# Of a generation, but for what each one has of its own.
SHARED_FIELDS = tuple(name for name in FIELDS if name != "prompt")


class BaseGenerateOperator(BaseOperator):
    """Base of the operators that submit; the parameters are documented where they are public."""

    template_fields: Sequence[str] = (*(name for name in SHARED_FIELDS if name not in FLAGS), "luma_conn_id")
    ui_color = "#e6e0ff"

    def __init__(
        self,
        *,
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
        durable: bool = True,
        state_path: str | None = None,
        retries: int | None = None,
        **kwargs: Any,
    ) -> None:
        if retries is None:
            retries = _default_retries(durable=durable, state_path=state_path)
        super().__init__(retries=retries, **kwargs)
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
        # Before it is rendered.
        self._is_connection_templated = not isinstance(luma_conn_id, str) or "{" in luma_conn_id
        self.durable = durable
        self.state_path = state_path

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Put the default of ``retries`` in force when mapped, too; Airflow 3.0 to 3.2 ignore it there."""
        given = get_merged_default_args(kwargs) | kwargs
        if given.get("retries") is None:
            kwargs["retries"] = _default_retries(
                durable=given.get("durable", True), state_path=given.get("state_path")
            )
        return super().partial(**kwargs)

    @cached_property
    def hook(self) -> LumaHook:
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def _has_own_place(self, context: Context) -> bool:
        """Return whether records are kept whatever the connection says."""
        return self.durable and bool(context.get("task_state_store") or self.state_path)

    def _open_place(self, context: Context) -> StatePlace:
        state_path = self.state_path or self.hook.settings.state_path
        place = StatePlace(context, state_path, durable=self.durable)
        if place.is_movable and self._is_connection_templated and not self.state_path:
            raise LumaValueError(
                "luma_conn_id is templated, so that a later try may render another connection with another "
                "state_path, and pay again. Give state_path to the operator itself"
            )
        return place

    def _fields(self) -> dict[str, Any]:
        """Return the shared fields that are given."""
        given = {name: getattr(self, name) for name in SHARED_FIELDS}
        return {name: value for name, value in given.items() if value is not None}


def _default_retries(*, durable: bool, state_path: Any) -> int:
    return DURABLE_RETRIES if durable and (HAS_TASK_STATE_STORE or state_path) else 0
