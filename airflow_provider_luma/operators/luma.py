"""Archives the media of completed Luma tasks in object storage."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_luma.airflow_exceptions import LumaTaskFailedError, no_vain_retries
from airflow_provider_luma.exceptions import LumaInputError, TransferError
from airflow_provider_luma.relay.batch import BatchResult, FailWhen, Outcome, read_task_ids
from airflow_provider_luma.relay.task import MEDIA_KINDS, LumaTask, TaskState

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_luma.hooks.luma import LumaHook
    from airflow_provider_luma.transfer.archive import Archive

_EXTRA_OF_SCHEME: Mapping[str, str] = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "azure"),
}


class LumaDownloadOperator(BaseOperator):
    """
    Download the media of completed Luma tasks and put them into object storage.

    The state of the tasks, and with it their links, is asked for afresh, because links expire. A file is
    downloaded to local disk, checked, and then put in one piece: nothing half ever has a final name. One
    video that fails does not stop the others; the task fails afterwards, naming it and the cause.

    Returns one record per archived video, in the order of the ids: ``id``, ``state``, ``prompt``,
    ``aspect_ratio``, ``created_at``, ``duration``, ``width``, ``height``, ``status`` and for each of
    ``video``, ``thumbnail`` and ``last_frame`` either ``None`` or its ``uri``, ``size``, ``sha256``,
    ``content_type`` and ``source`` (the link without its query). The records are in XCom also when some
    videos failed.

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
    :param max_parallel: how many videos are moved at once. Default 8.
    :param fail_when: how failed and missing tasks are met: ``"any"`` (default) fails when there is one,
        ``"all"`` only when none completed, ``"never"`` not at all.
    :param link_timeout: seconds, default 120, for which the relay is asked again while a completed task has
        no link, or one that is refused.
    :param staging_dir: where files wait until they are whole. Default: the system's temporary folder.
    :raises LumaTaskFailedError: by ``fail_when``, after everything else was archived; not retried.
    :raises LumaRefusedError: when the relay refuses for good or an argument is wrong; not retried.
    :raises TransferError: when a video could not be archived or is not completed yet; Airflow's ``retries``
        apply.
    """

    template_fields: Sequence[str] = (
        "luma_task_ids",
        "destination",
        "luma_conn_id",
        "storage_conn_id",
        "name_template",
    )
    ui_color = "#e6e0ff"

    def __init__(
        self,
        *,
        luma_task_ids: Any,
        destination: str,
        luma_conn_id: str = "luma_default",
        storage_conn_id: str | None = None,
        media: Sequence[str] = ("video",),
        name_template: str = "{id}",
        max_parallel: int = 8,
        fail_when: str = "any",
        link_timeout: float = 120,
        staging_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.luma_task_ids = luma_task_ids
        self.destination = destination
        self.luma_conn_id = luma_conn_id
        self.storage_conn_id = storage_conn_id
        self.media = [media] if isinstance(media, str) else list(media)
        self.name_template = name_template
        self.max_parallel = max_parallel
        self.fail_when = fail_when
        self.link_timeout = link_timeout
        self.staging_dir = staging_dir
        self._stopped = threading.Event()
        FailWhen.parse(fail_when)
        _check_media(self.media)
        if max_parallel < 1:
            raise ValueError(f"max_parallel must be 1 or more, not {max_parallel!r}")

    @cached_property
    def hook(self) -> LumaHook:
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def execute(self, context: Context) -> list[dict[str, Any]]:
        with no_vain_retries():
            ids = read_task_ids(self.luma_task_ids)
            if not ids:
                self.log.info("luma_task_ids is empty: no Luma task to archive")
                return []
            tasks = self.hook.client.query(ids)
            completed = [task for task in tasks.values() if task.state is TaskState.COMPLETED]
            archive = self._archive(completed)
        self.log.info("Archived %d of %d Luma tasks in %s", len(archive.records), len(ids), self.destination)
        self._fail_as_told(context, archive, ids, tasks)
        return archive.records

    def on_kill(self) -> None:
        self._stopped.set()

    def _folder(self) -> ObjectStoragePath:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        folder = ObjectStoragePath(self.destination, conn_id=self.storage_conn_id)
        try:
            _ = folder.fs
        except ValueError as error:
            scheme = self.destination.partition(":")[0]
            if (extra := _EXTRA_OF_SCHEME.get(scheme)) is None:
                raise LumaInputError(f"No object storage for {self.destination!r}: {error}") from error
            raise LumaInputError(
                f"{scheme}:// needs another provider: pip install 'airflow-provider-luma[{extra}]'"
            ) from error
        return folder

    def _archive(self, completed: Sequence[LumaTask]) -> Archive:
        from airflow_provider_luma.transfer.archive import Archiver
        from airflow_provider_luma.transfer.download import Downloader
        from airflow_provider_luma.transfer.guard import guarded_session
        from airflow_provider_luma.transfer.naming import read_name_template

        settings = self.hook.settings
        session = guarded_session(
            relay_url=settings.base_url,
            allowed_hosts=settings.allowed_download_hosts,
            connections=self.max_parallel,
        )
        downloader = Downloader(
            session,
            timeout=settings.timeout,
            verify=settings.verify,
            proxies=dict(settings.proxies),
            stopped=self._stopped,
        )
        archiver = Archiver(
            downloader,
            lambda task_id: self.hook.client.query([task_id]).get(task_id),
            self._folder(),
            media=self.media,
            name_template=read_name_template(self.name_template),
            max_parallel=self.max_parallel,
            link_timeout=self.link_timeout,
            stopped=self._stopped,
            staging_dir=self.staging_dir,
        )
        with session:
            return archiver.archive(completed)

    def _fail_as_told(
        self, context: Context, archive: Archive, ids: Sequence[str], tasks: Mapping[str, LumaTask]
    ) -> None:
        """Fail for what is not archived; the records of what is are in XCom all the same."""
        result = _result(ids, tasks)
        not_archived = [f"{task_id}: {error}" for task_id, error in archive.errors.items()] + [
            f"{task.id}: still {task.state.value}; wait for it with LumaTaskSensor"
            for task in tasks.values()
            if not task.is_terminal
        ]
        complaints = [*not_archived[:20], *result.complaints()]
        for complaint in complaints:
            self.log.warning("%s", complaint)
        if not not_archived and result.outcome(FailWhen.parse(self.fail_when)) is not Outcome.FAILED:
            return
        context["ti"].xcom_push("return_value", archive.records)
        message = f"{len(archive.records)} of {len(ids)} Luma tasks archived. {'; '.join(complaints)}"
        raise TransferError(message) if not_archived else LumaTaskFailedError(message)


def _result(ids: Sequence[str], tasks: Mapping[str, LumaTask]) -> BatchResult:
    return BatchResult(
        ids,
        failed={
            task.id: str(task.failure_reason) for task in tasks.values() if task.state is TaskState.FAILED
        },
        missing=[task_id for task_id in ids if task_id not in tasks],
    )


def _check_media(media: Sequence[str]) -> None:
    if not media or not set(media) <= set(MEDIA_KINDS):
        raise LumaInputError(f"media must name some of {', '.join(MEDIA_KINDS)}, not {media!r}")
