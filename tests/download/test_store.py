from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.store import media_type, publish, read, stored_size, uri
from airflow_provider_luma.exceptions import DownloadError, ObjectExistsError
from tests.slow_line import slow_line
from tests.stores import S3

CONTENT = random.Random(4).randbytes(1000)
METADATA = {"luma-task-id": "4665a07c", "sha256": "00ff"}

# A local file has no content type or metadata, and gets its name at once.
not_local = pytest.mark.parametrize("destination_url", ["rclone", "moto", "gcs", "azure"], indirect=True)
# rclone's server and Google's emulator take a conditional put for any other.
knows_conditions = pytest.mark.parametrize("destination_url", ["file", "moto", "azure"], indirect=True)


@pytest.fixture
def content(tmp_path: Path) -> str:
    (tmp_path / "staged").write_bytes(CONTENT)
    return str(tmp_path / "staged")


def test_an_object_is_what_was_put(destination: ObjectStoragePath, content: str) -> None:
    target = destination / "2024/clip.mp4"
    assert stored_size(target) is None
    assert read(target) is None
    publish(content, target, "video/mp4", metadata=METADATA)
    assert read(target) == CONTENT
    assert stored_size(target) == len(CONTENT)
    assert uri(target).endswith("/2024/clip.mp4")
    assert "@" not in uri(target)


@not_local
def test_content_type_and_metadata_are_kept(destination: ObjectStoragePath, content: str) -> None:
    target = destination / "clip.mov"
    publish(content, target, "video/quicktime", metadata=METADATA)
    content_type, metadata = described(target)
    assert content_type == "video/quicktime"
    assert {key.replace("_", "-"): value for key, value in metadata.items()}.items() >= METADATA.items()


def described(target: ObjectStoragePath) -> tuple[str, dict[str, str]]:
    """Ask the store for an object's content type and metadata in its own words."""
    fs, info = target.fs, target.fs.info(target.path)
    if target.protocol == "s3":
        return info["ContentType"], fs.metadata(target.path)
    if target.protocol == "gs":
        return info["contentType"], info["metadata"]
    return info["content_settings"]["content_type"], info["metadata"]


@not_local
def test_metadata_that_no_header_takes_is_escaped(destination: ObjectStoragePath, content: str) -> None:
    target = destination / "clip.mp4"
    publish(content, target, "video/mp4", metadata={"luma-task-id": "clip é\n%"})
    assert "clip%20" in str(described(target)).replace("clip ", "clip%20")
    assert "%C3%A9%0A%25" in str(described(target))


def test_a_file_without_a_name_of_its_own_gets_one(destination: ObjectStoragePath, tmp_path: Path) -> None:
    target = destination / "clip.mp4"
    with Staging(str(tmp_path / "staging")).file() as file:
        file.write(CONTENT)
        publish(file.path, target, "video/mp4")
    assert read(target) == CONTENT


def test_another_object_is_replaced(destination: ObjectStoragePath, content: str, tmp_path: Path) -> None:
    target = destination / "clip.mp4"
    publish(content, target, "video/mp4")
    (tmp_path / "other").write_bytes(b"another film")
    publish(str(tmp_path / "other"), target, "video/mp4")
    assert read(target) == b"another film"


def test_another_object_is_not_replaced_where_it_must_not(
    destination: ObjectStoragePath, content: str, tmp_path: Path
) -> None:
    target = destination / "clip.mp4"
    publish(content, target, "video/mp4", overwrite=False)
    (tmp_path / "other").write_bytes(b"another film")
    with pytest.raises(ObjectExistsError, match=r"clip\.mp4 exists"):
        publish(str(tmp_path / "other"), target, "video/mp4", overwrite=False)
    assert read(target) == CONTENT


