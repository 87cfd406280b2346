from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

import airflow_provider_luma
from airflow_provider_luma.get_provider_info import get_provider_info
from airflow_provider_luma.hooks.luma import _EXTRA_PARSERS, LumaHook, RelaySettings
from tests.airflow.harness import AIRFLOW

INFO = get_provider_info()
CONNECTION_TYPE = INFO["connection-types"][0]
# What get_provider_info() may say beyond the file provider.yaml, by Airflow's runtime schema.
RUNTIME_KEYS = {"package-name", "name", "description"}


def schema(name: str) -> dict[str, Any]:
    return json.loads((files("airflow") / name).read_text())


def test_the_entry_point_returns_the_provider_info() -> None:
    (point,) = [
        point
        for point in entry_points(group="apache_airflow_provider")
        if point.module.startswith("airflow_provider_luma.")
    ]
    assert point.load()() == INFO


def test_airflow_accepts_the_info() -> None:
    runtime = schema("provider_info.schema.json")
    jsonschema.validators.validator_for(runtime)(runtime).validate(INFO)


@pytest.mark.parametrize("key", INFO)
def test_every_key_matches_the_schema_of_provider_yaml(key: str) -> None:
    strict = schema("provider.yaml.schema.json")
    assert key in strict["properties"]
    definitions = {"definitions": strict.get("definitions", {})}  # which the part may refer to
    jsonschema.validate(INFO[key], strict["properties"][key] | definitions)


@pytest.mark.skipif(AIRFLOW < (3, 2), reason="the schema of Airflow 3.0 and 3.1 lets any key pass")
def test_a_misspelt_key_would_be_noticed() -> None:
    strict = schema("provider.yaml.schema.json")["properties"]["connection-types"]
    wrong = json.loads(json.dumps(INFO["connection-types"]))
    wrong[0]["ui-field-behaviour"]["relabelling"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, strict)


@pytest.mark.parametrize("kind", ["hooks", "operators", "sensors", "triggers"])
def test_every_module_on_disk_is_listed_and_can_be_imported(kind: str) -> None:
    listed = [module for entry in INFO[kind] for module in entry["python-modules"]]
    package = importlib.import_module(f"airflow_provider_luma.{kind}")
    on_disk = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    helpers = {
        *("sensors.wait", "sensors.wait_store", "operators.base", "operators.destination"),
        *(
            f"triggers.{name}"
            for name in ("async_rate_limiter", "fired_tasks", "poller", "registry", "request", "subscription")
        ),
    }
    assert set(listed) == set(on_disk) - {f"airflow_provider_luma.{helper}" for helper in helpers}
    for module in listed:
        importlib.import_module(module)


def test_the_links_and_the_plugin_are_those_that_airflow_loads() -> None:
    from airflow_provider_luma.ui.plugin import LumaPlugin

    (plugin,) = INFO["plugins"]
    (point,) = [point for point in entry_points(group="airflow.plugins") if point.name == "luma"]
    assert point.load() is pkgutil.resolve_name(plugin["plugin-class"]) is LumaPlugin
    assert plugin["name"] == LumaPlugin.name
    listed = {pkgutil.resolve_name(name) for name in INFO["extra-links"]}
    # Airflow 3.0 has no tabs: the plugin is there, and empty.
    assert {type(link) for link in LumaPlugin().operator_extra_links} == (
        listed if AIRFLOW >= (3, 1) else set()
    )
    assert len(getattr(LumaPlugin, "external_views", [])) == (2 if AIRFLOW >= (3, 1) else 0)
    assert len(LumaPlugin().fastapi_apps) == (1 if AIRFLOW >= (3, 1) else 0)


def test_integration_names_agree() -> None:
    names = {entry["integration-name"] for entry in INFO["integrations"]}
    used = {
        entry["integration-name"]
        for kind in ("hooks", "operators", "sensors", "triggers")
        for entry in INFO[kind]
    }
    assert used == names


def test_the_hook_and_the_info_name_the_same_connection_type() -> None:
    assert CONNECTION_TYPE["hook-class-name"] == f"{LumaHook.__module__}.{LumaHook.__qualname__}"
    assert CONNECTION_TYPE["connection-type"] == LumaHook.conn_type
    assert CONNECTION_TYPE["hook-name"] == LumaHook.hook_name


def test_every_form_field_is_read_and_has_the_default_that_applies_without_it() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(RelaySettings)}
    fields = CONNECTION_TYPE["conn-fields"]
    assert fields.keys() == _EXTRA_PARSERS.keys()
    for name, field in fields.items():
        assert (field["schema"]["default"] or ()) == (defaults[name] or ())
        assert field["label"]
        assert field["description"]


def test_the_form_of_older_airflows_has_the_same_fields() -> None:
    # In a process of its own, because Airflow stands in for wtforms there the way its web server does.
    script = """
import json
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService as service
from airflow_provider_luma.hooks.luma import LumaHook
service._get_hooks_with_mocked_fab()
from unittest import mock
import wtforms, flask_babel
with (
    mock.patch.object(wtforms, "StringField", service.MockStringField),
    mock.patch.object(wtforms, "IntegerField", service.MockIntegerField),
    mock.patch.object(wtforms, "BooleanField", service.MockBooleanField),
    mock.patch.object(flask_babel, "lazy_gettext", str),
):
    widgets = {name: field.param.dump() for name, field in LumaHook.get_connection_form_widgets().items()}
print("RESULT" + json.dumps([widgets, LumaHook.get_ui_field_behaviour()]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    widgets, behaviour = json.loads(done.stdout.rpartition("RESULT")[2])
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        assert widgets[name]["schema"]["title"] == field["label"]
        assert widgets[name]["description"] == field["description"]
        assert widgets[name]["value"] == field["schema"]["default"]
    assert widgets.keys() == CONNECTION_TYPE["conn-fields"].keys()
    assert behaviour == {
        "hidden_fields": CONNECTION_TYPE["ui-field-behaviour"]["hidden-fields"],
        "relabeling": CONNECTION_TYPE["ui-field-behaviour"]["relabeling"],
        "placeholders": CONNECTION_TYPE["ui-field-behaviour"]["placeholders"],
    }


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["providers", "get", "airflow-provider-luma"], [airflow_provider_luma.__version__]),
        (["providers", "links"], ["airflow_provider_luma.links.clips.ClipsLink"]),
        (["plugins", "--output", "json"], ["luma" if AIRFLOW >= (3, 1) else ""]),
        (["providers", "hooks"], ["luma", "airflow_provider_luma.hooks.luma.LumaHook"]),
    ],
)
def test_airflows_command_line_knows_the_provider(command: list[str], words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *command], capture_output=True, text=True, check=True
    )
    assert all(word in done.stdout for word in words)
    assert "airflow_provider_luma" not in done.stderr
