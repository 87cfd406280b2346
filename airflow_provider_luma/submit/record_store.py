"""
The place of the record of a submit: durable execution on every Airflow.

======================  ================  =============================================================
kept in                 Airflow           survives
======================  ================  =============================================================
an object, state_path   all               retries and every clear
the task state store    3.3 and newer     retries and clears; from 3.4 on only clears that keep task state
nowhere                 3.0 to 3.2        nothing: no error after the submit is retried by Airflow
======================  ================  =============================================================

A record that cannot be read is an error, never "no record". So is a record in another place: a ``state_path``
of the connection changes with the connection, which may be templated. Where there is a task state store, it
remembers the ``state_path`` from the first record on; where there is none, a templated connection gives none.

==================================  =====================================================================
act                                 if the process dies after this step, a try with another ``state_path``
==================================  =====================================================================
earlier records are copied          uses those; the copies are copied again by a try with this one
the object with ``sending`` is put  submits there: nothing was sent yet
the ``state_path`` is remembered    fails: the records are elsewhere
the request leaves                  likewise
==================================  =====================================================================
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote

from airflow_provider_luma.airflow_version import CLEAR_DELETES_STATE, NEVER_EXPIRE
from airflow_provider_luma.exceptions import LumaError, LumaValueError, SubmitRecordError
from airflow_provider_luma.relay.text import clean_text, redact_text
from airflow_provider_luma.submit.conditional_writes import (
    MAX_BYTES,
    ConflictError,
    VersionedObject,
    open_folder,
)
from airflow_provider_luma.submit.record import Ledger, SubmitRecord

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


T = TypeVar("T")

KEY, PLACE_KEY = "luma_submit", "luma_state_path"

_MAX_NAME_CHARS = 150
RESTORE = (
    "Restore it, or trigger another Dag run to submit what the relay's task log does not show: without its "
    "records a task may be paid for again"
)
_WRITTEN_MEANWHILE = "another process has written it meanwhile"


class RecordStore(Protocol):
    """A place for one record of a task instance, shared by its tries."""

    def load(self) -> Any:
        """Return the record; ``None`` when there is none yet."""

    def save(self, record: dict[str, Any]) -> None:
        """Write the record, unless another process wrote it since the last load or save."""


class AirflowRecordStore:
    """
    The task state store of Airflow 3.3 and newer.

    It takes no conditions, so that of two processes that save in the same instant both may win; the first
    finds out when it saves again.
    """

    def __init__(self, store: Any, key: str) -> None:
        self._store = store
        self._key = key
        self._writer = uuid.uuid4().hex
        # What may be there: a write whose response was lost may have arrived, or not.
        self._expected: list[Any] = [None]

    def __str__(self) -> str:
        return f"the key {self._key!r} of the task state store"

    def load(self) -> Any:
        record = self._store.get(self._key)
        self._expected = [record]
        return record

    def save(self, record: dict[str, Any]) -> None:
        if self._store.get(self._key) not in (*self._expected, None):  # None: it was cleared meanwhile
            raise SubmitRecordError(_WRITTEN_MEANWHILE)
        # Two tries may write the same record, and must not take the other's for their own.
        record = {**record, "writer": self._writer}
        self._expected.append(record)
        self._store.set(self._key, record, retention=NEVER_EXPIRE)
        self._expected = [record]


class ObjectRecordStore:
    """
    One small object below ``state_path``, written with a condition where the store has one.

    :param earlier: what it has is copied here, as when a task was given a ``state_path`` later, also over an
        earlier copy: a try that copied and saved nothing of its own leaves one behind.
    :param on_save: called after each save.
    """

    def __init__(
        self, item: VersionedObject, earlier: RecordStore | None, on_save: Callable[[], None]
    ) -> None:
        self._object = item
        self._earlier = earlier
        self._on_save = on_save
        self._writer = uuid.uuid4().hex

    def __str__(self) -> str:
        return self._object.uri

    def load(self) -> Any:
        record = self._read()
        if record is None or (isinstance(record, dict) and record.get("copied")):
            return self._load_earlier() or record
        return record

    def _read(self) -> Any:
        content = self._object.read()
        if content is None:
            return None
        if len(content) > MAX_BYTES:
            raise SubmitRecordError("it is too large")
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            raise SubmitRecordError("it is not JSON") from None
        return {} if record is None else record

    def _load_earlier(self) -> Any:
        record = self._earlier.load() if self._earlier else None
        if isinstance(record, dict):
            # The earlier place may be wiped by a clear. It counts until this try saves a record of its own,
            # so that one that is killed while it moves a batch leaves no part behind.
            self._write({**record, "copied": True})
        return record

    def save(self, record: dict[str, Any]) -> None:
        self._write(record)
        self._on_save()

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._object.write(json.dumps({**record, "writer": self._writer}).encode())
        except ConflictError:
            raise SubmitRecordError(_WRITTEN_MEANWHILE) from None


class StatePlace:
    """
    The place of the records of the task instance that runs.

    :param state_path: URL of a folder in object storage; wins over the task state store.
    :param durable: whether it keeps any.
    :raises SubmitRecordError: when earlier tries keep them below another ``state_path``.
    :raises LumaValueError: when ``state_path`` is not such a URL.
    """

    def __init__(self, context: Context, state_path: str | None, *, durable: bool) -> None:
        self._store = context.get("task_state_store") if durable else None
        self._url = state_path if durable and state_path else None
        self._folder = open_folder(self._url) if self._url else None
        self._name = object_name(context["ti"])
        self._remembered = self._load_remembered()

    @property
    def is_durable(self) -> bool:
        return self._store is not None or self._folder is not None

    @property
    def has_records(self) -> bool:
        """Return whether an earlier try is known to have saved records at this ``state_path``."""
        return self._remembered is not None

    @property
    def is_movable(self) -> bool:
        """Return whether a later try could find no records because it looks elsewhere, unnoticed."""
        return self._folder is not None and (self._store is None or CLEAR_DELETES_STATE)

    @property
    def is_lost_by_a_clear(self) -> bool:
        """Return whether clearing the task deletes the records unless the user keeps them."""
        return self._store is not None and self._folder is None and CLEAR_DELETES_STATE

    def clear_hint(self, purpose: str) -> str:
        """Return how to clear the task for a purpose, so that nothing is paid for again."""
        if not self.is_durable:
            return "Do not clear this task: it keeps no record, so that a clear pays again"
        if self.is_lost_by_a_clear:
            return f"Clear this task with 'keep task state' to {purpose}; any other clear pays again"
        return f"Clear this task to {purpose}"

    def open(self, key: str, part: str | None = None) -> RecordStore | None:
        """
        Return one record, ``None`` where none is kept.

        :param key: its name in the task state store.
        :param part: its name in the folder of the task instance, which otherwise has one object.
        """
        state = AirflowRecordStore(self._store, key) if self._store is not None else None
        if self._folder is None:
            return state
        name = f"{self._name}/{part}.json" if part else f"{self._name}.json"
        earlier = None if self.has_records else state
        return ObjectRecordStore(self._folder(name), earlier=earlier, on_save=self._remember)

    def open_manifest(self) -> tuple[VersionedObject, str]:
        """
        Return a JSONL object beside the records, and its URL as Airflow's object storage takes it.

        :raises LumaValueError: when there is no ``state_path``.
        """
        if self._folder is None or self._url is None:
            raise LumaValueError("manifest=True needs a state_path")
        name = f"{self._name}/manifest.jsonl"
        return self._folder(name), f"{self._url.rstrip('/')}/{name}"

    def _load_remembered(self) -> str | None:
        """Load the ``state_path`` of earlier tries, and check that it is that of this one."""
        if self._store is None:
            return None
        with _reading(f"the key {PLACE_KEY!r} of the task state store"):
            remembered: Any = self._store.get(PLACE_KEY)
        if remembered is None or remembered == self._place:
            return self._place if remembered else None
        now = f"below {self._place}" if self._place else "in the task state store"
        raise SubmitRecordError(
            f"The records of this task's submits are kept below {clean_text(str(remembered))}, and this try "
            f"would keep them {now}. Nothing was sent. Use the same state_path and luma_conn_id in every "
            "try of a task, or trigger another run"
        )

    @property
    def _place(self) -> str | None:
        return self._url.rstrip("/") if self._url else None

    def _remember(self) -> None:
        """Remember the ``state_path`` once it holds a record, before anything is sent by it."""
        if self._store is not None and self._remembered is None:
            self._store.set(PLACE_KEY, self._place, retention=NEVER_EXPIRE)
            self._remembered = self._place


class SubmitLedger(Ledger):
    """
    The record of a task instance's submit.

    :param place: where the record lives.
    :param max_tries: of the task instance.
    """

    def __init__(self, place: StatePlace, max_tries: int) -> None:
        super().__init__(max_tries)
        self.place = place
        self._state = place.open(KEY)
        self._record = load_record(self._state, SubmitRecord.from_dict)
        if self._record is None and place.has_records:
            raise lost_record(self._state)

    @property
    def record(self) -> SubmitRecord | None:
        return self._record

    @property
    def resubmit_hint(self) -> str:
        return "clear this task to submit again"

    def save(self, record: SubmitRecord) -> None:
        save_record(self._state, record.to_dict())
        self._record = record


def load_record(state: RecordStore | None, parse: Callable[[Any], T]) -> T | None:
    """
    Load a record; ``None`` where there is none.

    :raises SubmitRecordError: when there is one that cannot be read.
    """
    if state is None:
        return None
    with _reading(state):
        data = state.load()
        return None if data is None else parse(data)


@contextmanager
def _reading(place: object) -> Iterator[None]:
    try:
        yield
    except SubmitRecordError as error:
        raise SubmitRecordError(
            f"The record of this task's submit, {place}, cannot be read: {error}. Nothing was sent. {RESTORE}"
        ) from None
    except LumaValueError:
        raise
    except Exception as error:  # the store's, so that a retry may help
        raise LumaError(
            f"The record of this task's submit, {place}, cannot be read at the moment: "
            f"{type(error).__name__}: {clean_text(redact_text(str(error)))}. Nothing was sent"
        ) from error


def lost_record(state: RecordStore | None) -> SubmitRecordError:
    """Build the error of a record that an earlier try has saved, and that is not there."""
    return SubmitRecordError(
        f"The record of this task's submit, {state}, is missing, such as where a volume is not mounted. "
        f"Nothing was sent. {RESTORE}"
    )


def save_record(state: RecordStore | None, record: dict[str, Any]) -> None:
    """
    Save a record, where one is kept.

    :raises SubmitRecordError: when another process wrote it meanwhile.
    """
    if state is None:
        return
    what = f"The record of this task's submit, {state}, cannot be written"
    try:
        state.save(record)
    except SubmitRecordError as error:
        raise SubmitRecordError(f"{what}: {error}") from None
    except Exception as error:  # the store's, so that a retry may help
        raise LumaError(f"{what}: {type(error).__name__}: {clean_text(redact_text(str(error)))}") from error


def object_name(ti: Any) -> str:
    """Return the name of a task instance's records: without the try number, the same for every try."""
    parts = (ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index if ti.map_index is not None else -1))
    return "/".join(map(_path_segment, parts))


def _path_segment(name: str) -> str:
    segment = quote(name, safe="")
    segment = segment.replace(".", "%2E") if not segment.strip(".") else segment
    if len(segment) > _MAX_NAME_CHARS:
        segment = f"{segment[:_MAX_NAME_CHARS]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return segment
