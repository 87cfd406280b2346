"""Arguments that are one of a few words."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from airflow_provider_luma.exceptions import LumaInputError


class Choice(StrEnum):
    """A word out of a few, by the name of the argument that holds it."""

    @classmethod
    def parse(cls, word: str) -> Self:
        """
        Read an argument.

        :raises LumaInputError: when it is none of the words, naming them.
        """
        try:
            return cls(word)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in cls)
            raise LumaInputError(f"{_ARGUMENTS[cls]} must be one of {allowed}, not {word!r}") from None


class FailWhen(Choice):
    """When failed or missing ids make the whole batch fail."""

    ANY = "any"
    ALL = "all"
    NEVER = "never"


class IfExists(Choice):
    """What to do where an object has the name of a file already."""

    SKIP = "skip"
    OVERWRITE = "overwrite"
    FAIL = "fail"


_ARGUMENTS = {FailWhen: "fail_when", IfExists: "if_exists"}
