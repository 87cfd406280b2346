from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.arguments import IfExists
from airflow_provider_luma.download.fresh_links import FreshLinks
from airflow_provider_luma.download.pool import DownloadPool
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.stores.base import NamedStore
from airflow_provider_luma.download.task_download import DownloadOptions, TaskDownloader
from airflow_provider_luma.exceptions import LinkExpiredError, LumaValueError, ObjectExistsError
from airflow_provider_luma.operators.destination import open_store
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask, parse_tasks
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from tests.download.conftest import Run, create_downloader
from tests.stores import S3


@pytest.fixture
def destination_url(tmp_path: Path) -> str:
    """A local folder, where a test does not need every store."""
    return (tmp_path / "clips").as_uri()


def test_a_record_describes_a_video(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    task_id = sandbox.add_task(seconds=0, prompt="cat dance")
    (record,) = run([task_id]).records
    content = (tmp_path / f"clips/{task_id}.mp4").read_bytes()
    assert str(record.pop("created_at")).endswith("+00:00")  # type: ignore[misc]
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


def test_each_task_gets_its_own_bytes_in_the_requested_order(
    sandbox: Sandbox, run: Run, tmp_path: Path
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(20)]
    assert [record["id"] for record in run(ids).records] == ids
    for task_id in ids:
        assert task_id.encode() in (tmp_path / f"clips/{task_id}.mp4").read_bytes()


def test_images_come_on_request(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
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
    sandbox.script_downloads(ScriptedResponse(status=400, body="no"))
    result = run(ids)
    ((bad, error),) = result.errors.items()
    assert "responded 400" in str(error)
    assert [record["id"] for record in result.records] == [task_id for task_id in ids if task_id != bad]
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 5
    assert list(Path(staging.folder).iterdir()) == []


HOSTILE_ROWS: dict[str, dict[str, Any]] = {
    "half an emoji": {"request": {"prompt": "a cat \ud83d"}},
    "a NUL": {"request": {"prompt": "a\0cat", "aspect_ratio": "16\0:9"}},
    "not a URL": {"video": {"url": "http://[broken"}},
    "a URL with a surrogate": {"video": {"url": "http://127.0.0.1/\ud83d.mp4"}},
    "a host that no resolver takes": {"video": {"url": "http://" + "a" * 300 + ".com/x.mp4"}},
    "a label that is too long": {"video": {"url": "http://xn--\u00df\u2024\u0301.example/x.mp4"}},
    "an impossible port": {"video": {"url": "http://127.0.0.1:99999999999/x.mp4"}},
    "a URL of a megabyte": {"video": {"url": "http://127.0.0.1/" + "x" * 2**20}},
    "a URL with controls": {"video": {"url": "http://127.0.0.1:1/\r\nHost: evil\x00"}},
}


def test_a_hostile_row_is_the_error_of_its_task_only(
    sandbox: Sandbox, relay: RelayClient, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [sandbox.add_task(seconds=0) for _ in range(10)]
    rows = [task.raw for task in relay.get_tasks(good).values()]
    for name, row in HOSTILE_ROWS.items():
        model = {} if "video" in row else rows[0]
        rows.insert(5, {**model, "state": "completed", "id": name, **row})
    tasks = parse_tasks(rows)
    monkeypatch.setattr(RelayClient, "get_tasks", lambda *_: tasks)
    monkeypatch.setattr(RelayClient, "query_once", lambda _, ids: {i: tasks[i] for i in ids})
    result = run(list(tasks))
    assert {record["id"] for record in result.records} >= set(good)
    harmless = {"half an emoji", "a NUL"}
    assert set(result.errors) == set(HOSTILE_ROWS) - harmless
    for record in result.records:
        str(record).encode()  # what XCom, msgpack and PostgreSQL take
        assert "\0" not in str(record)


def test_an_error_keeps_no_frames(sandbox: Sandbox, run: Run) -> None:
    sandbox.script_downloads(ScriptedResponse(status=400))
    (error,) = run([sandbox.add_task(seconds=0)]).errors.values()
    assert error.__traceback__ is error.__context__ is error.__cause__ is None


def test_an_unexpected_error_stays_with_its_task(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    original = LumaTask.media

    def media(task: LumaTask, kind: str) -> Any:
        if task.id == ids[1]:
            raise ZeroDivisionError("at https://cdn/x?X-Amz-Signature=hush")
        return original(task, kind)

    monkeypatch.setattr(LumaTask, "media", media)
    result = run(ids)
    assert list(result.errors) == [ids[1]]
    assert len(result.records) == 2
    assert "ZeroDivisionError" in caplog.text
    assert "hush" not in caplog.text + str(result.errors)


def test_a_url_that_comes_late_is_awaited(sandbox: Sandbox, run: Run) -> None:
    assert len(run([sandbox.add_task(seconds=0, link_delay=1.5)], link_timeout=30).records) == 1


def test_a_rejected_url_is_replaced_by_a_fresh_one(sandbox: Sandbox, run: Run) -> None:
    sandbox.script_downloads(ScriptedResponse(status=403))
    assert len(run([sandbox.add_task(seconds=0)]).records) == 1
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize("status", [404, 410])
def test_urls_that_stay_rejected_cost_few_requests(sandbox: Sandbox, run: Run, status: int) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(8)]
    sandbox.script_downloads(*[ScriptedResponse(status=status)] * 100)
    result = run(ids)
    assert all(isinstance(error, LinkExpiredError) for error in result.errors.values())
    assert len(result.errors) == 8
    assert len(sandbox.requests) - 1 <= 12
    assert len(sandbox.downloads) <= 8 * 4


def test_tasks_that_need_a_fresh_url_share_requests(sandbox: Sandbox, run: Run) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(200)]
    sandbox.script_downloads(*[ScriptedResponse(status=404)] * 1000)
    assert len(run(ids).errors) == 200
    queries = len(sandbox.requests) - 2  # the first two asked for a hundred tasks each
    assert queries <= 200  # of the 600 links that were asked for
    assert len(sandbox.downloads) == 200 * 4


def test_fresh_urls_that_are_rejected_repeatedly_are_given_up(sandbox: Sandbox, run: Run) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script_downloads(*[ScriptedResponse(status=403)] * 100)
    assert isinstance(run([task_id], link_timeout=1000).errors[task_id], LinkExpiredError)
    assert len(sandbox.downloads) <= 5


def test_waiting_for_a_url_is_bounded(sandbox: Sandbox, run: Run) -> None:
    task_id = sandbox.add_task(seconds=0, link_delay=1000)
    result = run([task_id], link_timeout=0.5)
    assert isinstance(result.errors[task_id], LinkExpiredError)
    assert "has no video URL yet" in str(result.errors[task_id])


def test_names_are_validated_before_anything_is_downloaded(sandbox: Sandbox, run: Run) -> None:
    with pytest.raises(LumaValueError):
        run([sandbox.add_task(seconds=0), sandbox.add_task(seconds=0)], name_template="clip")
    assert sandbox.downloads == []


@pytest.mark.parametrize("if_exists", list(IfExists))
def test_an_empty_result_is_never_called_downloaded(
    sandbox: Sandbox, relay: RelayClient, run: Run, monkeypatch: pytest.MonkeyPatch, if_exists: IfExists
) -> None:
    task_id = sandbox.add_task(seconds=0)
    (row,) = [dict(task.raw) for task in relay.get_tasks([task_id]).values()]
    tasks = parse_tasks([{key: value for key, value in row.items() if key not in {"thumbnail", "artifact"}}])
    monkeypatch.setattr(RelayClient, "get_tasks", lambda *_: tasks)
    result = run([task_id], media=["thumbnail"], if_exists=if_exists)
    assert result.records == []
    assert "has no thumbnail" in str(result.errors[task_id])


def test_no_more_than_max_parallel_are_in_progress(sandbox: Sandbox, run: Run) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(6)]
    sandbox.script_downloads(*[ScriptedResponse(status=400, delay=0.4)] * 6)
    run(ids, max_parallel=2)
    starts = sorted(download.at for download in sandbox.downloads)
    assert all(later - earlier >= 0.35 for earlier, later in zip(starts, starts[2:], strict=False))


def test_of_two_writers_of_one_name_one_wins(
    sandbox: Sandbox, run: Run, tmp_path: Path, stopped: threading.Event
) -> None:
    """Two mapped tasks, the template {prompt}, the same prompt: no video is lost without a word."""
    ids = [sandbox.add_task(seconds=0, prompt="a cat") for _ in range(6)]
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(run([i], name_template="{prompt}"))) for i in ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [record for result in results for record in result.records]
    losers = [error for result in results for error in result.errors.values()]
    assert len(losers) == 5
    assert all(isinstance(error, ObjectExistsError) and winner["id"] in str(error) for error in losers)
    content = (tmp_path / "clips/a-cat.mp4").read_bytes()
    assert winner["id"].encode() in content
    assert hashlib.sha256(content).hexdigest() == winner["video"]["sha256"]


