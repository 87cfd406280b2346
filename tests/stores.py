"""Real object stores on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "luma-tests", "luma-tests-secret"


@dataclass(frozen=True)
class S3:
    """rclone's S3 server; a bucket is a folder, so what is stored can be looked at."""

    url: str
    folder: Path

    def connection(self, secret_key: str = SECRET_KEY) -> str:
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return json.dumps({"conn_type": "aws", "login": ACCESS_KEY, "password": secret_key, "extra": extra})


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    (folder / "bucket").mkdir(parents=True)
    port = _free_port()
    rclone = Path(sys.executable).with_name("rclone")
    command = [
        str(rclone if rclone.exists() else shutil.which("rclone")),
        *("serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
        str(folder),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            yield S3(f"http://127.0.0.1:{port}", folder)
        finally:
            server.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
