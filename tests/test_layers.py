"""Imports only go down: the relay, the download and the sandbox know nothing of Airflow."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from airflow_provider_luma import relay

PACKAGE = Path(relay.__file__).parents[1]
LAYERS = {
    "relay": "airflow_provider_luma.download airflow_provider_luma.sandbox starlette uvicorn fsspec",
    "download": "airflow_provider_luma.sandbox starlette uvicorn",
    "sandbox": "",
    "exceptions.py": "airflow_provider_luma.relay airflow_provider_luma.download requests pendulum tenacity",
}
LAYERS_ABOVE = "airflow " + " ".join(
    f"airflow_provider_luma.{layer}"
    for layer in ("airflow_exceptions", "hooks", "sensors", "triggers", "operators", "links", "ui")
)


def modules(layer):
    """Name every module of a layer."""
    path = PACKAGE / layer
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__")


def run(source, *arguments):
    """Run this in a Python that has imported nothing yet."""
    command = [sys.executable, "-c", textwrap.dedent(source), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_nothing_from_the_layers_above(layer):
    names = list(modules(layer))
    assert names
    forbidden = f"{LAYERS_ABOVE} {LAYERS[layer]}".split()
    source = """
        import importlib, sys
        for name in sys.argv[2:]:
            importlib.import_module(name)
        forbidden = sys.argv[1].split(",")
        print(*[name for name in sys.modules if any(f"{name}.".startswith(f"{no}.") for no in forbidden)])
    """
    assert run(source, ",".join(forbidden), *names) == []


@pytest.mark.parametrize("layer", LAYERS)
def test_no_function_of_a_layer_imports_airflow_later(layer):
    files = sorted((PACKAGE / layer).rglob("*.py")) or [PACKAGE / layer]
    imports = [
        f"{file.name}: {line.strip()}"
        for file in files
        for line in file.read_text().splitlines()
        if line.split()[:2] in (["import", "airflow"], ["from", "airflow"])
        or line.lstrip().startswith(("import airflow.", "from airflow."))
    ]
    assert imports == []


def test_the_relays_public_names_are_those_it_lists():
    names = {name for name in vars(relay) if not name.startswith("_")}
    submodules = {name.rpartition(".")[2] for name in modules("relay")}
    helpers = {"Any", "TYPE_CHECKING"}
    assert names - submodules - helpers | {"RelayClient"} == set(relay.__all__)
    assert relay.__all__ == sorted(relay.__all__)
    assert all(getattr(relay, name).__module__.startswith("airflow_provider_luma.") for name in relay.__all__)


def test_an_unknown_name_of_the_relay_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'airflow_provider_luma.relay' has no attribute 'RelayServer'"):
        relay.RelayServer  # noqa: B018


def test_the_relay_brings_requests_only_with_its_client():
    source = """
        import sys
        from airflow_provider_luma.relay import TaskBatch
        print("requests" in sys.modules)
        from airflow_provider_luma.relay import RelayClient
        print("requests" in sys.modules)
    """
    assert run(source) == ["False", "True"]
