"""Runs real DAGs with Airflow's own ``dag.test()`` and reads what became of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import DAGS

AIRFLOW = tuple(int(part) for part in importlib.metadata.version("apache-airflow").split(".")[:2])


@dataclass(frozen=True)
class Run:
    """A DAG run that has ended; states and tries are keyed by task id, of mapped tasks by ``id[index]``."""

    dag_id: str
    run_id: str
    states: Mapping[str, str]
    tries: Mapping[str, int]

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        query = select(XComModel.value).filter_by(
            dag_id=self.dag_id, run_id=self.run_id, task_id=task_id, key=key, map_index=map_index
        )
        with create_session() as session:
            value = session.scalars(query).first()
        return _loads(value) if isinstance(value, str) else value


def _loads(text: str) -> Any:
    """Read what XCom keeps as JSON; a text by itself it keeps as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def run_source(dag_id: str, source: str) -> Run:
    """Write a DAG file, run its DAG once and forget the file."""
    with _written(dag_id, source) as file:
        return run_dag(load_dag(file, dag_id))


def load_source(dag_id: str, source: str) -> Any:
    """Write a DAG file, load its DAG and forget the file."""
    with _written(dag_id, source) as file:
        return load_dag(file, dag_id)


@contextmanager
def _written(dag_id: str, source: str) -> Iterator[Path]:
    file = DAGS / f"{dag_id}.py"
    file.write_text(textwrap.dedent(source))
    try:
        yield file
    finally:
        file.unlink()


def load_dag(file: Path, dag_id: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"dags_{dag_id}", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(value for value in vars(module).values() if getattr(value, "dag_id", None) == dag_id)


def run_dag(dag: Any, **arguments: Any) -> Run:
    run = dag.test(**arguments)
    instances = run.get_task_instances()
    return Run(
        run.dag_id,
        run.run_id,
        {_name(instance): str(instance.state) for instance in instances},
        {_name(instance): instance.try_number for instance in instances},
    )


def _name(instance: Any) -> str:
    return instance.task_id if instance.map_index < 0 else f"{instance.task_id}[{instance.map_index}]"
