"""From a response to the tasks in it, or to the error that its reader can act on."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote

from airflow_provider_luma.exceptions import (
    UNKNOWN_OUTCOME_HINT,
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTransientError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay.decode import MAX_VALUES, count_values, decode_json
from airflow_provider_luma.relay.task import LumaTask, TaskState, read_task
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.relay.transport import RelayResponse

_ERROR_BY_STATUS: Mapping[int, type[RelayError]] = {
    401: RelayAuthenticationError,
    402: RelayInsufficientBalanceError,
    403: RelayPermissionError,
    408: RelayTransientError,
    425: RelayTransientError,
    429: RelayRateLimitError,
}

_HINTS: Mapping[type[RelayError], str] = {
    RelayAuthenticationError: "Check the API key",
    RelayPermissionError: "Check the permissions of the API key and of its account",
    RelayInsufficientBalanceError: "Top up the account behind the API key",
    RelayInvalidRequestError: "The relay does not take this request as it is",
    RelayRateLimitError: "Slow down",
    RelayTransientError: "Try again later",
}

# Statuses by which a relay, or a gateway before it, says that it did not take a request. What is in neither
# this set nor below 400 proves nothing: nginx's 499, for one, says that the connection was lost.
_REJECTED_STATUSES = frozenset(
    {400, 401, 402, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 421, 422, 429, 431, 451}
)
_SUCCESS_CODES = frozenset({"", "success", "succeeded", "ok", "true", "0", "200", "201", "202", "20000"})
# Codes by which relays say in a 200 that they did not take a submit.
_REJECTED_CODE = re.compile(
    r"4\d\d|.*(invalid|insufficient|denied|forbidden|unauthorized|not_found|not_exist|not_allowed|unsupported|"
    r"not_supported|required|missing|sensitive|moderat|prohibit|banned|blocked|bad_|quota|balance|param).*",
    re.IGNORECASE,
)
# Codes that a relay's own code gives after it passed the submit on, whatever the status.
_PASSED_ON_CODE = re.compile(
    r"do_request|read_response|unmarshal|copy_response|timeout|insert_", re.IGNORECASE
)
_NO_SUCH_TASK = "task_not_exist"
_NO_BALANCE = re.compile(r"insufficient.*quota|insufficient.*balance", re.IGNORECASE)
_MODEL = re.compile(r"\bluma_\w{1,60}")

_ID_KEYS = ("taskid", "generationid", "id")
_ID_HOLDERS = (
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
_MAX_ID_DEPTH = 5
_ID = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
# A text by itself is an id, and no message, when it has a digit and nothing but what ids are made of.
_LONE_ID = re.compile(r"(?=.*\d)[\w.-]{6,200}", re.ASCII)
_TASK_LOCATION = re.compile(r".*/luma/generations/([^/?#\s]{1,200})/?", re.ASCII)

_REQUEST_ID_IN_TEXT = re.compile(r"\(?request id: ?([\w.:-]+)\)?", re.IGNORECASE)
_EXCERPT_BYTES = 4096
_USER_INFO = re.compile(r"(?<=//)[^/]*@")
# A longer Retry-After is a mistake, such as a point in time where seconds belong.
_MAX_RETRY_AFTER = 24 * 3600


def parse_rows(response: RelayResponse) -> list[Any]:
    """
    Return the rows of a response to a query; none when the relay knows none of the ids.

    :raises RelayError: of the kind that the status, the code or the form of the response stands for.
    """
    if count_values(response.body) > MAX_VALUES:
        raise _transient_error(response, f"with more than {MAX_VALUES} JSON values")
    body = _parse_json(response)
    message, code = _message_and_code(body)
    if code == _NO_SUCH_TASK:
        return []
    if response.status >= 300:
        raise _status_error(response, body)
    if _is_html(response):
        raise _transient_error(response, "with a web page instead of JSON. Is this host a Luma relay?")
    if code.lower() not in _SUCCESS_CODES or _has_error(body):
        raise _transient_error(response, f"with the error {message or code!r}")
    return _rows(response, body)


def parse_task_or_none(response: RelayResponse) -> LumaTask | None:
    """
    Return the task of a response to a query for one; ``None`` when the relay does not know it.

    :raises RelayError: as :func:`parse_rows`.
    """
    if response.status == 404 and isinstance(_parse_json(response), Mapping):
        return None
    return next((task for row in parse_rows(response) if (task := _parse_named_task(row)) is not None), None)


def parse_models(response: RelayResponse) -> list[str] | None:
    """Return the names in a response to ``GET /v1/models``; ``None`` when it is none."""
    body = _parse_json(response)
    rows = body.get("data") if response.status == 200 and isinstance(body, Mapping) else None
    if not isinstance(rows, list):
        return None
    return [clean_text(row.get("id")) for row in rows if isinstance(row, Mapping)]


def parse_submitted(response: RelayResponse) -> LumaTask:
    """
    Return the task that a submit created. A response that names an id created a task, whatever surrounds it.

    :raises SubmitOutcomeUnknownError: when the response does not say whether one was created.
    :raises RelayError: when it says that none was.
    """
    body = _parse_json(response)
    task = _parse_named_task(body) or _task_in_location(response)
    if task is not None and not _is_rejected_request_id(response, body, task):
        return task
    message, code = _message_and_code(body)
    if response.status in _REJECTED_STATUSES and not _PASSED_ON_CODE.search(code):
        raise _status_error(response, body, is_submit=True)
    if response.status < 300 and _REJECTED_CODE.fullmatch(code):
        kind = (
            RelayInsufficientBalanceError
            if _NO_BALANCE.search(f"{code} {message}")
            else RelayInvalidRequestError
        )
        raise kind(
            f"{_subject(response)} rejected the request: {message or code}. {_hint(kind, message)}",
            status=response.status,
            request_id=_request_id(response),
        )
    raise outcome_unknown(
        f"{_subject(response)} responded {response.status} {_describe(response, message)}", response
    )


def outcome_unknown(what: str, response: RelayResponse | None = None) -> SubmitOutcomeUnknownError:
    """Build the error of a submit that may have created a task, with what to do about it."""
    return SubmitOutcomeUnknownError(
        f"{what}. {UNKNOWN_OUTCOME_HINT}",
        status=None if response is None else response.status,
        request_id=None if response is None else _request_id(response),
    )


def _describe(response: RelayResponse, message: str) -> str:
    if _is_html(response):
        return "with a web page (is this host a Luma relay?)"
    return f"without a task id: {message or _text_excerpt(response) or 'an empty body'}"


def _is_rejected_request_id(response: RelayResponse, body: Any, task: LumaTask) -> bool:
    """Tell the id of a rejected request from a task's: it stands alone beside an error object."""
    return (
        response.status in _REJECTED_STATUSES
        and isinstance(body, Mapping)
        and isinstance(body.get("error"), Mapping)
        and body.get("id") == task.id
        and not body.keys() & {"task_id", "state", "status", "created_at"}
    )


