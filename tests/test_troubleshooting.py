"""Every message on the troubleshooting page is one that the package really writes."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
# The values of a log line, such as %s or %.1f.
PLACEHOLDER = re.compile(r"%[-.\d]*[sdrfg]")
VALUE = "\0"


def quoted_messages() -> list[str]:
    cells = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| *")]
    return [message for cell in cells for message in re.findall(r"\*([^*]+)\*", cell)]


@functools.cache
def written_messages() -> str:
    """Return the package's string literals except docstrings, one a line, with a mark for each value."""
    texts = []
    for path in (ROOT / "airflow_provider_luma").rglob("*.py"):
        if "sandbox" not in path.parts:
            nodes = list(ast.walk(ast.parse(path.read_text())))
            docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
            texts += [text_of(node) for node in nodes if node not in docstrings]
    return "\n".join(text.replace("\n", " ") for text in texts if text)


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return PLACEHOLDER.sub(VALUE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return ""


def test_the_page_quotes_messages():
    assert len(quoted_messages()) > 30


@pytest.mark.parametrize("message", quoted_messages())
def test_every_message_on_the_page_is_in_the_package(message: str) -> None:
    pattern = r"[^\n]*".join(map(re.escape, message.split("...")))
    assert re.search(pattern, written_messages()), message
