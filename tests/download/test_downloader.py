from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.download.downloader import READ_BYTES, Downloader
from airflow_provider_luma.download.retry import MAX_TOTAL_ATTEMPTS, Link
from airflow_provider_luma.download.ssrf import AddressPolicy
from airflow_provider_luma.download.staging import Source, StagedFile, Staging
from airflow_provider_luma.download.transport import Transport
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.exceptions import (
    DownloadError,
    LinkExpiredError,
    TransientDownloadError,
    UnsafeURLError,
)
from airflow_provider_luma.relay import RelayClient
from airflow_provider_luma.sandbox import Sandbox, ScriptedResponse
from airflow_provider_luma.sandbox.media import video
from tests.download.conftest import create_downloader
from tests.download.raw_server import RawServer, raw_server, response

SIZE = 400_000
FILM = b"".join(video("a-film", SIZE).chunks(0, SIZE))
OTHER = b"".join(video("another-film", SIZE).chunks(0, SIZE))
HALF = SIZE // 2
ETAG = {"ETag": '"a-film"'}


def film(**facts: Any) -> ScriptedResponse:
    return ScriptedResponse(**{"body": FILM, "content_type": "video/mp4", "headers": ETAG} | facts)


def rest(start: int, source: bytes = FILM, **facts: Any) -> ScriptedResponse:
    headers = {**ETAG, "Content-Range": f"bytes {start}-{SIZE - 1}/{SIZE}"} | facts.pop("headers", {})
    return film(**{"status": 206, "body": source[start:]} | facts, headers=headers)


@pytest.fixture
def url(sandbox: Sandbox) -> str:
    return f"{sandbox.cdn_url}/dream-machine/clip.mp4?X-Amz-Signature=hush"


def download(downloader: Downloader, url: str, file: StagedFile, kind: str = "video") -> str:
    return downloader.download(Link(lambda: None, url, timeout=0), file, kind, "a film")


def content(file: StagedFile) -> bytes:
    return b"".join(file.iter_bytes())


def is_complete(file: StagedFile) -> bool:
    return content(file) == FILM and file.sha256 == hashlib.sha256(FILM).hexdigest()


def test_a_complete_file_is_described(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film())
    assert download(downloader, url, file) == "video/mp4"
    assert is_complete(file)
    assert file.source == Source(SIZE, "video/mp4", '"a-film"')


NOT_THE_FILE: dict[str, ScriptedResponse] = {
    "truncated": film(truncated=True),
    "empty": film(body=b""),
    "html": film(body="<html>busy</html>", content_type="text/html; charset=utf-8"),
    "html as video/mp4": film(body="<html>busy</html>"),
    "html without a type": film(body="<html>busy</html>", content_type=None),
    "xhtml": film(content_type="application/xhtml+xml"),
    "svg": film(body="<svg/>", content_type="image/svg+xml"),
    "json": film(body={"error": "busy"}, content_type="application/json"),
    "an image": film(content_type="image/jpeg"),
    "another encoding": film(headers={"Content-Encoding": "gzip"}),
    "shorter than it says": film(body=FILM[:HALF]),
    "trailing bytes": film(body=FILM + b"x"),
    "an unrequested 206": rest(0),
    "an unrequested part": rest(HALF),
    "503": film(status=503),
    "408": film(status=408),
    "416": film(status=416),
}


@pytest.mark.parametrize("name", NOT_THE_FILE)
def test_a_wrong_body_is_retried_and_never_published(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, name: str
) -> None:
    sandbox.script_downloads(NOT_THE_FILE[name], film())
    download(downloader, url, file)
    assert is_complete(file)
    sandbox.script_downloads(*[NOT_THE_FILE[name]] * 9)
    with pytest.raises(TransientDownloadError) as error:
        download(downloader, url, file)
    assert "hush" not in str(error.value)


