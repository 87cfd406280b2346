"""Anything that relays send and users write is parsed, or rejected with a message that names the mistake."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from airflow_provider_luma.exceptions import LumaValueError, RelayError
from airflow_provider_luma.relay import LumaTask, TaskBatch, TaskState
from airflow_provider_luma.relay.batch import parse_task_ids
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.relay.media import MEDIA_KINDS
from airflow_provider_luma.relay.responses import parse_rows, parse_task_or_none
from airflow_provider_luma.relay.result import Outcome
from airflow_provider_luma.relay.states import TERMINAL_STATES
from airflow_provider_luma.relay.submit_response import parse_submitted
from airflow_provider_luma.relay.task import parse_tasks
from airflow_provider_luma.relay.transport import RelayResponse
from airflow_provider_luma.relay.validation import parse_base_url
from tests.strategies import JSON, RESPONSES, rejection

PROPERTIES = [name for name in vars(LumaTask) if isinstance(vars(LumaTask)[name], property)]
STATUSES = st.sampled_from(
    [200, 200, 200, 201, 204, 301, 400, 401, 402, 403, 404, 408, 429, 500, 502, 503, 599]
)


def make_response(status, body, headers=()):
    return RelayResponse(status, CaseInsensitiveDict(headers), body, "http://relay.example.com")


@st.composite
def responses(draw):
    body = draw(RESPONSES.map(lambda response: json.dumps(response).encode()) | st.binary(max_size=40))
    kinds = st.sampled_from(
        ["application/json", "text/html", "text/plain", "", "application/json; charset=x"]
    )
    waits = st.one_of(
        st.integers().map(str), st.floats().map(str), st.text(st.characters(codec="latin-1"), max_size=30)
    )
    headers = {"Content-Type": draw(kinds)} | draw(st.fixed_dictionaries({}, optional={"Retry-After": waits}))
    return make_response(draw(STATUSES), body, headers)


@given(responses())
def test_a_response_is_parsed_or_an_error_with_a_message(response):
    for read in (parse_rows, parse_task_or_none, parse_submitted):
        if error := rejection(read, response):
            assert "relay.example.com" in str(error)
            assert error.retry_after is None or 0 <= error.retry_after <= 24 * 3600


@given(RESPONSES)
def test_every_task_that_is_found_can_be_used(response):
    with suppress(RelayError):
        for task_id, task in parse_tasks(
            parse_rows(make_response(200, json.dumps(response).encode()))
        ).items():
            assert task_id == task.id
            assert task.id
            assert task.state in TaskState
            assert (task.failure_reason is None) == (task.state is not TaskState.FAILED)
            for name in PROPERTIES:
                getattr(task, name)
            for kind in MEDIA_KINDS:
                assert (media := task.media(kind)) is None or isinstance(media.url, str | None)


IDS = st.sampled_from("abcdef")
ROUNDS = st.lists(
    st.tuples(st.dictionaries(IDS, st.sampled_from(TaskState)), st.lists(IDS, max_size=6), st.floats(0, 300)),
    max_size=12,
)


@given(st.lists(IDS, min_size=1), ROUNDS, st.floats(0, 300))
def test_a_terminal_id_never_becomes_pending_again_and_none_is_lost(ids, rounds, grace):
    batch, now, ended = TaskBatch(ids, started_at=0, missing_grace=grace), 0.0, {}
    for states, requested, seconds in rounds:
        now += seconds
        responded = {task_id: LumaTask(task_id, state) for task_id, state in states.items()}
        still_open = set(batch.pending_ids)
        batch.update(requested, responded, now=now)
        for task_id in still_open.difference(batch.pending_ids):
            ended[task_id] = states.get(task_id)
            assert ended[task_id] is None or ended[task_id] in TERMINAL_STATES
        assert ended.keys().isdisjoint(batch.pending_ids)
        result = batch.result
        assert set(result.failed) == {i for i, state in ended.items() if state is TaskState.FAILED}
        assert set(result.missing) == {i for i, state in ended.items() if state is None}
        assert set(result.running) == set(ids) - ended.keys()
        assert result.completed_count == list(ended.values()).count(TaskState.COMPLETED)
        for policy in ("any", "all", "never"):
            assert (result.outcome(policy) is Outcome.RUNNING) == bool(result.running)
        again = TaskBatch.load(ids, json.loads(json.dumps(batch.dump())), missing_grace=grace)
        assert again.dump() == batch.dump()
        assert again.result.summary() == result.summary()


@given(JSON | st.text().map(lambda text: f"[{text}]") | st.lists(st.text()))
def test_ids_are_parsed_or_rejected(value):
    with suppress(LumaValueError):
        ids = parse_task_ids(value)
        assert all(isinstance(task_id, str) and task_id == task_id.strip() != "" for task_id in ids)
        assert len(ids) == len(set(ids))


@given(st.text() | st.from_regex(r"(https?://)?[\w.@:/\[\]-]{0,30}"), st.none() | st.integers(-1, 99999))
def test_a_host_is_parsed_or_rejected(host, port):
    with suppress(LumaValueError):
        url = parse_base_url(host, port)
        assert url.startswith(("https://", "http://"))
        assert "@" not in url.split("/")[2]
        assert not url.endswith("/")


FIELDS = {name: JSON for name in Generation.__dataclass_fields__ if name != "prompt"}


@given(JSON | st.text(min_size=3), st.fixed_dictionaries({}, optional=FIELDS))
def test_a_generation_is_valid_or_rejected(prompt, fields):
    with suppress(LumaValueError):
        generation = Generation(prompt, **fields)
        assert generation.path.startswith("/luma/generations")
        assert ".." not in generation.path.split("/")
        assert json.loads(json.dumps(generation.body))["user_prompt"] == generation.prompt
