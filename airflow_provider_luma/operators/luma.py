"""Submits generations, and archives the media of completed Luma tasks in object storage."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_luma import lineage, metrics
from airflow_provider_luma.airflow_exceptions import LumaTaskFailedError, fail_without_retry
from airflow_provider_luma.arguments import FailWhen, IfExists, check_number
from airflow_provider_luma.exceptions import DownloadError, LumaValueError
from airflow_provider_luma.operators.generate import LumaGenerateOperator
from airflow_provider_luma.relay.batch import read_task_ids
from airflow_provider_luma.relay.result import Outcome
from airflow_provider_luma.relay.task import MEDIA_KINDS, LumaTask, TaskState

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_luma.download.archive import Archive
    from airflow_provider_luma.download.download import Downloader
    from airflow_provider_luma.download.report import Report
    from airflow_provider_luma.hooks.luma import LumaHook

__all__ = ["LumaDownloadOperator", "LumaGenerateOperator"]


class LumaDownloadOperator(BaseOperator):
    """
    Download the media of completed Luma tasks and put them into object storage.

    The state of the tasks, and with it their links, is asked for afresh, because links expire. A file is
    downloaded to local disk, checked, and then put in one piece: nothing half ever has a final name. One
    video that fails does not stop the others; the task fails afterwards, naming it and the cause.

    Returns one record per archived video, in the order of the ids: ``id``, ``state``, ``prompt``,
    ``aspect_ratio``, ``created_at``, ``duration``, ``width``, ``height``, ``status`` (``downloaded`` or
    ``unchanged``) and for each of ``video``, ``thumbnail`` and ``last_frame`` either ``None`` or its ``uri``,
    ``size``, ``sha256``, ``content_type`` and ``source`` (the link without its query). The records are in
    XCom also when some videos failed.

    The same record is written beside each video as ``{name}.json``, last of all. Where there is one, and the
    objects have the sizes that it tells, a retry or another run moves nothing.

    :param luma_task_ids: the Luma task ids, in any form that :class:`LumaTaskSensor` takes. (templated)
    :param destination: the folder: any URL of Airflow's object storage, such as
        ``s3://conn_id@bucket/prefix``, ``gs://bucket/prefix`` or ``file:///data/clips``. (templated)
    :param luma_conn_id: the connection of type ``luma``. Default ``luma_default``. (templated)
    :param storage_conn_id: the connection of the store; wins over one in ``destination``. (templated)
    :param media: which files of each task: any of ``video`` (alone the default), ``thumbnail``,
        ``last_frame``.
    :param name_template: name of each object below ``destination``, without its suffix, with the fields
        ``{id}`` (the default), ``{prompt}``, ``{aspect_ratio}`` and ``{created_at}``, the latter also as in
        ``{created_at:%Y-%m-%d}``. ``/`` makes folders. (templated)
    :param if_exists: ``"skip"`` (default) leaves what a record vouches for and writes the rest, also over an
        object without a record, which an interrupted run may have left; ``"fail"`` does the same but never
        replaces an object: where one has the name and no record vouches for it, that video is an error;
        ``"overwrite"`` moves everything again. Under the first two the name of another Luma task is an error.
    :param manifest: ``True`` writes ``manifest.jsonl`` (``manifest-{map_index}.jsonl`` where the task is
        mapped) into ``destination``, a text another name. It has one line for each id: its record, or its
        ``id``, ``state``, ``status`` and ``error``. XCom then holds, instead of the records,
        ``{"manifest": uri, "completed": n, "downloaded": n, "unchanged": n, "errors": n, "failed": n,
        "missing": n, "running": n, "bytes": n}``. Default ``False``. (templated)
    :param max_parallel: how many videos are moved at once. Default 8.
    :param max_bytes: how large a file may be. Default 5 GiB.
    :param fail_when: how failed and missing tasks are met: ``"any"`` (default) fails when there is one,
        ``"all"`` only when none completed, ``"never"`` not at all.
    :param link_timeout: seconds, default 120, for which the relay is asked again while a completed task has
        no link, or one that is refused.
    :param download_timeout: seconds for each file, resumed attempts included. Default 3600.
    :param staging_dir: where files wait until they are whole, without names, so that nothing is left of them
        even after a crash. Default: the system's temporary folder; for a local destination its own file
        system, so that nothing is copied. (templated)
    :raises LumaTaskFailedError: by ``fail_when``, after everything else was archived; not retried.
    :raises LumaNonRetryableError: when the relay refuses for good or an argument is wrong; not retried.
    :raises DownloadError: when a video could not be archived or is not completed yet; Airflow's ``retries``
        apply.
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

    _downloader: Downloader | None = None
    _archived: Archive | None = None

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
        FailWhen.parse(fail_when)
        IfExists.parse(if_exists)
        _check_media(self.media)
        check_number("max_parallel", max_parallel, whole=True)
        check_number("max_bytes", max_bytes, whole=True)
        check_number("link_timeout", link_timeout, zero=True)
        check_number("download_timeout", download_timeout)

    @cached_property
    def hook(self) -> LumaHook:
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def execute(self, context: Context) -> list[dict[str, Any]] | dict[str, Any]:
        from airflow_provider_luma.download.report import Report

        with fail_without_retry():
            ids = read_task_ids(self.luma_task_ids)
            if not ids:
                self.log.info("luma_task_ids is empty: no Luma task to archive")
            tasks = self.hook.client.get_tasks(ids)
            folder = self._folder()
            manifest = self._manifest(context, folder)
            completed = [task for task in tasks.values() if task.state is TaskState.COMPLETED]
            archive = self._archived = self._archive(folder, completed)
        report = Report(ids, tasks, archive)
        self.log.info("Archived %d of %d Luma tasks in %s", len(archive.records), len(ids), self.destination)
        self._tell(context, folder, report)
        returned = _write_manifest(manifest, folder, report) if manifest else archive.records
        self._fail_as_told(context, report, returned)
        return returned

    def on_kill(self) -> None:
        if self._downloader is not None:
            self._downloader.stop()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        return lineage.openlineage_facets(self._archived.moved if self._archived else ())

    def _folder(self) -> ObjectStoragePath:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        from airflow_provider_luma.download.store import STORES

        # Airflow 3.0 takes a conn_id of None for the answer, and does not look into the URL.
        options = {"conn_id": self.storage_conn_id} if self.storage_conn_id else {}
        folder = ObjectStoragePath(self.destination, **options)
        try:
            _ = folder.fs
        except ValueError as error:
            scheme = self.destination.partition(":")[0]
            extra = STORES.get(scheme) if "No filesystem registered" in str(error) else None
            if extra is None:
                raise LumaValueError(f"No object storage for {self.destination!r}: {error}") from error
            raise LumaValueError(
                f"{scheme}:// needs another provider: pip install 'airflow-provider-luma[{extra}]'"
            ) from error
        return folder

    def _archive(self, folder: ObjectStoragePath, completed: Sequence[LumaTask]) -> Archive:
        from airflow_provider_luma.download.archive import Archiver
        from airflow_provider_luma.download.download import Downloader
        from airflow_provider_luma.download.guard import guarded_session
        from airflow_provider_luma.download.naming import read_name_template
        from airflow_provider_luma.download.staging import Staging

        settings = self.hook.settings
        session = guarded_session(
            relay_url=settings.base_url,
            allowed_hosts=settings.allowed_download_hosts,
            connections=self.max_parallel,
        )
        self._downloader = Downloader(
            session,
            timeout=settings.timeout,
            verify=settings.verify,
            proxies=dict(settings.proxies),
            max_bytes=self.max_bytes,
        )
        archiver = Archiver(
            self._downloader,
            lambda task_id: self.hook.client.query_once([task_id]).get(task_id),
            folder,
            media=self.media,
            name_template=read_name_template(self.name_template),
            max_parallel=self.max_parallel,
            link_timeout=self.link_timeout,
            download_timeout=self.download_timeout,
            if_exists=IfExists.parse(self.if_exists),
            staging=Staging(self.staging_dir) if self.staging_dir else Staging.near(folder),
        )
        with session:
            archive = archiver.archive(completed)
        if self._downloader.stopped.is_set():  # what is left to tell nobody hears: the task is being killed
            raise DownloadError(
                f"Stopped when {len(archive.records)} of {len(completed)} videos were archived; "
                "the next run goes on with the rest"
            )
        return archive

    def _tell(self, context: Context, folder: ObjectStoragePath, report: Report) -> None:
        from airflow_provider_luma.download.store import uri

        metrics.count_archive(report.summary, report.archive.seconds)
        lineage.collect_hook_lineage(self.hook, report.archive.moved)
        lineage.fill_asset_events(context, self.outlets, uri(folder), report.summary)

    def _manifest(self, context: Context, folder: ObjectStoragePath) -> ObjectStoragePath | None:
        from airflow_provider_luma.download.naming import check_name

        if not self.manifest:
            return None
        map_index = context["ti"].map_index
        default = "manifest.jsonl" if map_index is None or map_index < 0 else f"manifest-{map_index}.jsonl"
        return folder / (default if self.manifest is True else check_name("manifest", self.manifest))

    def _fail_as_told(self, context: Context, report: Report, returned: Any) -> None:
        """Fail for what is not archived; what is stands in XCom all the same."""
        complaints = report.complaints()
        for complaint in complaints:
            self.log.warning("%s", complaint)
        unfinished = bool(report.unfinished)
        if not unfinished and report.result.outcome(FailWhen.parse(self.fail_when)) is not Outcome.FAILED:
            return
        context["ti"].xcom_push("return_value", returned)
        message = (
            f"{len(report.archive.records)} of {len(report.result.ids)} Luma tasks archived. "
            f"{'; '.join(complaints)}"
        )
        raise DownloadError(message) if unfinished else LumaTaskFailedError(message)


def _write_manifest(manifest: ObjectStoragePath, folder: ObjectStoragePath, report: Report) -> dict[str, Any]:
    from airflow_provider_luma.download.records import write_json
    from airflow_provider_luma.download.staging import Staging
    from airflow_provider_luma.download.store import uri

    write_json(Staging.near(folder), manifest, report.lines())
    return {"manifest": uri(manifest), **report.summary}


def _check_media(media: Any) -> None:
    if not isinstance(media, Collection) or not media or not all(kind in MEDIA_KINDS for kind in media):
        raise LumaValueError(f"media must name some of {', '.join(MEDIA_KINDS)}, not {media!r}")
