from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.exceptions import (
    LinkRefusedError,
    TransferError,
    TransferTroubleError,
    UnsafeLinkError,
)
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer
from airflow_provider_luma.transfer.download import Download, Downloader, without_query

FILM = b"film" * 100_000


def film(**facts: Any) -> ScriptedAnswer:
    return ScriptedAnswer(**{"body": FILM, "content_type": "video/mp4"} | facts)


@pytest.fixture
def url(sandbox: Sandbox) -> str:
    return f"{sandbox.cdn_url}/dream-machine/clip.mp4?X-Amz-Signature=hush"


def test_a_whole_file_is_described(
    sandbox: Sandbox, downloader: Downloader, url: str, tmp_path: Path
) -> None:
    sandbox.script_downloads(film())
    sizes: list[int] = []
    download = downloader.fetch(url, tmp_path / "f", sizes.append)
    assert download == Download(len(FILM), hashlib.sha256(FILM).hexdigest(), "video/mp4")
    assert (tmp_path / "f").read_bytes() == FILM
    assert sum(sizes) == len(FILM)


@pytest.mark.parametrize(
    "trouble",
    [
        film(cut=True),
        film(body=b""),
        film(body="<html>busy</html>", content_type="text/html"),
        film(body={"error": "busy"}, content_type="application/json"),
        film(status=503),
        film(status=429),
        film(status=408),
    ],
    ids=["cut", "empty", "html", "json", "503", "429", "408"],
)
def test_trouble_is_tried_again(
    sandbox: Sandbox, downloader: Downloader, url: str, tmp_path: Path, trouble: ScriptedAnswer
) -> None:
    sandbox.script_downloads(trouble, film())
    assert downloader.fetch(url, tmp_path / "f").size == len(FILM)
    assert (tmp_path / "f").read_bytes() == FILM


def test_lasting_trouble_gives_up_and_names_the_link_without_its_signature(
    sandbox: Sandbox, downloader: Downloader, url: str, tmp_path: Path
) -> None:
    sandbox.script_downloads(*[film(cut=True)] * 9)
    with pytest.raises(TransferTroubleError, match=r"dream-machine/clip\.mp4") as error:
        downloader.fetch(url, tmp_path / "f")
    assert "hush" not in str(error.value)
    assert len(sandbox.downloads) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refused_link_is_not_tried_again(
    sandbox: Sandbox, downloader: Downloader, url: str, tmp_path: Path, status: int
) -> None:
    sandbox.script_downloads(film(status=status))
    with pytest.raises(LinkRefusedError, match=str(status)) as error:
        downloader.fetch(url, tmp_path / "f")
    assert "hush" not in str(error.value)
    assert len(sandbox.downloads) == 1


def test_other_refusals_are_plain_errors(
    sandbox: Sandbox, downloader: Downloader, url: str, tmp_path: Path
) -> None:
    sandbox.script_downloads(film(status=400))
    with pytest.raises(TransferError, match="answered 400"):
        downloader.fetch(url, tmp_path / "f")
    assert len(sandbox.downloads) == 1


def test_redirects_are_followed_also_relative_ones(
    sandbox: Sandbox, downloader: Downloader, url: str, tmp_path: Path
) -> None:
    sandbox.script_downloads(film(status=302, headers={"Location": "/elsewhere.mp4"}), film())
    assert downloader.fetch(url, tmp_path / "f").size == len(FILM)
    assert sandbox.downloads[1].path == "/elsewhere.mp4"


def test_redirects_are_bounded(sandbox: Sandbox, downloader: Downloader, url: str, tmp_path: Path) -> None:
    sandbox.script_downloads(*[film(status=302, headers={"Location": "/again"})] * 20)
    with pytest.raises(TransferError, match="more than 5 redirects"):
        downloader.fetch(url, tmp_path / "f")


@pytest.mark.parametrize("link", ["ftp://cdn/clip.mp4", "file:///etc/passwd", "clip.mp4", ""])
def test_only_http_links_are_followed(downloader: Downloader, tmp_path: Path, link: str) -> None:
    with pytest.raises(UnsafeLinkError, match="not an http"):
        downloader.fetch(link, tmp_path / "f")


def test_being_stopped_ends_a_download_within_a_second(
    downloader: Downloader, stopped: threading.Event, tmp_path: Path
) -> None:
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=4_000_000_000) as sandbox:
        from airflow_provider_luma.relay import RelayClient

        (task,) = RelayClient(sandbox.api_key, sandbox.base_url).query(sandbox.task_ids).values()
        threading.Timer(0.3, stopped.set).start()
        started = time.monotonic()
        with pytest.raises(TransferError, match="stopped"):
            downloader.fetch(task.video.url, tmp_path / "f")
    assert time.monotonic() - started < 1.3


def test_nothing_secret_is_left_of_a_link() -> None:
    assert (
        without_query("https://u:p@cdn.example/a/b.mp4?X-Amz-Signature=1#x") == "https://cdn.example/a/b.mp4"
    )
