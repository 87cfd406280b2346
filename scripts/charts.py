"""
Draws the charts of docs/performance.md from the tables that the benchmark targets wrote to benchmarks/.

Each chart is an SVG of bars with a background of its own, so that it is readable in light and in dark pages.
``python scripts/charts.py --check`` fails if a chart is not that of its table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "docs/_static"
WIDTH, BAR, GAP, TOP, LABELS = 720, 22, 10, 64, 250
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Bar:
    """One bar; ours have the project's colour."""

    label: str
    value: float
    is_ours: bool


def read_table(path: Path, column: str) -> list[dict[str, str]]:
    """Return the rows of the Markdown table that has this column."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|") and column in cells(line))
    names = cells(lines[start])
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, cells(line), strict=True)))
    return rows


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def waiting_bars() -> Iterator[Bar]:
    for row in read_table(ROOT / "benchmarks/wait.md", "CPU s a minute"):
        if row["ids"] == "1,000":
            label = row["triggers"].replace(" (floor)", "").replace(" (peer)", "")
            yield Bar(label, number(row["CPU s a minute"]), label.startswith("ours"))


def transfer_bars(column: str) -> Iterator[Bar]:
    for row in read_table(ROOT / "benchmarks/transfer.md", "wall s"):
        label = f"{row['what']}, {row['who']}"
        yield Bar(label, number(row[column]), row["who"] == "ours")


def memory_bars() -> Iterator[Bar]:
    for row in read_table(ROOT / "benchmarks/memory.md", "MiB added"):
        what = f"{row['videos at once']} x {row['MiB each']} MiB, {row['store']}"
        yield Bar(what, number(row["MiB added"]), is_ours=True)


def number(text: str) -> float:
    return float(text.split()[0].replace(",", ""))


def draw(title: str, unit: str, bars: Iterable[Bar]) -> str:
    rows = list(bars)
    height = TOP + len(rows) * (BAR + GAP) + 10
    scale = (WIDTH - LABELS - 100) / max(bar.value for bar in rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="{FONT}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="14" fill="#f6f4fd"/>',
        f'<text x="24" y="30" font-size="16" font-weight="600" fill="#1d1638">{escape(title)}</text>',
        f'<text x="24" y="49" font-size="13" fill="#4a4560">{escape(unit)}</text>',
    ]
    for index, bar in enumerate(rows):
        y = TOP + index * (BAR + GAP)
        width = max(bar.value * scale, 1)
        colour = "#5b3fd6" if bar.is_ours else "#a9a3c2"
        parts += [
            f'<text x="{LABELS - 10}" y="{y + 16}" text-anchor="end" font-size="13.5" fill="#1d1638">'
            f"{escape(bar.label)}</text>",
            f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="3" fill="{colour}"/>',
            f'<text x="{LABELS + width + 8:.1f}" y="{y + 16}" font-size="13.5" fill="#1d1638">'
            f"{bar.value:g}</text>",
        ]
    return "\n".join([*parts, "</svg>", ""])


DRAWINGS: dict[str, Callable[[], str]] = {
    "chart-waiting.svg": lambda: draw(
        "Waiting for 1,000 ids", "CPU seconds a minute, less is better", waiting_bars()
    ),
    "chart-transfer-wall.svg": lambda: draw(
        "Downloading to S3: time", "seconds, less is better", transfer_bars("wall s")
    ),
    "chart-transfer-cpu.svg": lambda: draw(
        "Downloading to S3: CPU", "CPU seconds, less is better", transfer_bars("CPU s")
    ),
    "chart-memory.svg": lambda: draw(
        "Memory that downloading adds", "MiB at the peak, by the size of the videos", memory_bars()
    ),
}


def main(arguments: list[str]) -> int:
    stale = [name for name, drawing in DRAWINGS.items() if not is_current(CHARTS / name, drawing())]
    if arguments == ["--check"]:
        if stale:
            print(f"Not drawn from the newest tables: {', '.join(stale)}. Run python scripts/charts.py")
        return bool(stale)
    for name in stale:
        (CHARTS / name).write_text(DRAWINGS[name]())
        print(f"docs/_static/{name}")
    return 0


def is_current(path: Path, drawing: str) -> bool:
    return path.exists() and path.read_text() == drawing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
