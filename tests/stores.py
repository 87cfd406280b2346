"""Real object stores on loopback, each with the Airflow connection that leads to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.serving import Quiet, serving

ACCESS_KEY, SECRET_KEY = "luma-tests", "luma-tests-secret"
AZURE_KEY = "bHVtYS10ZXN0cw=="
# Where the servers are installed, if not beside the Python that runs the tests.
VENV = Path(os.environ.get("LUMA_TEST_TOOLS", sys.prefix))


@dataclass(frozen=True)
class S3:
    """An S3 server with a bucket ``bucket``; rclone's keeps it in a folder, which can be looked at."""

    url: str
    folder: Path

    def connection(self, secret_key: str = SECRET_KEY) -> str:
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return json.dumps({"conn_type": "aws", "login": ACCESS_KEY, "password": secret_key, "extra": extra})


@contextmanager
def s3_server(folder: Path, port: int = 0) -> Iterator[S3]:
    for bucket in ("bucket", "my-bucket"):  # the server remembers what was there at its first request
        (folder / bucket).mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    options = ("--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}")
    with _served(port, tool("rclone"), "serve", "s3", *options, str(folder)):
        yield S3(f"http://127.0.0.1:{port}", folder)


@contextmanager
def moto_server(folder: Path) -> Iterator[S3]:
    """Amazon's S3 as moto knows it, with conditional puts, and with its own list of unfinished uploads."""
    port = free_port()
    with _served(port, tool("moto_server"), "-H", "127.0.0.1", "-p", str(port)):
        server = S3(f"http://127.0.0.1:{port}", folder)
        requests.put(f"{server.url}/bucket", timeout=10).raise_for_status()
        yield server


@contextmanager
def gcs_server() -> Iterator[str]:
    """An emulator of Google's store, and what gives out tokens for it: yields the connection."""
    port = free_port()
    options = (
        "start",
        "--in-memory",
        "--default-bucket",
        "bucket",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    )
    with _served(port, tool("gcp-storage-emulator"), *options), _token_server() as token_uri:
        key = {
            "type": "service_account",
            "project_id": "luma-tests",
            "private_key": _private_key(),
            "client_email": "luma@tests.example.com",
            "token_uri": token_uri,
        }
        extra = {"keyfile_dict": key, "gcs.endpoint": f"http://127.0.0.1:{port}"}
        yield json.dumps({"conn_type": "google_cloud_platform", "extra": extra})


@contextmanager
def azure_server() -> Iterator[str]:
    """Microsoft's Azurite: yields the connection."""
    port = free_port()
    program = VENV / "azurite/node_modules/azurite/dist/src/blob/main.js"
    options = ("--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry")
    command = (tool("node"), str(program), *options, "--blobHost", "127.0.0.1", "--blobPort", str(port))
    with _served(port, *command, AZURITE_ACCOUNTS=f"luma:{AZURE_KEY}"):
        text = f"DefaultEndpointsProtocol=http;AccountName=luma;AccountKey={AZURE_KEY};"
        text += f"BlobEndpoint=http://127.0.0.1:{port}/luma;"
        from azure.storage.blob import BlobServiceClient

        BlobServiceClient.from_connection_string(text).create_container("bucket")
        yield json.dumps({"conn_type": "wasb", "login": "luma", "extra": {"connection_string": text}})


@contextmanager
def _served(port: int, *command: str, **environment: str) -> Iterator[None]:
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=os.environ | environment) as server:
        try:
            wait_for(port)
            yield
        finally:
            server.terminate()


@contextmanager
def _token_server() -> Iterator[str]:
    class Tokens(Quiet):
        def do_POST(self) -> None:
            token = {"access_token": "luma-tests-token", "expires_in": 3600, "token_type": "Bearer"}
            self.respond(json.dumps(token).encode(), "application/json")

    with serving(Tokens) as address:
        yield f"{address}/token"


@cache
def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def tool(name: str) -> str:
    installed = VENV / "bin" / name
    return str(installed) if installed.exists() else str(shutil.which(name))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
