"""What is asked for when a generation is submitted, checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from airflow_provider_luma.exceptions import LumaValueError

# The relays' documentation names the first five, Luma's own also the others.
ASPECT_RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16", "21:9", "9:21")
RESOLUTIONS = ("540p", "720p", "1080p", "4k")
# As Luma's own documentation says; relays hand it on.
PROMPT_LENGTH = range(3, 5001)

_DURATION = re.compile(r"[1-9]\d?s?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_EXTEND_TAKES = ("prompt", "expand_prompt", "loop", "image_url", "image_end_url", "notify_hook")


@dataclass(frozen=True)
class Generation:
    """
    A generation to submit. What is ``None`` is not sent.

    :param prompt: 3 to 5000 characters.
    :param aspect_ratio: one of :data:`ASPECT_RATIOS`.
    :param loop: whether the end leads into the beginning.
    :param expand_prompt: whether the relay may embellish the prompt.
    :param image_url: the first image: an http(s) link, or Base64.
    :param image_end_url: the last image, likewise.
    :param model_name: such as ``ray-v2``; relays differ.
    :param resolution: one of :data:`RESOLUTIONS`.
    :param duration: such as ``5s``; relays differ.
    :param notify_hook: an http(s) address that the relay calls at the end.
    :param extend_task_id: the Luma task whose video is made longer by this.
    :param extra_body: fields that a relay has besides, sent as they are.
    :raises LumaValueError: when something cannot be right, naming the field and what it may be.
    """

    prompt: str
    aspect_ratio: str | None = None
    loop: bool | None = None
    expand_prompt: bool | None = None
    image_url: str | None = None
    image_end_url: str | None = None
    model_name: str | None = None
    resolution: str | None = None
    duration: str | None = None
    notify_hook: str | None = None
    extend_task_id: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_one_of("aspect_ratio", self.aspect_ratio, ASPECT_RATIOS)
        _check_one_of("resolution", self.resolution, RESOLUTIONS)
        for name in ("loop", "expand_prompt"):
            if not isinstance(value := getattr(self, name), bool | None):
                raise LumaValueError(f"{name} must be True or False, not {value!r:.80}")
        for name in ("image_url", "image_end_url", "model_name", "notify_hook", "extend_task_id"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise LumaValueError(f"{name} must be a text that is not empty, not {value!r:.80}")
        if self.duration is not None and not _DURATION.fullmatch(str(self.duration)):
            raise LumaValueError(f"duration must be seconds such as '5s', not {self.duration!r:.80}")
        _check_link("image_url", self.image_url, ("http", "https", "data"))
        _check_link("image_end_url", self.image_end_url, ("http", "https", "data"))
        _check_link("notify_hook", self.notify_hook, ("http", "https"), needed=True)
        self._check_extend()
        self._check_extra_body()

    @property
    def path(self) -> str:
        """Where it is sent, below the relay's address."""
        if self.extend_task_id is None:
            return "/luma/generations"
        return f"/luma/generations/{quote(self.extend_task_id, safe='')}/extend"

    @property
    def body(self) -> dict[str, Any]:
        """What is sent: only what was given."""
        return {**self._given(), **self.extra_body}

    def _given(self) -> dict[str, Any]:
        names = (
            *("aspect_ratio", "loop", "expand_prompt", "image_url", "image_end_url"),
            *("model_name", "resolution", "duration", "notify_hook"),
        )
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"user_prompt": self.prompt, **given}

    def _check_extend(self) -> None:
        if self.extend_task_id is None:
            return
        names = ("aspect_ratio", "model_name", "resolution", "duration")
        if wrong := [name for name in names if getattr(self, name) is not None]:
            raise LumaValueError(
                f"{wrong[0]} cannot be given with extend_task_id, which takes {', '.join(_EXTEND_TAKES)}"
            )

    def _check_extra_body(self) -> None:
        if not isinstance(self.extra_body, Mapping) or not all(isinstance(k, str) for k in self.extra_body):
            raise LumaValueError(f"extra_body must be a dict of fields, not {self.extra_body!r:.80}")
        if twice := sorted(self._given().keys() & self.extra_body.keys()):
            raise LumaValueError(f"extra_body gives {twice[0]!r} a second time; give it once")


def _check_prompt(prompt: Any) -> None:
    shortest, longest = PROMPT_LENGTH[0], PROMPT_LENGTH[-1]
    if not isinstance(prompt, str) or len(prompt.strip()) not in PROMPT_LENGTH:
        what = f"{len(prompt.strip())} characters" if isinstance(prompt, str) else f"{prompt!r:.80}"
        raise LumaValueError(f"prompt must be a text of {shortest} to {longest} characters, not {what}")


def _check_one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise LumaValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r:.80}")


def _check_link(name: str, value: str | None, schemes: tuple[str, ...], *, needed: bool = False) -> None:
    if value is None:
        return
    match = _SCHEME.match(value.strip())
    if (match is None and needed) or (match is not None and match[1].lower() not in schemes):
        raise LumaValueError(
            f"{name} must be an address with {' or '.join(schemes)}, which the relay can reach, "
            f"not {value.partition('?')[0]!r:.80}"
        )
