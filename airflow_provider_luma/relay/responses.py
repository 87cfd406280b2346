"""From a response to the tasks in it, or to the error that its reader can act on."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, cast

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    RelayPermissionError,
    RelayPromptRejectedError,
    RelayRateLimitError,
    RelayTaskNotFoundError,
    RelayTransientError,
)
from airflow_provider_luma.relay.decode import MAX_VALUES, count_values, decode_json
from airflow_provider_luma.relay.row import Json, is_empty_error
from airflow_provider_luma.relay.task import LumaTask, parse_tasks
from airflow_provider_luma.relay.text import USER_INFO, clean_text
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
    RelayInvalidRequestError: "Correct the field that the message names",
    RelayPromptRejectedError: "Correct the prompt, or the field that the message names",
    RelayRateLimitError: "Lower max_requests_per_minute or max_parallel",
    RelayTransientError: "Try again later",
}

SUCCESS_CODES = frozenset({"", "success", "succeeded", "ok", "true", "0", "200", "201", "202", "20000"})
_NO_ENDPOINT = frozenset({404, 405, 501})
_NO_ENDPOINT_OR_RIGHTS = _NO_ENDPOINT | {401, 403}
_NO_SUCH_TASK = "task_not_exist"
# Statuses of a submit that are about its fields, and not about the key or the endpoint.
_OF_PROMPT = frozenset({400, 413, 422})
# Of one prompt, and not of the key, whatever the status.
_MODERATION = re.compile(
    r"moderat|sensitive.?(word|content)|(blacklisted|banned|blocked|prohibited).?(word|term|phrase|content)|"
    r"prompt.?(blocked|violat)|(content|usage|safety).?(polic|filter|violat|guideline)|safety (system|check)|"
    r"nsfw|inappropriate|敏感|违规|違規|违禁|違禁|不当内容|不當內容|不合规|不合規|审核|審核",
    re.IGNORECASE,
)
# What a relay says of an account or a key in much the same words.
_BANNED = re.compile(
    r"\b(account|api.?key|token)\b.{0,60}\b(banned|suspended|disabled|deactivated|review)\b|"
    r"封禁|封号|封號|[账帐賬帳][号户號戶]|令牌|实名|實名",
    re.IGNORECASE,
)
_NO_BALANCE = re.compile(
    r"insufficient.*(quota|balance)|exceeded.*quota|(quota|balance)[ _](is[ _])?not[ _]enough|"
    r"not[ _]enough[ _](quota|balance)|pre_consume_token_quota|[额額]度不足|[余餘][额額]不足",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"rate.?limit|too many|concurren|\bper (second|minute|hour|day)\b|\br[ps]m\b", re.IGNORECASE
)
_MODEL = re.compile(r"\bluma_\w{1,60}")

_MESSAGE_KEYS = ("message", "reason", "msg", "error_message", "title")
_REQUEST_ID_IN_TEXT = re.compile(r"\(?request id: ?([\w.:-]+)\)?", re.IGNORECASE)
_EXCERPT_BYTES = 4096
# A longer Retry-After is a mistake, such as a point in time where seconds belong.
_MAX_RETRY_AFTER = 24 * 3600


def parse_rows(response: RelayResponse) -> list[Any]:
    """
    Return the rows of a response to a query; none when the relay knows none of the ids.

    :raises RelayTaskNotFoundError: when it does not know at least one of them, and says no more.
    :raises RelayError: of the kind that the status, the code or the form of the response stands for.
    """
    if count_values(response.body) > MAX_VALUES:
        raise _transient_error(response, f"with more than {MAX_VALUES} JSON values")
    body = parse_json(response)
    message, code = message_and_code(body)
    if code == _NO_SUCH_TASK:
        raise RelayTaskNotFoundError(
            f"{subject(response)} does not know all of these ids: {message}",
            status=response.status,
            request_id=request_id(response),
        )
    if response.status >= 300:
        raise status_error(response, body)
    if is_html(response):
        raise _transient_error(response, "with a web page instead of JSON. Is this host a Luma relay?")
    if _is_task(body):  # its error and its code are those of the task
        return [body]
    if code.lower() not in SUCCESS_CODES or _has_error(body):
        raise _transient_error(response, f"with the error {message or code!r}")
    return _rows(response, body)


def parse_task_or_none(response: RelayResponse) -> LumaTask | None:
    """
    Return the task of a response to a query for one; ``None`` when the relay does not know it.

    :raises RelayError: as :func:`parse_rows`.
    """
    if response.status == 404 and isinstance(parse_json(response), Mapping):
        return None
    try:
        return next(iter(parse_tasks(parse_rows(response)).values()), None)
    except RelayTaskNotFoundError:
        return None


def parse_models(response: RelayResponse) -> list[str] | None:
    """Return the names in a response to ``GET /v1/models``; ``None`` when it is none."""
    body = parse_json(response)
    rows = body.get("data") if response.status == 200 and isinstance(body, Mapping) else None
    if not isinstance(rows, list):
        return None
    return [clean_text(row.get("id")) for row in rows if isinstance(row, Mapping)]


def parse_optional(response: RelayResponse, *, is_page_absence: bool = False) -> Json | None:
    """
    Return the object of a response from an endpoint that a relay may not have.

    :param is_page_absence: whether a relay responds with a web page where it has no endpoint.
    :return: ``None`` when the relay says that it has not, or that it is not for this key.
    :raises RelayError: for anything else; with the status 404 when it is that of a gateway.
    """
    body = parse_json(response)
    is_object = isinstance(body, Mapping)
    if response.status >= 300:
        if response.status in (_NO_ENDPOINT_OR_RIGHTS if is_object else _NO_ENDPOINT - {404}):
            return None
        raise status_error(response, body)
    if is_html(response) and is_page_absence:
        return None
    if not is_object:
        raise _transient_error(response, "with something other than a JSON object")
    message, code = message_and_code(body)
    if code.lower() not in SUCCESS_CODES or _has_error(body):
        raise _transient_error(response, f"with the error {message or code!r}")
    return cast("Json", body)


def _is_task(body: Any) -> bool:
    """Return whether this is a task without a list; an envelope may have an id and a status of its own."""
    if not isinstance(body, Mapping) or (isinstance(body.get("data"), list) and body["data"]):
        return False
    named = {name for name in ("id", "task_id", "state", "status") if clean_text(body.get(name))}
    return named >= {"id", "state"} or ("task_id" in named and not named.isdisjoint({"state", "status"}))


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


def status_error(response: RelayResponse, body: Any, *, is_submit: bool = False) -> RelayError:
    message, code = message_and_code(body)
    message = message or ("a web page" if is_html(response) else text_excerpt(response))
    kind = _error_kind(response.status, code, message)
    if is_submit and kind in {RelayInvalidRequestError, RelayPermissionError}:
        blames_prompt = (
            response.status in _OF_PROMPT or code == _NO_SUCH_TASK or says_moderation(code, message)
        )
        kind = RelayPromptRejectedError if blames_prompt else kind
    if response.status == 404 and not isinstance(body, Mapping) and not is_submit:
        kind = RelayTransientError  # a gateway's, as between two deploys of the relay behind it
    hint = hint_for(kind, message)
    if 300 <= response.status < 400:
        target = USER_INFO.sub("", clean_text(re.split(r"[?#]", response.headers.get("Location", ""))[0]))
        hint = f"It redirects to {target or 'nowhere'}. Use the relay's own URL instead"
    elif response.status == 407:
        hint = "It is the proxy that responded. Check its credentials"
    elif is_html(response) and response.status < 500:
        hint = "Is this host a Luma relay?"
    return kind(
        f"{subject(response)} responded {response.status}{': ' if message else ''}{message}. {hint}",
        status=response.status,
        request_id=request_id(response),
        retry_after=_retry_after(response),
    )


def says_no_balance(code: str, message: str) -> bool:
    """Return whether an error is about the account's balance; a rate limit may speak of a quota, too."""
    return any(map(_NO_BALANCE.search, (code, message)))


