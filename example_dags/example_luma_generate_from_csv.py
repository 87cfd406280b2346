"""
### From a table of prompts in object storage to downloaded clips

Reads a CSV file with the columns `prompt` and, if you like, `aspect_ratio`, from any object storage, and does
with each row what `example_luma_generate` does with a prompt:

```json
{"table": "s3://aws_default@my-bucket/prompts.csv", "destination": "s3://aws_default@my-bucket/clips"}
```
"""

from __future__ import annotations

import csv
from datetime import timedelta

from airflow.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(
    dag_id="example_luma_generate_from_csv",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
    params={
        "table": Param("file:///tmp/prompts.csv", type="string"),
        "destination": Param("file:///tmp/luma-clips", type="string"),
    },
) as dag:

    @task
    def rows(params: dict) -> list[dict[str, str]]:
        lines = ObjectStoragePath(params["table"]).read_text().splitlines()
        return [
            {"prompt": row["prompt"], "aspect_ratio": row.get("aspect_ratio") or "16:9"}
            for row in csv.DictReader(lines)
        ]

    generate = LumaGenerateOperator.partial(task_id="generate").expand_kwargs(rows())

    wait = LumaTaskSensor(
        task_id="wait",
        luma_task_ids=generate.output,
        fail_when="all",
        deferrable=True,
        poke_interval=10,
        timeout=timedelta(hours=2),
    )
    LumaDownloadOperator(
        task_id="download",
        luma_task_ids=wait.output,
        destination="{{ params.destination }}",
        manifest="{{ run_id }}.jsonl",
        retries=2,
        retry_delay=timedelta(minutes=1),
    )
