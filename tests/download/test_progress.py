from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from airflow_provider_luma.download.progress import Counts, Progress
from airflow_provider_luma.download.staging import Source, Staging, format_bytes


def test_a_line_shows_progress_and_speed(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("airflow_provider_luma.download.progress.time", clock)
    with staging.file() as file:
        progress = Progress(120)
        file.source = Source(40_000_000, "video/mp4", None)
        file.size = 20_000_000
        now += 10
        line = progress.format_line(Counts(30, 7, 3), [40_000_000] * 29, [file])
        assert line == "37 of 120 videos, 1.2 of about 4.4 GB, 118.0 MB/s, 3 errors, 7 unchanged"
        now += 10
        line = progress.format_line(Counts(30, 7, 3), [40_000_000] * 29, [file])
        assert ", 0 bytes/s," in line
        line = progress.format_line(Counts(110, 7, 3), [40_000_000] * 110, [])
        assert line == "117 of 120 videos, 4.4 of 4.4 GB, 220.0 MB/s, 3 errors, 7 unchanged"


def test_small_downloads_are_in_megabytes() -> None:
    assert re.fullmatch(
        r"2 of 2 videos, 0.1 of 0.1 MB, .*B/s, 0 errors",
        Progress(2).format_line(Counts(2, 0, 0), [65_000] * 2, []),
    )


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (1500, "1.5 kB"), (65_000_000, "65.0 MB"), (3.2e12, "3,200.0 GB")]
)
def test_sizes_are_formatted(size: int, text: str) -> None:
    assert format_bytes(size) == text
