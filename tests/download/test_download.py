from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.download.download import Downloader, without_query
from airflow_provider_luma.download.guard import guarded_session
from airflow_provider_luma.download.staging import StagedFile, Staging
from airflow_provider_luma.exceptions import (
    DownloadError,
    LinkExpiredError,
    TransientDownloadError,
    UnsafeURLError,
)
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.sandbox import Sandbox, ScriptedAnswer

FILM = random.Random(7).randbytes(400_000)
HALF = len(FILM) // 2
ETAG = {"ETag": '"a-film"'}


def film(**facts: Any) -> ScriptedAnswer:
    return ScriptedAnswer(**{"body": FILM, "content_type": "video/mp4", "headers": ETAG} | facts)


def rest(start: int, **facts: Any) -> ScriptedAnswer:
    content_range = f"bytes {start}-{len(FILM) - 1}/{len(FILM)}"
    return film(**{"status": 206, "body": FILM[start:], "headers": {"Content-Range": content_range}} | facts)


@pytest.fixture
def url(sandbox: Sandbox) -> str:
    return f"{sandbox.cdn_url}/dream-machine/clip.mp4?X-Amz-Signature=hush"


def content(file: StagedFile) -> bytes:
    return Path(file.path).read_bytes()


def is_whole(file: StagedFile) -> bool:
    return content(file) == FILM and file.sha256 == hashlib.sha256(FILM).hexdigest()


def test_a_whole_file_is_described(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film())
    downloader.fetch(url, file)
    assert is_whole(file)
    assert file.size == len(FILM)
    assert file.source is not None
    assert file.source.content_type == "video/mp4"


@pytest.mark.parametrize(
    "trouble",
    [
        film(cut=True),
        film(body=b""),
        film(body="<html>busy</html>", content_type="text/html; charset=utf-8"),
        film(body={"error": "busy"}, content_type="application/json"),
        film(headers={"Content-Encoding": "gzip"}),
        film(status=503),
        film(status=429),
        film(status=408),
        film(status=416),
    ],
    ids=["cut", "empty", "html", "json", "encoded", "503", "429", "408", "416"],
)
def test_trouble_is_tried_again(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, trouble: ScriptedAnswer
) -> None:
    sandbox.script_downloads(trouble, film())
    downloader.fetch(url, file)
    assert is_whole(file)


def asked_range(sandbox: Sandbox, request: int = 1) -> tuple[str | None, str | None]:
    headers = sandbox.downloads[request].headers
    return headers.get("range"), headers.get("if-range")


