"""Real runs on the sandbox, a real api-server that shows them, and Debian's Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_luma.sandbox import Sandbox
from tests.airflow.harness import Run
from tests.conftest import DAGS
from tests.stores import S3
from tests.ui import seeds
from tests.ui.server import ApiServer, api_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

# `make test` does without a browser.
collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

PATIENCE = 60_000  # milliseconds; a machine under load may take its time
MANY = 1_000
RELAY_PAGES = "https://relay.example.com/tasks"


@dataclass(frozen=True)
class Airflow:
    """An Airflow with runs to look at."""

    server: ApiServer
    clips: Run
    s3: Run
    many: Run
    batch: Run
    by_hand: Run
    closed: Run
    running_id: str
    folder: Path

    def page_of(self, run: Run, rest: str = "") -> str:
        return f"{self.server.url}/luma/clips/{run.dag_id}/{run.run_id}{rest}"

    def media_of(self, run: Run, clip_id: str, **changed: object) -> dict[str, object]:
        return {"run_id": run.run_id, "task_id": "download", "clip_id": clip_id} | changed


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Iterator[Airflow]:
    from airflow.utils.db import initdb

    initdb()
    folder = tmp_path_factory.mktemp("ui")
    clips = (folder / "clips").as_uri()
    secret = folder / "secret.mp4"
    os.environ["AIRFLOW_CONN_GALLERY"] = s3.connection()
    with Sandbox(tasks=0, seconds=1) as sandbox, Sandbox(tasks=MANY, seconds=0, fail=0) as library:
        _connect(sandbox)
        made = seeds.make_clips("make_clips", f"{clips}/made")
        in_s3 = seeds.make_clips("clips_in_s3", "s3://gallery@bucket/clips", seeds.PROMPTS[:2], ["video"])
        batch = seeds.make_batch("batch_of_clips", f"{clips}/batch")
        closed = seeds.make_clips("closed_clips", (folder / "closed").as_uri(), seeds.PROMPTS[:4])
        _connect(library)
        many = seeds.download_clips("many_clips", library, f"{clips}/many")
        secret.write_bytes(next((folder / "clips/many").glob("*.mp4")).read_bytes())
        by_hand = seeds.write_by_hand("clips_by_hand", seeds.attacks(clips, secret))
        _connect(sandbox)
        paths = f"{clips}, s3://gallery@bucket/clips"
        with (
            _unfinished_run(folder) as running_id,
            api_server(folder, {"AIRFLOW__LUMA__GALLERY_PATHS": paths}) as server,
        ):
            yield Airflow(server, made, in_s3, many, batch, by_hand, closed, running_id, folder)


def _connect(sandbox: Sandbox) -> None:
    connection = sandbox.connection
    connection["extra"] |= {"task_page": f"{RELAY_PAGES}/{{id}}"}
    os.environ["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps(connection)


@pytest.fixture
def prefixed(airflow: Airflow) -> Iterator[ApiServer]:
    """The same Airflow below a path, as behind a proxy that serves more than it."""
    environment = {"AIRFLOW__LUMA__GALLERY_PATHS": (airflow.folder / "clips").as_uri()}
    (airflow.folder / "prefixed").mkdir()
    with api_server(airflow.folder / "prefixed", environment, path="/air/flow") as server:
        yield server


@contextmanager
def _unfinished_run(folder: Path) -> Iterator[str]:
    """Run a Dag in a process of its own, which waits until the end of the block; yield the id of the run."""
    file = DAGS / "waiting_clips.py"
    file.write_text(seeds.clips_source("waiting_clips", "file:///tmp/never", seeds.PROMPTS[:3]))
    log = (folder / "waiting.log").open("wb")
    command = [sys.executable, "-m", "tests.ui.waiting_run", str(file)]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _wait_for_run(process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
        file.unlink()


def _wait_for_run(process: subprocess.Popen[bytes]) -> str:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(TaskInstance.run_id).filter_by(dag_id="waiting_clips", task_id="wait", state="running")
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        with create_session() as session:
            run_id = session.scalars(query).first()
        if run_id:
            return str(run_id)
        time.sleep(0.5)
    raise RuntimeError("The waiting run does not run")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not run as root; the pages are ours.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        yield browser
        browser.close()


def log_in(page: Page, server: ApiServer, user: str) -> None:
    """Log a user in by Airflow's form."""
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server.url}/auth/login")
    log_in_here(page, user)


def log_in_here(page: Page, user: str) -> None:
    """Fill in the form that the page is at, or is led to."""
    page.locator("input").first.fill(user)
    page.locator("input[type=password]").fill(user)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/auth/login" not in url)


@pytest.fixture(scope="session")
def logged_in(browser: Browser, airflow: Airflow) -> Callable[..., BrowserContext]:
    """Log a user in by Airflow's form, once; return a fresh context with the session."""
    states: dict[str, object] = {}

    def logged_in(user: str, **options: object) -> BrowserContext:
        if user not in states:
            context = browser.new_context()
            log_in(context.new_page(), airflow.server, user)
            states[user] = context.storage_state()
            context.close()
        return browser.new_context(storage_state=states[user], **options)  # type: ignore[arg-type]

    return logged_in


@pytest.fixture
def problems() -> list[str]:
    """What a page complains of: errors of scripts, violations of its policy, requests to elsewhere."""
    return []


@pytest.fixture
def page(logged_in: Callable[..., BrowserContext], airflow: Airflow, problems: list[str]) -> Iterator[Page]:
    """A page of the viewer's, which must not complain."""
    context = logged_in("viewer", viewport={"width": 1280, "height": 800})
    page = watched(context, airflow, problems)
    yield page
    context.close()
    assert problems == []


def watched(context: BrowserContext, airflow: Airflow, problems: list[str]) -> Page:
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.on("console", lambda said: problems.append(said.text) if "Content Security" in said.text else None)
    return page
