"""
The gallery's endpoints, on Airflow's own app with its own permissions and a real database.

An author of a Dag may write anything into XCom. So most tests here are attacks.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from airflow_provider_luma import sandbox
from airflow_provider_luma.store_clients import s3_client
from airflow_provider_luma.ui import records
from airflow_provider_luma.ui.media_paths import get_media_paths, locate, read_media_paths
from airflow_provider_luma.ui.presign import EXPIRES_SECONDS, _signer, presign
from tests.airflow.harness import AIRFLOW, Run
from tests.stores import S3, free_port
from tests.ui.seeds import record, write_by_hand

pytestmark = pytest.mark.skipif(AIRFLOW < (3, 1), reason="Airflow 3.0 has no tabs of plugins")

USERS = {"admin": "ADMIN", "viewer": "VIEWER", "neighbour": "VIEWER", "outsider": ""}
MEDIA = Path(sandbox.__file__).parent / "media_files"
VIDEO = (MEDIA / "clip.mp4").read_bytes()
THUMBNAIL = (MEDIA / "thumbnail.jpg").read_bytes()
SETTING = "AIRFLOW__LUMA__GALLERY_PATHS"
Get = Callable[..., Any]


class World(NamedTuple):
    """A Dag run whose author wrote the records by hand, and the files that they may lead to."""

    folder: Path
    run: Run
    others: Run

    @property
    def clips(self) -> str:
        return (self.folder / "clips").as_uri()


@pytest.fixture(scope="module")
def world(airflow_db: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("gallery")
    clips = folder / "clips"
    (clips / "made_by_hand").mkdir(parents=True)
    (folder / "clips-secret").mkdir()
    (folder / "others").mkdir()
    (folder / "perdag").mkdir()
    (folder / "perdag/made_by_hand").symlink_to(folder)
    for file in (
        "clips/ours.mp4",
        "clips/made_by_hand/own.mp4",
        "clips/a\u00a0b\u3000c.mp4",
        "clips/\U0001f469\u200d\U0001f680.mp4",
        "clips/a\nb.mp4",
        "clips-secret/near.mp4",
        "others/secret.mp4",
    ):
        (folder / file).write_bytes(VIDEO)
    (clips / "poster.jpg").write_bytes(THUMBNAIL)
    (clips / "page.html").write_text("<script>alert(1)</script>")
    (clips / "script.svg").write_text("<svg onload='alert(1)'/>")
    (clips / "link.mp4").symlink_to(folder / "others/secret.mp4")
    (clips / "folder-link").symlink_to(folder / "others")
    (clips / "inner-link.mp4").symlink_to(clips / "ours.mp4")
    (clips / "loop.mp4").symlink_to(clips / "loop.mp4")
    (clips / "folder.mp4").mkdir()
    os.mkfifo(clips / "pipe.mp4")
    rows = [
        record("row", f"{clips.as_uri()}/ours.mp4"),
        record("stray", "file:///etc/passwd.mp4"),
        7,
        {"id": 1},
    ]
    for file in (clips / "manifest.jsonl", folder / "others/manifest.jsonl"):
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"id": "trunc')
    (clips / "video-manifest.jsonl").write_bytes(VIDEO)
    manifests = {
        "manifested": {"manifest": f"{clips.as_uri()}/manifest.jsonl"},
        "in_s3": {"manifest": "s3://bucket/clips/manifest.jsonl"},
        "elsewhere": {"manifest": f"{folder.as_uri()}/others/manifest.jsonl"},
        "by_dots": {"manifest": f"{clips.as_uri()}/../others/manifest.jsonl"},
        "passwd": {"manifest": "file:///etc/passwd"},
        "no_text": {"manifest": ["file:///etc/passwd"]},
        "no_manifest": {"manifest": f"{clips.as_uri()}/video-manifest.jsonl"},
        "absent": {"manifest": f"{clips.as_uri()}/absent.jsonl"},
        "web": {"manifest": "http://169.254.169.254/manifest.jsonl"},
        "hostile_rows": {"manifest": f"{clips.as_uri()}/hostile.jsonl"},
    }
    hostile: dict[str, object] = {"deep": [], "endless_number": []}
    row = '{"id": "%s", "state": "completed", "status": "downloaded", "duration": %s}\n'
    values = {
        "nan": "NaN",
        "infinite": "1e999",
        "deep": "[" * 900 + "]" * 900,
        "half": '"\\ud83d"',
        "good": "5",
    }
    (clips / "hostile.jsonl").write_text("".join(row % one for one in values.items()))
    run = write_by_hand("made_by_hand", _records(clips.as_uri(), folder.as_uri()), **manifests, **hostile)
    _write_raw(run, "deep", "[" * 100_000 + "]" * 100_000)
    _write_raw(run, "endless_number", "[" + "9" * 10_000 + "]")
    return World(folder, run, write_by_hand("others_clips", [record("theirs", f"{clips.as_uri()}/ours.mp4")]))


def _write_raw(run: Run, task_id: str, text: str) -> None:
    """Put a text into the database as an XCom, which Airflow's own serializer would not write."""
    from airflow.utils.session import create_session
    from sqlalchemy import text as sql

    with create_session() as session:
        written = session.execute(
            sql("UPDATE xcom SET value = :text WHERE dag_id = :dag_id AND task_id = :task_id"),
            {"text": text, "dag_id": run.dag_id, "task_id": task_id},
        )
        assert written.rowcount == 1


