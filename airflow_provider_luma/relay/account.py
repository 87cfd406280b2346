"""The account behind the key: the endpoints that report its balance, the prices and the charges."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from airflow_provider_luma.exceptions import RelayError, RelayTransientError
from airflow_provider_luma.relay.money import (
    Money,
    Unit,
    parse_dashboard_balance,
    parse_key_balance,
    parse_price,
    parse_unit,
)
from airflow_provider_luma.relay.row import Json

SUBMIT_MODEL, EXTEND_MODEL = "luma_video_api", "luma_video_extend_api"


class Account:
    """
    Balance, prices and charges, as a relay reports them.

    What cannot be read now is not taken for absent: an endpoint that has responded is there, and a balance of
    which a part cannot be read is an error.

    :param get: sends a GET request to a path, once, and returns the object of its response; ``None`` where
        the relay has no such endpoint.
    """

    def __init__(self, get: Callable[[str], Json | None]) -> None:
        self._get = get
        self._unit: Unit | None = None
        self._has_no_unit = False
        self._present: set[str] = set()

    def get_balance(self) -> Money | None:
        key = self._get_part("/api/usage/token/")
        subscription = self._get_part("/dashboard/billing/subscription")
        usage = self._get_part("/dashboard/billing/usage") if subscription is not None else None
        if key is None and subscription is None:
            return None
        if subscription is not None and usage is None:
            raise RelayTransientError(
                "The relay reports the limit of the account, and not what was used of it"
            )
        unit = self._get_unit()
        balances = (parse_key_balance(key, unit), parse_dashboard_balance(subscription, usage, unit))
        reported = [balance for balance in balances if balance is not None]
        return min(reported, key=lambda balance: balance.amount, default=None)

    def get_price(self, *, extend: bool) -> Money | None:
        model = EXTEND_MODEL if extend else SUBMIT_MODEL
        try:
            return parse_price(self._get("/api/pricing"), model, self._get_unit())
        except RelayError:
            return None

    def get_cost(self, quota: float | None) -> Money | None:
        if quota is None or self._has_no_unit:
            return None
        try:
            return self._get_unit().of_quota(quota)
        except RelayError:
            self._has_no_unit = True  # one timeout is enough for a batch of thousands
            return None

    def _get_part(self, path: str) -> Json | None:
        """Return a part of the balance; ``None`` where the relay does not have it, and never had."""
        try:
            body = self._get(path)
        except RelayError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            body = None
        if body is not None:
            self._present.add(path)
        elif path in self._present:
            raise RelayTransientError(f"The relay does not respond at {path} any more")
        return body

    def _get_unit(self) -> Unit:
        if self._unit is None:
            self._unit = parse_unit(self._get("/api/status"))
        return self._unit
