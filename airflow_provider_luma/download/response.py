"""
The meaning of a response for a download: every header is validated here, and nowhere else.

============================  ==========================================================================
200                           the file, from its beginning
206                           the rest of it, when that range was requested of this very file: from the
                              byte that is missing to the last, of the same size in all, with the same
                              validator, which it must repeat; otherwise from the start
401, 403, 404, 410            the URL has expired or is gone, as with presigned URLs
408, 416, 425, 429, 5xx       transient; ``Retry-After`` is honoured
anything else                 permanent
============================  ==========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime

import pendulum
import requests

from airflow_provider_luma.download.staging import Source, StagedFile
from airflow_provider_luma.download.urls import redact_url
from airflow_provider_luma.exceptions import DownloadError, LinkExpiredError, TransientDownloadError
from airflow_provider_luma.relay.text import clean_text

_EXPIRED_STATUSES = frozenset({401, 403, 404, 410})
_RETRYABLE_STATUSES = frozenset({408, 425, 429})
_GONE_STATUSES = frozenset({404, 410})
_GENERIC_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/mp4"})
_MEDIA_PREFIX = {"video": "video/", "thumbnail": "image/", "last_frame": "image/"}
_SIZE = re.compile(r"\d{1,15}")
_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,256}"')
_DATE = re.compile(r"[\x20-\x7e]{10,64}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
_MAX_RETRY_AFTER = 24 * 3600


class RetryAfterError(TransientDownloadError):
    """
    The server names a time to retry.

    :param seconds: from now.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class LinkGoneError(LinkExpiredError):
    """404 or 410: another signature for the same path cannot help."""


def range_headers(file: StagedFile) -> dict[str, str]:
    """Request the rest of a file that was begun, if its server named it."""
    headers = {"Accept-Encoding": "identity"}
    if file.size and file.source and file.source.validator:
        headers |= {"Range": f"bytes={file.size}-", "If-Range": file.source.validator}
    return headers


def start_or_resume(response: requests.Response, file: StagedFile, kind: str, *, requested: bool) -> None:
    """
    Prepare the file for the body: keep what there is if this is the rest of it, else restart it.

    :param requested: whether a range was requested.
    :raises LinkExpiredError: when the URL is gone or has expired.
    :raises TransientDownloadError: when this is not the file, but a retry may bring it.
    :raises DownloadError: when a retry cannot help.
    """
    _check_status(response)
    _check_content_type(response, kind)
    if response.status_code == 200:
        file.restart(_parse_source(response))
    elif not requested or not _continues(response, file):
        file.restart()
        raise TransientDownloadError(
            f"{_where(response)} responded {response.status_code} with "
            f"{clean_text(response.headers.get('Content-Range', 'no range'), 100)!r}, "
            "which does not continue the file"
        )


def _check_status(response: requests.Response) -> None:
    status, message = response.status_code, f"{_where(response)} responded {response.status_code}"
    if status in _GONE_STATUSES:
        raise LinkGoneError(message)
    if status in _EXPIRED_STATUSES:
        raise LinkExpiredError(message)
    if status in _RETRYABLE_STATUSES or 500 <= status < 600:
        if (seconds := parse_retry_after(response.headers.get("Retry-After"))) is not None:
            raise RetryAfterError(message, seconds)
        raise TransientDownloadError(message)
    if status not in {200, 206, 416}:
        raise DownloadError(message)


def _check_content_type(response: requests.Response, kind: str) -> None:
    content_type = _content_type(response.headers)
    if response.status_code != 416 and content_type not in _GENERIC_TYPES:
        is_svg = content_type.startswith("image/svg")
        if is_svg or not content_type.startswith(_MEDIA_PREFIX[kind]):
            raise TransientDownloadError(
                f"{_where(response)} is {clean_text(content_type, 100)!r} instead of a {kind}"
            )
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in {"", "identity"}:
        raise TransientDownloadError(
            f"{_where(response)} has the encoding {clean_text(encoding, 50)!r}, which was not requested"
        )


def _continues(response: requests.Response, file: StagedFile) -> bool:
    """Judge a 206: the same file, from the byte that is missing."""
    source = file.source
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code != 206 or match is None or source is None:
        return False
    start, end = int(match[1]), int(match[2])
    total = source.size if match[3] == "*" else int(match[3])
    if start != file.size or total is None or end != total - 1 or source.size not in {None, total}:
        return False
    if response.headers.get("Content-Length", str(total - start)).strip() != str(total - start):
        return False
    if not _confirms(response, source):
        return False
    file.source = replace(source, size=total)
    return True


def _confirms(response: requests.Response, source: Source) -> bool:
    """Judge whether it repeats the validator: not every server that resumes honours ``If-Range``."""
    etag, date = response.headers.get("ETag"), response.headers.get("Last-Modified")
    if (source.validator or "").startswith('"'):
        return etag == source.validator and date in {None, source.date}
    return date == source.validator and etag == source.etag


def _parse_source(response: requests.Response) -> Source:
    length = response.headers.get("Content-Length")
    if length is not None and not _SIZE.fullmatch(length.strip()):
        raise TransientDownloadError(
            f"{_where(response)} has the invalid Content-Length {clean_text(length, 40)!r}"
        )
    return Source(
        int(length) if length else None,
        _content_type(response.headers),
        _validator(response),
        etag=response.headers.get("ETag"),
        date=response.headers.get("Last-Modified"),
    )


def _validator(response: requests.Response) -> str | None:
    if _ETAG.fullmatch(etag := response.headers.get("ETag", "")):
        return etag
    date = response.headers.get("Last-Modified", "")
    return date if _DATE.fullmatch(date) else None


def _content_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def parse_retry_after(value: str | None) -> float | None:
    """Read seconds or a date; ``None`` when it is neither."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", value):
        return min(float(value), _MAX_RETRY_AFTER)
    try:
        seconds = (parsedate_to_datetime(value) - pendulum.now("UTC")).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER)


def _where(response: requests.Response) -> str:
    return redact_url(str(response.url))
