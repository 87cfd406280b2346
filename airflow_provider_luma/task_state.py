"""
Where the record of a submit lives: durable execution on every Airflow.

======================  ================  =============================================================
kept in                 Airflow           survives
======================  ================  =============================================================
an object, state_path   all               retries and every clear
the task state store    3.3 and newer     retries and clears; from 3.4 on only clears that keep task state
nowhere                 3.0 to 3.2        nothing: no error after the submit is retried by Airflow
======================  ================  =============================================================

A record that cannot be read is an error, never "no record".
"""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from airflow_provider_luma.airflow_version import CLEAR_DELETES_STATE, NEVER_EXPIRE
from airflow_provider_luma.exceptions import LumaError, LumaValueError, SubmitRecordError
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.submit_record import Action, Phase, SubmitRecord, next_action
from airflow_provider_luma.versioned_objects import MAX_BYTES, ConflictError, VersionedObject, open_object

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.relay.generation import Generation

KEY = "luma_submit"

_MAX_NAME_CHARS = 150
_WRITTEN_MEANWHILE = "another process has written it meanwhile"


class TaskState(Protocol):
    """
    A place for one record of a task instance, shared by its tries.

    ``survives_clear``: whether every way to clear the task keeps it.
    """

    survives_clear: bool

    def load(self) -> Any:
        """Return the record; ``None`` when there is none yet."""

    def save(self, record: dict[str, Any]) -> None:
        """Write the record, unless another process wrote it since the last load or save."""


class AirflowTaskState:
    """
    The task state store of Airflow 3.3 and newer.

    It takes no conditions, so that of two processes that save in the same instant both may win.
    """

    survives_clear = False

    def __init__(self, store: Any) -> None:
        self._store = store
        self._seen: Any = None

    def __str__(self) -> str:
        return f"the key {KEY!r} of the task state store"

    def load(self) -> Any:
        self._seen = self._store.get(KEY)
        return self._seen

    def save(self, record: dict[str, Any]) -> None:
        if self._store.get(KEY) not in (self._seen, None):  # None: it was cleared meanwhile
            raise SubmitRecordError(_WRITTEN_MEANWHILE)
        self._store.set(KEY, record, retention=NEVER_EXPIRE)
        self._seen = record


class ObjectTaskState:
    """
    One small object below ``state_path``, written with a condition where the store has one.

    :param earlier: read while there is no object yet, as when a task was given a ``state_path`` later.
    """

    survives_clear = True

    def __init__(self, item: VersionedObject, earlier: TaskState | None) -> None:
        self._object = item
        self._earlier = earlier
        self._writer = uuid.uuid4().hex

    def __str__(self) -> str:
        return self._object.uri

    def load(self) -> Any:
        content = self._object.read()
        if content is None:
            return self._earlier.load() if self._earlier else None
        if len(content) > MAX_BYTES:
            raise SubmitRecordError("it is too large")
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            raise SubmitRecordError("it is not JSON") from None
        return {} if record is None else record

    def save(self, record: dict[str, Any]) -> None:
        try:
            # Two tries may write the same record, and must not take the other's for their own.
            self._object.write(json.dumps({**record, "writer": self._writer}).encode())
        except ConflictError:
            raise SubmitRecordError(_WRITTEN_MEANWHILE) from None


class SubmitLedger:
    """
    The record of a task instance's submit, and what this try may do.

    :param state: where the record lives; ``None`` keeps none.
    :param max_tries: of the task instance.
    """

    def __init__(self, state: TaskState | None, max_tries: int) -> None:
        self._state = state
        self._max_tries = max_tries
        self.record = self._load()

    @property
    def is_durable(self) -> bool:
        return self._state is not None

    @property
    def may_be_lost_by_a_clear(self) -> bool:
        """Say whether clearing the task deletes the record unless the user keeps it."""
        survives = self._state is None or self._state.survives_clear
        return not survives and CLEAR_DELETES_STATE

    @property
    def clear_hint(self) -> str:
        """Say how the task is cleared without losing the record."""
        if self.may_be_lost_by_a_clear:
            return "Clear this task with 'keep task state', else it is paid for again"
        return "Clear this task"

    def next_action(self) -> Action:
        return next_action(self.record, self._max_tries)

    def begin(self, generation: Generation) -> None:
        """Write down that a submit may leave from now on."""
        self._save(SubmitRecord.sending(generation, self._max_tries))

    def mark(self, phase: Phase, *, id: str | None = None, reason: str | None = None) -> None:  # noqa: A002
        """Write down that the submit reached a phase."""
        if self.record is not None:
            self._save(self.record.at(phase, self._max_tries, id=id, reason=reason))

    def _load(self) -> SubmitRecord | None:
        if self._state is None:
            return None
        try:
            data = self._state.load()
            return None if data is None else SubmitRecord.from_dict(data)
        except SubmitRecordError as error:
            raise SubmitRecordError(
                f"The record of this task's submit, {self._state}, cannot be read: {error}. "
                "Nothing was sent. Check the relay's task log, then delete the record to submit"
            ) from None
        except LumaValueError:
            raise
        except Exception as error:  # the store's, so that a retry may help
            raise LumaError(
                f"The record of this task's submit, {self._state}, cannot be read at the moment: "
                f"{type(error).__name__}: {clean_text(str(error))}. Nothing was sent"
            ) from error

    def _save(self, record: SubmitRecord) -> None:
        if self._state is not None:
            what = f"The record of this task's submit, {self._state}, cannot be written"
            try:
                self._state.save(record.to_dict())
            except SubmitRecordError as error:
                raise SubmitRecordError(f"{what}: {error}") from None
            except Exception as error:  # the store's, so that a retry may help
                raise LumaError(f"{what}: {type(error).__name__}: {clean_text(str(error))}") from error
        self.record = record


def open_ledger(context: Context, state_path: str | None, *, durable: bool) -> SubmitLedger:
    """
    Open the record of the task instance that runs.

    :param state_path: URL of a folder in object storage; wins over the task state store.
    :raises SubmitRecordError: when there is a record that cannot be read.
    """
    ti: Any = context["ti"]
    store = context.get("task_state_store")
    state: TaskState | None = AirflowTaskState(store) if store is not None else None
    if state_path:
        state = ObjectTaskState(open_object(state_path, object_name(ti)), earlier=state)
    return SubmitLedger(state if durable else None, ti.max_tries)


def object_name(ti: Any) -> str:
    """Return the name of a task instance's object: without the try number, and the same for every try."""
    parts = (ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index if ti.map_index is not None else -1))
    return "/".join(map(_path_segment, parts)) + ".json"


def _path_segment(name: str) -> str:
    segment = quote(name, safe="")
    segment = segment.replace(".", "%2E") if not segment.strip(".") else segment
    if len(segment) > _MAX_NAME_CHARS:
        segment = f"{segment[:_MAX_NAME_CHARS]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return segment


class Retries:
    """
    Whether Airflow may retry the task that runs when it fails, for whatever reason it does.

    Only needed where no record is kept. An exception that Airflow does not retry would not do: the task can
    also fail after ``execute``, such as when Airflow pushes its XCom.
    """

    def __init__(self, context: Context) -> None:
        self._server_context: Any = getattr(context["ti"], "_ti_context_from_server", None)
        self._should_retry = getattr(self._server_context, "should_retry", None)

    def forbid(self) -> None:
        self._set(False)

    def restore(self) -> None:
        self._set(self._should_retry)

    def _set(self, should_retry: bool | None) -> None:
        if self._server_context is not None:
            self._server_context.should_retry = should_retry
