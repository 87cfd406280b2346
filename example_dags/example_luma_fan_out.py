"""
### Download thousands of Luma clips in chunks

One mapped sensor and one mapped download per chunk of ids: the chunks are downloaded side by side on all
workers, and a chunk that fails is retried alone. The sensors wait in the triggerer, where all of them share
the requests to the relay.

Map over chunks rather than single ids: Airflow maps over at most `[core] max_map_length` (1024) items, and
one request queries a hundred ids anyway.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(
    dag_id="example_luma_fan_out",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
    params={
        "luma_task_ids": Param([], type="array", items={"type": "string"}),
        "destination": Param("file:///tmp/luma-clips", type="string"),
        "chunk_size": Param(100, type="integer", minimum=1),
    },
) as dag:

    @task
    def chunks(params: dict) -> list[list[str]]:
        ids, size = params["luma_task_ids"], params["chunk_size"]
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    wait = LumaTaskSensor.partial(
        task_id="wait", fail_when="never", deferrable=True, poke_interval=10, timeout=timedelta(hours=2)
    ).expand(luma_task_ids=chunks())

    LumaDownloadOperator.partial(
        task_id="download",
        destination="{{ params.destination }}",
        retries=2,
        retry_delay=timedelta(minutes=1),
    ).expand(luma_task_ids=wait.output)
