"""Tasks and their states, which follow from the clock alone; nothing runs in the background."""

from __future__ import annotations

import itertools
import random
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Any

PROMPTS = (
    "a paper boat crossing a puddle after the rain",
    "cat dance",
    "an astronaut watering tomatoes in a greenhouse on the moon",
    "a lighthouse in a storm, seen from the sea",
    "steam rising from a bowl of ramen, close up",
    "a tram climbing a steep street at dusk",
    "two foxes chasing each other through fresh snow",
    "a glass marble rolling through a wooden maze",
    "hot air balloons over terraced rice fields at dawn",
    "an old projector starting up in an empty cinema",
    "koi turning slowly under fallen maple leaves",
    "a city built of books, slow dolly in",
)
FAILURES = (
    "Advanced prompt moderation failed",
    "Prompt contains blacklisted words",
    "Failed to read user input frames",
    "Frame moderation failed",
    "Failed to process the prompt",
    "The job has failed due to an internal error",
)
# A submitted prompt with the first word fails later, with the second of the reasons above; one with the
# second word is rejected.
FAILING_WORD = "blacklisted"
REJECTED_WORD = "forbidden"
PENDING_SHARE = 0.25
EARLIEST_FINISH = 0.4
FIRST_NUMBER = 13917


class Phase(Enum):
    """The phase of a task; the values are the relay's own words."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class Task:
    """
    One generation, with everything that will ever happen to it.

    :param id: the task id.
    :param number: the integer key of the task's row in the relay's database.
    :param prompt: of the generation.
    :param created_at: the clock's reading when the task was created; the other times count from here.
    :param seconds: how long the task takes.
    :param failure_reason: the reason with which it fails when its time is up; None for a task that completes.
    :param visible_after: seconds for which the relay leaves the task out of its responses.
    :param raw_state: sent as its state at all times, whatever the clock says.
    :param link_delay: seconds for which a completed task has no media yet.
    :param aspect_ratio: echoed in responses; the video is 16:9 regardless.
    :param quota: the charge, in the relay's unit; None if there was none.
    """

    id: str
    number: int
    prompt: str
    created_at: float
    seconds: float
    failure_reason: str | None = None
    visible_after: float = 0.0
    raw_state: str | None = None
    link_delay: float = 0.0
    aspect_ratio: str = "16:9"
    quota: int | None = None

    @property
    def starts_at(self) -> float:
        return self.created_at + self.seconds * PENDING_SHARE

    @property
    def finishes_at(self) -> float:
        return self.created_at + self.seconds

    def phase(self, now: float) -> Phase:
        if now < self.starts_at:
            return Phase.PENDING
        if now < self.finishes_at:
            return Phase.PROCESSING
        return Phase.FAILED if self.failure_reason else Phase.COMPLETED

    def is_visible(self, now: float) -> bool:
        return now >= self.created_at + self.visible_after

    def has_media(self, now: float) -> bool:
        return self.phase(now) is Phase.COMPLETED and now >= self.finishes_at + self.link_delay


class TaskStore:
    """
    All tasks of a sandbox, in the order they were created.

    :param seed: decides the task ids, and which of the first tasks fail.
    """

    def __init__(self, seed: int) -> None:
        self.tasks: dict[str, Task] = {}
        self._random = random.Random(seed)
        self._numbers = itertools.count()

    def add(self, *, task_id: str | None = None, prompt: str | None = None, **fields: Any) -> Task:
        """Create a task with these fields; its id and prompt are the store's choice unless given."""
        index = next(self._numbers)
        task = Task(
            id=task_id or str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
            number=FIRST_NUMBER + index,
            prompt=prompt or PROMPTS[index % len(PROMPTS)],
            **fields,
        )
        self.tasks[task.id] = task
        return task

    def add_many(self, count: int, *, created_at: float, seconds: float, fail: float) -> None:
        """
        Create tasks that finish at times spread evenly between 0.4 of ``seconds`` and all of it.

        :param fail: share of them that fails, rounded to whole tasks; at least one if it is above 0.
        """
        durations = _durations(count)
        self._random.shuffle(durations)
        failing = set(self._random.sample(range(count), _failure_count(count, fail)))
        for index, share in enumerate(durations):
            reason = FAILURES[index % len(FAILURES)] if index in failing else None
            self.add(created_at=created_at, seconds=seconds * share, failure_reason=reason)

    def find(self, task_id: str, now: float) -> Task | None:
        task = self.tasks.get(task_id)
        return task if task and task.is_visible(now) else None


def _durations(count: int) -> list[float]:
    steps = max(count - 1, 1)
    return [1 - (1 - EARLIEST_FINISH) * step / steps for step in range(count)]


def _failure_count(count: int, share: float) -> int:
    if not share:
        return 0
    return min(count, max(1, round(share * count)))
