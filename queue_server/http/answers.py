"""Makes the JSON answers of the administration routes."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from queue_server.http import wire


def json_answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=wire.encoder.encode(value),
        content_type="application/json",
        charset="utf-8",
    )
