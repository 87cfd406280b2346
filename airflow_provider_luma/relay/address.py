"""Where a relay is, as users write it."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from airflow_provider_luma.exceptions import LumaValueError

DEFAULT_BASE_URL = "https://api.quickrouter.ai"


def read_base_url(host: str, port: int | None = None) -> str:
    """
    Return the base URL that a host means: ``https`` unless it says ``http://``; a path is kept.

    :raises LumaValueError: when it is not an address, or carries credentials.
    """
    parts = _split(host)
    if "@" in parts.netloc:
        raise LumaValueError("The host of a Luma relay must not carry credentials; the key is the password")
    netloc = parts.netloc if port is None or parts.port else f"{parts.netloc}:{port}"
    return parts._replace(netloc=netloc, path=parts.path.rstrip("/")).geturl()


def _split(host: str) -> SplitResult:
    host = host.strip()
    try:
        parts = urlsplit(host if "://" in host else f"https://{host}")
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        shown = re.split(r"[?#]", host)[0].rpartition("@")[2]  # the rest may be somebody's key
        raise LumaValueError(f"{shown!r:.120} is not the address of a Luma relay, like {DEFAULT_BASE_URL}")
    return parts
