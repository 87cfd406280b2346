"""Manifests that the gallery reads: in time, and row by row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_provider_luma.exceptions import DownloadError
from airflow_provider_luma.store_clients import get_verify
from airflow_provider_luma.ui import manifest
from airflow_provider_luma.ui.manifest import read_manifest
from airflow_provider_luma.ui.media_paths import locate, read_media_paths
from airflow_provider_luma.ui.presign import _signer
from tests.certificate import server_context, write_certificate
from tests.serving import Quiet, serving
from tests.stores import S3

ROW = {"id": "ours", "state": "completed", "status": "downloaded"}


def read(entry: str, uri: str) -> list[dict[str, Any]]:
    (path,) = read_media_paths(entry, "mine")
    location = locate(uri)
    assert location
    return read_manifest(path, location)


def test_a_row_without_end_is_left_out(tmp_path: Path) -> None:
    """Its values would hold up the api-server, which a row of the operator never does."""
    hostile = json.dumps(ROW | {"id": "hostile", "values": [[]] * 100_000})
    (tmp_path / "manifest.jsonl").write_text(f"{hostile}\n{json.dumps(ROW)}\n")
    entry = tmp_path.as_uri()
    assert read(entry, f"{entry}/manifest.jsonl") == [ROW]


class _Manifest(Quiet):
    def do_GET(self) -> None:
        self.respond(json.dumps(ROW).encode(), "application/json")


@pytest.mark.parametrize(("verify", "is_read"), [(None, False), (True, False), (False, True), ("own", True)])
def test_the_connection_says_how_tls_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool | str | None, is_read: bool
) -> None:
    certificate = write_certificate(tmp_path / "store.pem")
    with serving(_Manifest, tls=server_context(certificate)) as url:
        connection = json.loads(S3(url, tmp_path).connection())
        if verify is not None:
            connection["extra"]["verify"] = str(certificate) if verify == "own" else verify
        monkeypatch.setenv("AIRFLOW_CONN_OVER_TLS", json.dumps(connection))
        _signer.cache_clear()
        if is_read:
            assert read("s3://over_tls@bucket/clips", "s3://bucket/clips/manifest.jsonl") == [ROW]
        else:
            with pytest.raises(requests.exceptions.SSLError):
                read("s3://over_tls@bucket/clips", "s3://bucket/clips/manifest.jsonl")


def test_the_bundle_of_the_environment_verifies_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = write_certificate(tmp_path / "store.pem")
    with serving(_Manifest, tls=server_context(certificate)) as url:
        monkeypatch.setenv("AIRFLOW_CONN_OVER_TLS", S3(url, tmp_path).connection())
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        _signer.cache_clear()
        assert read("s3://over_tls@bucket/clips", "s3://bucket/clips/manifest.jsonl") == [ROW]


@pytest.mark.parametrize(("extra", "verify"), [({}, True), ({"connection_verify": False}, False)])
def test_azures_connection_says_how_tls_is_verified(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, object], verify: bool
) -> None:
    connection = {"conn_type": "wasb", "login": "luma", "password": "c2VjcmV0", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_TLS", json.dumps(connection))
    assert get_verify("azure", "azure_tls") is verify


class _Dripping(Quiet):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)


def test_a_store_that_drips_holds_no_thread_for_long(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_TIMEOUT_SECONDS", 1)
    with serving(_Dripping) as url:
        monkeypatch.setenv("AIRFLOW_CONN_DRIPPING", S3(url, s3.folder).connection())
        assert S3Hook("dripping").conn_config.endpoint_url == url
        started = time.monotonic()
        with pytest.raises(DownloadError, match="not complete within 1 seconds"):
            read("s3://dripping@bucket/clips", "s3://bucket/clips/manifest.jsonl")
        assert time.monotonic() - started < 8
