"""The WebSocket of dashboards: wire-api 5.10. What goes over it: http/live.py."""

from __future__ import annotations

from aiohttp import web

from queue_server.domain.errors import BadRequest, Forbidden
from queue_server.http.pages import is_own_origin
from queue_server.http.state import STATE

_HANDSHAKE = ("Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version")


async def dashboard(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise BadRequest("this is a WebSocket: send Upgrade: websocket")
    # aiohttp quotes these in its refusals and decodes the key; other characters make it fail there.
    if not all(request.headers.get(name, "").isascii() for name in _HANDSHAKE):
        raise BadRequest("a header of the WebSocket's handshake is not ASCII")
    # Browsers do not ask before they open one, so here the answer to CORS has to be enforced.
    allowed = state.settings.cors_allowed_origins
    origin = request.headers.get("Origin")
    if origin is not None and allowed not in ("*", origin) and not is_own_origin(request, origin):
        raise Forbidden("This origin may not open a WebSocket (CORS_ALLOWED_ORIGINS)")
    return await state.live.serve(request)
