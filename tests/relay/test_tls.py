from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airflow_provider_luma.exceptions import RelayTransientError

EMPTY_LIST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Write a certificate of 127.0.0.1 that nobody signed, and its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "relay.pem"
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def base_url(certificate, listen):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return listen(EMPTY_LIST, tls=context)[0]


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
