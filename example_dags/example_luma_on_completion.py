"""
### Download a clip as soon as it is finished

An asset watcher in the triggerer polls Luma tasks that somebody else submitted, and starts a run of this
Dag for each one that is completed or failed. It shares its requests with every waiting sensor of the
connection.
"""

from __future__ import annotations

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.triggers.event import LumaTaskEventTrigger

LUMA_TASK_IDS = ["4665a07c-7641-4809-a133-10786201bb56"]

clip = Asset(
    "luma-clip",
    watchers=[AssetWatcher(name="luma-tasks", trigger=LumaTaskEventTrigger(luma_task_ids=LUMA_TASK_IDS))],
)

with DAG(
    dag_id="example_luma_on_completion",
    schedule=[clip],
    catchup=False,
    doc_md=__doc__,
    tags=["example", "luma"],
) as dag:

    @task
    def completed(triggering_asset_events: dict) -> list[str]:
        payloads = [event.extra["payload"] for event in triggering_asset_events[clip]]
        return [payload["id"] for payload in payloads if payload["state"] == "completed"]

    LumaDownloadOperator(
        task_id="download",
        luma_task_ids=completed(),
        destination="file:///tmp/luma-clips",
        retries=2,
    )
