"""Tasks and the state each is in: a matter of the clock alone, nothing runs in the background."""

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
# A submitted prompt that holds the one word fails later, with the second of the reasons above; one that holds
# the other is rejected.
FAILING_WORD = "blacklisted"
REJECTED_WORD = "forbidden"
PENDING_SHARE = 0.25
EARLIEST_FINISH = 0.4
FIRST_NUMBER = 13917


class Phase(Enum):
    """Where a task stands; the values are the relay's own words for it."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class Task:
    """
    One generation, with all that will ever happen to it.

    :param id: the task id.
    :param number: the integer key of the task's row in the relay's database.
    :param prompt: of the generation.
    :param born: the clock's reading when the task was created; the other times count from here.
    :param seconds: how long the task takes.
    :param fails: the reason it fails with when its time is up; None for a task that completes.
    :param found_after: seconds for which the relay leaves the task out of its responses.
    :param state_word: sent as its state at all times, whatever the clock says.
    :param link_delay: seconds for which a completed task has no media yet.
    :param aspect_ratio: echoed in responses; the video is 16:9 regardless.
    :param quota: the charge, in the relay's unit; None if there was none.
    """

    id: str
    number: int
    prompt: str
    born: float
    seconds: float
    fails: str | None = None
    found_after: float = 0.0
    state_word: str | None = None
    link_delay: float = 0.0
    aspect_ratio: str = "16:9"
    quota: int | None = None

    @property
    def starts(self) -> float:
        return self.born + self.seconds * PENDING_SHARE

    @property
    def finishes(self) -> float:
        return self.born + self.seconds

    def phase(self, now: float) -> Phase:
        if now < self.starts:
            return Phase.PENDING
        if now < self.finishes:
            return Phase.PROCESSING
        return Phase.FAILED if self.fails else Phase.COMPLETED

    def is_found(self, now: float) -> bool:
        return now >= self.born + self.found_after

    def has_media(self, now: float) -> bool:
        return self.phase(now) is Phase.COMPLETED and now >= self.finishes + self.link_delay


class Library:
    """
    All tasks of a sandbox, in the order they were created.

    :param seed: gives the task ids and the fate of the first tasks.
    """

    def __init__(self, seed: int) -> None:
        self.tasks: dict[str, Task] = {}
        self._random = random.Random(seed)
        self._numbers = itertools.count()

    def add(self, *, task_id: str | None = None, prompt: str | None = None, **facts: Any) -> Task:
        """Create a task with these facts; its id and prompt are the library's choice unless given."""
        index = next(self._numbers)
        task = Task(
            id=task_id or str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
            number=FIRST_NUMBER + index,
            prompt=prompt or PROMPTS[index % len(PROMPTS)],
            **facts,
        )
        self.tasks[task.id] = task
        return task

    def add_many(self, count: int, *, born: float, seconds: float, fail: float) -> None:
        """
        Create tasks that finish at times spread evenly between 0.4 of ``seconds`` and all of it.

        :param fail: share of them that fails, rounded to whole tasks; at least one if it is above 0.
        """
        spread = _spread(count)
        self._random.shuffle(spread)
        failing = set(self._random.sample(range(count), _failures(count, fail)))
        for index, share in enumerate(spread):
            reason = FAILURES[index % len(FAILURES)] if index in failing else None
            self.add(born=born, seconds=seconds * share, fails=reason)

    def find(self, task_id: str, now: float) -> Task | None:
        task = self.tasks.get(task_id)
        return task if task and task.is_found(now) else None


def _spread(count: int) -> list[float]:
    steps = max(count - 1, 1)
    return [1 - (1 - EARLIEST_FINISH) * step / steps for step in range(count)]


def _failures(count: int, share: float) -> int:
    if not share:
        return 0
    return min(count, max(1, round(share * count)))
