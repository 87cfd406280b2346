"""The files of a Luma task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from airflow_provider_luma.relay.row import Json, finite_number, is_valid_url

MediaKind: TypeAlias = Literal["video", "thumbnail", "last_frame"]
MEDIA_KINDS: tuple[MediaKind, ...] = ("video", "thumbnail", "last_frame")

_MAX_PIXELS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Media:
    """
    One file of a task.

    :param url: where to fetch it; ``None`` while the relay has none. May be presigned, so never log it.
    :param width: in pixels.
    :param height: in pixels.
    """

    url: str | None
    width: int | None = None
    height: int | None = None


def parse_media(parts: list[Json], links: Iterable[Any]) -> Media | None:
    url = next(filter(is_valid_url, links), None)
    if not parts and url is None:
        return None
    return Media(url, _first_size(parts, "width"), _first_size(parts, "height"))


def _first_size(parts: Iterable[Json], name: str) -> int | None:
    sizes = (finite_number(part.get(name), _MAX_PIXELS) for part in parts)
    return next((int(size) for size in sizes if size), None)
