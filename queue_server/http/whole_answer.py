"""Answers of the hot path: JSON that goes out in one piece, under a head made beforehand.

For its own responses aiohttp makes a dictionary of headers, asks who wants to change it and
serializes it: a third of what a small request costs.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import cast

from aiohttp import HttpVersion11, web
from aiohttp.http import StreamWriter

from queue_server.http.connection import REQUEST_ID, REQUEST_ID_HEADER
from queue_server.http.memory import memory_of

# Answers up to this size are sent in one piece.
SLICE_BYTES = 256 * 1024


async def write_slices(request: web.BaseRequest, writer: StreamWriter, text: bytes) -> None:
    """Write a large text so that no more than a slice of it is copied for the transport.

    Errors: `ConnectionError`.
    """
    with memoryview(text) as view:
        for start in range(0, len(view), SLICE_BYTES):
            await writer.write(view[start : start + SLICE_BYTES])


class Heads:
    """Status lines and headers: made once for each status.

    *headers* are those that every answer carries; no answer is of this kind once *is_closing* says
    that connections are to end.
    """

    def __init__(self, headers: Mapping[str, str], is_closing: Callable[[], bool]) -> None:
        self.is_closing = is_closing
        self._headers = headers
        self._heads: dict[int, bytes] = {}
        self._date = b""
        self._date_s = 0  # Unix time

    def head(self, status: int, body_bytes: int, request_id: str) -> bytes:
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date = email.utils.formatdate(now_s, usegmt=True).encode()
        head = self._heads.get(status) or self._make(status)
        if status == HTTPStatus.NO_CONTENT:
            return head % (self._date, request_id.encode())
        return head % (self._date, request_id.encode(), body_bytes)

    def _make(self, status: int) -> bytes:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}".replace("%", "%%") for name, value in self._headers.items()]
        lines += ["Date: %s", REQUEST_ID_HEADER + ": %s"]
        if status != HTTPStatus.NO_CONTENT:
            lines += ["Content-Length: %d", "Content-Type: application/json; charset=utf-8"]
        head = self._heads[status] = "\r\n".join([*lines, "", ""]).encode()
        return head


class WholeAnswer(web.StreamResponse):
    """A body in JSON, or none.

    A request that is not the usual one (HTTP/1.0, HEAD, a connection that closes) gets aiohttp's.
    A connection whose reader does not keep up waits here, before its next request is looked at.
    """

    def __init__(self, heads: Heads, body: bytes = b"", status: int = 200) -> None:
        super().__init__(status=status)
        self._heads = heads
        self._whole = body
        self._usual: web.Response | None = None
        self._is_sent = False

    @property
    def keep_alive(self) -> bool | None:
        return True if self._usual is None else self._usual.keep_alive

    async def prepare(self, request: web.BaseRequest) -> StreamWriter:
        """Send the answer, which is all there is to do; aiohttp calls it when the handler is done.

        A handler that must know whether the answer went out calls it before.
        Errors: `ConnectionError`.
        """
        writer = cast(StreamWriter, request.writer)
        if self._is_sent:
            return writer
        self._is_sent = True
        if (
            request.version != HttpVersion11
            or not request.keep_alive
            or request.method == "HEAD"
            or self._heads.is_closing()
        ):
            self._usual = web.Response(status=self.status, body=self._whole or None)
            if self._whole:
                self._usual.content_type = "application/json"
                self._usual.charset = "utf-8"
            await self._usual.prepare(request)
            await self._usual.write_eof()
            return writer
        body = self._whole
        head = self._heads.head(self.status, len(body), request[REQUEST_ID])
        if len(body) > SLICE_BYTES:
            await writer.write(head, drain=False)
            await write_slices(request, writer, body)
            return writer
        await writer.write(head + body, drain=False)
        if request.protocol.writing_paused:
            await writer.drain()
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""


async def whole_answer(
    request: web.Request, heads: Heads, body: bytes, status: int = 200
) -> WholeAnswer:
    """Make an answer; send it at once when it is large, so that its memory counts until then.

    A caller holds no longer what the answer was made of.
    """
    answer = WholeAnswer(heads, body, status)
    if len(body) > SLICE_BYTES:
        memory_of(request).set(2 * len(body))
        await answer.prepare(request)
    return answer
