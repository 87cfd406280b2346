"""Arguments that are one of a few words, or a number."""

from __future__ import annotations

import math
from datetime import timedelta
from enum import StrEnum
from typing import Any, Self

from airflow_provider_luma.exceptions import LumaValueError

_CENTURY = 100 * 366 * 24 * 3600


class Choice(StrEnum):
    """A word out of a few, by the name of the argument that holds it."""

    @classmethod
    def parse(cls, word: str) -> Self:
        """
        Read an argument.

        :raises LumaValueError: when it is none of the words, naming them.
        """
        try:
            return cls(word)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in cls)
            raise LumaValueError(f"{_ARGUMENTS[cls]} must be one of {allowed}, not {word!r}") from None


class FailWhen(Choice):
    """When failed or missing ids fail the batch."""

    ANY = "any"
    ALL = "all"
    NEVER = "never"


class IfExists(Choice):
    """What to do where an object has the name of a file already."""

    SKIP = "skip"
    OVERWRITE = "overwrite"
    FAIL = "fail"


_ARGUMENTS = {FailWhen: "fail_when", IfExists: "if_exists"}


def check_number(
    name: str, value: Any, *, zero: bool = False, whole: bool = False, seconds: bool = True
) -> None:
    """
    Validate an argument that is a number above 0, and finite.

    :param zero: 0 will do as well.
    :param whole: nothing but an ``int`` will do, of any size.
    :param seconds: a century is the most, where it may be a fraction.
    :raises LumaValueError: when it is none, naming the argument.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not (value > 0 or (zero and value == 0)):
        kind = f"{'whole ' if whole else ''}number {'from 0 up' if zero else 'above 0'}"
        raise LumaValueError(f"{name} must be a {kind}, not {value!r:.80}")
    if value == math.inf:
        raise LumaValueError(f"{name} must be finite")
    if seconds and not whole and value > _CENTURY:  # dates end
        raise LumaValueError(f"{name} must be at most {_CENTURY} seconds, not {value!s:.80}")


def seconds_of(name: str, value: float | timedelta) -> float:
    """
    Return an argument that is a number of seconds above 0, or a ``timedelta``, in seconds.

    :raises LumaValueError: when it is neither, naming the argument.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    check_number(name, seconds)
    return seconds
