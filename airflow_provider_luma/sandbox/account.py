"""The account behind the key: prices, the balance, and the endpoints that report them."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_luma.sandbox.faults import ScriptedResponse, SlidingWindow
from airflow_provider_luma.sandbox.payloads import task_error

if TYPE_CHECKING:
    from airflow_provider_luma.sandbox.clock import Clock
    from airflow_provider_luma.sandbox.tasks import Task

Billing = Literal["token", "dashboard"]

QUOTA_PER_USD = 500_000
# What one US dollar is worth; the last is a unit that the relay gave a name of its own.
RATES = {"USD": 1.0, "CNY": 7.0, "TOKENS": float(QUOTA_PER_USD), "CUSTOM": 100.0}
CUSTOM_SYMBOL = "credits"
PRICED_MODELS = ("luma_video_api", "luma_video_extend_api")
# The old form of the balance reports it for a key without a limit.
NO_LIMIT = 100_000_000

TOKEN_USAGE = ("GET", "/api/usage/token/")
STATUS = ("GET", "/api/status")
PRICING = ("GET", "/api/pricing")
SUBSCRIPTION = ("GET", "/dashboard/billing/subscription")
USAGE = ("GET", "/dashboard/billing/usage")
ENDPOINTS = frozenset({TOKEN_USAGE, STATUS, PRICING, SUBSCRIPTION, USAGE})
PUBLIC = frozenset({STATUS, PRICING})
_FORMS: dict[Billing | None, frozenset[tuple[str, str]]] = {
    "token": ENDPOINTS,
    "dashboard": frozenset({STATUS, SUBSCRIPTION, USAGE}),
    None: frozenset(),
}


class Account:
    """
    Is charged before each generation, and refunded when one fails.

    :param clock: the sandbox's clock.
    :param balance: at the start, in ``unit``; unlimited if None.
    :param price: of a generation, in ``unit``.
    :param unit: ``USD``, ``CNY``, ``TOKENS`` or ``CUSTOM``.
    :param billing: which balance endpoints there are: ``token`` (of the key, with prices), ``dashboard`` (the
        older form, without prices) or none at all.
    :param max_running: the most unfinished generations; no limit if None.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        balance: float | None,
        price: float,
        unit: str,
        billing: Billing | None,
        max_running: int | None,
    ) -> None:
        self.max_running = max_running
        self._clock = clock
        self._unit = unit
        self._billing = billing
        self._granted = None if balance is None else self._quota(balance)
        self._price = self._quota(price)
        self._spent = 0
        # All take equally long, so that the first is the first to end.
        self._running: deque[Task] = deque()
        self._lock = threading.Lock()
        self._token_queries = SlidingWindow(seconds=20 * 60)

    @property
    def price(self) -> int:
        """The price of a generation, in the relay's quota."""
        return self._price

    @property
    def balance(self) -> float | None:
        """The balance, in ``unit``; None if it is unlimited."""
        with self._lock:
            self._settle()
            return None if self._granted is None else self._amount(self._granted - self._spent)

    @balance.setter
    def balance(self, balance: float | None) -> None:
        with self._lock:
            self._granted = None if balance is None else self._spent + self._quota(balance)

    def rejection(self) -> ScriptedResponse | None:
        """Return the error of an account that may not submit now; None if it may."""
        left = self.balance
        if self.max_running is not None and len(self._running) >= self.max_running:
            message = "group upstream load saturated, please try again later"
            return task_error(429, "fail_to_fetch_task", message)
        if left is not None and self._quota(left) < self._price:
            message = f"pre-deduct failed, balance {left:g}, needs {self._amount(self._price):g}"
            return task_error(403, "insufficient_user_quota", message)
        return None

    def charge(self, task: Task) -> None:
        with self._lock:
            self._spent += task.quota or 0
            self._running.append(task)

    def respond(self, call: tuple[str, str]) -> ScriptedResponse | None:
        """Respond to a request to one of the balance endpoints; return None if the relay does not have it."""
        if call not in _FORMS[self._billing]:
            return None
        if call == TOKEN_USAGE and self._token_queries.admit(20, self._clock.now()):
            return ScriptedResponse(429, content_type=None)
        with self._lock:
            self._settle()
            return ScriptedResponse(body=self._body(call))

    def _body(self, call: tuple[str, str]) -> dict[str, Any]:
        granted, spent = self._granted, self._spent
        if call == TOKEN_USAGE:
            usage = {
                "object": "token_usage",
                "name": "sandbox",
                "total_granted": granted or 0,
                "total_used": spent,
                "total_available": (granted or 0) - spent,
                "unlimited_quota": granted is None,
                "model_limits": {},
                "model_limits_enabled": False,
                "expires_at": 0,
            }
            return {"code": True, "message": "ok", "data": usage}
        if call == SUBSCRIPTION:
            limit = NO_LIMIT if granted is None else self._dashboard_amount(granted)
            limits = dict.fromkeys(("soft_limit_usd", "hard_limit_usd", "system_hard_limit_usd"), limit)
            return {
                "object": "billing_subscription",
                "has_payment_method": True,
                **limits,
                "access_until": 0,
            }
        if call == USAGE:
            return {"object": "list", "total_usage": self._dashboard_amount(spent) * 100}
        return self._prices() if call == PRICING else self._status()

    def _prices(self) -> dict[str, Any]:
        price = {"quota_type": 1, "model_ratio": 0, "model_price": self._price / QUOTA_PER_USD}
        rows = [
            {"model_name": model, **price, "completion_ratio": 0, "enable_groups": ["default"]}
            for model in PRICED_MODELS
        ]
        return {"success": True, "data": rows, "group_ratio": {"default": 1}, "usable_group": {"default": ""}}

    def _status(self) -> dict[str, Any]:
        status = {
            "quota_per_unit": QUOTA_PER_USD,
            "quota_display_type": self._unit,
            "display_in_currency": self._unit != "TOKENS",
            "usd_exchange_rate": RATES["CNY"],
            "custom_currency_symbol": CUSTOM_SYMBOL,
            "custom_currency_exchange_rate": RATES["CUSTOM"],
        }
        return {"success": True, "message": "", "data": status}

    def _settle(self) -> None:
        """Remove the generations that have ended, and refund those that failed."""
        now = self._clock.now()
        while self._running and self._running[0].finishes_at <= now:
            task = self._running.popleft()
            self._spent -= (task.quota or 0) if task.failure_reason else 0

    def _quota(self, amount: float) -> int:
        return round(amount * QUOTA_PER_USD / RATES[self._unit])

    def _amount(self, quota: int) -> float:
        return quota * RATES[self._unit] / QUOTA_PER_USD

    def _dashboard_amount(self, quota: int) -> float:
        """Give an amount as the older form does, which knows no unit of the relay's own."""
        return quota / QUOTA_PER_USD if self._unit == "CUSTOM" else self._amount(quota)
