"""How a response is sent: late, truncated, or complete."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from airflow_provider_luma.sandbox.faults import ScriptedAnswer


@dataclass(frozen=True)
class RecordedRequest:
    """
    A request one of the two servers got.

    :param at: the clock's reading at the response.
    :param ids: the task ids of a well-formed status query; None in any other request.
    :param headers: with names in lower case.
    :param status: of the response, which may still be under way.
    """

    at: float
    method: str
    path: str
    headers: dict[str, str]
    status: int
    ids: list[str] | None = None


@dataclass(frozen=True)
class Connection:
    """One ASGI call: what starlette's responses are called with, and a way to hang up."""

    scope: Scope
    receive: Receive
    send: Send

    async def deliver(self, response: Response, *, delay: float = 0.0, cut: bool = False) -> None:
        """
        Send a response, unless the client leaves before.

        :param delay: seconds to wait first.
        :param cut: close the connection when half of the body is sent; with no body, before any response.
        """
        if delay and await self._closes_within(delay):
            return
        if cut:
            await self._deliver_half(response)
        else:
            await response(self.scope, self.receive, self.send)

    async def deliver_scripted(self, answer: ScriptedAnswer, *, delay: float = 0.0) -> None:
        headers = dict(answer.headers)
        response = Response(answer.content, answer.status, headers, media_type=answer.content_type)
        await self.deliver(response, delay=delay + answer.delay, cut=answer.cut)

    async def _deliver_half(self, response: Response) -> None:
        left = int(response.headers["content-length"]) // 2

        async def send_part(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.body":
                message = {**message, "body": message["body"][:left], "more_body": True}
                left -= len(message["body"])
            await self.send(message)
            if not left:
                # Ends a stream here, which would else be made to its end in vain.
                self.scope["hang_up"]()

        if left:
            await response(self.scope, self.receive, send_part)
        self.scope["hang_up"]()
        await self._closed()

    async def _closes_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closed(), seconds)
        except TimeoutError:
            return False
        return True

    async def _closed(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
