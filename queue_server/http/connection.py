"""A client's connection: what aiohttp leaves open about the limits of a request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from multidict import CIMultiDict, CIMultiDictProxy

from queue_server.http import wire

logger = logging.getLogger(__name__)

# What a request expects that is still to be answered.
EXPECTATION: web.RequestKey[str] = web.RequestKey("expectation", str)

_TOO_MANY_HEADERS = "Too many headers received"


RequestFactory = Callable[..., web.BaseRequest]


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


class Connection(web.RequestHandler):
    __slots__ = ()

    def has_sent_a_request(self) -> bool:
        """Whether the headers of a first one came, or the connection has ended."""
        return self._request_count > 0 or self.transport is None

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
        if isinstance(exc, LineTooLong) or _TOO_MANY_HEADERS in (message or ""):
            status, text, code = 431, "the request's line or headers are too large", "too_large"
        elif isinstance(exc, BadHttpMessage) or status == 400:
            status, text, code = 400, "the request is not valid HTTP", "bad_request"
        else:
            logger.error("a request failed outside of its handler", exc_info=exc)
            text, code = "internal error", "internal"
        response = web.Response(
            status=status,
            body=wire.encoder.encode(wire.error_body(text, code)),
            content_type="application/json",
        )
        response.force_close()
        return response
