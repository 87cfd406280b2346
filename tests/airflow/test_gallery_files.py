"""Local files that the gallery serves: none outside of its entry, and none that stays open."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.synchronize
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware

from airflow_provider_luma.ui.local_file import file_response, open_below
from airflow_provider_luma.ui.media_paths import locate, read_media_paths


def read(entry: str, uri: str, dag_id: str = "mine") -> bytes | None:
    """Return the content of a file as the gallery opens it."""
    (path,) = read_media_paths(entry, dag_id)
    location = locate(uri)
    assert location in path
    file = open_below(path, location)
    if file is None:
        return None
    with file:
        return file.read()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for folder, content in (
        ("clips/mine", b"ours"),
        ("clips/others", b"secret"),
        ("secrets/mine", b"secret"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.mp4").write_bytes(content)
    return tmp_path / "clips"


def test_only_the_administrators_part_may_lead_over_links(clips: Path) -> None:
    (clips.parent / "mount").symlink_to(clips)
    mount = (clips.parent / "mount").as_uri()
    assert read(f"{mount}/{{dag_id}}", f"{mount}/mine/a.mp4") == b"ours"
    assert read(f"{mount}/mine", f"{mount}/mine/a.mp4") == b"ours"
    (clips / "mine").rename(clips / "moved")
    (clips / "mine").symlink_to(clips / "others")
    assert read(f"{mount}/{{dag_id}}", f"{mount}/mine/a.mp4") is None
    assert read(f"{mount}/{{dag_id}}/deeper", f"{mount}/mine/deeper/a.mp4") is None
    assert read(mount, f"{mount}/mine/a.mp4") is None


@pytest.mark.parametrize("entry", ["file:///{dag_id}", "file:///{dag_id}/clips", "file:///x{dag_id}"])
def test_an_entry_with_nothing_of_the_administrators_own_holds_for_no_dag(entry: str) -> None:
    assert read_media_paths(entry, "etc") == []


@pytest.mark.parametrize("swapped", ["clips/mine/a.mp4", "clips/mine"])
def test_a_link_that_takes_a_place_at_any_time_leads_nowhere(clips: Path, swapped: str) -> None:
    opened = set()
    entry, uri = f"{clips.as_uri()}/{{dag_id}}", f"{clips.as_uri()}/mine/a.mp4"
    with swapping(clips.parent / swapped, clips.parent / swapped.replace("clips", "secrets", 1)):
        for _ in range(5_000):
            opened.add(read(entry, uri))
    assert b"secret" not in opened
    assert opened <= {b"ours", None}


@pytest.mark.parametrize("name", ["\ud83d.mp4", "a\0.mp4", "a\n.mp4", "a\x9b.mp4"])
def test_a_name_with_what_no_store_writes_leads_nowhere(name: str) -> None:
    assert locate(f"file:///clips/{name}") is None


@pytest.mark.parametrize(("entry", "file"), [("clips", "mine/a.mp4"), ("clips/{dag_id}", "mine/a.mp4")])
def test_a_link_that_takes_the_place_of_an_entry_leads_nowhere(clips: Path, entry: str, file: str) -> None:
    """Where tasks may write in its parent, an entry may become a link once the api-server has started."""
    entry, uri = f"{clips.parent.as_uri()}/{entry}", f"{clips.as_uri()}/{file}"
    assert read(entry, uri) == b"ours"
    clips.rename(clips.parent / "moved")
    clips.symlink_to(clips.parent / "secrets")
    assert read(entry, uri) is None


def test_a_folder_on_the_way_may_be_one_that_is_only_searched() -> None:
    """As the home of another user is, with the mode 0711."""
    with TemporaryDirectory() as folder:
        inner = Path(folder, "home/clips")
        inner.mkdir(parents=True)
        (inner / "a.mp4").write_bytes(b"ours")
        for place in (Path(folder), Path(folder, "home")):
            place.chmod(0o311)  # also for its owner, as tests may run as any user but root
        ends = multiprocessing.get_context("fork").Pipe(duplex=False)
        arguments = (Path(folder), inner / "a.mp4", ends[1])
        reader = multiprocessing.get_context("fork").Process(target=_read_as_nobody, args=arguments)
        reader.start()
        reader.join()
        Path(folder).chmod(0o700)
        Path(folder, "home").chmod(0o700)
        assert ends[0].poll()
        assert ends[0].recv() == b"ours"


def _read_as_nobody(entry: Path, file: Path, answer: Any) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    answer.send(read(entry.as_uri(), file.as_uri()))


def test_an_absent_folder_is_no_error(clips: Path) -> None:
    clips.rename(clips.parent / "moved")
    assert read(clips.as_uri(), f"{clips.as_uri()}/mine/a.mp4") is None


@contextmanager
def swapping(place: Path, secret: Path) -> Iterator[None]:
    """Replace a file or folder by a link to a secret, again and again, until the end of the block."""
    stopped = multiprocessing.get_context("fork").Event()
    swapper = multiprocessing.get_context("fork").Process(target=_swap, args=(place, secret, stopped))
    swapper.start()
    try:
        yield
    finally:
        stopped.set()
        swapper.join()


def _swap(place: Path, secret: Path, stopped: multiprocessing.synchronize.Event) -> None:
    aside = place.with_name("aside")
    while not stopped.is_set():
        place.rename(aside)
        place.symlink_to(secret)
        place.unlink()
        aside.rename(place)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """Serve a large file as the api-server does: below a middleware. Yields the port."""
    (tmp_path / "large.mp4").write_bytes(bytes(64 * 1024 * 1024))
    app = FastAPI()
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))

    @app.get("/", response_model=None)
    def large(request: Request) -> Response:
        (path,) = read_media_paths(tmp_path.as_uri(), "mine")
        location = locate(f"{tmp_path.as_uri()}/large.mp4")
        assert location is not None
        opened = open_below(path, location)
        assert opened is not None
        return file_response(opened, request.method, request.headers, {}, "video/mp4")

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()
    listener.close()


def test_a_client_that_disconnects_leaves_no_file_open(server: int, tmp_path: Path) -> None:
    gc.disable()
    try:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(15) == b"HTTP/1.1 200 OK"
        deadline = time.monotonic() + 30
        while count_open(tmp_path / "large.mp4") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert count_open(tmp_path / "large.mp4") == 0
    finally:
        gc.enable()


def count_open(file: Path) -> int:
    found = 0
    for handle in Path("/proc/self/fd").iterdir():
        try:
            found += handle.readlink() == file
        except OSError:  # closed meanwhile
            continue
    return found
