"""
### From prompts to downloaded clips

Submits a generation for each prompt, waits for all of them in the triggerer, and puts the finished videos
into object storage, each with a record of its metadata beside it:

```json
{"prompts": ["a paper boat crossing a puddle"], "destination": "s3://aws_default@my-bucket/clips"}
```

Each prompt costs what the relay charges for it, once: a submit that may have arrived is never sent again. A
prompt that the relay rejects fails its own task instance, and the other clips are downloaded. For more than
about 50 prompts see `example_luma_batch`, which submits them in one task.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(
    dag_id="example_luma_generate",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
    params={
        "prompts": Param([], type="array", items={"type": "string"}),
        "destination": Param("file:///tmp/luma-clips", type="string"),
    },
) as dag:

    @task
    def prompts(params: dict) -> list[str]:
        return params["prompts"]

    generate = LumaGenerateOperator.partial(
        task_id="generate",
        aspect_ratio="16:9",
        map_index_template="{{ task.prompt[:40] }}",
        execution_timeout=timedelta(hours=1),  # a rate limit is waited out until then
    ).expand(prompt=prompts())

    wait = LumaTaskSensor(
        task_id="wait",
        luma_task_ids=generate.output,
        trigger_rule="all_done",  # also when a prompt was rejected
        fail_when="all",
        deferrable=True,
        poke_interval=10,
        timeout=timedelta(hours=2),
    )
    LumaDownloadOperator(
        task_id="download",
        luma_task_ids=wait.output,
        destination="{{ params.destination }}",
        retries=2,
        retry_delay=timedelta(minutes=1),
    )
