"""
The links on the page of a task instance.

The plugin registers them, so that the api-server makes them when the page is shown: also while a task runs
or is deferred, and when it failed or its worker died. Links that operators declare are made by the worker, at
the end.
"""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import attrs
from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

from airflow_provider_luma.download.urls import parse_url
from airflow_provider_luma.exceptions import UnsafeURLError
from airflow_provider_luma.operators.generate import XCOM_TASK_KEY
from airflow_provider_luma.operators.luma import (
    LumaDownloadOperator,
    LumaGenerateBatchOperator,
    LumaGenerateOperator,
)
from airflow_provider_luma.sensors.luma import LumaTaskSensor


@attrs.define()
class ClipsLink(BaseOperatorLink):
    """Leads to the clips of a task instance."""

    operators: ClassVar[list[type]] = [
        LumaDownloadOperator,
        LumaGenerateBatchOperator,
        LumaGenerateOperator,
        LumaTaskSensor,
    ]

    @property
    def name(self) -> str:
        return "Clips"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        base = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
        parts = (ti_key.dag_id, ti_key.run_id, ti_key.task_id, str(ti_key.map_index))
        return "/".join([base, "luma", "clips", *(quote(part, safe="") for part in parts)])


@attrs.define()
class RelayPageLink(BaseOperatorLink):
    """Leads to the relay's own page of a Luma task, where the connection names one."""

    operators: ClassVar[list[type]] = [LumaGenerateOperator]

    @property
    def name(self) -> str:
        return "Relay"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from airflow_provider_luma.ui.records import load_xcom

        return web_page_of(load_xcom(ti_key, XCOM_TASK_KEY)) or ""


def web_page_of(pushed: Any) -> str | None:
    """Return the page that an XCom names. Any task may have pushed it: a script is not a page."""
    page = pushed.get("page") if isinstance(pushed, dict) else None
    if not isinstance(page, str):
        return None
    try:
        parse_url(page)
    except UnsafeURLError:
        return None
    return page
