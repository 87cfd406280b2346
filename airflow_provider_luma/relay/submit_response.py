"""
From the response to a submit to the task that it created, or to the proof that it created none.

========================================================  ==========================================
response                                                  outcome
========================================================  ==========================================
names a task id, whatever its status, code or form        created
a status or code by which relays reject, and no task id   not created: the error of the rejection
everything else                                           unknown
========================================================  ==========================================

Beside an error a plain ``id`` is the request's, or a row's of some other table, so that only what is called
a task's id names a task there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from airflow_provider_luma.exceptions import (
    UNKNOWN_OUTCOME_HINT,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay.responses import (
    NO_BALANCE,
    SUCCESS_CODES,
    hint_for,
    is_html,
    message_and_code,
    parse_json,
    request_id,
    status_error,
    subject,
    text_excerpt,
)
from airflow_provider_luma.relay.states import TaskState, is_documented, parse_state
from airflow_provider_luma.relay.task import LumaTask, parse_task
from airflow_provider_luma.relay.transport import RelayResponse

# Statuses by which a relay, or a gateway before it, says that it did not take a request. Any other above 400
# proves nothing: nginx's 499, for one, says that the connection was lost.
_REJECTED_STATUSES = frozenset(
    {400, 401, 402, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 421, 422, 429, 431, 451}
)
# Codes by which relays say, also in a 200, that they did not pass a submit on. Each as a whole: a relay that
# says "post_consume_quota_failed" has passed it on.
_REJECTED_CODES = frozenset(
    {
        *("400", "401", "402", "403", "404", "422"),
        *("insufficient_user_quota", "insufficient_quota", "insufficient_balance", "quota_exceeded"),
        *("invalid_request", "invalid_request_error", "invalid_api_platform", "invalid_api_key"),
        *("invalid_parameter", "invalid_parameters", "invalid_params", "missing_parameter"),
        *("access_denied", "permission_denied", "unauthorized", "forbidden"),
        *("model_not_found", "model_not_allowed", "task_not_exist"),
        *("sensitive_words_detected", "content_moderation", "moderation_blocked", "prompt_blocked"),
    }
)
# Codes that a relay's own code gives after it passed the submit on, whatever the status.
_PASSED_ON_CODE = re.compile(
    r"do_request|response|unmarshal|upstream|timeout|consume|channel|insert_|save_|record_|update_|database|"
    r"billing|settle|internal",
    re.IGNORECASE,
)
_PASSED_ON_MESSAGE = re.compile(
    r"do request failed|deadline exceeded|timed? ?out|connection (reset|closed)|\beof\b|broken pipe|超时",
    re.IGNORECASE,
)
# A task's id anywhere in the bytes of a body, also where they are no valid JSON, or JSON inside of a text.
# All that repeats is bounded, as time would else grow with the square of a body.
_TASK_ID_IN_BYTES = re.compile(
    rb'(?:task|generation|job)[_-]?ids?\\{0,9}" ?: ?[\[{]? ?\\{0,9}"?([^\s",\]}\\]{1,200})', re.IGNORECASE
)

_TASK_ID_KEYS, _PLAIN_ID_KEY = ("taskid", "generationid"), "id"
_HOLDER_KEYS = (
    "data",
    "task",
    "tasks",
    "result",
    "results",
    "generation",
    "generations",
    "output",
    "response",
)
_MAX_DEPTH = 5
_ID = re.compile(r"[!-~]{1,200}")
_NO_ID = re.compile(r"null|none|undefined|nil|false|-\d*|[0-]+", re.IGNORECASE)
# A text by itself is an id, and no message or date, when it has a digit and only what ids are made of.
_LONE_ID = re.compile(r"(?!\d{4}-\d\d-\d\d)(?=.*\d)[\w.-]{6,200}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_TASK_LOCATION = re.compile(
    r"(?:https?://[^/?#\s]+)?(?:/[\w.-]+)*/luma/generations/((?=[\w.-]*\d)[\w.-]{6,200})/?", re.ASCII
)

_UUID_IN_BYTES = re.compile(rb"(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Some relays number requests by UUIDs, and say so.
_REQUEST_ID_IN_BYTES = re.compile(
    rb'(?i)(?:request|req|trace|correlation)[_ -]?id\\{0,9}"? ?:? ?\\{0,9}"?[\w-]{1,200}'
)


def parse_submitted(response: RelayResponse, *, extended_id: str | None = None) -> LumaTask:
    """
    Return the task that a submit created.

    :param extended_id: the task that was to be extended, which a rejection may name.
    :raises SubmitOutcomeUnknownError: when the response does not say whether one was created.
    :raises RelayError: when it says that none was.
    """
    body = parse_json(response)
    message, code = message_and_code(body)
    is_rejection = _is_rejection(response, body, message)
    # Beside an error a plain "id" is the request's, or a row's of some other table.
    is_error = is_rejection or (response.status >= 400 and bool(message)) or _has_error_object(body)
    task = _find_task(response, body, code, extended_id, is_error=is_error)
    if task is not None:
        return task
    if not is_rejection or _hints_at_a_task(response, body, message, extended_id):
        raise outcome_unknown(
            f"{subject(response)} responded {response.status} {_describe(response, message)}", response
        )
    if response.status >= 300:
        raise status_error(response, body, is_submit=True)
    no_balance = NO_BALANCE.search(f"{code} {message}")
    kind = RelayInsufficientBalanceError if no_balance else RelayInvalidRequestError
    raise kind(
        f"{subject(response)} rejected the request: {message or code}. {hint_for(kind, message)}",
        status=response.status,
        request_id=request_id(response),
    )


def outcome_unknown(what: str, response: RelayResponse | None = None) -> SubmitOutcomeUnknownError:
    """Build the error of a submit that may have created a task, with what to do about it."""
    return SubmitOutcomeUnknownError(
        f"{what}. {UNKNOWN_OUTCOME_HINT}",
        status=None if response is None else response.status,
        request_id=None if response is None else request_id(response),
    )


def _is_rejection(response: RelayResponse, body: Any, message: str) -> bool:
    if response.status == 429:
        return True
    if any(map(_PASSED_ON_CODE.search, _codes_and_types(_objects(body)))):
        return False
    if any(map(_PASSED_ON_MESSAGE.search, (message, response.body.decode(errors="replace")))):
        return False
    if response.status in _REJECTED_STATUSES:
        return True
    outer = (body, *(body.get(key) for key in ("error", "detail"))) if isinstance(body, Mapping) else ()
    codes = _codes_and_types(holder for holder in outer if isinstance(holder, Mapping))
    return response.status < 300 and any(code.lower() in _REJECTED_CODES for code in codes)


def _codes_and_types(holders: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for holder in holders:
        yield from (str(holder[key]) for key in ("code", "type") if holder.get(key) not in (None, ""))


def _hints_at_a_task(response: RelayResponse, body: Any, message: str, extended_id: str | None) -> bool:
    """Say whether a rejection names something that may be a task of this submit, in a form of its own."""
    content = response.body + b" " + response.headers.get("Location", "").encode(errors="replace")
    content = _REQUEST_ID_IN_BYTES.sub(b"", re.sub(rb"\s+", b" ", content))
    ids = [found[1] for found in _TASK_ID_IN_BYTES.finditer(content)] + _UUID_IN_BYTES.findall(content)
    named = {task_id.decode(errors="replace") for task_id in ids} - {extended_id}
    if any(not _NO_ID.fullmatch(task_id) for task_id in named):
        return True
    if _TASK_LOCATION.fullmatch(response.headers.get("Location", "")):
        return True
    if isinstance(body, Mapping) and body.get("id") and not message:
        return True
    return any(
        _is_like_a_task(item, extended_id) or (not message and _has_good_state(item))
        for item in _objects(body)
    )


def _is_like_a_task(item: Mapping[str, Any], extended_id: str | None) -> bool:
    has_id = isinstance(item.get("id"), str) and item["id"] not in {"", extended_id}
    return has_id and ("created_at" in item or _has_known_state(item))


def _objects(body: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield every object of a body."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(body, Mapping):
        yield body
    values = body.values() if isinstance(body, Mapping) else body if isinstance(body, list) else ()
    for value in values:
        yield from _objects(value, depth + 1)


def _describe(response: RelayResponse, message: str) -> str:
    if is_html(response):
        return "with a web page (is this host a Luma relay?)"
    excerpt = text_excerpt(response)
    shown = f"{message}, in {excerpt}" if message and message != excerpt else excerpt
    return f"without a task id: {shown or 'an empty body'}"


def _find_task(
    response: RelayResponse, body: Any, code: str, extended_id: str | None, *, is_error: bool
) -> LumaTask | None:
    """Find the task that a response names: bare, wrapped, in a list, by its URL, or nothing but its id."""
    holders = list(_holders(body))
    for task_id, holder in _named_ids(holders, is_error=is_error):
        if task_id != extended_id and _ID.fullmatch(task_id) and not _NO_ID.fullmatch(task_id):
            known = parse_task(holder)
            return LumaTask(task_id, known.state if known else TaskState.PENDING, raw=holder)
    lone = None if is_error else _lone_id(response, body, holders, code)
    return LumaTask(lone, TaskState.PENDING) if lone and lone != extended_id else None


def _named_ids(
    holders: list[Mapping[str, Any]], *, is_error: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what may be the task's id, the likeliest first."""
    # An integer is a row of the relay's database where there is a text, too.
    for kind in (str,) if is_error else (str, int):
        for key in (*_TASK_ID_KEYS, _PLAIN_ID_KEY):
            for holder in reversed(holders):  # a wrapped row's own id is its database's
                if is_error and key == _PLAIN_ID_KEY and not _has_known_state(holder):
                    continue
                value = _fold_keys(holder).get(key)
                if isinstance(value, kind) and not isinstance(value, bool):
                    yield str(value).strip(), holder


