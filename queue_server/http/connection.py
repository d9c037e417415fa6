"""A client's connection: what aiohttp leaves open about the limits of a request and of an answer.

What a connection may cost. The head of a request is bounded as a whole (aiohttp bounds each line of
it). Behind the request that is being answered two more are parsed; what came with them is kept as
it is, and nothing is taken from the socket until they are served. An answer whose reader takes
nothing is broken off (`close_if_stuck`), whoever writes it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDict, CIMultiDictProxy

from queue_server.http import wire

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
# What a request expects that is still to be answered.
EXPECTATION: web.RequestKey[str] = web.RequestKey("expectation", str)

# Cookies and a token of a browser are some 10 KiB; other servers allow 8 to 64 KiB for all headers.
_HEAD_BYTES_MAX = 64 * 1024
# Requests that wait behind the one that is being answered: one is enough for a pipeline to flow.
_QUEUED_MAX = 2
# Chunked bodies are fed in pieces of this size and more.
_PIECE_BYTES = 4096
# What a reader has to take of what waits for it, or it counts as one that takes nothing: who takes
# a byte now and then would hold an answer of 40 MB for years.
_PROGRESS_PART = 0.05

_HEAD_END = b"\r\n\r\n"
_TOO_MANY_HEADERS = "Too many headers received"

RequestFactory = Callable[..., web.BaseRequest]


def new_request_id() -> str:
    return f"{random.getrandbits(64):016x}"


def keep_expectation(make_request: RequestFactory) -> RequestFactory:
    """Make requests whose `Expect` is not for aiohttp to answer.

    It would say "100 Continue" before anything of ours has seen the request, and so ask for a body
    that is refused then. Here it becomes the request's `EXPECTATION`: http/middleware.py judges it,
    and who reads the body answers it (http/request.py).
    """

    def make(message: RawRequestMessage, *args: Any) -> web.BaseRequest:
        expectation = message.headers.get(hdrs.EXPECT)
        if expectation is None:
            return make_request(message, *args)
        headers = CIMultiDict(message.headers)
        del headers[hdrs.EXPECT]
        request = make_request(message._replace(headers=CIMultiDictProxy(headers)), *args)
        request[EXPECTATION] = expectation
        return request

    return make


Messages = list[tuple[RawRequestMessage, StreamReader]]


class Parser(HttpRequestParser):
    """aiohttp's parser, fed with no more than one head at a time.

    It knows no bound for the sum of the headers; it counts the requests that wait wrongly when one
    is begun before its body is whole; and behind a request for an upgrade that it does not know
    (h2c) it forgets the rest of the same piece, as if another protocol had begun there. Cut into
    heads and bodies, each piece brings one request at most, and what is not to be read yet stays
    here. *is_full* says, for a number of requests more, whether that is so.
    """

    def __init__(
        self,
        protocol: BaseProtocol,
        loop: asyncio.AbstractEventLoop,
        read_bytes: int,
        *,
        is_full: Callable[[int], bool],
        head_bytes_max: int,
        **limits: Any,
    ) -> None:
        super().__init__(protocol, loop, read_bytes, **limits)
        self._is_full = is_full
        self._head_bytes_max = head_bytes_max
        self._held = b""
        # What came of a head that has no end yet, and its last bytes.
        self._unfinished_bytes = 0
        self._last = b""
        self._is_lost = False  # something behind an upgrade
        # What is to come of a body with a known length.
        self._left_bytes = 0
        # A body without one, or nothing.
        self._body: StreamReader = EMPTY_PAYLOAD

    def feed_data(self, data: bytes, *_args: Any, **_kwargs: Any) -> tuple[Messages, bool, bytes]:
        """Without data it goes on with what it holds.

        Errors: `LineTooLong` for a head that is too large; those of aiohttp.
        """
        if self._has_ended():
            return [], False, b""
        if data and self._is_full(0):
            self._held += data
            return [], False, b""
        if self._held:
            data, self._held = self._held + data, b""
        end = self._end_of_piece(data, 0)
        if end == len(data) or self._is_one_request(data, end):
            return self._feed(data, end)
        found: Messages = []
        start = 0
        while start < len(data):
            messages, is_upgraded, tail = self._feed(data[start:end], end - start)
            found += messages
            if is_upgraded:
                return found, True, tail + data[end:]
            if self._has_ended():
                break
            if self._is_full(len(found)):
                self._held = data[end:]
                break
            start, end = end, self._end_of_piece(data, end)
        return found, False, b""

    def _has_ended(self) -> bool:
        """Whether the connection ends with what was parsed; what comes yet is not looked at."""
        return self._is_lost

    def _end_of_piece(self, data: bytes, start: int) -> int:
        """How far to feed *data* for one more request at most."""
        if self._left_bytes:
            return min(len(data), start + self._left_bytes)
        if not self._body.is_eof():
            # The end of a chunked body looks as that of a head. Where there are many that only
            # look so, a few requests more behind it do less harm than a piece for each.
            end = data.find(_HEAD_END, start + _PIECE_BYTES)
        else:
            if self._unfinished_bytes:
                end = (self._last + data[start : start + 3]).find(_HEAD_END)
                if end >= 0:
                    return start + end + len(_HEAD_END) - len(self._last)
            end = data.find(_HEAD_END, start)
        return len(data) if end < 0 else end + len(_HEAD_END)

    def _is_one_request(self, data: bytes, end: int) -> bool:
        """Whether behind the head that ends there no other one does; so it is nearly always."""
        return (
            not (self._left_bytes or self._unfinished_bytes)
            and self._body.is_eof()
            and data.find(_HEAD_END, end) < 0
            and data.find(b"pgrade:", 0, end) < 0
        )

    def _feed(self, data: bytes, head_bytes: int) -> tuple[Messages, bool, bytes]:
        """Feed a piece, of which so much belongs to a head if one has begun or begins."""
        if self._left_bytes:
            self._left_bytes -= len(data)
            return super().feed_data(data)
        is_head = self._body.is_eof()
        if is_head and self._unfinished_bytes + head_bytes > self._head_bytes_max:
            raise LineTooLong(b"head", self._head_bytes_max)
        messages, is_upgraded, tail = super().feed_data(data)
        if messages:
            last, self._body = messages[-1]
            self._unfinished_bytes = 0
            behind = len(data) - head_bytes
            if last.upgrade and not is_upgraded and not (is_head and self._body is EMPTY_PAYLOAD):
                behind = -1
            if is_head:
                length = last.headers.get(hdrs.CONTENT_LENGTH)
                if self._body is EMPTY_PAYLOAD:
                    self._unfinished_bytes = max(0, behind)
                elif length is not None and not last.chunked:
                    self._body = EMPTY_PAYLOAD
                    self._left_bytes = max(0, int(length) - behind)
                    self._unfinished_bytes = max(0, behind - int(length))
            if last.upgrade and not is_upgraded and behind:
                # The client sends it again when the connection ends.
                self._is_lost = True
                messages[-1] = last._replace(should_close=True), messages[-1][1]
        elif is_head:
            self._unfinished_bytes += len(data)
        if not is_head and self._body.is_eof():
            # How much of the next head came with it is not known, at most a piece.
            self._unfinished_bytes = 1
        if self._unfinished_bytes:
            self._last = data[-3:] if len(data) >= 3 else (self._last + data)[-3:]
        return messages, is_upgraded, tail


class Connection(web.RequestHandler):
    __slots__ = ("_stuck_bytes", "_stuck_since", "_when_closed", "_wire")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        max_header_bytes: int,
        keepalive_timeout_s: float,
        when_closed: Callable[[], None] | None = None,
    ) -> None:
        # No client compresses bodies, and a small one can become a huge one.
        auto_decompress = False
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # what aiohttp means by "none"
            auto_decompress=auto_decompress,
            keepalive_timeout=keepalive_timeout_s,
            max_line_size=max_header_bytes,
            max_field_size=max_header_bytes,
        )
        # aiohttp has no parameter for these: a parser of one's own, and how many requests of a
        # pipeline are parsed ahead (32, each of which may have 2 MB of headers).
        self._max_msg_queue_size = _QUEUED_MAX
        self._msg_queue_resume_size = _QUEUED_MAX // 2
        self._parser = Parser(
            self,
            loop,
            self._read_bufsize,
            is_full=self._is_full,
            head_bytes_max=max(_HEAD_BYTES_MAX, 2 * max_header_bytes),
            max_line_size=max_header_bytes,
            max_field_size=max_header_bytes,
            max_headers=self.max_headers,
            payload_exception=RequestPayloadError,
            auto_decompress=auto_decompress,
        )
        # aiohttp forgets the transport when it closes it, which may then wait for its reader.
        self._wire: asyncio.Transport | None = None
        self._stuck_since: float | None = None
        self._stuck_bytes = 0
        self._when_closed = when_closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its class.
        self._wire = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wire = None
        if self._when_closed is not None:
            self._when_closed()

    def resume_writing(self) -> None:
        self._stuck_since = None
        super().resume_writing()

    def close_if_stuck(self, now: float, timeout_s: float) -> None:
        """Break the connection off when its reader has taken too little for *timeout_s*.

        To be called now and then. It sees every answer, as it asks what the transport still has to
        send: a pop's, one in JSON, a file, a WebSocket's, one that is left when all is closed.
        """
        if self._wire is None:
            return
        unsent_bytes = self._wire.get_write_buffer_size()
        if not unsent_bytes:
            self._stuck_since = None
        elif self._stuck_since is None or unsent_bytes <= (1 - _PROGRESS_PART) * self._stuck_bytes:
            self._stuck_since, self._stuck_bytes = now, unsent_bytes
        elif now - self._stuck_since >= timeout_s:
            logger.debug("a reader took nothing for too long", extra={"unsent_bytes": unsent_bytes})
            self._wire.abort()
        else:
            self._stuck_bytes = max(self._stuck_bytes, unsent_bytes)

    def has_sent_a_request(self) -> bool:
        """Whether the headers of a first one came, or the connection has ended."""
        return self._request_count > 0 or self.transport is None

    def _is_full(self, more: int) -> bool:
        """Whether with so many requests more nothing is to be read for now."""
        return self._reading_paused or len(self._messages) + more >= _QUEUED_MAX

    def expect_no_body(self) -> None:
        """Do not wait for the rest of a body: after the answer the connection is closed."""
        self._lingering_time = 0.0

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what no handler has seen, in the protocol's form, and close the connection.

        The parser's own words quote what was sent, a token for one: they go nowhere.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        id_ = request.get(REQUEST_ID) or new_request_id()
        if isinstance(exc, LineTooLong) or _TOO_MANY_HEADERS in (message or ""):
            status, text, code = 431, "the request's line or headers are too large", "too_large"
        elif isinstance(exc, BadHttpMessage) or status == 400:
            status, text, code = 400, "the request is not valid HTTP", "bad_request"
        else:
            logger.error(
                "a request failed outside of its handler", exc_info=exc, extra={"request_id": id_}
            )
            text, code = "internal error", "internal"
        response = web.Response(
            status=status,
            body=wire.encoder.encode(wire.error_body(text, code)),
            content_type="application/json",
            headers={REQUEST_ID_HEADER: id_},
        )
        response.force_close()
        return response