def _records(clips: str, folder: str) -> list[object]:
    files = {
        "ours": f"{clips}/ours.mp4",
        "own": f"{clips}/made_by_hand/own.mp4",
        "passwd": "file:///etc/passwd",
        "outside": f"{folder}/others/secret.mp4",
        "prefix": f"{folder}/clips-secret/near.mp4",
        "dots": f"{clips}/../others/secret.mp4",
        "quoted-dots": f"{clips}/%2e%2e/others/secret.mp4",
        "double-slash": f"{clips}//ours.mp4",
        "nul": f"{clips}/ours.mp4\0.mp4",
        "backslash": f"{clips}/..\\others\\secret.mp4",
        "host": f"file://localhost{folder}/clips/ours.mp4",
        "link": f"{clips}/link.mp4",
        "folder-link": f"{clips}/folder-link/secret.mp4",
        "inner-link": f"{clips}/inner-link.mp4",
        "loop": f"{clips}/loop.mp4",
        "folder": f"{clips}/folder.mp4",
        "pipe": f"{clips}/pipe.mp4",
        "absent": f"{clips}/absent.mp4",
        "page": f"{clips}/page.html",
        "svg": f"{clips}/script.svg",
        "bare": clips,
        "web": "https://169.254.169.254/latest/meta-data/a.mp4",
        "http-local": "http://127.0.0.1/a.mp4",
        "s3": "s3://bucket/clips/ours.mp4",
        "s3-conn": "s3://somebody@bucket/clips/ours.mp4",
        "s3-other-key": "s3://bucket/private/secret.mp4",
        "s3-dots": "s3://bucket/clips/../private/secret.mp4",
        "s3-other-bucket": "s3://my-bucket/clips/ours.mp4",
        "s3-other-scheme": "gs://bucket/clips/ours.mp4",
        "of-another-dag": f"{folder}/perdag/made_by_hand/others/secret.mp4",
        "no-break-space": f"{clips}/a\u00a0b\u3000c.mp4",
        "emoji": f"{clips}/\U0001f469\u200d\U0001f680.mp4",
        "newline": f"{clips}/a\nb.mp4",
        "long-name": f"{clips}/{'x' * 300}.mp4",
        "number": 7,
        "list": [f"{clips}/ours.mp4"],
    }
    oddities: list[object] = [None, 3, "text", {"id": "no-files"}, {"id": "text-file", "video": "x.mp4"}]
    return [*(record(clip_id, uri) for clip_id, uri in files.items()), *oddities,
            record("poster", f"{clips}/ours.mp4", thumbnail=f"{clips}/poster.jpg")]  # fmt: skip


