"""A balance that is read as seldom as relays allow, for all threads of a task."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from copy import copy

from airflow_provider_luma import metrics
from airflow_provider_luma.exceptions import RelayError
from airflow_provider_luma.relay.money import Money

log = logging.getLogger(__name__)

# Relays of this family take 20 queries in 20 minutes of an address.
MIN_INTERVAL = 60.0
MAX_AGE = 20 * 60.0


class BalanceReader:
    """
    The balance of one connection, and how old it is.

    =============================  ==================================================================
    the last query was             a reading is
    =============================  ==================================================================
    less than a minute ago         what that query gave, an error included
    longer ago                     queried again
    without success since then     the earlier one for 20 minutes, if there is one, then the error
    =============================  ==================================================================

    :param query: queries the relay, once.
    :param conn_id: names the connection in the gauge and in the log.
    :param clock: gives seconds that only grow.
    """

    def __init__(
        self, query: Callable[[], Money | None], conn_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._query = query
        self._conn_id = conn_id
        self._clock = clock
        self._lock = threading.Lock()
        self._reading: Money | None = None
        self._error: RelayError | None = None
        self._read_at = self._queried_at = -float("inf")
        self._is_absence_logged = False

    def get(self) -> Money | None:
        """
        Return the balance; ``None`` where the relay does not report one.

        :raises RelayError: when it cannot be read now, and was not read for 20 minutes; its ``retry_after``
            is the time until the next query.
        """
        with self._lock:
            if self._clock() - self._queried_at >= MIN_INTERVAL:
                self._refresh()
            if self._error:
                raise self._until_next_query(self._error)
            return self._reading

    def _until_next_query(self, error: RelayError) -> RelayError:
        """Return the error with the seconds for which it stands."""
        error = copy(error)
        seconds = self._queried_at + MIN_INTERVAL - self._clock()
        error.retry_after = max(seconds, error.retry_after or 0.0)
        return error

    def _refresh(self) -> None:
        self._queried_at, self._error = self._clock(), None
        is_recent = self._clock() - self._read_at <= MAX_AGE
        try:
            reading = self._query()
        except RelayError as error:
            if not is_recent:
                self._error = error
            log.warning("The balance could not be read: %s", error)
            return
        self._reading, self._read_at = reading, self._clock()
        self._report()

    def _report(self) -> None:
        if self._reading is not None:
            metrics.record_balance(self._conn_id, self._reading)
        elif not self._is_absence_logged:
            self._is_absence_logged = True
            log.info("The relay of the connection %r does not report a balance", self._conn_id)