def _has_known_state(holder: Mapping[str, Any]) -> bool:
    """Say whether an object has the state of a task; an error, too, may say "failed" of a request."""
    return parse_task(holder) is not None and _has_good_state(holder)


def _has_good_state(holder: Mapping[str, Any]) -> bool:
    state, raw_state = parse_state(holder)
    return is_documented(raw_state) and state is not TaskState.FAILED


def _has_error_object(body: Any) -> bool:
    return isinstance(body, Mapping) and (
        isinstance(body.get("error"), Mapping) or body.get("success") is False
    )


def _fold_keys(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``taskId`` and ``task_id`` under one key."""
    return {re.sub(r"[_-]", "", str(key)).lower(): value for key, value in holder.items()}


def _holders(body: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that may name a task, the outer ones first."""
    if isinstance(body, list):
        body = body[0] if body else None
    if not isinstance(body, Mapping) or depth > _MAX_DEPTH:
        return
    yield body
    for key, value in body.items():
        if str(key).lower() in _HOLDER_KEYS:
            yield from _holders(value, depth + 1)


def _lone_id(response: RelayResponse, body: Any, holders: list[Mapping[str, Any]], code: str) -> str | None:
    """Return an id that stands by itself, in a success or in a redirect to the task."""
    if response.status >= 400:
        return None
    if named := _TASK_LOCATION.fullmatch(response.headers.get("Location", "")):
        return unquote(named[1])
    if isinstance(body, str):
        return body.strip() if _UUID.fullmatch(body.strip()) else None
    texts = [holder.get(key) for holder in holders for key in _HOLDER_KEYS if code.lower() in SUCCESS_CODES]
    lone = (text.strip() for text in texts if isinstance(text, str))
    return next((text for text in lone if _LONE_ID.fullmatch(text) and not _NO_ID.fullmatch(text)), None)
