"""A DAG file that imports ours must not pay for what only a running task needs."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("requests", "urllib3", "pendulum", "fsspec", "upath", "asgiref", "starlette", "airflow.triggers")

SCRIPT = f"""
import sys, json
from airflow.sdk import DAG
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, BaseSensorOperator, conf
before = set(sys.modules)
import airflow_provider_luma.operators.luma, airflow_provider_luma.sensors.luma
heavy = sorted(name for name in set(sys.modules) - before if name.startswith({HEAVY!r}))
print("RESULT" + json.dumps(heavy))
"""

PLUGIN = """
import sys, json
from airflow.providers.common.compat.sdk import AirflowPlugin
before = set(sys.modules)
import airflow_provider_luma.ui.plugin
print("RESULT" + json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_operators_and_sensors_imports_nothing_heavy() -> None:
    assert run(SCRIPT) == []


def test_the_plugin_which_every_process_loads_imports_nothing_else() -> None:
    assert {name.partition(".")[0] for name in run(PLUGIN)} <= {"airflow_provider_luma"}


def run(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules: list[str] = json.loads(done.stdout.rpartition("RESULT")[2])
    return modules