def test_overwriting_writers_of_one_name_cannot_both_win(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0, prompt="a cat") for _ in range(2)]
    slow, fast = ids
    sandbox.script_downloads(ScriptedResponse(status=503, delay=1.0))
    results: dict[str, Any] = {}

    def overwrite(task_id: str) -> None:
        results[task_id] = run([task_id], name_template="{prompt}", if_exists=IfExists.OVERWRITE)

    thread = threading.Thread(target=overwrite, args=(slow,))
    thread.start()
    while not (tmp_path / "clips/a-cat.json").exists() or not sandbox.downloads:
        time.sleep(0.01)
    overwrite(fast)
    thread.join()
    assert isinstance(results[slow].errors[slow], ObjectExistsError)
    assert results[fast].errors == {}
    assert fast.encode() in (tmp_path / "clips/a-cat.mp4").read_bytes()


def test_a_writer_whose_name_was_overwritten_meanwhile_loses(
    sandbox: Sandbox, run: Run, tmp_path: Path
) -> None:
    slow, fast = (sandbox.add_task(seconds=0, prompt="a cat") for _ in range(2))
    sandbox.script_downloads(ScriptedResponse(status=503, delay=1.0))
    results: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: results.update({slow: run([slow], name_template="{prompt}")}))
    thread.start()
    while not (tmp_path / "clips/a-cat.json").exists() or not sandbox.downloads:
        time.sleep(0.01)
    assert run([fast], name_template="{prompt}", if_exists=IfExists.OVERWRITE).errors == {}
    thread.join()
    assert isinstance(results[slow].errors[slow], ObjectExistsError)
    assert fast.encode() in (tmp_path / "clips/a-cat.mp4").read_bytes()


