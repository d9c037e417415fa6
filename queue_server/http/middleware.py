"""What happens to every request: an id, CORS headers, an answer for every error, a log line, and
with authentication a look at its credential."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler, Middleware

from queue_server.domain.access import Access
from queue_server.domain.errors import Forbidden, QueueServerError, Unauthenticated, Unavailable
from queue_server.http import failures, wire
from queue_server.http.access import check_queue
from queue_server.http.api_keys import Verifier
from queue_server.http.authentication import websocket_credential
from queue_server.http.connection import (
    EXPECTATION,
    REQUEST_ID,
    REQUEST_ID_HEADER,
    Connection,
    new_request_id,
)
from queue_server.http.memory import REQUEST_MEMORY
from queue_server.http.pages import PageCheck
from queue_server.http.request import PRINCIPAL, is_waiting
from queue_server.http.route import Route
from queue_server.http.state import State
from queue_server.observability.counters import Counter, RouteGroup, Row
from queue_server.observability.logging import client_text, request_id

logger = logging.getLogger(__name__)
# Open to everybody by default, but for the names of queues.
_PROMETHEUS = "/metrics/prometheus"

access_logger = logging.getLogger("queue_server.access")


def serve(
    counters: Row,
    groups: Mapping[web.AbstractRoute, RouteGroup],
    check_page: PageCheck | None = None,
) -> Middleware:
    """What happens to each request around all else: an id, a count, an answer also for an error.

    Logged at debug: there are thousands a second. One middleware rather than one for each of these:
    a layer costs every request a coroutine. *groups*: with which routes each is counted and timed.
    *check_page* refuses requests of foreign pages (http/pages.py).
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        # An id that a proxy gave is kept when it looks like one.
        given = request.headers.get(REQUEST_ID_HEADER, "")
        if not (given.isascii() and given.isalnum() and len(given) <= 64):
            given = new_request_id()
        id_ = given
        request[REQUEST_ID] = id_
        token = request_id.set(id_)
        begin = time.perf_counter()
        status = 499  # the client left, should no answer be made
        try:
            if request.method == "OPTIONS":
                # It asks what a browser may send; the headers that every answer carries say it.
                response: web.StreamResponse = web.Response(status=204)
            else:
                try:
                    if EXPECTATION in request:
                        _check_expectation(request)
                    if check_page is not None:
                        check_page(request)
                    response = await handler(request)
                except Exception as exc:
                    response = _answer_error(request, exc)
            if EXPECTATION in request and not request.content.is_eof():
                # The body may come all the same, or not: where it would end is not known.
                response.force_close()
                if isinstance(request.protocol, Connection):
                    request.protocol.expect_no_body()
            status = response.status
            return response
        finally:
            memory = request.get(REQUEST_MEMORY)
            if memory is not None:
                memory.set(0)
            group = groups.get(request.match_info.route)
            if group is None:
                group = RouteGroup.UNKNOWN
            elif group is RouteGroup.POP and is_waiting(request):
                group = RouteGroup.POP_WAITING
            duration_us = int((time.perf_counter() - begin) * 1e6)
            counters.observe_request(group, status, duration_us)
            counters.add(Counter.REQUESTS)
            if status >= 500:
                counters.add(Counter.REQUESTS_FAILED)
            if access_logger.isEnabledFor(logging.DEBUG):
                access_logger.debug(
                    "%s %s",
                    request.method,
                    client_text(request.path),
                    extra={
                        "status": status,
                        "duration_ms": round(duration_us / 1000, 2),
                    },
                )
            request_id.reset(token)

    return middleware


def _check_expectation(request: web.Request) -> None:
    """Errors: `web.HTTPExpectationFailed`."""
    # It is to be ignored in HTTP/1.0 (source: RFC 9110, 10.1.1).
    if request.version >= HttpVersion11 and request[EXPECTATION].lower() != "100-continue":
        raise web.HTTPExpectationFailed(reason="Expect can only be 100-continue")


def _answer_error(request: web.Request, exc: Exception) -> web.Response:
    """The answer for an exception; one that nobody foresaw is our bug, logged with its trace.

    Errors: `ConnectionError`, passed on: the client left while its answer was written.
    """
    match exc:
        case QueueServerError():
            response = failures.answer(exc)
            if response.status >= 500:
                logger.warning(
                    "%s %s answers %d",
                    request.method, client_text(request.path), response.status,
                    extra={"error": exc.message},
                )  # fmt: skip
            return response
        case web.HTTPException():
            return _answer_http(request, exc)
        case ConnectionError():
            raise exc
        case _:
            logger.error("%s %s failed", request.method, client_text(request.path), exc_info=exc)
            return _json(
                500, "internal error, see the server's log for this request id", "internal"
            )


def authenticate(
    verifier: Verifier,
    lines: Mapping[web.AbstractRoute, Route],
    open_paths: Collection[str],
) -> Middleware:
    """Let a request pass whose credential opens its route, and those to *open_paths*.

    *lines*: what the route table says of each route.
    """
    open_folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in open_paths or request.path.startswith(open_folders):
            if request.path == _PROMETHEUS and "Authorization" in request.headers:
                # What it says depends on who asks, and it answers without a database, too.
                with contextlib.suppress(Unavailable):
                    request[PRINCIPAL] = await verifier.principal_of(
                        request.headers["Authorization"]
                    )
            return await handler(request)
        line = lines.get(request.match_info.route)
        if line is not None and line.access is Access.PUBLIC:
            return await handler(request)
        authorization = request.headers.get("Authorization") or websocket_credential(request)
        if authorization is None:
            raise Unauthenticated
        principal = await verifier.principal_of(authorization)
        # Only who is somebody learns which paths lead nowhere.
        if line is None:
            if request.match_info.http_exception is None:
                raise Forbidden  # a route that no line of the table says anything about
        else:
            if not principal.may(line.access):
                raise Forbidden
            if principal.grants is not None:
                await check_queue(request, line, principal.grants)
        request[PRINCIPAL] = principal
        return await handler(request)

    return middleware


def _answer_http(request: web.Request, exc: web.HTTPException) -> web.Response:
    """aiohttp's own refusals, in the protocol's form."""
    match exc.status:
        case 404:
            return _json(404, "Not Found", "no_such_route")
        case 405:
            allowed = ", ".join(sorted(getattr(exc, "allowed_methods", ())))
            response = _json(
                405, f"{request.method} is not allowed here, use {allowed}", "no_such_route"
            )
            response.headers["Allow"] = allowed
            return response
        case 413:
            return _json(413, "Request body too large", "body_too_large")
        case _:
            return _json(exc.status, exc.reason, "bad_request")


def _json(status: int, message: str, code: str) -> web.Response:
    return web.Response(
        status=status,
        body=wire.encoder.encode(wire.error_body(message, code)),
        content_type="application/json",
    )


def answer_headers(
    state: State,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Put CORS and the request id on every answer; at the end, a word of farewell.

    Answers of the hot path do without (http/whole_answer.py).
    """

    async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(state.headers)
        if REQUEST_ID in request:
            response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
        if state.draining:
            # Sent now, the client's next request goes to another worker instead of a closed door.
            response.force_close()
            response.headers["Connection"] = "close"

    return on_prepare
