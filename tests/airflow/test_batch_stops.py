"""What stops a batch and what does not, at a relay that judges each prompt and each query by itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.airflow_exceptions import LumaNonRetryableError
from airflow_provider_luma.exceptions import RelayTransientError
from airflow_provider_luma.submit.batch import MAX_REJECTIONS
from tests.airflow.generate_harness import BatchTask, Store
from tests.serving import Quiet, serving

Response = tuple[int, Any]

CATS = [f"cat {number}" for number in range(12)]
NO = (403, {"message": "computer says no"})
SATURATED = (429, {"code": "x", "message": "group upstream load saturated"})
PAGE = (200, "<html>We are deploying</html>")


class Relay:
    """
    A relay that creates a task for each prompt.

    :ivar judge: takes a prompt, and returns the response where it is another.
    :ivar get: takes the path of a query, and returns the response; 404 where it returns ``None``.
    """

    def __init__(self) -> None:
        self.judge: Callable[[str], Response | None] = lambda prompt: None
        self.get: Callable[[str], Response | None] = lambda path: None
        self.prompts: list[str] = []
        self.created: list[str] = []

    def submit(self, prompt: str) -> Response:
        self.prompts.append(prompt)
        response = self.judge(prompt)
        if response is None:
            self.created.append(prompt)
            response = (200, {"id": f"id-of-{prompt.replace(' ', '-')}", "state": "pending"})
        return response

    def query(self, path: str) -> Response:
        return self.get(path) or (404, {"error": {"message": "Invalid URL"}})


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    relay = Relay()

    class Handler(Quiet):
        def do_POST(self) -> None:
            self._send(*relay.submit(self.read_json()["user_prompt"]))

        def do_GET(self) -> None:
            self._send(*relay.query(self.path))

        def _send(self, status: int, body: Any) -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(Handler) as url:
        connection = {"conn_type": "luma", "host": url, "password": "sk-0123456789"}
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json.dumps(connection))
        yield relay


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "task_state.json")


def ids_of(prompts: list[str]) -> list[str]:
    return [f"id-of-{prompt.replace(' ', '-')}" for prompt in prompts]


@pytest.mark.parametrize(
    "rejection",
    [
        (404, "<html>not found</html>"),
        *((status, {"message": "no"}) for status in (403, 404, 405, 407, 410)),
        (200, {"code": "access_denied", "message": "no"}),
    ],
    ids=str,
)
def test_a_rejection_that_every_submit_meets_stops_the_batch_after_a_few(
    relay: Relay, store: Store, rejection: Response
) -> None:
    relay.judge = lambda prompt: rejection
    task = BatchTask(store, prompts=CATS, max_parallel=1)
    with pytest.raises(
        LumaNonRetryableError, match=r"3 submits in a row were rejected.* The last one: The r"
    ):
        task.run()
    assert relay.prompts == CATS[:MAX_REJECTIONS]
    assert (list(task.submits["rejected"]), task.submits["not_submitted"]) == (["0", "1", "2"], 9)
    relay.judge = lambda prompt: None
    assert task.run() == ids_of(CATS)
    assert Counter(relay.created) == Counter(CATS)


def test_only_submits_that_are_under_way_follow_the_last_of_such_rejections(
    relay: Relay, store: Store
) -> None:
    relay.judge = lambda prompt: (404, "<html>not found</html>")
    with pytest.raises(LumaNonRetryableError, match="Is this host a Luma relay"):
        BatchTask(store, prompts=[f"cat {number}" for number in range(1500)], max_parallel=8).run()
    assert len(relay.prompts) < MAX_REJECTIONS + 8


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_short_batch_of_nothing_but_such_rejections_fails_by_them(
    relay: Relay, store: Store, prompts: int
) -> None:
    relay.judge = lambda prompt: NO
    with pytest.raises(LumaNonRetryableError, match="computer says no"):
        BatchTask(store, prompts=CATS[:prompts], fail_when="never").run()


def test_a_prompt_that_is_rejected_in_unknown_words_does_not_stop_the_others(
    relay: Relay, store: Store
) -> None:
    bad = [CATS[position] for position in (0, 1, 3, 6, 7)]
    good = [prompt for prompt in CATS if prompt not in bad]
    relay.judge = lambda prompt: NO if prompt in bad else None
    task = BatchTask(store, prompts=CATS, max_parallel=1)
    assert task.run_without_recording() == ids_of(good)
    assert list(task.submits["rejected"]) == ["0", "1", "3", "6", "7"]
    relay.judge = lambda prompt: None
    assert task.run() == ids_of(CATS)
    assert Counter(relay.created) == Counter(CATS)


def test_any_number_of_prompts_may_be_rejected_for_their_content(relay: Relay, store: Store) -> None:
    relay.judge = lambda prompt: (403, {"message": "输入内容包含敏感词"}) if prompt != CATS[-1] else None
    task = BatchTask(store, prompts=CATS, max_parallel=1)
    assert task.run() == ids_of(CATS[-1:])
    assert len(task.submits["rejected"]) == 11


def test_a_prompt_that_always_meets_a_rate_limit_does_not_hold_up_the_others(
    relay: Relay, store: Store, quick_retries: Any
) -> None:
    def judge(prompt: str) -> Response | None:
        return SATURATED if prompt == CATS[0] and len(relay.created) < 11 else None

    relay.judge = judge
    assert BatchTask(store, prompts=CATS, max_parallel=1).run() == ids_of(CATS)
    assert relay.prompts == [*CATS, CATS[0]]


def test_prompts_that_met_a_rate_limit_are_tried_again_in_their_order(
    relay: Relay, store: Store, quick_retries: Any
) -> None:
    relay.judge = lambda prompt: SATURATED if len(relay.prompts) <= 15 else None
    BatchTask(store, prompts=CATS, max_parallel=1).run()
    assert relay.created == [*CATS[3:], *CATS[:3]]


def test_one_id_for_two_prompts_is_warned_of(
    relay: Relay, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    twice = (200, {"id": "id-of-cat-1", "state": "pending"})
    relay.judge = lambda prompt: twice if prompt == CATS[3] else None
    BatchTask(store, prompts=CATS[:5], max_parallel=1).run()
    warnings = [message for message in caplog.messages if "the id of another prompt" in message]
    assert len(warnings) == 1
    assert "1 and 3 (id-of-cat-1)" in warnings[0]


STATUS = (200, {"success": True, "data": {"quota_per_unit": 500_000, "quota_display_type": "USD"}})


def key_with(quota: int) -> Response:
    return 200, {"code": True, "data": {"total_available": quota, "unlimited_quota": False}}


ACCOUNT = {
    "/dashboard/billing/subscription": (200, {"hard_limit_usd": 1000}),
    "/dashboard/billing/usage": (200, {"total_usage": 0}),
}


@pytest.mark.parametrize(
    ("unreadable", "responses"),
    [
        ("a page in place of the unit", {"/api/status": PAGE}),
        ("an error in place of the unit", {"/api/status": (200, {"success": False, "message": "busy"})}),
        ("a rate limit in place of the key's balance", {"/api/usage/token/": (429, "")}),
        ("a page in place of the key's balance", {"/api/usage/token/": PAGE}),
    ],
)
def test_nothing_is_submitted_while_min_balance_cannot_be_checked(
    relay: Relay,
    store: Store,
    quick_retries: Any,
    caplog: pytest.LogCaptureFixture,
    unreadable: str,
    responses: dict[str, Response],
) -> None:
    healthy = {"/api/status": STATUS, "/api/usage/token/": key_with(1_000_000), **ACCOUNT}
    relay.get = (healthy | responses).get
    task = BatchTask(store, prompts=CATS, min_balance=3)
    with pytest.raises(RelayTransientError, match="min_balance cannot be checked: The "):
        task.run()
    assert relay.prompts == []
    assert task.submits["not_submitted"] == len(CATS)
    warning = "Nothing is submitted while min_balance cannot be checked: The "
    assert [message.startswith(warning) for message in caplog.messages].count(True) == 1
    relay.get = (healthy | {"/api/usage/token/": key_with(5_000_000)}).get
    assert task.run() == ids_of(CATS)


def test_the_unit_of_a_later_reading_counts(relay: Relay, store: Store, quick_retries: Any) -> None:
    """The balance is 2 USD, and a million where the unit is not known."""
    relay.get = {"/api/status": PAGE, "/api/usage/token/": key_with(1_000_000)}.get
    task = BatchTask(store, prompts=CATS, min_balance=3)
    with pytest.raises(RelayTransientError):
        task.run()
    relay.get = {"/api/status": STATUS, "/api/usage/token/": key_with(1_000_000)}.get
    task.run()
    assert relay.prompts == []
    assert task.submits["not_submitted"] == len(CATS)


def test_min_balance_has_no_effect_at_a_relay_without_a_balance(
    relay: Relay, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert BatchTask(store, prompts=CATS, min_balance=3).run() == ids_of(CATS)
    assert sum("does not report a balance" in m for m in caplog.messages) == 1
