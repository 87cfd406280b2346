from __future__ import annotations

import itertools
import re
import struct
from urllib.parse import urlsplit

import pytest

from airflow_provider_luma.sandbox import Sandbox, footage

CLIP = (footage.FILES / "clip.mp4").read_bytes()


def boxes(data):
    """Give the MP4 boxes in these bytes as pairs of type and content; fails where they do not add up."""
    start = 0
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, start + 8), 16
        assert header <= size <= len(data) - start
        yield kind.decode(), data[start + header : start + size]
        start += size


def inner(data, *kinds):
    for kind in kinds:
        data = dict(boxes(data))[kind]
    return data


def test_the_constants_tell_of_the_clip():
    timescale, duration = struct.unpack_from(">II", inner(CLIP, "moov", "mvhd"), 12)
    width, height = struct.unpack_from(">II", inner(CLIP, "moov", "trak", "tkhd"), 76)
    assert (width >> 16, height >> 16) == (footage.WIDTH, footage.HEIGHT)
    assert duration / timescale == pytest.approx(footage.DURATION, abs=0.001)
    assert b"avc1" in inner(CLIP, "moov", "trak", "mdia", "minf", "stbl", "stsd")
    assert [kind for kind, _ in boxes(CLIP)].index("moov") < [kind for kind, _ in boxes(CLIP)].index("mdat")
    assert len(CLIP) < 120_000


@pytest.mark.parametrize("name", ["thumbnail.jpg", "last_frame.jpg"])
def test_the_frames_are_jpegs_of_the_clips_size(name):
    data = (footage.FILES / name).read_bytes()
    assert data[:3] == b"\xff\xd8\xff"
    frame_header = re.search(rb"\xff[\xc0\xc2]..\x08(..)(..)", data, re.DOTALL)
    assert struct.unpack(">HH", frame_header[1] + frame_header[2]) == (footage.HEIGHT, footage.WIDTH)


@pytest.mark.parametrize("video_bytes", [None, 200_000, 1_000_003])
def test_each_video_is_the_clip_and_a_box_of_its_own(client, video_bytes):
    with Sandbox(tasks=2, seconds=0, fail=0, video_bytes=video_bytes) as sandbox:
        videos = [client.get(client.link(sandbox, task_id)).content for task_id in sandbox.task_ids]
    for task_id, video in zip(sandbox.task_ids, videos, strict=True):
        assert video.startswith(CLIP)
        *_, (kind, content) = boxes(video)
        assert kind == "free"
        assert content.startswith(task_id.encode())
        assert video_bytes in (None, len(video))
    assert videos[0] != videos[1]


def test_no_two_places_of_a_video_look_alike():
    film = footage.video("0" * 36, 300_000)
    whole = b"".join(film.chunks(0, film.size))
    assert len(whole) == film.size == 300_000
    for start, end in itertools.pairwise([0, 1, len(CLIP) + 3, len(CLIP) + 20, 131_072, 299_999, 300_000]):
        assert b"".join(film.chunks(start, end)) == whole[start:end]
    filler = whole[len(CLIP) + 16 :]
    blocks = {filler[start : start + footage.BLOCK] for start in range(0, len(filler), footage.BLOCK)}
    assert len(blocks) == 4


def test_media_come_with_the_headers_of_a_cdn(client, finished):
    task = client.tasks(finished)[finished.task_ids[0]]
    answers = {name: client.get(task[name]["url"]) for name in ("video", "thumbnail", "last_frame")}
    types = [answer.headers["Content-Type"] for answer in answers.values()]
    assert types == ["video/mp4", "image/jpeg", "image/jpeg"]
    assert answers["thumbnail"].content == (footage.FILES / "thumbnail.jpg").read_bytes()
    assert answers["last_frame"].content == (footage.FILES / "last_frame.jpg").read_bytes()
    for answer in answers.values():
        assert answer.headers["Content-Length"] == str(len(answer.content))
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Last-Modified"].endswith("GMT")
    assert len({answer.headers["ETag"] for answer in answers.values()}) == 3
    head = client.head(task["video"]["url"])
    assert head.content == b""
    assert {**head.headers, "date": ""} == {**answers["video"].headers, "date": ""}


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("bytes=0-99", slice(0, 100)),
        ("bytes=1000-", slice(1000, None)),
        ("bytes=64700-70000", slice(64700, 70001)),
        ("bytes=100-99999999", slice(100, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=-99999999", slice(0, None)),
    ],
)
def test_a_part_can_be_asked_for(client, asked, got):
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=150_000) as sandbox:
        link = client.link(sandbox, sandbox.task_ids[0])
        whole = client.get(link)
        part = client.get(link, headers={"Range": asked})
        start, end, _ = got.indices(len(whole.content))
        assert (part.status_code, part.content) == (206, whole.content[got])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/150000"
        assert part.headers["Content-Length"] == str(end - start)
        assert part.headers["ETag"] == whole.headers["ETag"]
        assert (
            client.head(link, headers={"Range": asked}).headers["Content-Range"]
            == part.headers["Content-Range"]
        )


