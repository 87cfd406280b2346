"""
Saves what many threads change with few writes.

One flush runs at a time, and saves each changed segment once. Threads that want to save meanwhile wait for
the next flush, which carries the changes of them all. A flush that fails leaves its segments to the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from airflow_provider_luma.exceptions import SubmitRecordError


@dataclass
class _Flush:
    is_done: bool = False
    errors: dict[int, BaseException] = field(default_factory=dict)


class GroupCommit:
    """
    Saves what many threads change, one flush at a time.

    :param save: saves one segment as it is now.
    """

    def __init__(self, save: Callable[[int], None]) -> None:
        self._save = save
        self._changed = threading.Condition()
        self._dirty: set[int] = set()
        self._gathering = _Flush()
        self._is_flushing = False

    def add(self, segment: int) -> None:
        """Leave a changed segment to the next flush."""
        with self._changed:
            self._dirty.add(segment)

    def commit(self, segment: int | None = None) -> None:
        """
        Return when a flush that began after this call has saved the segment; without one, every segment.

        :raises Exception: the error of the segment; it is left to the next flush.
        """
        with self._changed:
            if segment is not None:
                self._dirty.add(segment)
            flush = self._gathering
            while self._is_flushing and not flush.is_done:
                self._changed.wait()
            leads = not flush.is_done
            if leads:
                self._is_flushing = True
                self._gathering = _Flush()
                segments, self._dirty = self._dirty, set()
        if leads:
            self._run(flush, segments)
        for number, error in flush.errors.items():
            if segment in {number, None}:
                raise error

    def _run(self, flush: _Flush, segments: set[int]) -> None:
        flush.errors = {number: SubmitRecordError("the flush was interrupted") for number in segments}
        try:
            for number in sorted(segments):
                try:
                    self._save(number)
                except Exception as error:  # noqa: BLE001 - for the threads that wait for this segment
                    flush.errors[number] = error
                else:
                    del flush.errors[number]
        finally:
            with self._changed:
                self._dirty |= flush.errors.keys()
                self._is_flushing = False
                flush.is_done = True
                self._changed.notify_all()