@pytest.fixture(scope="module")
def app(world: World) -> Iterator[Any]:
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from fastapi.testclient import TestClient

    passwords = world.folder / "passwords.json"
    passwords.write_text(json.dumps({user: user for user in USERS}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AIRFLOW__CORE__AUTH_MANAGER": "tests.airflow.per_dag_auth.PerDagAuthManager",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(map(":".join, USERS.items())),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__API_AUTH__JWT_SECRET": "for-these-tests-only" * 4,
        }.items():
            patch.setenv(name, value)
        purge_cached_app()
        with TestClient(create_app(apps="core"), follow_redirects=False) as client:
            yield client
    purge_cached_app()


@pytest.fixture(scope="module")
def tokens(app: Any) -> dict[str, str]:
    def token(user: str) -> str:
        answer = app.post("/auth/token", json={"username": user, "password": user})
        return str(answer.json()["access_token"])

    return {user: token(user) for user in USERS}


@pytest.fixture
def get(app: Any, tokens: dict[str, str], world: World, monkeypatch: pytest.MonkeyPatch) -> Get:
    """Request a file of a clip, as a user; the clips' folder is named by the administrator."""
    monkeypatch.setenv(SETTING, world.clips)

    def get(clip: str, user: str | None = "viewer", method: str = "GET", **changed: Any) -> Any:
        headers = {"Authorization": f"Bearer {tokens[user]}"} if user else {}
        headers |= changed.pop("headers", {})
        dag_id = changed.pop("dag_id", world.run.dag_id)
        query = {"run_id": world.run.run_id, "task_id": "download", "clip_id": clip} | changed
        return app.request(method, f"/luma/media/{dag_id}", params=query, headers=headers)

    return get


def test_a_video_is_streamed(get: Get, world: World) -> None:
    response = get("ours")
    assert (response.status_code, response.content) == (200, VIDEO)
    assert response.headers["content-type"] == "video/mp4"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == "inline"
    assert "sandbox" in response.headers["content-security-policy"]


def test_a_thumbnail_is_a_file_of_its_own(get: Get) -> None:
    response = get("poster", file="thumbnail")
    assert response.headers["content-type"] == "image/jpeg"
    assert response.content == THUMBNAIL
    assert get("poster", file="last_frame").status_code == 404
    assert get("poster", file="source").status_code == 422


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-", 206, 0, -1),
        ("bytes=100-199", 206, 100, 199),
        ("bytes=100-", 206, 100, -1),
        ("bytes=-100", 206, -100, -1),
        ("bytes=100-99999999999", 206, 100, -1),
        ("bytes=0-1,5-6", 200, 0, -1),
        ("bytes=5-3", 200, 0, -1),
        ("lines=1-2", 200, 0, -1),
        ("bytes=-", 200, 0, -1),
    ],
)
def test_a_range_of_a_video(get: Get, asked: str, status: int, first: int, last: int) -> None:
    size = len(VIDEO)
    start, end = first % size, last % size
    response = get("ours", headers={"Range": asked})
    assert response.status_code == status
    assert response.content == VIDEO[start : end + 1]
    if status == 206:
        assert response.headers["content-range"] == f"bytes {start}-{end}/{size}"


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_none(get: Get, asked: str) -> None:
    response = get("ours", headers={"Range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(VIDEO)}"


def test_a_range_of_another_version_is_the_whole(get: Get) -> None:
    etag = get("ours", method="HEAD").headers["etag"]
    assert get("ours", headers={"Range": "bytes=5-9", "If-Range": etag}).status_code == 206
    assert get("ours", headers={"Range": "bytes=5-9", "If-Range": '"old"'}).status_code == 200


def test_a_head_has_no_body(get: Get) -> None:
    response = get("ours", method="HEAD")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len(VIDEO))


def test_a_download_has_a_safe_name(get: Get) -> None:
    assert get("ours", download="true").headers["content-disposition"] == 'attachment; filename="ours.mp4"'


@pytest.mark.parametrize(
    ("user", "status"), [(None, 401), ("outsider", 403), ("neighbour", 403), ("viewer", 200), ("admin", 200)]
)
def test_only_readers_of_the_dags_xcoms_get_its_media(get: Get, user: str | None, status: int) -> None:
    assert get("ours", user).status_code == status
    assert get("ours", user, method="HEAD").status_code == status


@pytest.mark.parametrize(
    "token", ["", "nonsense", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiIsInJvbGUiOiJBRE1JTiJ9."]
)
def test_a_forged_token_opens_nothing(get: Get, token: str) -> None:
    assert get("ours", None, headers={"Authorization": f"Bearer {token}"}).status_code in {401, 403}


def test_a_reader_of_one_dag_gets_nothing_of_another(get: Get, world: World) -> None:
    own = {"dag_id": "others_clips", "run_id": world.others.run_id}
    assert get("theirs", "neighbour", **own).status_code == 200
    # With the right to one Dag, the run, the task and the clip of another are of no use.
    assert get("ours", "neighbour", dag_id="others_clips").status_code == 404
    assert get("ours", "neighbour", **own).status_code == 404
    assert get("theirs", "neighbour", run_id=world.others.run_id).status_code == 403


@pytest.mark.parametrize("dag_id", ["~", "%7E", "*", "no_such_dag", "made_by_hand%00"])
def test_a_wildcard_for_the_dag_finds_nothing(get: Get, dag_id: str) -> None:
    assert get("ours", "admin", dag_id=dag_id).status_code == 404
    assert get("ours", "neighbour", dag_id=dag_id).status_code == 403


def test_a_second_dag_id_in_the_query_changes_nothing(get: Get) -> None:
    assert get("ours", "neighbour", dag_id="made_by_hand?dag_id=others_clips").status_code == 403


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"run_id": "~"}, 404),
        ({"task_id": "~"}, 404),
        ({"task_id": "elsewhere"}, 404),
        ({"map_index": 0}, 404),
        ({"map_index": -2}, 422),
        ({"map_index": 2**31}, 422),
        ({"map_index": 10**30}, 422),
        ({"task_id": "deep"}, 404),
        ({"task_id": "endless_number"}, 404),
        ({"clip_id": "file:///etc/passwd"}, 404),
        ({"uri": "file:///etc/passwd", "clip_id": "absent"}, 404),
    ],
)
def test_only_what_stands_in_the_records_of_the_task_instance(
    get: Get, changed: dict[str, Any], status: int
) -> None:
    assert get("ours", "admin", **changed).status_code == status


