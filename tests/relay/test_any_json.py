"""Any JSON that a relay responds with is parsed or rejected with a message; nothing else is ever raised."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_provider_luma.exceptions import RelayError
from airflow_provider_luma.relay.states import TaskState
from airflow_provider_luma.relay.task import LumaTask, parse_tasks

SEED = json.loads(Path(__file__).with_name("seed_answer.json").read_text())[0]
WRAPPED = {
    "id": 13917,
    "task_id": SEED["id"],
    "status": "FAILURE",
    "created_at": 1719819313,
    "fail_reason": "moderated",
    "data": SEED,
}
VALUES = json.loads(
    '[null, true, 0, -1, 1.5, 1e999, NaN, 1e300, "", "x", "12::1.5", 1734874720, "\\ud800", [],'
    '[null], {}, {"url": {}}, {"id": [], "width": 1e999}]'
)
PROPERTIES = [name for name in vars(LumaTask) if isinstance(vars(LumaTask)[name], property)]


def places(value, path=()):
    """Yield the path of each value in a JSON document."""
    yield path
    if isinstance(value, dict):
        for key, child in value.items():
            yield from places(child, (*path, key))


def changed(document, path, value):
    """Give a copy with another value in this place."""
    if not path:
        return value
    document = copy.deepcopy(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return document


@pytest.mark.parametrize("row", [SEED, WRAPPED], ids=["bare", "wrapped"])
def test_any_value_in_any_place_of_a_row_is_parsed(row):
    for path in places(row):
        for value in VALUES:
            for task in parse_tasks([changed(row, path, value)]).values():
                assert task.state in TaskState
                assert [getattr(task, name) for name in PROPERTIES] + [repr(task), task.media("video")]


@pytest.mark.parametrize("row", [SEED, WRAPPED], ids=["bare", "wrapped"])
def test_any_key_may_be_missing(row):
    for path in places(row):
        if path:
            short = copy.deepcopy(row)
            holder = short
            for key in path[:-1]:
                holder = holder[key]
            del holder[path[-1]]
            for task in parse_tasks([short]).values():
                assert [getattr(task, name) for name in PROPERTIES]


@pytest.mark.parametrize("status", [200, 400, 429, 500])
@pytest.mark.parametrize(
    "envelope",
    [
        {"code": "success", "message": "", "data": [SEED]},
        {"code": "task_gone", "message": "gone", "data": None},
        {"error": {"message": "no", "type": "new_api_error", "code": ""}},
        {"detail": {"reason": "no", "code": 1}},
    ],
    ids=["wrapped", "E2", "E1", "E3"],
)
def test_any_value_in_any_place_of_an_envelope_is_parsed_or_rejected(query, envelope, status):
    paths = [path for path in places(envelope) if len(path) < 3]
    for value in VALUES:
        for path in paths:
            with suppress(RelayError):
                assert isinstance(query(status, json.dumps(changed(envelope, path, value))), dict)
