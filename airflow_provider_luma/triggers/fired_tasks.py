"""
Which tasks of an event trigger have fired, kept in the state store of its asset (Airflow 3.3 and newer).

Each id is in one of four phases; the crash windows are those in which a triggerer may die::

    phase      what the store has of it    a restart
    unfired    nothing                     fires it when it ends
    unsaved    nothing                     fires it again: Airflow may not have stored its event
    written    a hash of the id            fires it again only if another triggerer has erased the hash
    saved      a hash of the id            does not fire it

An event is yielded, Airflow has ``STORING_SECONDS`` to store it, and only then it is written. A write that
fails is repeated until it succeeds. A read that fails at the start is repeated, since to fire what has fired
costs more than to fire late; after ``READ_SECONDS`` events are worth more than their memory.

The record has one key for the asset, whatever ids the trigger watches: ids can be added to a list and taken
out of it, and the others stay remembered. Several triggers may share the record, each with ids of its own, so
each write is a read and what it has shown together with the trigger's own. The store cannot compare and set:

- *Triggers of one triggerer* write one after the other, under a lock.
- *Those of several triggerers* may read the same record and then erase each other's hashes. So an id is saved
  only when the record still shows it ``CONFIRM_SECONDS`` after the write; what it lacks by then is written
  again. Of those that write together the last one is saved, so all of them are after as many rounds. Only a
  triggerer that takes longer from its read to its write can erase what was saved. The next write of the
  trigger restores it; if there is none before a restart, it fires again.

What a trigger has fired itself stays, also beyond ``MAX_HASHES``: to fire again costs more than Airflow's
warning of a large record. Of all others stay so many of the newest that there are ``MAX_HASHES``, and
``MIN_OTHERS`` at the least, so that two triggers of very many ids do not erase for ever what the other one is
about to confirm.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

log = logging.getLogger(__name__)

KEY = "luma_fired"
VERSION = 1

# So long Airflow may take to store an event.
STORING_SECONDS = 2
READ_SECONDS = 600
# So long another triggerer may take from its read of the record to its write.
CONFIRM_SECONDS = 10
_MAX_BACKOFF = 60

_HASH_BYTES, _HASH_CHARS = 6, 8
# The record stays below 64 KB, from which on Airflow warns of it.
MAX_HASHES = 8_000
MIN_OTHERS = 1_000

_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


class FiredTasks:
    """
    Remembers which tasks have fired.

    :param store: of the asset; ``None`` where Airflow has none, so that a restart remembers nothing.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._fired: dict[str, None] = {}
        self._unsaved: dict[str, None] = {}
        self._confirms_at = 0.0

    @property
    def is_saved(self) -> bool:
        return not self._unsaved

    async def load_unfired(self, ids: Iterable[str]) -> list[str]:
        """Return the ids that have not fired yet."""
        kept = await self._read_patiently()
        hashes = {task_id: _hash_id(task_id) for task_id in ids}
        self._fired = {code: None for code in hashes.values() if code in kept}
        return [task_id for task_id, code in hashes.items() if code not in kept]

    async def add(self, ids: Iterable[str]) -> None:
        """Remember ids that have just fired."""
        if self._store is not None:
            self._unsaved |= dict.fromkeys(map(_hash_id, ids))
            self._confirms_at = 0
            await asyncio.sleep(STORING_SECONDS)
            await self.save()

    async def save(self) -> None:
        """Write what the record lacks, or confirm a write; to be called until :attr:`is_saved` is true."""
        if time.monotonic() < self._confirms_at:
            return
        try:
            async with _locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                record = await self._read()
                if self._unsaved.keys() <= record.keys():
                    self._fired, self._unsaved = self._fired | self._unsaved, {}
                else:
                    await self._write(record)
                    self._confirms_at = time.monotonic() + CONFIRM_SECONDS
        except Exception as error:  # noqa: BLE001 - of any kind, as nobody would start a watcher anew
            log.warning("What has fired is not remembered over a restart yet: %s", error)

    async def _write(self, record: Iterable[str]) -> None:
        own = self._fired | self._unsaved
        others = [code for code in record if code not in own]
        kept = others[-max(MAX_HASHES - len(own), MIN_OTHERS) :]
        await self._call("set", KEY, {"version": VERSION, "hashes": "".join([*kept, *own])})

    async def _read_patiently(self) -> dict[str, None]:
        give_up_at, delay = time.monotonic() + READ_SECONDS, 1.0
        while self._store is not None:
            try:
                return await self._read()
            except ValueError as error:  # of a trigger that does not watch exactly one asset
                log.warning("What has fired cannot be remembered over a restart: %s", error)
                self._store = None
            except Exception as error:  # noqa: BLE001 - such as of an API server that restarts
                if time.monotonic() >= give_up_at:
                    log.warning("Events that have fired may fire again: %s", error)
                    break
                log.warning("What has fired cannot be read; reading again in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _MAX_BACKOFF)
        return {}

    async def _read(self) -> dict[str, None]:
        record = await self._call("get", KEY)
        is_record = isinstance(record, Mapping) and record.get("version") == VERSION
        hashes = record.get("hashes") if is_record else ""
        text = hashes if isinstance(hashes, str) else ""
        return dict.fromkeys(text[n : n + _HASH_CHARS] for n in range(0, len(text), _HASH_CHARS))

    async def _call(self, method: str, *arguments: Any) -> Any:
        if (call := getattr(self._store, f"a{method}", None)) is not None:
            return await call(*arguments)
        return await asyncio.to_thread(getattr(self._store, method), *arguments)  # 3.3.0 and 3.3.1


def _hash_id(task_id: str) -> str:
    digest = hashlib.sha256(task_id.encode()).digest()
    return urlsafe_b64encode(digest[:_HASH_BYTES]).decode()
