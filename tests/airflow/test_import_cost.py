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


def test_importing_operators_and_sensors_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    heavy = json.loads(done.stdout.rpartition("RESULT")[2])
    assert heavy == []
