"""
### From thousands of prompts to downloaded clips

Reads a table of prompts from any object storage, JSONL or CSV, and submits all of them in one task. A line of
JSONL is a text, or an object with the fields of one generation:

```json
{"prompt": "a paper boat crossing a puddle after the rain", "aspect_ratio": "9:16"}
```

One sensor waits for all of the clips. They are downloaded in chunks, side by side on all workers, and a chunk
that fails is retried alone. Prompts that the relay rejects do not stop the others: the XCom `luma_submits` of
the task `generate` names them. Clear a task that failed: it continues, and pays for no prompt twice.

```json
{"prompts": "s3://aws_default@my-bucket/prompts.jsonl", "destination": "s3://aws_default@my-bucket/clips"}
```
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateBatchOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(
    dag_id="example_luma_batch",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
    params={
        "prompts": Param("file:///tmp/prompts.jsonl", type="string"),
        "destination": Param("file:///tmp/luma-clips", type="string"),
        "chunk_size": Param(100, type="integer", minimum=1),
    },
) as dag:
    generate = LumaGenerateBatchOperator(
        task_id="generate",
        prompts_path="{{ params.prompts }}",
        aspect_ratio="16:9",  # for prompts that give none
        fail_when="all",
        # On Airflow 3.0 to 3.2 a folder for its journal: without it a batch that failed cannot be continued.
        # state_path="s3://aws_default@my-bucket/_luma",
        retry_delay=timedelta(minutes=1),
        execution_timeout=timedelta(hours=6),  # a rate limit is waited out until then
    )
    wait = LumaTaskSensor(
        task_id="wait",
        luma_task_ids=generate.output,
        fail_when="all",
        deferrable=True,
        poke_interval=10,
        timeout=timedelta(hours=6),
    )

    @task
    def chunks(ids: list[str], params: dict) -> list[list[str]]:
        size = params["chunk_size"]
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    LumaDownloadOperator.partial(
        task_id="download",
        destination="{{ params.destination }}",
        manifest=True,
        retries=2,
        retry_delay=timedelta(minutes=1),
    ).expand(luma_task_ids=chunks(wait.output))
