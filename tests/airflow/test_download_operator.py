from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaInputError
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer
from tests.airflow.harness import Run, run_source
from tests.stores import S3

pytestmark = pytest.mark.usefixtures("airflow_db")


def download(luma_task_ids: Any, destination: Any, **arguments: Any) -> Run:
    return run_source(
        "downloading",
        f"""
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaDownloadOperator

        with DAG("downloading", schedule=None, params={{"folder": "2024"}}) as dag:
            LumaDownloadOperator(
                task_id="archive",
                luma_task_ids={luma_task_ids!r},
                destination={str(destination)!r},
                **{ {"retries": 1, "retry_delay": 0} | arguments!r},
            )
        """,
    )


def ended(run: Run, state: str, tries: int = 1) -> bool:
    return (run.states["archive"], run.tries["archive"]) == (state, tries)


def names(folder: Path) -> set[str]:
    """Name all files but the records, of which each video must have one."""
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    records = {name for name in files if name.endswith(".json")}
    assert records == {f"{name.removesuffix('.mp4')}.json" for name in files if name.endswith(".mp4")}
    return files - records


def test_a_local_archive(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    run = download(ids, tmp_path.as_uri(), media=["video", "last_frame"])
    assert ended(run, "success")
    assert names(tmp_path) == {f"{i}{end}" for i in ids for end in (".mp4", ".last_frame.jpg")}
    assert [record["id"] for record in run.xcom("archive")] == ids


@pytest.mark.parametrize("where", ["in the url", "as an argument"])
def test_an_s3_archive(
    sandbox: Sandbox, s3: S3, monkeypatch: pytest.MonkeyPatch, where: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MY_S3", s3.connection())
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    prefix = where.replace(" ", "-")
    if where == "in the url":
        run = download(ids, f"s3://my_s3@bucket/{prefix}")
    else:
        run = download(ids, f"s3://bucket/{prefix}", storage_conn_id="my_s3")
    assert ended(run, "success")
    assert names(s3.folder / "bucket" / prefix) == {f"{task_id}.mp4" for task_id in ids}
    for record in run.xcom("archive"):
        assert record["video"]["uri"] == f"s3://bucket/{prefix}/{record['id']}.mp4"
        assert (
            record["id"].encode() in (s3.folder / record["video"]["uri"].removeprefix("s3://")).read_bytes()
        )


def test_templates_are_rendered(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0, prompt="cat dance")]
    run = download(
        json.dumps(ids),
        f"{tmp_path.as_uri()}/{{{{ params.folder }}}}",
        name_template="{{ dag.dag_id }}/{prompt}",
    )
    assert ended(run, "success")
    assert names(tmp_path) == {"2024/downloading/cat-dance.mp4"}


@pytest.mark.parametrize(
    ("fail_when", "state"), [("any", "failed"), ("all", "success"), ("never", "success")]
)
@pytest.mark.parametrize("what", ["failed", "missing"])
def test_failed_and_missing_tasks_count_by_fail_when(
    sandbox: Sandbox, tmp_path: Path, fail_when: str, state: str, what: str
) -> None:
    good = sandbox.add_task(seconds=0)
    bad = sandbox.add_task(seconds=0, fails="moderation", hidden=what == "missing")
    run = download([bad, good], tmp_path.as_uri(), fail_when=fail_when)
    assert ended(run, state)
    assert names(tmp_path) == {f"{good}.mp4"}
    assert [record["id"] for record in run.xcom("archive")] == [good]


def test_when_none_completed_all_is_failed(sandbox: Sandbox, tmp_path: Path) -> None:
    bad = sandbox.add_task(seconds=0, fails="moderation")
    assert ended(download([bad], tmp_path.as_uri(), fail_when="all"), "failed")
    assert ended(download([bad], tmp_path.as_uri(), fail_when="never"), "success")


def test_a_task_that_is_still_running_fails_with_airflows_retries_after_the_rest(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    run = download([endless, good], tmp_path.as_uri(), fail_when="never")
    assert ended(run, "failed", tries=2)
    assert names(tmp_path) == {f"{good}.mp4"}
    assert f"{endless}: still pending; wait for it with LumaTaskSensor" in capsys.readouterr().out


def test_a_broken_download_fails_with_airflows_retries_after_the_rest(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    sandbox.script_downloads(ScriptedAnswer(status=400))
    run = download(ids, tmp_path.as_uri(), retries=0)
    assert ended(run, "failed")
    assert len(names(tmp_path)) == len(run.xcom("archive")) == 2
    assert "2 of 3 Luma tasks archived" in capsys.readouterr().out
    sandbox.script_downloads(ScriptedAnswer(status=400))
    assert ended(download(ids, tmp_path.as_uri()), "success", tries=2)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_retried(sandbox: Sandbox, tmp_path: Path, status: int) -> None:
    sandbox.script(ScriptedAnswer(status=status, body={"message": "no"}))
    assert ended(download([sandbox.add_task()], tmp_path.as_uri()), "failed")
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("wrong", [{"name_template": "../{id}"}, {"name_template": "clip"}])
def test_names_that_cannot_be_fail_before_any_download(
    sandbox: Sandbox, tmp_path: Path, wrong: dict[str, str]
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    assert ended(download(ids, tmp_path.as_uri(), **wrong), "failed")
    assert sandbox.downloads == []


def test_a_store_without_its_provider_says_what_to_install(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(download([sandbox.add_task(seconds=0)], "gs://bucket/clips"), "failed")
    assert "pip install 'airflow-provider-luma[gcs]'" in capsys.readouterr().out
    assert sandbox.downloads == []


def test_nothing_to_archive_is_no_failure(sandbox: Sandbox, tmp_path: Path) -> None:
    run = download([], tmp_path.as_uri())
    assert ended(run, "success")
    assert run.xcom("archive") == []
    assert sandbox.requests == []


def test_neither_key_nor_signature_gets_out(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    sandbox.script_downloads(
        ScriptedAnswer(status=302, headers={"Location": f"{sandbox.base_url}/elsewhere"}),
    )
    run = download(ids, tmp_path.as_uri())
    everything = capsys.readouterr().out + json.dumps(run.xcom("archive"))
    assert sandbox.api_key not in everything
    assert "X-Amz-Signature" not in everything
    assert len(sandbox.downloads) >= 2
    assert not [request for request in sandbox.downloads if "authorization" in request.headers]
    assert not [r for r in sandbox.requests if r.path == "/elsewhere" and "authorization" in r.headers]


@pytest.mark.parametrize(
    "wrong", [{"media": ["film"]}, {"media": []}, {"max_parallel": 0}, {"fail_when": "sometimes"}]
)
def test_wrong_arguments_fail_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises((LumaInputError, ValueError), match=next(iter(wrong))):
        LumaDownloadOperator(task_id="archive", luma_task_ids=["a"], destination="file:///tmp", **wrong)
