"""Each fault and each second run, on every kind of store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_luma.arguments import IfExists
from airflow_provider_luma.download.pool import DownloadResult
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.stores.base import SHA256, TASK_ID, NamedStore, Upload
from airflow_provider_luma.exceptions import LinkExpiredError, ObjectExistsError
from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedResponse
from airflow_provider_luma.sandbox.media import video
from tests.download.conftest import Run

BYTES = 300_000
MIB = 2**20


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tasks=6, seconds=0, fail=0, video_bytes=BYTES) as sandbox:
        yield sandbox


@pytest.fixture
def put(store: NamedStore, staging: Staging) -> Any:
    """Put bytes into the store, as somebody else."""

    def put(name: str, content: bytes, **metadata: str) -> None:
        with staging.file() as file:
            file.write(content)
            store.put(Upload(file, name, "video/mp4", metadata))

    return put


def film(task_id: str) -> bytes:
    return b"".join(video(task_id, BYTES).chunks(0, BYTES))


def sidecar(store: NamedStore, name: str) -> dict[str, Any]:
    return dict(json.loads(store.read(f"{name}.json", MIB) or b"{}"))


def has_videos(store: NamedStore, ids: list[str]) -> bool:
    """Whether there are the videos of these tasks with their final sidecars, byte by byte."""
    return all(
        store.read(f"{task_id}.mp4", MIB) == film(task_id)
        and sidecar(store, task_id)["id"] == task_id
        and sidecar(store, task_id)["status"] == "downloaded"
        for task_id in ids
    )


def statuses(result: DownloadResult) -> list[str]:
    return [record["status"] for record in result.records]


def test_the_sidecar_of_a_video_is_the_record_of_the_run(
    sandbox: Sandbox, run: Run, store: NamedStore
) -> None:
    result = run()
    assert result.errors == {}
    assert has_videos(store, sandbox.task_ids)
    for record in result.records:
        assert sidecar(store, record["id"]) == record


@pytest.mark.parametrize("if_exists", [IfExists.SKIP, IfExists.FAIL])
def test_a_second_run_downloads_nothing(sandbox: Sandbox, run: Run, if_exists: IfExists) -> None:
    first, again = run(if_exists=if_exists), run(if_exists=if_exists)
    assert statuses(again) == ["unchanged"] * 6
    assert sandbox.downloads == []
    assert [{**record, "status": "downloaded"} for record in again.records] == first.records


def test_a_second_run_downloads_only_the_rest(sandbox: Sandbox, run: Run, store: NamedStore) -> None:
    run(sandbox.task_ids[:3])
    assert statuses(run()) == ["unchanged"] * 3 + ["downloaded"] * 3
    assert len(sandbox.downloads) == 3
    assert has_videos(store, sandbox.task_ids)


def test_an_object_of_another_size_is_downloaded_again(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any
) -> None:
    run()
    put(f"{sandbox.task_ids[2]}.mp4", b"half")
    assert statuses(run()) == ["unchanged"] * 2 + ["downloaded"] + ["unchanged"] * 3
    assert has_videos(store, sandbox.task_ids)


def test_overwrite_downloads_everything_again(sandbox: Sandbox, run: Run, store: NamedStore) -> None:
    run()
    assert statuses(run(if_exists=IfExists.OVERWRITE)) == ["downloaded"] * 6
    assert has_videos(store, sandbox.task_ids)


def test_fail_replaces_no_object_without_a_valid_record(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any
) -> None:
    name = f"{sandbox.task_ids[0]}.mp4"
    put(name, b"somebody's own film")
    result = run(if_exists=IfExists.FAIL)
    assert isinstance(result.errors[sandbox.task_ids[0]], ObjectExistsError)
    assert store.read(name, MIB) == b"somebody's own film"
    assert len(sandbox.downloads) == len(result.records) == 5


def test_a_foreign_json_file_is_touched_only_by_overwrite(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any
) -> None:
    task_id = sandbox.task_ids[0]
    foreign = [b"[1, 2]", b'{"id": 7, "status": "downloaded"}', b"{", b"\xff" * 9, b"[" * 200_000, b" " * MIB]
    for content in foreign:
        put(f"{task_id}.json", content)
        for if_exists in (IfExists.SKIP, IfExists.FAIL):
            (error,) = run([task_id], if_exists=if_exists).errors.values()
            assert isinstance(error, ObjectExistsError)
            assert "not a sidecar record" in str(error)
            assert store.read(f"{task_id}.json", 2 * MIB) == content
    assert sandbox.downloads == []
    assert run([task_id], if_exists=IfExists.OVERWRITE).errors == {}
    assert has_videos(store, [task_id])


@pytest.mark.parametrize("if_exists", [IfExists.SKIP, IfExists.FAIL])
def test_the_name_of_another_task_is_not_taken(
    sandbox: Sandbox, run: Run, store: NamedStore, if_exists: IfExists
) -> None:
    one, other = sandbox.task_ids[:2]
    run([one], name_template="clip")
    (error,) = run([other], name_template="clip", if_exists=if_exists).errors.values()
    assert isinstance(error, ObjectExistsError)
    assert one in str(error)
    assert store.read("clip.mp4", MIB) == film(one)
    run([other], name_template="clip", if_exists=IfExists.OVERWRITE)
    assert store.read("clip.mp4", MIB) == film(other)


def test_a_claim_of_another_task_is_respected_before_its_video_exists(
    sandbox: Sandbox, run: Run, store: NamedStore
) -> None:
    one, other = sandbox.task_ids[:2]
    sandbox.script_downloads(ScriptedResponse(status=400))
    assert run([one], name_template="clip").records == []
    assert sidecar(store, "clip")["status"] == "downloading"
    (error,) = run([other], name_template="clip").errors.values()
    assert one in str(error)
    assert sandbox.downloads == []


def test_a_hostile_sidecar_is_the_error_of_its_task_only(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any
) -> None:
    rows: list[Any] = [
        {"video": {"uri": "file:///etc/passwd", "size": 3, "sha256": "0" * 64}},
        {"video": {"uri": 3, "size": "large", "sha256": None}},
        {"video": {"uri": "x", "size": True, "sha256": "0" * 64}, "publishing": 7},
        {"video": [], "publishing": {"video": {"uri": "\ud83d", "size": 1, "sha256": "0" * 64}}},
    ]
    for task_id, row in zip(sandbox.task_ids, rows, strict=False):
        put(f"{task_id}.json", json.dumps({"id": task_id, "status": "downloaded", **row}).encode())
    assert statuses(run()) == ["downloaded"] * 6
    assert has_videos(store, sandbox.task_ids)


@pytest.mark.parametrize(
    ("key", "edited", "kept"),
    [
        ("source", "https://cdn.example/a\ud83d\0.mp4?X-Amz-Signature=hush", "https://cdn.example/a .mp4"),
        ("source", "https://user:hush@cdn.example/a.mp4", "https://cdn.example/a.mp4"),
        ("source", "see https://user:hush@cdn.example/a.mp4", ""),
        ("content_type", "x" * 100_000, ""),
        ("content_type", "video/mp4\0", ""),
        ("content_type", "video/\udc80", ""),
    ],
)
def test_text_of_an_edited_sidecar_is_sanitized(
    sandbox: Sandbox, run: Run, put: Any, key: str, edited: str, kept: str
) -> None:
    (record,) = run(sandbox.task_ids[:1]).records
    row = {**record, "video": {**(record["video"] or {}), key: edited}}
    put(f"{record['id']}.json", json.dumps(row).encode())
    (again,) = run(sandbox.task_ids[:1]).records
    assert again["status"] == "unchanged"
    assert again["video"] == {**(record["video"] or {}), key: kept}


def test_more_media_of_a_downloaded_task_are_downloaded_without_the_video(sandbox: Sandbox, run: Run) -> None:
    run()
    again = run(media=["video", "thumbnail"])
    assert {download.path.rpartition("/")[2] for download in sandbox.downloads} == {"thumbnail.jpg"}
    assert all(record["video"] and record["thumbnail"] for record in again.records)
    assert sum(file["content_type"] == "video/mp4" for file in again.downloaded_files) == 0
    run(media=["thumbnail"])
    assert sandbox.downloads == []
    assert statuses(run()) == ["unchanged"] * 6


def test_overwriting_fewer_media_keeps_the_others_in_the_record(
    sandbox: Sandbox, run: Run, store: NamedStore
) -> None:
    task_id = sandbox.task_ids[0]
    run([task_id], media=["video", "thumbnail"])
    (record,) = run([task_id], if_exists=IfExists.OVERWRITE).records
    assert record["thumbnail"]
    assert sidecar(store, task_id) == record


def test_a_downloaded_video_is_recorded_although_its_thumbnail_failed(
    sandbox: Sandbox, run: Run, store: NamedStore
) -> None:
    task_id = sandbox.task_ids[0]
    dead = ScriptedResponse(status=400, body="no")
    sandbox.script_downloads(ScriptedResponse(body=film(task_id), content_type="video/mp4"), dead)
    result = run([task_id], media=["video", "thumbnail"])
    (record,) = result.records
    assert (record["status"], record["thumbnail"]) == ("partial", None)
    assert "responded 400" in record["error"]
    assert "responded 400" in str(result.errors[task_id])
    assert (result.counts.downloaded, result.counts.failed) == (0, 1)
    assert sidecar(store, task_id)["video"] == record["video"]
    (again,) = run([task_id], media=["video", "thumbnail"]).records
    assert [download.path.rpartition("/")[2] for download in sandbox.downloads] == ["thumbnail.jpg"]
    assert again["status"] == "downloaded"
    assert again["video"] == record["video"]


def test_our_own_object_never_blocks_us(sandbox: Sandbox, run: Run, store: NamedStore, put: Any) -> None:
    """As after a put whose response was lost, or a kill between the object and the sidecar."""
    task_id = sandbox.task_ids[0]
    (record,) = run([task_id], if_exists=IfExists.FAIL).records
    video = record["video"]
    assert video
    lost = {**record, "status": "downloading", "video": None}
    if not store.store.keeps_metadata:
        lost["publishing"] = {"video": video}
    put(f"{task_id}.json", json.dumps(lost).encode())
    (again,) = run([task_id], if_exists=IfExists.FAIL).records
    assert sandbox.downloads == []
    assert again["video"] == video
    assert sidecar(store, task_id)["status"] == "downloaded"


def test_an_object_that_differs_from_its_record_is_not_trusted(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any
) -> None:
    task_id = sandbox.task_ids[0]
    (record,) = run([task_id]).records
    announced = {**record, "status": "downloading", "video": None, "publishing": {"video": record["video"]}}
    put(f"{task_id}.json", json.dumps(announced).encode())
    other = film(sandbox.task_ids[1])
    put(f"{task_id}.mp4", other, **{TASK_ID: sandbox.task_ids[1], SHA256: "0" * 64})
    result = run([task_id])
    assert result.errors == {}
    assert statuses(result) == ["downloaded"]
    assert has_videos(store, [task_id])


def test_an_object_whose_metadata_name_other_bytes_is_downloaded_again(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any
) -> None:
    if not store.store.keeps_metadata:
        pytest.skip("this store keeps no metadata")
    task_id = sandbox.task_ids[0]
    run([task_id])
    put(f"{task_id}.mp4", bytes(BYTES), **{TASK_ID: task_id, SHA256: "1" * 64})
    assert statuses(run([task_id])) == ["downloaded"]
    assert has_videos(store, [task_id])


def test_truncated_downloads_are_completed(sandbox: Sandbox, run: Run, store: NamedStore) -> None:
    sandbox.faults = Faults(truncated_downloads=0.5)
    assert run(max_attempts=20).errors == {}
    assert any("range" in download.headers for download in sandbox.downloads)
    assert has_videos(store, sandbox.task_ids)


def test_rejected_urls_are_replaced_by_fresh_ones(sandbox: Sandbox, run: Run, store: NamedStore) -> None:
    sandbox.faults = Faults(rejected_downloads=0.15)
    assert run(link_timeout=30).errors == {}
    assert has_videos(store, sandbox.task_ids)


def test_a_page_instead_of_a_video_is_never_published(sandbox: Sandbox, run: Run, store: NamedStore) -> None:
    page = ScriptedResponse(body="<html>sorry</html>", content_type="text/html")
    sandbox.script_downloads(*[page] * 3)
    result = run(max_parallel=1)
    assert list(result.errors) == sandbox.task_ids[:1]
    assert "text/html" in str(result.errors[sandbox.task_ids[0]])
    assert store.head(f"{sandbox.task_ids[0]}.mp4") is None
    assert has_videos(store, sandbox.task_ids[1:])


def test_a_url_that_never_comes_is_an_error_for_that_task(
    sandbox: Sandbox, run: Run, store: NamedStore
) -> None:
    late = sandbox.add_task(seconds=0, link_delay=1000)
    result = run(link_timeout=0.2)
    assert isinstance(result.errors[late], LinkExpiredError)
    assert has_videos(store, sandbox.task_ids[:6])


class Interfering:
    """Lets another writer act before or after the put of a name."""

    def __init__(self, store: NamedStore) -> None:
        self._put = store.store.put
        self.before: dict[str, list[Any]] = {}
        self.after: dict[str, list[Any]] = {}

    def put(self, upload: Upload) -> None:
        for act in self.before.pop(upload.name, []):
            act()
        self._put(upload)
        later = self.after.get(upload.name, [])
        if later:
            later.pop(0)()


@pytest.fixture
def interfering(store: NamedStore, monkeypatch: pytest.MonkeyPatch) -> Interfering:
    interfering = Interfering(store)
    monkeypatch.setattr(store.store, "put", interfering.put)
    return interfering


def test_a_put_that_ends_after_another_writer_is_an_error_and_gets_no_record(
    sandbox: Sandbox, run: Run, store: NamedStore, interfering: Interfering
) -> None:
    one, other = sandbox.task_ids[:2]
    others: list[DownloadResult] = []
    overwrite = lambda: others.append(run([other], name_template="clip", if_exists=IfExists.OVERWRITE))  # noqa: E731
    interfering.before["clip.mp4"] = [overwrite]
    result = run([one], name_template="clip")
    assert others[0].errors == {}
    assert result.records == []
    assert other in str(result.errors[one])
    assert store.read("clip.mp4", MIB) == film(one)
    row = sidecar(store, "clip")
    assert (row["id"], row["status"], row["video"]) == (other, "downloading", None)
    assert run([other], name_template="clip").errors == {}
    assert store.read("clip.mp4", MIB) == film(other)
    assert sidecar(store, "clip")["status"] == "downloaded"


def test_an_object_that_another_writer_replaced_before_the_record_is_an_error(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any, interfering: Interfering
) -> None:
    one, other = sandbox.task_ids[:2]
    content = film(other)
    digest = hashlib.sha256(content).hexdigest()
    replace = lambda: put("clip.mp4", content, **{TASK_ID: other, SHA256: digest})  # noqa: E731
    interfering.after["clip.mp4"] = [replace]
    result = run([one], name_template="clip", if_exists=IfExists.OVERWRITE)
    assert result.records == []
    error = str(result.errors[one])
    assert (other if store.store.keeps_metadata else "another writer") in error
    row = sidecar(store, "clip")
    assert (row["id"], row["status"], row["video"]) == (one, "downloading", None)


def test_a_lost_claim_is_not_overwritten_by_earlier_files(
    sandbox: Sandbox, run: Run, store: NamedStore, put: Any, interfering: Interfering
) -> None:
    one, other = sandbox.task_ids[:2]
    claim = json.dumps({"id": other, "status": "downloading"}).encode()
    interfering.after["clip.thumbnail.jpg"] = [lambda: put("clip.json", claim)]
    result = run([one], name_template="clip", media=["video", "thumbnail"])
    assert result.records == []
    assert other in str(result.errors[one])
    assert store.read("clip.json", MIB) == claim
