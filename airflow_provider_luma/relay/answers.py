"""From an HTTP answer to its rows, or to the error that its reader can act on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTransientError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay.task import LumaTask, TaskState, read_task

_KINDS: Mapping[int, type[RelayError]] = {
    401: RelayAuthenticationError,
    402: RelayInsufficientBalanceError,
    403: RelayPermissionError,
    408: RelayTransientError,
    425: RelayTransientError,
    429: RelayRateLimitError,
}

_NEXT_STEPS: Mapping[type[RelayError], str] = {
    RelayAuthenticationError: "check the API key in the password field of the connection",
    RelayPermissionError: "check the rights of the account behind the API key",
    RelayInsufficientBalanceError: "top up the account behind the API key",
    RelayInvalidRequestError: "this request will not pass as it is",
    RelayRateLimitError: "slow down",
    RelayTransientError: "try again later",
}

_SUCCESS_CODES = frozenset({"success", "ok", "0", "200", ""})
_NO_SUCH_TASK = "task_not_exist"
_NO_BALANCE = re.compile(r"insufficient.*quota|insufficient.*balance", re.IGNORECASE)
_UNCERTAIN_STEP = (
    "it may have created a task and charged for it, so it was not sent again; look into the relay's log of "
    "tasks before you submit the same once more"
)
_REQUEST_ID_IN_TEXT = re.compile(r"\(?request id: ?([\w.:-]+)\)?", re.IGNORECASE)
_WORDS_LIMIT = 300
# A longer "pause" is a mistake, such as a point in time where seconds belong.
_PAUSE_LIMIT = 24 * 3600


def read_rows(response: requests.Response) -> list[Any]:
    """
    Return the rows of an answer to a query; none when the relay knows none of the ids.

    :raises RelayError: of the kind that the status, the code or the form of the answer stands for.
    """
    body = _json(response)
    words, code = _words(body)
    if code == _NO_SUCH_TASK:
        return []
    if not response.ok or response.is_redirect:
        raise _refusal(response, words or _plain_words(response))
    if _is_html(response):
        raise _trouble(response, "with a web page instead of JSON; is this host a Luma relay?")
    if code not in _SUCCESS_CODES or _holds_error(body):
        raise _trouble(response, f"with the error {words or code!r}")
    return _rows(response, body)


def read_task_or_none(response: requests.Response) -> LumaTask | None:
    """
    Return the task of an answer to a query for one; ``None`` when the relay does not know it.

    :raises RelayError: as :func:`read_rows`.
    """
    if response.status_code == 404 and not _is_html(response):
        return None
    return next((task for row in read_rows(response) if (task := _read_any(row)) is not None), None)


def read_submitted(response: requests.Response) -> LumaTask:
    """
    Return the task that a submit created, in any of the shapes that relays answer with.

    :raises SubmitOutcomeUnknownError: when the answer does not say whether one was created.
    :raises RelayError: when it says that none was.
    """
    body = _json(response)
    words, code = _words(body)
    status = response.status_code
    if status >= 500 or status in {408, 425}:
        raise uncertain(f"{_subject(response)} answered {status} {words or _plain_words(response)}", response)
    if not response.ok or response.is_redirect:
        raise _refusal(response, words or _plain_words(response))
    if isinstance(body, Mapping) and (code not in _SUCCESS_CODES or _holds_error(body)):
        kind = (
            RelayInsufficientBalanceError
            if _NO_BALANCE.search(f"{code} {words}")
            else RelayInvalidRequestError
        )
        raise kind(f"{_subject(response)} refused: {words or code}; {_NEXT_STEPS[kind]}", status=status)
    task = _read_any(body)
    if task is None:
        what = "a web page (is this host a Luma relay?)" if _is_html(response) else "no task id"
        raise uncertain(f"{_subject(response)} gave {what}", response)
    return task


def uncertain(what: str, response: requests.Response | None = None) -> SubmitOutcomeUnknownError:
    """Say that a submit may have arrived, and what to do about it."""
    return SubmitOutcomeUnknownError(
        f"{what}; {_UNCERTAIN_STEP}",
        status=None if response is None else response.status_code,
        request_id=None if response is None else _request_id(response),
    )


def _read_any(body: Any) -> LumaTask | None:
    """Read a task that is bare, wrapped in ``data``, alone in a list, or nothing but its id."""
    if isinstance(body, list) and body:
        return _read_any(body[0])
    if not isinstance(body, Mapping):
        return None
    data = body.get("data")
    if isinstance(data, str) and data:
        return LumaTask(data, TaskState.PENDING, raw=body)
    return _read_any(data) if isinstance(data, list) else read_task(body)


def _rows(response: requests.Response, body: Any) -> list[Any]:
    if isinstance(body, Mapping) and "task_id" not in body and body.keys() & {"code", "data"}:
        body = body.get("data")
    if isinstance(body, Mapping) and body.keys() & {"id", "task_id"}:
        return [body]
    if body is None:  # how Go writes an empty list
        return []
    if not isinstance(body, list):
        raise _trouble(response, "with something that is not the JSON of a list of tasks")
    return body


def _refusal(response: requests.Response, words: str) -> RelayError:
    status = response.status_code
    kind = _KINDS.get(status, RelayTransientError if status >= 500 else RelayInvalidRequestError)
    if kind is RelayPermissionError and _NO_BALANCE.search(f"{_words(_json(response))[1]} {words}"):
        kind = RelayInsufficientBalanceError
    step = _NEXT_STEPS[kind]
    if response.is_redirect:
        target = response.headers.get("Location", "").partition("?")[0]
        step = (
            f"it redirects to {target}; put the address of the relay itself into the connection's host field"
        )
    elif _is_html(response) and status < 500:
        step = "is this host a Luma relay?"
    return kind(
        f"{_subject(response)} answered {status}{': ' if words else ''}{words}; {step}",
        status=status,
        request_id=_request_id(response),
        retry_after=_retry_after(response),
    )


def _trouble(response: requests.Response, what: str) -> RelayError:
    return RelayTransientError(
        f"{_subject(response)} answered {response.status_code} {what}",
        status=response.status_code,
        request_id=_request_id(response),
    )


def _subject(response: requests.Response) -> str:
    base_url = str(response.request.url).rpartition("/luma/")[0]
    return f"The relay at {base_url}"


def _json(response: requests.Response) -> Any:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return "" if response.ok else None


def _is_html(response: requests.Response) -> bool:
    kind = response.headers.get("Content-Type", "")
    return "html" in kind.lower() or response.content[:64].lstrip().startswith(b"<")


def _words(body: Any) -> tuple[str, str]:
    """Return the relay's own message and code from any of the error envelopes that relays use."""
    if not isinstance(body, Mapping):
        return "", ""
    error, detail = body.get("error"), body.get("detail")
    holders = [holder for holder in (error, body, detail) if isinstance(holder, Mapping)]
    texts = [holder.get(key) for holder in holders for key in ("message", "reason")] + [error, detail]
    words = next((text for text in texts if isinstance(text, str) and text), "")
    code = next((holder["code"] for holder in holders if holder.get("code") not in (None, "")), "")
    return words[:_WORDS_LIMIT], str(code)


def _holds_error(body: Any) -> bool:
    return isinstance(body, Mapping) and bool(body.get("error") or body.get("success") is False)


def _plain_words(response: requests.Response) -> str:
    return "a web page" if _is_html(response) else response.text.strip()[:_WORDS_LIMIT]


def _request_id(response: requests.Response) -> str | None:
    for name in ("X-Request-Id", "X-Oneapi-Request-Id"):
        if told := response.headers.get(name):
            return str(told)
    found = _REQUEST_ID_IN_TEXT.search(response.text[: 10 * _WORDS_LIMIT]) if not response.ok else None
    return found.group(1) if found else None


def _retry_after(response: requests.Response) -> float | None:
    """Read ``Retry-After`` in seconds or as a date; ``None`` when absent or not understood."""
    told = response.headers.get("Retry-After")
    if not told:
        return None
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds <= _PAUSE_LIMIT else None
