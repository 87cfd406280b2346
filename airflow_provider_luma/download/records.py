"""The public shapes of downloads: records, sidecar records, manifests and their summaries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.stores.base import NamedStore, Upload
from airflow_provider_luma.exceptions import ObjectExistsError
from airflow_provider_luma.relay.media import MEDIA_KINDS, Media, MediaKind
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.relay.text import clean_text

_MAX_PROMPT_CHARS = 10_000
_MAX_ROW_BYTES = 256 * 1024

# A file of this run, of an earlier run, and a task some of whose files are there.
DOWNLOADED, UNCHANGED, PARTIAL = "downloaded", "unchanged", "partial"


class File(TypedDict):
    """A downloaded file. ``source`` is its URL at the CDN, without the query."""

    uri: str
    size: int
    sha256: str
    content_type: str
    source: str


class TaskDescription(TypedDict):
    """A task as the relay describes it."""

    id: str
    state: str
    prompt: str | None
    aspect_ratio: str | None
    created_at: str | None
    duration: float | None
    width: int | None
    height: int | None


class Record(TaskDescription):
    """
    A task with its files.

    ``status`` is ``downloaded``, ``unchanged`` or ``partial``; ``error`` says why some files are absent.
    """

    video: File | None
    thumbnail: File | None
    last_frame: File | None
    status: str
    error: NotRequired[str]


class SidecarRecord(Record):
    """
    The sidecar record beside the files of a task: a :class:`Record` without ``error``.

    ``status`` is ``downloading``, ``partial`` or ``downloaded``. ``publishing`` has files that are being
    published.
    """

    publishing: NotRequired[dict[MediaKind, File]]


class ManifestRow(TypedDict):
    """The manifest row of an id without a record; that of any other id is its :class:`Record`."""

    id: str
    state: str | None
    status: str
    error: str


class DownloadSummary(TypedDict):
    """The counts of a download."""

    completed: int
    downloaded: int
    unchanged: int
    errors: int
    failed: int
    missing: int
    running: int
    bytes: int


class DownloadManifest(DownloadSummary):
    """The URL of a manifest, and the counts."""

    manifest: str


def describe(task: LumaTask) -> TaskDescription:
    """Describe a task in JSON's types."""
    size = task.video or Media(None)
    return {
        "id": task.id,
        "state": task.state.value,
        "prompt": clean_text(task.prompt, _MAX_PROMPT_CHARS) or None,
        "aspect_ratio": clean_text(task.aspect_ratio) or None,
        "created_at": task.created_at.isoformat() if task.created_at else None,
        "duration": task.duration,
        "width": size.width,
        "height": size.height,
    }


def build_record(task: LumaTask, files: Mapping[MediaKind, File], status: str) -> Record:
    record: Record = {
        **describe(task),  # type: ignore[typeddict-item]  # the key "error" is not required
        "video": files.get("video"),
        "thumbnail": files.get("thumbnail"),
        "last_frame": files.get("last_frame"),
        "status": status,
    }
    return record


def put_json(
    staging: Staging,
    store: NamedStore,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    if_absent: bool = False,
) -> None:
    """
    Publish objects, one a line.

    :raises ObjectExistsError: when there is such a name already, and it must not be replaced.
    """
    with staging.file() as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
        store.put(Upload(file, name, "application/json", if_absent=if_absent))


def check_manifest_replaceable(store: NamedStore, name: str) -> None:
    """
    Check that there is no object of this name, or that it is a manifest.

    :raises ObjectExistsError: when it is anything else.
    """
    content = store.read(name, _MAX_ROW_BYTES)
    if content and not _is_manifest(content, store.uri(name)):
        raise ObjectExistsError(
            f"{store.uri(name)} exists and is not a manifest. Choose another name for the manifest, or "
            "replace it with if_exists='overwrite'"
        )


def _is_manifest(content: bytes, uri: str) -> bool:
    """Check the first row. A sidecar record has the same fields, but its files have the sidecar's name."""
    try:
        row = json.loads(content.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return False
    if not isinstance(row, dict) or not {"id", "state", "status"} <= row.keys():
        return False
    files = [row.get(kind) for kind in MEDIA_KINDS]
    uris = [str(file.get("uri")) for file in files if isinstance(file, dict)]
    stem = uri.removesuffix("json")
    return row["status"] != "downloading" and not (stem != uri and any(u.startswith(stem) for u in uris))