def test_a_cut_download_goes_on_where_it_was_cut(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    half = len(FILM) // 2
    sandbox.script_downloads(film(cut=True), rest(half))
    downloader.fetch(url, file)
    assert asked_range(sandbox) == (f"bytes={half}-", '"a-film"')
    assert is_whole(file)


def test_the_date_of_a_file_stands_in_for_its_etag(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    date = "Sun, 22 Dec 2024 13:38:40 GMT"
    sandbox.script_downloads(film(cut=True, headers={"Last-Modified": date, "ETag": 'W/"weak"'}), film())
    downloader.fetch(url, file)
    assert asked_range(sandbox) == (f"bytes={len(FILM) // 2}-", date)


def test_without_a_validator_it_starts_over(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film(cut=True, headers={}), film())
    downloader.fetch(url, file)
    assert asked_range(sandbox) == (None, None)
    assert is_whole(file)


@pytest.mark.parametrize(
    "answer",
    [
        film(),
        film(headers={"ETag": '"another-film"'}),
        film(status=206, body=FILM[:HALF], headers={"Content-Range": f"bytes 0-{HALF - 1}/{len(FILM)}"}),
        rest(len(FILM) // 2, headers={"Content-Range": f"bytes {len(FILM) // 2}-399999/999999"}),
        rest(len(FILM) // 2, headers={}),
        film(status=416, body=b"", headers={"Content-Range": "bytes */400000"}),
    ],
    ids=["ignores the range", "changed", "another range", "another size", "no range", "416"],
)
def test_what_does_not_fit_is_started_over(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, answer: ScriptedAnswer
) -> None:
    sandbox.script_downloads(film(cut=True), answer, film())
    downloader.fetch(url, file)
    assert is_whole(file)


def test_attempts_that_bring_something_new_are_not_counted(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts, start = [], 0
    for _ in range(6):  # twice as often as the downloader would try in vain
        cuts.append(rest(start, cut=True, headers={**ETAG, "Content-Range": f"bytes {start}-399999/400000"}))
        start += (len(FILM) - start) // 2
    sandbox.script_downloads(film(cut=True), *cuts[1:], rest(start))
    monkeypatch.setattr("airflow_provider_luma.download.download._FIRST_WAIT", 0.01)
    downloader.fetch(url, file)
    assert is_whole(file)


def test_lasting_trouble_gives_up_and_names_the_link_without_its_signature(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(*[film(cut=True, headers={})] * 9)
    with pytest.raises(TransientDownloadError, match=r"dream-machine/clip\.mp4") as error:
        downloader.fetch(url, file)
    assert "hush" not in str(error.value)
    assert len(sandbox.downloads) == 4  # the first brought something


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refused_link_is_not_tried_again(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, status: int
) -> None:
    sandbox.script_downloads(film(status=status))
    with pytest.raises(LinkExpiredError, match=str(status)) as error:
        downloader.fetch(url, file)
    assert "hush" not in str(error.value)
    assert len(sandbox.downloads) == 1


def test_other_refusals_are_plain_errors(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film(status=400))
    with pytest.raises(DownloadError, match="answered 400"):
        downloader.fetch(url, file)
    assert len(sandbox.downloads) == 1


def test_redirects_are_followed_also_relative_ones(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film(status=302, headers={"Location": "/elsewhere.mp4"}), film())
    downloader.fetch(url, file)
    assert file.size == len(FILM)
    assert sandbox.downloads[1].path == "/elsewhere.mp4"


def test_redirects_are_bounded(sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile) -> None:
    sandbox.script_downloads(*[film(status=302, headers={"Location": "/again"})] * 20)
    with pytest.raises(DownloadError, match="more than 5 redirects"):
        downloader.fetch(url, file)


@pytest.mark.parametrize("link", ["ftp://cdn/clip.mp4", "file:///etc/passwd", "clip.mp4", ""])
def test_only_http_links_are_followed(downloader: Downloader, file: StagedFile, link: str) -> None:
    with pytest.raises(UnsafeURLError, match="not an http"):
        downloader.fetch(link, file)


def small(sandbox: Sandbox, max_bytes: int) -> Downloader:
    session = guarded_session(relay_url=sandbox.base_url, allowed_hosts=["127.0.0.1"], connections=1)
    return Downloader(session, max_bytes=max_bytes, attempts=1)


def test_a_file_above_the_limit_is_refused_before_it_is_downloaded(
    sandbox: Sandbox, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film())
    with pytest.raises(DownloadError, match=r"400\.0 kB or more.* above max_bytes \(300\.0 kB\)"):
        small(sandbox, 300_000).fetch(url, file)
    assert file.size == 0


def test_a_file_that_does_not_tell_its_size_is_cut_off_at_the_limit(
    chunked_server: str, sandbox: Sandbox, file: StagedFile
) -> None:
    with pytest.raises(DownloadError, match="above max_bytes"):
        small(sandbox, 300_000).fetch(chunked_server, file)
    assert file.size < 1_000_000


def test_too_little_disk_is_an_error_before_the_download_and_names_both_numbers(
    downloader: Downloader, file: StagedFile
) -> None:
    with (
        Sandbox(tasks=1, seconds=0, fail=0, video_bytes=10**15) as sandbox,
        pytest.raises(DownloadError, match=r"need 1,000,000\.0 GB more in .*, which has [\d.,]+ GB free"),
    ):
        downloader.fetch(link(sandbox), file)
    assert file.size == 0


def test_all_downloads_under_way_need_room_together(staging: Staging) -> None:
    from airflow_provider_luma.download.staging import Source

    free = os.statvfs(staging.folder).f_bavail * os.statvfs(staging.folder).f_frsize
    with staging.file() as one, staging.file() as two:
        one.restart(Source(free * 2 // 3, "video/mp4", None))
        with pytest.raises(DownloadError, match="lower max_parallel"):
            two.restart(Source(free * 2 // 3, "video/mp4", None))
    with staging.file() as three:
        three.restart(Source(free * 2 // 3, "video/mp4", None))


def link(sandbox: Sandbox) -> str:
    (task,) = RelayClient(sandbox.api_key, sandbox.base_url).get_tasks(sandbox.task_ids).values()
    assert task.video
    assert task.video.url
    return task.video.url


@pytest.fixture
def endless() -> Any:
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=10_000_000_000) as sandbox:
        yield link(sandbox)


def test_being_stopped_ends_a_download_within_a_second(
    endless: str, downloader: Downloader, file: StagedFile
) -> None:
    threading.Timer(0.3, downloader.stop).start()
    started = time.monotonic()
    with pytest.raises(DownloadError, match="stopped"):
        downloader.fetch(endless, file)
    assert time.monotonic() - started < 1.3


def test_being_stopped_ends_also_a_wait_for_bytes(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film(delay=60))
    threading.Timer(0.3, downloader.stop).start()
    started = time.monotonic()
    with pytest.raises(DownloadError, match="stopped"):
        downloader.fetch(url, file)
    assert time.monotonic() - started < 1.3


def test_the_time_for_a_download_is_bounded_however_much_it_brings(
    endless: str, downloader: Downloader, file: StagedFile
) -> None:
    started = time.monotonic()
    with pytest.raises(DownloadError, match="download_timeout"):
        downloader.fetch(endless, file, deadline=started + 0.5)
    assert time.monotonic() - started < 1.5


def test_the_time_for_a_download_includes_its_attempts(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(*[film(status=503)] * 9)
    with pytest.raises(DownloadError, match="download_timeout"):
        downloader.fetch(url, file, deadline=time.monotonic() + 0.3)


def test_nothing_secret_is_left_of_a_link() -> None:
    assert (
        without_query("https://u:p@cdn.example/a/b.mp4?X-Amz-Signature=1#x") == "https://cdn.example/a/b.mp4"
    )
