"""The OpenAPI document, for programs and for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from queue_server.http.answers import json_answer
from queue_server.http.document_page import CONTENT_SECURITY_POLICY, render

# Makes the document of what the application serves, and keeps it.
DOCUMENT: web.AppKey[Callable[[], dict[str, Any]]] = web.AppKey("document")


async def openapi(request: web.Request) -> web.Response:
    return json_answer(request.app[DOCUMENT]())


async def page(request: web.Request) -> web.Response:
    return web.Response(
        text=render(request.app[DOCUMENT]()),
        content_type="text/html",
        headers={
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )
