"""Runs the DAG of a file, whose tasks take an hour at the relay, until the process is killed."""

from __future__ import annotations

import json
import os
import runpy
import sys

from airflow_provider_luma.sandbox import Sandbox

if __name__ == "__main__":
    with Sandbox(tasks=0, seconds=3600) as sandbox:
        os.environ["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps(sandbox.connection)
        runpy.run_path(sys.argv[1])["dag"].test()
