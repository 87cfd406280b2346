"""Builds sdist and wheel in dist/, twice, as the same sources give the same bytes; checks what they hold."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
BIN = Path(sys.executable).parent
NOT_SOURCES = shutil.ignore_patterns(".git", ".venv", ".demo", ".*_cache", "__pycache__", "build", "dist")
LICENCES = {"LICENSE", "NOTICE"}


def main() -> int:
    shutil.rmtree(DIST, ignore_errors=True)
    build(DIST)
    with tempfile.TemporaryDirectory() as again:
        shutil.copytree(ROOT, Path(again) / "elsewhere", ignore=NOT_SOURCES)
        build(Path(again) / "dist", Path(again) / "elsewhere")
        if digests(DIST) != digests(Path(again) / "dist"):
            sys.exit(
                f"The same sources gave other bytes: {digests(DIST)} and {digests(Path(again) / 'dist')}"
            )
    wheel, sdist = next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))
    check_wheel(wheel)
    run("twine", "check", "--strict", wheel, sdist)
    run("check-wheel-contents", wheel)
    run("pyroma", "--min", "10", "--skip-tests", "AuthorEmail", sdist)  # reports go to the issue tracker
    for name, digest in digests(DIST).items():
        print(f"{digest}  dist/{name}")
    return 0


def build(folder: Path, sources: Path = ROOT) -> None:
    """Build the sdist, and the wheel from it, with the versions that are pinned."""
    constraints = ("--build-constraints", ROOT / "constraints-dev.txt")
    run("uv", "build", "--quiet", *constraints, "--python", sys.executable, "--out-dir", folder, sources)
    (folder / ".gitignore").unlink(missing_ok=True)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def check_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    version = wheel.name.split("-")[1]
    rooms = {name.partition("/")[0] for name in names}
    if rooms != {"airflow_provider_luma", f"airflow_provider_luma-{version}.dist-info"}:
        sys.exit(f"The wheel holds more than the package: {sorted(rooms)}")
    if tests := [name for name in names if "test" in name.rpartition("/")[2]]:
        sys.exit(f"The wheel holds tests: {tests}")
    if missing := LICENCES - {name.rpartition("/")[2] for name in names if "/licenses/" in name}:
        sys.exit(f"The wheel lacks {sorted(missing)}")
    package = ROOT / "airflow_provider_luma"
    data = [
        package / "py.typed",
        *(file for file in package.glob("ui/*/*") if file.suffix not in {".py", ".pyc"}),
    ]
    if missing := {str(file.relative_to(ROOT)) for file in data} - {*names}:
        sys.exit(f"The wheel lacks {sorted(missing)}")
    sdist = next(wheel.parent.glob("*.tar.gz"))
    with tarfile.open(sdist) as packed:
        held = {name.partition("/")[2] for name in packed.getnames()}
        if missing := LICENCES - held:
            sys.exit(f"The sdist lacks {sorted(missing)}")


def run(program: str, *arguments: str | Path) -> None:
    subprocess.run([BIN / program, *arguments], check=True, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": ""})


if __name__ == "__main__":
    sys.exit(main())
