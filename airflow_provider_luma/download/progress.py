"""The progress of a download, in a line."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_provider_luma.download.staging import StagedFile, format_bytes


@dataclass(frozen=True)
class Counts:
    """
    Counts of the tasks that are done.

    :param downloaded: by this run.
    :param unchanged: downloaded before.
    :param failed: given up; ``errors`` in the line, as ``failed`` tasks have no video.
    """

    downloaded: int
    unchanged: int
    failed: int


class Progress:
    """
    Measures how far it is and how fast it goes.

    :param tasks: how many there are to download.
    """

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks
        self._started = self._marked = time.monotonic()
        self._bytes_at_mark = 0

    def format_line(
        self, counts: Counts, completed_sizes: Iterable[int], in_progress: Iterable[StagedFile]
    ) -> str:
        """
        Format a line, with the speed since the last one, or that of all when all have ended.

        :param completed_sizes: the size of each downloaded file.
        :param in_progress: what is being downloaded or stored.
        """
        sizes, files = list(completed_sizes), list(in_progress)
        downloaded = sum(sizes) + sum(file.size for file in files)
        done = counts.downloaded + counts.unchanged
        known = [file.source.size for file in files if file.source and file.source.size is not None]
        parts = [
            f"{done:,} of {self._tasks:,} videos",
            _of_total(downloaded, [*sizes, *known], self._tasks - counts.unchanged - counts.failed),
            f"{format_bytes(self._speed(downloaded, done + counts.failed == self._tasks))}/s",
            f"{counts.failed:,} errors",
        ]
        return ", ".join(parts + ([f"{counts.unchanged:,} unchanged"] if counts.unchanged else []))

    def _speed(self, downloaded: int, finished: bool) -> int:
        now = time.monotonic()
        since, before = (self._started, 0) if finished else (self._marked, self._bytes_at_mark)
        self._marked, self._bytes_at_mark = now, downloaded
        return max(round((downloaded - before) / max(now - since, 1e-3)), 0)


def _of_total(downloaded: int, sizes: list[int], videos: int) -> str:
    """Compare with the sum of all sizes, estimated from those that are known while some are not."""
    total, about = max(sum(sizes), downloaded), ""
    if sizes and videos > len(sizes):
        total, about = total * videos // len(sizes), "about "
    unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    return f"{downloaded / unit:.1f} of {about}{total / unit:.1f} {name}"
