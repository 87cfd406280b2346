"""``kill -9``: at each crash window of the sidecar's table, and at random moments while somebody reads."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.download.stores.base import NamedStore
from airflow_provider_luma.operators.destination import open_store
from airflow_provider_luma.sandbox import Sandbox
from airflow_provider_luma.sandbox.media import image, video
from tests.stores import S3

BYTES = 1_000_000
KILLS = 10
MIB = 2**20

# Downloads what each line asks for, as the operator does, and kills itself before or after the nth put if the
# line says so. Each time is a process of its own, forked because importing Airflow takes seconds.
DOWNLOAD = """
import json, os, signal, sys
from airflow_provider_luma.arguments import IfExists
from airflow_provider_luma.download.downloader import Downloader, DownloadLimits
from airflow_provider_luma.download.pool import DownloadPool
from airflow_provider_luma.download.ssrf import AddressPolicy
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.stores.base import NamedStore
from airflow_provider_luma.download.task_download import DownloadOptions, TaskDownloader
from airflow_provider_luma.download.transport import Transport
from airflow_provider_luma.operators.destination import open_store
from airflow_provider_luma.relay import RelayClient

class KillingStore(NamedStore):
    puts, when, nth = 0, "", 0

    def put(self, upload):
        KillingStore.puts += 1
        self.kill("before")
        super().put(upload)
        self.kill("after")

    def kill(self, when):
        if (self.when, self.nth) == (when, self.puts):
            os.kill(os.getpid(), signal.SIGKILL)

def download(key, url, destination, order):
    KillingStore.when, KillingStore.nth = order.get("when", ""), order.get("nth", 0)
    relay = RelayClient(key, url)
    store = KillingStore(open_store(destination, None, max_parallel=4, fsync=False))
    downloader = Downloader(Transport(AddressPolicy(url, ["127.0.0.1"])))
    refresh = lambda task_id: relay.query_once([task_id]).get(task_id)
    if_exists = IfExists(order.get("if_exists", "skip"))
    options = DownloadOptions(media=order.get("media", ["video"]), if_exists=if_exists, max_parallel=4)
    tasks = list(relay.get_tasks(order["ids"]).values())
    staging = Staging(store.staging_folder(), crc32_above=store.store.multipart_above)
    print(os.getpid(), flush=True)
    result = DownloadPool(TaskDownloader(downloader, refresh, store, staging, options)).download(tasks)
    assert not result.errors, result.errors

open_store(sys.argv[3], None, max_parallel=4, fsync=False)  # imports what takes seconds, once
for line in sys.stdin:
    if not (child := os.fork()):
        try:
            download(*sys.argv[1:], json.loads(line))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tasks=24, seconds=0, fail=0, video_bytes=BYTES) as sandbox:
        yield sandbox


def film(task_id: str) -> bytes:
    return b"".join(video(task_id, BYTES).chunks(0, BYTES))


@pytest.mark.parametrize(
    ("destination_url", "original"),
    [
        ("file", "skip"),
        ("file", "fail"),
        ("file", "overwrite"),
        ("moto", "fail"),
        ("moto", "overwrite"),
        ("rclone", "skip"),
        ("azure", "fail"),
        ("gcs", "skip"),
    ],
    indirect=["destination_url"],
)
def test_killed_in_any_window_nothing_is_damaged_and_the_next_run_completes_it(
    sandbox: Sandbox, destination_url: str, original: str
) -> None:
    store = NamedStore(open_store(destination_url, None, max_parallel=1, fsync=False))
    windows = [(when, nth) for nth in range(1, 8) for when in ("before", "after")]
    killed = 0
    with nursery(sandbox, destination_url) as process:
        for (when, nth), task_id in zip(windows, sandbox.task_ids, strict=False):
            order = {"ids": [task_id], "media": ["video", "thumbnail"], "if_exists": original}
            if original == "overwrite":
                process.run(order | {"if_exists": "skip"})
            killed += process.run({**order, "when": when, "nth": nth}) == -signal.SIGKILL
            assert_true(store, task_id)
            if original == "overwrite":
                order["if_exists"] = "skip"
            before = len(sandbox.downloads)
            published = [name for name in (f"{task_id}.mp4", f"{task_id}.thumbnail.jpg") if store.head(name)]
            assert process.run(order) == 0
            if original != "overwrite":  # else the old objects may stand where the new ones should
                assert len(sandbox.downloads) - before <= 2 - len(published)
            assert_true(store, task_id)
            assert sidecar(store, task_id)["status"] == "downloaded"
            assert digest(store.read(f"{task_id}.mp4", 2 * MIB) or b"") == digest(film(task_id))
    assert killed >= 7


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sidecar(store: NamedStore, task_id: str) -> dict[str, Any]:
    return dict(json.loads(store.read(f"{task_id}.json", MIB) or b"{}"))


