"""
From a list or a table of prompts to generations, all of them validated before the first is submitted.

A table is read as a stream, a line at a time: JSONL with a text or an object in each line, or CSV with a
header and a row in each line. A cell holds no line break, as a quote that is never closed would otherwise
swallow all rows after it. An error names the line, or the position in the list.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.generation import FIELDS, FLAGS, Generation
from airflow_provider_luma.relay.text import SURROGATE, clean_text, redact_text
from airflow_provider_luma.store_clients import show_url, validate_url

log = logging.getLogger(__name__)

MAX_PROMPTS = 100_000
# An image in Base64 may be part of a line.
MAX_LINE_CHARS = 16 * 1024 * 1024

_MAX_WARNINGS = 20
_QUOTES_HINT = (
    "A cell in quotes ends in its line, and a quote within it is written twice. "
    "Put prompts with line breaks into JSONL"
)
_FLAG_VALUES = {"true": True, "false": False}


def parse_prompts(prompts: Any, defaults: Mapping[str, Any]) -> list[Generation]:
    """
    Read a list of texts and dicts, or a text that holds such a list as JSON.

    :param defaults: the fields of prompts that do not give them.
    :raises LumaValueError: when one of them cannot be sent, naming its position.
    """
    if isinstance(prompts, str):
        prompts = _parse_json(prompts, "prompts is not a list of prompts")
    # Whatever else can be iterated may have no order, or yield names of columns.
    if isinstance(prompts, str | bytes | bytearray) or not isinstance(prompts, Sequence):
        raise LumaValueError(f"prompts must be a list of texts or dicts, not of the type {_type(prompts)}")
    numbered = ((f"prompts[{position}]", prompt) for position, prompt in enumerate(prompts))
    return _build_all(numbered, defaults)


def load_prompts_file(url: str, defaults: Mapping[str, Any]) -> list[Generation]:
    """
    Read a table of prompts from object storage.

    :param url: ends in ``.jsonl``, ``.ndjson`` or ``.csv``.
    :param defaults: the fields of prompts that do not give them.
    :raises LumaValueError: when there is no such table, or a prompt cannot be sent, naming the line.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    validate_url("prompts_path", url)
    shown = show_url(url)
    read = _PARSERS.get(str(url).rpartition(".")[2].lower())
    if read is None:
        raise LumaValueError(f"prompts_path must end in .jsonl, .ndjson or .csv, not {shown}")
    try:
        path: Any = ObjectStoragePath(url)
        # Bytes that are not UTF-8 become lone surrogates, so that the error can name their line.
        file = path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="")
    except FileNotFoundError:
        raise LumaValueError(f"There is no table of prompts at prompts_path {shown}") from None
    except (ValueError, ImportError) as error:
        raise LumaValueError(
            f"No object storage for prompts_path {shown}: {redact_text(str(error))}"
        ) from None
    with file:
        return _build_all(read(file), defaults)


def warn_undocumented(generations: Iterable[Generation]) -> None:
    """Log each value that no documentation knows once, however many prompts have it."""
    found = Counter(message for generation in generations for message in generation.undocumented())
    for message, number in found.most_common(_MAX_WARNINGS):
        log.warning("%d prompts: %s; it is sent nevertheless, as relays differ", number, message)
    if len(found) > _MAX_WARNINGS:
        log.warning("And %d more values that no documentation knows", len(found) - _MAX_WARNINGS)


def _build_all(numbered: Iterable[tuple[str, Any]], defaults: Mapping[str, Any]) -> list[Generation]:
    generations: list[Generation] = []
    for place, prompt in numbered:
        if len(generations) == MAX_PROMPTS:
            raise LumaValueError(f"There are more than {MAX_PROMPTS} prompts; split them into several tasks")
        try:
            generations.append(_build(prompt, defaults))
        except LumaValueError as error:
            raise LumaValueError(f"{place}: {error}") from None
    return generations


def _build(prompt: Any, defaults: Mapping[str, Any]) -> Generation:
    if isinstance(prompt, str):
        prompt = {"prompt": prompt}
    if not isinstance(prompt, Mapping):
        raise LumaValueError(f"a prompt must be a text or a dict of fields, not of the type {_type(prompt)}")
    if unknown := [name for name in prompt if name not in FIELDS]:
        raise LumaValueError(
            f"unknown field {clean_text(str(unknown[0]), 80)!r}; the fields are {', '.join(FIELDS)}"
        )
    given = {name: value for name, value in prompt.items() if value is not None}
    if "prompt" not in given:
        raise LumaValueError("there is no prompt")
    return Generation(**{**defaults, **given})


def _type(value: Any) -> str:
    return type(value).__name__


def _parse_jsonl(file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            place = f"line {number}"
            yield place, _parse_json(line, f"{place} is not JSON")


def _parse_csv(file: IO[str]) -> Iterator[tuple[str, Any]]:
    header: list[str] = []
    for number, line in enumerate(_lines(file), 1):
        place = f"line {number}"
        cells = _parse_row(place, line)
        if not cells:
            continue
        if not header:
            header = cells
            continue
        if len(cells) > len(header) or "" in header:
            raise LumaValueError(f"{place}: it has more values than the header, or a column has no name")
        given = zip(header, cells, strict=False)
        yield place, {name: _parse_cell(place, name, value) for name, value in given if value}


def _parse_row(place: str, line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], strict=True))
    except csv.Error as error:
        hint = f". {_QUOTES_HINT}" if '"' in line else ""
        raise LumaValueError(f"{place}: {error}{hint}") from None


def _parse_cell(place: str, name: str, value: str) -> Any:
    if name in FLAGS:
        return _FLAG_VALUES.get(value.strip().lower(), value)
    if name == "extra_body":
        return _parse_json(value, f"{place}: extra_body is not JSON")
    return value


def _lines(file: IO[str]) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise LumaValueError(f"line {number} has more than {MAX_LINE_CHARS} characters")
        if SURROGATE.search(line):
            raise LumaValueError(f"line {number} is not UTF-8")
        yield line


def _parse_json(text: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LumaValueError(f"{problem}: {clean_text(str(error), 80)}") from None


_PARSERS = {"jsonl": _parse_jsonl, "ndjson": _parse_jsonl, "csv": _parse_csv}
