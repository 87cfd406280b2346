from __future__ import annotations

import copy
import json
import math
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from airflow_provider_luma.exceptions import DownloadError, LumaValueError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.destination import open_store
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.relay.task import parse_tasks
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from tests.airflow.harness import AIRFLOW, Run, run_source
from tests.serving import Quiet, serving
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
                task_id="download",
                luma_task_ids={luma_task_ids!r},
                destination={str(destination)!r},
                **{ {"retries": 1, "retry_delay": 0} | arguments!r},
            )
        """,
    )


def ended(run: Run, state: str, tries: int = 1) -> bool:
    return (run.states["download"], run.tries["download"]) == (state, tries)


def names(folder: Path) -> set[str]:
    """Name all files but the sidecars, of which each video must have one."""
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    records = {name for name in files if name.endswith(".json")}
    assert records >= {f"{name.removesuffix('.mp4')}.json" for name in files if name.endswith(".mp4")}
    return files - records


def test_videos_are_downloaded_to_a_local_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    run = download(ids, tmp_path.as_uri(), media=["video", "last_frame"])
    assert ended(run, "success")
    assert names(tmp_path) == {f"{i}{end}" for i in ids for end in (".mp4", ".last_frame.jpg")}
    assert [record["id"] for record in run.xcom("download")] == ids


@pytest.mark.parametrize("where", ["in the url", "as an argument"])
def test_videos_are_downloaded_to_s3(
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
    for record in run.xcom("download"):
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
def test_failed_and_missing_tasks_respect_fail_when(
    sandbox: Sandbox, tmp_path: Path, fail_when: str, state: str, what: str
) -> None:
    good = sandbox.add_task(seconds=0)
    bad = sandbox.add_task(seconds=0, failure_reason="moderation", never_visible=what == "missing")
    run = download([bad, good], tmp_path.as_uri(), fail_when=fail_when)
    assert ended(run, state)
    assert names(tmp_path) == {f"{good}.mp4"}
    assert [record["id"] for record in run.xcom("download")] == [good]


def test_fail_when_all_fails_if_no_task_completed(sandbox: Sandbox, tmp_path: Path) -> None:
    bad = sandbox.add_task(seconds=0, failure_reason="moderation")
    assert ended(download([bad], tmp_path.as_uri(), fail_when="all"), "failed")
    assert ended(download([bad], tmp_path.as_uri(), fail_when="never"), "success")


def test_a_task_that_is_still_running_fails_with_airflows_retries_after_the_rest(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    run = download([endless, good], tmp_path.as_uri(), fail_when="never")
    assert ended(run, "failed", tries=2)
    assert names(tmp_path) == {f"{good}.mp4"}
    log = capsys.readouterr().out
    assert f"{endless}: still pending" in log
    assert "wait with LumaTaskSensor for tasks that are still running" in log


def test_a_broken_download_fails_with_airflows_retries_after_the_rest(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    sandbox.script_downloads(ScriptedResponse(status=400))
    run = download(ids, tmp_path.as_uri(), retries=0)
    assert ended(run, "failed")
    assert len(names(tmp_path)) == len(run.xcom("download")) == 2
    assert "2 of 3 Luma tasks downloaded" in capsys.readouterr().out
    sandbox.script_downloads(ScriptedResponse(status=400))
    assert ended(download(ids, tmp_path.as_uri()), "success", tries=2)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_permanent_error_is_not_retried(sandbox: Sandbox, tmp_path: Path, status: int) -> None:
    sandbox.script(ScriptedResponse(status=status, body={"message": "no"}))
    assert ended(download([sandbox.add_task()], tmp_path.as_uri()), "failed")
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("wrong", [{"name_template": "../{id}"}, {"name_template": "clip"}])
def test_invalid_names_fail_before_any_download(
    sandbox: Sandbox, tmp_path: Path, wrong: dict[str, str]
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    assert ended(download(ids, tmp_path.as_uri(), **wrong), "failed")
    assert sandbox.downloads == []


@pytest.mark.parametrize(
    ("scheme", "module", "extra"),
    [
        ("s3", "airflow.providers.amazon.aws.hooks.s3", "s3"),
        ("gs", "airflow.providers.google.cloud.hooks.gcs", "gcs"),
        ("abfs", "airflow.providers.microsoft.azure.hooks.wasb", "azure"),
    ],
)
def test_a_store_without_its_provider_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, scheme: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LumaValueError, match=rf"pip install 'airflow-provider-luma\[{extra}\]'"):
        open_store(f"{scheme}://conn@bucket/clips", None, max_parallel=1, fsync=True)


def test_nothing_to_download_is_no_failure(sandbox: Sandbox, tmp_path: Path) -> None:
    run = download([], tmp_path.as_uri())
    assert ended(run, "success")
    assert run.xcom("download") == []
    assert sandbox.requests == []


def test_neither_key_nor_signature_leaks(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    sandbox.script_downloads(
        ScriptedResponse(status=302, headers={"Location": f"{sandbox.base_url}/elsewhere"}),
    )
    run = download(ids, tmp_path.as_uri())
    log = capsys.readouterr().out.splitlines()
    # dag.test() of Airflow 3.0 prints what it is told to mask.
    everything = "\n".join(line for line in log if "MaskSecret" not in line) + json.dumps(
        run.xcom("download")
    )
    assert sandbox.api_key not in everything
    assert "X-Amz-Signature" not in everything
    assert len(sandbox.downloads) >= 2
    assert not [request for request in sandbox.downloads if "authorization" in request.headers]
    assert not [r for r in sandbox.requests if r.path == "/elsewhere" and "authorization" in r.headers]


@pytest.mark.parametrize("url", ["s3://AKIA1:5ec7e7@bucket/clips", "s3://AKIA1:5ec7e7@[bucket/clips"])
def test_a_secret_in_the_destination_is_an_error_that_does_not_show_it(url: str) -> None:
    with pytest.raises(LumaValueError, match="destination") as error:
        open_store(url, None, max_parallel=1, fsync=True)
    assert "5ec7e7" not in str(error.value)


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
        LumaDownloadOperator(task_id="download", luma_task_ids=["a"], destination="file:///tmp", **wrong)


def test_a_retry_downloads_only_what_is_missing(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(6)]
    sandbox.script_downloads(*[ScriptedResponse(status=400)] * 3)
    run = download(ids, tmp_path.as_uri(), retries=1)
    assert ended(run, "success", tries=2)
    assert len(sandbox.downloads) == 6 + 3
    assert (
        sorted(record["status"] for record in run.xcom("download")) == ["downloaded"] * 3 + ["unchanged"] * 3
    )


@pytest.mark.parametrize(
    ("if_exists", "state", "downloads"), [("overwrite", "success", 2), ("fail", "failed", 1)]
)
def test_if_exists_is_respected(
    sandbox: Sandbox, tmp_path: Path, if_exists: str, state: str, downloads: int
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    (tmp_path / f"{ids[0]}.mp4").write_bytes(b"somebody's own film")
    run = download(ids, tmp_path.as_uri(), if_exists=if_exists, retries=0)
    assert ended(run, state)
    assert len(sandbox.downloads) == downloads


def manifests(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jsonl"))


@pytest.mark.parametrize("manifest", [True, "{{ run_id }}/all.jsonl"])
def test_a_manifest_has_a_row_for_each_id_and_xcom_has_its_uri(
    sandbox: Sandbox, tmp_path: Path, manifest: bool | str
) -> None:
    good, bad = sandbox.add_task(seconds=0), sandbox.add_task(seconds=0, failure_reason="moderation")
    missing = sandbox.add_task(never_visible=True)
    run = download([good, bad, missing], tmp_path.as_uri(), manifest=manifest, fail_when="all")
    (file,) = manifests(tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["video"]["size"] == (tmp_path / f"{good}.mp4").stat().st_size
    assert lines[1:] == [
        {"id": bad, "state": "failed", "status": "failed", "error": "moderation"},
        {"id": missing, "state": None, "status": "missing", "error": "the relay does not know this id"},
    ]
    assert run.xcom("download") == {
        "manifest": f"file://{file}",
        "completed": 1, "downloaded": 1, "unchanged": 0, "errors": 0, "failed": 1, "missing": 1, "running": 0,
        "bytes": lines[0]["video"]["size"],
    }  # fmt: skip


def test_a_manifest_is_written_also_when_the_task_fails(sandbox: Sandbox, tmp_path: Path) -> None:
    good, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    broken = sandbox.add_task(seconds=0)
    sandbox.script_downloads(ScriptedResponse(status=400))
    run = download([broken, endless, good], tmp_path.as_uri(), manifest=True, retries=0, max_parallel=1)
    assert ended(run, "failed")
    (file,) = manifests(tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["error", "running", "downloaded"]
    assert run.xcom("download")["errors"] == 1


def test_mapped_tasks_write_a_manifest_each(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    run_source(
        "mapped_download",
        f"""
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaDownloadOperator

        with DAG("mapped_download", schedule=None) as dag:
            LumaDownloadOperator.partial(
                task_id="download", destination={tmp_path.as_uri()!r}, manifest=True
            ).expand(luma_task_ids={ids!r})
        """,
    )
    assert len(manifests(tmp_path)) == 2


def test_the_manifest_of_each_run_stays(sandbox: Sandbox, tmp_path: Path) -> None:
    runs = [download([sandbox.add_task(seconds=0)], tmp_path.as_uri(), manifest=True) for _ in range(2)]
    uris = [run.xcom("download")["manifest"] for run in runs]
    assert {f"file://{path}" for path in manifests(tmp_path)} == set(uris)
    assert len(set(uris)) == 2


def test_two_mapped_tasks_with_one_name_do_not_lose_a_video(sandbox: Sandbox, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0, prompt="a cat") for _ in range(2)]
    run = run_source(
        "one_name",
        f"""
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaDownloadOperator

        with DAG("one_name", schedule=None) as dag:
            LumaDownloadOperator.partial(
                task_id="download", destination={tmp_path.as_uri()!r}, name_template="{{prompt}}"
            ).expand(luma_task_ids={ids!r})
        """,
    )
    assert sorted(run.states.values()) == ["failed", "success"]
    winner = ids[0] if run.states["download[0]"] == "success" else ids[1]
    assert winner.encode() in (tmp_path / "a-cat.mp4").read_bytes()
    assert json.loads((tmp_path / "a-cat.json").read_text())["id"] == winner


def test_a_hostile_task_does_not_hurt_the_others(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [sandbox.add_task(seconds=0) for _ in range(5)]
    rows = [
        {"id": "emoji", "state": "completed", "prompt": "\ud83d", "video": {"url": "http://[broken"}},
        {"id": "link", "state": "completed", "video": {"url": "http://169.254.169.254/x.mp4?sig=hush"}},
        *({"id": i, "state": "completed", "video": {"url": url}} for i, url in urls(sandbox, good).items()),
    ]
    sandbox.script(*[ScriptedResponse(body=json.dumps(rows).encode())] * 2)
    run = download(["emoji", "link", *good], tmp_path.as_uri(), retries=0)
    assert ended(run, "failed")
    assert [record["id"] for record in run.xcom("download")] == good
    log = capsys.readouterr().out
    assert "emoji: 'http://[broken' is not a valid http or https URL" in log
    assert "link: The URL leads to 169.254.169.254" in log
    assert "hush" not in log


def urls(sandbox: Sandbox, ids: list[str]) -> dict[str, str]:
    tasks = RelayClient(sandbox.api_key, sandbox.base_url).get_tasks(ids)
    return {task.id: str(task.video and task.video.url) for task in tasks.values()}


def test_a_downloaded_video_is_in_xcom_although_its_thumbnail_failed(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (task_id,) = ids = [sandbox.add_task(seconds=0)]
    video = requests.get(urls(sandbox, ids)[task_id], timeout=10).content
    dead = ScriptedResponse(status=400)
    sandbox.script_downloads(ScriptedResponse(body=video, content_type="video/mp4"), dead)
    run = download(ids, tmp_path.as_uri(), media=["video", "thumbnail"], retries=0)
    assert ended(run, "failed")
    (record,) = run.xcom("download")
    assert record["video"]["size"] == len(video)
    assert record["thumbnail"] is None
    assert "responded 400" in record["error"]


def test_outlets_that_are_no_assets_only_warn(sandbox: Sandbox, tmp_path: Path) -> None:
    operator = LumaDownloadOperator(
        task_id="download",
        luma_task_ids=[sandbox.add_task(seconds=0)],
        destination=tmp_path.as_uri(),
        outlets=["no asset"],
    )
    (record,) = operator.execute({"outlet_events": {}})  # type: ignore[typeddict-item]
    assert record["status"] == "downloaded"  # type: ignore[index]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_stop_while_the_relay_hangs_ends_within_two_seconds(
    connect: Any, sandbox: Sandbox, tmp_path: Path, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connect(
            sandbox, proxies=dict.fromkeys(["http", "https"], f"http://127.0.0.1:{silent.getsockname()[1]}")
        )
        operator = LumaDownloadOperator(
            task_id="download", luma_task_ids=["a"], destination=tmp_path.as_uri()
        )
        threading.Timer(0.5, operator.on_kill).start()
        started = time.monotonic()
        with pytest.raises(DownloadError, match="stopped"):
            operator.execute({"outlet_events": {}})  # type: ignore[typeddict-item]
        assert time.monotonic() - started < 2.5


def test_a_stop_while_the_connection_is_looked_up_ends_within_two_seconds(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LumaHook, "get_connection", lambda *_: time.sleep(30))
    operator = LumaDownloadOperator(
        task_id="download", luma_task_ids=[sandbox.add_task(seconds=0)], destination=tmp_path.as_uri()
    )
    threading.Timer(0.5, operator.on_kill).start()
    started = time.monotonic()
    with pytest.raises(DownloadError, match="stopped"):
        execute(operator)
    assert time.monotonic() - started < 2.5


def test_a_stop_while_the_store_hangs_ends_within_two_seconds(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AIRFLOW_CONN_SILENT", S3(url, tmp_path).connection())
        operator = LumaDownloadOperator(
            task_id="download",
            luma_task_ids=[sandbox.add_task(seconds=0)],
            destination="s3://silent@bucket/x",
            manifest="all.jsonl",
        )
        stopped_at: list[float] = []
        connections: list[Any] = []

        def stop() -> None:
            connections.append(silent.accept())  # and keep it open
            stopped_at.append(time.monotonic())
            operator.on_kill()

        threading.Thread(target=stop, daemon=True).start()
        with pytest.raises(DownloadError, match="Stopped when 0 of 1"):
            operator.execute({"outlet_events": {}})  # type: ignore[typeddict-item]
        assert time.monotonic() - stopped_at[0] < 2


def execute(operator: LumaDownloadOperator) -> Any:
    return operator.execute({"outlet_events": {}})  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "name", ["{}.mp4", "{}.json", "{}.MP4", "{}.thumbnail.png", "a\0b", "x" * 256, "é\ud83d"]
)
def test_a_manifest_rejects_invalid_names_and_those_of_videos(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    task_id = sandbox.add_task(seconds=0)
    operator = LumaDownloadOperator(
        task_id="download",
        luma_task_ids=[task_id],
        destination=tmp_path.as_uri(),
        manifest=name.replace("{}", task_id),
        if_exists="overwrite",
    )
    with pytest.raises(Exception, match=r"^manifest "):
        execute(operator)
    assert sandbox.downloads == []


@pytest.mark.parametrize(
    "content", ["somebody's notes", '{"id": 7}', '{"id": "a", "state": "", "status": "downloading"}']
)
def test_a_manifest_replaces_only_a_manifest_unless_it_overwrites(
    sandbox: Sandbox, tmp_path: Path, content: str
) -> None:
    def operator(**arguments: Any) -> LumaDownloadOperator:
        return LumaDownloadOperator(
            task_id="download",
            luma_task_ids=[task_id],
            destination=tmp_path.as_uri(),
            **{"manifest": "all.json"} | arguments,
        )

    task_id = sandbox.add_task(seconds=0)
    (tmp_path / "all.json").write_text(content)
    with pytest.raises(Exception, match="not a manifest"):
        execute(operator())
    assert (tmp_path / "all.json").read_text() == content
    assert sandbox.downloads == []
    execute(operator(if_exists="overwrite"))
    assert execute(operator())["unchanged"] == 1
    (tmp_path / "clip.json").write_bytes(
        (tmp_path / f"{task_id}.json").read_bytes().replace(task_id.encode(), b"clip")
    )
    with pytest.raises(Exception, match="not a manifest"):
        execute(operator(manifest="clip.json"))


def test_a_kill_before_execute_is_remembered(sandbox: Sandbox, tmp_path: Path) -> None:
    operator = LumaDownloadOperator(
        task_id="download", luma_task_ids=[sandbox.add_task(seconds=0)], destination=tmp_path.as_uri()
    )
    operator.on_kill()
    with pytest.raises(DownloadError, match="stopped"):
        execute(operator)
    assert sandbox.downloads == []


@pytest.mark.parametrize("manifest", ["../all.jsonl", "/etc/all.jsonl", "a//b"])
def test_a_manifest_stays_below_the_destination(sandbox: Sandbox, tmp_path: Path, manifest: str) -> None:
    run = download([sandbox.add_task(seconds=0)], tmp_path.as_uri(), manifest=manifest)
    assert ended(run, "failed")
    assert sandbox.downloads == []


def test_a_task_over_its_execution_timeout_ends_soon_and_leaves_no_file(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    sandbox.script_downloads(*[ScriptedResponse(delay=60)] * 3)
    started = time.monotonic()
    run = run_source(
        "too_slow",
        f"""
        from datetime import timedelta
        from airflow.sdk import DAG
        from airflow_provider_luma.operators.luma import LumaDownloadOperator

        with DAG("too_slow", schedule=None) as dag:
            LumaDownloadOperator(
                task_id="download", luma_task_ids={ids!r}, destination={tmp_path.as_uri()!r},
                execution_timeout=timedelta(seconds=1),
            )
        """,
    )
    assert ended(run, "failed")
    assert (
        time.monotonic() - started < 20
    )  # of the sixty that the downloads would take; Airflow itself takes some
    assert list(tmp_path.glob("*.mp4")) == []


@pytest.mark.skipif(AIRFLOW < (3, 1), reason="dag.test() of Airflow 3.0 fails every task that has an outlet")
def test_asset_events_name_the_new_objects(sandbox: Sandbox, tmp_path: Path) -> None:
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
                task_id="download", luma_task_ids={ids!r}, destination={tmp_path.as_uri()!r},
                outlets=[Asset("luma-clips"), AssetAlias("luma-downloads")],
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
        task_id="download",
        luma_task_ids=[sandbox.add_task(seconds=0) for _ in range(2)],
        destination=tmp_path.as_uri(),
    )
    return operator, operator.execute({"outlet_events": {}})  # type: ignore[return-value,typeddict-item]


def test_hook_lineage_names_each_object_and_its_source(
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


def test_a_long_url_and_lineage_do_not_fail_the_task(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.common.compat.sdk import get_hook_lineage_collector

    airflow_lineage = sys.modules[get_hook_lineage_collector.__module__]
    collector = airflow_lineage.HookLineageCollector()
    monkeypatch.setattr(airflow_lineage, "get_hook_lineage_collector", lambda: collector)
    monkeypatch.setattr(
        "airflow.providers.common.compat.sdk.get_hook_lineage_collector", lambda: collector, raising=False
    )
    task_id = sandbox.add_task(seconds=0)
    link = urls(sandbox, [task_id])[task_id]
    path = urlsplit(link).path
    with serving(far_away(requests.get(link, timeout=10).content)) as address:
        rows = [{"id": task_id, "state": "completed", "video": {"url": f"{address}/{'x' * 1600}{path}"}}]
        monkeypatch.setattr(RelayClient, "get_tasks", lambda *_: parse_tasks(rows))
        folder = (tmp_path / ("y" * 200) / ("z" * 200)).as_uri()
        operator = LumaDownloadOperator(task_id="download", luma_task_ids=[task_id], destination=folder)
        (record,) = execute(operator)
    assert record["status"] == "downloaded"
    assert len(record["video"]["source"]) <= 500
    assert [info.asset.uri for info in collector.collected_assets.outputs] == [record["video"]["uri"]]


def far_away(content: bytes) -> type[Quiet]:
    class Cdn(Quiet):
        def do_GET(self) -> None:
            self.respond(content, "video/mp4")

    return Cdn


def test_an_error_in_lineage_only_warns(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("no collector today")

    monkeypatch.setattr(
        "airflow.providers.common.compat.sdk.get_hook_lineage_collector", broken, raising=False
    )
    _, records = executed(sandbox, tmp_path)
    assert {record["status"] for record in records} == {"downloaded"}
    assert "no collector today" in caplog.text


def test_an_error_in_metrics_only_warns(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no statsd today")

    monkeypatch.setattr("airflow_provider_luma.metrics.count_downloads", broken)
    _, records = executed(sandbox, tmp_path)
    assert {record["status"] for record in records} == {"downloaded"}
    assert "no statsd today" in caplog.text


def test_openlineage_gets_inputs_and_outputs(sandbox: Sandbox, tmp_path: Path) -> None:
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