RAW: dict[str, bytes] = {
    "a body without length, cut by a close": response(FILM[:HALF], length=False),
    "a Content-Length shorter than the file": response(FILM, f"Content-Length: {HALF}", length=False),
    "a Content-Length of 5,000 digits": response(FILM, f"Content-Length: {'9' * 5000}", length=False),
    "two different Content-Lengths": response(FILM, "Content-Length: 7"),
    "a negative Content-Length": response(FILM, "Content-Length: -1", length=False),
    "a truncated chunk": response(b"5\r\nhel", "Transfer-Encoding: chunked", length=False),
    "no HTTP": b"220 smtp.example.com ESMTP\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", RAW)
def test_a_malformed_response_is_never_published(file: StagedFile, name: str) -> None:
    downloader = create_downloader(max_attempts=2)
    with raw_server(RAW[name]) as server, pytest.raises(TransientDownloadError) as error:
        download(downloader, server.url, file)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "where", ["http://[broken", "//", "http://a b/", "ftp://x/y", "http://\u00e9" + "a" * 70]
)
def test_a_redirect_to_an_invalid_url_is_a_permanent_error(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, where: str
) -> None:
    body = b"HTTP/1.1 302 Found\r\nLocation: " + where.encode() + b"\r\nContent-Length: 0\r\n\r\n"
    with raw_server(body) as server, pytest.raises(DownloadError):
        download(downloader, server.url, file)


