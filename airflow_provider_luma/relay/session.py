"""Sends the requests to one relay; the only place that holds the API key."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import requests
from urllib3.exceptions import HTTPError

from airflow_provider_luma.exceptions import LumaValueError, RelayError, RelayTransientError
from airflow_provider_luma.relay.network import (
    parse_proxies,
    redact,
    root_cause_message,
    secrets_in_proxies,
    validate_environment_proxies,
)
from airflow_provider_luma.relay.submit_response import outcome_unknown
from airflow_provider_luma.relay.text import redact_text
from airflow_provider_luma.relay.transport import (
    ContentEncodingError,
    Exchange,
    RelayResponse,
    ResponseTooLargeError,
    open_session,
    read_response,
)
from airflow_provider_luma.relay.validation import parse_api_key, parse_base_url, parse_verify

log = logging.getLogger(__name__)

T = TypeVar("T")

EventHook = Callable[[RelayError | None, float], None]

# From this many characters on, the start of a key gives something of it away.
_REDACTABLE_PREFIX_LENGTH = 8


class RelaySession:
    """
    Sends single requests, each bounded in time and in bytes.

    The parameters are those of :class:`~airflow_provider_luma.relay.client.RelayClient`.

    :raises LumaValueError: when an argument is invalid.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str,
        *,
        timeout: float,
        request_timeout: float,
        max_response_bytes: int,
        verify: bool | str,
        proxies: Mapping[str, str],
        max_connections: int,
        event_hook: EventHook | None,
    ) -> None:
        self.base_url = parse_base_url(base_url)
        validate_environment_proxies(self.base_url)
        self._event_hook = event_hook
        self._api_key = parse_api_key(api_key)
        self._request_timeout = request_timeout
        self._max_response_bytes = max_response_bytes
        self._session = open_session(self._api_key, max_connections)
        # Given with each request, because requests lets the environment win over a session's settings.
        # Redirects are not followed: a POST would become a GET, and the key belongs to this host alone.
        self._options: dict[str, Any] = {
            "timeout": min(timeout, request_timeout),
            "verify": parse_verify(verify),
            "proxies": parse_proxies(proxies),
            "allow_redirects": False,
            "stream": True,
        }

    def close(self) -> None:
        self._session.close()

    def exchange(self, max_seconds: float = math.inf) -> Exchange:
        """Return what follows one request, for at most ``request_timeout``."""
        return Exchange(max(min(max_seconds, self._request_timeout), 0.0))

    def observe(self, request: Callable[[], T]) -> T:
        """Call the event hook with the outcome of a request, and redact secrets in an error."""
        started = time.monotonic()
        try:
            result = request()
        except RelayError as error:
            self._call_event_hook(error, started)
            raise self._redacted(error) from None
        self._call_event_hook(None, started)
        return result

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        exchange: Exchange | None = None,
        is_alone: bool = False,
    ) -> RelayResponse:
        """
        Send a request that costs nothing, once.

        :param is_alone: on a connection of its own: a relay may close one that was kept alive just as a
            request is sent, which is for those that are retried.
        :raises RelayTransientError: when there is no complete response.
        """
        with exchange or self.exchange() as exchange:
            try:
                if not is_alone:
                    return self._send(self._session, exchange, method, path, {"json": body})
                with open_session(self._api_key, 1) as session:
                    session.headers["Connection"] = "close"
                    return self._send(session, exchange, method, path, {"json": body})
            except (
                requests.RequestException,
                HTTPError,
                ResponseTooLargeError,
                ContentEncodingError,
                OSError,
                ValueError,  # of a host that nobody can look up
            ) as error:
                status = error.status if isinstance(error, ResponseTooLargeError) else None
                raise RelayTransientError(
                    self._no_response(error, exchange), status=status, was_sent=exchange.may_have_been_sent
                ) from error

    def validate_submit(self, path: str, body: bytes) -> None:
        """
        Build the request of a submit, and send nothing.

        :raises LumaValueError: when it cannot be built.
        """
        request = requests.Request("POST", self.base_url + path, data=body)
        try:
            self._session.prepare_request(request)
        except (requests.RequestException, ValueError) as error:
            raise LumaValueError(
                f"No request can be sent to {self.base_url}: {root_cause_message(error)}"
            ) from None

    def submit(self, path: str, body: bytes) -> RelayResponse:
        """
        Send a request that costs money, once.

        :raises SubmitOutcomeUnknownError: when it may have been sent, and has no complete response.
        :raises RelayTransientError: when it was not sent.
        :raises BaseException: of a task that is killed, with ``was_sent``.
        """
        # A session of its own: on a connection that was kept alive a submit may break off without a fault of
        # anybody's, and then nobody knows whether it arrived.
        with open_session(self._api_key, 1) as session, self.exchange() as exchange:
            session.headers.update({"Connection": "close", "Content-Type": "application/json"})
            try:
                return self._send(session, exchange, "POST", path, {"data": body})
            except Exception as error:
                what = self._no_response(error, exchange)
                if exchange.may_have_been_sent:
                    raise outcome_unknown(what) from error
                raise RelayTransientError(what) from error
            except BaseException as error:  # such as Airflow's execution_timeout
                error.was_sent = exchange.may_have_been_sent  # type: ignore[attr-defined]
                raise

    def _send(
        self,
        session: requests.Session,
        exchange: Exchange,
        method: str,
        path: str,
        content: Mapping[str, object],
    ) -> RelayResponse:
        response = session.request(method, self.base_url + path, **content, **self._options)  # type: ignore[arg-type]
        complete = read_response(response, self.base_url, self._max_response_bytes, secret=self._api_key)
        if exchange.is_expired:  # its connection was closed, which also ends a body of unknown length
            raise TimeoutError
        return complete

    def _no_response(self, error: BaseException, exchange: Exchange) -> str:
        if exchange.is_expired and exchange.seconds < self._request_timeout:
            why = f"it was not complete in the {exchange.seconds:.1f} s that were left"
        elif exchange.is_expired:
            why = f"it was not complete within request_timeout ({self._request_timeout:g} s)"
        elif isinstance(error, ResponseTooLargeError):
            why = f"it is larger than max_response_bytes ({self._max_response_bytes})"
        elif isinstance(error, ContentEncodingError):
            why = str(error)
        else:
            why = root_cause_message(error)
        return f"No response from the relay at {self.base_url}: {why}"

    def _call_event_hook(self, error: RelayError | None, started: float) -> None:
        try:
            if self._event_hook:
                self._event_hook(error, time.monotonic() - started)
        except Exception:
            log.exception(
                "Could not record request metrics; the request is not affected"
            )  # which must not lose the id of a task that was paid for

    def _redacted(self, error: RelayError) -> RelayError:
        """
        Redact the signatures of URLs, proxies' passwords and the API key.

        Some relays echo the key, in part where it was truncated.
        """
        prefix = re.escape(self._api_key[:_REDACTABLE_PREFIX_LENGTH])
        message = re.sub(rf"{re.escape(self._api_key)}|{prefix}[\w-]*", "***", str(error))
        error.args = (redact_text(redact(message, secrets_in_proxies(self._options["proxies"]))),)
        return error
