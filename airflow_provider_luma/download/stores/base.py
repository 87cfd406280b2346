"""
The protocol of a store as a download needs it, so that it is the same on every one.

An object becomes visible at once and complete, or not at all. A store that keeps metadata is given the Luma
task id and the SHA-256 with the object; of any other, the sidecar record says so before (see ``sidecar.py``).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from airflow_provider_luma.download.staging import StagedFile
from airflow_provider_luma.exceptions import DownloadError, ObjectExistsError
from airflow_provider_luma.relay.text import clean_text, redact_text
from airflow_provider_luma.threads import DeadlineError, StoppedError

TASK_ID, SHA256 = "luma-task-id", "sha256"

_MAX_ERROR_CHARS = 500


@dataclass(frozen=True)
class StoredObject:
    """
    An object as its store describes it.

    :param metadata: with the keys ``luma-task-id`` and ``sha256``, where the object has them.
    :param identity: of a local file, see :attr:`StagedFile.identity`.
    """

    size: int
    content_type: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""


@dataclass(frozen=True)
class Upload:
    """
    An object to be put into a store.

    :param file: its bytes.
    :param name: below the destination.
    :param metadata: kept with the object, where the store can.
    :param if_absent: do not replace another object.
    :param stopped: ends it between two parts.
    :param deadline: of the monotonic clock; ends it in the same way.
    """

    file: StagedFile
    name: str
    content_type: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    if_absent: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    deadline: float = math.inf

    def check_stopped(self) -> None:
        if self.stopped.is_set():
            raise StoppedError
        if time.monotonic() >= self.deadline:
            raise DeadlineError

    def ascii_metadata(self) -> dict[str, str]:
        return {key: quote(value, safe=" !#$&'()*+,/:;=?@[]~") for key, value in self.metadata.items()}


class Store(Protocol):
    """
    A folder in a store. Methods raise whatever the store's SDK raises.

    ``is_conditional``: of several uploads with ``if_absent`` at most one succeeds, also at the same time.
    ``keeps_metadata``: :meth:`head` returns the metadata that :meth:`put` was given.
    ``multipart_above``: from how many bytes on the CRC-32 of a file is needed.
    """

    is_conditional: bool
    keeps_metadata: bool
    multipart_above: float

    def uri(self, name: str) -> str: ...

    def head(self, name: str) -> StoredObject | None:
        """Describe an object; ``None`` where there is none."""

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Return the first bytes of an object; ``None`` where there is none."""

    def sha256(self, name: str) -> str:
        """Hash an object, in hex."""

    def staging_folder(self) -> str | None:
        """Return where to stage files, if that matters."""

    def put(self, upload: Upload) -> None:
        """
        Publish a complete file.

        :raises FileExistsError: when there is an object already, and it must not be replaced.
        """


class NamedStore:
    """
    A store whose errors name the object and the reason, and no secrets.

    :raises DownloadError: from every method that reaches the store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def uri(self, name: str) -> str:
        return self.store.uri(name)

    def staging_folder(self) -> str | None:
        return self.store.staging_folder()

    def head(self, name: str) -> StoredObject | None:
        with self._naming(name, "read"):
            return self.store.head(name)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        with self._naming(name, "read"):
            return self.store.read(name, max_bytes)

    def sha256(self, name: str) -> str:
        with self._naming(name, "read"):
            return self.store.sha256(name)

    def put(self, upload: Upload) -> None:
        """
        Publish a complete file.

        :raises ObjectExistsError: when there is an object already, and it must not be replaced.
        :raises DownloadError: when the store rejects it, or it is stopped or out of time.
        """
        upload.check_stopped()
        with self._naming(upload.name, "written"):
            try:
                self.store.put(upload)
            except FileExistsError:
                if not upload.if_absent:
                    raise  # a file where a folder is needed
                raise ObjectExistsError(f"{self.uri(upload.name)} already exists") from None

    @contextmanager
    def _naming(self, name: str, verb: str) -> Iterator[None]:
        try:
            yield
        except DownloadError:
            raise
        except Exception as error:  # noqa: BLE001 - each SDK raises what it likes
            reason = clean_text(redact_text(f"{type(error).__name__}: {error}"), _MAX_ERROR_CHARS)
            raise DownloadError(f"{self.uri(name)} cannot be {verb}: {reason}") from None


def join(prefix: str, name: str) -> str:
    return f"{prefix.strip('/')}/{name}".lstrip("/")


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an SDK's error."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    for name in ("status_code", "code"):  # azure, google
        if isinstance(status := getattr(error, name, None), int):
            return int(status)
    return None


NO_MULTIPART = math.inf
