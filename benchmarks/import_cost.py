"""Measures what a DAG file pays for importing our operators and sensors, beside its import of Airflow."""

from __future__ import annotations

import statistics
import subprocess
import sys

MEASURE = """
import sys, time
begun = time.perf_counter()
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, ObjectStoragePath
import airflow.providers.common.compat.sdk
airflow = time.perf_counter()
import airflow_provider_luma.operators.luma, airflow_provider_luma.sensors.luma
print(airflow - begun, time.perf_counter() - airflow, file=sys.stderr)
"""


def measure() -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    airflow, ours = map(float, done.stderr.splitlines()[-1].split())
    return airflow * 1000, ours * 1000


if __name__ == "__main__":
    runs = [measure() for _ in range(10)]
    for name, times in zip(("airflow.sdk", "ours"), zip(*runs, strict=True), strict=True):
        print(f"{name:<12} median {statistics.median(times):7.1f} ms   worst {max(times):7.1f} ms")
