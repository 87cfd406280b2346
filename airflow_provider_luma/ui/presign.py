"""
Presigned URLs of objects: for one object, to read, for some minutes.

The content type is part of the signature, so that a store never sends anything as a page.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_luma.store_clients import azure_client, gcs_client, s3_client
from airflow_provider_luma.ui.media_paths import LOCAL, MediaPath

EXPIRES_SECONDS = 600

# How long a client is kept: a connection that changed is read again.
_KEPT_SECONDS = 300

_Sign = Callable[[str, str, str, str], str]


def presign(path: MediaPath, key: str, content_type: str, disposition: str, *, method: str = "GET") -> str:
    """
    Return a URL that anybody can read the object with, until it expires.

    :param path: the entry of the administrator's list whose connection signs.
    :param method: ``GET`` or ``HEAD``; stores sign it.
    :raises Exception: what the store's provider raises, when its credentials cannot sign.
    """
    kind, bucket, _ = path.location
    sign = _signer(kind, path.conn_id, bucket, int(time.time() / _KEPT_SECONDS))
    parts = urlsplit(sign(method, key, content_type, disposition))
    # An endpoint may be configured with a user and a password, which are not for browsers.
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def origin_of(path: MediaPath) -> str | None:
    """Return scheme, host and port of presigned URLs, ``None`` for local files."""
    if path.location.kind == LOCAL:
        return None
    parts = urlsplit(presign(path, "origin.mp4", "video/mp4", "inline"))
    return f"{parts.scheme}://{parts.netloc}"


@lru_cache(maxsize=64)
def _signer(kind: str, conn_id: str | None, bucket: str, _period: int) -> _Sign:
    return _SIGNERS[kind](conn_id, bucket)


def _s3(conn_id: str | None, bucket: str) -> _Sign:
    client = s3_client(conn_id, signature_version="s3v4")

    def sign(method: str, key: str, content_type: str, disposition: str) -> str:
        wanted = {"ResponseContentType": content_type, "ResponseContentDisposition": disposition}
        return str(
            client.generate_presigned_url(
                "get_object",
                Params={"Bucket": bucket, "Key": key, **wanted},
                ExpiresIn=EXPIRES_SECONDS,
                HttpMethod=method,
            )
        )

    return sign


def _gcs(conn_id: str | None, bucket: str) -> _Sign:
    client, _ = gcs_client(conn_id)

    def sign(method: str, key: str, content_type: str, disposition: str) -> str:
        return str(
            client.bucket(bucket)
            .blob(key)
            .generate_signed_url(
                version="v4",
                expiration=timedelta(seconds=EXPIRES_SECONDS),
                method=method,
                api_access_endpoint=client._connection.API_BASE_URL,  # noqa: SLF001 - has no other name
                response_type=content_type,
                response_disposition=disposition,
            )
        )

    return sign


def _azure(conn_id: str | None, container: str) -> _Sign:
    from azure.storage.blob import BlobSasPermissions, generate_blob_sas

    client = azure_client(conn_id)
    if client is None:
        raise ValueError("The connection is not one of type wasb")

    def sign(_method: str, key: str, content_type: str, disposition: str) -> str:
        start = datetime.now(UTC) - timedelta(minutes=1)
        expiry = start + timedelta(seconds=EXPIRES_SECONDS)
        account_key: str | None = getattr(client.credential, "account_key", None)
        signing: dict[str, Any] = (
            {"account_key": account_key}
            if account_key
            else {"user_delegation_key": client.get_user_delegation_key(start, expiry)}
        )
        token = generate_blob_sas(
            client.account_name,
            container,
            key,
            permission=BlobSasPermissions(read=True),
            expiry=expiry,
            content_type=content_type,
            content_disposition=disposition,
            **signing,
        )
        return f"{client.get_blob_client(container, key).url.partition('?')[0]}?{token}"

    return sign


_SIGNERS: dict[str, Callable[[str | None, str], _Sign]] = {"s3": _s3, "gcs": _gcs, "azure": _azure}
