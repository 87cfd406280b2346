"""What passes for a video or an image, and what does not."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.download.content import detect_media_type
from airflow_provider_luma.exceptions import TransientDownloadError
from airflow_provider_luma.sandbox import media

CLIP = (media.FILES / "clip.mp4").read_bytes()
JPEG = (media.FILES / "thumbnail.jpg").read_bytes()


def box(kind: bytes, content: bytes = b"", *, wide: bool = False) -> bytes:
    if wide:
        return struct.pack(">I4sQ", 1, kind, len(content) + 16) + content
    return struct.pack(">I4s", len(content) + 8, kind) + content


MP4 = box(b"ftyp", b"isom") + box(b"moov", b"x" * 50) + box(b"mdat", b"y" * 500, wide=True)
FRAGMENT = box(b"moof", b"f") + box(b"mdat", b"y" * 30)
OPEN_FRAGMENTED = box(b"styp", b"isom") + box(b"moov", b"x") + 2 * FRAGMENT
FRAGMENTED = OPEN_FRAGMENTED + box(b"mfra", b"index")
QUICKTIME = box(b"ftyp", b"qt  ") + box(b"wide") + box(b"mdat", b"y" * 50) + box(b"moov", b"x")
OLD_QUICKTIME = box(b"moov", b"x") + box(b"mdat", b"y" * 50)
EBML = b"\x1a\x45\xdf\xa3\x84webm"
WEBM = EBML + b"\x18\x53\x80\x67" + struct.pack(">Q", (1 << 56) | 300) + b"z" * 300
LIVE_WEBM = EBML + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" + b"z" * 300
OPEN_MP4 = box(b"ftyp", b"isom") + box(b"moov", b"x") + struct.pack(">I4s", 0, b"mdat") + b"y" * 99


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", zlib.crc32(kind + content))


PNG = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IDAT", b"d" * 40) + chunk(b"IEND", b"")
WEBP = b"RIFF" + struct.pack("<I", 44) + b"WEBPVP8 " + bytes(36)

VIDEOS = {
    "clip": (CLIP, "video/mp4"),
    "mp4": (MP4, "video/mp4"),
    "fragmented": (FRAGMENTED, "video/mp4"),
    "quicktime": (QUICKTIME, "video/quicktime"),
    "old quicktime": (OLD_QUICKTIME, "video/quicktime"),
    "webm": (WEBM, "video/webm"),
}
IMAGES = {"jpeg": (JPEG, "image/jpeg"), "png": (PNG, "image/png"), "webp": (WEBP, "image/webp")}


def detect(content: bytes, kind: str = "video", *, size_is_known: bool = False) -> str:
    return detect_media_type(
        kind,
        len(content),
        lambda offset, length: content[offset : offset + length],
        size_is_known=size_is_known,
    )


@pytest.mark.parametrize("name", VIDEOS)
def test_a_complete_video_has_its_media_type(name: str) -> None:
    content, media_type = VIDEOS[name]
    assert detect(content) == media_type


@pytest.mark.parametrize("name", IMAGES)
def test_a_complete_image_has_its_media_type(name: str) -> None:
    content, media_type = IMAGES[name]
    assert detect(content, "thumbnail") == media_type


@pytest.mark.parametrize("name", {**VIDEOS, **IMAGES})
def test_no_truncated_file_passes(name: str) -> None:
    content, _ = (VIDEOS | IMAGES)[name]
    kind = "video" if name in VIDEOS else "last_frame"
    step = max(len(content) // 500, 1)
    for length in [*range(0, len(content), step), len(content) - 2, len(content) - 1]:
        with pytest.raises(TransientDownloadError, match=f"not a complete {kind}"):
            detect(content[:length], kind)


@pytest.mark.parametrize("name", {**VIDEOS, "png": 0})
def test_no_file_with_trailing_bytes_passes(name: str) -> None:
    content, _ = (VIDEOS | IMAGES)[name]
    for tail in (b"\0", b"x" * 7, b"<html>" * 50):
        with pytest.raises(TransientDownloadError):
            detect(content + tail, "video" if name in VIDEOS else "thumbnail")


@pytest.mark.parametrize("content", [OPEN_MP4, LIVE_WEBM, OPEN_FRAGMENTED])
def test_an_open_end_needs_a_content_length(content: bytes) -> None:
    assert detect(content, size_is_known=True).startswith("video/")
    with pytest.raises(TransientDownloadError):
        detect(content, size_is_known=False)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html>", b"<svg xmlns=''/>", b'{"error": 1}', b"PK\3\4" + bytes(99), JPEG, b"\0" * 5000,
     box(b"ftyp") + box(b"moov") + box(b"mdat", b"y"), box(b"ftyp") + box(b"moov", b"x") + box(b"mdat"),
     box(b"ftyp") + box(b"moov", b"x") + box(b"mdat", wide=True),
     box(b"ftyp") + box(b"moov", b"x") + struct.pack(">I4sQ", 1, b"mdat", 9) + b"y",
     box(b"ftyp") + box(b"moov", b"x"), box(b"ftyp") + box(b"mdat", b"y"), box(b"ftyp"), EBML],
)  # fmt: skip
def test_other_content_is_no_video(content: bytes) -> None:
    with pytest.raises(TransientDownloadError):
        detect(content, size_is_known=True)


@pytest.mark.parametrize("content", [b"<svg/>", b"<html>", CLIP, b"GIF89a" + bytes(99), b"\xff\xd8\xff"])
def test_other_content_is_no_image(content: bytes) -> None:
    with pytest.raises(TransientDownloadError):
        detect(content, "thumbnail", size_is_known=True)


@pytest.mark.parametrize("tail", [b"\0", b"x" * 500, b"\xff"])
def test_bytes_after_the_end_of_a_jpeg_need_a_content_length(tail: bytes) -> None:
    assert detect(JPEG + tail, "thumbnail", size_is_known=True) == "image/jpeg"
    with pytest.raises(TransientDownloadError, match="the JPEG has no end"):
        detect(JPEG + tail, "thumbnail", size_is_known=False)


def test_the_end_of_an_embedded_preview_is_not_the_end_of_a_jpeg() -> None:
    truncated = JPEG[:200] + b"\xff\xd8preview\xff\xd9" + JPEG[200:900]
    with pytest.raises(TransientDownloadError, match="the JPEG has no end"):
        detect(truncated, "thumbnail", size_is_known=False)


def test_a_file_of_many_tiny_boxes_is_rejected_in_time() -> None:
    content = box(b"ftyp") + box(b"free") * 200_000
    with pytest.raises(TransientDownloadError, match="more than 100000 boxes"):
        detect(content)


def test_only_headers_are_read(tmp_path: Path) -> None:
    large = box(b"ftyp", b"isom") + box(b"moov", bytes(10)) + box(b"mdat", bytes(50_000_000))
    read: list[int] = []

    def read_at(offset: int, length: int) -> bytes:
        read.append(length)
        return large[offset : offset + length]

    detect_media_type("video", len(large), read_at, size_is_known=False)
    assert sum(read) < 1000


@given(st.binary(max_size=200), st.sampled_from(["video", "thumbnail"]), st.booleans())
def test_fuzz_any_bytes_are_accepted_or_rejected(content: bytes, kind: str, size_is_known: bool) -> None:
    for prefix in (b"", b"\0\0\0\x08ftyp", EBML, b"\x89PNG\r\n\x1a\n", b"RIFF"):
        with suppress(TransientDownloadError):
            detect(prefix + content, kind, size_is_known=size_is_known)
