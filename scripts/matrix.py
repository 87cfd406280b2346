"""
Runs the tests on the Airflow and Python versions that we claim, each in an environment of its own.

An environment gets Airflow as its users install it, under the official constraints of that release, and
then the built wheel. Where the official constraints cannot be downloaded, the package index is queried for
what it held on the day of the release, which is what they froze.

``newest-deps`` is an environment without these pins: the newest release of Airflow and of everything else,
without pre-releases. Warnings that our code causes are errors there, as everywhere, by ``filterwarnings`` of
``pyproject.toml``, so that it finds deprecations of libraries before their removal.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
OFFICIAL = "https://raw.githubusercontent.com/apache/airflow/constraints-{airflow}/constraints-{python}.txt"
PROVIDERS = ("amazon[s3fs]", "google", "microsoft-azure", "openlineage")
# The sandbox's responses do not depend on Airflow, and the tool that checks them needs newer libraries. The
# documentation's samples are for the newest Airflow, and its pages are not part of the environment.
NO_AIRFLOW = tuple(
    f"--ignore=tests/{name}.py"
    for name in ("sandbox/test_openapi", "airflow/test_docs", "test_troubleshooting")
)
STAGED = ("tests", "example_dags", "scripts", "benchmarks", "README.md", "CHANGELOG.md")


@dataclass(frozen=True)
class Release:
    """A release of Airflow, the Pythons it supports of those that we claim, and the day after it came."""

    version: str
    pythons: tuple[str, ...]
    frozen: str


RELEASES = (
    Release("3.0.6", ("3.11", "3.12"), "2025-08-30"),
    Release("3.1.8", ("3.11", "3.12", "3.13"), "2026-03-12"),
    Release("3.2.2", ("3.11", "3.12", "3.13"), "2026-05-30"),
    Release("3.3.2", ("3.11", "3.12", "3.13"), "2026-09-18"),
)


@dataclass(frozen=True)
class Cell:
    """
    One environment.

    :param release: of Airflow; the newest of it and of everything else if None.
    :param lowest: install the lowest versions that our package admits of what it depends on.
    """

    release: Release | None
    python: str
    lowest: bool = False

    @property
    def name(self) -> str:
        if self.release is None:
            return NEWEST_DEPS
        return f"{self.release.version}-py{self.python}" + ("-lowest" if self.lowest else "")


NEWEST_DEPS = "newest-deps"
CELLS = [
    Cell(RELEASES[0], RELEASES[0].pythons[0], lowest=True),
    *(Cell(release, python) for release in RELEASES for python in release.pythons),
]
NAMES = {cell.name: cell for cell in CELLS}
EDGES = ("oldest", "newest", NEWEST_DEPS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cells", nargs="*", choices=[*NAMES, *EDGES, []], help="all but newest-deps where none is named"
    )
    parser.add_argument("--pytest", default="", help="arguments for pytest")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="luma-matrix-") as folder:
        wheel = build_wheel(Path(folder))
        for cell in [named(name) for name in options.cells] or CELLS:
            results.append(run_cell(cell, Path(folder), wheel, shlex.split(options.pytest)))
            print("\n".join(results), flush=True)
    return any(" passed" not in result or "failed" in result or "error" in result for result in results)


def named(name: str) -> Cell:
    """Find a cell; the newest ones are on the newest Python that is here."""
    if name == "oldest":
        return CELLS[0]
    if name not in EDGES:
        return NAMES[name]
    newest = next(cell for cell in reversed(CELLS) if interpreter(cell.python))
    return newest if name == "newest" else Cell(None, newest.python)


def build_wheel(folder: Path) -> Path:
    run(
        UV,
        "build",
        "--quiet",
        "--wheel",
        "--build-constraints",
        ROOT / "constraints-dev.txt",
        "-o",
        folder,
        ROOT,
    )
    return next(folder.glob("*.whl"))


def run_cell(cell: Cell, folder: Path, wheel: Path, pytest: Sequence[str]) -> str:
    """Run the tests in a new environment, away from the sources; say how they went in a line."""
    started = time.monotonic()
    home = folder / cell.name
    python = home / "env/bin/python"
    try:
        run(UV, "venv", "--quiet", "--python", interpreter(cell.python) or cell.python, home / "env")
        source = install(cell, python, wheel)
    except subprocess.CalledProcessError as error:
        return f"{cell.name:20} not installed: {error}"
    (home / "tree").mkdir()
    for name in STAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, home / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, home / "tree")
    shutil.copy(ROOT / "pyproject.toml", home / "tree")
    print(f"{cell.name}: {versions(python)}", flush=True)
    report = home / "report.txt"
    with report.open("wb") as file:
        subprocess.run(
            [python, "-m", "pytest", "-q", "-n", os.environ.get("WORKERS", "4"), *NO_AIRFLOW, *pytest],
            cwd=home / "tree",
            env=os.environ | {"LUMA_TEST_TOOLS": sys.prefix, "PYTHONSAFEPATH": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    lines = report.read_text(errors="replace").splitlines()
    if "failed" in lines[-1] or "error" in lines[-1]:
        print("\n".join(lines[-400:]), flush=True)
    shutil.rmtree(home, ignore_errors=True)
    tests = lines[-1].strip("= ")
    return f"{cell.name:20} {source:24} {tests}; {time.monotonic() - started:.0f} s in all"


def install(cell: Cell, python: Path, wheel: Path) -> str:
    """Install Airflow and the providers of the stores, then what is tested; return which constraints held."""
    tested = (f"{wheel}[s3,gcs,azure]", "--group", f"{ROOT}/pyproject.toml:test")
    providers = [f"apache-airflow-providers-{name}" for name in PROVIDERS]
    install = (UV, "pip", "install", "--quiet", "--python", python)
    if cell.release is None:
        run(*install, "apache-airflow", *providers, *tested)
        # Some providers hold these back, and an installation without them has the newest ones.
        run(*install, "--upgrade", "--no-deps", *(name for name, _ in dependencies()))
        return "no constraints"
    airflow = f"apache-airflow=={cell.release.version}"
    frozen, source = constraints(cell.release, cell.python, python.parent)
    run(*install, *frozen, airflow, *providers)
    run(*install, airflow, *tested)
    if cell.lowest:
        run(*install, airflow, *(f"{name}=={version}" for name, version in dependencies()))
    return source


def constraints(release: Release, python: str, folder: Path) -> tuple[tuple[str, ...], str]:
    url = OFFICIAL.format(airflow=release.version, python=python)
    try:
        response = requests.get(url, timeout=20)
        response.raise_for_status()
    except requests.RequestException:
        return ("--exclude-newer", release.frozen), f"index of {release.frozen}"
    file = folder / "constraints.txt"
    file.write_text(response.text)
    return ("--constraints", str(file)), "official constraints"


def dependencies() -> Iterator[tuple[str, str]]:
    """Yield each of our dependencies but Airflow, which the cell decides, and its lowest version."""
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, version = requirement.split(">=")
        if name != "apache-airflow":
            yield name, version


def interpreter(version: str) -> str | None:
    """Find a Python; pyenv's shims are on the path for versions that do not run."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates = (sys.executable, shutil.which(f"python{version}"), *map(str, pyenv))
    return next((found for found in candidates if found and version_of(found) == version), None)


def version_of(python: str) -> str:
    command = [python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def versions(python: Path) -> str:
    frozen = run(UV, "pip", "freeze", "--quiet", "--python", python)
    ours = re.findall(
        r"^((?:apache-airflow|requests|pendulum|tenacity|apache-airflow-providers-common-compat|s3fs)==\S+)",
        frozen,
        re.M,
    )
    return " ".join(ours)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
