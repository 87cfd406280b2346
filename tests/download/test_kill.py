"""``kill -9`` at random moments, while somebody reads."""

from __future__ import annotations

import hashlib
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

import pytest

from airflow_provider_luma.sandbox import Sandbox
from airflow_provider_luma.sandbox.footage import video
from tests.stores import S3

BYTES = 1_000_000
KILLS = 10

# Archives everything that the sandbox has, as the operator does, once for each line that it reads. Each
# time is a process of its own, forked because importing Airflow takes seconds.
ARCHIVE = """
import os, sys
from airflow.sdk import ObjectStoragePath
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.download.archive import Archiver
from airflow_provider_luma.download.download import Downloader
from airflow_provider_luma.download.guard import guarded_session
from airflow_provider_luma.download.staging import Staging

def archive(key, url, destination, *ids):
    relay = RelayClient(key, url)
    folder = ObjectStoragePath(destination)
    session = guarded_session(relay_url=url, allowed_hosts=["127.0.0.1"], connections=4)
    refresh = lambda task_id: relay.query_once([task_id]).get(task_id)
    archiver = Archiver(Downloader(session), refresh, folder, max_parallel=4, staging=Staging.near(folder))
    tasks = list(relay.get_tasks(ids).values())
    _ = folder.fs
    print(os.getpid(), flush=True)
    archive = archiver.archive(tasks)
    assert not archive.errors, archive.errors

for _ in sys.stdin:
    if not (child := os.fork()):
        archive(*sys.argv[1:])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tasks=24, seconds=0, fail=0, video_bytes=BYTES) as sandbox:
        yield sandbox


@pytest.mark.parametrize(("kind", "longest"), [("file", 0.15), ("s3", 0.5)])
def test_killing_again_and_again_leaves_nothing_half_and_loses_nothing(
    sandbox: Sandbox, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, longest: float
) -> None:
    folder = tmp_path / "clips" if kind == "file" else s3.folder / "bucket/killed"
    monkeypatch.setenv("AIRFLOW_CONN_S3", s3.connection())
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    url = folder.as_uri() if kind == "file" else "s3://s3@bucket/killed"
    expected = {f"{task_id}.mp4": digest(task_id) for task_id in sandbox.task_ids}
    with watched(folder, expected) as seen, nursery(sandbox, url) as archive:
        for seed in range(KILLS):
            process = archive.begin()
            time.sleep(random.Random(seed).uniform(0.01, longest))
            with suppress(ProcessLookupError):  # it was quicker
                os.kill(process, signal.SIGKILL)
            assert archive.ended() in {0, -signal.SIGKILL}
        archive.begin()
        assert archive.ended() == 0
    assert seen.problems == []
    assert seen.whole > len(expected)  # it did look, and more than once
    assert {path.name for path in folder.iterdir()} == {
        *expected,
        *(f"{task_id}.json" for task_id in sandbox.task_ids),
    }
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in expected} == expected
    assert list((tmp_path / "temporary").iterdir()) == []


def digest(task_id: str) -> str:
    return hashlib.sha256(b"".join(video(task_id, BYTES).chunks(0, BYTES))).hexdigest()


class Nursery:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self._ask, self._answers = process.stdin, process.stdout

    def begin(self) -> int:
        """Return the id of a process that has just begun to archive."""
        print("archive", file=self._ask, flush=True)
        return self._number()

    def ended(self) -> int:
        """Return the exit code of that process, once it has ended."""
        return self._number()

    def _number(self) -> int:
        while not (line := self._answers.readline().strip()).lstrip("-").isdecimal():
            assert line
        return int(line)


@contextmanager
def nursery(sandbox: Sandbox, url: str) -> Iterator[Nursery]:
    command = [sys.executable, "-c", ARCHIVE, sandbox.api_key, sandbox.base_url, url, *sandbox.task_ids]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Nursery(process)


class Seen:
    def __init__(self) -> None:
        self.whole = 0
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
                    seen.whole += 1
                else:
                    seen.problems.append(f"{name} had {len(content)} bytes")

    reader = threading.Thread(target=watch)
    reader.start()
    try:
        yield seen
    finally:
        done.set()
        reader.join()
