"""The JSON formats of responses of this family of relays, and their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_luma.sandbox.faults import ScriptedResponse
from airflow_provider_luma.sandbox.media import DURATION, HEIGHT, WIDTH
from airflow_provider_luma.sandbox.tasks import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_luma.sandbox.clock import Clock
    from airflow_provider_luma.sandbox.presigned_urls import PresignedURLs
    from airflow_provider_luma.sandbox.tasks import Task

Json = dict[str, Any]

GO_ZERO_TIME = "0001-01-01T00:00:00Z"
FILES = ("video.mp4", "thumbnail.jpg", "last_frame.jpg")
PALETTE = {"grid": "/wAA/wAA/wAAAP8AAP8AAP8A//8A//8A//8AAAD/AAD/AAD//wD//wD//wD/AP//AP//AP//"}
NO_MEDIA: Json = {"last_frame": None, "thumbnail": None, "video": None, "video_raw": None}
ROW_STATUS = {
    Phase.PENDING: "QUEUED",
    Phase.PROCESSING: "IN_PROGRESS",
    Phase.COMPLETED: "SUCCESS",
    Phase.FAILED: "FAILURE",
}
PROGRESS = {"NOT_START": "0%", "QUEUED": "10%", "IN_PROGRESS": "50%", "SUCCESS": "100%", "FAILURE": "100%"}


class Payloads:
    """
    Describes a task, in either shape.

    :param clock: formats its times.
    :param urls: signs its URLs, again for every response.
    """

    def __init__(self, clock: Clock, urls: PresignedURLs) -> None:
        self._clock = clock
        self._urls = urls

    def bare(self, task: Task, now: float) -> Json:
        """Return an element of the bare array; only one that failed has a ``failure_reason``."""
        media = self._media(task, now) or NO_MEDIA
        return {
            "artifact": None if media is NO_MEDIA else {"created_at": GO_ZERO_TIME, **media},
            "created_at": self._clock.iso(task.created_at),
            **_failure(task, now),
            "id": task.id,
            "last_frame": media["last_frame"],
            "request": {"aspect_ratio": task.aspect_ratio, "prompt": task.prompt},
            "state": task.raw_state or task.phase(now).value,
            "thumbnail": media["thumbnail"],
            "video": media["video"],
            "video_raw": media["video_raw"],
        }

    def row(self, task: Task, now: float) -> Json:
        """Return a row of the wrapped shape, whose integer ``id`` is not the task id."""
        status = _row_status(task, now)
        phase = task.phase(now)
        media = self._media(task, now)
        ended = phase in (Phase.COMPLETED, Phase.FAILED)
        changed = {Phase.PENDING: task.created_at, Phase.PROCESSING: task.starts_at}.get(
            phase, task.finishes_at
        )
        return {
            "id": task.number,
            "created_at": self._clock.iso(task.created_at),
            "updated_at": self._clock.iso(changed),
            "task_id": task.id,
            "platform": "luma",
            "action": "LUMA_VIDEO",
            **_charge(task),
            "status": task.raw_state or status,
            "fail_reason": _fail_reason(task, now, media),
            "submit_time": self._seconds(task.created_at),
            "start_time": 0 if phase is Phase.PENDING else self._seconds(task.starts_at),
            "finish_time": self._seconds(task.finishes_at) if ended else 0,
            "progress": PROGRESS[status],
            "data": None if status == "NOT_START" else self._inner(task, now, media),
        }

    def submitted(self, task: Task, *, with_charge: bool) -> Json:
        return {
            "id": task.id,
            **(_charge(task) if with_charge else {}),
            "prompt": "",
            "state": Phase.PENDING.value,
            "queue_state": None,
            "created_at": self._clock.iso(task.created_at, "microseconds"),
            "batch_id": "",
            "video": None,
            "video_raw": None,
            "liked": None,
            "estimate_wait_seconds": None,
            "thumbnail": None,
            "last_frame": None,
        }

    def _inner(self, task: Task, now: float, media: Json | None) -> Json:
        return {
            "id": task.id,
            "state": task.raw_state or task.phase(now).value,
            **(media or NO_MEDIA),
            **_failure(task, now),
            "prompt": task.prompt,
            "liked": None,
            "created_at": self._clock.iso(task.created_at, "microseconds"),
            "estimate_wait_seconds": None,
        }

    def _media(self, task: Task, now: float) -> Json | None:
        if not task.has_media(now):
            return None
        video, thumbnail, last_frame = self._urls.sign(task.id, FILES, now)
        return {
            "last_frame": {
                "height": HEIGHT,
                "media_type": "image",
                "palette": None,
                "url": last_frame,
                "width": WIDTH,
            },
            "thumbnail": {
                "height": HEIGHT,
                "media_type": "image",
                "palette": PALETTE,
                "url": thumbnail,
                "width": WIDTH,
            },
            "video": {"download_url": video, "height": HEIGHT, "url": video, "width": WIDTH},
            "video_raw": {
                "duration": DURATION,
                "height": HEIGHT,
                "media_type": "video",
                "url": video,
                "width": WIDTH,
            },
        }

    def _seconds(self, at: float) -> int:
        return int(self._clock.unix(at))


def _row_status(task: Task, now: float) -> str:
    phase = task.phase(now)
    if phase is Phase.PENDING and now < (task.created_at + task.starts_at) / 2:
        return "NOT_START"
    return ROW_STATUS[phase]


def _failure(task: Task, now: float) -> Json:
    return {"failure_reason": task.failure_reason} if task.phase(now) is Phase.FAILED else {}


def _charge(task: Task) -> Json:
    return {} if task.quota is None else {"quota": task.quota}


def _fail_reason(task: Task, now: float, media: Json | None) -> str:
    """Return why it failed; on every other success the video's URL, as older relays of the family do."""
    if media and task.number % 2:
        return str(media["video"]["url"])
    return str(_failure(task, now).get("failure_reason", ""))


def gateway_error(
    status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> ScriptedResponse:
    """Return the envelope of authentication, rate limits and routing."""
    text = f"{message} (request id: {request_id})"
    body = {"error": {"message": text, "type": "new_api_error", "param": "", "code": ""}}
    return ScriptedResponse(status, body, headers or {})


def task_error(status: int, code: str, message: str) -> ScriptedResponse:
    """Return the envelope of the task endpoints."""
    return ScriptedResponse(status, {"code": code, "message": message, "data": None})


def html_page(status: int, title: str) -> ScriptedResponse:
    html = f"<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return ScriptedResponse(status, html, content_type="text/html")
