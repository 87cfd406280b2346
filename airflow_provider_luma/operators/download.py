"""Downloads the media of completed Luma tasks to object storage."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_luma import lineage, metrics
from airflow_provider_luma.airflow_exceptions import LumaTaskFailedError, fail_without_retry
from airflow_provider_luma.arguments import FailWhen, IfExists, validate_count, validate_seconds
from airflow_provider_luma.exceptions import DownloadError, LumaValueError
from airflow_provider_luma.relay.batch import parse_task_ids
from airflow_provider_luma.relay.media import MEDIA_KINDS, MediaKind
from airflow_provider_luma.relay.result import Outcome
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_luma.download.downloader import Downloader
    from airflow_provider_luma.download.pool import DownloadResult
    from airflow_provider_luma.download.records import DownloadManifest, Record
    from airflow_provider_luma.download.staging import Staging
    from airflow_provider_luma.download.stores.base import NamedStore, Store
    from airflow_provider_luma.download.summary import DownloadReport
    from airflow_provider_luma.hooks.luma import LumaHook


class LumaDownloadOperator(BaseOperator):
    """
    Download the media of completed Luma tasks to object storage.

    The operator queries the relay for fresh URLs, because URLs expire. A file is downloaded to local disk,
    verified (its size, its type and its structure) and then published atomically: no partial file ever has
    a final name. One video that fails does not stop the others; the task fails afterwards, naming it and the
    reason.

    Returns one record per downloaded video, in the order of the ids: ``id``, ``state``, ``prompt``,
    ``aspect_ratio``, ``created_at``, ``duration``, ``width``, ``height``, ``status`` (``downloaded``,
    ``unchanged``, or ``partial`` with ``error`` when some of its files failed) and for each of ``video``,
    ``thumbnail`` and ``last_frame`` either ``None`` or its ``uri``, ``size``, ``sha256``, ``content_type``
    and ``source`` (the URL without its query). The records are in XCom also when some videos failed.

    The sidecar ``{name}.json`` beside each video has the same fields except ``error``; its status is
    ``downloading``, ``partial`` or ``downloaded``. It is created before the first byte, as a claim, with the
    status ``downloading``, and is final when everything is there. A retry or another run verifies it against
    the objects, and downloads only what is missing.

    :param luma_task_ids: the Luma task ids, in any form that
        :class:`~airflow_provider_luma.sensors.luma.LumaTaskSensor` takes. (templated)
    :param destination: the folder: any URL of Airflow's object storage, such as
        ``s3://conn_id@bucket/prefix``, ``gs://conn_id@bucket/prefix`` or ``file:///data/clips``. (templated)
    :param luma_conn_id: the connection of type ``luma``. Default ``luma_default``. (templated)
    :param storage_conn_id: the connection of the store; wins over one in ``destination``. (templated)
    :param media: which files of each task: any of ``video`` (alone the default), ``thumbnail``,
        ``last_frame``.
    :param name_template: name of each object below ``destination``, without its suffix, with the fields
        ``{id}`` (the default), ``{prompt}``, ``{aspect_ratio}`` and ``{created_at}``, the latter also as in
        ``{created_at:%Y-%m-%d}``. ``/`` makes folders. (templated)
    :param if_exists: ``"skip"`` (default) keeps files with a valid record and downloads the others, also over
        an object without a record; ``"fail"`` does the same but never replaces an object that is not this
        task's own; ``"overwrite"`` downloads everything again. Under the first two a sidecar of another Luma
        task, or a foreign file of its name, is an error.
    :param manifest: ``True`` writes ``manifest-{run_id}-{hash}.jsonl`` into ``destination``, a name that no
        other run shares; a text sets another name. It has one row per id: its record, or ``id``, ``state``,
        ``status`` and ``error``. XCom then holds, instead of the records, ``{"manifest": uri, "completed": n,
        "downloaded": n, "unchanged": n, "errors": n, "failed": n, "missing": n, "running": n, "bytes": n}``.
        Default ``False``. (templated)
    :param max_parallel: how many videos are downloaded at once. Default 8.
    :param max_bytes: how large a file may be. Default 5 GiB.
    :param fail_when: which failed and missing tasks fail this one: ``"any"`` (default) when there is one,
        ``"all"`` only when none completed, ``"never"`` none.
    :param link_timeout: seconds, default 120, for which the relay is queried for a fresh URL while there is
        none, or it is rejected.
    :param download_timeout: seconds for each file, resumed attempts and the store included. Default 3600.
    :param staging_dir: where files grow until they are complete, without names, so that nothing is left of
        them even after a crash. Default: the system's temporary folder; for a local destination its own file
        system, so that nothing is copied. (templated)
    :param fsync: whether local files survive a power loss: each file and its folder is flushed to disk before
        the record that calls it complete. Default ``True``. Other stores take care of this themselves.
    :raises LumaTaskFailedError: as ``fail_when`` decides, after all others were downloaded; not retried.
    :raises LumaNonRetryableError: on a permanent error of the relay, or an invalid argument; not retried.
    :raises DownloadError: when a video was not downloaded or is not completed yet; Airflow's ``retries``
        apply, and a retry downloads only what is missing.
    """

    template_fields: Sequence[str] = (
        "luma_task_ids",
        "destination",
        "luma_conn_id",
        "storage_conn_id",
        "name_template",
        "manifest",
        "staging_dir",
    )
    ui_color = "#e6e0ff"

    # Of the class, so that an operator can be copied before it runs: an event cannot.
    _stopped: threading.Event | None = None
    _is_killed = False
    _result: DownloadResult | None = None

    def __init__(
        self,
        *,
        luma_task_ids: Any,
        destination: str,
        luma_conn_id: str = "luma_default",
        storage_conn_id: str | None = None,
        media: Sequence[str] = ("video",),
        name_template: str = "{id}",
        if_exists: str = "skip",
        manifest: bool | str = False,
        max_parallel: int = 8,
        max_bytes: int = 5 * 1024**3,
        fail_when: str = "any",
        link_timeout: float = 120,
        download_timeout: float = 3600,
        staging_dir: str | None = None,
        fsync: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.luma_task_ids = luma_task_ids
        self.destination = destination
        self.luma_conn_id = luma_conn_id
        self.storage_conn_id = storage_conn_id
        self.media = [media] if isinstance(media, str) else media
        self.name_template = name_template
        self.if_exists = if_exists
        self.manifest = manifest
        self.max_parallel = max_parallel
        self.max_bytes = max_bytes
        self.fail_when = fail_when
        self.link_timeout = link_timeout
        self.download_timeout = download_timeout
        self.staging_dir = staging_dir
        self.fsync = fsync
        FailWhen.parse("fail_when", fail_when)
        IfExists.parse("if_exists", if_exists)
        _validate_media(self.media)
        validate_count("max_parallel", max_parallel)
        validate_count("max_bytes", max_bytes)
        validate_seconds("link_timeout", link_timeout, allow_zero=True)
        validate_seconds("download_timeout", download_timeout)

    @cached_property
    def hook(self) -> LumaHook:
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def execute(self, context: Context) -> list[Record] | DownloadManifest:
        from airflow_provider_luma.download.stores.base import NamedStore
        from airflow_provider_luma.download.summary import DownloadReport
        from airflow_provider_luma.threads import StoppedError, call_abandonable

        self._stopped = stopped = threading.Event()
        if self._is_killed:  # before there was anything to stop
            stopped.set()
        with fail_without_retry(self.luma_conn_id):
            ids = parse_task_ids(self.luma_task_ids)
            if not ids:
                self.log.info("luma_task_ids is empty: no Luma task to download")
            # The look-up of a connection may hang too.
            tasks = call_abandonable(lambda: self.hook.client.get_tasks(ids), stopped=stopped)
            store = NamedStore(call_abandonable(self._open_store, stopped=stopped))
            manifest = self._manifest_name(context)
            completed = [task for task in tasks.values() if task.state is TaskState.COMPLETED]
            if manifest:
                check = partial(self._check_manifest, store, manifest, completed)
                try:
                    call_abandonable(check, stopped=stopped)
                except StoppedError:
                    raise _stopped_when(0, len(completed)) from None
            staging = call_abandonable(partial(self._create_staging, store), stopped=stopped)
            result = self._result = self._download(store, staging, completed)
        report = DownloadReport(ids, tasks, result)
        counts = result.counts
        self.log.info(
            "Downloaded %d of %d videos to %s",
            counts.downloaded + counts.unchanged,
            len(ids),
            self.destination,
        )
        returned: list[Record] | DownloadManifest = result.records
        if manifest:
            write = partial(self._write_manifest, staging, store, manifest, report)
            returned = call_abandonable(write, stopped=stopped)
        self._emit_lineage_and_metrics(context, store, report)
        self._raise_on_failures(context, report, returned)
        return returned

    def on_kill(self) -> None:
        self._is_killed = True
        if self._stopped is not None:
            self._stopped.set()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        return lineage.openlineage_facets(self._result.downloaded_files if self._result else ())

    def _open_store(self) -> Store:
        from airflow_provider_luma.operators.destination import open_store

        return open_store(
            self.destination, self.storage_conn_id, max_parallel=self.max_parallel, fsync=self.fsync
        )

    def _create_staging(self, store: NamedStore) -> Staging:
        from airflow_provider_luma.download.staging import Staging

        folder = self.staging_dir or store.staging_folder()
        return Staging(folder, crc32_above=store.store.multipart_above)

    def _download(self, store: NamedStore, staging: Staging, completed: Sequence[LumaTask]) -> DownloadResult:
        from airflow_provider_luma.download.fresh_links import FreshLinks
        from airflow_provider_luma.download.naming import parse_name_template
        from airflow_provider_luma.download.pool import DownloadPool
        from airflow_provider_luma.download.task_download import DownloadOptions, TaskDownloader

        downloader = self._create_downloader()
        options = DownloadOptions(
            media=cast("Sequence[MediaKind]", self.media),
            name_template=parse_name_template(self.name_template),
            if_exists=IfExists.parse("if_exists", self.if_exists),
            max_parallel=self.max_parallel,
        )
        fresh_links = FreshLinks(self.hook.client.query_once, batch_size=self.hook.settings.batch_size)
        task_downloader = TaskDownloader(downloader, fresh_links.get, store, staging, options)
        try:
            result = DownloadPool(task_downloader).download(completed)
        finally:
            downloader.close()
        if downloader.stopped.is_set():  # nobody reads a result: the task is being killed
            raise _stopped_when(result.counts.downloaded + result.counts.unchanged, len(completed))
        return result

    def _create_downloader(self) -> Downloader:
        from airflow_provider_luma.download.downloader import Downloader, DownloadLimits
        from airflow_provider_luma.download.ssrf import AddressPolicy
        from airflow_provider_luma.download.transport import Transport

        settings = self.hook.settings
        transport = Transport(
            AddressPolicy(settings.base_url, settings.allowed_download_hosts),
            max_connections=self.max_parallel,
            timeout=settings.timeout,
            verify=settings.verify,
            proxies=dict(settings.proxies),
        )
        limits = DownloadLimits(
            max_bytes=self.max_bytes, download_timeout=self.download_timeout, link_timeout=self.link_timeout
        )
        return Downloader(transport, limits, stopped=self._stopped)

    def _manifest_name(self, context: Context) -> str | None:
        from airflow_provider_luma.download.naming import manifest_name, parse_manifest_name

        if not self.manifest:
            return None
        if self.manifest is not True:
            return parse_manifest_name(self.manifest)
        ti = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        return manifest_name(ti.run_id, ti.dag_id, ti.task_id, map_index)

    def _check_manifest(self, store: NamedStore, name: str, completed: Sequence[LumaTask]) -> None:
        """
        Check before any download that the manifest replaces nothing but a manifest.

        :raises LumaValueError: when this run gives its name to another object.
        """
        from airflow_provider_luma.download.naming import published_names

        if name.casefold() in published_names(self.name_template, completed):
            raise LumaValueError(f"manifest {name!r} is also the name of a video or of its sidecar record")
        self._check_replaceable(store, name)

    def _check_replaceable(self, store: NamedStore, name: str) -> None:
        from airflow_provider_luma.download.records import check_manifest_replaceable

        if (
            self.manifest is not True
            and IfExists.parse("if_exists", self.if_exists) is not IfExists.OVERWRITE
        ):
            check_manifest_replaceable(store, name)

    def _write_manifest(
        self, staging: Staging, store: NamedStore, name: str, report: DownloadReport
    ) -> DownloadManifest:
        from airflow_provider_luma.download.records import put_json

        self._check_replaceable(store, name)
        put_json(staging, store, name, report.manifest_rows())
        return {"manifest": store.uri(name), **report.summary}

    def _emit_lineage_and_metrics(self, context: Context, store: NamedStore, report: DownloadReport) -> None:
        """Tell others what was downloaded. It is done, so that nothing here can fail the task."""
        files = report.result.downloaded_files
        with lineage.log_errors("metrics"):
            metrics.count_downloads(report.summary, report.result.seconds)
        lineage.collect_hook_lineage(self.hook, files)
        lineage.update_outlet_events(context, self.outlets, store.uri("").rstrip("/"), report.summary)

    def _raise_on_failures(self, context: Context, report: DownloadReport, returned: Any) -> None:
        """Fail if anything is not downloaded; push the records also then."""
        messages = report.messages()
        if report.summary["running"]:
            messages.append("wait with LumaTaskSensor for tasks that are still running")
        for message in messages:
            self.log.warning("%s", message)
        has_errors = bool(report.errors)
        if (
            not has_errors
            and report.batch.outcome(FailWhen.parse("fail_when", self.fail_when)) is not Outcome.FAILED
        ):
            return
        context["ti"].xcom_push("return_value", returned)
        summary = f"{report.summary['completed']} of {len(report.batch.ids)} Luma tasks downloaded. "
        text = f"{summary}{'; '.join(messages)}"
        raise DownloadError(text) if has_errors else LumaTaskFailedError(text)


def _validate_media(media: Any) -> None:
    if not isinstance(media, Collection) or not media or not all(kind in MEDIA_KINDS for kind in media):
        raise LumaValueError(f"media must name some of {', '.join(MEDIA_KINDS)}, not {media!r}")


def _stopped_when(done: int, number: int) -> DownloadError:
    return DownloadError(
        f"Stopped when {done} of {number} videos were downloaded; the next run downloads the rest"
    )
