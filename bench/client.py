"""One HTTP/1.1 connection, with nothing that a benchmark does not need.

The load generator shares its cores with the server it measures, so every cycle it takes is missing
there. This client sends a request that was put together beforehand, receives straight into one
growing buffer, and copies an answer once. bench/README.md has its cost beside that of aiohttp's.

It understands what the server answers: Content-Length, chunked, and 204 without a body.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Self, cast
from urllib.parse import SplitResult, urlsplit

import msgspec

_BUFFER_BYTES = 256 * 1024  # to begin with; it grows to the largest answer and stays there
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_SMALL_BYTES = 16 * 1024  # up to here copying a body costs less than a second buffer


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the server said."""

    status: int
    body: bytes


class RequestFailed(Exception):
    """The server did not do what was asked, or is gone."""


class Connection(asyncio.BufferedProtocol):
    """A connection that carries one request at a time and is kept between them."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._begin_answer()

    @classmethod
    async def open(cls, url: SplitResult, source: str | None = None) -> Self:
        """Connect, from the address *source* if given: each has ports of its own."""
        assert url.hostname is not None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            cls, url.hostname, url.port or 80, local_addr=(source, 0) if source else None
        )
        return connection

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    @property
    def local_port(self) -> int:
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    async def request(self, head: bytes, body: bytes = b"") -> Answer:
        """Send a request and wait for the whole answer.

        *head* comes from `head_of`. Errors: `RequestFailed` when the connection is lost.
        """
        assert self._waiter is None, "one request at a time"
        if self._transport is None:
            raise RequestFailed("the server has closed the connection")
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        if len(body) <= _SMALL_BYTES:
            self._transport.write(head + body)
        else:
            # Two buffers, one system call, and no copy of a body that may be megabytes.
            self._transport.writelines((head, body))
        return await waiter

    def close(self) -> None:
        """Leave at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # -- asyncio calls these --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._end == len(self._buffer):
            larger = bytearray(2 * len(self._buffer))
            larger[: self._end] = self._buffer
            self._buffer = larger
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        if self._body_start == 0 and not self._read_head():
            return
        if self._length is None:
            self._read_chunks()
        elif self._end >= self._body_start + self._length:
            with memoryview(self._buffer) as view:
                self._finish(bytes(view[self._body_start : self._body_start + self._length]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(RequestFailed(f"the connection was lost: {exc or 'closed'}"))
        self._waiter = None

    # -- reading an answer --

    def _begin_answer(self) -> None:
        self._end = 0  # of what was received
        self._status = 0
        self._body_start = 0  # 0 until the head is complete
        self._length: int | None = None  # of the body; None = chunked
        self._chunk_at = 0  # where the next chunk's size begins
        self._chunks: list[tuple[int, int]] = []

    def _read_head(self) -> bool:
        end = self._buffer.find(_HEAD_END, 0, self._end)
        if end < 0:
            return False
        # "HTTP/1.1 200 OK", then the headers; two searches are cheaper than splitting them.
        head = bytes(self._buffer[:end]).lower()
        self._status = int(head[9:12])
        self._length = 0
        length_at = head.find(_LENGTH)
        if length_at >= 0:
            self._length = int(head[length_at + len(_LENGTH) :].split(b"\r\n", 1)[0])
        elif head.find(_CHUNKED) >= 0:
            self._length = None
        self._body_start = self._chunk_at = end + len(_HEAD_END)
        return True

    def _read_chunks(self) -> None:
        while True:
            line_end = self._buffer.find(b"\r\n", self._chunk_at, self._end)
            if line_end < 0:
                return
            size = int(self._buffer[self._chunk_at : line_end], 16)
            start = line_end + 2
            if self._end < start + size + 2:
                return
            if size == 0:  # the server sends no trailers
                with memoryview(self._buffer) as view:
                    self._finish(b"".join([view[a:b] for a, b in self._chunks]))
                return
            self._chunks.append((start, start + size))
            self._chunk_at = start + size + 2

    def _finish(self, body: bytes) -> None:
        waiter, self._waiter = self._waiter, None
        answer = Answer(self._status, body)
        self._begin_answer()
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)


class SlowConnection(Connection):
    """A connection whose reader takes *bytes_per_second*, as over a thin line.

    Its receive buffer is small, so that the rest stays with the server and does not wait here.
    """

    _PIECE_BYTES = 64 * 1024

    def __init__(self, bytes_per_second: float) -> None:
        super().__init__()
        self._bytes_per_second = bytes_per_second

    @classmethod
    async def open_slow(cls, url: SplitResult, bytes_per_second: float) -> Self:
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, cls._PIECE_BYTES)
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(end, (url.hostname, url.port or 80))
        _, connection = await loop.create_connection(lambda: cls(bytes_per_second), sock=end)
        return connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return super().get_buffer(sizehint)[: self._PIECE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._transport is not None:
            self._transport.pause_reading()
            pause_s = nbytes / self._bytes_per_second
            asyncio.get_running_loop().call_later(pause_s, self._resume)
        super().buffer_updated(nbytes)

    def _resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()


def head_of(url: SplitResult, method: str, path: str, body_bytes: int = 0) -> bytes:
    """The head of a request; *path* begins with a slash and is escaped already."""
    text = f"{method} {url.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
    if method != "GET":
        text += f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n"
    return (text + "\r\n").encode("ascii")


def parse_url(text: str) -> SplitResult:
    """Where the server is. Errors: `ValueError` for what is no plain HTTP address."""
    url = urlsplit(text)
    if url.scheme != "http" or not url.hostname:
        raise ValueError(f"{text!r} is no URL such as http://127.0.0.1:6632")
    return url


async def fetch(
    url: SplitResult, method: str, path: str, *statuses: int, body: bytes = b""
) -> bytes:
    """One request on a connection of its own, for what is not measured.

    Errors: `RequestFailed` for a status that is none of *statuses*.
    """
    try:
        connection = await Connection.open(url)
    except OSError as exc:
        raise RequestFailed(f"no server at {url.geturl()}: {exc}") from exc
    try:
        answer = await connection.request(head_of(url, method, path, len(body)), body)
    finally:
        connection.close()
    check_status(answer, f"{method} {path}", *statuses)
    return answer.body


def check_status(answer: Answer, what: str, *statuses: int) -> None:
    if answer.status not in statuses:
        text = answer.body[:300].decode(errors="replace")
        raise RequestFailed(f"{what} answered {answer.status}: {text}")
