"""Arguments that are one of a few values, or a number."""

from __future__ import annotations

import math
from datetime import timedelta
from enum import StrEnum
from typing import Any, Self

from airflow_provider_luma.exceptions import LumaValueError

_CENTURY = 100 * 366 * 24 * 3600


class Choice(StrEnum):
    """One of a few values of an argument."""

    @classmethod
    def parse(cls, argument: str, value: str) -> Self:
        """
        Read an argument.

        :param argument: its name, for the error.
        :raises LumaValueError: for any other value, listing the allowed ones.
        """
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in cls)
            raise LumaValueError(f"{argument} must be one of {allowed}, not {value!r}") from None


class FailWhen(Choice):
    """The failed or missing ids that fail the batch."""

    ANY = "any"
    ALL = "all"
    NEVER = "never"


class IfExists(Choice):
    """The action where an object has the name of a file already."""

    SKIP = "skip"
    OVERWRITE = "overwrite"
    FAIL = "fail"


def validate_seconds(name: str, value: Any, *, allow_zero: bool = False) -> None:
    """
    Validate an argument that is a number of seconds above 0, of a century at most.

    :param allow_zero: accept 0 as well.
    :raises LumaValueError: when it is not, naming the argument.
    """
    _validate(name, value, int | float, "a number", allow_zero=allow_zero)
    if value > _CENTURY:  # dates end
        raise LumaValueError(f"{name} must be at most {_CENTURY} seconds, not {value!s:.80}")


def validate_count(name: str, value: Any, *, allow_zero: bool = False) -> None:
    """
    Validate an argument that is an integer above 0, such as of threads or bytes.

    :param allow_zero: accept 0 as well.
    :raises LumaValueError: when it is not, naming the argument.
    """
    _validate(name, value, int, "an integer", allow_zero=allow_zero)


def validate_amount(name: str, value: Any) -> None:
    """
    Validate an argument that is an amount of money: a finite number of 0 or greater.

    :raises LumaValueError: when it is not, naming the argument.
    """
    _validate(name, value, int | float, "a number", allow_zero=True)
    if value == math.inf:
        raise LumaValueError(f"{name} must be finite")


def _validate(name: str, value: Any, kind: Any, described: str, *, allow_zero: bool) -> None:
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or not (value > 0 or (allow_zero and value == 0)):
        wanted = f"{described} of 0 or greater" if allow_zero else f"{described} above 0"
        raise LumaValueError(f"{name} must be {wanted}, not {value!r:.80}")


def to_seconds(name: str, value: float | timedelta) -> float:
    """
    Return an argument that is a number of seconds above 0, or a ``timedelta``, in seconds.

    :raises LumaValueError: when it is neither, naming the argument.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    validate_seconds(name, seconds)
    return seconds
