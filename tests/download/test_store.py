from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.download.staging import StagedFile, Staging
from airflow_provider_luma.download.stores import local
from airflow_provider_luma.download.stores.base import SHA256, TASK_ID, NamedStore, Upload
from airflow_provider_luma.download.stores.local import LocalStore
from airflow_provider_luma.download.stores.path import PathStore
from airflow_provider_luma.exceptions import DownloadError, LumaValueError, ObjectExistsError
from airflow_provider_luma.operators.destination import open_store
from airflow_provider_luma.threads import StoppedError
from tests.slow_line import slow_line
from tests.stores import S3
from tests.verifying_s3 import corrupting_line

CONTENT = random.Random(4).randbytes(1000)
MIB = 2**20
METADATA = {TASK_ID: "4665a07c", SHA256: "00ff"}

# A local file has no content type or metadata.
not_local = pytest.mark.parametrize("destination_url", ["rclone", "moto", "gcs", "azure"], indirect=True)
# rclone's server and Google's emulator take a conditional put for any other.
knows_conditions = pytest.mark.parametrize("destination_url", ["file", "moto", "azure"], indirect=True)


def opened(url: str) -> NamedStore:
    return NamedStore(open_store(url, None, max_parallel=2, fsync=True))


@pytest.fixture
def staged(staging: Staging) -> Iterator[Callable[[bytes], StagedFile]]:
    """Stage bytes."""
    files: list[Any] = []

    def stage(content: bytes) -> StagedFile:
        files.append(staging.file())
        file = files[-1].__enter__()
        assert isinstance(file, StagedFile)
        file.write(content)
        return file

    yield stage
    for file in files:
        file.__exit__(None, None, None)


@pytest.fixture
def put(store: NamedStore, staged: Callable[[bytes], StagedFile]) -> Callable[..., None]:
    def put(name: str, content: bytes, content_type: str = "video/mp4", **options: Any) -> None:
        store.put(Upload(staged(content), name, content_type, **options))

    return put


def test_an_object_has_the_bytes_that_were_put(store: NamedStore, put: Any) -> None:
    assert store.head("2024/clip.mp4") is None
    assert store.read("2024/clip.mp4", MIB) is None
    put("2024/clip.mp4", CONTENT, metadata=METADATA)
    assert store.read("2024/clip.mp4", MIB) == CONTENT
    assert store.read("2024/clip.mp4", 10) == CONTENT[:10]
    found = store.head("2024/clip.mp4")
    assert found
    assert found.size == len(CONTENT)
    assert store.uri("2024/clip.mp4").endswith("/2024/clip.mp4")
    assert "@" not in store.uri("2024/clip.mp4")


@not_local
def test_content_type_and_metadata_go_with_the_put(store: NamedStore, put: Any) -> None:
    put("clip.mov", CONTENT, "video/quicktime", metadata=METADATA)
    found = store.head("clip.mov")
    assert found
    assert found.content_type == "video/quicktime"
    assert found.metadata == METADATA


@not_local
def test_metadata_that_no_header_accepts_is_escaped(store: NamedStore, put: Any) -> None:
    put("clip.mp4", CONTENT, metadata={TASK_ID: "clip é\n%"})
    found = store.head("clip.mp4")
    assert found
    assert found.metadata[TASK_ID] in {"clip %C3%A9%0A%25", "clip é\n%"}


def test_another_object_is_replaced(store: NamedStore, put: Any) -> None:
    put("clip.mp4", CONTENT)
    put("clip.mp4", b"another film")
    assert store.read("clip.mp4", MIB) == b"another film"


@knows_conditions
def test_another_object_is_not_replaced_without_overwrite(store: NamedStore, put: Any) -> None:
    put("clip.mp4", CONTENT, if_absent=True)
    with pytest.raises(ObjectExistsError, match=r"clip\.mp4 already exists"):
        put("clip.mp4", b"another film", if_absent=True)
    assert store.read("clip.mp4", MIB) == CONTENT


@knows_conditions
def test_concurrent_creates_have_one_winner(store: NamedStore, put: Any) -> None:
    rejected: list[Exception] = []

    def create() -> None:
        try:
            put("clip.mp4", CONTENT, if_absent=True)
        except ObjectExistsError as error:
            rejected.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rejected) == 5
    assert store.read("clip.mp4", MIB) == CONTENT


LARGE = random.Random(5).randbytes(40_000_000)


