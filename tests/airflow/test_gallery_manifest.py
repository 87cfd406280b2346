"""Manifests that the gallery reads: in time, and row by row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_provider_luma.exceptions import DownloadError
from airflow_provider_luma.ui import manifest
from airflow_provider_luma.ui.manifest import read_manifest
from airflow_provider_luma.ui.media_paths import locate, read_media_paths
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
