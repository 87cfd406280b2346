"""
Errors of tasks where a retry cannot help.

Transient errors are raised as they are, ordinary exceptions, so that Airflow's ``retries`` apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import (
    LumaValueError,
    RelayAuthenticationError,
    RelayPermanentError,
    SubmitOutcomeUnknownError,
    SubmitRecordError,
)


class LumaTaskFailedError(AirflowFailException):
    """Luma tasks failed, or the relay does not know them, and ``fail_when`` does not tolerate it."""


class LumaNonRetryableError(AirflowFailException):
    """A retry cannot help, or could be charged twice; the message names the next step."""


@contextmanager
def fail_without_retry(luma_conn_id: str) -> Iterator[None]:
    """
    Raise permanent errors as :class:`LumaNonRetryableError`, which Airflow does not retry.

    Likewise errors after which a retry could be charged twice.

    :param luma_conn_id: the connection, which holds the key that a relay may reject.
    """
    try:
        yield
    except (RelayPermanentError, SubmitOutcomeUnknownError, SubmitRecordError, LumaValueError) as error:
        is_auth_error = isinstance(error, RelayAuthenticationError)
        hint = f". It is the password of the connection {luma_conn_id!r}" if is_auth_error else ""
        raise LumaNonRetryableError(f"{error}{hint}") from error