def test_a_store_that_hangs_is_abandoned_at_the_deadline(
    sandbox: Sandbox, relay: RelayClient, staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = S3(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        monkeypatch.setenv("AIRFLOW_CONN_SILENT", server.connection())
        store = NamedStore(open_store("s3://silent@bucket/x", None, max_parallel=8, fsync=True))
        tasks = list(relay.get_tasks([sandbox.add_task(seconds=0) for _ in range(2)]).values())
        downloader = TaskDownloader(
            create_downloader(download_timeout=1),
            FreshLinks(relay.query_once).get,
            store,
            staging,
            DownloadOptions(),
        )
        result = DownloadPool(downloader).download(tasks)
    assert result.seconds < 20  # boto3 would wait for minutes
    assert [str(error) for error in result.errors.values()] == ["not complete within download_timeout"] * 2


def test_a_fifo_in_the_way_is_the_error_of_its_task_only(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(2)]
    (tmp_path / "clips").mkdir()
    os.mkfifo(tmp_path / f"clips/{ids[0]}.json")
    result = run(ids)
    assert [record["id"] for record in result.records] == [ids[1]]
    assert f"{ids[0]}.json cannot be read: OSError: [Errno 22] Not a regular file" in str(
        result.errors[ids[0]]
    )


def test_a_fifo_of_a_videos_name_is_replaced(sandbox: Sandbox, run: Run, tmp_path: Path) -> None:
    task_id = sandbox.add_task(seconds=0)
    (tmp_path / "clips").mkdir()
    os.mkfifo(tmp_path / f"clips/{task_id}.mp4")
    assert run([task_id]).errors == {}
    assert task_id.encode() in (tmp_path / f"clips/{task_id}.mp4").read_bytes()


def test_a_folder_that_another_process_locked_is_abandoned_at_the_deadline(
    sandbox: Sandbox, run: Run, tmp_path: Path
) -> None:
    task_id = sandbox.add_task(seconds=0)
    (tmp_path / "clips").mkdir()
    (tmp_path / f"clips/{task_id}.mp4").write_bytes(b"in the way")
    folder = os.open(tmp_path / "clips", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    # The claim is a new name, which needs no lock.
    (error,) = run([task_id], download_timeout=1).errors.values()
    assert "not complete within download_timeout" in str(error)
    os.close(folder)
    time.sleep(0.5)  # an abandoned thread would have the lock now
    assert (tmp_path / f"clips/{task_id}.mp4").read_bytes() == b"in the way"
    assert run([task_id]).errors == {}


def test_prompts_that_differ_only_in_case_get_an_object_each(
    sandbox: Sandbox, run: Run, tmp_path: Path
) -> None:
    prompts = ["a cat", "A Cat", "A CAT"]
    ids = [sandbox.add_task(seconds=0, prompt=prompt) for prompt in prompts]
    for _ in range(2):  # the second time under the same names
        result = run(ids, name_template="{prompt}")
        assert result.errors == {}
    uris = [record["video"]["uri"] for record in result.records]
    assert len({uri.casefold() for uri in uris}) == 3
    for task_id, uri in zip(ids, uris, strict=True):
        assert task_id.encode() in Path(uri.removeprefix("file://")).read_bytes()
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 3


def test_a_stop_ends_everything_and_leaves_no_file(
    sandbox: Sandbox, run: Run, stopped: threading.Event, staging: Staging, tmp_path: Path
) -> None:
    ids = [sandbox.add_task(seconds=0, link_delay=1000) for _ in range(20)]
    threading.Timer(0.5, stopped.set).start()
    result = run(ids, link_timeout=1000)
    assert result.records == []
    assert {str(error) for error in result.errors.values()} == {"not finished: the task was stopped"}
    assert list(Path(staging.folder).iterdir()) == []
    assert list((tmp_path / "clips").glob("*.mp4")) == []


def test_a_long_download_logs_its_progress(
    sandbox: Sandbox, relay: RelayClient, staging: Staging, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sandbox.script_downloads(ScriptedResponse(status=400, delay=1.0))
    task_id = sandbox.add_task(seconds=0)
    tasks = list(relay.get_tasks([task_id]).values())
    downloader = TaskDownloader(create_downloader(), lambda _: None, store, staging, DownloadOptions())
    DownloadPool(downloader, progress_interval=0.2).download(tasks)
    lines = [line for line in caplog.messages if "of 1 videos" in line]
    assert len(lines) >= 3
    assert lines[-1].endswith("1 errors")
    assert tasks[0].state is TaskState.COMPLETED
