"""Which task a response to a submit names: without a server, as only its JSON matters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

from airflow_provider_luma.exceptions import RelayInvalidRequestError, SubmitOutcomeUnknownError
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.relay.submit_response import parse_submitted
from airflow_provider_luma.relay.task import LumaTask, parse_task
from airflow_provider_luma.relay.transport import RelayResponse

ID = "4665a07c-7641-4809-a133-10786201bb56"
OTHER = "9d4b7516-77e5-481a-b015-48313946f33b"


def parse(body: Any, status: int = 200, extended_id: str | None = None) -> LumaTask:
    headers = CaseInsensitiveDict({"Content-Type": "application/json"})
    response = RelayResponse(status, headers, json.dumps(body).encode(), "http://relay.example")
    return parse_submitted(response, extended_id=extended_id)


@pytest.mark.parametrize(
    "body",
    [
        {"id": ID, "state": "pending", "_id": "507f1f77bcf86cd799439011"},
        {"_id": "507f1f77bcf86cd799439011", "id": ID, "state": "pending"},
        {"task_id": ID, "taskId": None},
        {"taskId": None, "task_id": ID},
        {"id": ID, "state": "queued", "output": {"id": "asset_1"}},
        {"id": ID, "state": "queued", "response": {"id": "resp_0a1"}},
        {"id": ID, "state": "queued", "result": {"id": "asset_1"}},
        {"status": "success", "id": "req-17", "data": {"result": {"id": ID}}},
    ],
)
def test_only_the_id_of_the_task_is_its_id(body: Any) -> None:
    assert parse(body).id == ID


@pytest.mark.parametrize(
    "row",
    [
        {"task_id": ID, "data": {"id": OTHER, "task_id": OTHER, "state": "pending"}},
        {"id": 17, "task_id": ID, "status": "SUBMITTED", "data": {"id": OTHER, "state": "pending"}},
        {"id": OTHER, "status": "queued", "data": {"id": ID, "state": "pending"}},
    ],
)
def test_a_submit_and_a_query_give_a_row_the_same_id(row: Any) -> None:
    queried = parse_task(row)
    assert queried
    assert parse({"code": "success", "message": "", "data": row}).id == parse(row).id == queried.id == ID


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"code": 500, "message": "no available channel", "id": "job-8f2a91"}),
        (200, {"code": "500", "message": "no available channel", "id": "job-8f2a91"}),
        (200, {"code": "get_channel_failed", "message": "no channel", "id": "job-8f2a91"}),
        (200, {"code": "server_error", "message": "busy", "data": {"id": "log_8812", "created": 1}}),
        (200, {"code": "fail", "message": "upstream busy", "data": {"id": 13917}}),
        (200, {"id": "job-8f2a91", "errors": [{"message": "bad"}]}),
        (200, {"id": "job-8f2a91", "success": "false", "message": "x"}),
        (200, {"status": "error", "message": "no available channel", "id": "job-8f2a91"}),
        (200, {"id": "req_8f2a91", "error": "no available channel"}),
        (200, {"id": "request-8f2a91"}),
        (500, {"id": "job-8f2a91", "msg": "boom", "code": 7}),
        (500, {"id": "job-8f2a91", "title": "Internal Server Error", "status": 500}),
        (503, {"id": "job-8f2a91", "error_message": "Internal"}),
        (400, {"code": "success", "message": "", "data": "luma_gen_abc123"}),
        (402, {"code": "success", "message": "", "data": {"id": "luma_gen_abc123"}}),
        (400, {"code": "webhook_failed", "message": "no webhook", "data": {"id": "luma_gen_abc123"}}),
    ],
)
def test_an_id_that_may_be_the_requests_leaves_the_outcome_unknown(status: int, body: Any) -> None:
    with pytest.raises(SubmitOutcomeUnknownError) as caught:
        parse(body, status)
    assert json.dumps(body) in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"id": "job-8f2a91", "error": "prompt was shortened"},
        {"id": "job-8f2a91", "code": "accepted", "message": "queued"},
        {"id": "job-8f2a91", "status": "error_free", "message": "queued"},
        {"code": "accepted", "message": "queued", "data": {"id": "job-8f2a91"}},
    ],
)
def test_an_id_beside_a_remark_is_the_tasks(body: Any) -> None:
    assert parse(body).id == "job-8f2a91"


@pytest.mark.parametrize(
    "word",
    [
        *(
            "error",
            "ERROR",
            "N/A",
            "na",
            "unknown",
            "pending",
            "IN_PROGRESS",
            "in queue",
            "success",
            "failed",
        ),
        *("task_not_exist", "not found", "submit-failed", "invalid_request", "none"),
    ],
)
@pytest.mark.parametrize("key", ["task_id", "generation_id", "id"])
def test_a_state_or_an_error_in_words_is_no_id(key: str, word: str) -> None:
    with pytest.raises(SubmitOutcomeUnknownError):
        parse({key: word, "message": "no channel"})
    assert parse({"task_id": word, "data": {"id": ID}}).id == ID


@pytest.mark.parametrize("task_id", ["luma_gen_abc123", "error-404-cats", "abcdef", "pending7c41a8", "nano"])
def test_an_id_in_words_is_an_id(task_id: str) -> None:
    assert parse({"task_id": task_id}).id == task_id


@pytest.mark.parametrize("data", ["queued-2", "pending_17", "submitted 3", "processing.100", "queued2"])
def test_a_place_in_a_queue_is_no_id(data: str) -> None:
    with pytest.raises(SubmitOutcomeUnknownError):
        parse({"code": "success", "data": data})


@pytest.mark.parametrize(
    "body", [{"task_id": ID, "data": {"id": 77}}, {"id": ID, "data": {"id": 77}}, {"task_id": ID, "id": 77}]
)
def test_a_row_beside_the_extended_task_is_no_task(body: Any) -> None:
    with pytest.raises(SubmitOutcomeUnknownError):
        parse(body, extended_id=ID)


def test_a_number_beside_an_empty_id_is_an_id() -> None:
    assert parse({"task_id": "", "data": {"id": 77}}).id == "77"


@pytest.mark.parametrize(
    ("body", "task_id"),
    [({"id": ID, "data": {"task_id": 778899}}, "778899"), ({"code": 0, "data": {"id": 77}}, "77")],
)
def test_a_number_may_be_the_task_that_extends(body: Any, task_id: str) -> None:
    assert parse(body, extended_id=ID).id == task_id


@pytest.mark.parametrize("spelling", [ID, ID.upper(), f" {ID}\n", ID.replace("-", "")])
@pytest.mark.parametrize("echo", [ID, f" {ID}", ID.upper()])
def test_the_extended_task_is_known_in_each_spelling(spelling: str, echo: str) -> None:
    body = {"code": "invalid_request", "message": "not completed", "data": {"task_id": echo}}
    with pytest.raises(RelayInvalidRequestError, match="not completed"):
        parse(body, 400, extended_id=spelling)


def test_blanks_around_the_task_to_extend_are_not_sent() -> None:
    assert Generation("and on", extend_task_id=f" {ID}\n").path == f"/luma/generations/{ID}/extend"
