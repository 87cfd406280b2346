"""The delivery of a response: late, truncated, or complete."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from airflow_provider_luma.sandbox.faults import ScriptedResponse


@dataclass(frozen=True)
class RecordedRequest:
    """
    A request that one of the two servers received.

    :param at: the clock's reading at the response.
    :param ids: the task ids of a well-formed status query; None in any other request.
    :param headers: with names in lower case.
    :param status: of the response, which may not be sent yet.
    """

    at: float
    method: str
    path: str
    headers: dict[str, str]
    status: int
    ids: list[str] | None = None


@dataclass(frozen=True)
class Connection:
    """One ASGI call: what starlette's responses are called with, and a way to close the connection."""

    scope: Scope
    receive: Receive
    send: Send

    async def deliver(self, response: Response, *, delay: float = 0.0, truncated: bool = False) -> None:
        """
        Send a response, unless the client leaves before.

        :param delay: seconds to wait first.
        :param truncated: close the connection when half of the body is sent; without a body, before any
            response.
        """
        if delay and await self._is_closed_within(delay):
            return
        if truncated:
            await self._deliver_truncated(response)
        else:
            await response(self.scope, self.receive, self.send)

    async def deliver_scripted(self, scripted: ScriptedResponse, *, delay: float = 0.0) -> None:
        response = Response(
            scripted.content, scripted.status, dict(scripted.headers), media_type=scripted.content_type
        )
        await self.deliver(response, delay=delay + scripted.delay, truncated=scripted.truncated)

    async def _deliver_truncated(self, response: Response) -> None:
        left = int(response.headers["content-length"]) // 2

        async def send_part(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.body":
                message = {**message, "body": message["body"][:left], "more_body": True}
                left -= len(message["body"])
            await self.send(message)
            if not left:
                # Stops a stream here, which would otherwise be generated to its end in vain.
                self.scope["abort"]()

        if left:
            await response(self.scope, self.receive, send_part)
        self.scope["abort"]()
        await self._wait_closed()

    async def _is_closed_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._wait_closed(), seconds)
        except TimeoutError:
            return False
        return True

    async def _wait_closed(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
