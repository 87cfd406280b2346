from __future__ import annotations

import pytest

from airflow_provider_luma.exceptions import RelayTransientError
from tests.certificate import server_context, write_certificate

EMPTY_LIST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("tls") / "relay.pem")


@pytest.fixture
def base_url(certificate, listen):
    return listen(EMPTY_LIST, tls=server_context(certificate))[0]


def test_a_certificate_that_nobody_signed_is_refused(base_url, make_client):
    with pytest.raises(RelayTransientError, match="certificate verify failed"):
        make_client(base_url=base_url).get_tasks(["a"])


def test_a_bundle_that_holds_the_certificate_makes_it_good(base_url, certificate, make_client):
    assert make_client(base_url=base_url, verify=str(certificate)).get_tasks(["a"]) == {}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_checking_certificates_can_be_turned_off(base_url, make_client):
    assert make_client(base_url=base_url, verify=False).get_tasks(["a"]) == {}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_what_the_client_is_told_of_certificates_wins_over_the_environment(
    base_url, make_client, monkeypatch, tmp_path
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert make_client(base_url=base_url, verify=False).get_tasks(["a"]) == {}


def test_the_bundle_of_the_environment_is_used_when_none_is_given(
    base_url, certificate, make_client, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert make_client(base_url=base_url).get_tasks(["a"]) == {}
