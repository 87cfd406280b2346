"""
### Approve a list of prompts before it is paid for, then choose among the clips

Shows a table of prompts with the number of clips of each and, where the relay reports prices, their
cost. Nothing is submitted, and so nothing is paid, before somebody approves it under *Required Actions*. When
the clips are downloaded, somebody chooses the ones to keep:

```json
{"prompts": [{"prompt": "a paper boat crossing a puddle", "clips": 3, "aspect_ratio": "16:9"}],
 "destination": "s3://aws_default@my-bucket/clips"}
```

Needs Airflow 3.1 or newer; on 3.0 this file defines no Dag.
"""

from __future__ import annotations

from datetime import timedelta
from importlib.metadata import version
from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateBatchOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

HAS_REQUIRED_ACTIONS = tuple(map(int, version("apache-airflow").split(".")[:2])) >= (3, 1)

ROW = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string"},
        "clips": {"type": "integer", "minimum": 1},
        "aspect_ratio": {"type": "string"},
    },
}


def as_table(*rows: tuple[object, ...]) -> str:
    """Write rows as a table of Markdown, the first as its header."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def label(position: int, record: dict[str, Any]) -> str:
    return f"{position}: {(record['prompt'] or record['id'])[:50]}"


@dag(
    dag_id="example_luma_approval",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
    params={
        "prompts": Param([], type="array", items=ROW),
        "destination": Param("file:///tmp/luma-clips", type="string"),
    },
)
def approval() -> None:
    from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator

    @task
    def show(params: dict) -> str:
        hook = LumaHook()
        price, balance = hook.client.get_price(), hook.get_balance()
        rows = [(row["prompt"], row.get("clips", 1)) for row in params["prompts"]]
        total = sum(clips for _, clips in rows)
        if price is None:
            table = as_table(("prompt", "clips"), *rows, ("**total**", f"**{total}**"))
            return f"{table}\n\nThe relay does not report the price of a clip."
        table = as_table(
            ("prompt", "clips", "about"),
            *((prompt, clips, price * clips) for prompt, clips in rows),
            ("**total**", f"**{total}**", f"**{price * total}**"),
        )
        return f"{table}\n\nThe account has {balance}." if balance else table

    @task
    def repeat(params: dict) -> list[dict[str, str]]:
        rows = params["prompts"]
        return [
            {key: value for key, value in row.items() if key != "clips"}
            for row in rows
            for _ in range(row.get("clips", 1))
        ]

    approve = ApprovalOperator(task_id="approve", subject="Pay for these clips?", body=show())

    generate = LumaGenerateBatchOperator(
        task_id="generate",
        prompts=repeat(),
        max_generations=500,
        fail_when="all",
        execution_timeout=timedelta(hours=2),
    )
    wait = LumaTaskSensor(
        task_id="wait",
        luma_task_ids=generate.output,
        fail_when="all",
        deferrable=True,
        poke_interval=10,
        timeout=timedelta(hours=2),
    )
    download = LumaDownloadOperator(
        task_id="download",
        luma_task_ids=wait.output,
        destination="{{ params.destination }}",
        retries=2,
        retry_delay=timedelta(minutes=1),
    )

    @task
    def offer(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        clips = {label(position, record): record for position, record in enumerate(records, 1)}
        links = ((name, record["video"]["uri"]) for name, record in clips.items())
        return [{"options": list(clips), "body": as_table(("clip", "file"), *links)}] if clips else []

    # One item, whose options are known only now.
    choose = HITLOperator.partial(
        task_id="choose", subject="Which clips are kept?", multiple=True
    ).expand_kwargs(offer(download.output))

    @task
    def keep(records: list[dict[str, Any]], choices: list[dict[str, Any]]) -> list[str]:
        chosen = {name for choice in choices for name in choice["chosen_options"]}
        return [
            record["video"]["uri"]
            for position, record in enumerate(records, 1)
            if label(position, record) in chosen
        ]

    approve >> generate
    keep(download.output, choose.output)


if HAS_REQUIRED_ACTIONS:
    approval_dag = approval()
