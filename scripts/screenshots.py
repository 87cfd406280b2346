"""
Clicks through the approval example in a real browser, and takes the pictures of the documentation.

A complete Airflow on loopback, the embedded sandbox, an S3 server and Debian's Chromium without a screen. It
fails when something is paid before the approval, or something else is kept than what was chosen.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from airflow_provider_luma.sandbox import Sandbox  # noqa: E402 - after the path
from tests.stack.stack import Stack  # noqa: E402
from tests.stores import s3_server  # noqa: E402

IMAGES = ROOT / "docs/images"
DAG_ID = "example_luma_approval"
PROMPTS = [
    {"prompt": "a paper boat crossing a puddle after the rain", "clips": 3},
    {"prompt": "steam rising from a bowl of ramen, close up", "clips": 2},
    {"prompt": "a lighthouse in a storm, seen from the sea"},
]
CLIPS = 6
CHOSEN = (2, 5, 6)
PATIENCE = 300


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Sandbox(tasks=0, seconds=5, balance=25, price=0.35) as sandbox,
    ):
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL runs as another user
        with s3_server(home / "s3") as s3:
            connections = {
                "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(sandbox.connection),
                "AIRFLOW_CONN_S3": s3.connection(),
            }
            # One after the other, because each takes a processor while it starts.
            stack = Stack(home, connections, parts=("api-server",))
            file = ROOT / f"example_dags/{DAG_ID}.py"
            with stack.running({file.name: file.read_text()}):
                stack.start("dag-processor")
                stack.until(
                    lambda: bool(stack.rows("select 1 from serialized_dag")), "the Dag is known", PATIENCE
                )
                for part in ("scheduler", "triggerer"):
                    stack.start(part)
                click_through(stack, sandbox)


def click_through(stack: Stack, sandbox: Sandbox) -> None:
    stack.trigger(DAG_ID, {"prompts": PROMPTS, "destination": "s3://s3@bucket/clips"})
    browser_path = shutil.which("chromium")
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not run as root; the pages are ours.
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(PATIENCE * 1000)

        open_action(page, stack, "Pay for these clips?")
        page.get_by_text("2.10 USD").wait_for()
        page.screenshot(path=IMAGES / "approval.png")
        check(sandbox.submits == [], "something was paid for before the approval")
        page.get_by_role("button", name="Approve").click()

        open_action(page, stack, "Which clips are kept?")
        choose(page)
        page.screenshot(path=IMAGES / "choice.png")
        page.get_by_role("button", name="Respond").click()
        stack.until(lambda: ("success", 1) in stack.states("keep"), "the choice is kept", PATIENCE)
        browser.close()
    ((kept,),) = stack.rows("select value from xcom where task_id = 'keep' and key = 'return_value'")
    check(len(kept) == len(CHOSEN), f"not what was chosen: {kept}")
    check(len(sandbox.submits) == CLIPS, f"{len(sandbox.submits)} clips were paid for, not {CLIPS}")
    print(f"Kept {len(kept)} of {CLIPS} clips; the account has {sandbox.balance:.2f} USD left.")


def open_action(page: Page, stack: Stack, subject: str) -> None:
    """Go to a required action by the page that lists them all, when it is there."""
    stack.until(
        lambda: bool(stack.rows("select 1 from hitl_detail where subject = %s", subject)), subject, PATIENCE
    )
    page.goto(f"{stack.api}/required_actions?response_received=false")
    page.get_by_role("link", name=subject).first.click()


def choose(page: Page) -> None:
    box = page.get_by_role("combobox").last
    for position in CHOSEN:
        box.click()
        page.get_by_role("option", name=f"{position}: ").click()
    page.keyboard.press("Escape")


def check(condition: Any, message: str) -> None:
    if not condition:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
