r"""
The sidecar record ``{name}.json``: a claim before the first byte, the truth about each file after it.

Phases, and what the next run does when the worker is killed in one of them:

===  ===================  ==========================  ======================================================
\    sidecar              objects                     the next run
===  ===================  ==========================  ======================================================
0    none                 none                        starts afresh
1    ``downloading``      none                        resumes, as the claim is its own; any other Luma task
                                                      gets :class:`ObjectExistsError`
2    ``downloading``      a file is published, which  accepts the object: by its metadata, or, in a store
                          the sidecar does not yet    without metadata, by the hash under ``publishing``,
                          list                        which was written before the object was
3    ``downloading``,     some of the files           downloads the rest
     with files
4    ``partial``          some; the others failed     downloads the rest
5    ``downloaded``       all that were requested     verifies sizes and metadata; ``unchanged``
===  ===================  ==========================  ======================================================

Overwriting goes through the same phases: the claim drops the files that are about to be replaced, and keeps
the others, so that no sidecar ever lists another object's bytes.

A claim is created on condition that there is none. It is read again before each object is published, as a
server may not honour conditions, and as a writer that overwrites may have taken the name.

Such a writer may take the name even while an object is being put. So each writer looks after it has written:

- after its object, at the claim: if that is another's, this task is an error, and a record of the other that
  lists the bytes that were just replaced goes back to ``downloading``, without them;
- after its record, at the objects: if one is not what the record says, this task is an error, and the record
  goes back to ``downloading`` in the same way.

Whichever of two writes is the later one, its writer sees the other. Until it has looked, or if it is killed
before that, a record may list the other's bytes. The next run finds that out by the metadata; in a store
without metadata only by the size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_luma.download.naming import candidate_names
from airflow_provider_luma.download.records import (
    DOWNLOADED,
    PARTIAL,
    File,
    SidecarRecord,
    build_record,
    put_json,
)
from airflow_provider_luma.download.staging import Staging
from airflow_provider_luma.download.stores.base import SHA256, TASK_ID, NamedStore, StoredObject
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.exceptions import ObjectExistsError
from airflow_provider_luma.relay.media import MEDIA_KINDS, MediaKind
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.relay.text import clean_text

DOWNLOADING = "downloading"
_STATUSES = frozenset({DOWNLOADING, DOWNLOADED, PARTIAL})
_MAX_BYTES = 256 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,50}/[a-z0-9.+-]{1,50}")


class ClaimLostError(ObjectExistsError):
    """Another writer took the name, so that nothing may be written any more."""


@dataclass(frozen=True)
class SidecarState:
    """
    The content of a sidecar.

    :param task_id: whose it is; ``None`` when it is not a sidecar.
    :param files: that are published.
    :param publishing: that were about to be.
    """

    task_id: str | None
    status: str = ""
    files: Mapping[MediaKind, File] = field(default_factory=dict)
    publishing: Mapping[MediaKind, File] = field(default_factory=dict)


class Sidecar:
    """
    The sidecar record of one task.

    :param name: of its files, without a suffix.
    :param overwrite: whether a foreign one, or one of another task, may be replaced.
    """

    def __init__(
        self, store: NamedStore, staging: Staging, task: LumaTask, name: str, *, overwrite: bool
    ) -> None:
        self._store = store
        self._staging = staging
        self._task = task
        self._stem = name
        self._overwrite = overwrite
        self.name = f"{name}.json"
        self.files: dict[MediaKind, File] = {}
        self._replaced_other = False

    def load(self) -> SidecarState | None:
        """
        Read it; ``None`` where there is none.

        :raises ObjectExistsError: when it is somebody else's, and must not be replaced.
        """
        content = self._store.read(self.name, _MAX_BYTES + 1)
        if content is None:
            return None
        state = parse_sidecar(content)
        if state.task_id != self._task.id and not self._overwrite:
            raise ObjectExistsError(self._explain(state))
        return state

    def verify_files(self, state: SidecarState | None) -> None:
        """Accept the files that are still as the sidecar lists them."""
        if state is None or state.task_id != self._task.id:
            return
        self.files |= {kind: file for kind, file in state.files.items() if self._is_valid(kind, file)}
        for kind, file in state.publishing.items():
            if kind not in self.files and self._is_published(kind, file):
                self.files[kind] = file

    def parse_metadata(self, found: StoredObject, name: str, source: str) -> File | None:
        """Return the file of an object whose metadata names this task, otherwise ``None``."""
        sha256 = found.metadata.get(SHA256, "")
        if found.metadata.get(TASK_ID) != self._task.id or not _SHA256.fullmatch(sha256) or not found.size:
            return None
        return {
            "uri": self._store.uri(name),
            "size": found.size,
            "sha256": sha256,
            "content_type": found.content_type if _MEDIA_TYPE.fullmatch(found.content_type) else "",
            "source": source,
        }

    def claim(self, state: SidecarState | None) -> None:
        """
        Make the name this task's, before the first byte.

        :raises ObjectExistsError: when another writer was faster.
        """
        self._replaced_other = state is not None and state.task_id != self._task.id
        if state is None:
            try:
                self._put(DOWNLOADING, if_absent=not self._overwrite)
            except ObjectExistsError:
                # Our own, of a lost response or of a run at the same time, is as good.
                if self.load() is None:
                    raise
        elif state.task_id != self._task.id or state.status != DOWNLOADING or state.files != self.files:
            self._put(DOWNLOADING)

    def check_claim(self) -> None:
        """
        Check that no other writer took the name since.

        :raises ClaimLostError: when one did.
        """
        content = self._store.read(self.name, _MAX_BYTES + 1)
        state = parse_sidecar(content) if content is not None else SidecarState(None)
        if state.task_id != self._task.id:
            raise ClaimLostError(self._explain(state))

    def check_put(self, kind: MediaKind, file: File) -> None:
        """
        Check after an object was published that no other writer took the name while it was.

        :raises ClaimLostError: when one did. Its record no longer lists the replaced bytes.
        """
        content = self._store.read(self.name, _MAX_BYTES + 1)
        state = parse_sidecar(content) if content is not None else SidecarState(None)
        if state.task_id == self._task.id:
            return
        listed = state.files.get(kind)
        if content and listed and listed["uri"] == file["uri"] and listed["sha256"] != file["sha256"]:
            row = {**json.loads(content), kind: None, "status": DOWNLOADING}
            put_json(self._staging, self._store, self.name, [row])
        raise ClaimLostError(f"Replaced by another writer: {self._explain(state)}")

    def check_record(self, identities: Mapping[MediaKind, str]) -> None:
        """
        Check after the final record that the objects are what it says.

        :param identities: of each file that was published, while it was staged.
        :raises ClaimLostError: when another writer replaced one. The record no longer lists it.
        """
        for kind, identity in identities.items():
            file = self.files[kind]
            found = self._head(kind, file)
            if found is not None and self._has_bytes(found, file, kind, identity):
                continue
            self.check_claim()
            del self.files[kind]
            self._put(DOWNLOADING)
            owner = found.metadata.get(TASK_ID) if found else None
            writer = f"the Luma task {clean_text(owner, 100)}" if owner else "another writer"
            raise ClaimLostError(f"{file['uri']} was replaced by {writer}. Add {{id}} to name_template")

    def _has_bytes(self, found: StoredObject, file: File, kind: MediaKind, identity: str) -> bool:
        if found.size != file["size"] or found.metadata.get(SHA256, file["sha256"]) != file["sha256"]:
            return False
        if found.identity == identity or SHA256 in found.metadata:
            return True
        # Hashing is cheap only where the file is local, and otherwise for when another writer was seen.
        name = self._name_of(kind, file)
        needs_hash = bool(found.identity) or self._replaced_other
        return not needs_hash or (name is not None and self._store.sha256(name) == file["sha256"])

    def save_publishing(self, kind: MediaKind, file: File) -> None:
        """Save what is about to be published, if the store keeps no metadata."""
        if not self._store.store.keeps_metadata:
            self._put(DOWNLOADING, publishing={kind: file})

    def add(self, kind: MediaKind, file: File, *, is_last: bool) -> None:
        self.files[kind] = file
        if not is_last:
            self._put(DOWNLOADING)

    def finish(self, status: str) -> None:
        self._put(status)

    def _put(
        self, status: str, *, if_absent: bool = False, publishing: Mapping[MediaKind, File] | None = None
    ) -> None:
        row: SidecarRecord = {**build_record(self._task, self.files, status)}  # type: ignore[typeddict-item]
        if publishing:
            row["publishing"] = dict(publishing)
        put_json(self._staging, self._store, self.name, [row], if_absent=if_absent)

    def _is_valid(self, kind: MediaKind, file: File) -> bool:
        """Compare size and metadata; an object without metadata, and a local file, has only a size."""
        found = self._head(kind, file)
        if found is None or found.size != file["size"]:
            return False
        return (
            found.metadata.get(SHA256, file["sha256"]) == file["sha256"]
            and found.metadata.get(TASK_ID, self._task.id) == self._task.id
        )

    def _is_published(self, kind: MediaKind, file: File) -> bool:
        """Hash the object, as it is unknown whether it was published."""
        found, name = self._head(kind, file), self._name_of(kind, file)
        return bool(
            found and name and found.size == file["size"] and self._store.sha256(name) == file["sha256"]
        )

    def _head(self, kind: MediaKind, file: File) -> StoredObject | None:
        name = self._name_of(kind, file)
        return self._store.head(name) if name else None

    def _name_of(self, kind: MediaKind, file: File) -> str | None:
        """Return the name in a URI, if this task may have chosen it."""
        names = candidate_names(self._stem, kind, "")
        return next((name for name in names if self._store.uri(name) == file["uri"]), None)

    def _explain(self, state: SidecarState) -> str:
        if state.task_id is None:
            owner = "is not a sidecar record of this provider"
        else:
            owner = f"belongs to the Luma task {clean_text(state.task_id, 100)}"
        return (
            f"{self._store.uri(self.name)} {owner}. Add {{id}} to name_template, "
            "or replace it with if_exists='overwrite'"
        )


def parse_sidecar(content: bytes) -> SidecarState:
    """Parse a sidecar; any other content has no task id."""
    try:
        row = json.loads(content) if len(content) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return SidecarState(None)
    task_id, status = row.get("id"), row.get("status")
    if not isinstance(task_id, str) or not isinstance(status, str) or status not in _STATUSES:
        return SidecarState(None)
    return SidecarState(task_id, status, _parse_files(row), _parse_files(row.get("publishing")))


def _parse_files(row: Any) -> dict[MediaKind, File]:
    if not isinstance(row, dict):
        return {}
    files = {kind: _parse_file(row.get(kind)) for kind in MEDIA_KINDS}
    return {kind: file for kind, file in files.items() if file}


def _parse_file(value: Any) -> File | None:
    if (
        not isinstance(value, dict)
        or not isinstance(size := value.get("size"), int)
        or isinstance(size, bool)
    ):
        return None
    uri, sha256, content_type, source = (
        text if isinstance(text := value.get(key), str) else ""
        for key in ("uri", "sha256", "content_type", "source")
    )
    if not uri or not _SHA256.fullmatch(sha256):
        return None
    # Anybody may have edited it. The URI is compared later, with those that this task may have given.
    return {
        "uri": uri,
        "size": size,
        "sha256": sha256,
        "content_type": content_type if _MEDIA_TYPE.fullmatch(content_type) else "",
        "source": redact_url(source) if source.startswith(("http://", "https://")) else "",
    }
