"""What a download adds to the memory of its process, from the first link to the last record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_luma.sandbox import Sandbox

MIB = 2**20

# Downloads one small video, so that all is imported and connected, and then what was asked for.
DOWNLOAD = """
import resource, sys
from airflow_provider_luma.download.downloader import Downloader
from airflow_provider_luma.download.pool import DownloadPool
from airflow_provider_luma.download.ssrf import AddressPolicy
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.stores.base import NamedStore
from airflow_provider_luma.download.task_download import DownloadOptions, TaskDownloader
from airflow_provider_luma.download.transport import Transport
from airflow_provider_luma.operators.destination import open_store
from airflow_provider_luma.relay import RelayClient

key, small, large, destination, staging = sys.argv[1:]
store = NamedStore(open_store(destination, None, max_parallel=8, fsync=True))

def download(url):
    url, *ids = url.split("|")
    downloader = Downloader(Transport(AddressPolicy(url, ["127.0.0.1"])))
    files = Staging(staging, crc32_above=store.store.multipart_above)
    task_downloader = TaskDownloader(downloader, None, store, files, DownloadOptions())
    result = DownloadPool(task_downloader).download(list(RelayClient(key, url).get_tasks(ids).values()))
    assert not result.errors, result.errors
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = download(small)
print("MiB", download(large) - before)
"""


def added(destination_url: str, staging: Path, *, videos: int, size: int) -> int:
    """Return the MiB that a download of so many videos of this size adds at its peak."""
    with (
        Sandbox(tasks=1, seconds=0, fail=0) as small,
        Sandbox(tasks=videos, seconds=0, fail=0, video_bytes=size, seed=1) as large,
    ):
        urls = ["|".join([sandbox.base_url, *sandbox.task_ids]) for sandbox in (small, large)]
        arguments = [small.api_key, *urls, destination_url, str(staging)]
        done = subprocess.run([sys.executable, "-c", DOWNLOAD, *arguments], capture_output=True, text=True)
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
