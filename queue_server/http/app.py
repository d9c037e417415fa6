"""Builds the application and serves it."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time
from collections.abc import Callable

from aiohttp import web

from queue_server.domain.access import Access
from queue_server.http import middleware, openapi
from queue_server.http.answers import PAYLOAD_READS
from queue_server.http.api_keys import ApiKeys, Credentials
from queue_server.http.authentication import TokenVerifier
from queue_server.http.connection import Connection, keep_expectation
from queue_server.http.dashboard import OPEN_PATHS, Dashboard
from queue_server.http.handlers.document import DOCUMENT, Document
from queue_server.http.handlers.health import VERSION
from queue_server.http.limits import limit_rate
from queue_server.http.memory import MEMORY, TURN, MemoryBudget
from queue_server.http.pages import page_check
from queue_server.http.request import BODY_TIMEOUT_S, MAX_BODY_BYTES
from queue_server.http.route import lines_served
from queue_server.http.route_groups import route_groups
from queue_server.http.routes import routes
from queue_server.http.state import STATE, State
from queue_server.http.tracing import traced
from queue_server.observability.tasks import keep_running
from queue_server.settings import Settings


def build_app(state: State) -> web.Application:
    settings = state.settings
    app = web.Application(
        # Bodies are read by http/request.py, which knows the limit.
        client_max_size=0,
    )
    app[STATE] = state
    app[MAX_BODY_BYTES] = settings.max_body_bytes
    app[MEMORY] = MemoryBudget(settings.request_memory_bytes)
    app[TURN] = asyncio.Lock()
    app[PAYLOAD_READS] = asyncio.Semaphore(settings.read_connections)
    app[BODY_TIMEOUT_S] = settings.body_timeout_ms / 1000
    table = (*routes(), *Dashboard().routes())
    app.add_routes(line.definition() for line in table)
    open_paths = (*settings.jwt_skip_paths, *OPEN_PATHS)
    app[DOCUMENT] = Document(
        lambda: openapi.document(
            table, VERSION, open_paths if settings.has_authentication else None
        )
    )
    groups = route_groups(app)
    lines = lines_served(app, table)
    if state.tracing is not None:
        app.middlewares.append(traced(state.tracing, groups))
    open_routes = {route for route, line in lines.items() if line.access is Access.PUBLIC}
    app.middlewares.append(middleware.serve(state.row, groups, page_check(settings, open_routes)))
    if settings.has_authentication:
        tokens = TokenVerifier(settings) if settings.jwt_enabled else None
        if tokens is not None:
            app.cleanup_ctx.append(tokens.running)
        keys = ApiKeys(state.transactions) if settings.api_keys_enabled else None
        app.middlewares.append(
            middleware.authenticate(Credentials(tokens, keys), lines, open_paths)
        )
    if settings.request_rate:
        # Probes go free, but not what takes a worker some milliseconds.
        free = tuple(path for path in open_paths if not path.startswith("/metrics"))
        app.middlewares.append(limit_rate(settings.request_rate, free))
    app.on_response_prepare.append(middleware.answer_headers(state))
    return app


# At the end, clients that keep their connection are told with the next answer to open another one.
# Most send a request within this time; the connections of the others are closed.
_FAREWELL_S = 0.25
# How often connections are looked at whose first request is not complete.
_LOOK_INTERVAL_S = 0.5
# How often within its time a reader is asked after; it has up to one of these parts more.
_READER_SWEEPS = 8


class HttpServer:
    """Serves the application on connections that it is given.

    A connection whose first request has no complete headers after `header_timeout_ms` is closed.
    For those that follow the keep-alive timeout is the limit. A connection whose client does not
    take what it is sent for `reader_timeout_ms` is broken off.
    """

    def __init__(
        self,
        app: web.Application,
        settings: Settings,
        tls: ssl.SSLContext | None,
        *,
        finish_timeout_s: float,
    ) -> None:
        self._settings = settings
        self._tls = tls
        # Connections before their first request, the oldest first, and when each came.
        self._young: dict[Connection, float] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._runner = web.AppRunner(
            app,
            # A client that leaves cancels its handler: a parked pop leaves its room at once.
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=finish_timeout_s,
        )

    async def start(self) -> None:
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_factory = keep_expectation(server.request_factory)
        self._sweeping = keep_running(functools.partial(self._close_stuck, server), "readers")

    async def serve(self, connection: socket.socket, when_closed: Callable[[], None]) -> None:
        """Begin to serve a connection that was accepted; it ends by itself."""
        loop = asyncio.get_running_loop()
        new_connection = functools.partial(self._new_connection, when_closed)
        if self._tls is None:
            _, handler = await loop.connect_accepted_socket(new_connection, connection)
        else:
            _, handler = await loop.connect_accepted_socket(
                new_connection,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._settings.header_timeout_ms / 1000,
            )
        self._young[handler] = loop.time()
        if self._looking is None:
            self._looking = loop.call_later(_LOOK_INTERVAL_S, self._look_at_young)

    def _new_connection(self, when_closed: Callable[[], None]) -> Connection:
        server = self._runner.server
        assert server is not None
        return Connection(
            server,
            loop=asyncio.get_running_loop(),
            max_header_bytes=self._settings.max_header_bytes,
            when_closed=when_closed,
            # Clients hold connections open between requests.
            keepalive_timeout_s=75,
        )

    def _look_at_young(self) -> None:
        """Forget those that have sent a request, close those that had the time to."""
        loop = asyncio.get_running_loop()
        self._looking = None
        try:
            for handler in self._waiting_for_headers():
                if loop.time() - self._young[handler] > self._settings.header_timeout_ms / 1000:
                    # First, so that one that cannot be closed does not keep the others open.
                    del self._young[handler]
                    handler.force_close()
        finally:
            if self._young:
                self._looking = loop.call_later(_LOOK_INTERVAL_S, self._look_at_young)

    def _waiting_for_headers(self) -> list[Connection]:
        for handler in [one for one in self._young if one.has_sent_a_request()]:
            del self._young[handler]
        return list(self._young)

    async def _close_stuck(self, server: web.Server) -> None:
        """Close the connections whose readers take nothing; runs until cancelled."""
        timeout_s = self._settings.reader_timeout_ms / 1000
        loop = asyncio.get_running_loop()
        while True:
            # One sweep for all of them costs a busy answer nothing: no timer, no flag.
            await asyncio.sleep(timeout_s / _READER_SWEEPS)
            now = loop.time()
            for connection in server.connections:
                if isinstance(connection, Connection):
                    connection.close_if_stuck(now, timeout_s)

    def open_count(self) -> int:
        """How many connections are open."""
        server = self._runner.server
        return 0 if server is None else len(server.connections)

    async def finish(self) -> None:
        """Let running requests finish within the timeout, then close all connections."""
        await _wait_while(lambda: self.open_count() > 0)
        # A request whose first bytes are here is waited for a little longer.
        await _wait_while(lambda: len(self._waiting_for_headers()) > 0)
        if self._looking is not None:
            self._looking.cancel()
        await self._runner.cleanup()
        if self._sweeping is not None:
            self._sweeping.cancel()


async def _wait_while(condition: Callable[[], bool]) -> None:
    """Wait until *condition* no longer holds, for a farewell at most."""
    stop_at = time.monotonic() + _FAREWELL_S
    while True:
        if not condition() or time.monotonic() > stop_at:
            return
        await asyncio.sleep(0.01)
