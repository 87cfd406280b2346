"""
### Wait for Luma clips and download them

Waits, without holding a worker slot, until every task is completed or failed, then downloads the finished
videos to object storage. Trigger it with the ids of tasks that you have submitted, and the destination:

```json
{"luma_task_ids": ["4665a07c-7641-4809-a133-10786201bb56"], "destination": "s3://aws_default@my-bucket/clips"}
```

`fail_when="all"` downloads the completed clips even when others failed; the XCom `luma_summary` of the task
`wait` names those with their reasons.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(
    dag_id="example_luma_download",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
    params={
        "luma_task_ids": Param([], type="array", items={"type": "string"}),
        "destination": Param("file:///tmp/luma-clips", type="string"),
    },
) as dag:
    wait = LumaTaskSensor(
        task_id="wait",
        luma_task_ids="{{ params.luma_task_ids | tojson }}",
        fail_when="all",
        deferrable=True,
        poke_interval=10,
        timeout=timedelta(hours=1),
    )
    LumaDownloadOperator(
        task_id="download",
        luma_task_ids=wait.output,
        destination="{{ params.destination }}",
        media=["video", "thumbnail"],
    )
