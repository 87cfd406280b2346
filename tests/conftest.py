"""An Airflow home of the tests' own, set before anything imports Airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.stores import S3, azure_server, gcs_server, moto_server, s3_server

HOME = Path(tempfile.mkdtemp(prefix="luma-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

DAGS = HOME / "dags"
DAGS.mkdir()

os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__FERNET_KEY": "Zm9yLXRlc3RzLW9ubHktZm9yLXRlc3RzLW9ubHkhISE=",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(HOME / "logs"),
    "AIRFLOW__SCHEDULER__ENABLE_TRACEMALLOC": "False",
    "AWS_EC2_METADATA_DISABLED": "true",
    "FETCH_RAW_TOKEN_EXPIRY": "false",  # else gcsfs asks Google itself what a token is worth
    "NO_COLOR": "1",  # some tests read the log
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it looks for the emulator's gRPC for a minute
}
for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
    del os.environ[name]

# A machine under load may take its time; `make fuzz` tries far more.
calm = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("test", max_examples=100, **calm)
settings.register_profile("fuzz", max_examples=5_000, **calm)
settings.load_profile("test")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    with gcs_server() as connection:
        yield connection


@pytest.fixture(scope="session")
def azure() -> Iterator[str]:
    with azure_server() as connection:
        yield connection


# Where each kind of store keeps what the tests download, by the connection that store_connection sets.
STORES = {
    "file": "",
    "rclone": "s3://rclone@bucket",
    "moto": "s3://moto@bucket",
    "gcs": "gs://gcs@bucket",
    "azure": "abfs://azure@bucket",
}


@pytest.fixture(params=STORES)
def destination_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh folder in each store, with the connection that leads to it."""
    kind = request.param
    if kind == "file":
        return (tmp_path / "download").as_uri()
    server = request.getfixturevalue("s3" if kind == "rclone" else kind)
    connection = server.connection() if isinstance(server, S3) else server
    monkeypatch.setenv(f"AIRFLOW_CONN_{kind.upper()}", connection)
    return f"{STORES[kind]}/{uuid.uuid4().hex}"
