"""
Finds the task that a response to a submit names, in whatever form.

It may be bare, wrapped, in a list, named by its URL, or nothing but its id. What is called a task's id wins
over a plain ``id``; beside an error a plain ``id`` is the request's, or a row's of some other table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard
from urllib.parse import unquote

from airflow_provider_luma.relay.responses import SUCCESS_CODES
from airflow_provider_luma.relay.row import Json
from airflow_provider_luma.relay.states import TaskState, is_documented, parse_state
from airflow_provider_luma.relay.task import LumaTask, parse_task
from airflow_provider_luma.relay.transport import RelayResponse

_TASK_ID_KEYS, _PLAIN_ID_KEY = ("taskid", "generationid"), "id"
# What may hold a task, and what holds the outcome of one where there is one already.
_OUTCOME_KEYS = ("result", "results", "output", "response")
_HOLDER_KEYS = ("data", "task", "tasks", "generation", "generations", *_OUTCOME_KEYS)
MAX_DEPTH = 5
_ID = re.compile(r"[!-~]{1,200}")
# A word that says that there is none, an error in words, or the id of a request.
_NO_ID = re.compile(
    r"null|none|undefined|nil|false|n/?a|unknown|empty|-\d*|[0-]+|(req|request)[_-].*|"
    r"\D{0,200}(error|fail|invalid|denied|unavailable|not[ _-]?(exist|found))\D{0,200}",
    re.IGNORECASE,
)
# A text by itself is an id, and no message or date, when it has a digit and only what ids are made of.
_LONE_ID = re.compile(r"(?!\d{4}-\d\d-\d\d)(?=.*\d)[\w.-]{6,200}", re.ASCII)
# Behind a state, "queued-2", it is a place in a queue.
_SHORT_NUMBER = re.compile(r"[\W_]?\d{1,4}$")
_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_TASK_LOCATION = re.compile(
    r"(?:https?://[^/?#\s]+)?(?:/[\w.-]+)*/luma/generations/((?=[\w.-]*\d)[\w.-]{6,200})/?", re.ASCII
)


def find_task(
    response: RelayResponse, body: Any, code: str, extended_id: str | None, *, is_error: bool
) -> LumaTask | None:
    """Find the task that a response names: bare, wrapped, in a list, by its URL, or nothing but its id."""
    holders = list(iter_holders(body))
    for task_id, holder in _named_ids(holders, extended_id, is_error=is_error):
        if _ID.fullmatch(task_id) and may_be_task_id(task_id, extended_id):
            known = parse_task(holder)
            return LumaTask(task_id, known.state if known else TaskState.PENDING, raw=holder)
    lone = None if is_error else _lone_id(response, body, code)
    return LumaTask(lone, TaskState.PENDING) if lone and may_be_task_id(lone, extended_id) else None


def may_be_task_id(text: str, extended_id: str | None) -> bool:
    """Return whether a text that stands where an id belongs may be the id of the task that was created."""
    return not (_NO_ID.fullmatch(text) or is_documented(text) or _is_same_id(text, extended_id))


def _is_same_id(text: str, extended_id: str | None) -> bool:
    return extended_id is not None and _normalize(text) == _normalize(extended_id)


def _normalize(task_id: str) -> str:
    """Return an id as it is whoever spells it: some relays write UUIDs in a way of their own."""
    return task_id.strip().replace("-", "").casefold()


def looks_like_an_id(text: Any) -> TypeGuard[str]:
    """Return whether a text that stands by itself is an id, and neither a message nor a date."""
    if not isinstance(text, str) or not _LONE_ID.fullmatch(text.strip()):
        return False
    return not is_documented(_SHORT_NUMBER.sub("", text.strip()))


def _named_ids(holders: list[Json], extended_id: str | None, *, is_error: bool) -> Iterator[tuple[str, Json]]:
    """Yield what may be the task's id, the likeliest first."""
    names_extended = False
    for kind in (str,) if is_error else (str, int):
        for key in (*_TASK_ID_KEYS, _PLAIN_ID_KEY):
            # An integer is a row of the relay's database where there is a text, too.
            if kind is int and key == _PLAIN_ID_KEY and names_extended:
                continue
            # A wrapped row's own plain id is its database's; its task id wins over that of its provider.
            for holder in reversed(holders) if key == _PLAIN_ID_KEY else holders:
                if is_error and key == _PLAIN_ID_KEY and not has_known_state(holder):
                    continue
                value = _fold_keys(holder).get(key)
                if isinstance(value, kind) and not isinstance(value, bool):
                    text = str(value).strip()
                    names_extended |= _is_same_id(text, extended_id)
                    yield text, holder


def has_known_state(holder: Json) -> bool:
    """Return whether an object has the state of a task; an error, too, may say "failed" of a request."""
    return parse_task(_lower_keys(holder)) is not None and has_good_state(holder)


def _is_unfinished_task(holder: Json) -> bool:
    task = parse_task(holder)
    return task is not None and task.is_known_state and not task.is_terminal


def has_good_state(holder: Json) -> bool:
    state, raw_state = parse_state(_lower_keys(holder))
    return is_documented(raw_state) and state is not TaskState.FAILED


def _lower_keys(holder: Json) -> Json:
    """Return the fields of a relay that writes ``Id`` and ``Status``, by their usual names."""
    return {**{key.lower(): value for key, value in holder.items()}, **holder}


def _fold_keys(holder: Json) -> dict[str, Any]:
    """Return ``taskId`` and ``task_id`` under one key. MongoDB's ``_id`` is another one than ``id``."""
    given = [(key, value) for key, value in holder.items() if value is not None and key[:1] != "_"]
    return {re.sub(r"[_-]", "", key).lower(): value for key, value in reversed(given)}


def iter_holders(body: Any, depth: int = 0) -> Iterator[Json]:
    """Yield the objects that may name a task, the outer ones first."""
    if isinstance(body, list):
        body = body[0] if body else None
    if not isinstance(body, Mapping) or depth > MAX_DEPTH:
        return
    yield body
    skipped = _OUTCOME_KEYS if _is_unfinished_task(body) else ()
    for key, value in body.items():
        if key.lower() in _HOLDER_KEYS and key.lower() not in skipped:
            yield from iter_holders(value, depth + 1)


def iter_held_texts(body: Any) -> Iterator[str]:
    """Yield the texts that stand where a task might."""
    for holder in iter_holders(body):
        texts = (holder.get(key) for key in _HOLDER_KEYS)
        yield from (text.strip() for text in texts if isinstance(text, str))


def is_task_location(response: RelayResponse) -> bool:
    return _TASK_LOCATION.fullmatch(response.headers.get("Location", "")) is not None


def _lone_id(response: RelayResponse, body: Any, code: str) -> str | None:
    """Return an id that stands by itself, in a success or in a redirect to the task."""
    if response.status >= 400:
        return None
    if named := _TASK_LOCATION.fullmatch(response.headers.get("Location", "")):
        return unquote(named[1])
    if isinstance(body, str):
        return body.strip() if _UUID.fullmatch(body.strip()) else None
    texts = iter_held_texts(body) if code.lower() in SUCCESS_CODES else ()
    return next((text for text in texts if looks_like_an_id(text) and not _NO_ID.fullmatch(text)), None)
