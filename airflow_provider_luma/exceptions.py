"""
Everything that can go wrong, sorted by what its reader can do about it.

::

    LumaError
    ├── LumaValueError                       an argument or a connection field is invalid; nothing was sent
    ├── RelayError                           with the response's status, message and request id
    │   ├── RelayPermanentError              retrying cannot help
    │   │   ├── RelayAuthenticationError     401: the API key is unknown, expired or used up
    │   │   ├── RelayPermissionError         403: the account or the key lacks permission
    │   │   │   └── RelayInsufficientBalanceError  402, or any rejection for insufficient quota
    │   │   └── RelayInvalidRequestError     400, 404, 413, 422: the relay does not accept this request
    │   │       ├── RelayPromptRejectedError moderation, or 400, 413, 422 for a submit: it rejects this prompt
    │   │       └── RelayTaskNotFoundError   task_not_exist: it does not know all ids of a query
    │   ├── SubmitOutcomeUnknownError        a submit that may have created and charged for a task
    │   ├── RelayRateLimitError              429
    │   └── RelayTransientError              connection, timeout, truncated or invalid response, 408, 5xx
    ├── SubmitRecordError                    the record of a submit cannot be read or written
    ├── DownloadError                        a file was not downloaded to its destination
    │   ├── TransientDownloadError           connection, timeout, truncated or damaged download, 429, 5xx
    │   ├── LinkExpiredError                 the URL is expired or missing; a fresh one may work
    │   ├── UnsafeURLError                   the URL's address is not public
    │   └── ObjectExistsError                an object has the name, and if_exists does not replace it
    └── TriggerEventError                    a trigger event is lost or invalid

Nothing here imports Airflow. The exceptions of tasks that Airflow does not retry are in
:mod:`airflow_provider_luma.airflow_exceptions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)

UNKNOWN_OUTCOME_HINT = (
    "The relay may have created and charged for a task, so the request was not retried. "
    "Check the relay's task log before resubmitting"
)


class LumaError(Exception):
    """Root of every error that this package raises on purpose."""


class LumaValueError(LumaError, ValueError):
    """An argument or a connection field is invalid. Nothing was sent."""


class RelayError(LumaError):
    """
    The relay rejected the request, failed or could not be reached.

    :param message: the failure, and what to do next, in one line.
    :param status: the HTTP status, ``None`` when there was no response.
    :param request_id: the relay's own id of the request, for its support.
    :param retry_after: ``Retry-After`` in seconds, ``None`` when the response has none.
    :param was_sent: whether the request may have reached the relay, although there was no complete response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        was_sent: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.was_sent = was_sent or status is not None

    def to_dict(self) -> dict[str, Any]:
        """Return what :func:`error_from_dict` needs to raise the same error in another process."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "status": self.status,
            "request_id": self.request_id,
        }


class RelayPermanentError(RelayError):
    """Permanent error; retrying cannot help."""


class RelayAuthenticationError(RelayPermanentError):
    """401: the relay does not accept the API key."""


class RelayPermissionError(RelayPermanentError):
    """403: the account or the key lacks permission."""


class RelayInsufficientBalanceError(RelayPermissionError):
    """402, or any rejection for insufficient quota: the account lacks balance."""


class RelayInvalidRequestError(RelayPermanentError):
    """400, 404, 413, 422: the relay does not accept this request."""


class RelayPromptRejectedError(RelayInvalidRequestError):
    """Moderation, or 400, 413, 422 for a submit: the relay rejects this prompt, and may accept others."""


class RelayTaskNotFoundError(RelayInvalidRequestError):
    """``task_not_exist``: the relay does not know at least one of the ids of a query."""


class SubmitOutcomeUnknownError(RelayError):
    """
    A submit may have created and charged for a task.

    Retrying could be charged twice, so neither this package nor Airflow retries it.
    """


class RelayRateLimitError(RelayError):
    """429: a rate limit."""


class RelayTransientError(RelayError):
    """Transient error: connection, timeout, truncated or invalid response, 408, 5xx."""


class SubmitRecordError(LumaError):
    """The record of a submit cannot be read or written; nothing is sent without it."""


class DownloadError(LumaError):
    """A file was not downloaded to its destination."""


class TransientDownloadError(DownloadError):
    """Transient error: connection, timeout, truncated or damaged download, 408, 416, 425, 429, 5xx."""


class LinkExpiredError(DownloadError):
    """The URL is expired or missing; a fresh one may work."""


class UnsafeURLError(DownloadError):
    """The URL's address is not public."""


class ObjectExistsError(DownloadError):
    """An object has the name, and ``if_exists`` does not replace it."""


class TriggerEventError(LumaError):
    """The trigger event is lost or invalid."""


_RELAY_ERRORS: dict[str, type[RelayError]] = {
    kind.__name__: kind
    for kind in (
        RelayAuthenticationError,
        RelayPermissionError,
        RelayInsufficientBalanceError,
        RelayInvalidRequestError,
        RelayPromptRejectedError,
        RelayTaskNotFoundError,
        SubmitOutcomeUnknownError,
        RelayRateLimitError,
        RelayTransientError,
    )
}


def error_from_dict(data: dict[str, Any]) -> LumaError:
    """Rebuild a :class:`LumaValueError`, or a :class:`RelayError` from its :meth:`RelayError.to_dict`."""
    if data["type"] == LumaValueError.__name__:
        return LumaValueError(data["message"])
    kind = _RELAY_ERRORS.get(data["type"], RelayTransientError)
    return kind(data["message"], status=data.get("status"), request_id=data.get("request_id"))


def is_permanent(error: BaseException) -> bool:
    """Return whether no retry can help: of the errors of a wait, ``silent_fail`` tolerates the others."""
    return isinstance(error, (RelayPermanentError, LumaValueError))


def error_to_raise(errors: Sequence[E]) -> E:
    """Return which error of several requests to raise: one that no retry can help, otherwise the first."""
    return next(filter(is_permanent, errors), errors[0])
