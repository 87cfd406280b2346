"""Tries of one generate task against a store that outlives them, without a scheduler."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import airflow_provider_luma
from airflow_provider_luma.operators.luma import LumaGenerateBatchOperator, LumaGenerateOperator
from airflow_provider_luma.submit.record_store import StatePlace, SubmitLedger

PACKAGE = str(Path(airflow_provider_luma.__file__).parent)
KILLED = 99


class Store:
    """Keeps values as Airflow's task state store does, as JSON, in a file that outlives the process."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, key: str, default: Any = None) -> Any:
        return self._values().get(key, default)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        # Several threads and tries write; a process that is killed gives its lock back.
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps(self._values() | {key: value}))
            part.replace(self._file)

    def wipe(self) -> None:
        """Do what clearing a task does from Airflow 3.4 on."""
        self._file.unlink(missing_ok=True)

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        return values


@dataclass
class Instance:
    """What of a task instance the operator looks at."""

    max_tries: int = 0
    dag_id: str = "generating"
    run_id: str = "manual__2026-11-21T10:00:00+00:00"
    id: str = "01991c9e-0c1f-7000-8000-000000000001"
    task_id: str = "generate"
    map_index: int = -1
    xcoms: dict[str, Any] = field(default_factory=dict)
    task: LumaGenerateOperator | LumaGenerateBatchOperator | None = None
    is_success_recorded: bool = True

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def get_task_states(self, **_: Any) -> dict[str, dict[str, str]]:
        return {self.run_id: {self.task_id: "success" if self.is_success_recorded else "failed"}}

    def xcom_pull(self, key: str, **_: Any) -> Any:
        return self.xcoms.get(key)


class GenerateTask:
    """
    One generate task, tried again and again.

    :param store: the task state store; ``None`` where Airflow has none.
    :param arguments: of the operator.
    """

    operator_class: type[LumaGenerateOperator | LumaGenerateBatchOperator] = LumaGenerateOperator
    defaults: Mapping[str, Any] = {"prompt": "cat dance"}

    def __init__(self, store: Store | None, **arguments: Any) -> None:
        self.store = store
        self.arguments = {**self.defaults, **arguments}
        self.instance = Instance()

    def run(self, **arguments: Any) -> Any:
        """Execute a try, and let Airflow record its success."""
        operator, context = self.prepare(arguments)
        result = operator.execute(context)  # type: ignore[arg-type]
        for callback in operator.on_success_callback:
            callback(context)  # type: ignore[arg-type]
        return result

    def run_without_recording(self, **arguments: Any) -> Any:
        """Execute a try whose worker dies before Airflow records its success."""
        operator, context = self.prepare(arguments)
        return operator.execute(context)  # type: ignore[arg-type]

    def run_stopped(self, wait: Callable[[], object] | None = None, **arguments: Any) -> Any:
        """Execute a try that Airflow stops once ``wait`` returns; by default before it begins."""
        operator, context = self.prepare(arguments)

        def stop() -> None:
            if wait is not None:
                wait()
            operator.on_kill()

        stopper = threading.Thread(target=stop, daemon=True)
        stopper.start()
        if wait is None:
            stopper.join()
        return operator.execute(context)  # type: ignore[arg-type]

    def open_ledger(self) -> SubmitLedger:
        """Open the record as a try does."""
        _, context = self.prepare({})
        place = StatePlace(context, self.arguments.get("state_path"), durable=True)  # type: ignore[arg-type]
        return SubmitLedger(place, self.instance.max_tries)

    def clear(self, *, keeps_state: bool = True) -> None:
        self.instance.max_tries += 1
        if self.store is not None and not keeps_state:
            self.store.wipe()

    def run_killed_at(self, line: int, *, since: str = "") -> int | None:
        """Execute a try in a process of its own, which dies as :func:`kill_at` says."""
        child = os.fork()
        if child == 0:
            kill_at(line, since)
            code = 0
            try:
                self.run()
            except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on with the tests
                code = 1
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def prepare(
        self, arguments: Mapping[str, Any]
    ) -> tuple[LumaGenerateOperator | LumaGenerateBatchOperator, dict[str, Any]]:
        """Return the operator of a try, and its context."""
        operator = self.operator_class(task_id="generate", **self.arguments | dict(arguments))
        self.instance.task = operator
        context = {"ti": self.instance}
        return operator, context | ({} if self.store is None else {"task_state_store": self.store})


class BatchTask(GenerateTask):
    """One batch, tried again and again; failed prompts do not fail it, unless asked for."""

    operator_class = LumaGenerateBatchOperator
    defaults: Mapping[str, Any] = {"fail_when": "never"}

    @property
    def submits(self) -> dict[str, Any]:
        """The last try's summary of its prompts."""
        submits: dict[str, Any] = self.instance.xcoms["luma_submits"]
        return submits


def kill_at(line: int, since: str = "") -> None:
    """
    Die as by ``kill -9`` before the ``line``-th line of the package that runs from now on, in any thread.

    :param since: counts only from the first call of this function on.
    """
    seen = 0
    begun = not since

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, begun
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        begun = begun or frame.f_code.co_qualname == since
        if event == "line" and begun:
            seen += 1
            if seen == line:
                os._exit(KILLED)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
