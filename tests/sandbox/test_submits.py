"""What the sandbox does with submits: a task, a charge, or neither."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedResponse


def submit(sandbox: Sandbox, path: str = "", **body: Any) -> requests.Response:
    return requests.post(
        f"{sandbox.base_url}/luma/generations{path}",
        json={"user_prompt": "cat dance"} | body,
        headers={"Authorization": f"Bearer {sandbox.api_key}"},
        timeout=5,
    )


def single(sandbox: Sandbox, task_id: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    return requests.get(f"{sandbox.base_url}/luma/generations/{task_id}", headers=headers, timeout=5)


def test_one_task_is_queried_by_its_path() -> None:
    with Sandbox(tasks=1, seconds=0, fail=0) as sandbox:
        response = single(sandbox, sandbox.task_ids[0]).json()
        assert (response["id"], response["state"]) == (sandbox.task_ids[0], "completed")
        unknown = single(sandbox, "nobody")
        assert (unknown.status_code, unknown.json()["code"]) == (400, "task_not_exist")


def test_a_video_is_extended_by_another_task() -> None:
    with Sandbox(tasks=1) as sandbox:
        assert submit(sandbox, f"/{sandbox.task_ids[0]}/extend").json()["id"] == sandbox.task_ids[1]
        assert submit(sandbox, "/nobody/extend").json()["code"] == "task_not_exist"
        assert len(sandbox.submits) == 1


def test_a_submit_without_balance_is_rejected() -> None:
    with Sandbox(tasks=0, balance=2) as sandbox:
        assert [submit(sandbox).status_code for _ in range(3)] == [200, 200, 403]
        assert submit(sandbox).json()["code"] == "insufficient_user_quota"
        assert len(sandbox.submits) == len(sandbox.task_ids) == 2


@pytest.mark.parametrize(
    ("fault", "status", "charges"),
    [("submits_rate_limited", 429, 0), ("submits_unavailable", 503, 0), ("submits_bad_gateway", 502, 1)],
)
def test_a_fault_applies_before_or_after_the_charge(fault: str, status: int, charges: int) -> None:
    with Sandbox(tasks=0, faults=Faults(**{fault: 1})) as sandbox:
        assert submit(sandbox).status_code == status
        assert len(sandbox.submits) == charges


def test_a_submit_may_be_charged_and_get_no_response() -> None:
    with Sandbox(tasks=0, faults=Faults(submits_response_lost=1)) as sandbox:
        with pytest.raises(requests.ConnectionError):
            submit(sandbox)
        assert len(sandbox.submits) == 1


@pytest.mark.parametrize("created", [False, True])
def test_submits_can_be_scripted(created: bool) -> None:
    with Sandbox(tasks=0) as sandbox:
        sandbox.script_submits(ScriptedResponse(status=418), created=created)
        assert submit(sandbox).status_code == 418
        assert len(sandbox.submits) == created


def test_a_prompt_with_a_certain_word_fails() -> None:
    with Sandbox(tasks=0, seconds=0) as sandbox:
        task_id = submit(sandbox, user_prompt="blacklisted words").json()["id"]
        response = single(sandbox, task_id).json()
        assert (response["state"], response["failure_reason"]) == (
            "failed",
            "Prompt contains blacklisted words",
        )