def test_large_files_go_in_parts_with_their_metadata(store: NamedStore, put: Any) -> None:
    put("large.mp4", LARGE, metadata=METADATA)
    assert store.read("large.mp4", 2 * len(LARGE)) == LARGE
    assert store.sha256("large.mp4") == sha256(LARGE)
    found = store.head("large.mp4")
    assert found
    if store.store.keeps_metadata:
        assert (found.content_type, found.metadata) == ("video/mp4", METADATA)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@knows_conditions
def test_large_files_do_not_replace_either(store: NamedStore, put: Any) -> None:
    put("large.mp4", CONTENT)
    with pytest.raises(ObjectExistsError):
        put("large.mp4", bytes(40_000_000), if_absent=True)
    assert store.read("large.mp4", MIB) == CONTENT


@not_local
def test_a_stopped_upload_leaves_nothing(store: NamedStore, put: Any) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(StoppedError):
        put("clip.mp4", CONTENT, stopped=stopped)
    assert store.head("clip.mp4") is None


def test_a_stopped_upload_aborts_its_multipart_upload(
    moto: S3, staged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    with slow_line(moto.url, bytes_a_second=10_000_000) as url:
        monkeypatch.setenv("AIRFLOW_CONN_SLOW", S3(url, moto.folder).connection())
        store = opened("s3://slow@bucket/slow")
        threading.Timer(1.0, stopped.set).start()
        with pytest.raises(StoppedError):
            store.put(Upload(staged(bytes(100_000_000)), "large.mp4", "video/mp4", stopped=stopped))
    monkeypatch.setenv("AIRFLOW_CONN_MOTO", moto.connection())
    store = opened("s3://moto@bucket/slow")
    client = store.store._client  # type: ignore[attr-defined]
    unfinished = client.list_multipart_uploads(Bucket="bucket", Prefix="slow/")
    assert unfinished.get("Uploads", []) == []
    assert store.head("large.mp4") is None


def test_the_error_of_a_rejected_part_is_the_error_of_the_upload(
    moto: S3, staged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the parts that were not sent because of it."""
    with corrupting_line(moto.url, forbidden_part=2) as url:
        monkeypatch.setenv("AIRFLOW_CONN_FORBIDDING", S3(url, moto.folder).connection())
        store = opened("s3://forbidding@bucket/forbidden")
        with pytest.raises(DownloadError, match="Access Denied"):
            store.put(Upload(staged(bytes(6 * 16 * MIB)), "large.mp4", "video/mp4"))


def test_s3_gets_the_checksums_of_the_downloaded_bytes(
    moto: S3, staged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over plain HTTP too, where it is also what spares hashing the payload for the signature."""
    monkeypatch.setenv("AIRFLOW_CONN_MOTO", moto.connection())
    store = opened("s3://moto@bucket/checksums")
    sent: list[tuple[str, dict[str, str]]] = []
    client = store.store._client  # type: ignore[attr-defined]
    client.meta.events.register(
        "before-send.s3",
        lambda request, **_: sent.append((request.method + request.url, dict(request.headers))),
    )
    small, large = staged(CONTENT), staged(LARGE)
    store.put(Upload(small, "small.mp4", "video/mp4"))
    store.put(Upload(large, "large.mp4", "video/mp4"))
    headers = sent[0][1]
    assert decoded(headers["x-amz-checksum-sha256"]) == small.sha256_bytes
    assert text(headers["X-Amz-Content-SHA256"]) == "UNSIGNED-PAYLOAD"
    assert "x-amz-checksum-sha256" in text(headers["Authorization"])
    parts = [headers for url, headers in sent if "partNumber" in url]
    assert len(parts) == 3
    assert all("x-amz-checksum-crc32" in headers for headers in parts)
    (complete,) = [headers for url, headers in sent if url.startswith("POST") and "uploadId=" in url]
    assert decoded(complete["x-amz-checksum-crc32"]) == large.crc32.to_bytes(4)
    assert text(complete["x-amz-mp-object-size"]) == str(len(LARGE))


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one put", "in parts"])
def test_a_byte_that_changed_in_transit_to_s3_is_rejected_by_the_store(
    s3: S3, staged: Any, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    folder = uuid.uuid4().hex
    with corrupting_line(s3.url, "wrong.mp4") as url:
        monkeypatch.setenv("AIRFLOW_CONN_LINE", S3(url, s3.folder).connection())
        store = opened(f"s3://line@bucket/{folder}")
        with pytest.raises(DownloadError, match=r"wrong\.mp4 cannot be written.*BadDigest"):
            store.put(Upload(staged(content), "wrong.mp4", "video/mp4"))
        store.put(Upload(staged(content), "right.mp4", "video/mp4"))
        assert store.head("wrong.mp4") is None
        assert store.sha256("right.mp4") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one put", "in parts"])
def test_a_byte_that_changed_on_the_disk_is_rejected_by_the_store(
    s3: S3, staged: Any, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    with corrupting_line(s3.url, "nothing") as url:
        monkeypatch.setenv("AIRFLOW_CONN_LINE", S3(url, s3.folder).connection())
        store = opened(f"s3://line@bucket/{uuid.uuid4().hex}")
        file = staged(content)
        with Path(file.path).open("r+b") as disk:
            disk.seek(len(content) // 2)
            disk.write(bytes([content[len(content) // 2] ^ 1]))
        with pytest.raises(DownloadError, match="BadDigest"):
            store.put(Upload(file, "wrong.mp4", "video/mp4"))
        assert store.head("wrong.mp4") is None


def decoded(value: Any) -> bytes:
    return base64.b64decode(value)


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_the_connections_settings_are_respected(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = json.loads(s3.connection())
    connection["extra"]["config_kwargs"] = {
        "s3": {"addressing_style": "path"}, "read_timeout": 7, "max_pool_connections": 99,
    }  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_TUNED", json.dumps(connection))
    config = opened("s3://tuned@bucket/x").store._client.meta.config  # type: ignore[attr-defined]
    assert config.s3["addressing_style"] == "path"
    assert (config.read_timeout, config.max_pool_connections) == (7, 99)


def test_a_google_token_that_expired_is_renewed(
    gcs: str, staged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GCS", gcs)
    store = opened(f"gs://gcs@bucket/{uuid.uuid4().hex}")
    store.put(Upload(staged(CONTENT), "one.mp4", "video/mp4"))
    credentials = store.store._bucket.client._credentials  # type: ignore[attr-defined]
    first, credentials.token = credentials.token, "expired"
    credentials.expiry = credentials.expiry.replace(year=2000)
    store.put(Upload(staged(CONTENT), "two.mp4", "video/mp4"))
    assert credentials.token == first  # the emulator gives the same one again


def test_other_schemes_go_through_object_storage(staged: Any, tmp_path: Path) -> None:
    folder = ObjectStoragePath(tmp_path.as_uri())
    store = NamedStore(PathStore(folder))
    store.put(Upload(staged(CONTENT), "clip.mp4", "video/mp4", if_absent=True))
    assert store.read("clip.mp4", MIB) == CONTENT
    assert store.sha256("clip.mp4") == sha256(CONTENT)
    with pytest.raises(ObjectExistsError):
        store.put(Upload(staged(b"x"), "clip.mp4", "video/mp4", if_absent=True))
    assert store.head("other.mp4") is None


@pytest.mark.parametrize("url", ["nope://bucket/x", "s3:///x", "http://[broken", "s3://"])
def test_an_invalid_destination_is_an_invalid_argument(url: str) -> None:
    with pytest.raises(LumaValueError):
        opened(url)


def test_an_error_of_the_store_names_its_reason_and_no_secrets(
    s3: S3, staged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_S3_WRONG", s3.connection(secret_key="not-the-secret"))
    store = opened("s3://s3_wrong@bucket/clips")
    upload = Upload(staged(CONTENT), "rejected.mp4", "video/mp4")
    for verb, act in (
        ("written", lambda: store.put(upload)),
        ("read", lambda: store.read("rejected.mp4", 9)),
    ):
        with pytest.raises(
            DownloadError, match=rf"s3://bucket/clips/rejected\.mp4 cannot be {verb}: "
        ) as error:
            act()
        assert "not-the-secret" not in str(error.value)
    assert not (s3.folder / "bucket/clips/rejected.mp4").exists()


# What is special about local folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "clips"


def test_a_local_file_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with Staging(str(tmp_path)).file() as file:
            file.write(CONTENT)
            LocalStore(str(tmp_path)).put(Upload(file, "clip.mp4", "video/mp4"))
    finally:
        os.umask(before)
    assert (tmp_path / "clip.mp4").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.fixture
def other_file_system(tmp_path: Path) -> Staging:
    shared_memory = Path("/dev/shm")  # noqa: S108
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is but one file system")
    return Staging(str(shared_memory))


@pytest.mark.parametrize("has_anonymous_files", [True, False])
def test_a_killed_copy_to_another_file_system_leaves_at_most_one_partial_file(
    folder: Path, other_file_system: Staging, monkeypatch: pytest.MonkeyPatch, has_anonymous_files: bool
) -> None:
    store = LocalStore(str(folder))
    if not has_anonymous_files:
        monkeypatch.setattr(local, "open_anonymous", raise_(OSError(errno.EOPNOTSUPP, "not supported")))
    with other_file_system.file() as file:
        file.write(CONTENT)
        upload = Upload(file, "clip.mp4", "video/mp4")
        for _ in range(3):
            with pytest.MonkeyPatch.context() as killed:
                killed.setattr(local, "_copy_bytes", raise_(KeyboardInterrupt()))
                with pytest.raises(KeyboardInterrupt):
                    store.put(upload)
            assert len(list(folder.iterdir())) == (0 if has_anonymous_files else 1)
        store.put(upload)
    assert [path.name for path in folder.iterdir()] == ["clip.mp4"]
    assert (folder / "clip.mp4").read_bytes() == CONTENT


@pytest.mark.parametrize("has_anonymous_files", [True, False])
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_copy_from_another_file_system_replaces_only_with_overwrite(
    folder: Path,
    other_file_system: Staging,
    monkeypatch: pytest.MonkeyPatch,
    has_anonymous_files: bool,
    if_absent: bool,
) -> None:
    if not has_anonymous_files:
        monkeypatch.setattr(local, "open_anonymous", raise_(OSError(errno.EOPNOTSUPP, "not supported")))
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(b"another film")
    with other_file_system.file() as file:
        file.write(CONTENT)
        upload = Upload(file, "clip.mp4", "video/mp4", if_absent=if_absent)
        if if_absent:
            with pytest.raises(FileExistsError):
                LocalStore(str(folder)).put(upload)
        else:
            LocalStore(str(folder)).put(upload)
    assert (folder / "clip.mp4").read_bytes() == (b"another film" if if_absent else CONTENT)
    assert [path.name for path in folder.iterdir()] == ["clip.mp4"]


def test_a_local_reader_never_sees_a_partial_file(folder: Path, staged: Any) -> None:
    store = LocalStore(str(folder), fsync=False)
    done = threading.Event()
    sizes: set[int] = set()

    def watch() -> None:
        while not done.is_set():
            if (folder / "clip.mp4").exists():
                sizes.add(len((folder / "clip.mp4").read_bytes()))

    reader = threading.Thread(target=watch)
    reader.start()
    for turn in range(60):
        content = b"x" * (5_000_000 if turn % 2 else 3_000_000)
        store.put(Upload(staged(content), "clip.mp4", "video/mp4"))
    done.set()
    reader.join()
    assert sizes
    assert sizes <= {3_000_000, 5_000_000}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, staged: Any) -> None:
    (tmp_path / "taken").write_text("a file")
    store = NamedStore(LocalStore(str(tmp_path)))
    with pytest.raises(DownloadError, match=r"taken/clip\.mp4 cannot be written: .*(Exists|NotADir)"):
        store.put(Upload(staged(CONTENT), "taken/clip.mp4", "video/mp4"))


def test_leftovers_of_a_killed_worker_are_removed_by_the_next_run(folder: Path, staged: Any) -> None:
    store, upload = LocalStore(str(folder)), Upload(staged(CONTENT), "clip.mp4", "video/mp4")
    store.put(upload)
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(os, "replace", raise_(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            store.put(upload)
    assert len(list(folder.iterdir())) == 2
    store.put(upload)
    assert [path.name for path in folder.iterdir()] == ["clip.mp4"]


def raise_(error: BaseException) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_runs_that_replace_the_same_object_leave_one_complete(folder: Path, staged: Any) -> None:
    store = LocalStore(str(folder), fsync=False)
    contents = [bytes([number]) * 100_000 for number in range(8)]

    def replace_often(content: bytes) -> None:
        for _ in range(20):
            store.put(Upload(staged(content), "clip.mp4", "video/mp4"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(replace_often, contents))
    assert (folder / "clip.mp4").read_bytes() in contents
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("fsync", [True, False])
def test_file_and_folders_are_flushed_before_the_put_returns(
    folder: Path, staged: Any, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    flushed: list[str] = []
    original = os.fsync

    def record(fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").resolve()
        flushed.append("file" if not name.is_dir() else str(name.relative_to(folder.parent)))
        original(fd)

    monkeypatch.setattr(os, "fsync", record)
    LocalStore(str(folder), fsync=fsync).put(Upload(staged(CONTENT), "2024/clip.mp4", "video/mp4"))
    assert flushed == ([".", "clips", "file", "clips/2024"] if fsync else [])
