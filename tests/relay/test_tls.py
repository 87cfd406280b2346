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


def test_a_self_signed_certificate_is_rejected(base_url, make_client):
    with pytest.raises(RelayTransientError, match="certificate verify failed"):
        make_client(base_url=base_url).get_tasks(["a"])


def test_a_certificate_in_the_ca_bundle_is_accepted(base_url, certificate, make_client):
    assert make_client(base_url=base_url, verify=str(certificate)).get_tasks(["a"]) == {}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_certificate_verification_can_be_turned_off(base_url, make_client):
    assert make_client(base_url=base_url, verify=False).get_tasks(["a"]) == {}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_the_verify_argument_wins_over_the_environment(base_url, make_client, monkeypatch, tmp_path):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert make_client(base_url=base_url, verify=False).get_tasks(["a"]) == {}


def test_the_ca_bundle_of_the_environment_is_the_default(base_url, certificate, make_client, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert make_client(base_url=base_url).get_tasks(["a"]) == {}
