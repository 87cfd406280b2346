"""
The plugin that adds the gallery to Airflow's UI.

Every process of Airflow loads plugins, also each one that runs a task. So this module is light, and the app
is built where it is requested: in the api-server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_luma.airflow_version import HAS_UI_PLUGINS

_RUN = "luma/clips/{DAG_ID}/{RUN_ID}"

log = logging.getLogger(__name__)


class _Lazy:
    """A list of the plugin, of its class and instances alike, that is made when it is read."""

    def __init__(self, make: Callable[[], list[Any]]) -> None:
        self._make = cache(make)

    def __get__(self, instance: object, owner: type) -> list[Any]:
        return self._make()


def _create_apps() -> list[dict[str, Any]]:
    try:
        from airflow_provider_luma.ui.app import MOUNT, create_app
    except ImportError:  # Airflow's internals moved: no page without its permissions
        log.exception("The gallery of clips does not fit this Airflow")
        return []
    return [{"name": "Luma clips", "url_prefix": MOUNT, "app": create_app()}]


def _create_links() -> list[Any]:
    from airflow_provider_luma.links.clips import ClipsLink, RelayPageLink

    return [ClipsLink(), RelayPageLink()]


def _create_views() -> list[dict[str, Any]]:
    return [
        _view("luma-run-clips", "dag_run"),
        _view("luma-clips", "task_instance", "/{TASK_ID}/{MAP_INDEX}"),
    ]


def _view(route: str, destination: str, rest: str = "") -> dict[str, Any]:
    # Relative to the base of Airflow's page, so that it holds below a path of [api] base_url, too. A path
    # without a query, as Airflow 3.1 does not quote what it fills in: "+" means itself in a path.
    return {"name": "Clips", "href": _RUN + rest, "destination": destination, "url_route": route}


class LumaPlugin(AirflowPlugin):
    """Adds a tab to the page of each Dag run and task instance, and the links of the operators."""

    name = "luma"

    if HAS_UI_PLUGINS:
        fastapi_apps: Any = _Lazy(_create_apps)
        operator_extra_links: Any = _Lazy(_create_links)
        external_views: Any = _Lazy(_create_views)
