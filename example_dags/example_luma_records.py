"""
### Use the records of downloaded Luma clips

`LumaDownloadOperator` returns one record per video, plain JSON that any task can take: here a TaskFlow task
that sums up the downloads. A record names the object (`uri`), its size and sha256, and the
prompt, duration, width and height of the clip.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(
    dag_id="example_luma_records",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
    params={
        "luma_task_ids": Param([], type="array", items={"type": "string"}),
        "destination": Param("file:///tmp/luma-clips", type="string"),
    },
) as dag:

    @task(multiple_outputs=False)
    def sum_up(records: list[dict[str, Any]]) -> dict[str, Any]:
        for record in records:
            print(f"{record['prompt']}: {record['video']['uri']}")  # noqa: T201
        return {
            "clips": len(records),
            "seconds": sum(record["duration"] or 0 for record in records),
            "bytes": sum(record["video"]["size"] for record in records),
        }

    wait = LumaTaskSensor(
        task_id="wait",
        luma_task_ids="{{ params.luma_task_ids | tojson }}",
        deferrable=True,
        poke_interval=10,
        timeout=timedelta(hours=1),
    )
    download = LumaDownloadOperator(
        task_id="download",
        luma_task_ids=wait.output,
        destination="{{ params.destination }}",
        name_template="{created_at:%Y-%m-%d}/{id}",
    )
    sum_up(download.output)
