"""A span for each request that moves messages, where TRACING asks for them.

Without spans of ours a push is known by the `traceparent` that its producer sent, so that producers
and consumers who trace themselves find each other also then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from queue_server.observability.counters import RouteGroup
from queue_server.observability.tracing import RequestSpan, Tracing

# W3C Trace Context, version 00: ids of zeros alone are none. What is taken goes into messages as it
# came, so nothing else may pass.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

SPAN: web.RequestKey[RequestSpan] = web.RequestKey("span", RequestSpan)

_NAMES = {
    RouteGroup.PUSH: "push",
    RouteGroup.POP: "pop",
    RouteGroup.ACK: "ack",
    RouteGroup.TRANSACTION: "transaction",
}


def traceparent_of(request: web.Request) -> str | None:
    """What the request's messages are to say of where they came from; None = nothing.

    That is the request's span, or, where no spans are made, its producer's.
    """
    span: RequestSpan | None = request.get(SPAN)
    if span is not None:
        return span.traceparent
    given = request.headers.get("traceparent")
    return given if given is not None and _TRACEPARENT.fullmatch(given) else None


def describe(
    request: web.Request, message_count: int, *, queue: str | None = None, group: str | None = None
) -> None:
    """Say in the request's span, if it has one, what it is about."""
    span = request.get(SPAN)
    if span is not None:
        span.describe(queue=queue, group=group, message_count=message_count)


def traced(tracing: Tracing, groups: Mapping[web.AbstractRoute, RouteGroup]) -> Middleware:
    """Put a span around requests of these groups; outside of what makes answers of errors."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _NAMES.get(groups.get(request.match_info.route, RouteGroup.UNKNOWN))
        if name is None:
            return await handler(request)
        span = request[SPAN] = tracing.start(name, request.headers)
        status = None
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            span.end(status)

    return middleware