@pytest.mark.parametrize(
    ("clip", "status"),
    [
        ("passwd", 404),
        ("outside", 403),
        ("prefix", 403),
        ("dots", 404),
        ("quoted-dots", 404),
        ("double-slash", 404),
        ("nul", 404),
        ("backslash", 404),
        ("host", 404),
        ("link", 404),
        ("folder-link", 404),
        ("inner-link", 404),
        ("loop", 404),
        ("folder", 404),
        ("pipe", 404),
        ("absent", 404),
        ("page", 404),
        ("svg", 404),
        ("bare", 404),
        ("web", 404),
        ("http-local", 404),
        ("s3", 403),
        ("newline", 404),
        ("long-name", 404),
        ("number", 404),
        ("list", 404),
        ("no-files", 404),
        ("text-file", 404),
    ],
)
def test_an_author_reads_no_file_of_the_api_server(get: Get, clip: str, status: int) -> None:
    for user in ("viewer", "admin"):
        response = get(clip, user)
        assert response.status_code == status
        assert VIDEO[:64] not in response.content


@pytest.mark.parametrize(
    "setting", ["", " , ", "file:///", "file://", "/etc", "s3://", "s3", "file:///a/../"]
)
def test_nothing_is_served_unless_an_administrator_says_so(
    get: Get, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, setting)
    assert get("ours").status_code == 403
    monkeypatch.delenv(SETTING)
    assert get("ours").status_code == 403
    assert "[luma] gallery_paths" in get("ours").json()["detail"]


def test_a_dag_may_have_its_own_folder(get: Get, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, f"{world.clips}/{{dag_id}}")
    assert get("own").status_code == 200
    assert get("ours").status_code == 403