def assert_true(store: NamedStore, task_id: str) -> None:
    """Every object is complete, and every file that the sidecar lists is there, byte by byte."""
    expected = {"video": digest(film(task_id)), "thumbnail": digest(image("thumbnail.jpg").head)}
    names = {"video": f"{task_id}.mp4", "thumbnail": f"{task_id}.thumbnail.jpg"}
    record = sidecar(store, task_id)
    for kind, name in names.items():
        content = store.read(name, 2 * MIB)
        assert content is None or digest(content) == expected[kind]
        if file := record.get(kind):
            assert content is not None
            assert digest(content) == file["sha256"]


@pytest.mark.parametrize(("kind", "longest"), [("file", 0.15), ("s3", 0.5)])
def test_killing_again_and_again_leaves_nothing_partial_and_loses_nothing(
    sandbox: Sandbox, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, longest: float
) -> None:
    folder = tmp_path / "clips" if kind == "file" else s3.folder / "bucket/killed"
    monkeypatch.setenv("AIRFLOW_CONN_S3", s3.connection())
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    url = folder.as_uri() if kind == "file" else "s3://s3@bucket/killed"
    expected = {f"{task_id}.mp4": digest(film(task_id)) for task_id in sandbox.task_ids}
    order = {"ids": sandbox.task_ids}
    with watched(folder, expected) as seen, nursery(sandbox, url) as process:
        for seed in range(KILLS):
            pid = process.begin(order)
            time.sleep(random.Random(seed).uniform(0.01, longest))
            with suppress(ProcessLookupError):  # it was quicker
                os.kill(pid, signal.SIGKILL)
            assert process.wait() in {0, -signal.SIGKILL}
        assert process.run(order) == 0
    assert seen.problems == []
    assert seen.complete > len(expected)  # it did look, and more than once
    assert {path.name for path in folder.iterdir()} == {
        *expected,
        *(f"{task_id}.json" for task_id in sandbox.task_ids),
    }
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in expected} == expected
    assert list((tmp_path / "temporary").iterdir()) == []


class Nursery:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self._requests, self._responses = process.stdin, process.stdout

    def begin(self, order: dict[str, Any]) -> int:
        """Return the id of a process that has just begun to download."""
        print(json.dumps(order), file=self._requests, flush=True)
        return self._number()

    def wait(self) -> int:
        """Return the exit code of that process, once it has ended."""
        return self._number()

    def run(self, order: dict[str, Any]) -> int:
        self.begin(order)
        return self.wait()

    def _number(self) -> int:
        while not (line := self._responses.readline().strip()).lstrip("-").isdecimal():
            assert line
        return int(line)


@contextmanager
def nursery(sandbox: Sandbox, url: str) -> Iterator[Nursery]:
    command = [sys.executable, "-c", DOWNLOAD, sandbox.api_key, sandbox.base_url, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Nursery(process)


class Seen:
    def __init__(self) -> None:
        self.complete = 0
        self.problems: list[str] = []


@contextmanager
def watched(folder: Path, expected: dict[str, str]) -> Iterator[Seen]:
    """Read every video that has its final name, all the time."""
    seen, done = Seen(), threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for name, sha256 in expected.items():
                try:
                    content = (folder / name).read_bytes()
                except FileNotFoundError:
                    continue
                if hashlib.sha256(content).hexdigest() == sha256:
                    seen.complete += 1
                else:
                    seen.problems.append(f"{name} had {len(content)} bytes")

    reader = threading.Thread(target=watch)
    reader.start()
    try:
        yield seen
    finally:
        done.set()
        reader.join()
