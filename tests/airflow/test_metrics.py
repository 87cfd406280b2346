"""Metrics as they arrive at a real StatsD port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter

from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse

SCRIPT = """
import asyncio, contextlib, sys, tempfile, time

with contextlib.suppress(ImportError):
    import airflow.sdk.serde  # starts metrics on Airflow 3.2; every worker and triggerer imports it
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.metrics import count_tasks
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.relay import TaskBatch
from airflow_provider_luma.triggers.luma import LumaTaskTrigger

async def wait():
    trigger = LumaTaskTrigger(
        luma_task_ids=sys.argv[1:],
        luma_conn_id="luma_default",
        state=TaskBatch(sys.argv[1:], started_at=time.time()).dump(),
        timeout=20,
        poke_interval=1,
    )
    return [event async for event in trigger.run()]

asyncio.run(wait())
LumaHook().get_balance()
count_tasks({"completed": 2, "failed": 1, "missing": 0})

with tempfile.TemporaryDirectory() as folder:
    for _ in range(2):
        LumaDownloadOperator(
            task_id="download", luma_task_ids=sys.argv[1:], destination=f"file://{folder}"
        ).execute({"outlet_events": {}})
"""


def test_requests_tasks_and_pauses_are_counted() -> None:
    with (
        Sandbox(tasks=0, balance=12.5) as sandbox,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd,
    ):
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(0.5)
        ids = [sandbox.add_task(seconds=0) for _ in range(3)]
        sandbox.script(ScriptedResponse(status=429), ScriptedResponse(status=503))
        environment = os.environ | {
            "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection),
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_PORT": str(statsd.getsockname()[1]),
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
        }
        subprocess.run([sys.executable, "-c", SCRIPT, *ids], env=environment, check=True, capture_output=True)
        messages = received(statsd)
    counted = Counter(message.partition(":")[0] for message in messages)
    assert "airflow.luma.balance,conn_id=luma_default,unit=USD:12.5|g" in messages
    assert counted["airflow.luma.requests,outcome=ok"] == 3 + 4  # the tasks, and the balance with its unit
    assert counted["airflow.luma.requests,outcome=rate_limited"] == 1
    assert counted["airflow.luma.requests,outcome=transient_error"] == 1
    assert counted["airflow.luma.request_duration"] == 5 + 4
    assert counted["airflow.luma.videos,outcome=downloaded"] == 1
    assert counted["airflow.luma.videos,outcome=unchanged"] == 1
    assert counted["airflow.luma.bytes"] == counted["airflow.luma.download_duration"] == 2
    assert counted["airflow.luma.rate_limit_pauses,conn_id=luma_default"] == 1
    assert counted["airflow.luma.pending_ids,conn_id=luma_default"] == 1
    assert counted["airflow.luma.tasks,state=completed"] == counted["airflow.luma.tasks,state=failed"] == 1
    assert counted["airflow.luma.tasks,state=missing"] == 0
    assert not [name for name in counted if any(task_id in name for task_id in ids)]


def received(statsd: socket.socket) -> list[str]:
    messages: list[str] = []
    while True:
        try:
            messages += statsd.recv(65536).decode().splitlines()
        except TimeoutError:
            return messages
