"""A DAG of one sensor in each mode, and what tests say of its run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_provider_luma.sandbox import ScriptedResponse
from tests.airflow.harness import Run, run_source

MODES = {"poke": {"mode": "poke"}, "reschedule": {"mode": "reschedule"}, "deferrable": {"deferrable": True}}

Wait = Callable[..., Run]


def waiter(mode: str) -> Wait:
    """Return a function that runs a DAG of one sensor in this mode."""

    def wait(luma_task_ids: Any, **arguments: Any) -> Run:
        arguments = {"poke_interval": 0.3, "timeout": 30, "retries": 1, "retry_delay": 0} | arguments
        return run_source(
            "waiting",
            f"""
            from airflow.sdk import DAG
            from airflow_provider_luma.sensors.luma import LumaTaskSensor

            with DAG("waiting", schedule=None) as dag:
                LumaTaskSensor(
                    task_id="wait",
                    luma_task_ids={luma_task_ids!r},
                    **{arguments | MODES[mode]!r},
                )
            """,
        )

    return wait


def ended(run: Run, state: str, tries: int = 1) -> bool:
    return (run.states["wait"], run.tries["wait"]) == (state, tries)


def summary(
    completed: int,
    failed: dict[str, str] | None = None,
    missing: list[str] | None = None,
    running: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "completed": completed,
        "failed": failed or {},
        "missing": missing or [],
        "running": running or [],
    }


def responses(*statuses: int, **facts: Any) -> list[ScriptedResponse]:
    return [ScriptedResponse(status=status, body={"message": "scripted"}, **facts) for status in statuses]
