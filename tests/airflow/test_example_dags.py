"""The example DAGs as users take them: imported without a connection, and run against the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.sandbox import Sandbox
from tests.airflow.harness import AIRFLOW, Run, load_dag, run_dag
from tests.airflow.hitl_client import Person, at_the_api
from tests.conftest import DAGS

EXAMPLES = Path(__file__).parents[2] / "example_dags"
# Required actions came with Airflow 3.1.
FROM_3_1 = {"example_luma_approval"}
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.py") if AIRFLOW >= (3, 1) or file.stem not in FROM_3_1)

pytestmark = pytest.mark.usefixtures("airflow_db")


def test_each_imports_without_a_connection_and_has_documentation() -> None:
    for name in NAMES:
        dag = load_dag(EXAMPLES / f"{name}.py", name)
        assert dag.doc_md.strip().startswith("### ")
        assert "luma" in dag.tags


def run(name: str, **conf: Any) -> Run:
    # dag.test() asks for the DAG in the DAG folder.
    file = DAGS / f"{name}.py"
    file.write_text((EXAMPLES / f"{name}.py").read_text())
    try:
        return run_dag(load_dag(file, name), run_conf=conf)
    finally:
        file.unlink()


def test_download_keeps_completed_videos_and_reports_failures(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0.5, failure_reason=None if n else "moderation") for n in range(4)]
    ran = run("example_luma_download", luma_task_ids=ids, destination=tmp_path.as_uri())
    assert set(ran.states.values()) == {"success"}
    assert ran.xcom("wait", "luma_summary")["failed"] == {ids[0]: "moderation"}
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {f"{i}{end}" for i in ids[1:] for end in (".mp4", ".thumbnail.jpg", ".json")}


def test_fan_out_downloads_chunk_by_chunk(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(5)]
    ran = run("example_luma_fan_out", luma_task_ids=ids, destination=tmp_path.as_uri(), chunk_size=2)
    assert set(ran.states.values()) == {"success"}
    assert {"download[0]", "download[1]", "download[2]"} <= ran.states.keys()
    assert [len(ran.xcom("download", map_index=n)) for n in range(3)] == [2, 2, 1]
    assert {file.stem for file in tmp_path.glob("*.mp4")} == set(ids)


def test_records_are_summed_up(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    ran = run("example_luma_records", luma_task_ids=ids, destination=tmp_path.as_uri())
    videos = list(tmp_path.rglob("*.mp4"))
    assert ran.xcom("sum_up") == {
        "clips": 3,
        "seconds": 6.0,
        "bytes": sum(video.stat().st_size for video in videos),
    }
    assert {video.stem for video in videos} == set(ids)


def test_the_records_are_plain_json(sandbox: Sandbox, tmp_path: Path) -> None:
    ran = run(
        "example_luma_records", luma_task_ids=[sandbox.add_task(seconds=0)], destination=tmp_path.as_uri()
    )
    (record,) = ran.xcom("download")
    assert json.loads(json.dumps(record)) == record


def test_prompts_become_downloaded_clips(sandbox: Sandbox, tmp_path: Path) -> None:
    prompts = ["cat dance", "a blacklisted dance", "dog dance", "a forbidden dance"]
    ran = run("example_luma_generate", prompts=prompts, destination=tmp_path.as_uri())
    assert [name for name, state in ran.states.items() if state != "success"] == ["generate[3]"]
    assert sorted(body["user_prompt"] for body in sandbox.submits) == sorted(prompts[:3])
    good, bad, other = (ran.xcom("generate", map_index=index) for index in range(3))
    assert ran.xcom("wait", "luma_summary")["failed"] == {bad: "Prompt contains blacklisted words"}
    assert {file.stem for file in tmp_path.glob("*.mp4")} == {good, other}


def test_a_batch_of_prompts_is_downloaded_in_chunks(sandbox: Sandbox, tmp_path: Path) -> None:
    table, clips = tmp_path / "prompts.jsonl", tmp_path / "clips"
    rows = [
        "cat dance",
        {"prompt": "dog dance", "aspect_ratio": "1:1"},
        "a forbidden dance",
        "a blacklisted dance",
        *(f"fox dance {number}" for number in range(3)),
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = run("example_luma_batch", prompts=table.as_uri(), destination=clips.as_uri(), chunk_size=2)
    assert set(ran.states.values()) == {"success"}
    assert {body["user_prompt"]: body["aspect_ratio"] for body in sandbox.submits} == {
        "cat dance": "16:9",
        "dog dance": "1:1",
        "a blacklisted dance": "16:9",
        **{f"fox dance {number}": "16:9" for number in range(3)},
    }
    assert ran.xcom("generate", "luma_submits")["rejected"].keys() == {"2"}
    completed = ran.xcom("wait")
    assert len(completed) == 5
    assert [ran.xcom("download", map_index=index)["downloaded"] for index in range(3)] == [2, 2, 1]
    assert {file.stem for file in clips.glob("*.mp4")} == set(completed)


@pytest.mark.skipif(AIRFLOW >= (3, 1), reason="Airflow 3.1 and newer have required actions")
@pytest.mark.parametrize("name", sorted(FROM_3_1))
def test_a_dag_for_newer_versions_imports_without_an_error(name: str) -> None:
    with pytest.raises(StopIteration):
        load_dag(EXAMPLES / f"{name}.py", name)


TABLE = [
    {"prompt": "cat | dance", "clips": 2, "aspect_ratio": "9:16"},
    {"prompt": "a forbidden dance"},
    {"prompt": "dog dance"},
]
requires_actions = pytest.mark.skipif(
    AIRFLOW < (3, 3),
    reason="before Airflow 3.3 a required action waits in a trigger, which dag.test() cannot run",
)


@requires_actions
def test_approved_prompts_are_paid_for_and_a_person_chooses_the_clips(
    connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    person = Person(approve=lambda options: ["Approve"], choose=lambda options: options[1:])
    with Sandbox(tasks=0, seconds=0.5, balance=20, price=0.35) as sandbox, at_the_api(person, monkeypatch):
        connect(sandbox)
        ran = run("example_luma_approval", prompts=TABLE, destination=tmp_path.as_uri())
    assert set(ran.states.values()) == {"success"}
    (shown,) = person.read("approve")
    assert shown["subject"] == "Pay for these clips?"
    assert "| cat \\| dance | 2 | 0.70 USD |" in shown["body"]
    assert "| **total** | **4** | **1.40 USD** |" in shown["body"]
    assert "The account has 20 USD" in shown["body"]
    assert [body["user_prompt"] for body in sandbox.submits].count("cat | dance") == 2
    assert len(sandbox.submits) == 3
    (offered,) = person.read("choose")
    assert len(offered["options"]) == 3
    kept, records = ran.xcom("keep"), ran.xcom("download")
    assert kept == [record["video"]["uri"] for record in records[1:]]
    assert ran.xcom("generate", "luma_submits")["rejected"].keys() == {"2"}


@requires_actions
def test_a_rejected_list_costs_nothing(
    connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    person = Person(approve=lambda options: ["Reject"])
    with Sandbox(tasks=0, billing=None) as sandbox, at_the_api(person, monkeypatch):
        connect(sandbox)
        ran = run("example_luma_approval", prompts=TABLE, destination=tmp_path.as_uri())
    assert sandbox.submits == []
    assert {ran.states[name] for name in ("generate", "wait", "download")} == {"skipped"}
    (shown,) = person.read("approve")
    assert "| **total** | **4** |" in shown["body"]
    assert "The relay does not report the price of a clip." in shown["body"]
