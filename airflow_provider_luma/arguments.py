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
    def parse(cls, value: str) -> Self:
        """
        Read an argument.

        :raises LumaValueError: for any other value, listing the allowed ones.
        """
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in cls)
            raise LumaValueError(f"{_ARGUMENTS[cls]} must be one of {allowed}, not {value!r}") from None


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


_ARGUMENTS = {FailWhen: "fail_when", IfExists: "if_exists"}


def validate_number(
    name: str, value: Any, *, allow_zero: bool = False, integer: bool = False, seconds: bool = True
) -> None:
    """
    Validate an argument that is a number above 0, and finite.

    :param allow_zero: 0 will do as well.
    :param integer: accept only an ``int``, of any size.
    :param seconds: a century is the most, where it may be a fraction.
    :raises LumaValueError: when it is none, naming the argument.
    """
    number = isinstance(value, int if integer else int | float) and not isinstance(value, bool)
    if not number or not (value > 0 or (allow_zero and value == 0)):
        kind = f"{'integer ' if integer else ''}number {'of 0 or greater' if allow_zero else 'above 0'}"
        raise LumaValueError(f"{name} must be a {kind}, not {value!r:.80}")
    if value == math.inf:
        raise LumaValueError(f"{name} must be finite")
    if seconds and not integer and value > _CENTURY:  # dates end
        raise LumaValueError(f"{name} must be at most {_CENTURY} seconds, not {value!s:.80}")


def seconds_of(name: str, value: float | timedelta) -> float:
    """
    Return an argument that is a number of seconds above 0, or a ``timedelta``, in seconds.

    :raises LumaValueError: when it is neither, naming the argument.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    validate_number(name, seconds)
    return seconds
