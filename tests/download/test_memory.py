"""What a download adds to the memory of its process, from the first link to the last record."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from airflow_provider_luma.sandbox import Sandbox

MIB = 2**20
# In MiB; the largest is what several at once have together, too.
SIZES = (32, 256, 1024)
AT_ONCE = 8

TABLE = Path(__file__).parents[2] / "benchmarks/memory.md"
NAMES = {
    "file": "local folder",
    "rclone": "S3 (rclone)",
    "moto": "S3 (moto)",
    "gcs": "Google (emulator)",
    "azure": "Azure (Azurite)",
}

# Takes the number of videos and the size of each, and returns the MiB that their download adds at its peak.
Added: TypeAlias = Callable[[int, int], int]

# Downloads one small video, so that all is imported and connected, and then what was asked for.
DOWNLOAD = """
import sys
from pathlib import Path
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

def peak():
    # Not ru_maxrss, which begins with that of the process that started this one.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) // 1024

def download(url):
    url, *ids = url.split("|")
    downloader = Downloader(Transport(AddressPolicy(url, ["127.0.0.1"])))
    files = Staging(staging, crc32_above=store.store.multipart_above)
    task_downloader = TaskDownloader(downloader, None, store, files, DownloadOptions())
    result = DownloadPool(task_downloader).download(list(RelayClient(key, url).get_tasks(ids).values()))
    assert not result.errors, result.errors
    return peak()

before = download(small)
print("MiB", download(large) - before)
"""


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[tuple[str, int, int], int]]:
    """What was measured, by store, videos and size; a complete run becomes the table of the charts."""
    measured: dict[tuple[str, int, int], int] = {}
    yield measured
    if len(measured) == len(NAMES) * (len(SIZES) + 1):
        lines = [f"| {NAMES[kind]} | {n} | {size} | {mib} |" for (kind, n, size), mib in measured.items()]
        TABLE.write_text(
            "Memory that downloading adds to a process at its peak, by `make test-memory`: the difference to "
            "the same process after it downloaded one small video.\n\n"
            "| store | videos at once | MiB each | MiB added |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
        )


@pytest.fixture
def added(
    destination_url: str,
    tmp_path: Path,
    rows: dict[tuple[str, int, int], int],
    request: pytest.FixtureRequest,
) -> Added:
    kind = request.node.callspec.params["destination_url"]

    def measure(videos: int, size: int) -> int:
        mib = rows[kind, videos, size] = download(destination_url, tmp_path, videos, size * MIB)
        print(f"{videos} x {size} MiB to {NAMES[kind]}: {mib} MiB added")  # noqa: T201 - shown by make test-memory
        return mib

    return measure


def download(destination_url: str, staging: Path, videos: int, size: int) -> int:
    """Return the MiB that a download of so many videos of this size adds at its peak."""
    with (
        Sandbox(tasks=1, seconds=0, fail=0) as small,
        Sandbox(tasks=videos, seconds=0, fail=0, video_bytes=size, seed=1) as large,
    ):
        urls = ["|".join([sandbox.base_url, *sandbox.task_ids]) for sandbox in (small, large)]
        arguments = [small.api_key, *urls, destination_url, str(staging)]
        done = subprocess.run([sys.executable, "-c", DOWNLOAD, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("MiB")[2])


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_video_adds_little_however_large_it_is(added: Added, size: int) -> None:
    assert added(1, size) < 64


@pytest.mark.slow
def test_eight_at_once_add_little(added: Added) -> None:
    assert added(AT_ONCE, SIZES[-1] // AT_ONCE) < 256