def test_the_body_of_a_redirect_is_not_read(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    def endless(client: socket.socket) -> None:
        client.sendall(f"HTTP/1.1 302 Found\r\nLocation: {url}\r\n\r\n".encode())
        while True:
            client.sendall(b"x" * 65536)

    sandbox.script_downloads(film())
    with raw_server(endless) as server:
        download(downloader, server.url, file)
    assert is_complete(file)


def requested_range(sandbox: Sandbox, request: int = 1) -> tuple[str | None, str | None]:
    headers = sandbox.downloads[request].headers
    return headers.get("range"), headers.get("if-range")


def test_a_truncated_download_resumes_where_it_ended(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film(truncated=True), rest(HALF))
    download(downloader, url, file)
    assert requested_range(sandbox) == (f"bytes={HALF}-", '"a-film"')
    assert is_complete(file)


def test_the_date_of_a_file_stands_in_for_its_etag(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    date = "Sun, 22 Dec 2024 13:38:40 GMT"
    sandbox.script_downloads(
        film(truncated=True, headers={"Last-Modified": date, "ETag": 'W/"weak"'}), film()
    )
    download(downloader, url, file)
    assert requested_range(sandbox) == (f"bytes={HALF}-", date)


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": '"ï"'}, {"ETag": '"' + "x" * 999 + '"'}]
)
def test_without_a_usable_validator_it_starts_over(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, headers: dict[str, str]
) -> None:
    sandbox.script_downloads(film(truncated=True, headers=headers), film())
    download(downloader, url, file)
    assert requested_range(sandbox) == (None, None)
    assert is_complete(file)


NOT_THE_REST: dict[str, ScriptedResponse] = {
    "ignores the range": film(),
    "another file": film(headers={"ETag": '"another-film"'}),
    "another range": rest(0, FILM[:HALF], headers={"Content-Range": f"bytes 0-{HALF - 1}/{SIZE}"}),
    "another size": rest(HALF, headers={"Content-Range": f"bytes {HALF}-{SIZE - 1}/999999"}),
    "no range": rest(HALF, headers={"Content-Range": ""}),
    "another ETag, same size": rest(HALF, OTHER, headers={"ETag": '"another-film"'}),
    "no ETag, same size": rest(HALF, OTHER, headers={"ETag": ""}),
    "416": film(status=416, body=b"", headers={"Content-Range": f"bytes */{SIZE}"}),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_THE_REST)
def test_a_range_of_another_file_restarts_it(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, name: str
) -> None:
    sandbox.script_downloads(film(truncated=True), NOT_THE_REST[name], film())
    download(downloader, url, file)
    assert is_complete(file)


DATE, OTHER_DATE = (f"Sun, 22 Dec 2024 13:38:4{i} GMT" for i in range(2))
DATED, ENTITY = {"Last-Modified": DATE, "ETag": ""}, {"ETag": '"a-film"', "Last-Modified": DATE}

UNCONFIRMED: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "an ETag that was not there": (DATED, {"Last-Modified": DATE, "ETag": '"another-film"'}),
    "an ETag instead of the date": (DATED, {"ETag": '"another-film"'}),
    "no validator": (DATED, {"ETag": ""}),
    "another date": (DATED, {"Last-Modified": OTHER_DATE, "ETag": ""}),
    "another weak ETag": (
        {"Last-Modified": DATE, "ETag": 'W/"a"'}, {"Last-Modified": DATE, "ETag": 'W/"b"'}),
    "another date beside the ETag": (ENTITY, {"ETag": '"a-film"', "Last-Modified": OTHER_DATE}),
    "a range that ends early": (ETAG, {"Content-Range": f"bytes {HALF}-{SIZE - 2}/{SIZE}"}),
    "a range beyond the end": (ETAG, {"Content-Range": f"bytes {HALF}-{SIZE + 9}/*"}),
    "a range that its length contradicts": (ETAG, {"Content-Length": str(HALF - 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCONFIRMED)
def test_a_206_that_does_not_confirm_the_validator_and_the_range_restarts_it(
    file: StagedFile, name: str
) -> None:
    first, then = UNCONFIRMED[name]
    headers = {"Content-Range": f"bytes {HALF}-{SIZE - 1}/{SIZE}", "Content-Length": str(HALF)} | ETAG | then
    cut = raw_response(FILM[:HALF], {**first, "Content-Length": str(SIZE)})
    with raw_server(
        cut,
        raw_response(OTHER[HALF:], headers, "206 Partial Content"),
        response(FILM, 'ETag: "a-film"'),
    ) as server:
        download(create_downloader(), server.url, file)
        assert len(server.requests) == 3
    assert is_complete(file)


@pytest.mark.parametrize("first", [DATED, ENTITY, {"Last-Modified": DATE, "ETag": 'W/"a"'}])
def test_a_206_that_repeats_the_validators_resumes_it_also_without_a_type(
    file: StagedFile, first: dict[str, str]
) -> None:
    headers = {**first, "Content-Range": f"bytes {HALF}-{SIZE - 1}/{SIZE}", "Content-Type": ""}
    with raw_server(
        raw_response(FILM[:HALF], {**first, "Content-Length": str(SIZE)}),
        raw_response(FILM[HALF:], headers, "206 Partial Content"),
    ) as server:
        download(create_downloader(), server.url, file)
        assert len(server.requests) == 2
    assert is_complete(file)


def test_no_byte_beyond_the_range_is_read(file: StagedFile) -> None:
    headers = {**ETAG, "Content-Range": f"bytes {HALF}-{SIZE - 1}/{SIZE}"}
    with raw_server(
        raw_response(FILM[:HALF], {**ETAG, "Content-Length": str(SIZE)}),
        raw_response(FILM[HALF:] + bytes(20_000_000), headers, "206 Partial Content"),
        response(FILM, 'ETag: "a-film"'),
    ) as server:
        download(create_downloader(), server.url, file)
        assert len(server.requests) == 3
    assert is_complete(file)
    assert file.reached < 2 * SIZE + READ_BYTES


def raw_response(body: bytes, headers: dict[str, str], status: str = "200 OK") -> bytes:
    sent = {"Content-Type": "video/mp4", "Connection": "close"} | headers
    lines = [f"HTTP/1.1 {status}", *(f"{key}: {value}" for key, value in sent.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_a_changed_date_restarts_it(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    old, new = ({"Last-Modified": f"Sun, 22 Dec 2024 13:38:4{i} GMT", "ETag": ""} for i in range(2))
    sandbox.script_downloads(film(truncated=True, headers=old), rest(HALF, OTHER, headers=new), film())
    download(downloader, url, file)
    assert is_complete(file)


def test_a_server_that_truncates_every_response_is_given_up(
    file: StagedFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Three quarters of what was requested, again and again: in the end a byte an attempt."""
    served: list[int] = []

    def cut(client: socket.socket) -> None:
        start = int(server.requests[-1].partition(b"bytes=")[2].partition(b"-")[0] or b"0")
        body = FILM[start : start + (SIZE - start) * 3 // 4]
        served.append(len(body))
        status = "206 Partial Content" if start else "200 OK"
        headers = [
            f"HTTP/1.1 {status}",
            "Content-Type: video/mp4",
            'ETag: "a"',
            f"Content-Length: {SIZE - start}",
        ]
        headers += [f"Content-Range: bytes {start}-{SIZE - 1}/{SIZE}"] if start else []
        client.sendall("\r\n".join(headers).encode() + b"\r\n\r\n" + body)

    with raw_server(cut) as server, pytest.raises(TransientDownloadError, match="closed early"):
        download(create_downloader(max_attempts=3), server.url, file)
    assert 3 <= len(served) <= 8
    retries = [message for message in caplog.messages if "Retrying in" in message]
    assert len(retries) == len(served) - 1
    assert all("a film" in message and "connection closed early" in message for message in retries)
    assert "hush" not in caplog.text


@contextmanager
def cutting_server(pieces: int, piece: int = 70_000) -> Iterator[RawServer]:
    """A server that cuts each response after a piece."""
    size = pieces * piece
    large = b"".join(video("large", size).chunks(0, size))

    def cut(client: socket.socket) -> None:
        start = int(server.requests[-1].partition(b"bytes=")[2].partition(b"-")[0] or b"0")
        status = "206 Partial Content" if start else "200 OK"
        headers = [f"HTTP/1.1 {status}", 'ETag: "a"', f"Content-Length: {size - start}"]
        headers += [f"Content-Range: bytes {start}-{size - 1}/{size}"] if start else []
        client.sendall("\r\n".join(headers).encode() + b"\r\n\r\n" + large[start : start + piece])

    with raw_server(cut) as server:
        yield server


def test_attempts_with_enough_progress_are_not_counted(file: StagedFile) -> None:
    with cutting_server(pieces=12) as server:
        download(create_downloader(max_attempts=2, initial_delay=0.001), server.url, file)
    assert len(server.requests) == 12


def test_all_attempts_are_bounded_whatever_their_progress(file: StagedFile) -> None:
    with (
        cutting_server(pieces=100) as server,
        pytest.raises(DownloadError, match=f"Gave up after {MAX_TOTAL_ATTEMPTS}"),
    ):
        download(create_downloader(initial_delay=0.001), server.url, file)
    assert len(server.requests) == MAX_TOTAL_ATTEMPTS


def test_a_download_that_is_too_slow_is_aborted(file: StagedFile) -> None:
    def drip(client: socket.socket) -> None:
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        for byte in FILM:
            client.sendall(bytes([byte]))
            time.sleep(0.02)

    downloader = create_downloader(min_rate=1000, rate_window=0.2, max_attempts=2)
    with raw_server(drip) as server, pytest.raises(TransientDownloadError, match=r"slower than 1\.0 kB/s"):
        download(downloader, server.url, file)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_respected(sandbox: Sandbox, url: str, file: StagedFile, status: int) -> None:
    wait = ScriptedResponse(status=status, headers={"Retry-After": "1"})
    sandbox.script_downloads(*[wait] * 4, film())
    download(create_downloader(max_attempts=2), url, file)
    times = [request.at for request in sandbox.downloads]
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))
    assert is_complete(file)


def test_a_retry_after_beyond_the_deadline_ends_it_at_once(
    sandbox: Sandbox, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(ScriptedResponse(status=429, headers={"Retry-After": "4000"}))
    with pytest.raises(DownloadError, match=r"429.*download_timeout leaves no time"):
        download(create_downloader(download_timeout=60), url, file)


def test_permanent_errors_give_up_and_name_the_url_without_its_signature(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film(status=400))
    with pytest.raises(DownloadError, match=r"dream-machine/clip\.mp4 responded 400") as error:
        download(downloader, url, file)
    assert "hush" not in str(error.value)
    assert len(sandbox.downloads) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_rejected_url_is_not_retried_unchanged(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile, status: int
) -> None:
    sandbox.script_downloads(film(status=status))
    with pytest.raises(LinkExpiredError, match=str(status)) as error:
        download(downloader, url, file)
    assert "hush" not in str(error.value)
    assert len(sandbox.downloads) == 1


def test_redirects_are_followed_also_relative_ones(
    sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film(status=302, headers={"Location": "/elsewhere.mp4"}), film())
    download(downloader, url, file)
    assert sandbox.downloads[1].path == "/elsewhere.mp4"


def test_redirects_are_bounded(sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile) -> None:
    sandbox.script_downloads(*[film(status=302, headers={"Location": "/again"})] * 20)
    with pytest.raises(DownloadError, match="more than 5 redirects"):
        download(downloader, url, file)


@pytest.mark.parametrize(
    "link", ["ftp://cdn/clip.mp4", "file:///etc/passwd", "clip.mp4", "", "http://[broken"]
)
def test_only_valid_http_urls_are_followed(downloader: Downloader, file: StagedFile, link: str) -> None:
    with pytest.raises(UnsafeURLError, match="not a valid http"):
        download(downloader, link, file)


def test_no_cookie_is_ever_sent(sandbox: Sandbox, downloader: Downloader, url: str, file: StagedFile) -> None:
    cookie = {"Set-Cookie": "session=evil; Path=/"}
    redirect = {"Location": "/elsewhere.mp4", **cookie}
    sandbox.script_downloads(film(status=503, headers=cookie), film(status=302, headers=redirect), film())
    download(downloader, url, file)
    assert len(sandbox.downloads) == 3
    assert not [request for request in sandbox.downloads if "cookie" in request.headers]


@pytest.mark.parametrize("credentials", ["", "user:hush@"])
def test_no_credentials_are_sent(
    sandbox: Sandbox,
    downloader: Downloader,
    url: str,
    file: StagedFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    credentials: str,
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    sandbox.script_downloads(film())
    download(downloader, url.replace("://", f"://{credentials}"), file)
    assert "authorization" not in sandbox.downloads[0].headers


@pytest.mark.parametrize("extra", ["", " not a header\r\n", "Bad Header : x\r\n"])
def test_no_log_at_any_level_has_the_query_of_a_url(
    file: StagedFile, caplog: pytest.LogCaptureFixture, extra: str
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("urllib3", "urllib3.connection", "urllib3.connectionpool", "requests"):
        caplog.set_level(logging.DEBUG, logger=name)
    head = f"HTTP/1.1 200 OK\r\n{extra}Content-Length: {SIZE}\r\n\r\n".encode()
    downloader = create_downloader()
    with raw_server(b"HTTP/1.1 503 Busy\r\n\r\n", head + FILM) as server:
        download(downloader, server.url, file)
    assert "Retrying" in caplog.text
    assert "hush" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_the_logs_of_other_libraries_are_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="urllib3.connectionpool")
    create_downloader()
    logging.getLogger("urllib3.connectionpool").debug("somebody else's request")
    assert "somebody else's request" in caplog.text


def refusing_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/x.mp4?sig=hush"


@pytest.fixture
def not_tls() -> Iterator[str]:
    with raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        yield server.url.replace("http:", "https:")


def test_errors_say_what_failed_without_the_urls_secrets(file: StagedFile, not_tls: str) -> None:
    def reset(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    transport = Transport(AddressPolicy("http://relay", ["127.0.0.1", "nowhere.invalid"]), timeout=5)
    downloader = Downloader(transport, create_downloader(max_attempts=1).limits)
    with raw_server(reset) as server:
        cases = {
            "DNS": "http://nowhere.invalid/x.mp4?sig=hush",
            "connection refused": refusing_url(),
            "TLS": not_tls,
            "connection reset": server.url,
        }
        for reason, url in cases.items():
            with pytest.raises(TransientDownloadError, match=reason) as error:
                download(downloader, url, file)
            assert "hush" not in str(error.value)


def test_a_file_above_the_limit_is_rejected_before_it_is_downloaded(
    sandbox: Sandbox, url: str, file: StagedFile
) -> None:
    sandbox.script_downloads(film())
    with pytest.raises(DownloadError, match=r"400\.0 kB or more.* above max_bytes \(300\.0 kB\)"):
        download(create_downloader(max_bytes=300_000), url, file)
    assert file.size == 0


def test_a_file_without_a_length_is_aborted_at_the_limit(chunked_server: str, file: StagedFile) -> None:
    with pytest.raises(DownloadError, match="above max_bytes"):
        download(create_downloader(max_bytes=300_000), chunked_server, file)
    assert file.size < 1_000_000


def test_too_little_disk_space_is_an_error_before_the_download_and_names_both_numbers(
    downloader: Downloader, file: StagedFile
) -> None:
    with (
        Sandbox(tasks=1, seconds=0, fail=0, video_bytes=10**14) as sandbox,
        pytest.raises(DownloadError, match=r"need 100,000\.0 GB more in .*, which has [\d.,]+ GB free"),
    ):
        download(downloader, link(sandbox), file)
    assert file.size == 0


def test_all_downloads_in_progress_need_disk_space_together(staging: Staging) -> None:
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


def hang(client: socket.socket) -> None:
    client.recv(1)


def drip_headers(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        client.sendall(b"X-Drip: 1\r\n")
        time.sleep(0.05)


def drip_body(client: socket.socket) -> None:
    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode())
    while True:
        client.sendall(b"x")
        time.sleep(0.05)


HANGS = {"no response": hang, "headers that drip": drip_headers, "a body that drips": drip_body}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("name", HANGS)
def test_download_timeout_ends_a_download_in_every_phase(file: StagedFile, name: str, scheme: str) -> None:
    """Over https the handshake hangs or gets nonsense."""
    downloader = create_downloader(download_timeout=0.5, max_attempts=99)
    started = time.monotonic()
    with raw_server(HANGS[name]) as server, pytest.raises(DownloadError, match="download_timeout"):
        download(downloader, server.url.replace("http:", f"{scheme}:"), file)
    assert time.monotonic() - started < 4  # of the sixty that the reads would wait


@pytest.mark.parametrize("through", ["directly", "through a proxy", "through a proxy, TLS"])
@pytest.mark.parametrize("name", HANGS)
def test_a_stop_ends_a_download_in_every_phase(file: StagedFile, name: str, through: str) -> None:
    stopped = threading.Event()
    with raw_server(HANGS[name]) as server:
        proxies = {} if through == "directly" else {"http": server.address, "https": server.address}
        policy = AddressPolicy("http://relay", ["127.0.0.1", "cdn.example"])
        transport = Transport(policy, proxies={k: f"http://{v}" for k, v in proxies.items()})
        downloader = Downloader(transport, stopped=stopped)
        url = server.url if through == "directly" else "http://cdn.example/x.mp4"
        url = url.replace("http:", "https:") if through.endswith("TLS") else url
        stopping = threading.Timer(0.3, stopped.set)
        stopping.start()
        with pytest.raises(DownloadError, match="stopped"):
            download(downloader, url, file)
        set_at = time.monotonic()
        stopping.join()
    assert time.monotonic() - set_at < 2


def test_a_restarted_file_keeps_no_byte_of_before(file: StagedFile) -> None:
    """Also none that a full disk has cut off, which its size does not count."""
    with Path(file.path).open("r+b") as disk:
        disk.write(b"a chunk that was not counted")
    file.restart()
    file.write(b"new")
    assert Path(file.path).read_bytes() == b"new"
    file.restart()
    assert Path(file.path).read_bytes() == b""


def test_a_late_chunk_of_an_abandoned_download_reaches_no_other_file(staging: Staging) -> None:
    with staging.file() as file:
        pass
    with staging.file() as other:  # has the descriptor that the first one had
        with pytest.raises(DownloadError):
            file.write(b"a wrong byte")
        assert other.read_at(0, 100) == b""


def test_urls_are_redacted() -> None:
    assert redact_url("https://u:p@cdn.example/a/b.mp4?X-Amz-Signature=1#x") == "https://cdn.example/a/b.mp4"
    assert "hush" not in redact_url("http://[broken?sig=hush")
