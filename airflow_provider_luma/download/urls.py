"""URLs of media: presigned, so that their queries are secrets, and from outside, so that they may be none."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import SplitResult, urlsplit, urlunsplit

from airflow_provider_luma.exceptions import UnsafeURLError
from airflow_provider_luma.relay.text import clean_text, redact_text

_MAX_URL_CHARS = 16_384
_MAX_SHOWN_CHARS = 500


def parse_url(url: str) -> SplitResult:
    """
    Split the URL of a file.

    :raises UnsafeURLError: when it is not a valid http or https URL.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or len(url) > _MAX_URL_CHARS:
        raise UnsafeURLError(f"{redact_url(url)!r} is not a valid http or https URL")
    return parts


def redact_url(url: str) -> str:
    """Drop what may be secret in a URL: its query (signatures), fragment and credentials."""
    try:
        parts = urlsplit(url)
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        bare = redact_text(re.split(r"[?#]", url, maxsplit=1)[0])
    return clean_text(bare, _MAX_SHOWN_CHARS)


def url_suffix(url: str) -> str:
    """Return the suffix of a URL's path in lower case, ``""`` where there is none."""
    try:
        return PurePosixPath(urlsplit(url).path).suffix.lower()
    except ValueError:
        return ""
