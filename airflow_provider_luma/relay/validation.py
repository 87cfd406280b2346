"""Validates what a client is made with, as users write it."""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, urlsplit

from airflow_provider_luma.exceptions import LumaValueError

DEFAULT_BASE_URL = "https://api.quickrouter.ai"

MAX_TIMEOUT = 24 * 3600


def parse_base_url(host: str, port: int | None = None) -> str:
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
        (parts.hostname or "").encode("idna")  # a label that is empty or too long
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        shown = re.split(r"[?#]", host)[0].rpartition("@")[2]  # the rest may be somebody's key
        raise LumaValueError(f"{shown!r:.120} is not the address of a Luma relay, like {DEFAULT_BASE_URL}")
    return parts


def validate_limits(batch_size: int, timeout: float, request_timeout: float, max_bytes: int) -> None:
    """
    Validate the limits of a client.

    :raises LumaValueError: when one is out of its range, naming it.
    """
    for name, number in {"batch_size": batch_size, "max_response_bytes": max_bytes}.items():
        if not isinstance(number, int) or number < 1:
            raise LumaValueError(f"{name} must be an integer above 0, not {number!r:.80}")
    for name, seconds in {"timeout": timeout, "request_timeout": request_timeout}.items():
        if not isinstance(seconds, int | float) or not 0 < seconds <= MAX_TIMEOUT:
            raise LumaValueError(f"{name} must be above 0 and at most {MAX_TIMEOUT} seconds, not {seconds!r}")


def parse_verify(verify: bool | str) -> bool | str:
    """
    Return ``verify`` if it is a flag or the path of a CA bundle.

    :raises LumaValueError: when there is no such file.
    """
    if isinstance(verify, str) and not os.path.exists(verify):  # noqa: PTH110
        raise LumaValueError(f"verify is neither true nor false nor the path of a CA bundle: {verify!r:.200}")
    return verify


def parse_api_key(api_key: str) -> str:
    key = f"{api_key.strip()} ".removeprefix("Bearer ").strip()
    if not key:
        raise LumaValueError("The API key of the Luma relay is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LumaValueError("The API key of the Luma relay has spaces or characters that no key has")
    return key
