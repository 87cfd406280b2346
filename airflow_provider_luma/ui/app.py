"""
The pages of the gallery, mounted by the api-server below ``/luma``.

Airflow mounts apps of plugins without any authentication, so each route here has its own. Permissions are
Airflow's: to see the gallery of a Dag is to read the XComs of that Dag.

===========================  ========================  =======================================================
route                        who                       what
===========================  ========================  =======================================================
``/clips/{dag_id}/...``      may read the Dag's XComs  a page without data: its script reads XCom by the REST
                                                       API, with the session of the user
``/records/{dag_id}``        may read the Dag's XComs  the records of a task instance, also those of its
                                                       manifest, which no XCom has
``/media/{dag_id}``          may read the Dag's XComs  one file of one clip, by the ids of task instance and
                                                       clip; never by a URI
``/static/``                 everybody                 style and scripts, which are public anyway
===========================  ========================  =======================================================

A file is served if, one after the other: its URI is in the records of that task instance; the name is
that of a video or an image; it is below an entry of ``[luma] gallery_paths``. That entry's connection signs.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.taskinstancekey import TaskInstanceKey
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from airflow_provider_luma.ui.local_file import file_response, open_below
from airflow_provider_luma.ui.media_paths import (
    LOCAL,
    OPTION,
    SECTION,
    Location,
    MediaPath,
    content_type_of,
    find_path,
    get_media_paths,
    locate,
    resolve_own_folders,
)
from airflow_provider_luma.ui.presign import origin_of, presign
from airflow_provider_luma.ui.records import dump_records, find_uri

MOUNT = "/luma"

_HERE = Path(__file__).parent
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

# As the database has it.
_MapIndex = Annotated[int, Query(ge=-1, lt=2**31)]

log = logging.getLogger(__name__)

_templates = Jinja2Templates(directory=_HERE / "templates")
_may_read_xcom = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))


def create_app() -> FastAPI:
    resolve_own_folders()
    app = FastAPI(title="Luma clips", openapi_url=None, docs_url=None, redoc_url=None)
    guarded: Any = {"dependencies": [_may_read_xcom], "response_model": None}
    app.add_api_route("/clips/{dag_id}/{rest:path}", clips, **guarded)
    app.add_api_route("/media/{dag_id}", media, methods=["GET", "HEAD"], **guarded)
    app.add_api_route("/records/{dag_id}", records, **guarded)
    app.mount("/static", StaticFiles(directory=_HERE / "static"))
    app.add_exception_handler(HTTPException, _explain)
    return app


def clips(request: Request, dag_id: str) -> Response:
    """Return the page, which is the same for every Dag but for where its media may come from."""
    origins = sorted({origin for path in get_media_paths(dag_id) if (origin := _origin(path))})
    return _page(request, "gallery.html", origins)


def records(dag_id: str, run_id: str, task_id: str, map_index: _MapIndex = -1) -> Response:
    """Return the records of a task instance; none where they are in a manifest that must not be read."""
    found = dump_records(TaskInstanceKey(dag_id, task_id, run_id, map_index=map_index))
    headers = {**_SAFE_HEADERS, "Cache-Control": "no-store"}
    return Response(f'{{"records": {found}}}', headers=headers, media_type="application/json")


def media(
    request: Request,
    dag_id: str,
    run_id: str,
    task_id: str,
    clip_id: str,
    file: Literal["video", "thumbnail", "last_frame"] = "video",
    map_index: _MapIndex = -1,
    download: bool = False,
) -> Response:
    """Stream a file, or redirect to a presigned URL of it."""
    uri = find_uri(TaskInstanceKey(dag_id, task_id, run_id, map_index=map_index), clip_id, file)
    location = locate(uri) if uri else None
    content_type = content_type_of(location) if location else None
    if location is None or content_type is None:
        raise HTTPException(404, "The records of this task instance have no such file")
    path = find_path(location, dag_id)
    if path is None:
        raise HTTPException(403, f"The file is not below the paths of [{SECTION}] {OPTION}")
    disposition = _disposition(location, clip_id, is_download=download)
    if location.kind == LOCAL:
        return _local(request, path, location, content_type, disposition)
    return _redirect(request, path, location, content_type, disposition)


def _local(
    request: Request, path: MediaPath, location: Location, content_type: str, disposition: str
) -> Response:
    opened = open_below(path, location)
    if opened is None:
        raise HTTPException(404, "There is no such file")
    headers = {
        **_SAFE_HEADERS,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": disposition,
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return file_response(opened, request.method, request.headers, headers, content_type)


def _redirect(
    request: Request, path: MediaPath, location: Location, content_type: str, disposition: str
) -> Response:
    try:
        url = presign(path, location.key, content_type, disposition, method=request.method)
    except Exception as error:  # whatever the store's provider raises
        log.exception("No presigned URL for [%s] %s", SECTION, OPTION)
        raise HTTPException(
            502, "The connection of this path cannot sign URLs; see the api-server's log"
        ) from error
    return RedirectResponse(url, 307, headers={**_SAFE_HEADERS, "Cache-Control": "no-store"})


def _origin(path: MediaPath) -> str | None:
    try:
        return origin_of(path)
    except Exception:  # its videos do not play; the page and the others do
        log.exception("An entry of [%s] %s cannot sign URLs", SECTION, OPTION)
        return None


def _content_security_policy(origins: list[str]) -> str:
    media_sources = " ".join(["'self'", *origins])
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            f"img-src {media_sources}",
            f"media-src {media_sources}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'self'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _disposition(location: Location, clip_id: str, *, is_download: bool) -> str:
    if not is_download:
        return "inline"
    suffix = location.segments[-1].rpartition(".")[2]
    return f'attachment; filename="{_NOT_A_NAME.sub("-", clip_id)[:100].strip(".-") or "clip"}.{suffix}"'


def _page(request: Request, name: str, origins: list[str], status: int = 200) -> Response:
    headers = {
        **_SAFE_HEADERS,
        "Content-Security-Policy": _content_security_policy(origins),
        "Cache-Control": "no-store",
    }
    return _templates.TemplateResponse(request, name, {"root": _root(request)}, status, headers)


def _root(request: Request) -> str:
    """Return the path of Airflow itself, as [api] base_url has it."""
    return str(request.scope.get("root_path", "")).removesuffix(MOUNT).rstrip("/")


async def _explain(request: Request, error: Any) -> Response:
    """Respond to a browser with pages: without a session with Airflow's login, which leads back."""
    is_page = request.url.path.startswith(f"{_root(request)}{MOUNT}/clips/")
    if is_page and error.status_code == 401:
        # Without the host, which a proxy may not pass on, and quoted as it came. Airflow 3.1 does not quote
        # it again, which makes a space of a plus.
        here = quote(request.scope["raw_path"].decode("latin-1").replace("+", "%2B"), safe="")
        return RedirectResponse(f"{_root(request)}/api/v2/auth/login?next={here}", 307)
    if is_page and error.status_code == 403:
        return _page(request, "forbidden.html", [], 403)
    response = await http_exception_handler(request, error)
    response.headers["Cache-Control"] = "no-store"
    return response
