"""Messages of network errors, without secrets."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote
from urllib.request import getproxies

import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.text import clean_text

_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
_OBJECT = re.compile(r"<\S+ object at 0x[0-9a-f]+>: ")  # urllib3 below 2.6 begins with it
_DELIMITERS = re.compile(r"[/?#@:\\\[\]]")
# What RFC 3986 lets a user and a password be made of. Parsers differ on anything else, and repeat what they
# take for a host.
_USER_INFO = re.compile(r"[\w.~!$&'()*+,;=:%-]*", re.ASCII)
# A shorter piece of a password gives nothing away, and would redact half of a message.
_SHORTEST_SECRET = 3


def root_cause_message(error: BaseException) -> str:
    """Describe the innermost of a chain of wrapped network errors."""
    if isinstance(error, requests.Timeout):
        return f"timed out ({type(error).__name__})"
    *_, innermost = _exception_chain(error)
    return clean_text(f"{type(innermost).__name__}: {_OBJECT.sub('', str(innermost))}")


def parse_proxies(proxies: Mapping[str, Any]) -> dict[str, str]:
    """
    Return proxies as ``requests`` takes them.

    :raises LumaValueError: when one is not the URL of a proxy; its password is not repeated.
    """
    for scheme, url in proxies.items():
        if not _is_proxy_url(url):
            raise LumaValueError(
                f"proxies[{scheme!r:.40}] is not a URL like 'http://user:password@proxy:3128'. "
                "Percent-encode special characters of the password"
            )
    return dict(proxies)


def validate_environment_proxies(url: str) -> None:
    """
    Check the environment's proxies for a URL before requests parses, and repeats, what they hold.

    :raises LumaValueError: when one is not the URL of a proxy; its password is not repeated.
    """
    for scheme, proxy in requests.utils.get_environ_proxies(url).items():
        if not _is_proxy_url(proxy):
            raise LumaValueError(
                f"The environment's proxy for {scheme!r:.40} is not a URL like "
                "'http://user:password@proxy:3128'. Percent-encode special characters of the password"
            )


def _is_proxy_url(url: Any) -> bool:
    if not isinstance(url, str):
        return False
    url = url if "://" in url else f"http://{url}"
    user_info = url.partition("//")[2].rpartition("@")[0]
    try:
        parts = parse_url(url)
    except LocationParseError:
        return False
    return parts.scheme in _PROXY_SCHEMES and bool(parts.host) and bool(_USER_INFO.fullmatch(user_info))


def secrets_in_proxies(proxies: Mapping[str, str]) -> set[str]:
    """Return the secrets of these proxies and of the environment's, also in parts."""
    secrets = set()
    for url in (*proxies.values(), *getproxies().values()):
        user_and_password = url.partition("//")[2].rpartition("@")[0] or url.rpartition("@")[0]
        password = user_and_password.partition(":")[2]
        secrets |= {password, unquote(password), *_DELIMITERS.split(password)}
        for encoding in ("utf-8", "latin-1"):  # of Proxy-Authorization
            basic = base64.b64encode(unquote(user_and_password).encode(encoding, "replace"))
            secrets.add(basic.decode())
    return {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` without any of the ``secrets``, in whatever case: parsers fold that of hosts."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    return text


def _exception_chain(error: BaseException | None) -> Iterator[BaseException]:
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
