"""What lies behind a request that got no answer."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

import requests
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError

_OBJECT = re.compile(r"<\S+ object at 0x[0-9a-f]+>: ")  # urllib3 below 2.6 begins with it
_CREDENTIALS = re.compile(r"(?<=//)\S+(?=@)")
# urllib3 raises these before a byte of the request was sent; the last is a proxy that lets nobody through.
_BEFORE_SENDING = (NewConnectionError, ConnectTimeoutError, ssl.SSLCertVerificationError, ProxyError)


def never_left(error: BaseException) -> bool:
    """Say whether a request surely did not reach anybody; a ``ValueError`` is an address that is none."""
    return isinstance(error, ValueError) or any(
        isinstance(layer, _BEFORE_SENDING) for layer in _layers(error)
    )


def cause(error: BaseException) -> str:
    """Say what lies at the bottom of a stack of wrapped network errors."""
    if isinstance(error, requests.Timeout):
        return f"timed out ({type(error).__name__})"
    *_, bottom = _layers(error)
    words = _OBJECT.sub("", str(bottom))
    return f"{type(bottom).__name__}: {_CREDENTIALS.sub('***', words)}"  # those of a proxy


def _layers(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = next(
            (
                part
                for part in (*error.args, getattr(error, "reason", None))
                if isinstance(part, BaseException)
            ),
            None,
        )
