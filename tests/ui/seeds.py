"""Dag runs whose clips the gallery shows: real runs on the sandbox, and one that attacks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from airflow_provider_luma.sandbox import Sandbox
from tests.airflow.harness import Run, run_source

PROMPTS = [
    "a paper boat crossing a puddle after the rain",
    "steam rising from a bowl of ramen, close up",
    "a lighthouse in a storm, seen from the sea",
    "blacklisted words, which the relay rejects",
    "two foxes chasing each other through fresh snow",
    "<img src=x onerror=alert(1)> a cat & a <b>dog</b>",
]

HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>"

_MAKE_CLIPS = """
    from airflow.sdk import DAG
    from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateOperator
    from airflow_provider_luma.sensors.luma import LumaTaskSensor

    with DAG({dag_id!r}, schedule=None) as dag:
        generate = LumaGenerateOperator.partial(task_id="generate", aspect_ratio="16:9").expand(
            prompt={prompts!r}
        )
        wait = LumaTaskSensor(
            task_id="wait", luma_task_ids=generate.output, fail_when="all", poke_interval=1, timeout=600
        )
        LumaDownloadOperator(
            task_id="download",
            luma_task_ids=wait.output,
            destination={destination!r},
            media={media!r},
        )
"""

_MAKE_BATCH = """
    from airflow.sdk import DAG
    from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateBatchOperator
    from airflow_provider_luma.sensors.luma import LumaTaskSensor

    with DAG({dag_id!r}, schedule=None) as dag:
        generate = LumaGenerateBatchOperator(task_id="generate", prompts={prompts!r})
        wait = LumaTaskSensor(
            task_id="wait", luma_task_ids=generate.output, fail_when="all", poke_interval=1, timeout=600
        )
        LumaDownloadOperator(
            task_id="download", luma_task_ids=wait.output, destination={destination!r}, manifest=True
        )
"""

_DOWNLOAD = """
    from airflow.sdk import DAG
    from airflow_provider_luma.operators.luma import LumaDownloadOperator

    with DAG({dag_id!r}, schedule=None) as dag:
        LumaDownloadOperator(
            task_id="download", luma_task_ids={ids!r}, destination={destination!r},
            media=["video", "thumbnail"], fail_when="never",
        )
"""

_BY_HAND = """
    from airflow.sdk import DAG, task

    with DAG({dag_id!r}, schedule=None) as dag:
        for task_id, value in {values!r}.items():
            @task(task_id=task_id)
            def push(value):
                return value

            push(value)
"""


def make_clips(
    dag_id: str,
    destination: str,
    prompts: Sequence[str] = PROMPTS,
    media: Sequence[str] = ("video", "thumbnail"),
) -> Run:
    """Generate, wait and download, of which one prompt fails."""
    return run_source(dag_id, clips_source(dag_id, destination, prompts, media))


def make_batch(dag_id: str, destination: str) -> Run:
    """Generate in one task, of which one prompt fails, and download with a manifest."""
    return run_source(dag_id, _MAKE_BATCH.format(dag_id=dag_id, prompts=PROMPTS, destination=destination))


def clips_source(
    dag_id: str, destination: str, prompts: Sequence[str], media: Sequence[str] = ("video",)
) -> str:
    """Return the file of a Dag that generates, waits and downloads."""
    return textwrap.dedent(_MAKE_CLIPS).format(
        dag_id=dag_id, prompts=list(prompts), destination=destination, media=list(media)
    )


def download_clips(dag_id: str, sandbox: Sandbox, destination: str) -> Run:
    """Download all clips of a sandbox."""
    return run_source(dag_id, _DOWNLOAD.format(dag_id=dag_id, ids=sandbox.task_ids, destination=destination))


def write_by_hand(dag_id: str, records: Sequence[object], **others: object) -> Run:
    """Push what the author of a Dag wrote, instead of what the operator found; others by their tasks."""
    values = {"download": list(records), **others}
    return run_source(dag_id, _BY_HAND.format(dag_id=dag_id, values=values))


def record(clip_id: str, uri: object, **files: str) -> dict[str, object]:
    """Return a record as an author writes it."""
    return {
        "id": clip_id,
        "state": "completed",
        "prompt": clip_id,
        "video": {"uri": uri},
        **{kind: {"uri": value} for kind, value in files.items()},
        "status": "downloaded",
    }


def attacks(clips: str, secret: Path) -> list[dict[str, object]]:
    """Return what an author writes to read other files, and to run a script in the viewer's browser."""
    return [
        record("passwd", "file:///etc/passwd.mp4"),
        record("outside", secret.as_uri()),
        record("dots", f"{clips}/../{secret.name}"),
        record("other-bucket", "s3://gallery@my-bucket/clips/x.mp4"),
        record("other-key", "s3://gallery@bucket/private/x.mp4"),
        record("web", "https://example.com/x.mp4"),
        record("script", "javascript:alert(3)//x.mp4"),
        record(HTML, f"{clips}/{HTML}.mp4")
        | {"prompt": HTML, "error": HTML, "status": "partial", "state": HTML},
    ]
