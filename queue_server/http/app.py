"""Builds the application and serves it."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from queue_server.http import middleware
from queue_server.http.access import route_accesses
from queue_server.http.authentication import TokenVerifier
from queue_server.http.request import MAX_BODY_BYTES
from queue_server.http.routes import routes
from queue_server.http.state import STATE, State


def build_app(state: State) -> web.Application:
    settings = state.settings
    app = web.Application(
        middlewares=[
            middleware.observe(state.row),
            middleware.answer_preflight,
            middleware.answer_errors,
        ],
        # Bodies are read by http/request.py, which knows the limit.
        client_max_size=0,
    )
    app[STATE] = state
    app[MAX_BODY_BYTES] = settings.max_body_bytes
    app.add_routes(routes())
    if settings.jwt_enabled:
        verifier = TokenVerifier(settings)
        app.cleanup_ctx.append(verifier.running)
        app.middlewares.append(
            middleware.authenticate(verifier, route_accesses(app), settings.jwt_skip_paths)
        )
    app.on_response_prepare.append(
        middleware.cors_headers(
            {
                "Access-Control-Allow-Origin": settings.cors_allowed_origins,
                "Access-Control-Allow-Methods": settings.cors_allowed_methods,
                "Access-Control-Allow-Headers": settings.cors_allowed_headers,
                "Access-Control-Max-Age": str(settings.cors_max_age),
            }
        )
    )
    return app


class HttpServer:
    """Serves the application on connections that it is given."""

    def __init__(self, app: web.Application, *, finish_timeout_s: float) -> None:
        self._runner = web.AppRunner(
            app,
            # A client that leaves cancels its handler: a parked pop leaves its room at once.
            handler_cancellation=True,
            access_log=None,
            # No client compresses bodies, and a small one can become a huge one.
            auto_decompress=False,
            shutdown_timeout=finish_timeout_s,
            # Clients hold connections open between requests.
            keepalive_timeout=75,
            max_line_size=16 * 1024,
            max_field_size=16 * 1024,
        )

    async def start(self) -> None:
        await self._runner.setup()

    async def serve(self, connection: socket.socket) -> None:
        """Begin to serve a connection that was accepted; it ends by itself."""
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(server, connection)

    def open_count(self) -> int:
        """How many connections are open."""
        server = self._runner.server
        return 0 if server is None else len(server.connections)

    async def finish(self) -> None:
        """Let running requests finish within the timeout, then close all connections."""
        await self._runner.cleanup()
