"""
From a destination's URL and a connection to a store.

For writing, the official provider's own hook makes the client of the store's own SDK, so that every setting
of the connection holds and credentials renew themselves. Any other scheme goes through ``ObjectStoragePath``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.store_clients import (
    EXTRAS,
    azure_client,
    gcs_client,
    s3_client,
    show_url,
    validate_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_luma.download.stores.base import Store

_LOCAL_SCHEMES = frozenset({"", "file", "local"})


def open_store(destination: str, conn_id: str | None, *, max_parallel: int, fsync: bool) -> Store:
    """
    Return the store that a destination names.

    :param conn_id: wins over the one in the URL.
    :param max_parallel: how many uploads at once.
    :param fsync: whether a local file survives a power loss.
    :raises LumaValueError: when it names none, or one whose provider is not installed.
    """
    validate_url("destination", destination)
    parts = urlsplit(destination)
    url_conn_id, _, bucket = parts.netloc.rpartition("@")
    conn_id = conn_id or url_conn_id or None
    if parts.scheme in _LOCAL_SCHEMES:
        return _local(destination, fsync)
    if (extra := EXTRAS.get(parts.scheme)) is None:
        return _other_scheme(destination, conn_id)
    if not bucket:
        raise LumaValueError(f"destination {show_url(destination)} names no bucket")
    try:
        store = _OPENERS[extra](conn_id, bucket, parts.path.strip("/"), max_parallel)
    except ImportError as error:
        raise LumaValueError(
            f"{parts.scheme}:// needs another provider: "
            f"pip install 'airflow-provider-luma[{extra}]' ({error})"
        ) from error
    return store or _other_scheme(destination, conn_id)


def _local(destination: str, fsync: bool) -> Store:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_luma.download.stores.local import LocalStore

    return LocalStore(ObjectStoragePath(destination).path, fsync=fsync)


def _other_scheme(destination: str, conn_id: str | None) -> Store:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_luma.download.stores.path import PathStore

    # Airflow 3.0 accepts a conn_id of None, and then ignores the one in the URL.
    options = {"conn_id": conn_id} if conn_id else {}
    try:
        folder = ObjectStoragePath(destination, **options)
        _ = folder.fs  # connects, and is where an unknown scheme shows
    except (ValueError, TypeError, ImportError) as error:
        raise LumaValueError(f"No object storage for {show_url(destination)}: {error}") from error
    return PathStore(folder)


def _s3(conn_id: str | None, bucket: str, prefix: str, max_parallel: int) -> Store:
    from airflow_provider_luma.download.stores.s3 import PARTS_AT_ONCE, S3Store

    client = s3_client(conn_id, max_connections=max_parallel * PARTS_AT_ONCE)
    is_amazon = ".amazonaws.com" in str(client.meta.endpoint_url)
    return S3Store(client, bucket, prefix, is_conditional=is_amazon)


def _gcs(conn_id: str | None, bucket: str, prefix: str, max_parallel: int) -> Store:
    from airflow_provider_luma.download.stores.gcs import GCSStore

    client, is_google = gcs_client(conn_id)
    return GCSStore(client, bucket, prefix, is_conditional=is_google)


def _azure(conn_id: str | None, container: str, prefix: str, max_parallel: int) -> Store | None:
    from airflow_provider_luma.download.stores.azure import AzureStore

    client = azure_client(conn_id)
    return None if client is None else AzureStore(client, container, prefix)


_OPENERS: dict[str, Callable[[str | None, str, str, int], Store | None]] = {
    "s3": _s3,
    "gcs": _gcs,
    "azure": _azure,
}
