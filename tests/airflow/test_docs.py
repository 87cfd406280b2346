"""Every sample of the documentation is run: Dags in a real Airflow, on the sandbox and a real S3."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pendulum
import pytest

from airflow_provider_luma.sandbox import Sandbox
from tests.conftest import DAGS
from tests.serving import Quiet, serving
from tests.stores import S3

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SAMPLE = re.compile(
    r"^(?:% ends: (?P<state>\w+)\n\n)?```(?P<kind>python|json)\n(?P<text>.*?)^```$", re.M | re.S
)
EXAMPLE_ID = "4665a07c-7641-4809-a133-10786201bb56"

pytestmark = pytest.mark.usefixtures("airflow_db")


def samples(page: Path, kind: str) -> list[re.Match[str]]:
    return [match for match in SAMPLE.finditer(page.read_text()) if match["kind"] == kind]


def pages_with(kind: str) -> list[Path]:
    return [page for page in PAGES if samples(page, kind)]


@pytest.fixture
def slack_messages() -> Iterator[list[dict[str, Any]]]:
    """The messages that Slack received."""
    messages: list[dict[str, Any]] = []

    class Slack(Quiet):
        def do_POST(self) -> None:
            messages.append(self.read_json())
            self.respond(b"ok", "text/plain")

    with serving(Slack) as address, pytest.MonkeyPatch.context() as environment:
        slack = {"conn_type": "slackwebhook", "host": address, "password": "T0/B0/xyz"}
        environment.setenv("AIRFLOW_CONN_SLACK_DEFAULT", json.dumps(slack))
        yield messages


@pytest.fixture
def relay(connect: Callable[..., None], s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """What the samples take for granted: two tasks, a bucket, tables of prompts for these days."""
    tables = s3.folder / "my-bucket/prompts"
    tables.mkdir(parents=True, exist_ok=True)
    for days in (-1, 0, 1):
        table = tables / f"{pendulum.now('UTC').add(days=days).to_date_string()}.csv"
        table.write_text("prompt\ncat dance\na glass marble\n")
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3.connection())
    with Sandbox(tasks=0, seconds=1) as sandbox:
        connect(sandbox)
        sandbox.add_task(task_id=EXAMPLE_ID, seconds=0)
        sandbox.add_task(task_id="failed-generation", seconds=0, failure_reason="moderation")
        yield sandbox


@pytest.mark.parametrize(
    "page", [page for page in PAGES if samples(page, "python")], ids=lambda page: page.stem
)
def test_the_python_of_a_page_runs(
    page: Path,
    relay: Sandbox,
    slack_messages: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    names: dict[str, Any] = {"__name__": "sample", "api_key": relay.api_key, "base_url": relay.base_url}
    file = DAGS / f"sample_{page.stem}.py"
    for sample in samples(page, "python"):
        file.write_text(sample["text"])
        exec(compile(named_dags(sample["text"]), str(file), "exec"), names)  # noqa: S102
        if "DAG(" in sample["text"]:
            run = names["dag"].test()
            assert str(run.state) == (sample["state"] or "success"), names["dag"].dag_id
    file.unlink()
    for name, test in names.items():
        if name.startswith("test_"):
            test(monkeypatch, tmp_path)
    if page.stem == "recipes":
        assert "failed-generation" in slack_messages[0]["text"]


def named_dags(source: str) -> ast.Module:
    """Read a sample; a DAG in it gets the name ``dag``."""
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.With) and "DAG(" in ast.unparse(node.items[0].context_expr):
            node.items[0].optional_vars = ast.Name("dag", ast.Store())
    return ast.fix_missing_locations(tree)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if samples(page, "json")], ids=lambda page: page.stem
)
def test_the_json_of_a_page_is_json(page: Path) -> None:
    for sample in samples(page, "json"):
        json.loads(sample["text"])