def _parse_named_task(body: Any) -> LumaTask | None:
    """Find the task that a body names: bare, wrapped, in a list, or nothing but its id."""
    holders = list(_id_holders(body))
    named = (
        (value, holder)
        for kind in (str, int)  # an integer is a row of the relay's database where there is a text, too
        for key in _ID_KEYS
        for holder in reversed(holders)  # a wrapped row's own id is its database's, too
        if isinstance(value := _fold_keys(holder).get(key), kind) and not isinstance(value, bool)
    )
    for value, holder in named:
        if _ID.fullmatch(task_id := str(value).strip()):
            known = read_task(holder)
            return LumaTask(task_id, known.state if known else TaskState.PENDING, raw=holder)
    return next((LumaTask(lone, TaskState.PENDING) for lone in _lone_ids(body, holders)), None)


def _task_in_location(response: RelayResponse) -> LumaTask | None:
    if response.status >= 400:
        return None
    named = _TASK_LOCATION.fullmatch(response.headers.get("Location", ""))
    return LumaTask(unquote(named[1]), TaskState.PENDING) if named else None


def _fold_keys(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``taskId`` and ``task_id`` under one key."""
    return {re.sub(r"[_-]", "", str(key)).lower(): value for key, value in holder.items()}


def _id_holders(body: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that may name a task, the outer ones first."""
    if isinstance(body, list):
        body = body[0] if body else None
    if not isinstance(body, Mapping) or depth > _MAX_ID_DEPTH:
        return
    yield body
    for key, value in body.items():
        if str(key).lower() in _ID_HOLDERS:
            yield from _id_holders(value, depth + 1)


def _lone_ids(body: Any, holders: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield texts that are nothing but an id, where one may stand."""
    texts = [body] + [holder.get(key) for holder in holders for key in _ID_HOLDERS]
    for text in texts:
        if isinstance(text, str) and _LONE_ID.fullmatch(text.strip()):
            yield text.strip()


def _rows(response: RelayResponse, body: Any) -> list[Any]:
    if isinstance(body, Mapping) and "task_id" not in body and body.keys() & {"code", "data"}:
        body = body.get("data")
    if isinstance(body, Mapping) and body.keys() & {"id", "task_id"}:
        return [body]
    if body is None:  # how Go writes an empty list
        return []
    if not isinstance(body, list):
        raise _transient_error(response, "with something other than the JSON of a list of tasks")
    return body


def _status_error(response: RelayResponse, body: Any, *, is_submit: bool = False) -> RelayError:
    message, code = _message_and_code(body)
    message = message or ("a web page" if _is_html(response) else _text_excerpt(response))
    kind = _error_kind(response.status, f"{code} {message}")
    if response.status == 404 and not isinstance(body, Mapping) and not is_submit:
        kind = RelayTransientError  # a gateway's, as between two deploys of the relay behind it
    hint = _hint(kind, message)
    if 300 <= response.status < 400:
        target = _USER_INFO.sub("", clean_text(re.split(r"[?#]", response.headers.get("Location", ""))[0]))
        hint = f"It redirects to {target or 'nowhere'}. Use the relay's own URL instead"
    elif _is_html(response) and response.status < 500:
        hint = "Is this host a Luma relay?"
    return kind(
        f"{_subject(response)} responded {response.status}{': ' if message else ''}{message}. {hint}",
        status=response.status,
        request_id=_request_id(response),
        retry_after=_retry_after(response),
    )


def _error_kind(status: int, text: str) -> type[RelayError]:
    if status == 403 and _NO_BALANCE.search(text):
        return RelayInsufficientBalanceError
    return _ERROR_BY_STATUS.get(status, RelayTransientError if status >= 500 else RelayInvalidRequestError)


def _hint(kind: type[RelayError], message: str) -> str:
    if issubclass(kind, RelayPermissionError | RelayTransientError) and (model := _MODEL.search(message)):
        return f"Allow the model {model[0]} for this API key in the relay's settings"
    return _HINTS[kind]


def _transient_error(response: RelayResponse, what: str) -> RelayError:
    return RelayTransientError(
        f"{_subject(response)} responded {response.status} {what}",
        status=response.status,
        request_id=_request_id(response),
    )


def _subject(response: RelayResponse) -> str:
    return f"The relay at {response.base_url}"


def _parse_json(response: RelayResponse) -> Any:
    try:
        return decode_json(response.body)
    except (ValueError, RecursionError):
        return response.body[:_EXCERPT_BYTES].decode(errors="replace")


def _is_html(response: RelayResponse) -> bool:
    kind = response.headers.get("Content-Type", "")
    return "html" in kind.lower() or response.body[:64].lstrip().startswith(b"<")


def _message_and_code(body: Any) -> tuple[str, str]:
    """Return the relay's own message and code from any of the error envelopes that relays use."""
    if not isinstance(body, Mapping):
        return "", ""
    error, detail = body.get("error"), body.get("detail")
    holders = [holder for holder in (error, body, detail) if isinstance(holder, Mapping)]
    texts = [holder.get(key) for holder in holders for key in ("message", "reason")] + [error, detail]
    message = next(filter(None, map(clean_text, texts)), "")
    code = next((holder["code"] for holder in holders if holder.get("code") not in (None, "")), "")
    return message, clean_text(str(code), 100) if isinstance(code, str | int | float) else ""


def _has_error(body: Any) -> bool:
    return isinstance(body, Mapping) and bool(body.get("error") or body.get("success") is False)


def _text_excerpt(response: RelayResponse) -> str:
    return clean_text(response.body[:_EXCERPT_BYTES].decode(errors="replace"))


def _request_id(response: RelayResponse) -> str | None:
    for name in ("X-Request-Id", "X-Oneapi-Request-Id"):
        if header := clean_text(response.headers.get(name), 100):
            return header
    found = _REQUEST_ID_IN_TEXT.search(_text_excerpt(response)) if response.status >= 400 else None
    return found.group(1) if found else None


def _retry_after(response: RelayResponse) -> float | None:
    """Parse ``Retry-After``, seconds or a date; ``None`` when it is absent or not understood."""
    header = response.headers.get("Retry-After")
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds <= _MAX_RETRY_AFTER and not math.isnan(seconds) else None
