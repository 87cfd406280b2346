"""How far an archive is, in a line."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_provider_luma.download.staging import StagedFile, in_words


@dataclass(frozen=True)
class Count:
    """
    How many videos an archive has dealt with.

    :param downloaded: are archived now.
    :param unchanged: were archived before.
    :param failed: are given up.
    """

    downloaded: int
    unchanged: int
    failed: int


class Progress:
    """
    Says how far it is and how fast it goes.

    :param videos: how many there are to archive.
    """

    def __init__(self, videos: int) -> None:
        self._videos = videos
        self._began = self._marked = time.monotonic()
        self._moved_at_mark = 0

    def line(self, count: Count, whole: Iterable[int], under_way: Iterable[StagedFile]) -> str:
        """
        Say it, with the speed since the last line, or that of all when all have ended.

        :param whole: the size of each video that came whole.
        :param under_way: what is being downloaded or stored.
        """
        sizes, files = list(whole), list(under_way)
        moved = sum(sizes) + sum(file.size for file in files)
        done = count.downloaded + count.unchanged
        told = [file.source.size for file in files if file.source and file.source.size is not None]
        parts = [
            f"{done:,} of {self._videos:,} videos",
            _of_total(moved, [*sizes, *told], self._videos - count.unchanged - count.failed),
            f"{in_words(self._speed(moved, done + count.failed == self._videos))}/s",
            f"{count.failed:,} failed",
        ]
        return ", ".join(parts + ([f"{count.unchanged:,} unchanged"] if count.unchanged else []))

    def _speed(self, moved: int, over: bool) -> int:
        now = time.monotonic()
        since, before = (self._began, 0) if over else (self._marked, self._moved_at_mark)
        self._marked, self._moved_at_mark = now, moved
        return max(round((moved - before) / max(now - since, 1e-3)), 0)


def _of_total(moved: int, sizes: list[int], videos: int) -> str:
    """Compare with the sum of all sizes, estimated from those that are known while some are not."""
    total, about = max(sum(sizes), moved), ""
    if sizes and videos > len(sizes):
        total, about = total * videos // len(sizes), "about "
    unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    return f"{moved / unit:.1f} of {about}{total / unit:.1f} {name}"