@pytest.mark.parametrize("asked", ["bytes=150000-", "bytes=999999-1000000", "bytes=-0"])
def test_a_part_that_is_not_there_is_not_satisfiable(client, asked):
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=150_000) as sandbox:
        answer = client.get(client.link(sandbox, sandbox.task_ids[0]), headers={"Range": asked})
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */150000")


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=-", "bytes=5-2", "bytes=900000-5", "bytes=a-b", "seconds=1-2", "bytes=0-1,5-6"]
)
def test_a_range_it_does_not_know_is_ignored(client, finished, asked):
    answer = client.get(client.link(finished, finished.task_ids[0]), headers={"Range": asked})
    assert answer.status_code == 200


def test_a_part_is_given_only_of_what_it_is_a_part_of(client, finished):
    one, two, _ = (client.link(finished, task_id) for task_id in finished.task_ids)
    seen = client.head(one).headers
    for validator, status in [
        (seen["ETag"], 206),
        (seen["Last-Modified"], 206),
        (client.head(two).headers["ETag"], 200),
        (f"W/{seen['ETag']}", 200),
    ]:
        assert client.get(one, headers={"Range": "bytes=5-", "If-Range": validator}).status_code == status


def test_links_expire_and_fresh_ones_are_given(client, clock):
    with Sandbox(tasks=1, seconds=0, fail=0, clock=clock, link_ttl=30) as sandbox:
        link = client.link(sandbox, sandbox.task_ids[0])
        assert "X-Amz-Expires=30&" in link
        clock.move(29)
        assert client.get(link).status_code == 200
        clock.move(2)
        refused = client.get(link)
        assert (refused.status_code, "expired" in refused.text) == (403, True)
        fresh = client.link(sandbox, sandbox.task_ids[0])
        assert (fresh != link, client.get(fresh).status_code) == (True, 200)


def test_only_signed_links_are_served(client, finished):
    one, two, _ = (client.link(finished, task_id) for task_id in finished.task_ids)
    bare = one.partition("?")[0]
    wrong = [
        bare,
        bare + "?" + urlsplit(two).query,
        one[:-1] + ("0" if one[-1] != "0" else "1"),
        one.replace("Expires=604800", "Expires=704800"),
        bare + "?X-Amz-Expires=x",
    ]
    assert [client.get(link).status_code for link in wrong] == [403] * 5


def test_what_is_not_there_is_not_found(client):
    with Sandbox(tasks=1, seconds=100) as sandbox:
        running = sandbox.task_ids[0]
        paths = [
            "/",
            "/dream-machine/",
            f"/dream-machine/{running}/video.mp4",
            "/dream-machine/who/video.mp4",
        ]
        assert [client.get(sandbox.cdn_url + path).status_code for path in paths] == [404] * 4
        assert client.post(sandbox.cdn_url + paths[2]).status_code == 405


def test_odd_task_ids_have_links_that_work(client):
    with Sandbox(tasks=0) as sandbox:
        task_id = sandbox.add_task(task_id="../a b/ü?#%2F", seconds=0)
        assert client.get(client.link(sandbox, task_id)).status_code == 200


def test_downloads_are_recorded(client, finished):
    task_id = finished.task_ids[0]
    client.get(client.link(finished, task_id), headers={"Range": "bytes=5-"})
    client.get(finished.cdn_url + "/nothing")
    part, nothing = finished.downloads
    assert (part.method, part.path, part.status) == ("GET", f"/dream-machine/{task_id}/video.mp4", 206)
    assert (part.headers["range"], part.ids, "authorization" in part.headers) == ("bytes=5-", None, False)
    assert (nothing.path, nothing.status) == ("/nothing", 404)
