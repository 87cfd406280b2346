"""Connections and operator arguments of any kind are accepted, or rejected by name."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from airflow.providers.common.compat.sdk import Connection
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.hooks.luma import _EXTRA_PARSERS, RelaySettings
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaGenerateOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from tests.strategies import JSON, rejection

KEY = "sk-of-the-connection"
EXTRAS = st.fixed_dictionaries({}, optional=dict.fromkeys(_EXTRA_PARSERS, JSON)) | st.dictionaries(
    st.text(), JSON
)


@given(st.none() | st.text(), st.none() | st.integers(0, 99999), EXTRAS)
def test_a_connection_is_parsed_or_rejected_without_its_key(host: Any, port: Any, extra: Any) -> None:
    connection = Connection(conn_id="luma", conn_type="luma", host=host, port=port, password=KEY)
    error = rejection(lambda: RelaySettings.from_connection(connection, extra).create_client())
    assert error is None or KEY not in f"{error!r} {error}"


@given(EXTRAS)
def test_settings_that_are_read_can_be_used(extra: Any) -> None:
    connection = Connection(conn_id="luma", conn_type="luma", password=KEY)
    with suppress(LumaValueError):
        settings = RelaySettings.from_connection(connection, extra)
        assert KEY not in repr(settings)
        assert settings.timeout > 0
        assert settings.batch_size >= 1
        assert hash(settings) == hash(
            RelaySettings.from_connection(connection, extra)
        )  # triggers are gathered by them


@given(st.sampled_from(["timeout", "batch_size", "max_in_flight", "max_requests_per_minute"]), JSON)
def test_an_unusable_extra_field_is_named(name: str, value: Any) -> None:
    connection = Connection(conn_id="luma", conn_type="luma", password=KEY)
    if error := rejection(RelaySettings.from_connection, connection, {name: value}):
        assert f"The connection 'luma' has an unusable extra field {name!r}" in str(error)


DOWNLOAD = {
    "media": JSON,
    "name_template": JSON,
    "if_exists": JSON,
    "max_parallel": JSON,
    "max_bytes": JSON,
    "download_timeout": JSON,
    "link_timeout": JSON,
    "fail_when": JSON,
    "manifest": JSON,
}


@given(st.fixed_dictionaries({}, optional=DOWNLOAD))
def test_arguments_of_a_download_are_accepted_or_rejected(arguments: dict[str, Any]) -> None:
    with suppress(LumaValueError):
        LumaDownloadOperator(
            task_id="download", luma_task_ids=[], destination="file:///tmp/clips", **arguments
        )


SENSOR = {"fail_when": JSON, "fail_fast": JSON, "missing_grace": JSON}


@given(st.fixed_dictionaries({}, optional=SENSOR), JSON)
def test_arguments_of_a_sensor_are_accepted_or_rejected(arguments: dict[str, Any], ids: Any) -> None:
    with suppress(LumaValueError):
        LumaTaskSensor(task_id="wait", luma_task_ids=ids, **arguments)


@given(
    st.fixed_dictionaries(
        {"prompt": JSON}, optional=dict.fromkeys(("aspect_ratio", "loop", "duration"), JSON)
    )
)
def test_arguments_of_a_generation_are_accepted_or_rejected(arguments: dict[str, Any]) -> None:
    with suppress(LumaValueError):
        LumaGenerateOperator(task_id="generate", **arguments)
