"""One task: its files into a store, with a sidecar record that is true at every moment."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from airflow_provider_luma.arguments import IfExists
from airflow_provider_luma.download.downloader import Downloader
from airflow_provider_luma.download.naming import candidate_names, file_name
from airflow_provider_luma.download.records import DOWNLOADED, PARTIAL, UNCHANGED, File, Record, build_record
from airflow_provider_luma.download.retry import Link
from airflow_provider_luma.download.sidecar import DOWNLOADING, ClaimLostError, Sidecar, SidecarState
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.stores.base import SHA256, TASK_ID, NamedStore, StoredObject, Upload
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.exceptions import DownloadError, LumaError, ObjectExistsError
from airflow_provider_luma.relay.media import MediaKind
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.relay.text import clean_text, redact_text
from airflow_provider_luma.threads import StoppedError, call_abandonable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownloadOptions:
    """
    Options of a download.

    :param media: kinds of files.
    :param name_template: see :func:`..naming.parse_name_template`.
    :param if_exists: see :class:`..arguments.IfExists`.
    :param max_parallel: how many tasks at once.
    """

    media: Sequence[MediaKind] = ("video",)
    name_template: str = "{id}"
    if_exists: IfExists = IfExists.SKIP
    max_parallel: int = 8


@dataclass(frozen=True)
class TaskResult:
    """
    Result of one task: a record when there is any file, an error when one is not there, or both.

    :param downloaded: the files that this run downloaded.
    """

    record: Record | None = None
    error: Exception | None = None
    downloaded: Sequence[File] = field(default_factory=tuple)


class TaskDownloader:
    """
    Downloads the files of one task after the other; used by many threads at once.

    :param downloader: downloads a file.
    :param refresh: queries the relay for a task, for a fresh URL; ``None`` when it no longer knows it.
    :param store: where the files go.
    :param staging: where they are until they are complete.
    """

    def __init__(
        self,
        downloader: Downloader,
        refresh: Callable[[str], LumaTask | None],
        store: NamedStore,
        staging: Staging,
        options: DownloadOptions,
    ) -> None:
        self.downloader = downloader
        self.store = store
        self.staging = staging
        self.options = options
        self._refresh = refresh

    def download(self, task: LumaTask, name: str) -> TaskResult:
        """
        Download the missing files. Any error is this task's error only.

        Whatever hangs is abandoned, also a store, once each file has had ``download_timeout``.
        """
        seconds = self.downloader.limits.download_timeout * len(self.options.media)
        download = partial(self._download, task, name)
        stopped = self.downloader.stopped
        try:
            return call_abandonable(download, stopped=stopped, deadline=time.monotonic() + seconds)
        except (LumaError, OSError) as error:
            return TaskResult(error=without_frames(error))
        except Exception as error:  # noqa: BLE001 - one task must never fail another
            # Not log.exception, which would write the URLs in the traceback as they are.
            log.error("Luma task %s: unexpected error\n%s", task.id, redact_text(traceback.format_exc()))  # noqa: TRY400
            reason = clean_text(redact_text(f"{type(error).__name__}: {error}"))
            return TaskResult(error=DownloadError(reason))

    def _download(self, task: LumaTask, name: str) -> TaskResult:
        overwrite = self.options.if_exists is IfExists.OVERWRITE
        sidecar = Sidecar(self.store, self.staging, task, name, overwrite=overwrite)
        state = sidecar.load()
        sidecar.verify_files(state)
        wanted = [kind for kind in self.options.media if _has(task, kind)]
        if overwrite:
            for kind in wanted:
                sidecar.files.pop(kind, None)
        else:
            self._find_published(sidecar, state, task, name, wanted)
        missing = [kind for kind in wanted if kind not in sidecar.files]
        if missing:
            return self._download_missing(sidecar, state, task, name, missing)
        return self._unchanged(sidecar, state, task)

    def _unchanged(self, sidecar: Sidecar, state: SidecarState | None, task: LumaTask) -> TaskResult:
        if not sidecar.files:
            raise DownloadError(f"The task is completed but has no {' and no '.join(self.options.media)}")
        if state is None or state.status == DOWNLOADING:
            sidecar.claim(state)
            sidecar.finish(DOWNLOADED)
        return TaskResult(build_record(task, sidecar.files, UNCHANGED))

    def _find_published(
        self,
        sidecar: Sidecar,
        state: SidecarState | None,
        task: LumaTask,
        name: str,
        wanted: Sequence[MediaKind],
    ) -> None:
        """Take objects that an earlier run published but did not list; reject a foreign one early."""
        if state is None and self.options.if_exists is not IfExists.FAIL:
            return
        for kind in wanted:
            if kind not in sidecar.files:
                names = candidate_names(name, kind, _url(task, kind) or "")[: None if state else 1]
                # What a sidecar lists, but finds to be other bytes, is not trusted for its metadata.
                is_listed = state is not None and kind in state.files
                self._find_object(sidecar, task, kind, names, is_listed=is_listed)

    def _find_object(
        self, sidecar: Sidecar, task: LumaTask, kind: MediaKind, names: Sequence[str], *, is_listed: bool
    ) -> None:
        for name in names:
            if (found := self.store.head(name)) is None:
                continue
            file = sidecar.parse_metadata(found, name, redact_url(_url(task, kind) or ""))
            if file and not is_listed:
                sidecar.files[kind] = file
                return
            if self.options.if_exists is IfExists.FAIL:
                raise self._exists_error(name)

    def _download_missing(
        self,
        sidecar: Sidecar,
        state: SidecarState | None,
        task: LumaTask,
        name: str,
        missing: Sequence[MediaKind],
    ) -> TaskResult:
        sidecar.claim(state)
        errors: dict[MediaKind, Exception] = {}
        downloaded: list[File] = []
        identities: dict[MediaKind, str] = {}
        for kind in missing:
            try:
                file, identities[kind] = self._download_file(sidecar, task, name, kind)
            except (StoppedError, ClaimLostError):
                raise
            except (LumaError, OSError) as error:
                errors[kind] = without_frames(error)
            else:
                downloaded.append(file)
                sidecar.add(kind, file, is_last=kind == missing[-1])
        if not sidecar.files:
            return TaskResult(error=_join_errors(errors))
        status = PARTIAL if errors else DOWNLOADED
        if errors:  # the last check may be long ago
            sidecar.check_claim()
        sidecar.finish(status)
        sidecar.check_record(identities)
        record = build_record(task, sidecar.files, status)
        if not errors:
            return TaskResult(record, downloaded=downloaded)
        reason = _join_errors(errors)
        record["error"] = str(reason)
        return TaskResult(record, reason, downloaded)

    def _download_file(
        self, sidecar: Sidecar, task: LumaTask, name: str, kind: MediaKind
    ) -> tuple[File, str]:
        """Return the published file, and its identity while it was staged."""
        limits = self.downloader.limits
        deadline = time.monotonic() + limits.download_timeout
        link = Link(lambda: _url(self._refresh(task.id), kind), _url(task, kind), timeout=limits.link_timeout)
        with self.staging.file() as file:
            media_type = self.downloader.download(link, file, kind, f"Luma task {task.id}, {kind}")
            url = link.url or ""
            target = file_name(name, kind, url, media_type)
            entry: File = {
                "uri": self.store.uri(target),
                "size": file.size,
                "sha256": file.sha256,
                "content_type": media_type,
                "source": redact_url(url),
            }
            sidecar.check_claim()
            sidecar.save_publishing(kind, entry)
            self._publish(
                Upload(
                    file,
                    target,
                    media_type,
                    metadata={TASK_ID: task.id, SHA256: file.sha256},
                    if_absent=self.options.if_exists is IfExists.FAIL,
                    stopped=self.downloader.stopped,
                    deadline=deadline,
                )
            )
            sidecar.check_put(kind, entry)
            return entry, file.identity

    def _publish(self, upload: Upload) -> None:
        try:
            if upload.if_absent and not self.store.store.is_conditional and self.store.head(upload.name):
                raise self._exists_error(upload.name)
            self.store.put(upload)
        except ObjectExistsError:
            if not self._is_published(upload, self.store.head(upload.name)):
                raise self._exists_error(upload.name) from None

    def _is_published(self, upload: Upload, found: StoredObject | None) -> bool:
        """Return whether the object that has the name is this very one, of a put whose response was lost."""
        if found is None or found.size != upload.file.size:
            return False
        if self.store.store.keeps_metadata:
            return all(found.metadata.get(key) == value for key, value in upload.metadata.items())
        return self.store.sha256(upload.name) == upload.file.sha256

    def _exists_error(self, name: str) -> ObjectExistsError:
        return ObjectExistsError(
            f"{self.store.uri(name)} already exists without a valid record. Delete it, or set "
            "if_exists='skip' to replace it"
        )


def without_frames(error: Exception) -> Exception:
    """Drop the frames of an error that is kept, and with them the bytes that they hold."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _join_errors(errors: dict[MediaKind, Exception]) -> Exception:
    if len(errors) == 1:
        return next(iter(errors.values()))
    return DownloadError("; ".join(f"{kind}: {error}" for kind, error in errors.items()))


def _has(task: LumaTask, kind: MediaKind) -> bool:
    """Return whether to expect a file: a completed task has a video, if not yet its URL."""
    if kind == "video" or task.media(kind) is not None:
        return True
    log.info("Luma task %s has no %s", task.id, kind)
    return False


def _url(task: LumaTask | None, kind: MediaKind) -> str | None:
    media = task.media(kind) if task else None
    return media.url if media else None
