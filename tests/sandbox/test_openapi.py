"""The sandbox matches the relay's OpenAPI document, in both shapes and with faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from schemathesis import checks

from airflow_provider_luma.sandbox import Faults, Sandbox

DESCRIPTION = Path(__file__).parents[2] / "docs/relay-openapi.yaml"
schema = schemathesis.openapi.from_path(DESCRIPTION)
schema.config.generation.modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
schema.config.generation.allow_x00 = False
EXAMPLE = "4665a07c-7641-4809-a133-10786201bb56"


@pytest.fixture(scope="module", params=["bare", "wrapped", "faults"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    shape, faults = request.param, Faults()
    if shape == "faults":
        shape = "bare"
        faults = Faults(
            rate_limited=0.2,
            retry_after=1,
            server_errors=0.2,
            submits_rate_limited=0.2,
            submits_unavailable=0.2,
        )
    with Sandbox(shape=shape, faults=faults, seconds=1, balance=20) as sandbox:
        sandbox.add_task(
            task_id="4665a07c-7641-4809-a133-10786201bb56", seconds=0
        )  # the description's example
        yield sandbox


@schema.parametrize()
def test_every_response_matches_the_openapi_document(case: schemathesis.Case, sandbox: Sandbox) -> None:
    excluded = [
        checks.unsupported_method,  # relays respond to unknown paths with their dashboard
        checks.positive_data_acceptance,  # and a task that they do not know with 400
        *([checks.not_a_server_error] if sandbox.faults.server_errors else []),
    ]
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    case.call_and_validate(base_url=sandbox.base_url, headers=headers, excluded_checks=excluded)
