from __future__ import annotations

import itertools
import re
import struct
from urllib.parse import urlsplit

import pytest

from airflow_provider_luma.sandbox import Sandbox, media

CLIP = (media.FILES / "clip.mp4").read_bytes()


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


def test_the_constants_describe_the_clip():
    timescale, duration = struct.unpack_from(">II", inner(CLIP, "moov", "mvhd"), 12)
    width, height = struct.unpack_from(">II", inner(CLIP, "moov", "trak", "tkhd"), 76)
    assert (width >> 16, height >> 16) == (media.WIDTH, media.HEIGHT)
    assert duration / timescale == pytest.approx(media.DURATION, abs=0.001)
    assert b"avc1" in inner(CLIP, "moov", "trak", "mdia", "minf", "stbl", "stsd")
    assert [kind for kind, _ in boxes(CLIP)].index("moov") < [kind for kind, _ in boxes(CLIP)].index("mdat")
    assert len(CLIP) < 120_000


@pytest.mark.parametrize("name", ["thumbnail.jpg", "last_frame.jpg"])
def test_the_frames_are_jpegs_of_the_clips_size(name):
    data = (media.FILES / name).read_bytes()
    assert data[:3] == b"\xff\xd8\xff"
    frame_header = re.search(rb"\xff[\xc0\xc2]..\x08(..)(..)", data, re.DOTALL)
    assert struct.unpack(">HH", frame_header[1] + frame_header[2]) == (media.HEIGHT, media.WIDTH)


@pytest.mark.parametrize("video_bytes", [None, 200_000, 1_000_003])
def test_each_video_is_the_clip_and_a_free_box(client, video_bytes):
    with Sandbox(tasks=2, seconds=0, fail=0, video_bytes=video_bytes) as sandbox:
        videos = [client.get(client.link(sandbox, task_id)).content for task_id in sandbox.task_ids]
    for task_id, video in zip(sandbox.task_ids, videos, strict=True):
        assert video.startswith(CLIP)
        *_, (kind, content) = boxes(video)
        assert kind == "free"
        assert content.startswith(task_id.encode())
        assert video_bytes in (None, len(video))
    assert videos[0] != videos[1]


def test_no_two_blocks_of_a_video_are_equal():
    film = media.video("0" * 36, 300_000)
    complete = b"".join(film.chunks(0, film.size))
    assert len(complete) == film.size == 300_000
    for start, end in itertools.pairwise([0, 1, len(CLIP) + 3, len(CLIP) + 20, 131_072, 299_999, 300_000]):
        assert b"".join(film.chunks(start, end)) == complete[start:end]
    filler = complete[len(CLIP) + 16 :]
    blocks = {filler[start : start + media.BLOCK] for start in range(0, len(filler), media.BLOCK)}
    assert len(blocks) == 4


def test_media_come_with_the_headers_of_a_cdn(client, finished):
    task = client.tasks(finished)[finished.task_ids[0]]
    responses = {name: client.get(task[name]["url"]) for name in ("video", "thumbnail", "last_frame")}
    types = [response.headers["Content-Type"] for response in responses.values()]
    assert types == ["video/mp4", "image/jpeg", "image/jpeg"]
    assert responses["thumbnail"].content == (media.FILES / "thumbnail.jpg").read_bytes()
    assert responses["last_frame"].content == (media.FILES / "last_frame.jpg").read_bytes()
    for response in responses.values():
        assert response.headers["Content-Length"] == str(len(response.content))
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["Last-Modified"].endswith("GMT")
    assert len({response.headers["ETag"] for response in responses.values()}) == 3
    head = client.head(task["video"]["url"])
    assert head.content == b""
    assert {**head.headers, "date": ""} == {**responses["video"].headers, "date": ""}


@pytest.mark.parametrize(
    ("header", "got"),
    [
        ("bytes=0-99", slice(0, 100)),
        ("bytes=1000-", slice(1000, None)),
        ("bytes=64700-70000", slice(64700, 70001)),
        ("bytes=100-99999999", slice(100, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=-99999999", slice(0, None)),
    ],
)
def test_a_range_can_be_requested(client, header, got):
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=150_000) as sandbox:
        link = client.link(sandbox, sandbox.task_ids[0])
        complete = client.get(link)
        part = client.get(link, headers={"Range": header})
        start, end, _ = got.indices(len(complete.content))
        assert (part.status_code, part.content) == (206, complete.content[got])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/150000"
        assert part.headers["Content-Length"] == str(end - start)
        assert part.headers["ETag"] == complete.headers["ETag"]
        assert (
            client.head(link, headers={"Range": header}).headers["Content-Range"]
            == part.headers["Content-Range"]
        )


@pytest.mark.parametrize("header", ["bytes=150000-", "bytes=999999-1000000", "bytes=-0"])
def test_a_range_beyond_the_end_is_not_satisfiable(client, header):
    with Sandbox(tasks=1, seconds=0, fail=0, video_bytes=150_000) as sandbox:
        response = client.get(client.link(sandbox, sandbox.task_ids[0]), headers={"Range": header})
        assert (response.status_code, response.headers["Content-Range"]) == (416, "bytes */150000")


@pytest.mark.parametrize(
    "header",
    ["bytes=", "bytes=-", "bytes=5-2", "bytes=900000-5", "bytes=a-b", "seconds=1-2", "bytes=0-1,5-6"],
)
def test_an_unsupported_range_is_ignored(client, finished, header):
    response = client.get(client.link(finished, finished.task_ids[0]), headers={"Range": header})
    assert response.status_code == 200


def test_a_range_is_served_only_if_its_validator_matches(client, finished):
    one, two, _ = (client.link(finished, task_id) for task_id in finished.task_ids)
    seen = client.head(one).headers
    for validator, status in [
        (seen["ETag"], 206),
        (seen["Last-Modified"], 206),
        (client.head(two).headers["ETag"], 200),
        (f"W/{seen['ETag']}", 200),
    ]:
        assert client.get(one, headers={"Range": "bytes=5-", "If-Range": validator}).status_code == status


def test_urls_expire_and_fresh_ones_are_issued(client, clock):
    with Sandbox(tasks=1, seconds=0, fail=0, clock=clock, link_ttl=30) as sandbox:
        link = client.link(sandbox, sandbox.task_ids[0])
        assert "X-Amz-Expires=30&" in link
        clock.move(29)
        assert client.get(link).status_code == 200
        clock.move(2)
        rejected = client.get(link)
        assert (rejected.status_code, "expired" in rejected.text) == (403, True)
        fresh = client.link(sandbox, sandbox.task_ids[0])
        assert (fresh != link, client.get(fresh).status_code) == (True, 200)


def test_only_signed_urls_are_served(client, finished):
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


def test_unknown_paths_are_not_found(client):
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


def test_unusual_task_ids_have_valid_urls(client):
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
