"""What a submit leaves behind, so that no retry pays twice; Airflow 3.3 and newer have a place for it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_luma.relay.generation import Generation

_KEY = "luma_submit"


class SubmitMemory:
    """
    Remembers from try to try whether a generation was submitted, and what came of it.

    :param generation: another one under the same task instance counts as not submitted.
    """

    def __init__(self, context: Context, generation: Generation) -> None:
        self._store: Any = context.get("task_state_store")
        self._max_tries = getattr(context["ti"], "max_tries", 0)
        text = json.dumps([generation.path, generation.body], sort_keys=True, default=str)
        self._digest = hashlib.sha256(text.encode()).hexdigest()

    def recall(self) -> str | None:
        """
        Return the id that an earlier try got.

        :raises SubmitOutcomeUnknownError: when an earlier try ended between its submit and the answer.
        """
        from airflow_provider_luma.relay.answers import uncertain  # brings requests

        kept = self._store.get(_KEY) if self._store is not None else None
        if not isinstance(kept, dict) or kept.get("generation") != self._digest:
            return None
        if kept.get("id"):
            # Clearing a task raises the number of its tries. Who clears one that gave its id wants another.
            return str(kept["id"]) if kept.get("given_at") in {None, self._max_tries} else None
        self.forget()  # who clears the task after this error wants a new submit
        raise uncertain("An earlier try of this task ended after it began to submit and before the answer")

    def begin(self) -> None:
        """Write down that a submit is about to leave."""
        self._set({"generation": self._digest})

    def keep(self, task_id: str) -> None:
        """Write down what it created."""
        self._set({"generation": self._digest, "id": task_id})

    def give(self, task_id: str) -> None:
        """Write down that the task is about to succeed; only a worker that dies now comes back for it."""
        self._set({"generation": self._digest, "id": task_id, "given_at": self._max_tries})

    def forget(self) -> None:
        """Have the next try, such as after the task was cleared, submit anew."""
        if self._store is not None:
            self._store.delete(_KEY)

    def _set(self, value: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.set(_KEY, value)
