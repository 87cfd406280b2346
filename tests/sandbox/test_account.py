"""What the sandbox's account pays, refunds and rejects, and how the relay tells it."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from airflow_provider_luma.sandbox import Sandbox
from tests.sandbox.conftest import HandClock
from tests.sandbox.test_submits import submit


def get(sandbox: Sandbox, path: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    return requests.get(f"{sandbox.base_url}{path}", headers=headers, timeout=5)


def usage(sandbox: Sandbox) -> dict[str, Any]:
    body = get(sandbox, "/api/usage/token/").json()
    assert body["code"] is True
    return dict(body["data"])


def test_each_generation_is_charged_its_price() -> None:
    with Sandbox(tasks=0, balance=1, price=0.4) as sandbox:
        assert [submit(sandbox).status_code for _ in range(3)] == [200, 200, 403]
        assert submit(sandbox).json()["message"] == "pre-deduct failed, balance 0.2, needs 0.4"
        assert sandbox.balance == pytest.approx(0.2)
        sandbox.balance = 0.4
        assert submit(sandbox).status_code == 200
        assert sandbox.balance == 0


def test_an_extension_is_charged_too() -> None:
    with Sandbox(tasks=1, balance=1) as sandbox:
        assert submit(sandbox, f"/{sandbox.task_ids[0]}/extend").status_code == 200
        assert sandbox.balance == 0


def test_a_failed_generation_is_refunded_when_it_fails(clock: HandClock) -> None:
    with Sandbox(tasks=0, seconds=10, balance=2, clock=clock) as sandbox:
        submit(sandbox)
        submit(sandbox, user_prompt="blacklisted words")
        assert sandbox.balance == 0
        clock.move(10)
        assert sandbox.balance == 1


def test_a_rejected_prompt_costs_nothing() -> None:
    with Sandbox(tasks=0, balance=1) as sandbox:
        response = submit(sandbox, user_prompt="forbidden words")
        assert (response.status_code, response.json()["code"]) == (400, "sensitive_words_detected")
        assert (sandbox.balance, sandbox.submits) == (1, [])


def test_max_running_limits_unfinished_submits(clock: HandClock) -> None:
    with Sandbox(tasks=3, seconds=10, max_running=2, balance=3, clock=clock) as sandbox:
        assert [submit(sandbox).status_code for _ in range(3)] == [200, 200, 429]
        assert "saturated" in submit(sandbox).json()["message"]
        assert sandbox.balance == 1
        clock.move(10)
        assert submit(sandbox).status_code == 200


def test_the_key_reports_its_balance_in_the_relays_quota() -> None:
    with Sandbox(tasks=0, balance=3, price=0.5) as sandbox:
        submit(sandbox)
        reported = usage(sandbox)
        assert (reported["total_granted"], reported["total_used"], reported["total_available"]) == (
            1_500_000,
            250_000,
            1_250_000,
        )
        assert not reported["unlimited_quota"]
        status = get(sandbox, "/api/status").json()["data"]
        assert (status["quota_per_unit"], status["quota_display_type"]) == (500_000, "USD")


def test_a_key_without_a_limit_has_a_negative_balance() -> None:
    with Sandbox(tasks=0) as sandbox:
        submit(sandbox)
        reported = usage(sandbox)
        assert (reported["unlimited_quota"], reported["total_available"]) == (True, -500_000)


def test_the_keys_balance_may_be_queried_twenty_times_in_twenty_minutes(clock: HandClock) -> None:
    with Sandbox(tasks=0, clock=clock) as sandbox:
        statuses = [get(sandbox, "/api/usage/token/").status_code for _ in range(21)]
        assert statuses == [200] * 20 + [429]
        assert get(sandbox, "/api/usage/token/").content == b""
        clock.move(20 * 60)
        assert get(sandbox, "/api/usage/token/").status_code == 200


@pytest.mark.parametrize(("unit", "limit"), [("USD", 100), ("CNY", 100), ("TOKENS", 100), ("CUSTOM", 1)])
def test_the_older_form_reports_the_limit_and_the_usage_in_cents(unit: str, limit: float) -> None:
    with Sandbox(tasks=0, balance=100, price=20, unit=unit, billing="dashboard") as sandbox:
        submit(sandbox)
        reported = get(sandbox, "/dashboard/billing/subscription").json()
        assert reported["hard_limit_usd"] == pytest.approx(limit)
        assert get(sandbox, "/dashboard/billing/usage").json()["total_usage"] == pytest.approx(20 * limit)
        assert get(sandbox, "/api/usage/token/").status_code == 404
        assert get(sandbox, "/api/pricing").status_code == 404


def test_the_older_form_has_a_number_for_no_limit() -> None:
    with Sandbox(tasks=0, billing="dashboard") as sandbox:
        assert get(sandbox, "/dashboard/billing/subscription").json()["hard_limit_usd"] == 100_000_000


def test_prices_are_reported_in_us_dollars_whatever_the_unit() -> None:
    with Sandbox(tasks=0, price=14, unit="CNY") as sandbox:
        rows = get(sandbox, "/api/pricing").json()["data"]
        assert {row["model_name"]: row["model_price"] for row in rows} == {
            "luma_video_api": 2,
            "luma_video_extend_api": 2,
        }


def test_a_relay_may_have_no_balance_endpoints() -> None:
    with Sandbox(tasks=0, billing=None) as sandbox:
        assert get(sandbox, "/api/usage/token/").status_code == 404
        page = get(sandbox, "/dashboard/billing/subscription")
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")


def test_the_balance_needs_the_key() -> None:
    with Sandbox(tasks=0) as sandbox:
        assert requests.get(f"{sandbox.base_url}/api/usage/token/", timeout=5).status_code == 401
        assert requests.get(f"{sandbox.base_url}/api/status", timeout=5).status_code == 200


def test_wrapped_rows_and_submits_report_the_charge() -> None:
    with Sandbox(tasks=1, price=2, shape="wrapped") as sandbox:
        created = submit(sandbox).json()
        assert created["quota"] == 1_000_000
        rows = requests.post(
            f"{sandbox.base_url}/luma/tasks",
            json={"ids": sandbox.task_ids},
            headers={"Authorization": f"Bearer {sandbox.api_key}"},
            timeout=5,
        ).json()["data"]
        reported = {row["task_id"]: row.get("quota") for row in rows}
        assert reported == {sandbox.task_ids[0]: None, created["id"]: 1_000_000}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("balance", -1),
        ("price", float("nan")),
        ("price", float("inf")),
        ("unit", "EUR"),
        ("billing", "none"),
        ("max_running", -1),
    ],
)
def test_a_wrong_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} (is|must be) "):
        Sandbox(**{option: value})
