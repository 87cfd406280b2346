from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer
from tests.airflow.harness import AIRFLOW, Run, run_source
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


# Runs in a Python in which the distribution of this provider is not installed.
WITHOUT_PROVIDER = """
import importlib.metadata
import sys

import importlib_metadata  # which Airflow uses on Python 3.11

for metadata in (importlib.metadata, importlib_metadata):
    def without(installed=metadata.distributions, **how):
        return (found for found in installed(**how) if found.metadata["Name"] != sys.argv[1])
    metadata.distributions = without

from airflow_provider_luma.operators.luma import LumaDownloadOperator

try:
    LumaDownloadOperator(task_id="archive", luma_task_ids=["a"], destination=sys.argv[2])._folder()
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("scheme", "provider", "extra"),
    [("s3", "amazon", "s3"), ("gs", "google", "gcs"), ("abfs", "microsoft-azure", "azure")],
)
def test_a_store_without_its_provider_says_what_to_install(scheme: str, provider: str, extra: str) -> None:
    arguments = [f"apache-airflow-providers-{provider}", f"{scheme}://bucket/clips"]
    command = [sys.executable, "-c", WITHOUT_PROVIDER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"pip install 'airflow-provider-luma[{extra}]'" in done.stdout


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
    log = capsys.readouterr().out.splitlines()
    # dag.test() of Airflow 3.0 prints what it is told to mask.
    everything = "\n".join(line for line in log if "MaskSecret" not in line) + json.dumps(run.xcom("archive"))
    assert sandbox.api_key not in everything
    assert "X-Amz-Signature" not in everything
    assert len(sandbox.downloads) >= 2
    assert not [request for request in sandbox.downloads if "authorization" in request.headers]
    assert not [r for r in sandbox.requests if r.path == "/elsewhere" and "authorization" in r.headers]


@pytest.mark.parametrize(
    "wrong",
    [
        {"media": ["film"]},
        {"media": []},
        {"max_parallel": 0},
        {"fail_when": "sometimes"},
        {"if_exists": "ask"},
        {"max_bytes": 0},
        {"download_timeout": -1},
    ],
)
def test_wrong_arguments_fail_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises((LumaValueError, ValueError), match=next(iter(wrong))):
        LumaDownloadOperator(task_id="archive", luma_task_ids=["a"], destination="file:///tmp", **wrong)


def test_a_retry_moves_only_what_is_not_archived(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(6)]
    sandbox.script_downloads(*[ScriptedAnswer(status=400)] * 3)
    run = download(ids, tmp_path.as_uri(), retries=1)
    assert ended(run, "success", tries=2)
    assert len(sandbox.downloads) == 6 + 3
    assert (
        sorted(record["status"] for record in run.xcom("archive")) == ["downloaded"] * 3 + ["unchanged"] * 3
    )


@pytest.mark.parametrize(
    ("if_exists", "state", "downloads"), [("overwrite", "success", 2), ("fail", "failed", 1)]
)
def test_if_exists_is_heeded(
    sandbox: Sandbox, tmp_path: Path, if_exists: str, state: str, downloads: int
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    (tmp_path / f"{ids[0]}.mp4").write_bytes(b"somebody's own film")
    run = download(ids, tmp_path.as_uri(), if_exists=if_exists, retries=0)
    assert ended(run, state)
    assert len(sandbox.downloads) == downloads


@pytest.mark.parametrize(("manifest", "name"), [(True, "manifest.jsonl"), ("{{ run_id }}/all.jsonl", None)])
def test_a_manifest_has_a_line_for_each_id_and_xcom_has_its_address(
    sandbox: Sandbox, tmp_path: Path, manifest: bool | str, name: str | None
) -> None:
    good, bad = sandbox.add_task(seconds=0), sandbox.add_task(seconds=0, fails="moderation")
    missing = sandbox.add_task(hidden=True)
    run = download([good, bad, missing], tmp_path.as_uri(), manifest=manifest, fail_when="all")
    file = tmp_path / (name or f"{run.run_id}/all.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["video"]["size"] == (tmp_path / f"{good}.mp4").stat().st_size
    assert lines[1:] == [
        {"id": bad, "state": "failed", "status": "failed", "error": "moderation"},
        {"id": missing, "state": None, "status": "missing", "error": "the relay does not know this id"},
    ]
    assert run.xcom("archive") == {
        "manifest": f"file://{file}",
        "completed": 1, "downloaded": 1, "unchanged": 0, "errors": 0, "failed": 1, "missing": 1, "running": 0,
        "bytes": lines[0]["video"]["size"],
    }  # fmt: skip


def test_a_manifest_is_written_also_when_the_task_fails(sandbox: Sandbox, tmp_path: Path) -> None:
    good, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    broken = sandbox.add_task(seconds=0)
    sandbox.script_downloads(ScriptedAnswer(status=400))
    run = download([broken, endless, good], tmp_path.as_uri(), manifest=True, retries=0, max_parallel=1)
    assert ended(run, "failed")
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["error", "running", "downloaded"]
    assert run.xcom("archive")["errors"] == 1


def test_mapped_tasks_write_a_manifest_each(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    run_source(
        "mapped_archive",
        f"""
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaDownloadOperator

        with DAG("mapped_archive", schedule=None) as dag:
            LumaDownloadOperator.partial(
                task_id="archive", destination={tmp_path.as_uri()!r}, manifest=True
            ).expand(luma_task_ids={ids!r})
        """,
    )
    assert names(tmp_path) >= {"manifest-0.jsonl", "manifest-1.jsonl"}


@pytest.mark.parametrize("manifest", ["../all.jsonl", "/etc/all.jsonl", "a//b"])
def test_a_manifest_stays_below_the_destination(sandbox: Sandbox, tmp_path: Path, manifest: str) -> None:
    run = download([sandbox.add_task(seconds=0)], tmp_path.as_uri(), manifest=manifest)
    assert ended(run, "failed")
    assert sandbox.downloads == []


def test_an_archive_over_its_time_ends_soon_and_leaves_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    sandbox.script_downloads(*[ScriptedAnswer(delay=60)] * 3)
    started = time.monotonic()
    run = run_source(
        "too_slow",
        f"""
        from datetime import timedelta
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaDownloadOperator

        with DAG("too_slow", schedule=None) as dag:
            LumaDownloadOperator(
                task_id="archive", luma_task_ids={ids!r}, destination={tmp_path.as_uri()!r},
                execution_timeout=timedelta(seconds=1),
            )
        """,
    )
    assert ended(run, "failed")
    assert (
        time.monotonic() - started < 20
    )  # of the sixty that the downloads would take; Airflow itself takes some
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("luma-download")]


@pytest.mark.skipif(AIRFLOW < (3, 1), reason="dag.test() of Airflow 3.0 fails every task that has an outlet")
def test_assets_learn_what_is_new(sandbox: Sandbox, tmp_path: Path) -> None:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    run_source(
        "with_outlets",
        f"""
        from airflow.sdk import DAG, Asset, AssetAlias
        from airflow_provider_luma.operators.luma import LumaDownloadOperator

        with DAG("with_outlets", schedule=None) as dag:
            LumaDownloadOperator(
                task_id="archive", luma_task_ids={ids!r}, destination={tmp_path.as_uri()!r},
                outlets=[Asset("luma-clips"), AssetAlias("luma-archive")],
            )
        """,
    )
    query = select(AssetModel.uri, AssetEvent.extra).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
    with create_session() as session:
        events = dict(session.execute(query.where(AssetEvent.source_dag_id == "with_outlets")).all())
    assert set(events) == {"luma-clips", tmp_path.as_uri()}
    for extra in events.values():
        assert extra["completed"] == extra["downloaded"] == 2
        assert extra["bytes"] == sum(file.stat().st_size for file in tmp_path.glob("*.mp4"))


def executed(sandbox: Sandbox, tmp_path: Path) -> tuple[LumaDownloadOperator, list[dict[str, Any]]]:
    """Run the operator without a DAG."""
    operator = LumaDownloadOperator(
        task_id="archive",
        luma_task_ids=[sandbox.add_task(seconds=0) for _ in range(2)],
        destination=tmp_path.as_uri(),
    )
    return operator, operator.execute({"outlet_events": {}})  # type: ignore[return-value,typeddict-item]


def test_hook_lineage_names_each_object_and_where_it_came_from(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.common.compat.sdk import get_hook_lineage_collector

    airflow_lineage = sys.modules[get_hook_lineage_collector.__module__]
    collector = airflow_lineage.HookLineageCollector()  # the one that is there once a plugin reads lineage
    monkeypatch.setattr(airflow_lineage, "get_hook_lineage_collector", lambda: collector)
    monkeypatch.setattr(
        "airflow.providers.common.compat.sdk.get_hook_lineage_collector", lambda: collector, raising=False
    )
    _, records = executed(sandbox, tmp_path)
    collected = collector.collected_assets
    assert {info.asset.uri for info in collected.outputs} == {record["video"]["uri"] for record in records}
    assert {info.asset.uri for info in collected.inputs} == {record["video"]["source"] for record in records}


def test_openlineage_learns_of_inputs_and_outputs(sandbox: Sandbox, tmp_path: Path) -> None:
    operator, records = executed(sandbox, tmp_path)
    facets = operator.get_openlineage_facets_on_complete(None)
    assert [(output.namespace, output.name) for output in facets.outputs] == [
        ("file", record["video"]["uri"].removeprefix("file://")) for record in records
    ]
    assert [f"{source.namespace}/{source.name}" for source in facets.inputs] == [
        record["video"]["source"] for record in records
    ]


def test_an_operator_can_be_copied_before_and_after_it_ran(sandbox: Sandbox, tmp_path: Path) -> None:
    operator, _ = executed(sandbox, tmp_path)
    assert copy.deepcopy(LumaDownloadOperator(task_id="a", luma_task_ids=["x"], destination="file:///a"))
    operator.on_kill()
