"""The relay: responds to status queries and submits, as the documented ones do."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request

from airflow_provider_luma.sandbox.account import ENDPOINTS, PUBLIC
from airflow_provider_luma.sandbox.delivery import Connection, RecordedRequest
from airflow_provider_luma.sandbox.faults import Faults, FaultSampler, ScriptedResponse, SlidingWindow
from airflow_provider_luma.sandbox.payloads import gateway_error, html_page, task_error
from airflow_provider_luma.sandbox.tasks import FAILING_WORD, FAILURES, REJECTED_WORD

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.datastructures import Headers
    from starlette.types import Receive, Scope, Send

    from airflow_provider_luma.sandbox.account import Account
    from airflow_provider_luma.sandbox.clock import Clock
    from airflow_provider_luma.sandbox.payloads import Payloads
    from airflow_provider_luma.sandbox.tasks import Task, TaskStore

Shape = Literal["bare", "wrapped"]

STATUS_QUERY = ("POST", "/luma/tasks")
SUBMIT = ("POST", "/luma/generations")
MODELS = ("GET", "/v1/models")
SINGLE_QUERY = re.compile("/luma/generations/([^/]+)")
EXTEND = re.compile("/luma/generations/([^/]+)/extend")
SUBMIT_FIELDS: dict[str, type] = {
    "user_prompt": str,
    "model_name": str,
    "duration": str,
    "resolution": str,
    "expand_prompt": bool,
    "loop": bool,
    "image_url": str,
    "image_end_url": str,
    "aspect_ratio": str,
    "notify_hook": str,
}
DASHBOARD = html_page(200, "Sandbox relay")


class Relay:
    """
    The relay as an ASGI application.

    :param store: the tasks it knows and adds to.
    :param payloads: describes a task in JSON.
    :param clock: the sandbox's clock.
    :param shape: of status responses: ``bare``, an array of tasks, or ``wrapped``, rows in an envelope.
    :param api_key: the key requests must carry; may be replaced at any time.
    :param seconds: how long a submitted task takes.
    :param max_ids: the most task ids a query may hold; no limit if None.
    :param faults: may be replaced at any time.
    :param seed: decides which requests the faults affect.
    :param account: is charged for each submit.
    :param models: the models that the key may use, of ``luma_video_api`` (submit), ``luma_video_extend_api``
        and ``luma_video_fetch_tasks`` (status queries); all if None.
    """

    def __init__(
        self,
        store: TaskStore,
        payloads: Payloads,
        clock: Clock,
        *,
        shape: Shape,
        api_key: str,
        seconds: float,
        max_ids: int | None,
        faults: Faults,
        seed: int,
        account: Account,
        models: Collection[str] | None,
    ) -> None:
        self.api_key = api_key
        self.faults = faults
        self.requests: list[RecordedRequest] = []
        self.submits: list[dict[str, Any]] = []
        self.script: deque[ScriptedResponse] = deque()
        self.submit_script: deque[tuple[ScriptedResponse, bool]] = deque()
        self.account = account
        self.models = models
        self._store = store
        self._payloads = payloads
        self._clock = clock
        self._shape = shape
        self._seconds = seconds
        self._max_ids = max_ids
        self._sampler = FaultSampler(seed)
        self._window = SlidingWindow()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        call = (request.method, request.scope["path"])
        body = _parse_json(await request.body())
        response = self._respond(call, request.headers, body)
        ids = _parse_ids(body) if call == STATUS_QUERY else None
        self.requests.append(
            RecordedRequest(self._clock.now(), *call, dict(request.headers), response.status, ids)
        )
        await Connection(scope, receive, send).deliver_scripted(response, delay=self.faults.latency)

    def _respond(self, call: tuple[str, str], headers: Headers, body: object) -> ScriptedResponse:
        if call == STATUS_QUERY and self.script:
            return self.script.popleft()
        extended, queried = EXTEND.fullmatch(call[1]), SINGLE_QUERY.fullmatch(call[1])
        submits = call == SUBMIT or (call[0] == "POST" and extended is not None)
        known = {STATUS_QUERY, MODELS} | ENDPOINTS
        if call not in known and not submits and not (call[0] == "GET" and queried):
            return DASHBOARD
        if call not in PUBLIC and headers.get("authorization") != f"Bearer {self.api_key}":
            return gateway_error(401, "Invalid token", self._request_id())
        if call in ENDPOINTS:
            return self.account.respond(call) or self._no_endpoint(call)
        if call == MODELS:
            return self._list_models()
        if model := self._forbidden_model(submits=submits, extends=extended is not None):
            return gateway_error(403, f"this token has no access to model {model}", self._request_id())
        if submits:
            return self._submit(body, extended[1] if extended else None)
        if queried:
            return self._single(queried[1])
        return self._over_limit() or self._fault() or self._status(body)

    def _no_endpoint(self, call: tuple[str, str]) -> ScriptedResponse:
        if call[1].startswith("/api/"):
            return gateway_error(404, f"Invalid URL ({' '.join(call)})", self._request_id())
        return DASHBOARD

    def _list_models(self) -> ScriptedResponse:
        models = ("luma_video_api", "luma_video_fetch_tasks") if self.models is None else self.models
        rows = [{"id": model, "object": "model", "owned_by": "luma"} for model in models]
        return ScriptedResponse(body={"object": "list", "data": rows})

    def _forbidden_model(self, *, submits: bool, extends: bool) -> str | None:
        model = (
            "luma_video_extend_api" if extends else "luma_video_api" if submits else "luma_video_fetch_tasks"
        )
        return model if self.models is not None and model not in self.models else None

    def _status(self, body: object) -> ScriptedResponse:
        ids = _parse_ids(body)
        if ids is None:
            return task_error(400, "invalid_request", "ids must be an array of strings")
        if self._max_ids is not None and len(ids) > self._max_ids:
            return task_error(400, "invalid_request", f"ids must not hold more than {self._max_ids} elements")
        return ScriptedResponse(body=self._describe(ids))

    def _describe(self, ids: list[str]) -> object:
        """Describe these tasks: never in the order of the request, each once, unknown ids left out."""
        now = self._clock.now()
        unique = dict.fromkeys(ids)
        tasks = [task for task_id in reversed(unique) if (task := self._store.find(task_id, now))]
        if self._shape == "bare":
            return [self._payloads.bare(task, now) for task in tasks]
        rows = [self._payloads.row(task, now) for task in tasks]
        return {"code": "success", "message": "", "data": None if ids and not rows else rows}

    def _single(self, task_id: str) -> ScriptedResponse:
        now = self._clock.now()
        task = self._store.find(task_id, now)
        if task is None:
            return task_error(400, "task_not_exist", "task_not_exist")
        return ScriptedResponse(body=self._payloads.bare(task, now))

    def _submit(self, body: object, extended: str | None) -> ScriptedResponse:
        """Create a task and charge for it, unless the request is invalid or a fault applies."""
        if self.submit_script:
            response, created = self.submit_script.popleft()
            if created:
                self._create(body)
            return response
        faults = self.faults
        shares = (
            *(faults.submits_rate_limited, faults.submits_unavailable),
            *(faults.submits_bad_gateway, faults.submits_response_lost),
        )
        fault = self._sampler.draw(*shares)
        if fault == 0:
            return self._rate_limited("too many requests", faults.retry_after)
        if fault == 1:
            return gateway_error(503, "no channel for model luma in group default", self._request_id())
        response = self._rejection(body, extended) or ScriptedResponse(
            body=self._payloads.submitted(self._create(body), with_charge=self._shape == "wrapped")
        )
        if fault == 2:
            return html_page(502, "502 Bad Gateway")
        return ScriptedResponse(truncated=True) if fault == 3 else response

    def _rejection(self, body: object, extended: str | None) -> ScriptedResponse | None:
        if not isinstance(body, dict) or not body.get("user_prompt"):
            return task_error(400, "invalid_request", "user_prompt is required")
        for name, kind in SUBMIT_FIELDS.items():
            if body.get(name) is not None and not isinstance(body[name], kind):
                return task_error(400, "invalid_request", f"{name} must be a {kind.__name__}")
        if extended is not None and self._store.find(extended, self._clock.now()) is None:
            return task_error(400, "task_not_exist", "task_not_exist")
        if rejection := self.account.rejection():
            return rejection
        if REJECTED_WORD in body["user_prompt"]:
            message = f"user sensitive words detected: {REJECTED_WORD}"
            return task_error(400, "sensitive_words_detected", message)
        return None

    def _create(self, body: Any) -> Task:
        self.submits.append(body)
        task = self._store.add(
            created_at=self._clock.now(),
            seconds=self._seconds,
            prompt=body["user_prompt"],
            failure_reason=FAILURES[1] if FAILING_WORD in body["user_prompt"] else None,
            aspect_ratio=body.get("aspect_ratio") or "16:9",
            quota=self.account.price,
        )
        self.account.charge(task)
        return task

    def _over_limit(self) -> ScriptedResponse | None:
        limit = self.faults.limit_per_minute
        wait = 0 if limit is None else self._window.admit(limit, self._clock.now())
        return self._rate_limited(f"{limit} requests per 1 minutes", wait) if wait else None

    def _fault(self) -> ScriptedResponse | None:
        match self._sampler.draw(self.faults.rate_limited, self.faults.server_errors):
            case 0:
                return self._rate_limited("too many requests", self.faults.retry_after)
            case 1:
                return self._sampler.choose(self._server_errors())
        return None

    def _rate_limited(self, message: str, wait: float | None) -> ScriptedResponse:
        if wait is None:
            return ScriptedResponse(429, content_type=None)
        return gateway_error(429, message, self._request_id(), {"Retry-After": f"{wait:g}"})

    def _server_errors(self) -> tuple[ScriptedResponse, ...]:
        return (
            task_error(500, "do_request_failed", "upstream request failed"),
            html_page(502, "502 Bad Gateway"),
            gateway_error(503, "no channel for model luma in group default", self._request_id()),
        )

    def _request_id(self) -> str:
        return f"{self._clock.date(self._clock.now()):%Y%m%d%H%M%S}{len(self.requests):09}"


def _parse_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _parse_ids(body: object) -> list[str] | None:
    ids = body.get("ids") if isinstance(body, dict) else None
    return ids if isinstance(ids, list) and all(isinstance(task_id, str) for task_id in ids) else None
