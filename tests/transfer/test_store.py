from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.exceptions import TransferError
from airflow_provider_luma.transfer.store import publish, uri
from tests.stores import S3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "staged"
    file.write_bytes(os.urandom(1000))
    return file


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectStoragePath:
    conn_id = f"s3_{abs(hash(request.node.name))}"  # Airflow keeps a file system for each id
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", s3.connection())
    return ObjectStoragePath(f"s3://{conn_id}@bucket/clips")


def test_a_local_file_gets_its_folders_and_leaves_nothing_else(file: Path, tmp_path: Path) -> None:
    target = ObjectStoragePath((tmp_path / "archive").as_uri()) / "2024/clip.mp4"
    publish(file, target, "video/mp4")
    assert (tmp_path / "archive/2024/clip.mp4").read_bytes() == file.read_bytes()
    assert [file.name for file in (tmp_path / "archive/2024").iterdir()] == ["clip.mp4"]
    assert uri(target) == (tmp_path / "archive/2024/clip.mp4").as_uri()


def test_a_local_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    final = tmp_path / "clip.mp4"
    files = [tmp_path / "a", tmp_path / "b"]
    for staged, size in zip(files, (3_000_000, 5_000_000), strict=True):
        staged.write_bytes(b"x" * size)
    done = threading.Event()
    sizes: set[int] = set()

    def read() -> None:
        while not done.is_set():
            if final.exists():
                sizes.add(len(final.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        publish(files[turn % 2], ObjectStoragePath(final.as_uri()), "video/mp4")
    done.set()
    reader.join()
    assert sizes <= {3_000_000, 5_000_000}
    assert sizes


def test_a_folder_that_cannot_be_written_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    target = ObjectStoragePath((tmp_path / "taken/clip.mp4").as_uri())
    with pytest.raises(TransferError, match=r"taken/clip\.mp4 cannot be written: .*(Exists|NotADir)"):
        publish(file, target, "video/mp4")


def test_s3_keeps_bytes_and_content_type(bucket: ObjectStoragePath, file: Path, s3: S3) -> None:
    target = bucket / "one.mp4"
    publish(file, target, "video/quicktime")
    assert (s3.folder / "bucket/clips/one.mp4").read_bytes() == file.read_bytes()
    assert target.fs.info(target.path)["ContentType"] == "video/quicktime"
    assert uri(target) == "s3://bucket/clips/one.mp4"


@pytest.mark.parametrize("told", ["", "application/octet-stream"])
def test_a_content_type_that_says_nothing_gives_way_to_the_name(
    bucket: ObjectStoragePath, file: Path, told: str
) -> None:
    target = bucket / "two.mp4"
    publish(file, target, told)
    assert target.fs.info(target.path)["ContentType"] == "video/mp4"


def test_s3_takes_large_files_in_parts(bucket: ObjectStoragePath, tmp_path: Path, s3: S3) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(20_000_000))
    publish(large, bucket / "large.mp4", "video/mp4")
    assert (s3.folder / "bucket/clips/large.mp4").read_bytes() == large.read_bytes()


def test_a_store_that_refuses_is_named_with_its_reason_and_without_secrets(
    s3: S3, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_S3_WRONG", s3.connection(secret_key="not-the-secret"))
    target = ObjectStoragePath("s3://s3_wrong@bucket/clips/refused.mp4")
    with pytest.raises(TransferError, match=r"s3://bucket/clips/refused\.mp4 cannot be written: ") as error:
        publish(file, target, "video/mp4")
    assert "not-the-secret" not in str(error.value)
    assert not (s3.folder / "bucket/clips/refused.mp4").exists()
