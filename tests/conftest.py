"""An Airflow home of the tests' own, set before anything imports Airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import S3, s3_server

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
}
for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
    del os.environ[name]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
