"""Whatever a relay sends, a wait ends as it should, alike in every mode, and nothing grows or breaks."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from tests.airflow.harness import AIRFLOW
from tests.airflow.sensor_harness import Wait, ended, responses, summary
from tests.airflow.test_poller_faults import connect_to
from tests.serving import Quiet, serving

pytestmark = pytest.mark.usefixtures("airflow_db")


def failed(task_id: str, reason: str) -> ScriptedResponse:
    """Respond that a task failed; the reason is JSON as the relay writes it."""
    return ScriptedResponse(body=f'[{{"id": "{task_id}", "state": "failed", "failure_reason": {reason}}}]')


@pytest.mark.parametrize("before", [0, 1], ids=["at_once", "in_the_middle"])
@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (r'"blocked \ud83d"', "blocked"),
        (r'"a\u0000b"', "a b"),
        (r'"a\nFAKE LOG LINE\u001b[31m"', "a FAKE LOG LINE [31m"),
    ],
    ids=["half_an_emoji", "nul", "controls"],
)
def test_a_reason_that_no_encoder_accepts_is_sanitized(
    wait: Wait, sandbox: Sandbox, reason: str, kept: str, before: int
) -> None:
    task_id = sandbox.add_task(seconds=math.inf)
    sandbox.script(
        *[ScriptedResponse(body=[{"id": task_id, "state": "processing"}])] * before, failed(task_id, reason)
    )
    run = wait([task_id])
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(0, failed={task_id: kept})


def test_a_reason_of_three_megabytes_is_truncated(wait: Wait, sandbox: Sandbox) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    task_id = sandbox.add_task(seconds=0, failure_reason="x" * 3_000_000)
    run = wait([task_id, endless], timeout=0.7, fail_when="never")
    assert ended(run, "failed")
    summary_xcom = run.xcom("wait", "luma_summary")
    assert summary_xcom["running"] == [endless]
    assert summary_xcom["failed"][task_id].endswith("…")
    assert len(summary_xcom["failed"][task_id]) == 300


def test_an_id_left_out_once_after_it_was_seen_is_not_missing(
    wait: Wait, sandbox: Sandbox, mode: str
) -> None:
    if mode == "reschedule" and AIRFLOW < (3, 3):
        pytest.skip("nothing is kept between polls before Airflow 3.3, and the grace counts from the first")
    task_id = sandbox.add_task(seconds=0)
    running = ScriptedResponse(body=[{"id": task_id, "state": "processing"}])
    sandbox.script(running, running, running, running, ScriptedResponse(body=[]))
    run = wait([task_id], missing_grace=0.8)
    assert ended(run, "success")
    assert run.xcom("wait") == [task_id]


def test_an_id_left_out_once_is_not_missing_without_a_grace(wait: Wait, sandbox: Sandbox) -> None:
    task_id = sandbox.add_task(seconds=0)
    sandbox.script(ScriptedResponse(body=[]))
    run = wait([task_id], missing_grace=0)
    assert ended(run, "success")
    assert run.xcom("wait") == [task_id]


@pytest.mark.parametrize(
    ("word", "state"),
    [("ready", "success"), ("DONE", "success"), ("succeed", "success"), ("timed_out", "failed")],
)
def test_states_of_related_relays_end_the_wait(wait: Wait, sandbox: Sandbox, word: str, state: str) -> None:
    assert ended(wait([sandbox.add_task(seconds=0, raw_state=word)]), state)


def test_an_unknown_state_without_a_url_is_running(wait: Wait, sandbox: Sandbox) -> None:
    endless = sandbox.add_task(seconds=math.inf, raw_state="ready")
    run = wait([endless], timeout=0.7)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(0, running=[endless])


@pytest.mark.parametrize(
    "row",
    [
        {"status": "success", "data": {"state": "processing", "video": None}},
        {"status": "UNKNOWN", "data": {"state": "queued", "video_url": "https://cdn.example/preview.mp4"}},
        {"state": "moderation_failed", "video_url": "https://cdn.example/placeholder.mp4"},
    ],
    ids=["envelope", "preview", "placeholder"],
)
def test_a_task_that_is_not_ready_is_waited_for(wait: Wait, sandbox: Sandbox, row: dict[str, Any]) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    sandbox.script(*[ScriptedResponse(body=[{"task_id": endless} | row])] * 50)
    run = wait([endless], timeout=0.7)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(0, running=[endless])


def test_a_plain_text_404_of_a_gateway_is_transient(wait: Wait, sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=0)]
    sandbox.script(*[ScriptedResponse(404, "404 page not found", content_type="text/plain")] * 2)
    run = wait(ids)
    assert ended(run, "success")
    assert run.xcom("wait") == ids


@pytest.mark.parametrize(
    ("status", "state", "policy"),
    [(400, "failed", {"silent_fail": True}), (400, "failed", {}), (503, "success", {"silent_fail": True})],
)
@pytest.mark.usefixtures("quick_retries")
def test_one_bad_batch_hides_none_of_the_others(
    wait: Wait,
    sandbox: Sandbox,
    connect: Callable[..., None],
    status: int,
    state: str,
    policy: dict[str, Any],
) -> None:
    connect(sandbox, batch_size=1)
    ids = [sandbox.add_task(seconds=0) for _ in range(3)]
    sandbox.script(*responses(*[status] * (3 if status == 503 else 1)))
    run = wait(ids, **policy)
    assert ended(run, state)
    expected = summary(3) if state == "success" else summary(2, running=ids[:1])
    assert run.xcom("wait", "luma_summary") == expected


def test_a_rejected_key_spares_the_relay_the_other_batches(
    wait: Wait, sandbox: Sandbox, connect: Callable[..., None]
) -> None:
    connect(sandbox, batch_size=1)
    ids = [sandbox.add_task(seconds=0) for _ in range(20)]
    sandbox.api_key = "sk-another"
    assert ended(wait(ids), "failed")
    assert len(sandbox.requests) <= 4


def test_a_response_above_the_bound_fails_naming_the_bound(
    wait: Wait, sandbox: Sandbox, connect: Callable[..., None], quick_retries: Any, capsys: Any
) -> None:
    connect(sandbox, max_response_bytes=1_000_000)
    page = ScriptedResponse(body=b"[" + b" " * 2_000_000 + b"]", headers={})
    sandbox.script(*[page] * 50)
    assert ended(wait([sandbox.add_task()]), "failed", tries=2)
    assert "max_response_bytes (1000000)" in capsys.readouterr().out


def test_a_retry_after_of_a_day_does_not_outlast_the_timeout(wait: Wait, sandbox: Sandbox) -> None:
    endless = sandbox.add_task(seconds=math.inf)
    sandbox.script(*responses(*[429] * 50, headers={"Retry-After": "86000"}))
    started = time.monotonic()
    run = wait([endless], timeout=2)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(0, running=[endless])
    assert time.monotonic() - started < 60


def test_a_rate_limit_that_ends_every_poll_leaves_no_id_out_for_good(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[float] = []

    class Relay(Quiet):
        def do_POST(self) -> None:
            ids = self.read_json()["ids"]
            if len([at for at in served if time.monotonic() - at < 2]) >= 2:
                self.send_response(429)
                self.send_header("Retry-After", "2")
                self.end_headers()
                return
            served.append(time.monotonic())
            rows = [{"id": task_id, "state": "completed" if task_id == "c" else "running"} for task_id in ids]
            self.respond(json.dumps(rows).encode(), "application/json")

    with serving(Relay) as url:
        connect_to(monkeypatch, url, batch_size=1)
        run = wait(["a", "b", "c"], timeout=12)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(1, running=["a", "b"])


def test_a_key_that_is_rotated_during_the_wait_is_read_again(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    class Relay(Quiet):
        def do_POST(self) -> None:
            ids = self.read_json()["ids"]
            keys.append(self.headers["Authorization"])
            if len(keys) == 3:
                connect_to(monkeypatch, url, key="sk-rotated")
                self.send_response(401)
                self.end_headers()
                return
            rows = [{"id": task_id, "state": "completed" if len(keys) > 4 else "running"} for task_id in ids]
            self.respond(json.dumps(rows).encode(), "application/json")

    with serving(Relay) as url:
        connect_to(monkeypatch, url)
        run = wait(["a"])
    assert ended(run, "success")
    assert keys == ["Bearer sk-any"] * 3 + ["Bearer sk-rotated"] * 2


@pytest.mark.usefixtures("quick_retries")
def test_a_connection_that_is_corrected_during_the_wait_is_read_again(
    wait: Wait, sandbox: Sandbox, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_luma.sensors.luma.REREAD_SECONDS", 1)
    monkeypatch.setattr("airflow_provider_luma.triggers.poller.REREAD_SECONDS", 1)
    ids = [sandbox.add_task(seconds=0)]
    connect_to(monkeypatch, closed_port())
    correction = threading.Timer(1.5, connect, [sandbox])
    correction.start()
    run = wait(ids, silent_fail=True)
    correction.join()
    assert ended(run, "success")
    assert run.xcom("wait") == ids


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_json_that_a_relay_labels_as_html_is_read(wait: Wait, sandbox: Sandbox) -> None:
    ids = [sandbox.add_task(seconds=math.inf)]
    rows = [{"id": ids[0], "state": "completed"}]
    sandbox.script(*[ScriptedResponse(body=json.dumps(rows), content_type="text/html; charset=UTF-8")] * 5)
    run = wait(ids)
    assert ended(run, "success")
    assert run.xcom("wait") == ids


def test_a_timeout_names_the_running_ids(wait: Wait, sandbox: Sandbox, capsys: Any) -> None:
    ids = [sandbox.add_task(seconds=0), *[sandbox.add_task(seconds=math.inf) for _ in range(25)]]
    run = wait(ids, timeout=0.7)
    assert ended(run, "failed")
    assert run.xcom("wait", "luma_summary") == summary(1, running=ids[1:])
    log = capsys.readouterr().out
    assert f"Still running: {', '.join(ids[1:21])}, and 5 more" in log


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow keeps task state from 3.3 on")
@pytest.mark.parametrize("seconds", [0, 0.7])
def test_progress_is_kept_where_the_ui_shows_it(wait: Wait, sandbox: Sandbox, seconds: float) -> None:
    ids = [sandbox.add_task(seconds=0, failure_reason="moderation"), sandbox.add_task(seconds=seconds)]
    assert ended(wait(ids, fail_when="never"), "success")
    assert kept("luma_progress") == "1 of 2 completed, 1 failed"


def kept(key: str) -> Any:
    """Return the newest value under this key of the task state store."""
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(TaskStateStoreModel.value).filter_by(key=key).order_by(TaskStateStoreModel.id.desc())
    with create_session() as session:
        return json.loads(session.scalars(query).first())
