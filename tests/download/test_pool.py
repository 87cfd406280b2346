from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.download.archive import Archive, Archiver
from airflow_provider_luma.download.download import Downloader
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.exceptions import LinkExpiredError, LumaValueError
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer

Run = Callable[..., Archive]


@pytest.fixture
def relay(sandbox: Sandbox) -> RelayClient:
    return RelayClient(sandbox.api_key, sandbox.base_url)


@pytest.fixture
def destination_url(tmp_path: Path) -> str:
    """A local folder, where a test does not ask for every store."""
    return (tmp_path / "clips").as_uri()


@pytest.fixture
def run(relay: RelayClient, downloader: Downloader, destination: ObjectStoragePath, staging: Staging) -> Run:
    """Archive what the relay says of these ids into the destination."""

    def run(ids: list[str], **arguments: Any) -> Archive:
        archiver = Archiver(
            downloader,
            lambda task_id: relay.query_once([task_id]).get(task_id),
            destination,
            staging=staging,
            **{"link_timeout": 5} | arguments,
        )
        return archiver.archive(list(relay.get_tasks(ids).values()))

    return run


def test_a_record_tells_all_of_a_video(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    task_id = sandbox.add_task(seconds=0, prompt="cat dance")
    (record,) = run([task_id]).records
    content = (tmp_path / f"clips/{task_id}.mp4").read_bytes()
    assert record.pop("created_at").endswith("+00:00")
    assert record == {
        "id": task_id,
        "state": "completed",
        "prompt": "cat dance",
        "aspect_ratio": "16:9",
        "duration": 2.0,
        "width": 640,
        "height": 360,
        "video": {
            "uri": (tmp_path / f"clips/{task_id}.mp4").as_uri(),
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "content_type": "video/mp4",
            "source": f"{sandbox.cdn_url}/dream-machine/{task_id}/video.mp4",
        },
        "thumbnail": None,
        "last_frame": None,
        "status": "downloaded",
    }


def test_each_task_gets_its_own_bytes_in_the_order_asked(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(20)]
    assert [record["id"] for record in run(ids).records] == ids
    for task_id in ids:
        assert task_id.encode() in (tmp_path / f"clips/{task_id}.mp4").read_bytes()


def test_pictures_come_on_request(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    task_id = sandbox.add_task(seconds=0)
    (record,) = run([task_id], media=["video", "thumbnail", "last_frame"]).records
    assert {file.name for file in (tmp_path / "clips").iterdir()} == {
        f"{task_id}{end}" for end in (".mp4", ".thumbnail.jpg", ".last_frame.jpg", ".json")
    }
    assert record["thumbnail"]["content_type"] == record["last_frame"]["content_type"] == "image/jpeg"


def test_one_failing_video_does_not_stop_the_others(
    sandbox: Sandbox, run: Run, tmp_path: Path, staging: Staging
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(6)]
    sandbox.script_downloads(ScriptedAnswer(status=400, body="no"))
    archive = run(ids)
    ((bad, error),) = archive.errors.items()
    assert "answered 400" in str(error)
    assert [record["id"] for record in archive.records] == [task_id for task_id in ids if task_id != bad]
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 5
    assert list(Path(staging.folder).iterdir()) == []


def test_a_link_that_comes_late_is_waited_for(sandbox: Sandbox, run: Run) -> None:
    archive = run([sandbox.add_task(seconds=0, link_delay=1.5)])
    assert len(archive.records) == 1


def test_a_refused_link_is_replaced_by_a_fresh_one(sandbox: Sandbox, run: Run) -> None:
    sandbox.script_downloads(ScriptedAnswer(status=403))
    assert len(run([sandbox.add_task(seconds=0)]).records) == 1
    assert len(sandbox.requests) == 2


def test_waiting_for_a_link_is_bounded(sandbox: Sandbox, run: Run) -> None:
    task_id = sandbox.add_task(seconds=0, link_delay=1000)
    started = time.monotonic()
    archive = run([task_id], link_timeout=1)
    assert isinstance(archive.errors[task_id], LinkExpiredError)
    assert time.monotonic() - started < 3


def test_names_are_judged_before_anything_is_downloaded(sandbox: Sandbox, run: Run) -> None:
    with pytest.raises(LumaValueError):
        run([sandbox.add_task(seconds=0), sandbox.add_task(seconds=0)], name_template="clip")
    assert sandbox.downloads == []


def test_no_more_than_max_parallel_are_under_way(sandbox: Sandbox, run: Run) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(6)]
    sandbox.script_downloads(*[ScriptedAnswer(body=b"x", content_type="video/mp4", delay=0.4)] * 6)
    run(ids, max_parallel=2)
    starts = sorted(download.at for download in sandbox.downloads)
    assert all(later - earlier >= 0.35 for earlier, later in zip(starts, starts[2:], strict=False))


def test_being_stopped_ends_all_and_leaves_nothing(
    sandbox: Sandbox, run: Run, stopped: threading.Event, staging: Staging, tmp_path: Path
) -> None:
    ids = [sandbox.add_task(seconds=0, link_delay=1000) for _ in range(20)]
    threading.Timer(0.5, stopped.set).start()
    started = time.monotonic()
    archive = run(ids, link_timeout=1000)
    assert time.monotonic() - started < 3
    assert archive.records == []
    assert list(Path(staging.folder).iterdir()) == []
    assert not (tmp_path / "clips").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("luma-download")]
