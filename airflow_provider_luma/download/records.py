"""What is written down: a record beside each video, and the manifest of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from airflow_provider_luma.download.naming import file_name
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.store import ObjectPath, publish, read, stored_size, uri
from airflow_provider_luma.exceptions import ObjectExistsError
from airflow_provider_luma.relay.task import MEDIA_KINDS, LumaTask, Media

Record: TypeAlias = dict[str, Any]
File: TypeAlias = Mapping[str, Any]

DOWNLOADED, UNCHANGED = "downloaded", "unchanged"


def describe(task: LumaTask) -> Record:
    """Describe a task, with nothing but what JSON knows."""
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
    }


def make_record(task: LumaTask, files: Mapping[str, File | None], status: str) -> Record:
    """
    Describe an archived task.

    :param files: what is archived of it, keyed by kind of media.
    """
    return {**describe(task), **{kind: files.get(kind) for kind in MEDIA_KINDS}, "status": status}


def read_record(destination: ObjectPath, name: str, task: LumaTask) -> Mapping[str, File]:
    """
    Return the files of an earlier archive of the same task that are still there as they were.

    :param name: the video's name without its suffix.
    :raises ObjectExistsError: when another Luma task has this name.
    """
    target = record_path(destination, name)
    record = _loads(read(target))
    if record.get("id", task.id) != task.id:
        raise ObjectExistsError(
            f"{uri(target)} says that Luma task {record['id']} has this name; add {{id}} to name_template, "
            "or replace it with if_exists='overwrite'"
        )
    files = ((kind, record.get(kind)) for kind in MEDIA_KINDS)
    return {
        kind: file for kind, file in files if isinstance(file, dict) and _holds(destination, name, kind, file)
    }


def record_path(destination: ObjectPath, name: str) -> ObjectPath:
    return destination / f"{name}.json"


def write_json(staging: Staging, target: ObjectPath, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write objects, one a line, under a name that never leads to half of them."""
    with staging.file() as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        publish(file.path, target, "application/json")


def _loads(text: bytes | None) -> Mapping[str, Any]:
    try:
        record = json.loads(text or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _holds(destination: ObjectPath, name: str, kind: str, file: File) -> bool:
    target = destination / file_name(name, kind, str(file.get("uri")))
    return uri(target) == file.get("uri") and stored_size(target) == file.get("size")
