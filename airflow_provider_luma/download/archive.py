"""Many completed tasks into one destination, several at once, each for itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_any,
    stop_when_event_set,
)
from tenacity.wait import wait_exponential

from airflow_provider_luma.arguments import IfExists
from airflow_provider_luma.download.download import Downloader, StopWithoutGain, without_query
from airflow_provider_luma.download.naming import file_name, object_names
from airflow_provider_luma.download.progress import Count, Progress
from airflow_provider_luma.download.records import (
    DOWNLOADED,
    UNCHANGED,
    File,
    Record,
    make_record,
    read_record,
    record_path,
    write_json,
)
from airflow_provider_luma.download.staging import StagedFile, Staging
from airflow_provider_luma.download.store import ObjectPath, check_free, media_type, publish, uri
from airflow_provider_luma.exceptions import (
    DownloadError,
    LinkExpiredError,
    LumaError,
    RelayRateLimitError,
    RelayTransientError,
)
from airflow_provider_luma.relay.task import MEDIA_KINDS, LumaTask

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_PROGRESS = 10


@dataclass
class Archive:
    """
    What became of the tasks.

    :param records: of each archived task, in the order of the tasks.
    :param errors: of each task that was not archived, keyed by id.
    :param seconds: how long it took.
    """

    records: list[Record] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    seconds: float = 0

    @property
    def count(self) -> Count:
        unchanged = sum(record["status"] == UNCHANGED for record in self.records)
        return Count(len(self.records) - unchanged, unchanged, len(self.errors))

    @property
    def moved(self) -> Iterator[File]:
        """The files that were downloaded by this run."""
        for record in self.records:
            if record["status"] == DOWNLOADED:
                yield from (file for file in map(record.get, MEDIA_KINDS) if file)


class Archiver:
    """
    Downloads the media of completed tasks and puts them into a destination, each with a record beside it.

    The record is written last. Where there is one and the object has the size that it tells, the task is
    archived already and nothing is moved.

    :param downloader: fetches files.
    :param refresh: asks the relay for a task again, for a fresh link; ``None`` when it no longer knows it.
    :param destination: the folder that everything goes into.
    :param media: kinds of files: ``video``, ``thumbnail``, ``last_frame``.
    :param name_template: see :func:`..naming.read_name_template`.
    :param max_parallel: how many tasks are archived at once.
    :param link_timeout: seconds for which a missing or refused link is asked for again.
    :param download_timeout: seconds for one file.
    :param if_exists: see :class:`..arguments.IfExists`.
    :param staging: where files wait until they are whole.
    """

    def __init__(
        self,
        downloader: Downloader,
        refresh: Callable[[str], LumaTask | None],
        destination: ObjectPath,
        *,
        media: Sequence[str] = ("video",),
        name_template: str = "{id}",
        max_parallel: int = 8,
        link_timeout: float = 120,
        download_timeout: float = 3600,
        if_exists: IfExists = IfExists.SKIP,
        staging: Staging | None = None,
    ) -> None:
        self._downloader = downloader
        self._refresh = refresh
        self._destination = destination
        self._media = media
        self._name_template = name_template
        self._max_parallel = max_parallel
        self._link_timeout = link_timeout
        self._download_timeout = download_timeout
        self._if_exists = if_exists
        self._staging = staging or Staging()

    def archive(self, tasks: Sequence[LumaTask]) -> Archive:
        """
        Archive what can be archived; one task's error does not stop the others.

        :raises LumaValueError: before any download, when two tasks would get the same name.
        """
        names = object_names(self._name_template, tasks)
        began = time.monotonic()
        with self._threads() as threads:
            futures = {task.id: threads.submit(self._archive_task, task, names[task.id]) for task in tasks}
            self._wait(futures)
        return replace(_archive_of(futures), seconds=time.monotonic() - began)

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        threads = ThreadPoolExecutor(self._max_parallel, thread_name_prefix="luma-download")
        try:
            yield threads
        except BaseException:
            self._downloader.stop()
            raise
        finally:
            threads.shutdown(cancel_futures=True)

    def _wait(self, futures: Mapping[str, Future[Record]]) -> None:
        progress = Progress(len(futures))
        pending = set(futures.values())
        while pending:
            _, pending = wait(pending, timeout=_SECONDS_BETWEEN_PROGRESS)
            ended = _archive_of({task_id: future for task_id, future in futures.items() if future.done()})
            sizes = [file["size"] for file in ended.moved]
            log.info("%s", progress.line(ended.count, sizes, self._staging.files()))

    def _archive_task(self, task: LumaTask, name: str) -> Record:
        self._check_stopped()
        overwrite = self._if_exists is IfExists.OVERWRITE
        kept = {} if overwrite else read_record(self._destination, name, task)
        new = {kind: self._archive_file(task, kind, name) for kind in self._media if kind not in kept}
        if kept and not any(new.values()):
            return make_record(task, kept, UNCHANGED)
        record = make_record(task, {**kept, **new}, DOWNLOADED)
        write_json(self._staging, record_path(self._destination, name), [record])
        return record

    def _archive_file(self, task: LumaTask, kind: str, name: str) -> File | None:
        self._check_stopped()
        if kind != "video" and task.media(kind) is None:
            log.info("Luma task %s has no %s", task.id, kind)
            return None
        with self._staging.file() as file:
            url = self._fetch(task, kind, name, file)
            return self._store(task, self._target(name, kind, url), file, url)

    def _fetch(self, task: LumaTask, kind: str, name: str, file: StagedFile) -> str:
        """Download with a fresh link wherever one is refused, and return the link that worked."""
        deadline = time.monotonic() + self._download_timeout

        def fetch() -> str:
            url = _link(task, kind)
            if self._if_exists is IfExists.FAIL:
                check_free(self._target(name, kind, url))
            self._downloader.fetch(url, file, deadline=deadline)
            return url

        def refresh() -> None:
            nonlocal task
            task = self._ask_again(task)

        return Retrying(
            retry=retry_if_exception_type(LinkExpiredError),
            stop=stop_any(
                StopWithoutGain(file, seconds=self._link_timeout),
                stop_when_event_set(self._downloader.stopped),
            ),
            wait=wait_exponential(min=1, max=15),
            sleep=sleep_using_event(self._downloader.stopped),
            before=lambda state: refresh() if state.attempt_number > 1 else None,
            reraise=True,
        )(fetch)

    def _ask_again(self, task: LumaTask) -> LumaTask:
        try:
            return self._refresh(task.id) or task
        except (RelayRateLimitError, RelayTransientError) as error:
            log.warning("No fresh link for Luma task %s yet: %s", task.id, error)
            return task

    def _store(self, task: LumaTask, target: ObjectPath, file: StagedFile, url: str) -> File:
        content_type = media_type(file.source.content_type if file.source else "", target.path)
        publish(
            file.path,
            target,
            content_type,
            metadata={"luma-task-id": task.id, "sha256": file.sha256},
            overwrite=self._if_exists is not IfExists.FAIL,
            stopped=self._downloader.stopped,
        )
        return {
            "uri": uri(target),
            "size": file.size,
            "sha256": file.sha256,
            "content_type": content_type,
            "source": without_query(url),
        }

    def _target(self, name: str, kind: str, url: str) -> ObjectPath:
        return self._destination / file_name(name, kind, url)

    def _check_stopped(self) -> None:
        if self._downloader.stopped.is_set():
            raise DownloadError("stopped")


def _archive_of(futures: Mapping[str, Future[Record]]) -> Archive:
    archive = Archive()
    for task_id, future in futures.items():
        if (error := future.exception()) is None:
            archive.records.append(future.result())
        elif isinstance(error, (LumaError, OSError)):
            archive.errors[task_id] = error
        else:
            raise error
    return archive


def _link(task: LumaTask, kind: str) -> str:
    media = task.media(kind)
    if media is None or media.url is None:
        raise LinkExpiredError(f"the relay says completed but gives no link to the {kind}")
    return media.url
