from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from types import SimpleNamespace

import pytest

from airflow_provider_luma.download import archive
from airflow_provider_luma.download.progress import Count, Progress
from airflow_provider_luma.download.staging import Source, Staging, in_words


def test_a_line_says_how_far_it_is_and_how_fast(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("airflow_provider_luma.download.progress.time", clock)
    with staging.file() as file:
        progress = Progress(120)
        file.source = Source(40_000_000, "video/mp4", None)
        file.size = 20_000_000
        now += 10
        line = progress.line(Count(30, 7, 3), [40_000_000] * 29, [file])
        assert line == "37 of 120 videos, 1.2 of about 4.4 GB, 118.0 MB/s, 3 failed, 7 unchanged"
        now += 10
        line = progress.line(Count(30, 7, 3), [40_000_000] * 29, [file])
        assert ", 0 bytes/s," in line
        line = progress.line(Count(110, 7, 3), [40_000_000] * 110, [])
        assert line == "117 of 120 videos, 4.4 of 4.4 GB, 220.0 MB/s, 3 failed, 7 unchanged"


def test_small_archives_are_told_in_megabytes() -> None:
    assert re.fullmatch(
        r"2 of 2 videos, 0.1 of 0.1 MB, .*B/s, 0 failed", Progress(2).line(Count(2, 0, 0), [65_000] * 2, [])
    )


def test_a_long_archive_says_so_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert archive._SECONDS_BETWEEN_PROGRESS == 10
    lines: list[str] = []
    monkeypatch.setattr(archive, "_SECONDS_BETWEEN_PROGRESS", 0.2)
    monkeypatch.setattr(archive, "log", SimpleNamespace(info=lambda form, line: lines.append(form % line)))
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(lambda: sleep(0.9) or {"status": "unchanged"})
        this = SimpleNamespace(_staging=SimpleNamespace(files=list))
        archive.Archiver._wait(this, {"a": future})  # type: ignore[arg-type]
    assert 3 <= len(lines) <= 6
    assert lines[0].startswith("0 of 1 videos")
    assert lines[-1].startswith("1 of 1 videos")


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 bytes"), (1500, "1.5 kB"), (65_000_000, "65.0 MB"), (3.2e12, "3,200.0 GB")]
)
def test_sizes_are_told_in_words(size: int, words: str) -> None:
    assert in_words(size) == words
