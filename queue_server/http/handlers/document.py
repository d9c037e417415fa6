"""The OpenAPI document, for programs and for people."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from aiohttp import web

from queue_server.http import wire
from queue_server.http.document_page import CONTENT_SECURITY_POLICY, render


class Document:
    """Says what the application serves. Everybody may ask, so each form is made once."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        return self._make()

    @functools.cached_property
    def encoded(self) -> bytes:
        return wire.encoder.encode(self.content)

    @functools.cached_property
    def page(self) -> bytes:
        return render(self.content).encode()


DOCUMENT: web.AppKey[Document] = web.AppKey("document", Document)


async def openapi(request: web.Request) -> web.Response:
    return web.Response(
        body=request.app[DOCUMENT].encoded, content_type="application/json", charset="utf-8"
    )


async def page(request: web.Request) -> web.Response:
    return web.Response(
        body=request.app[DOCUMENT].page,
        content_type="text/html",
        charset="utf-8",
        headers={
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )
