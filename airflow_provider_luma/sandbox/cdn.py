"""The CDN: serves media to presigned URLs, complete or in parts."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from airflow_provider_luma.sandbox.delivery import Connection, RecordedRequest
from airflow_provider_luma.sandbox.faults import Faults, FaultSampler, ScriptedResponse
from airflow_provider_luma.sandbox.media import MediaFile, image, video

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from airflow_provider_luma.sandbox.clock import Clock
    from airflow_provider_luma.sandbox.presigned_urls import PresignedURLs
    from airflow_provider_luma.sandbox.tasks import Task, TaskStore

PATH = re.compile(r"/dream-machine/([^/]+)/(video\.mp4|thumbnail\.jpg|last_frame\.jpg)")
RANGE = re.compile(r"bytes=(?:(?P<first>\d+)-(?P<last>\d*)|-(?P<suffix>\d+))")
REJECTED, TRUNCATED = 0, 1


class Cdn:
    """
    The CDN as an ASGI application.

    :param store: the tasks whose media it serves once they are completed.
    :param urls: recognises the URLs to reject.
    :param clock: the sandbox's clock.
    :param video_bytes: bytes of each video; those of the clip and a little more if None.
    :param faults: may be replaced at any time.
    :param seed: decides which downloads the faults affect.
    """

    def __init__(
        self,
        store: TaskStore,
        urls: PresignedURLs,
        clock: Clock,
        *,
        video_bytes: int | None,
        faults: Faults,
        seed: int,
    ) -> None:
        self.faults = faults
        self.downloads: list[RecordedRequest] = []
        self.script: deque[ScriptedResponse] = deque()
        self._store = store
        self._urls = urls
        self._clock = clock
        self._video_bytes = video_bytes
        self._sampler = FaultSampler(seed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        connection = Connection(scope, receive, send)
        if self.script:
            scripted = self.script.popleft()
            self._record(request, scripted.status)
            await connection.deliver_scripted(scripted, delay=self.faults.latency)
            return
        fault = self._sampler.draw(self.faults.rejected_downloads, self.faults.truncated_downloads)
        response = _error(403, "Access denied") if fault == REJECTED else self._response(request)
        self._record(request, response.status_code)
        await connection.deliver(response, delay=self.faults.latency, truncated=fault == TRUNCATED)

    def _record(self, request: Request, status: int) -> None:
        path, headers = request.scope["path"], dict(request.headers)
        self.downloads.append(RecordedRequest(self._clock.now(), request.method, path, headers, status))

    def _response(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _error(405, "The specified method is not allowed")
        now = self._clock.now()
        path = PATH.fullmatch(request.scope["raw_path"].decode("ascii"))
        task = self._store.find(unquote(path[1]), now) if path else None
        if path is None or task is None or not task.has_media(now):
            return _error(404, "The specified key does not exist")
        if rejection := self._urls.rejection(task.id, request.query_params, now):
            return _error(403, rejection)
        return self._media(request, task, path[2])

    def _media(self, request: Request, task: Task, name: str) -> Response:
        is_video = name == "video.mp4"
        media = video(task.id, self._video_bytes) if is_video else image(name)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": media.content_type,
            "ETag": _etag(task.id, name, media.size),
            "Last-Modified": formatdate(self._clock.unix(task.finishes_at), usegmt=True),
        }
        current = request.headers.get("if-range", headers["ETag"]) in (
            headers["ETag"],
            headers["Last-Modified"],
        )
        span = _parse_range(request.headers.get("range", ""), media.size) if current else None
        if span is None:
            return _part(request, media, range(media.size), 200, headers)
        if not span:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{media.size}"})
        content_range = f"bytes {span.start}-{span.stop - 1}/{media.size}"
        return _part(request, media, span, 206, {**headers, "Content-Range": content_range})


def _parse_range(header: str, size: int) -> range | None:
    """Return the bytes that a ``Range`` requests: an empty range if there are none, None if it is invalid."""
    match = RANGE.fullmatch(header)
    if match is None:
        return None
    if match["suffix"]:
        return range(max(size - int(match["suffix"]), 0), size)
    first, last = int(match["first"]), match["last"]
    if last and int(last) < first:
        return None
    return range(first, min(int(last) + 1, size) if last else size)


def _part(request: Request, media: MediaFile, span: range, status: int, headers: dict[str, str]) -> Response:
    headers = {**headers, "Content-Length": str(len(span))}
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_stream(media, span), status, headers)


async def _stream(media: MediaFile, span: range) -> AsyncIterator[bytes]:
    for chunk in media.chunks(span.start, span.stop):
        yield chunk
        # Lets other requests be served, and ends the stream of a client that has left.
        await asyncio.sleep(0)


def _etag(*parts: object) -> str:
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"'


def _error(status: int, message: str) -> Response:
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Message>{message}</Message></Error>\n'
    return Response(xml, status, media_type="application/xml")
