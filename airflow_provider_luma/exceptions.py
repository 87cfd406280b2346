"""
Everything that can go wrong, sorted by what its reader can do about it.

::

    LumaError
    ├── LumaInputError            an argument or a connection field is wrong; nothing was sent
    ├── RelayError                the relay's answer, with status, its own words and a request id
    │   ├── RelayRefusedError     no retry can help
    │   │   ├── RelayKeyError     401: the key is unknown, expired or used up
    │   │   ├── RelayRightsError  403: the account lacks rights
    │   │   │   └── RelayBalanceError 402, or any answer that says so: the account lacks balance
    │   │   └── RelayRequestError 400, 404, 413, 422: this request will never pass
    │   ├── RelayUncertainError   a submit broke off: a task may have been created and paid for
    │   ├── RelayBusyError        429: slow down, for as long as it says
    │   └── RelayTroubleError     connection, timeout, cut or foreign answer, 408, 5xx: may pass by itself
    ├── TransferError             one file did not get from its link to its place
    │   ├── TransferTroubleError  connection, timeout, cut or damaged download, 5xx: may pass by itself
    │   ├── LinkRefusedError      the link is gone, expired or missing: a fresh one may work
    │   ├── UnsafeLinkError       the link leads where no download may go
    │   └── ObjectExistsError     the name is taken, and if_exists does not allow to replace what is there
    └── BrokenWaitError           a wait ended without saying how: a lost or unknown trigger event

Nothing here imports Airflow. What a task raises so that Airflow does not retry in vain is in
:mod:`airflow_provider_luma.airflow_exceptions`.
"""

from __future__ import annotations

from typing import Any


class LumaError(Exception):
    """Root of every error that this package raises on purpose."""


class LumaInputError(LumaError, ValueError):
    """An argument or a connection field is wrong. Nothing was sent."""


class RelayError(LumaError):
    """
    The relay refused, failed or could not be reached.

    :param message: what happened, to whom and what to do next, in one line.
    :param status: the HTTP status, ``None`` when there was no answer.
    :param request_id: the relay's own id of the request, for its support.
    :param retry_after: seconds to wait as told by the relay, ``None`` when it did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after

    def as_dict(self) -> dict[str, Any]:
        """Return what :func:`relay_error_from_dict` needs to raise the same error in another process."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "status": self.status,
            "request_id": self.request_id,
        }


class RelayRefusedError(RelayError):
    """The relay will say the same again: no retry can help."""


class RelayKeyError(RelayRefusedError):
    """401: the relay does not accept the API key."""


class RelayRightsError(RelayRefusedError):
    """403: the account lacks rights."""


class RelayBalanceError(RelayRightsError):
    """402, or a refusal for want of quota: the account lacks balance."""


class RelayRequestError(RelayRefusedError):
    """400, 404, 413, 422: the relay does not take this request."""


class RelayUncertainError(RelayError):
    """
    A submit broke off after it may have arrived: a task may have been created, and paid for.

    Whoever sends the same again may pay twice, so that neither this package nor Airflow does.
    """


class RelayBusyError(RelayError):
    """429: the relay asks to slow down."""


class RelayTroubleError(RelayError):
    """Trouble that may pass by itself: connection, timeout, cut or foreign answer, 408, 5xx."""


class TransferError(LumaError):
    """One file did not get from its link to its place."""


class TransferTroubleError(TransferError):
    """Trouble that may pass by itself: connection, timeout, cut or damaged download, 408, 429, 5xx."""


class LinkRefusedError(TransferError):
    """The link is gone, expired or missing; a fresh one may work."""


class UnsafeLinkError(TransferError):
    """The link leads where no download may go."""


class ObjectExistsError(TransferError):
    """The name is taken by an object that must not be replaced."""


class BrokenWaitError(LumaError):
    """A wait ended without saying how."""


_RELAY_ERRORS: dict[str, type[RelayError]] = {
    kind.__name__: kind
    for kind in (
        RelayKeyError,
        RelayRightsError,
        RelayBalanceError,
        RelayRequestError,
        RelayUncertainError,
        RelayBusyError,
        RelayTroubleError,
    )
}


def relay_error_from_dict(facts: dict[str, Any]) -> RelayError:
    """Rebuild an error from :meth:`RelayError.as_dict`."""
    kind = _RELAY_ERRORS.get(facts["type"], RelayTroubleError)
    return kind(facts["message"], status=facts.get("status"), request_id=facts.get("request_id"))