@knows_conditions
def test_of_many_that_must_not_replace_one_wins(destination: ObjectStoragePath, content: str) -> None:
    target = destination / "clip.mp4"
    refused: list[Exception] = []

    def put() -> None:
        try:
            publish(content, target, "video/mp4", overwrite=False)
        except ObjectExistsError as error:
            refused.append(error)

    threads = [threading.Thread(target=put) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert read(target) == CONTENT


def test_large_files_go_in_parts(destination: ObjectStoragePath, tmp_path: Path) -> None:
    large = random.Random(5).randbytes(21_000_000)
    (tmp_path / "large").write_bytes(large)
    target = destination / "large.mp4"
    publish(str(tmp_path / "large"), target, "video/mp4", metadata=METADATA)
    assert read(target) == large
    if destination.protocol != "file":
        assert described(target)[0] == "video/mp4"


def test_large_files_do_not_replace_either(destination: ObjectStoragePath, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(21_000_000))
    target = destination / "large.mp4"
    publish(str(tmp_path / "large"), target, "video/mp4")
    with pytest.raises(ObjectExistsError):
        publish(str(tmp_path / "large"), target, "video/mp4", overwrite=False)


@not_local
def test_a_stopped_upload_leaves_nothing(destination: ObjectStoragePath, content: str) -> None:
    stopped = threading.Event()
    stopped.set()
    target = destination / "clip.mp4"
    with pytest.raises(DownloadError, match="stopped"):
        publish(content, target, "video/mp4", stopped=stopped)


def test_an_upload_is_stopped_after_a_part_and_takes_back_what_was_sent(
    moto: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(bytes(100_000_000))
    with slow_line(moto.url, bytes_a_second=40_000_000) as url:
        monkeypatch.setenv("AIRFLOW_CONN_SLOW", S3(url, moto.folder).connection())
        target = ObjectStoragePath("s3://slow@bucket/slow/large.mp4")
        assert stop_after(1.0, str(tmp_path / "large"), target) < 1.5
        unfinished = target.fs.call_s3("list_multipart_uploads", Bucket="bucket", Prefix="slow/")
        assert unfinished.get("Uploads", []) == []
        assert stored_size(target) is None


def test_an_upload_that_stands_still_is_dropped(
    moto: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "large").write_bytes(bytes(100_000_000))
    with slow_line(moto.url, bytes_a_second=300_000) as url:
        monkeypatch.setenv("AIRFLOW_CONN_STILL", S3(url, moto.folder).connection())
        target = ObjectStoragePath("s3://still@bucket/still/large.mp4")
        assert stop_after(0.5, str(tmp_path / "large"), target) < 1.7
    assert stored_size(ObjectStoragePath("s3://moto@bucket/still/large.mp4")) is None


def stop_after(seconds: float, file: str, target: ObjectStoragePath) -> float:
    """Return how long the upload goes on after it was told to stop."""
    stopped = threading.Event()
    told: list[float] = []

    def stop() -> None:
        told.append(time.monotonic())
        stopped.set()

    threading.Timer(seconds, stop).start()
    with pytest.raises(DownloadError, match="stopped"):
        publish(file, target, "video/mp4", stopped=stopped)
    return time.monotonic() - told[0]


def test_a_local_file_gets_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with Staging(str(tmp_path)).file() as file:
            file.write(CONTENT)
            publish(file.path, ObjectStoragePath((tmp_path / "clip.mp4").as_uri()), "video/mp4")
    finally:
        os.umask(before)
    assert (tmp_path / "clip.mp4").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_file_of_another_file_system_is_copied_first(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")  # noqa: S108
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is but one file system")
    with Staging(str(shared_memory)).file() as file:
        file.write(CONTENT)
        publish(file.path, ObjectStoragePath((tmp_path / "clip.mp4").as_uri()), "video/mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_local_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    final = tmp_path / "clip.mp4"
    files = [tmp_path / "a", tmp_path / "b"]
    for staged, size in zip(files, (3_000_000, 5_000_000), strict=True):
        staged.write_bytes(b"x" * size)
    done = threading.Event()
    sizes: set[int] = set()

    def watch() -> None:
        while not done.is_set():
            if final.exists():
                sizes.add(len(final.read_bytes()))

    reader = threading.Thread(target=watch)
    reader.start()
    for turn in range(60):
        publish(str(files[turn % 2]), ObjectStoragePath(final.as_uri()), "video/mp4")
    done.set()
    reader.join()
    assert sizes <= {3_000_000, 5_000_000}
    assert sizes


def test_a_folder_that_cannot_be_written_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    target = ObjectStoragePath((tmp_path / "taken/clip.mp4").as_uri())
    with pytest.raises(DownloadError, match=r"taken/clip\.mp4 cannot be written: .*(Exists|NotADir)"):
        publish(content, target, "video/mp4")


@pytest.mark.parametrize(("told", "kept"), [("", "video/mp4"), ("application/octet-stream", "video/mp4"),
                                            ("video/quicktime", "video/quicktime")])  # fmt: skip
def test_a_content_type_that_says_nothing_gives_way_to_the_name(told: str, kept: str) -> None:
    assert media_type(told, "bucket/clip.mp4") == kept


def test_a_store_that_refuses_is_named_with_its_reason_and_without_secrets(
    s3: S3, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_S3_WRONG", s3.connection(secret_key="not-the-secret"))
    target = ObjectStoragePath("s3://s3_wrong@bucket/clips/refused.mp4")
    refusals: tuple[tuple[str, Any], ...] = (
        ("written", lambda: publish(content, target, "video/mp4")),
        ("read", lambda: read(target)),
    )
    for verb, ask in refusals:
        with pytest.raises(
            DownloadError, match=rf"s3://bucket/clips/refused\.mp4 cannot be {verb}: "
        ) as error:
            ask()
        assert "not-the-secret" not in str(error.value)
    assert not (s3.folder / "bucket/clips/refused.mp4").exists()


def test_what_a_killed_worker_left_beside_a_name_goes_with_the_next_run(tmp_path: Path, content: str) -> None:
    target = ObjectStoragePath((tmp_path / "archive/clip.mp4").as_uri())
    publish(content, target, "video/mp4")
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(os, "replace", raise_(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish(content, target, "video/mp4")
    assert len(list((tmp_path / "archive").iterdir())) == 2
    publish(content, target, "video/mp4")
    assert [path.name for path in (tmp_path / "archive").iterdir()] == ["clip.mp4"]


def raise_(error: type[BaseException]) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call


def test_runs_that_replace_the_same_object_leave_one_whole(tmp_path: Path) -> None:
    target = ObjectStoragePath((tmp_path / "archive/clip.mp4").as_uri())
    contents = [bytes([number]) * 100_000 for number in range(8)]

    def replace_often(content: bytes) -> None:
        file = tmp_path / f"{content[0]}"
        file.write_bytes(content)
        for _ in range(50):
            publish(str(file), target, "video/mp4")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(replace_often, contents))
    assert read(target) in contents
    assert len(list((tmp_path / "archive").iterdir())) == 1
