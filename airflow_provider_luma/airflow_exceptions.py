"""
What tasks raise where no retry can help.

Trouble that may pass is raised as it is, an ordinary exception, so that Airflow's ``retries`` apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaValueError, RelayPermanentError, SubmitOutcomeUnknownError

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralTimeout
except ImportError:  # Airflow 3.0 and 3.1
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowRescheduleException,
        TaskDeferralTimeout,
    )

__all__ = [
    "AirflowRescheduleException",
    "LumaNonRetryableError",
    "LumaTaskFailedError",
    "TaskDeferralTimeout",
    "fail_without_retry",
]


class LumaTaskFailedError(AirflowFailException):
    """Luma tasks failed, or the relay does not know them, and ``fail_when`` does not bear it."""


class LumaNonRetryableError(AirflowFailException):
    """The relay refused for good, or an argument or the connection is wrong."""


@contextmanager
def fail_without_retry() -> Iterator[None]:
    """
    Raise what no retry can help with as :class:`LumaNonRetryableError`, which Airflow does not retry.

    Likewise what a retry may pay for a second time.
    """
    try:
        yield
    except (RelayPermanentError, SubmitOutcomeUnknownError, LumaValueError) as error:
        raise LumaNonRetryableError(str(error)) from error
