"""
Money that a relay reports: pure, from its responses to amounts in one unit.

Relays of this family count in an integer *quota* and show it to people in a unit of the operator's choice.
The endpoints differ between relays, and none is promised:

===================================  ================================================================
response                             content
===================================  ================================================================
``/api/usage/token/``                the quota left of the key; the account behind it may have less
``/dashboard/billing/subscription``  granted to the key or to the account, in the unit shown
``/dashboard/billing/usage``         used of that, in hundredths
``/api/status``                      what the quota is worth
``/api/pricing``                     prices in US dollars, before a factor of the customer's group
a wrapped row's ``quota``            what was charged for its task
===================================  ================================================================

``None`` for a response is that of an absent endpoint. One without its object, or with an amount that is none,
is an error: to take it for absent would count in another unit, or with another balance. Numbers may be text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_luma.exceptions import RelayTransientError
from airflow_provider_luma.relay.row import Json, finite_number
from airflow_provider_luma.relay.text import clean_text

# Nobody's account, and every sum of such amounts is still exact to a cent.
_MAX_AMOUNT = 1e12
# How the dashboard's form says that a key has no limit.
_NO_LIMIT = 100_000_000
_PER_CALL = 1
_EVERY_GROUP = "all"
_MAX_UNIT_CHARS = 16
_NUMBER_IN_TEXT = re.compile(r"-?\d{1,15}(\.\d{1,15})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Money:
    """
    An amount in a relay's unit.

    :param amount: infinite for a balance without a limit.
    :param unit: ``USD``, ``CNY``, ``tokens``, the relay's own, or ``quota`` where it does not say.
    """

    amount: float
    unit: str

    @property
    def is_unlimited(self) -> bool:
        return math.isinf(self.amount)

    def __mul__(self, number: float) -> Money:
        return Money(self.amount * number, self.unit)

    def __str__(self) -> str:
        if self.is_unlimited:
            return "unlimited"
        return f"{f'{self.amount:,.4f}'.removesuffix('00').removesuffix('.00')} {self.unit}"


@dataclass(frozen=True, slots=True)
class Unit:
    """
    The unit in which a relay shows money.

    :param name: of the unit.
    :param per_quota: what one quota is worth.
    :param per_usd: what one US dollar is worth; ``None`` where the relay does not say.
    :param per_dashboard: what one is worth of the dashboard's amounts, which know no unit of the relay's own.
    """

    name: str
    per_quota: float
    per_usd: float | None
    per_dashboard: float = 1.0

    def of_quota(self, quota: float) -> Money:
        return Money(quota * self.per_quota, self.name)

    def of_usd(self, usd: float) -> Money:
        return Money(usd, "USD") if self.per_usd is None else Money(usd * self.per_usd, self.name)


QUOTA = Unit("quota", 1.0, None)


def parse_unit(body: Json | None) -> Unit:
    """Read what ``/api/status`` says of the unit; the plain quota where it says nothing of it."""
    if body is None:
        return QUOTA
    status = _data(body, "quota_per_unit")
    per_usd = _reported_rate(status, "quota_per_unit")
    if per_usd is None:
        return QUOTA
    shown = status.get("display_in_currency")
    kind = clean_text(status.get("quota_display_type"), _MAX_UNIT_CHARS).upper()
    kind = kind or ("USD" if shown in (None, True) else "TOKENS")
    if kind == "USD":
        return Unit("USD", 1 / per_usd, 1.0)
    if kind == "TOKENS":
        return Unit("tokens", 1.0, per_usd)
    if kind == "CNY" and (rate := _reported_rate(status, "usd_exchange_rate")):
        return Unit("CNY", rate / per_usd, rate)
    if kind == "CUSTOM" and (rate := _reported_rate(status, "custom_currency_exchange_rate")):
        symbol = clean_text(status.get("custom_currency_symbol"), _MAX_UNIT_CHARS)
        return Unit(symbol or "CUSTOM", rate / per_usd, rate, per_dashboard=rate)
    return QUOTA


def parse_key_balance(body: Json | None, unit: Unit) -> Money | None:
    """Read what is left of the key from ``/api/usage/token/``."""
    if body is None:
        return None
    usage = _data(body, "total_available")
    if usage.get("unlimited_quota") is True:  # its total_available falls below zero and means nothing
        return Money(math.inf, unit.name)
    return unit.of_quota(_amount(usage, "total_available"))


def parse_dashboard_balance(subscription: Json | None, usage: Json | None, unit: Unit) -> Money | None:
    """Read what is left from the two responses under ``/dashboard/billing``."""
    if subscription is None or usage is None:
        return None
    limit, used = _amount(subscription, "hard_limit_usd"), _amount(usage, "total_usage")
    if limit == _NO_LIMIT:
        return Money(math.inf, unit.name)
    return Money((limit - used / 100) * unit.per_dashboard, unit.name)


def parse_price(body: Json | None, model: str, unit: Unit) -> Money | None:
    """Read from ``/api/pricing`` the highest price of one call of a model, if it is there."""
    rows = body.get("data") if body else None
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, Mapping) or row.get("model_name") != model:
            continue
        price = finite_number(row.get("model_price"), _MAX_AMOUNT)
        if row.get("quota_type") != _PER_CALL or row.get("billing_mode") or price is None or price < 0:
            return None
        return unit.of_usd(price * _highest_ratio(row, body or {}))
    return None


def _highest_ratio(row: Json, body: Json) -> float:
    """Return the highest factor of the groups that may use a model: the key's own is not reported."""
    ratios, groups = body.get("group_ratio"), row.get("enable_groups")
    if not isinstance(ratios, Mapping):
        return 1.0
    usable = groups if isinstance(groups, list) and _EVERY_GROUP not in groups else list(ratios)
    known = [_rate(ratios.get(group)) for group in usable if isinstance(group, str)]
    return max((ratio for ratio in known if ratio), default=1.0)


def _data(body: Json, name: str) -> Json:
    """Return the object with a value of that name: the one in ``data``, or the body itself."""
    data = body.get("data", body if name in body else None)
    if not isinstance(data, Mapping):
        raise RelayTransientError(f"The relay reported no object with {name}")
    return data


def _amount(holder: Json, name: str) -> float:
    value = holder.get(name)
    if isinstance(value, str) and _NUMBER_IN_TEXT.fullmatch(value):
        value = float(value)
    amount = finite_number(value, _MAX_AMOUNT)
    if amount is None:
        raise RelayTransientError(f"The relay reported no valid {name}")
    return amount


def _reported_rate(holder: Json, name: str) -> float | None:
    if name not in holder:
        return None
    rate = _rate(_amount(holder, name))
    if rate is None:
        raise RelayTransientError(f"The relay reported no valid {name}")
    return rate


def _rate(value: Any) -> float | None:
    rate = finite_number(value, _MAX_AMOUNT)
    return rate if rate and rate > 1 / _MAX_AMOUNT else None
