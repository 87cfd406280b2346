from __future__ import annotations

import pickle

import pytest

from airflow_provider_luma import exceptions
from airflow_provider_luma.exceptions import (
    LumaError,
    RelayAuthenticationError,
    RelayError,
    RelayInvalidRequestError,
    RelayPermanentError,
    RelayPermissionError,
    RelayRateLimitError,
    RelayTransientError,
    error_from_dict,
)

KINDS = [
    RelayAuthenticationError,
    RelayPermissionError,
    RelayInvalidRequestError,
    RelayRateLimitError,
    RelayTransientError,
]


def test_every_error_is_a_luma_error_and_drawn_in_the_tree():
    kinds = [
        kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert issubclass(kind, LumaError)
        assert f" {kind.__name__}" in exceptions.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_only_permanent_errors_are_non_retryable(kind):
    assert issubclass(kind, RelayError)
    assert issubclass(kind, RelayPermanentError) == (kind not in {RelayRateLimitError, RelayTransientError})


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_the_same_in_another_process(kind):
    error = kind("The relay responded", status=401, request_id="2024")
    pickled = pickle.loads(pickle.dumps(error))  # noqa: S301
    for copy in (error_from_dict(error.to_dict()), pickled):
        assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))


def test_an_error_of_an_unknown_kind_is_trouble():
    error = error_from_dict({"type": "RelayWeatherError", "message": "rain"})
    assert (type(error), str(error), error.status) == (RelayTransientError, "rain", None)