def says_moderation(code: str, message: str) -> bool:
    """Return whether an error is about the content of a prompt, and not about an account banned for it."""
    texts = (code, message)
    return any(map(_MODERATION.search, texts)) and not any(map(_BANNED.search, texts))


def _error_kind(status: int, code: str, message: str) -> type[RelayError]:
    is_rate_limit = status == 429 and _RATE.search(f"{code} {message}")
    if status in {400, 403, 429} and says_no_balance(code, message) and not is_rate_limit:
        return RelayInsufficientBalanceError
    if status == 403 and says_moderation(code, message):
        return RelayInvalidRequestError
    return _ERROR_BY_STATUS.get(status, RelayTransientError if status >= 500 else RelayInvalidRequestError)


def hint_for(kind: type[RelayError], message: str) -> str:
    if issubclass(kind, RelayPermissionError | RelayTransientError) and (model := _MODEL.search(message)):
        return f"Allow the model {model[0]} for this API key in the relay's settings"
    return _HINTS[kind]


def _transient_error(response: RelayResponse, what: str) -> RelayError:
    return RelayTransientError(
        f"{subject(response)} responded {response.status} {what}",
        status=response.status,
        request_id=request_id(response),
    )


def subject(response: RelayResponse) -> str:
    return f"The relay at {response.base_url}"


def parse_json(response: RelayResponse) -> Any:
    try:
        return decode_json(response.body)
    except (ValueError, RecursionError):
        return _excerpt(response)


def is_html(response: RelayResponse) -> bool:
    """Return whether a response is a web page; JSON is none, although PHP labels it as one."""
    kind, start = response.headers.get("Content-Type", ""), response.body[:64].lstrip()
    return start.startswith(b"<") or ("html" in kind.lower() and not start.startswith((b"[", b"{")))


def message_and_code(body: Any) -> tuple[str, str]:
    """Return the relay's own message and code from any of the error envelopes that relays use."""
    if not isinstance(body, Mapping):
        return "", ""
    error, detail = body.get("error"), body.get("detail")
    holders = [holder for holder in (error, body, detail) if isinstance(holder, Mapping)]
    errors = body.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else errors
    texts = [holder.get(key) for holder in holders for key in _MESSAGE_KEYS]
    texts += [error, detail, first, first.get("message") if isinstance(first, Mapping) else None]
    message = next(filter(None, map(clean_text, texts)), "")
    code = next((holder["code"] for holder in holders if holder.get("code") not in (None, "")), "")
    return message, clean_text(str(code), 100) if isinstance(code, str | int | float) else ""


def _has_error(body: Any) -> bool:
    is_object = isinstance(body, Mapping)
    return is_object and (not is_empty_error(body.get("error")) or body.get("success") is False)


def text_excerpt(response: RelayResponse) -> str:
    return clean_text(_excerpt(response))


def _excerpt(response: RelayResponse) -> str:
    excerpt = response.body[:_EXCERPT_BYTES].decode(errors="replace")
    return "" if "\0" in excerpt else excerpt  # binary, or an encoding in which no key is redacted


def request_id(response: RelayResponse) -> str | None:
    for name in ("X-Request-Id", "X-Oneapi-Request-Id"):
        if header := clean_text(response.headers.get(name), 100):
            return header
    found = _REQUEST_ID_IN_TEXT.search(text_excerpt(response)) if response.status >= 400 else None
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
