"""
The type of a file, by its bytes: headers are not trusted.

Containers are walked from header to header, and must end where the file ends, so that a truncated file, a
spliced one or a web page never passes. Only headers are read, however large the file is.

===============  ========================================================================================
MP4, QuickTime   boxes from the first byte to the last, with ``moov`` and ``mdat`` among them
WebM             an EBML header, then a segment to the last byte
PNG              chunks from ``IHDR`` to ``IEND``, which ends the file
WebP             a RIFF chunk of the file's size
JPEG             starts and ends with the markers of an image
===============  ========================================================================================

``moov`` and ``mdat`` with nothing in them are not a video.

A last box or segment may say "to the end of the file", a fragmented file may end after any fragment, and a
JPEG may have more after its end marker. All of it holds only if the server sent the file's size. Without a
size, a truncation exactly between two boxes, after ``moov`` and ``mdat``, looks like the end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from airflow_provider_luma.exceptions import TransientDownloadError

ReadAt = Callable[[int, int], bytes]

_MAX_BOXES = 100_000
_MEDIA_BOXES = frozenset({b"moov", b"mdat"})
_QUICKTIME_BRAND = b"qt  "
_FIRST_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_EBML, _SEGMENT, _EBML_VOID, _EBML_CRC = 0x1A45DFA3, 0x18538067, 0xEC, 0xBF
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_END = b"\xff\xd9"
_JPEG_TAIL_BYTES = 1024


class _InvalidError(Exception):
    """Why a file is not of a kind of media."""


def detect_media_type(kind: str, size: int, read_at: ReadAt, *, size_is_known: bool) -> str:
    """
    Verify a complete file and return its media type.

    :param kind: one of :data:`airflow_provider_luma.relay.media.MEDIA_KINDS`.
    :param size: of the file.
    :param read_at: returns bytes of it, by offset and number.
    :param size_is_known: whether the server sent the size before the file.
    :raises TransientDownloadError: when it is not what it must be, or not complete.
    """
    detect = _detect_video if kind == "video" else _detect_image
    try:
        return detect(size, read_at, size_is_known)
    except (_InvalidError, struct.error) as error:
        raise TransientDownloadError(f"not a complete {kind}: {error}") from None


def _detect_video(size: int, read_at: ReadAt, size_is_known: bool) -> str:
    head = read_at(0, 16)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        _walk_webm(size, read_at, size_is_known)
        return "video/webm"
    if head[4:8] not in _FIRST_BOXES:
        raise _InvalidError(f"it starts with {head[:12]!r}, which is neither MP4, QuickTime nor WebM")
    boxes = list(_iter_boxes(size, read_at, size_is_known))
    _check_boxes([kind for kind, content in boxes if content or kind not in _MEDIA_BOXES], size_is_known)
    is_mp4 = head[4:8] in {b"ftyp", b"styp"} and head[8:12] != _QUICKTIME_BRAND
    return "video/mp4" if is_mp4 else "video/quicktime"


def _check_boxes(kinds: list[bytes], size_is_known: bool) -> None:
    if b"moov" not in kinds or b"mdat" not in kinds:
        raise _InvalidError("it has no moov or no mdat box, or an empty one")
    if b"moof" in kinds:
        if b"mdat" not in kinds[kinds.index(b"moof") :] or kinds[-1] == b"moof":
            raise _InvalidError("its last fragment has no mdat box")
        if not size_is_known and kinds[-1] != b"mfra":
            raise _InvalidError("fragments may be missing, as neither the server nor the file says how many")


def _iter_boxes(size: int, read_at: ReadAt, size_is_known: bool) -> Iterator[tuple[bytes, int]]:
    """Yield the type of each box, and how many bytes it has after its header."""
    offset = 0
    for _ in range(_MAX_BOXES):
        if offset == size:
            return
        length, kind = struct.unpack(">I4s", read_at(offset, 8))
        header = 8
        if length == 1:
            header = 16
            (length,) = struct.unpack(">Q", read_at(offset + 8, 8))
        elif length == 0 and size_is_known:
            length = size - offset
        if length < header or not kind.isascii() or offset + length > size:
            raise _InvalidError(f"the box {kind!r} at {offset} has {length} bytes, the file has {size}")
        yield kind, length - header
        offset += length
    raise _InvalidError(f"it has more than {_MAX_BOXES} boxes")


def _walk_webm(size: int, read_at: ReadAt, size_is_known: bool) -> None:
    offset, segments = 0, 0
    for _ in range(_MAX_BOXES):
        if offset == size:
            break
        element, length, offset = _ebml_element(offset, read_at)
        if length is None and element == _SEGMENT and size_is_known:
            length = size - offset
        if element not in {_EBML, _SEGMENT, _EBML_VOID, _EBML_CRC} or length is None:
            raise _InvalidError(f"the element {element:#x} before {offset} is not expected there")
        segments += element == _SEGMENT
        offset += length
    if offset != size or not segments:
        raise _InvalidError(f"its elements end at {offset}, the file at {size}")


def _ebml_element(offset: int, read_at: ReadAt) -> tuple[int, int | None, int]:
    """Return the id of an element, its length (``None``: unknown) and the offset of its content."""
    element, width, _ = _ebml_number(read_at(offset, 8), keep_marker=True)
    length, length_width, is_unknown = _ebml_number(read_at(offset + width, 8), keep_marker=False)
    return element, None if is_unknown else length, offset + width + length_width


def _ebml_number(data: bytes, *, keep_marker: bool) -> tuple[int, int, bool]:
    if not data or not data[0]:
        raise _InvalidError("it has an element without a length")
    width = 9 - data[0].bit_length()
    if len(data) < width:
        raise _InvalidError("it ends within the header of an element")
    value = int.from_bytes(data[:width])
    bits = value & ((1 << 7 * width) - 1)
    return (value if keep_marker else bits), width, bits == (1 << 7 * width) - 1


def _detect_image(size: int, read_at: ReadAt, size_is_known: bool) -> str:
    head = read_at(0, 16)
    if head.startswith(b"\xff\xd8\xff"):
        tail = read_at(max(size - _JPEG_TAIL_BYTES, 2), _JPEG_TAIL_BYTES)
        # An embedded preview has an end too, so that one in the middle proves nothing.
        if not (tail.endswith(_JPEG_END) or (size_is_known and _JPEG_END in tail)):
            raise _InvalidError("the JPEG has no end")
        return "image/jpeg"
    if head.startswith(_PNG_SIGNATURE):
        _walk_png(size, read_at)
        return "image/png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        (length,) = struct.unpack("<I", head[4:8])
        if size not in {length + 8, length + 8 + length % 2}:  # some leave out the last padding byte
            raise _InvalidError(f"the WebP has {length + 8} bytes, the file {size}")
        return "image/webp"
    raise _InvalidError(f"it starts with {head[:12]!r}, which is neither JPEG, PNG nor WebP")


def _walk_png(size: int, read_at: ReadAt) -> None:
    offset, kind = len(_PNG_SIGNATURE), b""
    for _ in range(_MAX_BOXES):
        if offset >= size or kind == b"IEND":
            break
        length, kind = struct.unpack(">I4s", read_at(offset, 8))
        offset += 12 + length
    if offset != size or kind != b"IEND":
        raise _InvalidError(f"the PNG's chunks end at {offset}, the file at {size}")
