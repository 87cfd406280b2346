"""
The administrator's list of what the gallery may show: ``[luma] gallery_paths``.

The URIs of records are stored in XCom, where the author of a Dag may write anything. So a URI only says
*which* object is meant; what the api-server may read, and by which connection, this list alone decides. It is
empty by default, and anything that is not clearly below one of its entries is rejected.

An entry has two parts. What precedes the segment with ``{dag_id}`` is the administrator's own, and may lead
over symbolic links, which are resolved once: when the api-server starts. From there on tasks may put anything
into a local folder, also a link in the place of a Dag's folder.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.store_clients import EXTRAS, show_url, validate_url

SECTION, OPTION = "luma", "gallery_paths"

LOCAL = "local"
DAG_ID = "{dag_id}"
_KINDS = {"file": LOCAL} | EXTRAS

# No store writes such names. Others are served, also those that ``isprintable`` rejects, as a no-break space.
_HOSTILE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_BEFORE_AT = re.compile(":.*@")

# Nothing else is ever served, whatever a store says of its object: no page and no script among them.
_CONTENT_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
}

log = logging.getLogger(__name__)


class Location(NamedTuple):
    """The location of an object: a bucket, or none for a local file, and the segments of its key."""

    kind: str
    bucket: str
    segments: tuple[str, ...]

    @property
    def key(self) -> str:
        return "/".join(self.segments)


@dataclass(frozen=True)
class MediaPath:
    """
    An entry of the list.

    :param conn_id: signs for what is below; ``None`` for the credentials of the api-server's environment.
    :param own_segments: how many of its segments are the administrator's own, which may lead over links.
    """

    location: Location
    conn_id: str | None
    own_segments: int

    def resolve_own_folder(self) -> tuple[str, ...]:
        """Return the segments of the local folder that the administrator's own part led to at first."""
        return _resolve(self.location.segments[: self.own_segments])

    def __contains__(self, location: Location) -> bool:
        mine = self.location
        return (
            (location.kind, location.bucket) == (mine.kind, mine.bucket)
            and len(location.segments) > len(mine.segments)
            and location.segments[: len(mine.segments)] == mine.segments
        )


@cache
def _resolve(segments: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(None, os.path.realpath("/" + "/".join(segments)).split("/")))


def resolve_own_folders() -> None:
    """Resolve the local entries now, so that a link that a task puts there later leads nowhere."""
    for path in get_media_paths("any"):
        if path.location.kind == LOCAL:
            path.resolve_own_folder()


def get_media_paths(dag_id: str) -> list[MediaPath]:
    """Return the entries that hold for a Dag. One that cannot be read holds for none."""
    from airflow.configuration import conf

    return read_media_paths(str(conf.get(SECTION, OPTION, fallback="") or ""), dag_id)


def read_media_paths(setting: str, dag_id: str) -> list[MediaPath]:
    """Read the setting; ``{dag_id}`` stands for the Dag's own folder."""
    paths = []
    for entry in filter(None, map(str.strip, setting.split(","))):
        try:
            paths.append(_read_entry(entry, dag_id))
        except LumaValueError as error:
            log.error("%s (for the Dag %r)", error, dag_id)  # noqa: TRY400 - says all there is to say
    return paths


def _read_entry(entry: str, dag_id: str) -> MediaPath:
    validate_url(f"[{SECTION}] {OPTION}", entry)
    template, parsed = (
        _split(text) for text in (entry.rstrip("/"), entry.rstrip("/").replace(DAG_ID, dag_id))
    )
    own = _count_own_segments(template[0]) if template else 0
    if parsed is None or (parsed[0].kind == LOCAL and not own):
        # The secret of a key may have slashes, so that it is not in the place of a user's.
        shown = show_url(_BEFORE_AT.sub(":…@", entry))
        raise LumaValueError(f"[{SECTION}] {OPTION}: the gallery cannot serve {shown}")
    return MediaPath(*parsed, own)


def _count_own_segments(template: Location) -> int:
    names = template.segments
    return next((at for at, name in enumerate(names) if DAG_ID in name), len(names))


def find_path(location: Location, dag_id: str) -> MediaPath | None:
    """Return the entry that an object is below; ``None`` where it must not be read."""
    return next((path for path in get_media_paths(dag_id) if location in path), None)


def locate(uri: str) -> Location | None:
    """Return where the URI of a record leads. A connection in it counts for nothing."""
    parsed = _split(uri)
    return parsed and parsed[0]


def content_type_of(location: Location) -> str | None:
    """Return the type that an object is served as, by its name; ``None`` for what is never served."""
    return (
        _CONTENT_TYPES.get(PurePosixPath(location.segments[-1]).suffix.lower()) if location.segments else None
    )


def _split(uri: str) -> tuple[Location, str | None] | None:
    """Split a URI as this package writes them: nothing in it is quoted."""
    scheme, separator, rest = uri.partition("://")
    kind = _KINDS.get(scheme)
    authority, _, key = rest.partition("/")
    conn_id, _, bucket = authority.rpartition("@")
    if (
        not separator
        or kind is None
        or _HOSTILE.search(uri)
        or "\\" in uri
        or ":" in bucket
        or (kind == LOCAL) == bool(bucket)
    ):
        return None
    segments = tuple(key.split("/")) if key else ()
    if any(segment in {"", ".", ".."} for segment in segments) or bucket in {".", ".."}:
        return None
    return Location(kind, bucket, segments), conn_id or None
