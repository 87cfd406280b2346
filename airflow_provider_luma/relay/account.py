"""The account behind the key: the endpoints that report its balance, the prices and the charges."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_luma.exceptions import RelayError
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

    :param get: sends a GET request to a path, once, and returns the object of its response; ``None`` where
        the relay has no such endpoint.
    """

    def __init__(self, get: Callable[[str], Json | None]) -> None:
        self._get = get
        self._unit: Unit | None = None
        self._has_no_unit = False

    def get_balance(self) -> Money | None:
        unit = self._get_unit()
        reported: list[Money] = []
        errors: list[RelayError] = []
        for get in (self._get_key_balance, self._get_dashboard_balance):
            try:
                balance = get(unit)
            except RelayError as error:
                errors.append(error)
            else:
                reported += [balance] if balance else []
        if errors and not reported:
            raise errors[0]
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

    def _get_key_balance(self, unit: Unit) -> Money | None:
        return parse_key_balance(self._get("/api/usage/token/"), unit)

    def _get_dashboard_balance(self, unit: Unit) -> Money | None:
        subscription = self._get("/dashboard/billing/subscription")
        usage = self._get("/dashboard/billing/usage") if subscription else None
        return parse_dashboard_balance(subscription, usage, unit)

    def _get_unit(self) -> Unit:
        if self._unit is None:
            self._unit = parse_unit(self._get("/api/status"))
        return self._unit