def test_a_link_in_place_of_a_dags_folder_leads_nowhere(
    get: Get, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    perdag = (world.folder / "perdag").as_uri()
    for entry in (f"{perdag}/{{dag_id}}", f"{perdag}/made_{{dag_id}}, {perdag}/{{dag_id}}/others"):
        monkeypatch.setenv(SETTING, entry)
        assert get("of-another-dag").status_code == 404


@pytest.mark.parametrize("clip", ["no-break-space", "emoji"])
def test_a_name_may_have_any_character_that_a_destination_may_have(get: Get, clip: str) -> None:
    assert get(clip).content == VIDEO


@pytest.mark.usefixtures("s3_paths")
def test_no_other_site_may_embed_what_is_served(get: Get, get_records: Get, open_page: Get) -> None:
    for response in (get("ours"), get("ours", method="HEAD"), get_records("manifested"), open_page()):
        assert response.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("dag_id", ["..", ".", "a/b", "../others", "a\\b", "", "a\0"])
def test_the_name_of_a_dag_leads_out_of_no_folder(dag_id: str) -> None:
    found = read_media_paths("file:///data/clips/{dag_id}", dag_id)
    assert not any(
        locate(uri) in path for uri in ("file:///data/x.mp4", "file:///data/clips/x.mp4") for path in found
    )
    if dag_id in {"..", ".", ""}:
        assert found == []


def test_the_setting_has_its_default_in_the_provider_info() -> None:
    from airflow.configuration import conf

    assert get_media_paths("any") == []
    assert conf.get("luma", "gallery_paths") == ""


@pytest.fixture
def s3_paths(s3: S3, monkeypatch: pytest.MonkeyPatch, world: World, get: Get) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GALLERY", s3.connection())
    monkeypatch.setenv(SETTING, f"{world.clips}, s3://gallery@bucket/clips/")
    # By the server, which remembers what a folder holds.
    client = s3_client("gallery")
    client.put_object(Bucket="bucket", Key="clips/ours.mp4", Body=VIDEO)
    client.put_object(Bucket="bucket", Key="private/secret.mp4", Body=VIDEO)
    manifest_content = (world.folder / "clips/manifest.jsonl").read_bytes()
    client.put_object(Bucket="bucket", Key="clips/manifest.jsonl", Body=manifest_content)


@pytest.mark.usefixtures("s3_paths")
def test_an_object_is_a_short_lived_url(get: Get) -> None:
    response = get("s3")
    assert (response.status_code, response.headers["cache-control"]) == (307, "no-store")
    url = response.headers["location"]
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Expires"] == [str(EXPIRES_SECONDS)]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["response-content-type"] == ["video/mp4"]
    got = requests.get(url, headers={"Range": "bytes=10-19"}, timeout=10)
    assert (got.ok, got.content) == (True, VIDEO[10:20])
    # The signature is for this object alone.
    other = requests.get(url.replace("/clips/ours.mp4", "/private/secret.mp4"), timeout=10)
    assert other.status_code == 403
    assert get("ours").status_code == 200  # the local folder beside it


@pytest.mark.usefixtures("s3_paths")
def test_a_head_of_an_object_is_a_url_for_a_head(get: Get) -> None:
    response = get("s3", method="HEAD")
    assert (response.status_code, response.content) == (307, b"")
    assert response.headers["cache-control"] == "no-store"
    got = requests.head(response.headers["location"], timeout=10)
    assert (got.status_code, got.headers["content-length"]) == (200, str(len(VIDEO)))
    assert requests.get(response.headers["location"], timeout=10).status_code == 403
    assert get("s3-other-key", method="HEAD").status_code == 403


@pytest.mark.usefixtures("s3_paths")
def test_the_connection_that_an_author_writes_is_never_used(get: Get) -> None:
    # There is no connection of that name: the administrator's signs.
    assert get("s3-conn").status_code == 307


@pytest.mark.usefixtures("s3_paths")
@pytest.mark.parametrize(
    ("clip", "status"),
    [("s3-other-key", 403), ("s3-other-bucket", 403), ("s3-other-scheme", 403), ("s3-dots", 404)],
)
def test_an_author_reads_no_object_elsewhere(get: Get, clip: str, status: int) -> None:
    assert get(clip, "admin").status_code == status


def test_a_connection_that_cannot_sign_is_an_error_without_details(
    get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, "s3://no_such_connection@bucket/clips")
    response = get("s3")
    assert response.status_code == 502
    assert "no_such_connection" not in response.text


def test_azure_signs_for_one_blob(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_luma.store_clients import azure_client

    monkeypatch.setenv("AIRFLOW_CONN_GALLERY", azure)
    container = azure_client("gallery").get_container_client("bucket")
    for name in ("clips/ours.mp4", "private/secret.mp4"):
        container.upload_blob(name, VIDEO, overwrite=True)
    (path,) = read_media_paths("abfs://gallery@bucket/clips", "any")
    url = presign(path, "clips/ours.mp4", "video/mp4", "inline")
    got = requests.get(url, timeout=10)
    assert (got.content, got.headers["content-type"]) == (VIDEO, "video/mp4")
    other = requests.get(url.replace("clips/ours", "private/secret"), timeout=10)
    assert other.status_code == 403


def test_google_signs_for_one_object(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GALLERY", gcs)
    (path,) = read_media_paths("gs://gallery@bucket/clips", "any")
    parts = urlsplit(presign(path, "clips/ours.mp4", "video/mp4", "inline"))
    query = parse_qs(parts.query)
    assert parts.path == "/bucket/clips/ours.mp4"
    assert query["X-Goog-Expires"] == [str(EXPIRES_SECONDS)]
    assert query["response-content-type"] == ["video/mp4"]
    assert query["X-Goog-Signature"]


@pytest.fixture
def get_records(app: Any, tokens: dict[str, str], world: World, monkeypatch: pytest.MonkeyPatch) -> Get:
    monkeypatch.setenv(SETTING, f"{world.clips}, s3://gallery@bucket/clips")
    records._uris.cache_clear()

    def get_records(task_id: str, user: str | None = "viewer") -> Any:
        headers = {"Authorization": f"Bearer {tokens[user]}"} if user else {}
        query = {"run_id": world.run.run_id, "task_id": task_id}
        return app.get("/luma/records/made_by_hand", params=query, headers=headers)

    return get_records


def test_a_manifest_has_the_records_that_xcom_has_not(get_records: Get, get: Get) -> None:
    assert [row["id"] for row in get_records("manifested").json()["records"]] == ["row", "stray"]
    assert get("row", task_id="manifested").content == VIDEO
    assert get("stray", task_id="manifested").status_code == 403


@pytest.mark.usefixtures("s3_paths")
def test_no_response_without_media_is_stored(get: Get, get_records: Get, open_page: Get) -> None:
    for response in (
        *(get("s3", method=method) for method in ("GET", "HEAD")),
        *(get("absent", method=method) for method in ("GET", "HEAD")),
        get("ours", "outsider"),
        get_records("manifested"),
        get_records("manifested", "outsider"),
        open_page(),
        open_page("outsider"),
    ):
        assert response.headers["cache-control"] == "no-store"
    assert get("ours").headers["cache-control"] == "private, no-cache"


@pytest.mark.usefixtures("s3_paths")
def test_a_manifest_in_an_object_store(get_records: Get) -> None:
    assert [row["id"] for row in get_records("in_s3").json()["records"]] == ["row", "stray"]


@pytest.mark.parametrize(
    "task_id", ["elsewhere", "by_dots", "passwd", "no_text", "no_manifest", "absent", "web", "unknown"]
)
def test_an_author_reads_nothing_else_as_a_manifest(get_records: Get, task_id: str) -> None:
    assert get_records(task_id, "admin").json() == {"records": []}


def test_a_row_that_is_no_json_hurts_no_other(get_records: Get) -> None:
    response = get_records("hostile_rows")
    assert response.status_code == 200
    assert {row["id"] for row in response.json()["records"]} >= {"half", "good"}
    assert get_records("deep").json() == get_records("endless_number").json() == {"records": []}


@pytest.mark.usefixtures("s3_paths")
def test_a_manifest_that_cannot_be_read_is_logged_without_the_signature(
    get_records: Get, s3: S3, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = s3_client("gallery")
    content = client.get_object(Bucket="bucket", Key="clips/manifest.jsonl")["Body"].read()
    client.delete_object(Bucket="bucket", Key="clips/manifest.jsonl")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("botocore").setLevel(logging.INFO)  # logs signatures itself at its lowest level
        assert get_records("in_s3").json() == {"records": []}
        nowhere = S3(f"http://127.0.0.1:{free_port()}", s3.folder)
        monkeypatch.setenv("AIRFLOW_CONN_GALLERY", nowhere.connection())
        _signer.cache_clear()
        assert get_records("in_s3").json() == {"records": []}
    _signer.cache_clear()
    client.put_object(Bucket="bucket", Key="clips/manifest.jsonl", Body=content)
    subject = "The manifest s3://bucket/clips/manifest.jsonl of the task 'in_s3' of the Dag 'made_by_hand'"
    assert f"{subject} cannot be read: DownloadError: the store responded with 404" in caplog.text
    assert f"{subject} cannot be read: connection refused" in caplog.text
    assert "X-Amz-" not in caplog.text


def test_many_posters_of_one_task_read_its_records_once(get: Get) -> None:
    from airflow import settings
    from sqlalchemy import event

    read: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "xcom" in statement.lower():
            read.append(statement)

    records._uris.cache_clear()
    event.listen(settings.engine, "before_cursor_execute", count)
    try:
        for _ in range(5):
            assert get("ours", method="HEAD").status_code == 200
            assert get("own", "outsider", method="HEAD").status_code == 403
    finally:
        event.remove(settings.engine, "before_cursor_execute", count)
    assert 1 <= len(read) <= 2  # two where a period ends in between


@pytest.mark.parametrize("load", [records.load_records, records.dump_records])
def test_tabs_that_open_at_once_read_the_records_once(world: World, load: Callable[[Any], Any]) -> None:
    from airflow import settings
    from airflow.models.taskinstancekey import TaskInstanceKey
    from sqlalchemy import event

    tabs = 8
    read: list[str] = []
    started, go_on = threading.Barrier(tabs + 1), threading.Event()

    def hold(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "xcom" in statement.lower():
            read.append(statement)
            go_on.wait(30)

    def open_tab() -> Any:
        started.wait()
        return load(TaskInstanceKey("made_by_hand", "download", world.run.run_id, map_index=-1))

    event.listen(settings.engine, "before_cursor_execute", hold)
    try:
        with ThreadPoolExecutor(tabs) as pool:
            opened = [pool.submit(open_tab) for _ in range(tabs)]
            started.wait()
            time.sleep(1)  # for all to arrive
            go_on.set()
            found = [tab.result() for tab in opened]
    finally:
        event.remove(settings.engine, "before_cursor_execute", hold)
    assert len(read) == 1
    assert found[0]
    assert all(one is found[0] for one in found)
    assert load(TaskInstanceKey("made_by_hand", "download", world.run.run_id, map_index=-1)) is not found[0]


@pytest.mark.parametrize(("user", "status"), [(None, 401), ("outsider", 403), ("neighbour", 403)])
def test_records_need_the_right_to_read(get_records: Get, user: str | None, status: int) -> None:
    assert get_records("manifested", user).status_code == status


@pytest.fixture
def open_page(app: Any, tokens: dict[str, str], world: World) -> Get:
    def open_page(user: str | None = "viewer", path: str = "/made_by_hand/some-run") -> Any:
        headers = {"Authorization": f"Bearer {tokens[user]}"} if user else {}
        return app.get(f"/luma/clips{path}", headers=headers)

    return open_page


def test_the_page_runs_nothing_but_our_scripts(open_page: Get) -> None:
    response = open_page()
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["media-src"] == policy["img-src"] == "'self'"
    assert policy["frame-ancestors"] == "'self'"
    assert policy["trusted-types"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "style=" not in response.text
    assert "onload" not in response.text


@pytest.mark.usefixtures("s3_paths")
def test_the_page_may_load_media_from_the_named_stores_only(open_page: Get, s3: S3) -> None:
    policy = open_page().headers["content-security-policy"]
    assert f"media-src 'self' {s3.url};" in policy


@pytest.mark.parametrize(("user", "status"), [("outsider", 403), ("neighbour", 403), ("admin", 200)])
def test_the_page_needs_the_right_to_read(open_page: Get, user: str, status: int) -> None:
    assert open_page(user).status_code == status


def test_without_a_session_the_page_leads_to_the_login(open_page: Get, app: Any) -> None:
    response = open_page(None)
    assert response.status_code == 307
    assert response.headers["location"] == "/api/v2/auth/login?next=%2Fluma%2Fclips%2Fmade_by_hand%2Fsome-run"
    login = open_page(None, "/made_by_hand/a+b%20c%2520d").headers["location"]
    assert login.endswith("%2Fa%252Bb%2520c%252520d")
    accepted = app.get(login)
    assert accepted.status_code == 307
    assert parse_qs(urlsplit(accepted.headers["location"]).query)["next"]


def test_nothing_that_a_path_says_is_in_the_page(open_page: Get) -> None:
    assert "<script>alert" not in open_page(path="/made_by_hand/<script>alert(1)</script>").text


@pytest.mark.parametrize(
    "path", ["/luma/docs", "/luma/openapi.json", "/luma/static/../app.py", "/luma/static/%2e%2e/app.py"]
)
def test_nothing_else_is_there(app: Any, tokens: dict[str, str], path: str) -> None:
    response = app.get(path, headers={"Authorization": f"Bearer {tokens['admin']}"})
    assert response.status_code == 404


def test_every_asset_is_served_and_loads_nothing_from_elsewhere(app: Any) -> None:
    from airflow_provider_luma.ui import app as module

    static = Path(module.__file__).parent / "static"
    for file in static.iterdir():
        response = app.get(f"/luma/static/{file.name}")
        assert response.status_code == 200
        assert "://" not in file.read_text().replace("http://www.w3.org", "")
        assert "innerHTML" not in file.read_text()
        if file.suffix == ".js":
            assert "javascript" in response.headers["content-type"]
