"""
From the response to a submit to the task that it created, or to the proof that it created none.

========================================================  ==========================================
response                                                  outcome
========================================================  ==========================================
names a task id, whatever its status, code or form        created
a status or code by which relays reject, and no task id   not created: the error of the rejection
everything else                                           unknown
========================================================  ==========================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_luma.exceptions import (
    UNKNOWN_OUTCOME_HINT,
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    RelayPermissionError,
    RelayPromptRejectedError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay.decode import decode_json
from airflow_provider_luma.relay.responses import (
    hint_for,
    is_html,
    message_and_code,
    parse_json,
    request_id,
    says_moderation,
    says_no_balance,
    status_error,
    subject,
    text_excerpt,
)
from airflow_provider_luma.relay.submitted_task import (
    MAX_DEPTH,
    find_task,
    has_good_state,
    has_known_state,
    is_task_location,
    iter_held_texts,
    iter_holders,
    looks_like_an_id,
    may_be_task_id,
)
from airflow_provider_luma.relay.task import LumaTask
from airflow_provider_luma.relay.transport import RelayResponse

# Statuses by which a relay, or a gateway before it, says that it did not take a request. Any other above 400
# proves nothing: nginx's 499, for one, says that the connection was lost.
_REJECTED_STATUSES = frozenset(
    {400, 401, 402, 403, 404, 405, 406, 407, 410, 411, 413, 414, 415, 421, 422, 429, 431, 451}
)
# Codes by which relays say, also in a 200, that they did not pass a submit on. Each as a whole: a relay that
# says "post_consume_quota_failed" has passed it on.
_KINDS_BY_CODES: Mapping[type[RelayError], tuple[str, ...]] = {
    RelayInsufficientBalanceError: (
        *("402", "insufficient_user_quota", "insufficient_quota", "insufficient_balance", "quota_exceeded"),
        *("quota_not_enough", "pre_consume_token_quota_failed"),
    ),
    RelayAuthenticationError: ("401", "invalid_api_key", "unauthorized"),
    RelayPermissionError: ("403", "access_denied", "permission_denied", "forbidden", "model_not_allowed"),
    RelayInvalidRequestError: ("404", "invalid_api_platform", "model_not_found"),
    RelayPromptRejectedError: (
        *("400", "422", "invalid_request", "invalid_request_error", "task_not_exist"),
        *("invalid_parameter", "invalid_parameters", "invalid_params", "missing_parameter"),
        *("sensitive_words_detected", "content_moderation", "moderation_blocked", "prompt_blocked"),
    ),
}
_KIND_BY_CODE = {code: kind for kind, codes in _KINDS_BY_CODES.items() for code in codes}
# Codes that a relay's own code gives after it passed the submit on, whatever the status. A charge that fails
# beforehand, "pre_consume", is none of them.
_PASSED_ON_CODE = re.compile(
    r"do_request|response|unmarshal|upstream|timeout|(?<!pre_)consume|channel|insert_|save_|record_|update_|database|"
    r"billing|settle|internal",
    re.IGNORECASE,
)
# The same in words, most of them those of Go's HTTP client and JSON parser. A prompt may speak of "upstream".
_PASSED_ON_MESSAGE = re.compile(
    r"do request failed|deadline exceeded|timed? ?out|connection (reset|closed)|\beof\b|broken pipe|超时|"
    r"\b(context|request) cancel(l)?ed|client disconnect|\b(get|post) \\{0,9}[\"']?https?:|"
    r"looking for beginning of|unexpected end of json|"
    r"\bupstream\b.{0,40}\b([45]\d\d|status|errors?|fail\w{0,3}|response|returned|responded)\b|"
    r"\b(error|status|response) (from|of|by) (the )?upstream|上游.{0,20}(错误|失败|返回|异常|状态)",
    re.IGNORECASE,
)
# Of an error, by HTTP's numbers or in words; a code that says neither, nobody knows, is none.
_ERROR_CODE = re.compile(r"[45]\d\d|.*(fail|error|exception|denied|invalid|unavailable).*", re.IGNORECASE)
# A task's id anywhere in the bytes of a body, also where they are not valid JSON, or JSON inside of a text.
# All that repeats is bounded, as time would otherwise grow with the square of a body.
_TASK_ID_IN_BYTES = re.compile(
    rb'(?:task|generation|job)[_-]?ids?\\{0,9}" ?: ?[\[{]? ?\\{0,9}"?([^\s",\]}\\]{1,200})', re.IGNORECASE
)

# The same as Python prints it. Errors of validation do, too, with words where an id would have a digit.
_TASK_ID_IN_REPR = re.compile(
    rb"'(?:task|generation|job)[_-]?ids?' ?: ?[\[{]? ?'([^\s']{0,100}\d[^\s']{0,100})'", re.IGNORECASE
)

_CONTROLS = re.compile("[\x00-\x1f]")
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
    body = _parse_leniently(response)
    message, code = message_and_code(body)
    is_rejection = _is_rejection(response, body, message)
    is_error = is_rejection or _is_error(response, body, message, code)
    task = find_task(response, body, code, extended_id, is_error=is_error)
    if task is not None:
        return task
    if not is_rejection or _hints_at_a_task(response, body, message, extended_id):
        raise outcome_unknown(
            f"{subject(response)} responded {response.status} {_describe(response, message)}", response
        )
    if response.status >= 300:
        raise status_error(response, body, is_submit=True)
    kind = _kind_of_rejection(body, code, message)
    raise kind(
        f"{subject(response)} rejected the request: {message or code}. {hint_for(kind, message)}",
        status=response.status,
        request_id=request_id(response),
    )


def _parse_leniently(response: RelayResponse) -> Any:
    """
    Parse a body that may name a task although it is not quite JSON.

    A relay may echo a prompt in another encoding, cut a character in two, or leave a line break in a text;
    or send JSON as a text, or as an event of a stream. JSON within an error's text is none of these: it may
    be the prompt's, or a proxy's.
    """
    body = parse_json(response)
    if not isinstance(body, str) or is_html(response):
        return body
    try:
        text = str(decode_json(response.body))
    except (ValueError, RecursionError):
        text = response.body.decode("utf-8-sig", errors="replace")
    text = text.strip().removeprefix("data:").lstrip()
    if not text.startswith("{"):
        return body
    with suppress(ValueError, RecursionError):
        text = _CONTROLS.sub(" ", text[: text.rfind("}") + 1])
        parsed = decode_json(text.encode(errors="replace"))
        return parsed if isinstance(parsed, Mapping) else body
    return body


def outcome_unknown(what: str, response: RelayResponse | None = None) -> SubmitOutcomeUnknownError:
    """Build the error of a submit that may have created a task, with what to do about it."""
    return SubmitOutcomeUnknownError(
        f"{what}. {UNKNOWN_OUTCOME_HINT}",
        status=None if response is None else response.status,
        request_id=None if response is None else request_id(response),
    )


def _kind_of_rejection(body: Any, code: str, message: str) -> type[RelayError]:
    """Return the kind of a rejection in a 2xx: the first of the table of which it has a code."""
    if says_no_balance(code, message):
        return RelayInsufficientBalanceError
    if says_moderation(code, message):
        return RelayPromptRejectedError
    kinds = {_KIND_BY_CODE[code] for code in _rejected_codes(body)}
    return next(kind for kind in _KINDS_BY_CODES if kind in kinds)


def _is_rejection(response: RelayResponse, body: Any, message: str) -> bool:
    if response.status == 429:
        return True
    if any(map(_PASSED_ON_CODE.search, _codes_and_types(_objects(body)))):
        return False
    if any(map(_PASSED_ON_MESSAGE.search, (message, response.body.decode(errors="replace")))):
        return False
    if response.status in _REJECTED_STATUSES:
        return True
    return response.status < 300 and any(_rejected_codes(body))


def _rejected_codes(body: Any) -> Iterator[str]:
    outer = (body, *(body.get(key) for key in ("error", "detail"))) if isinstance(body, Mapping) else ()
    codes = _codes_and_types(holder for holder in outer if isinstance(holder, Mapping))
    return (code.lower() for code in codes if code.lower() in _KIND_BY_CODE)


def _codes_and_types(holders: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for holder in holders:
        yield from (str(holder[key]) for key in ("code", "type") if holder.get(key) not in (None, ""))


def _hints_at_a_task(response: RelayResponse, body: Any, message: str, extended_id: str | None) -> bool:
    """Return whether a rejection names something that may be a task of this submit, in a form of its own."""
    content = response.body + b" " + response.headers.get("Location", "").encode(errors="replace")
    content = _REQUEST_ID_IN_BYTES.sub(b"", re.sub(rb"\s+", b" ", content))
    patterns = (_TASK_ID_IN_BYTES, _TASK_ID_IN_REPR, _UUID_IN_BYTES)
    ids = [task_id for pattern in patterns for task_id in pattern.findall(content)]
    if any(may_be_task_id(task_id.decode(errors="replace"), extended_id) for task_id in ids):
        return True
    if is_task_location(response):
        return True
    if isinstance(body, Mapping) and body.get("id") and not message:
        return True
    if _holds_an_id(body, message, extended_id):
        return True
    return any(
        _is_like_a_task(item, extended_id) or (not message and has_good_state(item))
        for item in _objects(body)
    )


def _holds_an_id(body: Any, message: str, extended_id: str | None) -> bool:
    """Return whether an id stands where relays put the task."""
    inner = [holder for holder in iter_holders(body) if holder is not body]
    texts = [holder.get("id") for holder in inner] + ([] if message else list(iter_held_texts(body)))
    return any(looks_like_an_id(text) and may_be_task_id(text, extended_id) for text in texts)


def _is_like_a_task(item: Mapping[str, Any], extended_id: str | None) -> bool:
    task_id = item.get("id")
    has_id = isinstance(task_id, str) and task_id != "" and may_be_task_id(task_id, extended_id)
    return has_id and ("created_at" in item or has_known_state(item))


def _objects(body: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield every object of a body."""
    if depth > MAX_DEPTH:
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


def _is_error(response: RelayResponse, body: Any, message: str, code: str) -> bool:
    """Return whether a response reports an error, beside which it may name a task all the same."""
    if response.status >= 400 and message:
        return True
    if not isinstance(body, Mapping):
        return False
    return (
        isinstance(body.get("error"), Mapping)
        or bool(body.get("errors"))
        or str(body.get("success")).lower() == "false"
        or body.get("status") == "error"
        or bool(_ERROR_CODE.fullmatch(code))
    )
