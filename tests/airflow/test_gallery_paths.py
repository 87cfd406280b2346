"""Secrets of the administrator's: none of a mistyped entry in a log, none of a connection in a browser."""

from __future__ import annotations

import logging

import pytest
import requests

from airflow_provider_luma.store_clients import s3_client
from airflow_provider_luma.ui.media_paths import read_media_paths
from airflow_provider_luma.ui.presign import origin_of, presign
from tests.stores import S3

SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    "entry",
    [
        f"s3://AKIAEXAMPLE:{SECRET}@bucket/clips",
        f"s3://AKIAEXAMPLE:{SECRET}/bPxRfi@bucket/clips",
        f"https://user:{SECRET}@store.example.com/clips",
        f"https://store.example.com/clips?X-Amz-Signature={SECRET}",
        f"s3://[{SECRET}@bucket/clips",
        f"s3:/AKIAEXAMPLE:{SECRET}@bucket/clips",
    ],
)
def test_an_entry_with_a_secret_is_rejected_without_it(entry: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert read_media_paths(f"{entry}, file:///data/clips", "mine") == read_media_paths(
            "file:///data/clips", "mine"
        )
    assert "[luma] gallery_paths" in caplog.text
    assert SECRET not in caplog.text


def test_the_password_of_an_endpoint_reaches_no_browser(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = s3.url.replace("://", f"://somebody:{SECRET}@")
    monkeypatch.setenv("AIRFLOW_CONN_WITH_PASSWORD", S3(endpoint, s3.folder).connection())
    monkeypatch.setenv("AIRFLOW_CONN_GALLERY", s3.connection())
    s3_client("gallery").put_object(Bucket="bucket", Key="clips/a.mp4", Body=b"video")
    (path,) = read_media_paths("s3://with_password@bucket/clips", "mine")
    assert origin_of(path) == s3.url
    url = presign(path, "clips/a.mp4", "video/mp4", "inline")
    assert SECRET not in url
    assert requests.get(url, timeout=10).content == b"video"
