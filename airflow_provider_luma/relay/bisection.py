"""
Finds the ids of a failed request that are to blame, so that one bad id affects no other.

A relay may fail a complete request for one of its ids: it rejects the id, has an internal error with it, its
response breaks off or is too large. The ids of a request that failed in such a way are queried again in
smaller requests, each sent once, on a connection of its own::

    failed ──a request of the poll has succeeded──▶ halving ──▶ each id has its tasks or its own error
       └────none has──▶ single ids, at random ──one succeeds──▶ halving
                                └──none of them does──▶ open, until another request of the poll succeeds

    single id ──transient error──▶ in doubt ──queried again, after the others──▶ its tasks or its own error

Halving queries the largest groups first, as they hold the most good ids, and with the second half of its
requests the ids in doubt and the smallest, so that bad ids are found in every poll. One transient error of a
single id proves nothing: a gateway may have failed.

The errors that ids can be to blame for, and what such an error shows of the relay:

========================================  =============================================================
a rejection (400, 404, 413, 422)          it is up, and others of its ids may be good
``task_not_exist`` for several ids        the same: it does not know one of them, or none
5xx, a response without a usable body     nothing, until a request of the poll succeeds: it may be down
no connection                             no id is to blame: the search ends, until the next poll if a
                                          request of this one has succeeded
a rejected key, a limit                   no id is to blame: the search ends
========================================  =============================================================

The bound of requests, counted for all failed requests of a poll together and again from each success on:

- a relay that is up: ``MAX_REQUESTS`` in a row that fail; so this is also the cost of a poll for a relay that
  rejects every id, or that goes down during the poll;
- a relay of which nothing else is known: ``MAX_PROBES``;
- one failed request: ``MAX_REQUESTS`` in any case. One bad id among 100 costs up to 16.

Ids that are not isolated by then have the error of their request if nothing has succeeded. Else they have
none, and the next poll queries them again: without the ids that this one has isolated, since it finds at
least one bad id. Up to ``MAX_PROBES`` ids are always told apart, as each of them is queried alone. An id in
doubt for which no request is left is one of those that were not isolated, with its own error.

``task_not_exist`` is the absence of an id only where it was queried alone. Of several ids it is never an
error: the relay may know all but one, so that single ids are queried until this request has shown a task, and
ids that were not isolated are neither absent nor seen.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from airflow_provider_luma.exceptions import (
    RelayInvalidRequestError,
    RelayTaskNotFoundError,
    RelayTransientError,
)
from airflow_provider_luma.relay.task import LumaTask

QueryOutcome: TypeAlias = Mapping[str, LumaTask] | Exception

MAX_REQUESTS = 40
MAX_PROBES = 5


@dataclass
class Evidence:
    """
    State of the relay, as the requests of one poll have shown it.

    :param succeeds: whether one of them has shown a task.
    :param rejects: whether one of them was rejected or has shown none, which no relay does that is down.
    :param requests: how many were sent to isolate ids since the last success.
    """

    succeeds: bool = False
    rejects: bool = False
    requests: int = 0

    def take(self, response: QueryOutcome) -> None:
        """Take in how a request of the poll ended."""
        if isinstance(response, RelayInvalidRequestError) or response == {}:
            self.rejects = True
        elif not isinstance(response, Exception):
            self.succeeds, self.requests = True, 0

    @property
    def is_used_up(self) -> bool:
        """Return whether no request may be sent before another one succeeds."""
        return self.requests >= (MAX_REQUESTS if self.succeeds or self.rejects else MAX_PROBES)


class Bisection:
    """
    Tells apart the ids of a request, if it failed; :attr:`errors` are those that remain.

    Query :meth:`next_ids` and :meth:`take` the response until it returns ``None``; again while the bisection
    :attr:`is_open`, when other requests of the poll have succeeded; and :meth:`finish` with the poll.

    :param ids: of the request.
    :param response: to the request, or its error.
    :param evidence: of the poll; it is kept up to date.
    """

    def __init__(self, ids: Sequence[str], response: QueryOutcome, evidence: Evidence) -> None:
        self.errors: list[tuple[Sequence[str], Exception]] = []
        self._error: Exception | None = None
        self._evidence = evidence
        self._requests_left = MAX_REQUESTS
        self._suspects: deque[list[str]] = deque()
        self._in_doubt: dict[str, Exception] = {}
        self._has_shown_task = False
        self._is_cut_off = False
        # A failed request has had its retries.
        self._repeated: set[str] = {*ids} if len(ids) == 1 else set()
        self.take(ids, response)

    @property
    def is_open(self) -> bool:
        """Return whether ids are left, and a success of another request would let it continue."""
        return bool(self._suspects or self._in_doubt) and self._requests_left > 0

    @property
    def undecided_ids(self) -> list[str]:
        """The ids that have neither a response nor an error."""
        return [task_id for ids in self._suspects for task_id in ids] + [*self._in_doubt]

    @property
    def _is_about_unknown_ids(self) -> bool:
        return isinstance(self._error, RelayTaskNotFoundError)

    def next_ids(self) -> Sequence[str] | None:
        """Return what to query next, once; ``None`` when nothing may be queried now."""
        if not self.is_open or self._evidence.is_used_up:
            return None
        self._requests_left -= 1
        self._evidence.requests += 1
        finds_good_ids = self._requests_left >= MAX_REQUESTS // 2
        if not self._suspects or (self._in_doubt and not finds_good_ids):
            return self._pop_in_doubt()
        if not (self._has_shown_task if self._is_about_unknown_ids else self._evidence.succeeds):
            return self._pop_probe()
        return self._suspects.popleft() if finds_good_ids else self._suspects.pop()

    def take(self, ids: Sequence[str], response: QueryOutcome) -> None:
        """Take in the response to a query of ``ids``, or its error."""
        self._evidence.take(response)
        if not isinstance(response, Exception):
            self._has_shown_task = self._has_shown_task or bool(response)
            return
        self._error = self._error or response
        if len(ids) > 1 and _is_about_ids(response):
            middle = (len(ids) + 1) // 2
            self._suspects += [list(ids[:middle]), list(ids[middle:])]
        elif isinstance(response, RelayTransientError) and response.was_sent and ids[0] not in self._repeated:
            self._in_doubt[ids[0]] = response
        elif isinstance(response, RelayTransientError) and not response.was_sent and self._evidence.succeeds:
            self._suspects.append(list(ids))
            self._requests_left, self._is_cut_off = 0, True
        elif _is_about_ids(response):
            self.errors.append((ids, response))
        else:
            self.errors += [(some, response) for some in (ids, *self._suspects, [*self._in_doubt]) if some]
            self._suspects.clear()
            self._in_doubt.clear()

    def finish(self) -> None:
        """Decide about the ids that were not isolated: the next poll does, or they have the error."""
        is_left_to_next_poll = (
            self._is_about_unknown_ids or self._is_cut_off or (self._evidence.succeeds and self.errors)
        )
        if self._error is not None and not is_left_to_next_poll:
            self.errors += [(ids, self._error) for ids in self._suspects]
            self.errors += [([task_id], error) for task_id, error in self._in_doubt.items()]
        self._suspects.clear()
        self._in_doubt.clear()

    def _pop_in_doubt(self) -> list[str]:
        task_id = next(iter(self._in_doubt))
        del self._in_doubt[task_id]
        self._repeated.add(task_id)
        return [task_id]

    def _pop_probe(self) -> list[str]:
        """Take an id out of the largest group, so that the probes are spread."""
        largest = max(self._suspects, key=len)
        probe = largest.pop(random.randrange(len(largest)))  # noqa: S311
        if not largest:
            self._suspects.remove(largest)
        return [probe]


def find_tasks(
    ids: Sequence[str],
    error: RelayTaskNotFoundError,
    query: Callable[[Sequence[str]], Mapping[str, LumaTask]],
) -> dict[str, LumaTask]:
    """
    Return the tasks among ids that the relay does not all know.

    :param error: that says so.
    :param query: queries some of them.
    :raises RelayTaskNotFoundError: when it takes too many requests.
    """
    bisection, tasks = Bisection(ids, error, Evidence()), dict[str, LumaTask]()
    while (requested := bisection.next_ids()) is not None:
        try:
            found = query(requested)
        except RelayTaskNotFoundError as still:
            bisection.take(requested, still)
        else:
            bisection.take(requested, found)
            tasks |= found
    if bisection.undecided_ids:
        raise error
    return tasks


def _is_about_ids(error: Exception) -> bool:
    """Return whether the ids may be to blame: the relay got the request, and did not reject the key."""
    return (
        error.was_sent
        if isinstance(error, RelayTransientError)
        else isinstance(error, RelayInvalidRequestError)
    )
