"""
Which ids of a failed request are to blame, so that one bad id affects no other.

A relay may fail a complete request for one of its ids: it rejects the id, has an internal error with it, or
its response is too large. The ids of a request that failed in such a way are queried
again in smaller requests, each sent once, until each bad id stands alone::

    failed ──relay responds to others──▶ halving ──▶ every id has its tasks or its own error
       └─────nothing is known──────────▶ first id, last id ──one has a response──▶ halving
                                                 └──────────both fail────────────▶ all have the error

One bad id among 100 costs up to 16 more requests, and no failed request costs more than ``MAX_REQUESTS``; ids
that are not isolated by then keep its error. A relay that is down costs a poll two more requests for each
one that runs at once, where each failed request has had its several attempts: once two single ids have
failed, the other failed requests of that poll are not looked into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from airflow_provider_luma.exceptions import RelayInvalidRequestError, RelayTransientError
from airflow_provider_luma.relay.task import LumaTask

Response: TypeAlias = Mapping[str, LumaTask] | Exception

MAX_REQUESTS = 40


@dataclass
class Evidence:
    """
    What the requests of one poll have shown of the relay.

    :param responds: whether it has responded to one of them.
    :param fails_alone: whether two single ids have failed, too, and nothing was responded to.
    """

    responds: bool = False
    fails_alone: bool = False

    @property
    def is_known(self) -> bool:
        """Say whether another request need not find out if the relay responds at all."""
        return self.responds or self.fails_alone


class Isolation:
    """
    Tells apart the ids of a request that failed: query :meth:`next_ids` and :meth:`take` the response.

    :param ids: of the request.
    :param error: with which it failed.
    :param evidence: of the poll; it is kept up to date.
    """

    def __init__(self, ids: Sequence[str], error: Exception, evidence: Evidence) -> None:
        self.outcomes: list[tuple[Sequence[str], Response]] = []
        self._error = error
        self._evidence = evidence
        self._requests_left = MAX_REQUESTS
        self._suspects: deque[Sequence[str]] = deque([ids])
        self._probes_failed = 0
        if not _is_about_ids(error) or len(ids) == 1 or (evidence.fails_alone and not evidence.responds):
            self._give_up()
        elif evidence.responds:
            self._halve(self._suspects.popleft())
        else:
            whole = self._suspects.popleft()
            self._suspects += [whole[:1], whole[-1:]]
            self._halve(whole[1:-1])

    @property
    def errors(self) -> list[Exception]:
        return [response for _, response in self.outcomes if isinstance(response, Exception)]

    def next_ids(self) -> Sequence[str] | None:
        """Return what to query next, once; ``None`` when :attr:`outcomes` has every id."""
        if self._suspects and not self._requests_left:
            self._give_up()
        if not self._suspects:
            return None
        self._requests_left -= 1
        return self._suspects.popleft()

    def take(self, ids: Sequence[str], response: Response) -> None:
        """Take in the response to a query of ``ids``, or its error."""
        if not isinstance(response, Exception):
            self._evidence.responds = True
            self.outcomes.append((ids, response))
            return
        if len(ids) > 1 and _is_about_ids(response):
            self._halve(ids)
            return
        self.outcomes.append((ids, response))
        self._probes_failed += not self._evidence.responds
        if not _is_about_ids(response):
            self._error = response
            self._give_up()
        elif self._probes_failed == 2 and not self._evidence.responds:
            self._evidence.fails_alone = True
            self._give_up()

    def _halve(self, ids: Sequence[str]) -> None:
        middle = (len(ids) + 1) // 2
        self._suspects += [half for half in (ids[:middle], ids[middle:]) if half]

    def _give_up(self) -> None:
        self.outcomes += [(ids, self._error) for ids in self._suspects]
        self._suspects.clear()


def _is_about_ids(error: Exception) -> bool:
    """Return whether the ids may be to blame: the relay has responded, with other than a rejected key."""
    is_response = isinstance(error, RelayTransientError) and error.status is not None
    return is_response or isinstance(error, RelayInvalidRequestError)
