"""
What tasks raise where no retry can help.

Trouble that may pass is raised as it is, an ordinary exception, so that Airflow's ``retries`` apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaInputError, RelayRefusedError, RelayUncertainError

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralTimeout
except ImportError:  # Airflow 3.0 and 3.1
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowRescheduleException,
        TaskDeferralTimeout,
    )

__all__ = [
    "AirflowRescheduleException",
    "LumaRefusedError",
    "LumaTaskFailedError",
    "TaskDeferralTimeout",
    "no_vain_retries",
]


class LumaTaskFailedError(AirflowFailException):
    """Luma tasks failed, or the relay does not know them, and ``fail_when`` does not bear it."""


class LumaRefusedError(AirflowFailException):
    """The relay refused for good, or an argument or the connection is wrong."""


@contextmanager
def no_vain_retries() -> Iterator[None]:
    """
    Raise what no retry can help with as :class:`LumaRefusedError`, which Airflow does not retry.

    Likewise what a retry may pay for a second time.
    """
    try:
        yield
    except (RelayRefusedError, RelayUncertainError, LumaInputError) as error:
        raise LumaRefusedError(str(error)) from error
