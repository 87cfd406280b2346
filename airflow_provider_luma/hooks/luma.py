"""From an Airflow connection to a client of the relay."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_luma import metrics
from airflow_provider_luma.balance import BalanceReader
from airflow_provider_luma.exceptions import LumaError, LumaValueError, RelayPermissionError
from airflow_provider_luma.get_provider_info import get_provider_info
from airflow_provider_luma.relay.batch import parse_task_ids
from airflow_provider_luma.relay.client import RelayClient
from airflow_provider_luma.relay.retry import RetryPolicy
from airflow_provider_luma.relay.text import clean_text
from airflow_provider_luma.relay.validation import DEFAULT_BASE_URL, MAX_TIMEOUT, parse_base_url

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_luma.relay.money import Money
    from airflow_provider_luma.relay.task import LumaTask


_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")

# The models that a key needs at relays of this family.
MODELS = {"luma_video_api": "submit", "luma_video_fetch_tasks": "query tasks"}


@dataclass(frozen=True)
class RelaySettings:
    """
    The validated settings of a connection. Equal settings mean the same relay, key and options.

    :raises LumaValueError: from :meth:`from_connection`, naming the connection and the field.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    timeout: float = 30
    request_timeout: float = 120
    max_response_bytes: int = 8 * 1024 * 1024
    batch_size: int = 100
    max_in_flight: int = 4
    max_requests_per_minute: float | None = None
    verify: bool | str = True
    proxies: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    allowed_download_hosts: tuple[str, ...] = ()
    task_page: str | None = None
    state_path: str | None = None

    @classmethod
    def from_connection(cls, connection: Connection, extra: Mapping[str, Any]) -> RelaySettings:
        name = f"The connection {connection.conn_id!r}"
        if not connection.password:
            raise LumaValueError(f"{name} has no password; put the API key of the Luma relay there")
        extras = {key: value for key, value in extra.items() if value not in (None, "")}
        return cls(
            api_key=connection.password,
            base_url=_parse_host(name, connection),
            **{key: _parse_extra(name, key, extras[key]) for key in _EXTRA_PARSERS if key in extras},
        )

    def get_task_page(self, task_id: str) -> str | None:
        """Return the URL of the relay's own page of a task, where the connection names one."""
        return self.task_page and self.task_page.replace("{id}", quote(task_id, safe=""))

    def create_client(
        self, retry: RetryPolicy | None = None, *, max_connections: int | None = None
    ) -> RelayClient:
        return RelayClient(
            self.api_key,
            self.base_url,
            timeout=self.timeout,
            request_timeout=self.request_timeout,
            max_response_bytes=self.max_response_bytes,
            batch_size=self.batch_size,
            verify=self.verify,
            proxies=dict(self.proxies),
            max_connections=max_connections or self.max_in_flight,
            event_hook=metrics.count_request,
            retry=retry,
        )


