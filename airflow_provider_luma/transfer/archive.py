"""Many completed tasks into one destination, several at once, each for itself."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
)
from tenacity.wait import wait_exponential

from airflow_provider_luma.exceptions import LinkRefusedError, LumaError
from airflow_provider_luma.relay.task import LumaTask, Media
from airflow_provider_luma.transfer.download import Downloader, without_query
from airflow_provider_luma.transfer.naming import file_name, object_names
from airflow_provider_luma.transfer.store import ObjectPath, publish, uri

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_PROGRESS = 10


@dataclass
class Archive:
    """
    What became of the tasks.

    :param records: of each archived task, in the order of the tasks.
    :param errors: of each task that was not archived, keyed by id.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)


class Archiver:
    """
    Downloads the media of completed tasks and puts them into a destination.

    :param downloader: fetches files.
    :param refresh: asks the relay for a task again, for a fresh link; ``None`` when it no longer knows it.
    :param destination: the folder that everything goes into.
    :param media: kinds of files: ``video``, ``thumbnail``, ``last_frame``.
    :param name_template: see :func:`..naming.read_name_template`.
    :param max_parallel: how many tasks are archived at once.
    :param link_timeout: seconds for which a missing or refused link is asked for again.
    :param stopped: set by whoever wants all work to end; the downloader's own.
    :param staging_dir: where files wait until they are whole. Default: the system's temporary folder.
    """

    def __init__(
        self,
        downloader: Downloader,
        refresh: Callable[[str], LumaTask | None],
        destination: ObjectPath,
        *,
        media: Sequence[str],
        name_template: str,
        max_parallel: int,
        link_timeout: float,
        stopped: threading.Event,
        staging_dir: str | None = None,
    ) -> None:
        self._downloader = downloader
        self._refresh = refresh
        self._destination = destination
        self._media = media
        self._name_template = name_template
        self._max_parallel = max_parallel
        self._link_timeout = link_timeout
        self._stopped = stopped
        self._staging_dir = staging_dir
        self._bytes = 0
        self._counting = threading.Lock()

    def archive(self, tasks: Sequence[LumaTask]) -> Archive:
        """
        Archive what can be archived; one task's error does not stop the others.

        :raises LumaInputError: before any download, when two tasks would get the same name.
        """
        names = object_names(self._name_template, tasks)
        archive = Archive()
        with (
            tempfile.TemporaryDirectory(prefix="luma-", dir=self._staging_dir) as staging,
            self._threads() as threads,
        ):
            futures = {
                task.id: threads.submit(self._archive_task, task, names[task.id], Path(staging))
                for task in tasks
            }
            self._wait(futures)
        for task_id, future in futures.items():
            if (error := future.exception()) is None:
                archive.records.append(future.result())
            elif isinstance(error, (LumaError, OSError)):
                archive.errors[task_id] = error
            else:
                raise error
        return archive

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        threads = ThreadPoolExecutor(self._max_parallel, thread_name_prefix="luma-download")
        try:
            yield threads
        except BaseException:
            self._stopped.set()
            raise
        finally:
            threads.shutdown(cancel_futures=True)

    def _wait(self, futures: Mapping[str, Future[Any]]) -> None:
        started = time.monotonic()
        pending = set(futures.values())
        while pending:
            _, pending = wait(pending, timeout=_SECONDS_BETWEEN_PROGRESS)
            failed = sum(future.done() and future.exception() is not None for future in futures.values())
            seconds = max(time.monotonic() - started, 1e-3)
            log.info(
                "%d of %d videos, %.1f MB, %.1f MB/s, %d failed",
                len(futures) - len(pending) - failed,
                len(futures),
                self._bytes / 1e6,
                self._bytes / 1e6 / seconds,
                failed,
            )

    def _count(self, size: int) -> None:
        with self._counting:
            self._bytes += size

    def _archive_task(self, task: LumaTask, name: str, staging: Path) -> dict[str, Any]:
        files = {kind: self._archive_file(task, kind, name, staging) for kind in self._media}
        return _record(task, files)

    def _archive_file(self, task: LumaTask, kind: str, name: str, staging: Path) -> dict[str, Any] | None:
        if kind != "video" and task.media(kind) is None:
            log.info("Luma task %s has no %s", task.id, kind)
            return None
        file = staging / uuid.uuid4().hex
        try:
            return self._move(task, kind, name, file)
        finally:
            file.unlink(missing_ok=True)

    def _move(self, task: LumaTask, kind: str, name: str, file: Path) -> dict[str, Any]:
        def fetch() -> tuple[str, Any]:
            nonlocal task
            url = _link(task, kind)
            return url, self._downloader.fetch(url, file, self._count)

        def refresh(_: RetryCallState) -> None:
            nonlocal task
            task = self._refresh(task.id) or task

        url, download = Retrying(
            retry=retry_if_exception_type(LinkRefusedError),
            stop=stop_any(stop_after_delay(self._link_timeout), stop_when_event_set(self._stopped)),
            wait=wait_exponential(min=1, max=15),
            sleep=sleep_using_event(self._stopped),
            before=lambda state: refresh(state) if state.attempt_number > 1 else None,
            reraise=True,
        )(fetch)
        target = self._destination / file_name(name, kind, url)
        publish(file, target, download.content_type)
        return {
            "uri": uri(target),
            "size": download.size,
            "sha256": download.sha256,
            "content_type": download.content_type,
            "source": without_query(url),
        }


def _link(task: LumaTask, kind: str) -> str:
    media: Media | None = task.media(kind)
    if media is None or media.url is None:
        raise LinkRefusedError(f"the relay says completed but gives no link to the {kind}")
    return media.url


def _record(task: LumaTask, files: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    size = task.video or Media(None)
    return {
        "id": task.id,
        "state": task.state.value,
        "prompt": task.prompt,
        "aspect_ratio": task.aspect_ratio,
        "created_at": task.created_at.isoformat() if task.created_at else None,
        "duration": task.duration,
        "width": size.width,
        "height": size.height,
        "video": files.get("video"),
        "thumbnail": files.get("thumbnail"),
        "last_frame": files.get("last_frame"),
        "status": "downloaded",
    }
