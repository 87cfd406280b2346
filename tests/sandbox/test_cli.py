from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "airflow_provider_luma.sandbox"]


def read_until(process, last):
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(last):
            return lines
    raise AssertionError(f"ended before {last!r}: {lines}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_what_it_prints_until_it_is_stopped(client, number):
    arguments = ["--tasks", "3", "--seconds", "0", "--fail", "0", "--shape", "wrapped", "--api-key", "it's"]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            lines = read_until(process, "Ctrl-C")
            export = next(line for line in lines if line.startswith("export AIRFLOW_CONN_LUMA_DEFAULT="))
            connection = json.loads(shlex.split(export)[1].partition("=")[2])
            command = next(line for line in lines if line.startswith("airflow connections add luma_default"))
            assert json.loads(shlex.split(command)[-1]) == connection
            task_ids = [line for line in lines if re.fullmatch(r"[0-9a-f-]{36}", line)]
            assert len(task_ids) == 3
            curl = shlex.split(next(line for line in lines if line.startswith("curl")))
            assert curl[2] == connection["host"] + "/luma/tasks"
            headers = {"Authorization": f"Bearer {connection['password']}"}
            response = client.post(curl[2], json={"ids": task_ids}, headers=headers).json()
            client.get(response["data"][0]["data"]["video"]["url"]).raise_for_status()
        finally:
            process.send_signal(number)
        out, err = process.communicate(timeout=5)
    assert (process.returncode, err) == (0, "")
    assert out.strip() == "Served 1 requests and 1 downloads."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate-limit", "30"], "rate_limited is a share from 0 to 1"),
        (["--shape", "round"], "invalid choice"),
        (["--balance", "-1"], "balance must be 0 or greater"),
    ],
)
def test_wrong_options_are_reported(arguments, message):
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_a_taken_port_is_reported(finished):
    port = finished.base_url.rpartition(":")[2]
    ended = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(r"cannot listen on 127\.0\.0\.1: .*in use.*\n", ended.stderr)


def test_help_names_every_option():
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    options = (
        "tasks seconds fail shape api-key host port cdn-port video-bytes rate-limit retry-after server-errors"
        " latency truncated-downloads link-ttl seed balance price unit billing max-running"
    )
    assert [name for name in options.split() if f"--{name} " not in shown.stdout] == []
