"""What an archive adds to the memory of its process, from the first link to the last record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_luma.sandbox import Sandbox

MIB = 2**20

# Archives one small video, so that all is imported and connected, and then what was asked for.
ARCHIVE = """
import resource, sys
from airflow.sdk import ObjectStoragePath
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.download.archive import Archiver
from airflow_provider_luma.download.download import Downloader
from airflow_provider_luma.download.guard import guarded_session
from airflow_provider_luma.download.staging import Staging

key, small, large, destination, staging = sys.argv[1:]

def archive(url):
    url, *ids = url.split("|")
    relay = RelayClient(key, url)
    session = guarded_session(relay_url=url, allowed_hosts=["127.0.0.1"], connections=8)
    archiver = Archiver(Downloader(session), None, ObjectStoragePath(destination), staging=Staging(staging))
    archive = archiver.archive(list(relay.get_tasks(ids).values()))
    assert not archive.errors, archive.errors
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = archive(small)
print("MiB", archive(large) - before)
"""


def added(destination_url: str, staging: Path, *, videos: int, size: int) -> int:
    """Return the MiB that an archive of so many videos of this size adds at its peak."""
    with (
        Sandbox(tasks=1, seconds=0, fail=0) as small,
        Sandbox(tasks=videos, seconds=0, fail=0, video_bytes=size, seed=1) as large,
    ):
        urls = ["|".join([sandbox.base_url, *sandbox.task_ids]) for sandbox in (small, large)]
        arguments = [small.api_key, *urls, destination_url, str(staging)]
        done = subprocess.run([sys.executable, "-c", ARCHIVE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mib = int(done.stdout.rpartition("MiB")[2])
    store = destination_url.partition(":")[0]
    print(f"{videos} x {size // MIB} MiB to {store}: {mib} MiB added")  # noqa: T201 - shown by make test-memory
    return mib


@pytest.mark.slow
def test_a_video_of_two_gibibytes_adds_little(destination_url: str, tmp_path: Path) -> None:
    assert added(destination_url, tmp_path, videos=1, size=2048 * MIB) < 64


@pytest.mark.slow
def test_eight_at_once_add_little(destination_url: str, tmp_path: Path) -> None:
    assert added(destination_url, tmp_path, videos=8, size=128 * MIB) < 256
