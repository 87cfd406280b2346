from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest
import requests

from airflow_provider_luma.sandbox import Faults, Sandbox, ScriptedResponse


def test_relay_and_cdn_are_two_origins_on_loopback(finished):
    assert finished.base_url.startswith("http://127.0.0.1:")
    assert finished.cdn_url.startswith("http://127.0.0.1:")
    assert finished.base_url != finished.cdn_url


def test_the_connection_goes_into_the_environment_as_json(finished):
    assert json.loads(json.dumps(finished.connection)) == {
        "conn_type": "luma",
        "host": finished.base_url,
        "password": "sk-sandbox",
        "extra": {"allowed_download_hosts": ["127.0.0.1"]},
    }


def test_it_starts_and_stops_and_starts_again(client):
    sandbox = Sandbox(tasks=1)
    sandbox.stop()
    for _ in range(2):
        sandbox.start()
        with pytest.raises(RuntimeError, match="already running"):
            sandbox.start()
        assert client.query(sandbox, sandbox.task_ids).status_code == 200
        sandbox.stop()
        with pytest.raises(requests.ConnectionError):
            client.query(sandbox, sandbox.task_ids)


def test_a_taken_port_is_raised_to_the_caller(finished):
    taken = int(finished.base_url.rpartition(":")[2])
    before = threading.active_count()
    with pytest.raises(OSError, match="in use"):
        Sandbox(cdn_port=taken).start()
    assert threading.active_count() == before


def test_stopping_waits_for_no_client_and_leaves_no_thread(client, uvicorn_log):
    before = set(threading.enumerate())  # an earlier test may have abandoned threads
    sandbox = Sandbox(tasks=1, seconds=0, fail=0, video_bytes=50_000_000)
    sandbox.start()
    download = client.get(client.link(sandbox, sandbox.task_ids[0]), stream=True)
    sandbox.script(ScriptedResponse(delay=60))
    ends = []

    def hang() -> None:
        try:
            client.post(f"{sandbox.base_url}/luma/tasks", json={"ids": []})
        except requests.ConnectionError as error:
            ends.append(error)

    hanging = threading.Thread(target=hang)
    hanging.start()
    while len(sandbox.requests) < 2:
        time.sleep(0.01)
    started = time.monotonic()
    sandbox.stop()
    assert time.monotonic() - started < 1
    hanging.join(2)
    download.close()
    assert ends
    left = set(threading.enumerate()) - before - {hanging}
    assert not [thread for thread in left if thread.name.startswith(("luma", "AnyIO"))]
    assert uvicorn_log == []


def test_a_client_that_abandons_a_download_delays_no_other(client):
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=2_000_000_000) as sandbox:
        link = client.link(sandbox, sandbox.task_ids[0])
        client.get(link, stream=True).close()
        started = time.monotonic()
        client.query(sandbox, sandbox.task_ids)
        assert time.monotonic() - started < 0.5


def test_many_clients_are_served_at_once(finished):
    def query() -> None:
        with requests.Session() as session:
            session.trust_env = False
            for _ in range(10):
                headers = {"Authorization": "Bearer sk-sandbox"}
                body = {"ids": finished.task_ids}
                session.post(f"{finished.base_url}/luma/tasks", json=body, headers=headers).raise_for_status()

    threads = [threading.Thread(target=query) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [request.status for request in finished.requests] == [200] * 80


def test_responses_do_not_wait_for_delayed_acks(client):
    with Sandbox(tasks=100, seconds=0, fail=0) as sandbox:
        client.query(sandbox, sandbox.task_ids)
        took = []
        for _ in range(11):
            started = time.monotonic()
            client.query(sandbox, sandbox.task_ids)
            took.append(time.monotonic() - started)
        assert min(took) < 0.035  # a delayed ACK adds 40 ms to each


def test_each_server_samples_its_own_faults(client):
    def fates(downloads_between: int) -> list[int]:
        with Sandbox(tasks=1, faults=Faults(rate_limited=0.5)) as sandbox:
            found = []
            for _ in range(20):
                found.append(client.query(sandbox, []).status_code)
                for _ in range(downloads_between):
                    client.get(sandbox.cdn_url)
            return found

    assert fates(0) == fates(1)


def test_it_needs_no_airflow():
    code = "import sys, airflow_provider_luma.sandbox; print('airflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