class LumaHook(BaseHook):
    """
    Talks to a Luma relay over an Airflow connection of type ``luma``.

    :param luma_conn_id: the connection; its password is the relay's API key.
    """

    conn_name_attr = "luma_conn_id"
    default_conn_name = "luma_default"
    conn_type = "luma"
    hook_name = "Luma relay"

    def __init__(self, luma_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.luma_conn_id = luma_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's extra fields for Airflow 3.0 and 3.1, which do not read ``conn-fields``."""
        from flask_babel import lazy_gettext
        from wtforms import BooleanField, IntegerField, StringField

        field_types = {"number": IntegerField, "integer": IntegerField, "boolean": BooleanField}
        return {
            name: field_types.get(spec["schema"]["type"][0], StringField)(
                lazy_gettext(spec["label"]),
                description=spec["description"],
                default=spec["schema"]["default"],
            )
            for name, spec in _connection_type()["conn-fields"].items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form's standard fields for Airflow 3.0 and 3.1."""
        behaviour = _connection_type()["ui-field-behaviour"]
        return {key.replace("-", "_"): value for key, value in behaviour.items()}

    @cached_property
    def settings(self) -> RelaySettings:
        """
        The settings of the connection.

        :raises LumaValueError: when one of its fields is missing or unusable.
        """
        connection = self.get_connection(self.luma_conn_id)
        extra = connection.extra_dejson
        # Airflow logs what is not JSON, and reads it as an empty object.
        if not isinstance(extra, Mapping) or (not extra and not _is_json(connection.extra or "{}")):
            raise LumaValueError(f"The extra of the connection {self.luma_conn_id!r} is not a JSON object")
        self._warn_unknown_extras(extra)
        settings = RelaySettings.from_connection(connection, extra)
        self._warn_impossible_hosts(settings.allowed_download_hosts)
        return settings

    @cached_property
    def client(self) -> RelayClient:
        """
        A client with these settings.

        :raises LumaValueError: when a field of the connection is missing or unusable.
        """
        try:
            return self.settings.create_client()
        except LumaValueError as error:
            raise LumaValueError(f"The connection {self.luma_conn_id!r} is not usable: {error}") from None

    def get_conn(self) -> RelayClient:
        return self.client

    def get_tasks(self, luma_task_ids: Iterable[str]) -> list[LumaTask]:
        """
        Query these tasks in batches.

        :return: the tasks that the relay knows, in the order of the ids.
        :raises RelayError: when the relay rejected the request, or transient errors outlasted the retries.
        """
        return list(self.client.get_tasks(parse_task_ids(luma_task_ids)).values())

    @cached_property
    def _balance(self) -> BalanceReader:
        return BalanceReader(self.client.get_balance, self.luma_conn_id)

    def get_balance(self) -> Money | None:
        """
        Return what the account can still spend, in the relay's unit; threads may share it.

        Relays limit such queries, so that it is read at most once a minute. While the relay does not report
        it, the last reading counts for 20 minutes.

        :return: infinite where there is no limit; ``None``, and one line in the log, where the relay has no
            endpoint for it.
        :raises RelayError: when it cannot be read now and there is no recent reading.
        """
        return self._balance.get()

    def test_connection(self) -> tuple[bool, str]:
        """Query a task that cannot exist, which costs nothing, the key's models and its balance."""
        try:
            self.client.ping()
        except RelayPermissionError as error:
            return False, f"{error}.{self._models_hint()}"
        except LumaError as error:
            return False, str(error)
        hints = self._balance_hint() + self._models_hint()
        return True, f"The relay at {self.client.base_url} accepts the API key.{hints}"

    def _models_hint(self) -> str:
        """Return what a key limited to models may not do; empty where the relay does not report it."""
        models = self.client.get_models() or []
        if not any(model.startswith("luma_") for model in models):
            return ""
        missing = [f"{what} ({model})" for model, what in MODELS.items() if model not in models]
        allowed = [what for model, what in MODELS.items() if model in models]
        if not missing:
            return ""
        return f" This key may {' and '.join(allowed) or 'do nothing here'}, but not {' or '.join(missing)}"

    def _balance_hint(self) -> str:
        try:
            balance = self.get_balance()
        except LumaError as error:
            return f" Its balance could not be read: {error}."
        return "" if balance is None else f" Its balance: {balance}."

    def _warn_unknown_extras(self, extra: Mapping[str, Any]) -> None:
        if unknown := sorted(extra.keys() - _EXTRA_PARSERS.keys()):
            self.log.warning(
                "The connection %r has extra fields that this provider does not know and does not use: %s",
                self.luma_conn_id,
                ", ".join(unknown),
            )

    def _warn_impossible_hosts(self, hosts: Iterable[str]) -> None:
        if impossible := [host for host in hosts if not _is_host(host)]:
            self.log.warning(
                "allowed_download_hosts of the connection %r has entries that no host matches: %s. Name each "
                "host without wildcard, scheme, port, path or network",
                self.luma_conn_id,
                clean_text(", ".join(impossible), 500),
            )


def _connection_type() -> dict[str, Any]:
    connection_type: dict[str, Any] = get_provider_info()["connection-types"][0]
    return connection_type


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_host(name: str, connection: Connection) -> str:
    try:
        return parse_base_url(connection.host or DEFAULT_BASE_URL, connection.port)
    except LumaValueError as error:
        raise LumaValueError(f"{name} is not usable: {error}") from None


def _parse_extra(connection: str, name: str, value: Any) -> Any:
    try:
        return _EXTRA_PARSERS[name](value)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise LumaValueError(f"{connection} has an unusable extra field {name!r}: {error}") from None


def _parse_positive_number(value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"must be a number above 0, not {value!r}")
    return number


def _parse_seconds(value: Any) -> float:
    if (number := _parse_positive_number(value)) > MAX_TIMEOUT:
        raise ValueError(f"must be at most {MAX_TIMEOUT} seconds, not {value!r}")
    return number


def _parse_positive_integer(value: Any) -> int:
    number = int(str(value))
    if number < 1:
        raise ValueError(f"must be an integer above 0, not {value!r}")
    return number


def _parse_verify(value: Any) -> bool | str:
    return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower(), str(value))


def _parse_proxies(value: Any) -> tuple[tuple[str, str], ...]:
    # The value may carry a password, so it is not repeated in the error.
    proxies = json.loads(value) if isinstance(value, str) else value
    if not isinstance(proxies, Mapping) or not all(isinstance(url, str) for url in proxies.values()):
        raise ValueError('must be an object like {"https": "http://proxy:3128"}')
    if invalid := [scheme for scheme, url in proxies.items() if url and not _is_proxy(url)]:
        raise ValueError(f"the proxy of {invalid[0]!r:.20} is not a URL like http://proxy:3128")
    return tuple(sorted(proxies.items()))


def _is_proxy(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        return (parts.port or 1) > 0 and _is_host(parts.hostname or "")
    except ValueError:
        return False


def _is_host(name: str) -> bool:
    """Return whether a URL can have this host, as it is sent: a name in ASCII, or an address."""
    with suppress(ValueError):
        return bool(ip_address(name.strip("[]").partition("%")[0]))
    return _HOST_NAME.fullmatch(name) is not None


def _parse_host_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    return tuple(name.strip().lower() for name in value if name.strip())


def _parse_task_page(value: Any) -> str:
    template = str(value).strip()
    if urlsplit(template).scheme not in {"http", "https"} or "{id}" not in template:
        raise ValueError(f"must be an http(s) URL with {{id}} in it, not {template!r:.200}")
    return template


_EXTRA_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "timeout": _parse_seconds,
    "request_timeout": _parse_seconds,
    "max_response_bytes": _parse_positive_integer,
    "batch_size": _parse_positive_integer,
    "max_in_flight": _parse_positive_integer,
    "max_requests_per_minute": _parse_positive_number,
    "verify": _parse_verify,
    "proxies": _parse_proxies,
    "allowed_download_hosts": _parse_host_names,
    "task_page": _parse_task_page,
    "state_path": str,
}
