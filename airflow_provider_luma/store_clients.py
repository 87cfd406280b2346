"""
Clients of object stores' own SDKs, made by the official providers' hooks.

So every setting of a connection holds, and credentials renew themselves. The imports are late: a provider is
only needed for its store.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.text import redact_text

# This package's extra that brings the provider of each scheme.
EXTRAS = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "azure"),
}

_MAX_SHOWN_CHARS = 200


def validate_url(argument: str, url: Any) -> None:
    """
    Validate what is between the scheme and ``@``: the id of a connection, no secret, which errors would show.

    :param argument: names the URL in the error.
    :raises LumaValueError: when it is not a URL, or has a secret.
    """
    try:
        user_info, at, _ = urlsplit(str(url)).netloc.rpartition("@")
    except ValueError as error:
        raise LumaValueError(f"{argument} {show_url(url)} is not a URL: {error}") from None
    if at and ":" in user_info:
        raise LumaValueError(
            f"{argument} takes the id of a connection before '@', not a key and its secret: {show_url(url)}"
        )


def show_url(url: Any) -> str:
    """Return a URL for an error, without its secrets: people paste presigned ones."""
    return repr(redact_text(str(url))[:_MAX_SHOWN_CHARS])


def s3_client(conn_id: str | None, *, max_connections: int = 1, signature_version: str | None = None) -> Any:
    """Return a boto3 client with at least that many connections."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    hook = S3Hook(aws_conn_id=conn_id)
    settings = hook.config
    connections = max(settings.max_pool_connections or 0, max_connections)
    # Our SHA-256 is a signed header, so that the payload need not be hashed again for the signature.
    s3 = {"payload_signing_enabled": False} | (settings.s3 or {})
    # Composing its own takes botocore a tenth of the time of each request; what the hook adds is kept.
    user_agent = settings.user_agent or f"Boto3/{version('boto3')}"
    config = settings.merge(Config(max_pool_connections=connections, s3=s3, user_agent=user_agent))
    if signature_version is not None:
        config = config.merge(Config(signature_version=signature_version))
    return hook.get_client_type(config=config)


def get_verify(kind: str, conn_id: str | None) -> bool | str:
    """
    Return how a connection verifies TLS, as ``requests`` takes it: for a request without the store's SDK.

    :param kind: an extra of this package, as ``EXTRAS`` has it.
    """
    verify: bool | str | None = None
    if kind == "s3":
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        verify = S3Hook(aws_conn_id=conn_id).verify
        if verify is None:
            verify = os.environ.get("AWS_CA_BUNDLE") or None
    elif kind == "azure" and conn_id is not None:
        from airflow.providers.microsoft.azure.hooks.wasb import WasbHook

        verify = WasbHook.get_connection(conn_id).extra_dejson.get("connection_verify")
    return True if verify is None else verify


def gcs_client(conn_id: str | None) -> tuple[Any, bool]:
    """Return a client, and whether it leads to Google itself rather than to another endpoint."""
    from airflow.providers.google.cloud.hooks.gcs import GCSHook
    from google.cloud.storage import Client

    if conn_id is None:
        return Client(), True  # application default credentials
    hook = GCSHook(gcp_conn_id=conn_id)
    endpoint = hook.extras.get("gcs.endpoint")  # as Airflow's object storage reads it; the hook does not
    if endpoint is None:
        return hook.get_conn(), True
    options = {"api_endpoint": endpoint}
    client = Client(project=hook.project_id, credentials=hook.get_credentials(), client_options=options)
    return client, False


def azure_client(conn_id: str | None) -> Any:
    """Return a ``BlobServiceClient``; ``None`` where the connection is not one of the hook's."""
    from airflow.providers.microsoft.azure.hooks.wasb import WasbHook

    # Without a connection, and with one of another type, Airflow's object storage knows what to do.
    if conn_id is None or WasbHook.get_connection(conn_id).conn_type != WasbHook.conn_type:
        return None
    return WasbHook(wasb_conn_id=conn_id).get_conn()
