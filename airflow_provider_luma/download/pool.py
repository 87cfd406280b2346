"""Many completed tasks into one destination, several at once, each for itself."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from airflow_provider_luma.download.naming import object_names
from airflow_provider_luma.download.progress import Counts, Progress
from airflow_provider_luma.download.records import UNCHANGED, File, Record
from airflow_provider_luma.download.task_download import TaskDownloader, TaskResult
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.threads import THREAD_PREFIX, StoppedError, start_thread

log = logging.getLogger(__name__)

PROGRESS_INTERVAL = 10.0
_STOP_TIMEOUT = 1.0
_POLL_SECONDS = 0.1


@dataclass
class DownloadResult:
    """
    Result of a download run.

    :param records: of each task with any file, in the order of the tasks.
    :param errors: of each task with a file that is not there, keyed by id.
    :param downloaded_files: by this run.
    :param seconds: how long it took.
    """

    records: list[Record] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    downloaded_files: list[File] = field(default_factory=list)
    seconds: float = 0

    @property
    def counts(self) -> Counts:
        complete = [record for record in self.records if record["id"] not in self.errors]
        unchanged = sum(record["status"] == UNCHANGED for record in complete)
        return Counts(len(complete) - unchanged, unchanged, len(self.errors))


class DownloadPool:
    """
    Downloads tasks in daemon threads, which are abandoned when they do not stop by themselves.

    :param downloader: downloads one task.
    :param progress_interval: how often the log says how far it is.
    """

    def __init__(self, downloader: TaskDownloader, *, progress_interval: float = PROGRESS_INTERVAL) -> None:
        self._downloader = downloader
        self._stopped = downloader.downloader.stopped
        self._progress_interval = progress_interval

    def download(self, tasks: Sequence[LumaTask]) -> DownloadResult:
        """
        Download what can be downloaded; one task's error does not stop the others.

        :raises LumaValueError: before any download, when two tasks would get the same name.
        """
        names = object_names(self._downloader.options.name_template, tasks)
        started = time.monotonic()
        results: dict[str, TaskResult] = {}
        try:
            self._run([(task, names[task.id]) for task in tasks], results)
        except BaseException:
            self._stopped.set()
            raise
        result = collect([task.id for task in tasks], dict(results))
        result.seconds = time.monotonic() - started
        return result

    def _run(self, work: Sequence[tuple[LumaTask, str]], results: dict[str, TaskResult]) -> None:
        pending: queue.SimpleQueue[tuple[LumaTask, str]] = queue.SimpleQueue()
        for item in work:
            pending.put(item)

        def download_pending() -> None:
            while not self._stopped.is_set():
                try:
                    task, name = pending.get_nowait()
                except queue.Empty:
                    return
                results[task.id] = self._downloader.download(task, name)

        number = min(self._downloader.options.max_parallel, len(work))
        futures = [start_thread(download_pending, f"{THREAD_PREFIX}-{index}")[0] for index in range(number)]
        self._wait(futures, len(work), results)
        wait(futures, timeout=_STOP_TIMEOUT)

    def _wait(self, futures: Iterable[Future[None]], total: int, results: dict[str, TaskResult]) -> None:
        progress = Progress(total)
        next_line = time.monotonic() + self._progress_interval
        running = set(futures)
        while running and not self._stopped.is_set():
            _, running = wait(running, timeout=_POLL_SECONDS)
            if time.monotonic() >= next_line:
                next_line += self._progress_interval
                self._log(progress, results)
        self._log(progress, results)

    def _log(self, progress: Progress, results: dict[str, TaskResult]) -> None:
        so_far = dict(results)
        result = collect(list(so_far), so_far)
        sizes = [file["size"] for file in result.downloaded_files]
        log.info("%s", progress.format_line(result.counts, sizes, self._downloader.staging.files()))


def collect(ids: Iterable[str], results: dict[str, TaskResult]) -> DownloadResult:
    collected = DownloadResult()
    for task_id in ids:
        result = results.get(task_id) or TaskResult(error=StoppedError())
        if result.record is not None:
            collected.records.append(result.record)
        if result.error is not None:
            collected.errors[task_id] = result.error
        collected.downloaded_files += result.downloaded
    return collected
