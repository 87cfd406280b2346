"""An S3 server that verifies checksums as Amazon's does, behind a line that changes a byte on the way."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import requests

from tests.serving import Quiet, serving

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "expect", "date", "server"}
_REJECTION = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>BadDigest</Code>'
    b"<Message>The checksum you specified did not match what we received.</Message></Error>"
)
_FORBIDDEN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code>'
    b"<Message>Access Denied.</Message></Error>"
)


class _Line(Quiet):
    protocol_version = "HTTP/1.1"
    server_url = corrupted = ""
    parts: dict[str, dict[int, bytes]]
    forbidden_part: int | None = None

    def do_GET(self) -> None:
        self._hand_on(self._read())

    def do_POST(self) -> None:
        body = self._read()
        upload = "".join(self._query.get("uploadId", ()))
        whole = b"".join(part for _, part in sorted(self.parts.get(upload, {}).items()))
        if upload and not self._is_as_announced(whole):
            self._respond(400, {}, _REJECTION)
        else:
            self._hand_on(body)

    def do_PUT(self) -> None:  # noqa: N802
        body = self._read()
        number = int(self._query.get("partNumber", ["0"])[0])
        if number and number == self.forbidden_part:
            self._respond(403, {}, _FORBIDDEN)
            return
        if self.corrupted and urlsplit(self.path).path.endswith(self.corrupted):
            body = body[:-1] + bytes([body[-1] ^ 1])
        if not self._is_as_announced(body):
            self._respond(400, {}, _REJECTION)
            return
        if upload := "".join(self._query.get("uploadId", ())):
            self.parts.setdefault(upload, {})[number] = body
        self._hand_on(body)

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_DELETE(self) -> None:  # noqa: N802
        self.do_GET()

    @property
    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _is_as_announced(self, body: bytes) -> bool:
        digests = {
            "x-amz-checksum-sha256": hashlib.sha256(body).digest(),
            "x-amz-checksum-crc32": zlib.crc32(body).to_bytes(4),
        }
        announced = {name: digest for name, digest in digests.items() if name in self.headers}
        return all(base64.b64decode(self.headers[name]) == digest for name, digest in announced.items())

    def _hand_on(self, body: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = self.server_url + self.path
        response = requests.request(self.command, url, headers=headers, data=body, timeout=30)
        kept = {key: value for key, value in response.headers.items() if key.lower() not in _HOP_BY_HOP}
        if self.command == "HEAD":
            kept["Content-Length"] = response.headers.get("Content-Length", "0")
        self._respond(response.status_code, kept, response.content)

    def _respond(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def corrupting_line(url: str, suffix: str = "", *, forbidden_part: int | None = None) -> Iterator[str]:
    """
    Yield the address of the line to a server, which need not verify: rclone's and moto's do not.

    :param suffix: of the names whose bytes are changed.
    :param forbidden_part: the part of each upload that is rejected.
    """
    settings = {"server_url": url, "corrupted": suffix, "parts": {}, "forbidden_part": forbidden_part}
    with serving(type("Line", (_Line,), settings)) as address:
        yield address
