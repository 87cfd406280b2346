"""Each fault and each second run, on every kind of store."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.arguments import IfExists
from airflow_provider_luma.download.archive import Archive, Archiver
from airflow_provider_luma.download.download import Downloader
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.exceptions import LinkExpiredError, ObjectExistsError
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedAnswer
from airflow_provider_luma.sandbox.footage import video

Run = Callable[..., Archive]
BYTES = 300_000


@pytest.fixture
def sandbox() -> Any:
    with Sandbox(tasks=6, seconds=0, fail=0, video_bytes=BYTES) as sandbox:
        yield sandbox


@pytest.fixture
def run(sandbox: Sandbox, downloader: Downloader, destination: ObjectStoragePath, staging: Staging) -> Run:
    relay = RelayClient(sandbox.api_key, sandbox.base_url)

    def run(ids: list[str] | None = None, **arguments: Any) -> Archive:
        archiver = Archiver(
            downloader,
            lambda task_id: relay.query_once([task_id]).get(task_id),
            destination,
            staging=staging,
            **{"link_timeout": 5} | arguments,
        )
        sandbox.downloads.clear()
        return archiver.archive(list(relay.get_tasks(ids or sandbox.task_ids).values()))

    return run


def film(task_id: str) -> bytes:
    return b"".join(video(task_id, BYTES).chunks(0, BYTES))


def holds(destination: ObjectStoragePath, ids: list[str]) -> bool:
    """Whether there are the films of these tasks with their records, byte by byte, and nothing else."""
    names = {path.name for path in destination.iterdir()}
    return names == {f"{task_id}{end}" for task_id in ids for end in (".mp4", ".json")} and all(
        (destination / f"{task_id}.mp4").read_bytes() == film(task_id)
        and json.loads((destination / f"{task_id}.json").read_text())["id"] == task_id
        for task_id in ids
    )


def statuses(archive: Archive) -> list[str]:
    return [record["status"] for record in archive.records]


def test_the_record_beside_a_video_is_that_of_the_run(
    sandbox: Sandbox, run: Run, destination: ObjectStoragePath
) -> None:
    archive = run()
    assert holds(destination, sandbox.task_ids)
    for record in archive.records:
        assert json.loads((destination / f"{record['id']}.json").read_text()) == record


@pytest.mark.parametrize("if_exists", [IfExists.SKIP, IfExists.FAIL])
def test_a_second_run_moves_nothing(sandbox: Sandbox, run: Run, if_exists: IfExists) -> None:
    first, again = run(), run(if_exists=if_exists)
    assert statuses(again) == ["unchanged"] * 6
    assert sandbox.downloads == []
    assert [record | {"status": "downloaded"} for record in again.records] == first.records


def test_a_second_run_moves_only_the_rest(sandbox: Sandbox, run: Run, destination: ObjectStoragePath) -> None:
    run(sandbox.task_ids[:3])
    assert statuses(run()) == ["unchanged"] * 3 + ["downloaded"] * 3
    assert len(sandbox.downloads) == 3
    assert holds(destination, sandbox.task_ids)


@pytest.mark.parametrize("what", ["no record", "a broken record", "another size", "no video"])
def test_what_no_record_vouches_for_is_moved_again(
    sandbox: Sandbox, run: Run, destination: ObjectStoragePath, what: str
) -> None:
    run()
    task_id = sandbox.task_ids[2]
    film, record = destination / f"{task_id}.mp4", destination / f"{task_id}.json"
    match what:
        case "no record":
            record.unlink()
        case "a broken record":
            record.write_text("{")
        case "another size":
            film.write_bytes(b"half")
        case "no video":
            film.unlink()
    assert statuses(run()) == ["unchanged"] * 2 + ["downloaded"] + ["unchanged"] * 3
    assert holds(destination, sandbox.task_ids)


def test_overwrite_moves_everything_again(sandbox: Sandbox, run: Run, destination: ObjectStoragePath) -> None:
    run()
    assert statuses(run(if_exists=IfExists.OVERWRITE)) == ["downloaded"] * 6
    assert holds(destination, sandbox.task_ids)


def test_fail_replaces_nothing_that_no_record_vouches_for(
    sandbox: Sandbox, run: Run, destination: ObjectStoragePath
) -> None:
    strange = destination / f"{sandbox.task_ids[0]}.mp4"
    strange.parent.mkdir(parents=True, exist_ok=True)
    strange.write_bytes(b"somebody's own film")
    archive = run(if_exists=IfExists.FAIL)
    assert isinstance(archive.errors[sandbox.task_ids[0]], ObjectExistsError)
    assert strange.read_bytes() == b"somebody's own film"
    assert len(sandbox.downloads) == len(archive.records) == 5


def test_the_name_of_another_task_is_not_taken(
    sandbox: Sandbox, run: Run, destination: ObjectStoragePath
) -> None:
    one, other = sandbox.task_ids[:2]
    run([one], name_template="clip")
    (error,) = run([other], name_template="clip").errors.values()
    assert isinstance(error, ObjectExistsError)
    assert one in str(error)
    assert (destination / "clip.mp4").read_bytes() == film(one)
    run([other], name_template="clip", if_exists=IfExists.OVERWRITE)
    assert (destination / "clip.mp4").read_bytes() == film(other)


def test_more_media_of_an_archived_task_come_without_the_video(
    sandbox: Sandbox, run: Run, destination: ObjectStoragePath
) -> None:
    run()
    again = run(media=["video", "thumbnail"])
    assert {download.path.rpartition("/")[2] for download in sandbox.downloads} == {"thumbnail.jpg"}
    assert all(record["video"] and record["thumbnail"] for record in again.records)
    run(media=["thumbnail"])
    assert sandbox.downloads == []
    assert statuses(run()) == ["unchanged"] * 6


def test_cut_downloads_are_put_together(sandbox: Sandbox, run: Run, destination: ObjectStoragePath) -> None:
    sandbox.faults = Faults(cut_downloads=0.6)
    assert run().errors == {}
    assert any("range" in download.headers for download in sandbox.downloads)
    assert holds(destination, sandbox.task_ids)


def test_refused_links_are_asked_for_again(
    sandbox: Sandbox, run: Run, destination: ObjectStoragePath
) -> None:
    sandbox.faults = Faults(refused_downloads=0.4)
    assert run(link_timeout=30).errors == {}
    assert holds(destination, sandbox.task_ids)


def test_what_is_no_media_gets_no_name(
    sandbox: Sandbox, downloader: Downloader, run: Run, destination: ObjectStoragePath
) -> None:
    page = ScriptedAnswer(body="<html>sorry</html>", content_type="text/html")
    sandbox.script_downloads(*[page] * 3)
    archive = run(max_parallel=1)
    assert list(archive.errors) == sandbox.task_ids[:1]
    assert "text/html" in str(archive.errors[sandbox.task_ids[0]])
    assert holds(destination, sandbox.task_ids[1:])


def test_a_stopped_run_leaves_nothing_and_the_next_one_completes_it(
    sandbox: Sandbox, run: Run, downloader: Downloader, destination: ObjectStoragePath, staging: Staging
) -> None:
    half = ScriptedAnswer(body=film(sandbox.task_ids[0]), content_type="video/mp4", cut=True)
    sandbox.script_downloads(*[half] * 3, *[ScriptedAnswer(delay=60)] * 6)
    threading.Timer(2.0, downloader.stop).start()
    stopped = run()
    assert {str(error) for error in stopped.errors.values()} == {"stopped"}
    assert [
        path for path in (destination, Path(staging.folder)) if path.exists() and list(path.iterdir())
    ] == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("luma-download")]
    downloader.stopped.clear()
    assert run().errors == {}
    assert holds(destination, sandbox.task_ids)


def test_a_link_that_never_comes_is_an_error_for_that_task(
    sandbox: Sandbox, run: Run, destination: ObjectStoragePath
) -> None:
    late = sandbox.add_task(seconds=0, link_delay=1000)
    archive = run(link_timeout=1)
    assert isinstance(archive.errors[late], LinkExpiredError)
    assert holds(destination, sandbox.task_ids[:6])
