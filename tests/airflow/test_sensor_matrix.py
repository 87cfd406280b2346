"""The same outcome and the same XComs in every mode, shown by whole DAG runs against a real relay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from tests.airflow.harness import AIRFLOW, run_source
from tests.airflow.sensor_harness import Wait, ended, responses, summary

pytestmark = pytest.mark.usefixtures("airflow_db")


def test_all_complete_at_once(wait: Wait, sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    run = wait(ids)
    assert ended(run, "success")
    assert run.xcom("wait") == ids
    assert run.xcom("wait", "luma_summary") == summary(3)
    assert len(sandbox.requests) == 1


def test_complete_later(wait: Wait, sandbox: Sandbox) -> None:
    slow, quick = sandbox.add_task(seconds=0.8), sandbox.add_task(seconds=0)
    run = wait([slow, quick])
    assert ended(run, "success")
    assert run.xcom("wait") == [slow, quick]
    assert run.xcom("wait", "luma_summary") == summary(2)


def test_only_pending_ids_are_queried_again(wait: Wait, connect: Callable[..., None], mode: str) -> None:
    requests: list[Any] = []
    with Sandbox(tasks=0, clock=lambda: len(requests)) as sandbox:  # time passes from poll to poll
        requests = sandbox.requests
        connect(sandbox)
        slow, quick = sandbox.add_task(seconds=3), sandbox.add_task(seconds=0)
        wait([slow, quick])
    first, *later = [request.ids for request in requests]
    assert first == [slow, quick]
    remembers = mode != "reschedule" or AIRFLOW >= (3, 3)  # what was found outlasts a process from 3.3 on
    assert later == [[slow] if remembers else [slow, quick]] * 3


def test_ten_thousand_ids_are_a_hundred_requests(wait: Wait, sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(10_000)]
    run = wait(ids)
    assert run.xcom("wait") == ids
    assert [len(request.ids or ()) for request in sandbox.requests] == [100] * 100


def test_both_response_shapes_mean_the_same(wait: Wait, connect: Callable[..., None]) -> None:
    with Sandbox(tasks=0, shape="wrapped") as sandbox:
        connect(sandbox)
        failed, good = (
            sandbox.add_task(seconds=0.4, failure_reason="moderation"),
            sandbox.add_task(seconds=0.4),
        )
        run = wait([failed, good, "no-such-task"], missing_grace=0.3, fail_when="never")
    assert ended(run, "success")
    assert run.xcom("wait") == [good]
    assert run.xcom("wait", "luma_summary") == summary(
        1, failed={failed: "moderation"}, missing=["no-such-task"]
    )


@pytest.mark.parametrize(
    ("fail_when", "state", "failing"),
    [
        ("any", "failed", 1),
        ("all", "success", 1),
        ("never", "success", 1),
        ("any", "failed", 2),
        ("all", "failed", 2),
        ("never", "success", 2),
    ],
)
def test_failed_generations_respect_fail_when(
    wait: Wait, sandbox: Sandbox, fail_when: str, state: str, failing: int
) -> None:
    ids = [
        sandbox.add_task(seconds=0.2, failure_reason="blacklisted word" if n < failing else None)
        for n in range(2)
    ]
    run = wait(ids, fail_when=fail_when)
    assert ended(run, state)
    assert run.xcom("wait", "luma_summary") == summary(
        2 - failing, failed=dict.fromkeys(ids[:failing], "blacklisted word")
    )
    assert run.xcom("wait") == (ids[failing:] if state == "success" else None)


def test_a_failure_found_before_others_complete_is_kept(wait: Wait, sandbox: Sandbox) -> None:
    failed, slow = sandbox.add_task(seconds=0, failure_reason="moderation"), sandbox.add_task(seconds=0.8)
    run = wait([failed, slow], fail_when="never")
    assert ended(run, "success")
    assert run.xcom("wait") == [slow]
    assert run.xcom("wait", "luma_summary") == summary(1, failed={failed: "moderation"})


def test_fail_fast_does_not_wait_for_the_rest(wait: Wait, sandbox: Sandbox) -> None:
    failed, endless = (
        sandbox.add_task(seconds=0.4, failure_reason="moderation"),
        sandbox.add_task(seconds=math.inf),
    )
    run = wait([failed, endless], fail_fast=True)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(0, failed={failed: "moderation"}, running=[endless])


def test_an_id_may_be_unknown_for_a_while(wait: Wait, sandbox: Sandbox) -> None:
    late = sandbox.add_task(seconds=0, visible_after=0.7)
    run = wait([late], missing_grace=20)
    assert ended(run, "success")
    assert run.xcom("wait") == [late]


def test_an_id_that_stays_unknown_is_missing(wait: Wait, sandbox: Sandbox) -> None:
    there, nowhere = sandbox.add_task(seconds=0), "no-such-task"
    run = wait([there, nowhere], missing_grace=0.5)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(1, missing=[nowhere])


def test_missing_ids_respect_fail_when(wait: Wait, sandbox: Sandbox) -> None:
    there, nowhere = sandbox.add_task(seconds=0), "no-such-task"
    run = wait([nowhere, there], missing_grace=0, fail_when="all")
    assert ended(run, "success")
    assert run.xcom("wait") == [there]


def test_timeout_fails_without_a_retry_and_reports_progress(wait: Wait, sandbox: Sandbox) -> None:
    done, endless = sandbox.add_task(seconds=0), sandbox.add_task(seconds=math.inf)
    run = wait([done, endless], timeout=0.7)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(1, running=[endless])


@pytest.mark.parametrize("details", [{"headers": {"Retry-After": "1"}}, {}], ids=["retry_after", "bare"])
def test_a_rate_limit_is_no_failure(wait: Wait, sandbox: Sandbox, details: dict[str, Any]) -> None:
    ids = [sandbox.add_task(seconds=0)]
    sandbox.script(*responses(429, 429, **details))
    run = wait(ids)
    assert ended(run, "success")
    assert run.xcom("wait") == ids
    pauses = [b.at - a.at for a, b in zip(sandbox.requests, sandbox.requests[1:], strict=False)]
    assert min(pauses) >= (1 if details else 0.2)


def test_a_burst_of_server_errors_is_retried(wait: Wait, sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0)]
    sandbox.script(*responses(500, 502, 503))
    run = wait(ids)
    assert ended(run, "success")
    assert run.xcom("wait") == ids


@pytest.mark.usefixtures("quick_retries")
def test_lasting_transient_errors_fail_with_airflows_retries(wait: Wait, sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0)]
    sandbox.script(*responses(*[503] * 50))
    assert ended(wait(ids), "failed", tries=2)


@pytest.mark.usefixtures("quick_retries")
def test_a_retry_resumes_after_transient_errors(wait: Wait, sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0)]
    sandbox.script(*responses(503, 503, 503))
    run = wait(ids)
    assert ended(run, "success", tries=2)
    assert run.xcom("wait") == ids


@pytest.mark.parametrize("before", [0, 2], ids=["at_once", "in_the_middle"])
@pytest.mark.parametrize("status", [401, 402, 403, 400, 404])
def test_a_permanent_error_fails_at_once_without_retries(
    wait: Wait, sandbox: Sandbox, before: int, status: int
) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    running = {"id": endless, "state": "processing"}
    sandbox.script(*[ScriptedResponse(body=[running])] * before, *responses(status, status, status))
    run = wait([endless])
    assert ended(run, "failed")
    assert len(sandbox.requests) == before + 1
    assert run.xcom("wait", "luma_summary") == summary(0, running=[endless])


@pytest.mark.usefixtures("quick_retries")
def test_web_pages_are_transient_errors(wait: Wait, sandbox: Sandbox) -> None:
    page = ScriptedResponse(body="<!doctype html><title>Dashboard</title>", content_type="text/html")
    ids = [sandbox.add_task(seconds=0)]
    sandbox.script(page)
    assert ended(wait(ids), "success")
    sandbox.script(*[page] * 50)
    assert ended(wait(ids), "failed", tries=2)


def test_each_failure_is_logged_once(
    wait: Wait, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = sandbox.add_task(seconds=0, failure_reason="moderation")
    wait([failed, sandbox.add_task(seconds=0)], fail_when="all")
    assert capsys.readouterr().out.count(f"{failed}: moderation") == 1


POLICIES = ["soft_fail", "never_fail", "silent_fail"]


@pytest.mark.parametrize(
    ("policy", "state"), [("soft_fail", "skipped"), ("never_fail", "skipped"), ("silent_fail", "failed")]
)
def test_policies_on_a_failed_generation(wait: Wait, sandbox: Sandbox, policy: str, state: str) -> None:
    failed = sandbox.add_task(seconds=0.4, failure_reason="moderation")
    run = wait([failed], **{policy: True})
    assert ended(run, state)
    assert run.xcom("wait", "luma_summary") == summary(0, failed={failed: "moderation"})


@pytest.mark.parametrize(
    ("policy", "state"), [("soft_fail", "skipped"), ("never_fail", "skipped"), ("silent_fail", "failed")]
)
def test_policies_on_a_timeout(wait: Wait, sandbox: Sandbox, policy: str, state: str) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    run = wait([endless], timeout=0.7, **{policy: True})
    assert ended(run, state)
    assert run.xcom("wait", "luma_summary") == summary(0, running=[endless])


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("before", [0, 1], ids=["at_once", "in_the_middle"])
@pytest.mark.parametrize(
    ("policy", "state", "tries"),
    [("soft_fail", "failed", 2), ("never_fail", "skipped", 1), ("silent_fail", "success", 1)],
)
def test_policies_on_transient_errors(
    wait: Wait, sandbox: Sandbox, policy: str, state: str, tries: int, before: int
) -> None:
    quick = sandbox.add_task(seconds=0)
    running = {"id": quick, "state": "processing"}
    sandbox.script(*[ScriptedResponse(body=[running])] * before, *responses(*[503] * 6))
    assert ended(wait([quick], **{policy: True}), state, tries)


def test_an_empty_list_succeeds_at_once_without_a_request(wait: Wait, sandbox: Sandbox) -> None:
    run = wait([])
    assert ended(run, "success")
    assert run.xcom("wait") == []
    assert run.xcom("wait", "luma_summary") == summary(0)
    assert sandbox.requests == []


@pytest.mark.parametrize("given", [[17], {"a": 1}, ["x", None], 17, "[broken"])
def test_an_invalid_list_of_ids_fails_before_any_request(wait: Wait, sandbox: Sandbox, given: Any) -> None:
    assert ended(wait(given), "failed")
    assert sandbox.requests == []


def test_backoff_and_max_wait_space_polls_alike(wait: Wait, sandbox: Sandbox) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    run = wait([endless], timeout=6.4, poke_interval=2, exponential_backoff=True, max_wait=2)
    assert ended(run, "failed")
    assert 3 <= len(sandbox.requests) <= 6  # the grid of the triggerer may bring one more


def test_a_mapped_sensor_leaves_the_first_poll_to_the_triggerer(sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0) for _ in range(5)]
    run = run_source(
        "mapped",
        f"""
        from airflow.sdk import DAG
        from airflow_provider_luma.sensors.luma import LumaTaskSensor

        with DAG("mapped", schedule=None) as dag:
            LumaTaskSensor.partial(
                task_id="wait", deferrable=True, poke_interval=0.3
            ).expand(luma_task_ids={ids!r})
        """,
    )
    assert set(run.states.values()) == {"success"}
    assert [run.xcom("wait", map_index=index) for index in range(5)] == [[task_id] for task_id in ids]
    # dag.test() runs one trigger after the other, so that nothing can be shared here.
    assert sorted(request.ids or [] for request in sandbox.requests) == sorted([task_id] for task_id in ids)


@pytest.mark.parametrize("number", [1000, 1001])
def test_mysql_warning_above_1000_ids(
    connect: Callable[..., None], capsys: pytest.CaptureFixture[str], number: int
) -> None:
    requests: list[Any] = []
    with Sandbox(tasks=0, clock=lambda: len(requests)) as sandbox:  # the first poll asks ten or eleven times
        requests = sandbox.requests
        connect(sandbox)
        ids = [sandbox.add_task(seconds=12) for _ in range(number)]
        run_source(
            "large",
            f"""
            from airflow.sdk import DAG
            from airflow_provider_luma.sensors.luma import LumaTaskSensor

            with DAG("large", schedule=None) as dag:
                LumaTaskSensor(task_id="wait", deferrable=True, poke_interval=0.5, luma_task_ids={ids!r})
            """,
        )
    assert ("MySQL" in capsys.readouterr().out) == (number > 700)
