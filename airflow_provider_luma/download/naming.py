"""Names of objects: always below the destination, never shared by two ids."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterable, Iterator, Sequence

from airflow_provider_luma.download.urls import url_suffix
from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.media import MEDIA_KINDS, MediaKind
from airflow_provider_luma.relay.task import LumaTask

_FIELDS = ("id", "prompt", "aspect_ratio", "created_at")
# In lower case, as some file systems are case-insensitive.
_PLAIN = re.compile(r"[a-z0-9_][a-z0-9._-]{0,150}")
_HASHED = re.compile(r".*\.[0-9a-f]{16}")
_MAX_NAME_BYTES = 255
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# By media type, the usual one first.
_SUFFIXES = {
    "video/mp4": (".mp4", ".mov"),
    "video/quicktime": (".mov", ".mp4"),
    "video/webm": (".webm",),
    "image/jpeg": (".jpg", ".jpeg"),
    "image/png": (".png",),
    "image/webp": (".webp",),
}


def parse_name_template(template: str) -> str:
    """
    Validate a name template.

    :raises LumaValueError: when it names an unknown field or leaves the destination.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise LumaValueError(f"name_template {template!r} is not a template: {error}") from None
    if not template.isprintable():
        raise LumaValueError(f"name_template {template!r} has characters that are not printable")
    if any("{" in (spec or "") for _, _, spec, _ in parts):
        raise LumaValueError(f"name_template {template!r} has a field within a field's format")
    fields = {name for _, name, _, _ in parts if name is not None}
    if unknown := fields.difference(_FIELDS):
        raise LumaValueError(
            f"name_template {template!r} has the unknown field {sorted(unknown)[0]!r}; "
            f"there are {', '.join(_FIELDS)}"
        )
    return validate_name("name_template", template)


def validate_name(argument: str, name: str) -> str:
    """
    Validate that a name leads to something below the destination.

    :raises LumaValueError: when it does not, naming the argument.
    """
    if any(segment.strip() in {"", ".", ".."} for segment in name.split("/")) or "\\" in name:
        raise LumaValueError(f"{argument} {name!r} must name something below the destination")
    return name


def parse_manifest_name(name: str) -> str:
    """
    Validate the name of a manifest.

    :raises LumaValueError: when no store can have it below the destination.
    """
    if not name.isprintable() or any(len(part.encode()) > _MAX_NAME_BYTES for part in name.split("/")):
        raise LumaValueError(
            f"manifest {name[:100]!r} must have only printable characters, and at most {_MAX_NAME_BYTES} "
            "bytes between two slashes"
        )
    return validate_name("manifest", name)


def published_names(template: str, tasks: Iterable[LumaTask]) -> set[str]:
    """
    Return all names that downloading these tasks may publish, without capitals.

    :raises LumaValueError: as :func:`object_names` does.
    """
    names: set[str] = set()
    for name in object_names(parse_name_template(template), tasks).values():
        names.add(f"{name}.json".casefold())
        for kind in MEDIA_KINDS:
            names.update(candidate.casefold() for candidate in candidate_names(name, kind, ""))
    return names


def object_names(template: str, tasks: Iterable[LumaTask]) -> dict[str, str]:
    """
    Name the object of each task, without a suffix, keyed by id.

    :raises LumaValueError: when two tasks would get the same name, or one none at all.
    """
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for task, name in _distinct_in_case([(task, _name(template, task)) for task in tasks]):
        if (owner := owners.setdefault(name.casefold(), task.id)) != task.id:
            raise LumaValueError(
                f"name_template {template!r} gives {owner} and {task.id} the same name {name!r}; add {{id}}"
            )
        names[task.id] = name
    return names


def _distinct_in_case(named: Sequence[tuple[LumaTask, str]]) -> Iterator[tuple[LumaTask, str]]:
    """Add a hash to names with capitals where another one is spelt the same but for them."""
    spellings: dict[str, set[str]] = {}
    for _, name in named:
        spellings.setdefault(name.casefold(), set()).add(name)
    for task, name in named:
        if len(spellings[name.casefold()]) > 1 and name != name.casefold():
            name = f"{name}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        yield task, name


def file_name(name: str, kind: MediaKind, url: str, media_type: str) -> str:
    """
    Complete an object's name with what it is.

    :param url: whose suffix is kept when it fits the media type.
    :param media_type: of the content.
    """
    known = _SUFFIXES[media_type]
    suffix = url_suffix(url)
    return _with_suffix(name, kind, suffix if suffix in known else known[0])


def candidate_names(name: str, kind: MediaKind, url: str) -> list[str]:
    """Return all names that :func:`file_name` may give, the most likely one first."""
    prefix = "video/" if kind == "video" else "image/"
    suffixes = [
        suffix for media_type, known in _SUFFIXES.items() if media_type.startswith(prefix) for suffix in known
    ]
    likely = url_suffix(url)
    ordered = sorted(dict.fromkeys(suffixes), key=lambda suffix: suffix != likely)
    return [_with_suffix(name, kind, suffix) for suffix in ordered]


def _with_suffix(name: str, kind: MediaKind, suffix: str) -> str:
    return f"{name}{suffix}" if kind == "video" else f"{name}.{kind}{suffix}"


def _name(template: str, task: LumaTask) -> str:
    values = {
        "id": safe_id(task.id),
        "prompt": _slug(task.prompt),
        "aspect_ratio": _slug(task.aspect_ratio),
        "created_at": task.created_at or _Unknown(),
    }
    try:
        name = template.format_map(values)
    except ValueError as error:
        raise LumaValueError(
            f"name_template {template!r} has a format that its field does not take: {error}. Only created_at "
            "takes one such as %Y-%m-%d"
        ) from None
    # What a format such as {created_at:%Y/%m} makes of a value must not open folders that lead elsewhere.
    segments = [segment for segment in name.split("/") if segment.strip(". ")]
    if not segments:
        raise LumaValueError(f"name_template {template!r} gives {task.id} no name; add {{id}}")
    return "/".join(segments)


def safe_id(task_id: str) -> str:
    """Return a file name that stands for this id and for no other."""
    if _PLAIN.fullmatch(task_id) and not _HASHED.fullmatch(task_id):
        return task_id
    digest = hashlib.sha256(task_id.encode(errors="surrogatepass")).hexdigest()
    return f"{_slug(task_id)}.{digest[:16]}"


def manifest_name(run_id: str, dag_id: str, task_id: str, map_index: int) -> str:
    """Return the name of a run's manifest, which no other run or task shares."""
    owner = "\0".join((dag_id, task_id, run_id, str(map_index)))
    return f"manifest-{_slug(run_id)}-{hashlib.sha256(owner.encode()).hexdigest()[:12]}.jsonl"


def _slug(text: str | None) -> str:
    return _UNSAFE.sub("-", text or "").strip("-")[:80] or "unknown"


class _Unknown:
    """Stands for a time that the relay did not send, in any format."""

    def __format__(self, spec: str) -> str:
        return "unknown"

    __repr__ = __str__ = lambda self: "unknown"
