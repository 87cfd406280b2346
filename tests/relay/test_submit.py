"""One prompt, one charge: whatever happens on the way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from airflow_provider_luma.exceptions import (
    RelayAuthenticationError,
    RelayError,
    RelayInsufficientBalanceError,
    RelayInvalidRequestError,
    RelayPermissionError,
    RelayTransientError,
    SubmitOutcomeUnknownError,
)
from airflow_provider_luma.relay import RelayClient, TaskState
from airflow_provider_luma.relay.generation import Generation
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedAnswer

CAT = Generation("cat dance", aspect_ratio="9:16")
QUICK = RetryPolicy(attempts=3, first_wait=0.05, max_wait=0.2)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tasks=0, seconds=0) as sandbox:
        yield sandbox


@pytest.fixture
def client(sandbox: Sandbox) -> RelayClient:
    return RelayClient(sandbox.api_key, sandbox.base_url, timeout=1, retry=QUICK)


def test_a_submit_creates_a_task_and_is_charged_once(sandbox: Sandbox, client: RelayClient) -> None:
    task = client.submit(CAT)
    assert sandbox.task_ids == [task.id]
    assert task.state is TaskState.PENDING
    assert sandbox.submits == [{"user_prompt": "cat dance", "aspect_ratio": "9:16"}]


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    "body",
    [
        {"id": "4665a07c", "state": "pending"},
        {"task_id": "4665a07c"},
        {"code": "success", "message": "", "data": {"task_id": "4665a07c", "task_status": "submitted"}},
        {"code": 0, "data": {"id": "4665a07c", "state": "queued"}},
        {"code": "success", "message": "", "data": "4665a07c"},
        [{"id": "4665a07c"}],
        {"code": "success", "data": [{"id": "4665a07c"}]},
    ],
)
def test_every_shape_of_the_answer_is_read(
    sandbox: Sandbox, client: RelayClient, body: Any, status: int
) -> None:
    sandbox.script_submits(ScriptedAnswer(status=status, body=body))
    assert client.submit(CAT).id == "4665a07c"


UNCERTAIN = {
    "500": ScriptedAnswer(status=500, body={"message": "upstream"}),
    "502": ScriptedAnswer(status=502, body="<html>", content_type="text/html"),
    "408": ScriptedAnswer(status=408),
    "524": ScriptedAnswer(status=524),
    "no answer at all": ScriptedAnswer(cut=True),
    "cut in the midst": ScriptedAnswer(body={"id": "4665a07c" * 9}, cut=True),
    "read timeout": ScriptedAnswer(delay=3),
    "no id": ScriptedAnswer(body={"state": "pending"}),
    "not JSON": ScriptedAnswer(body="fine", content_type="text/plain"),
    "a web page": ScriptedAnswer(body="<html>", content_type="text/html"),
}


@pytest.mark.parametrize("answer", UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_may_have_arrived_is_not_sent_again_and_says_so(
    sandbox: Sandbox, client: RelayClient, answer: ScriptedAnswer
) -> None:
    sandbox.script_submits(answer, created=True)
    with pytest.raises(
        SubmitOutcomeUnknownError, match=r"may have created a task.* was not sent again"
    ) as error:
        client.submit(CAT)
    assert len(sandbox.submits) == 1
    assert len(sandbox.requests) == 1
    assert sandbox.api_key not in str(error.value)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.1"}])
def test_a_429_did_not_create_anything_and_is_waited_out(
    sandbox: Sandbox, client: RelayClient, headers: dict[str, str]
) -> None:
    sandbox.script_submits(*[ScriptedAnswer(status=429, headers=headers)] * 4)
    client.submit(CAT)
    assert len(sandbox.submits) == 1


REFUSED = [
    (ScriptedAnswer(status=401), RelayAuthenticationError),
    (ScriptedAnswer(status=402), RelayInsufficientBalanceError),
    (
        ScriptedAnswer(status=403, body={"code": "insufficient_user_quota", "message": "x"}),
        RelayInsufficientBalanceError,
    ),
    (
        ScriptedAnswer(status=403, body={"error": {"code": "insufficient_quota"}}),
        RelayInsufficientBalanceError,
    ),
    (ScriptedAnswer(status=403, body={"code": "access_denied"}), RelayPermissionError),
    (ScriptedAnswer(status=400, body={"code": "invalid_request"}), RelayInvalidRequestError),
    (ScriptedAnswer(status=413), RelayInvalidRequestError),
    (ScriptedAnswer(status=302, headers={"Location": "https://elsewhere.example"}), RelayInvalidRequestError),
    (ScriptedAnswer(body={"code": "insufficient_user_quota", "message": "x"}), RelayInsufficientBalanceError),
    (ScriptedAnswer(body={"code": "bad_prompt", "message": "x", "data": None}), RelayInvalidRequestError),
]


@pytest.mark.parametrize(("answer", "kind"), REFUSED)
def test_a_refusal_is_final(
    sandbox: Sandbox, client: RelayClient, answer: ScriptedAnswer, kind: type[RelayError]
) -> None:
    sandbox.script_submits(answer)
    with pytest.raises(RelayError) as error:
        client.submit(CAT)
    assert type(error.value) is kind
    assert len(sandbox.requests) == 1


def test_an_account_without_balance_is_told_in_the_relays_words() -> None:
    with Sandbox(tasks=0, balance=1) as sandbox:
        client = RelayClient(sandbox.api_key, sandbox.base_url)
        client.submit(CAT)
        with pytest.raises(RelayInsufficientBalanceError, match="balance 0, needs 1; top up"):
            client.submit(CAT)
        assert len(sandbox.submits) == 1


def test_a_relay_that_is_not_there_yet_is_tried_again() -> None:
    with Sandbox(tasks=0) as gone:
        port = int(gone.base_url.rpartition(":")[2])
    late = Sandbox(tasks=0, relay_port=port)
    patient = RetryPolicy(attempts=7, first_wait=0.2, max_wait=1)
    threading.Timer(0.7, late.start).start()
    try:
        RelayClient(late.api_key, f"http://127.0.0.1:{port}", retry=patient).submit(CAT)
        assert len(late.submits) == 1
    finally:
        late.stop()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://no-such-host.invalid", f"http://{'a' * 70}.example"]
)
def test_what_surely_did_not_arrive_is_plain_trouble(url: str) -> None:
    with pytest.raises(RelayTransientError, match="No answer from the relay"):
        RelayClient("sk-key", url, retry=QUICK).submit(CAT)


def test_a_proxy_that_is_not_there_is_plain_trouble(sandbox: Sandbox) -> None:
    proxies = {"http": "http://127.0.0.1:9"}
    with pytest.raises(RelayTransientError):
        RelayClient(sandbox.api_key, sandbox.base_url, proxies=proxies, retry=QUICK).submit(CAT)
    assert sandbox.submits == []


def test_a_connection_that_idled_and_was_closed_harms_no_submit() -> None:
    """A server that hangs up on whoever keeps a connection, after its first answer."""
    bodies: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        bodies.append(b"")
                        while b"cat dance" not in bodies[-1]:  # what is left unread would break it off
                            bodies[-1] += connection.recv(65536)
                        answer = b'{"id": "4665a07c"}'
                        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18"
                        connection.sendall(head + b"\r\n\r\n" + answer)

        threading.Thread(target=serve, daemon=True).start()
        client = RelayClient(
            "sk-key", f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10, retry=QUICK
        )
        assert [client.submit(CAT).id for _ in range(3)] == ["4665a07c"] * 3
    assert len(bodies) == 3
    assert all(b"\r\nConnection: close\r\n" in body for body in bodies)  # so that none is kept at all


def test_a_hundred_submits_through_all_faults_charge_once_each() -> None:
    faults = Faults(
        submits_rate_limited=0.2, submits_refused=0.1, submits_lost=0.1, submits_cut=0.1, retry_after=0.01
    )
    with Sandbox(tasks=0, faults=faults, seed=3) as sandbox:
        client = RelayClient(sandbox.api_key, sandbox.base_url, retry=QUICK)
        submitted, uncertain = [], 0
        for number in range(100):
            try:
                submitted.append(client.submit(Generation(f"cat dance {number}")).id)
            except SubmitOutcomeUnknownError:
                uncertain += 1
        prompts = [body["user_prompt"] for body in sandbox.submits]
    assert len(prompts) == len(set(prompts))
    assert len(submitted) + uncertain == 100
    assert uncertain > 10


def test_one_task_is_asked_for_by_its_path(sandbox: Sandbox, client: RelayClient) -> None:
    task_id = client.submit(CAT).id
    task = client.get_task(task_id)
    assert task is not None
    assert (task.id, task.state) == (task_id, TaskState.COMPLETED)
    assert client.get_task("nobody") is None


def test_a_video_is_made_longer(sandbox: Sandbox, client: RelayClient) -> None:
    first = client.submit(CAT).id
    second = client.submit(Generation("and on", extend_task_id=first)).id
    assert second != first
    assert len(sandbox.submits) == 2
    with pytest.raises(RelayInvalidRequestError, match="task_not_exist"):
        client.submit(Generation("and on", extend_task_id="nobody"))
