"""
Kills a generate task on a real Airflow before each line between its intent and its end, and tries it again.

A process of its own, as each try is a fork of it: it imports Airflow once and keeps no thread. Prints one
line of JSON for each kill.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

DAG_ID, TASK_ID = "killed", "generate"
KILLED = 99

SOURCE = """
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaGenerateOperator

with DAG("killed", schedule=None) as dag:
    LumaGenerateOperator(task_id="generate", prompt="cat dance", retries=2, state_path={state_path!r})
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-path")
    parser.add_argument("--clear", choices=["retry", "clear", "delete"], default="retry")
    parser.add_argument("--step", type=int, default=1)
    options = parser.parse_args()
    dag = _load(options.state_path)
    _warm_up(dag)
    _say({"line": 0, "died": False})
    line, died = 1, True
    while died:
        died = _in_child(lambda line=line: _run_killed(dag, line)) == KILLED  # type: ignore[misc]
        # Airflow had recorded the success: who clears such a task wants another clip.
        before = {"returned_before": _state()["state"] == "success"}
        code = _in_child(lambda: _try_again(dag, options.clear)) if died else 0
        _say({"line": line, "died": died, "code": code} | before | _state())
        line += options.step


def _say(row: dict[str, Any]) -> None:
    """Print a row, and go on once it was read: whoever reads it counts the charges until then."""
    print(json.dumps(row), flush=True)
    sys.stdin.readline()


def _load(state_path: str | None) -> Any:
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]) / "killed.py"
    file.write_text(SOURCE.format(state_path=state_path))
    spec = importlib.util.spec_from_file_location("killed", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dag


def _warm_up(dag: Any) -> None:
    """Do once what each fork would do again: set up the database, import, and build the api-server's app."""
    modules = Path(os.environ["AIRFLOW_HOME"]) / "modules.txt"

    def first_run() -> None:
        dag.test()
        modules.write_text("\n".join(sys.modules))

    _in_child(first_run)
    for name in modules.read_text().splitlines():
        with suppress(Exception):  # some can only be imported as parts of others
            importlib.import_module(name)
    asyncio.run(_first_request())


async def _first_request() -> None:
    """Have the api-server build the routes of the version that tasks speak."""
    from airflow.sdk.api.client import API_VERSION
    from airflow.sdk.execution_time.supervisor import in_process_api_server

    transport = httpx.ASGITransport(in_process_api_server().app)
    headers = {"airflow-api-version": API_VERSION}
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        await client.get("/connections/luma_default")


def _in_child(act: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        from airflow import settings

        settings.dispose_orm(do_log=False)
        settings.configure_orm()
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - it must not go on as the parent
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_killed(dag: Any, line: int) -> None:
    """Run the DAG, and die before the ``line``-th line of ours that runs once the intent is being saved."""
    seen, begun = 0, False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, begun
        code = frame.f_code
        if "airflow_provider_luma" not in code.co_filename:
            return None
        begun = begun or code.co_name == "begin"
        if begun and event == "line":
            seen += 1
            if seen == line:
                os._exit(KILLED)
        return trace

    sys.settrace(trace)
    dag.test()


def _try_again(dag: Any, way: str) -> None:
    """Do what the scheduler does after a worker that died, or what a user does then, and run the next try."""
    from airflow.models.taskinstance import clear_task_instances
    from airflow.sdk.definitions.dag import _run_task
    from airflow.utils.session import create_session

    with create_session() as session:
        ti, run = _instance(session)
        ti.task = run.dag.get_task(TASK_ID) if getattr(run, "dag", None) else _scheduler_task(dag)
        if str(ti.state) not in {"success", "failed"}:
            ti.handle_failure("the worker died", session=session)
    if way != "retry":
        with create_session() as session:  # its own, as the failure has begun the next try in the first one
            clear_task_instances([_instance(session)[0]], session)
            if way == "delete":
                _delete_state(session)
    with create_session() as session:
        ti, run = _instance(session)
        ti.task = _scheduler_task(dag)
        run.dag = getattr(run, "dag", None) or ti.task.dag
        run.schedule_tis([ti], session=session)
    with create_session() as session:
        ti, _ = _instance(session)
        session.expunge_all()
    _run_task(ti=ti, task=dag.get_task(TASK_ID))


def _scheduler_task(dag: Any) -> Any:
    from airflow.models.serialized_dag import SerializedDagModel

    return SerializedDagModel.get_dag(dag.dag_id).get_task(TASK_ID)  # type: ignore[union-attr]


def _instance(session: Any) -> tuple[Any, Any]:
    """Return the task instance of the newest run, and the run."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    run = session.scalars(select(DagRun).filter_by(dag_id=DAG_ID).order_by(DagRun.id.desc())).first()
    ti = session.scalars(
        select(TaskInstance).filter_by(dag_id=DAG_ID, run_id=run.run_id, task_id=TASK_ID)
    ).one()
    return ti, run


def _delete_state(session: Any) -> None:
    """Do what clearing a task does from Airflow 3.4 on."""
    from airflow.models.task_state_store import TaskStateStoreModel
    from sqlalchemy import delete

    session.execute(delete(TaskStateStoreModel).filter_by(dag_id=DAG_ID))


def _state() -> dict[str, Any]:
    from airflow.utils.session import create_session

    with create_session() as session:
        ti, _ = _instance(session)
        return {"state": str(ti.state), "try": ti.try_number}


if __name__ == "__main__":
    main()
