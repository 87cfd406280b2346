"""The fields of a generation, validated and serialised before anything is sent."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.text import SURROGATE, clean_text

log = logging.getLogger(__name__)

# What is documented somewhere, by relays or by Luma itself. Relays follow Luma in their own ways, so anything
# else is sent with a warning.
ASPECT_RATIOS = (
    *("1:1", "4:3", "3:4", "16:9", "9:16", "21:9", "9:21"),
    *("3:1", "2:1", "3:2", "2:3", "1:2", "1:3"),
)
RESOLUTIONS = ("360p", "540p", "720p", "1080p", "4k")
PROMPT_LENGTHS = range(3, 6001)

_DURATION = re.compile(r"[1-9]\d?s?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
# A character that is not a blank, a control, a mark without a width, or a lone surrogate.
_VISIBLE = re.compile("[^\\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
FLAGS = ("loop", "expand_prompt")
_NOT_FOR_EXTEND = ("aspect_ratio", "model_name", "resolution", "duration")


@dataclass(frozen=True)
class Generation:
    """
    A generation to submit. A field that is ``None`` is not sent.

    Values that no documentation knows are sent with a warning, as a relay may know them.

    :param prompt: the text; usually 3 to 6000 characters.
    :param aspect_ratio: such as one of ``ASPECT_RATIOS``.
    :param loop: whether the end leads into the beginning.
    :param expand_prompt: whether the relay may embellish the prompt.
    :param image_url: the first image: an http(s) URL, or Base64.
    :param image_end_url: the last image, likewise.
    :param model_name: such as ``ray-v2``; relays differ.
    :param resolution: such as one of ``RESOLUTIONS``.
    :param duration: such as ``5s``; relays differ.
    :param notify_hook: an http(s) URL that the relay calls at the end.
    :param extend_task_id: the Luma task whose video this one extends.
    :param extra_body: further fields that a relay takes, sent as they are.
    :raises LumaValueError: when a field cannot be sent, naming it.
    """

    prompt: str
    aspect_ratio: str | None = None
    loop: bool | None = None
    expand_prompt: bool | None = None
    image_url: str | None = None
    image_end_url: str | None = None
    model_name: str | None = None
    resolution: str | None = None
    duration: str | float | None = None
    notify_hook: str | None = None
    extend_task_id: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _validate_text("prompt", self.prompt)
        if surrogate := SURROGATE.search(self.prompt):
            raise LumaValueError(
                f"prompt is not Unicode text: character {surrogate.start()} is a lone surrogate"
            )
        for name in FLAGS:
            if not isinstance(value := getattr(self, name), bool | None):
                raise LumaValueError(f"{name} must be True or False, not {value!r:.80}")
        for name in _TEXT_FIELDS:
            if (value := getattr(self, name)) is not None:
                _validate_text(name, value)
        if isinstance(self.duration, str):
            _validate_text("duration", self.duration)
        if isinstance(self.duration, bool) or not isinstance(self.duration, str | int | float | None):
            raise LumaValueError(
                f"duration must be a string such as '5s' or a number, not {self.duration!r:.80}"
            )
        _validate_url("image_url", self.image_url, ("http", "https", "data"))
        _validate_url("image_end_url", self.image_end_url, ("http", "https", "data"))
        _validate_url("notify_hook", self.notify_hook, ("http", "https"), needs_scheme=True)
        _validate_path_segment("extend_task_id", self.extend_task_id)
        if self.extend_task_id is not None:  # frozen, and an id from a file ends with a line break
            object.__setattr__(self, "extend_task_id", self.extend_task_id.strip())
        self._validate_extra_body()
        self.to_json()  # raises for fields that JSON cannot hold

    @property
    def path(self) -> str:
        """The path of the request."""
        if self.extend_task_id is None:
            return "/luma/generations"
        return f"/luma/generations/{quote(self.extend_task_id, safe='')}/extend"

    @property
    def body(self) -> dict[str, Any]:
        """The fields of the request that were given."""
        return {**self._given(), **self.extra_body}

    def to_json(self) -> bytes:
        """
        Serialise the body of the request.

        :raises LumaValueError: when ``extra_body`` holds what JSON cannot, such as a datetime or NaN.
        """
        try:
            return json.dumps(self.body, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise LumaValueError(f"The fields cannot be sent as JSON: {clean_text(str(error))}") from None

    def warn_undocumented(self) -> None:
        """Log a warning for each undocumented value, which is sent nevertheless."""
        for message in self.undocumented():
            log.warning("%s; it is sent nevertheless, as relays differ", message)

    def undocumented(self) -> list[str]:
        """Return a message for each value that no documentation knows."""
        found = []
        if len(self.prompt.strip()) not in PROMPT_LENGTHS:
            shortest, longest = PROMPT_LENGTHS[0], PROMPT_LENGTHS[-1]
            found.append(f"prompt has {len(self.prompt.strip())} characters, not {shortest} to {longest}")
        for name, known in (("aspect_ratio", ASPECT_RATIOS), ("resolution", RESOLUTIONS)):
            if (value := getattr(self, name)) is not None and value not in known:
                found.append(f"{name} {clean_text(value, 80)!r} is none of {', '.join(known)}")
        if self.duration is not None and not _DURATION.fullmatch(str(self.duration)):
            found.append(f"duration {clean_text(str(self.duration), 80)!r} is not in seconds, such as '5s'")
        if self.extend_task_id is not None:
            found += [
                f"{name} is not among the documented fields of an extend request"
                for name in _NOT_FOR_EXTEND
                if getattr(self, name) is not None
            ]
        return found

    def _given(self) -> dict[str, Any]:
        given = {name: value for name in _BODY_FIELDS if (value := getattr(self, name)) is not None}
        return {"user_prompt": self.prompt, **given}

    def _validate_extra_body(self) -> None:
        if not isinstance(self.extra_body, Mapping) or not all(isinstance(k, str) for k in self.extra_body):
            raise LumaValueError(f"extra_body must be a dict of fields, not {_kind(self.extra_body)}")
        if duplicates := sorted(self._given().keys() & self.extra_body.keys()):
            raise LumaValueError(f"extra_body gives {duplicates[0]!r} a second time; give it once")


FIELDS = tuple(item.name for item in fields(Generation))
_BODY_FIELDS = tuple(name for name in FIELDS if name not in {"prompt", "extend_task_id", "extra_body"})
_URLS = ("image_url", "image_end_url", "notify_hook")
_TEXT_FIELDS = ("aspect_ratio", "model_name", "resolution", "extend_task_id", *_URLS)


def _validate_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not _VISIBLE.search(value):
        shown = repr(value) if name not in _URLS and not isinstance(value, Mapping | bytes) else _kind(value)
        raise LumaValueError(f"{name} must be a non-empty string, not {shown:.80}")


def _kind(value: Any) -> str:
    """Name the type of a value that may hold a secret."""
    return f"a value of the type {type(value).__name__}"


def _validate_path_segment(name: str, value: str | None) -> None:
    if value is None:
        return
    try:
        quote(value)
    except UnicodeEncodeError:
        raise LumaValueError(f"{name} is not an id: {clean_text(value, 80)!r}") from None
    if not value.strip("."):
        raise LumaValueError(f"{name} is not an id: {value!r:.80}")


def _validate_url(
    name: str, value: str | None, schemes: tuple[str, ...], *, needs_scheme: bool = False
) -> None:
    if value is None:
        return
    match = _SCHEME.match(value.strip())
    if (match is None and needs_scheme) or (match is not None and match[1].lower() not in schemes):
        raise LumaValueError(
            f"{name} must be a URL with {' or '.join(schemes)} that the relay can reach, not one "
            + (f"with {match[1]!r:.22}" if match and match[2] else "without a scheme")
        )
