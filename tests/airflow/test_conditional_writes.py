"""One small object on every store: found again, and never written over what somebody else wrote."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.submit.conditional_writes import (
    ConflictError,
    VersionedObject,
    _ConditionalObject,
    open_folder,
)
from tests.serving import Quiet, serving
from tests.stores import S3


@pytest.fixture
def folder(destination_url: str) -> str:
    if destination_url.startswith("file:"):
        Path(destination_url.removeprefix("file://")).mkdir()
    return destination_url


def open_object(folder: str, name: str) -> VersionedObject:
    return open_folder(folder)(name)


NAME = "dag/manual__2026-11-21T10%3A00%3A00%2B00%3A00/task/-1.json"


def test_the_next_process_finds_an_object_again(folder: str) -> None:
    first = open_object(folder, NAME)
    assert first.read() is None
    first.write(b"1")
    first.write(b"2")
    second = open_object(folder, NAME)
    assert second.read() == b"2"
    second.write(b"3")
    assert open_object(folder, NAME).read() == b"3"


def test_of_two_writers_one_wins(folder: str) -> None:
    if folder.startswith(("s3://rclone", "gs://")):
        pytest.skip("rclone's S3 server and the emulator of Google's store ignore conditions")
    first, second = (open_object(folder, NAME) for _ in range(2))
    assert first.read() is second.read() is None
    first.write(b"1")
    with pytest.raises(ConflictError):
        second.write(b"2")
    assert second.read() == b"1"
    second.write(b"2")
    with pytest.raises(ConflictError):
        first.write(b"3")
    assert open_object(folder, NAME).read() == b"2"


def test_a_missing_bucket_is_an_error_and_not_an_absent_object(destination_url: str) -> None:
    if destination_url.startswith(("file:", "gs:")):
        pytest.skip("has no bucket; Google's SDK tells no absent bucket from an absent object")
    scheme, _, rest = destination_url.partition("://")
    url = f"{scheme}://{rest.partition('@')[0]}@no-such-bucket/x"
    with pytest.raises(Exception, match=r"NoSuchBucket|ContainerNotFound"):
        open_object(url, NAME).read()


@pytest.fixture
def forgetful(moto: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on an S3 server that applies the first attempt of each write, and drops its response."""
    seen: set[bytes] = set()

    class Handler(Quiet):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            far = HTTPConnection(urlsplit(moto.url).netloc)
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            far.request(self.command, self.path, body, headers)
            response = far.getresponse()
            content = response.read()
            is_first, _ = body not in seen, seen.add(body)
            if self.command == "PUT" and is_first:
                self.close_connection = True
                return
            self.send_response(response.status)
            for name in ("ETag", "Content-Type"):
                self.send_header(name, response.headers.get(name, ""))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = forward  # noqa: N815

    with serving(Handler) as url:
        connection = json.loads(moto.connection())
        connection["extra"] |= {"endpoint_url": url}
        monkeypatch.setenv("AIRFLOW_CONN_FORGETFUL", json.dumps(connection))
        yield f"s3://forgetful@bucket/{uuid.uuid4().hex}"


def test_a_write_whose_response_was_lost_is_no_conflict(forgetful: str) -> None:
    item = open_object(forgetful, NAME)
    assert item.read() is None
    item.write(b"1")  # the SDK tries again, and fails the condition that its first attempt had met
    item.write(b"2")
    other = open_object(forgetful, NAME)
    assert other.read() == b"2"
    item.write(b"3")
    with pytest.raises(ConflictError):
        other.write(b"4")


class _FailedConditionError(Exception):
    status_code = 412


class _LosesResponses(_ConditionalObject):
    """An object of a store that applies a write, and loses its response or fails the SDK's second attempt."""

    def __init__(self, *losses: Exception) -> None:
        super().__init__("s3://bucket/x")
        self.losses = list(losses)
        self.content: bytes | None = None
        self.number = 0

    def _get(self) -> tuple[bytes | None, Any]:
        return self.content, self.number or None

    def _put(self, content: bytes, version: Any) -> Any:
        if version != (self.number or None):
            raise _FailedConditionError
        self.content, self.number = content, self.number + 1
        if self.losses:
            raise self.losses.pop(0)
        return self.number


@pytest.mark.parametrize(
    "second", [ConnectionError("lost"), _FailedConditionError()], ids=["lost", "repeated"]
)
def test_two_lost_responses_in_a_row_are_no_conflict_of_a_single_writer(second: Exception) -> None:
    item = _LosesResponses(ConnectionError("lost"), second)
    item.read()
    for content in (b"1", b"2", b"3"):
        with suppress(ConnectionError):
            item.write(content)
    assert item.content == b"3"
    item.content, item.number = b"of another writer", item.number + 1
    with pytest.raises(ConflictError):
        item.write(b"4")


@pytest.mark.parametrize("url", ["bucket/prefix", "s3://", "", "s3:/bucket"])
def test_a_path_that_is_no_folder_is_an_error(url: str) -> None:
    with pytest.raises(LumaValueError, match="state_path must be the URL of a folder"):
        open_object(url, NAME)


@pytest.mark.parametrize(
    "url",
    [
        "https://acct.blob.core.windows.net/luma?sv=2024&sig=SECRET%3D",
        "abfs://luma@acct/x?sig=SECRET",
        "file:///tmp/x?sig=SECRET",
        "https://host/x;sig=SECRET",
        *(f"{scheme}://AKIA:SECRET@bucket/x" for scheme in ("foo", "s3", "gs", "abfs", "https")),
        "foo://AKIA:p@SECRET@bucket/x",
        "//AKIA:SECRET@bucket/x",
        r"https:\/\/AKIA:SECRET@bucket\/x",
    ],
)
def test_no_secret_of_a_path_stands_in_an_error(url: str) -> None:
    with pytest.raises(LumaValueError, match="state_path") as error:
        open_object(url, NAME)
    assert "SECRET" not in str(error.value)


def test_where_a_store_has_no_condition_a_look_before_the_write_shows_the_other_writer(
    azure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of Azure without a connection, whose credentials only Airflow's object storage reads."""
    connection = json.loads(azure)["extra"]["connection_string"]
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    folder = f"abfs://bucket/{uuid.uuid4().hex}"
    first, second = (open_object(folder, NAME) for _ in range(2))
    assert first.read() is second.read() is None
    second.write(b"2")
    with pytest.raises(ConflictError):
        first.write(b"1")
    assert second.read() == b"2"


class _Gateway(Quiet):
    def do_GET(self) -> None:
        page = b"404 page not found\n"
        self.send_response(404)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


def test_a_404_of_a_gateway_is_an_error_and_not_an_absent_object(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(_Gateway) as url:
        monkeypatch.setenv("AIRFLOW_CONN_GATEWAY", S3(url, s3.folder).connection())
        with pytest.raises(Exception, match="404"):
            open_object("s3://gateway@bucket/x", NAME).read()
