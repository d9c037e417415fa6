"""Serves the files of the dashboard.

They are the same for everybody and say nothing about the queues, so they are open; what the pages
show they ask for with their user's credential. There are few and they are small: all are held in
memory, compressed once. A browser keeps them and asks each time whether they are still good, so a
new version of the server is a new dashboard at once.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import msgspec
from aiohttp import web

from queue_server.domain.access import Access
from queue_server.http.route import Content, Route

_FOLDER = Path(__file__).resolve().parent.parent / "dashboard"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"

# What needs no credential, in the form of JWT_SKIP_PATHS.
OPEN_PATHS = ("/", "/dashboard", "/dashboard/")

_HEADERS = {
    "Cache-Control": "no-cache",
    # No inline script, nothing from elsewhere: a payload that gets into a page as markup is text.
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _File(msgspec.Struct, frozen=True):
    body: bytes
    compressed: bytes
    etag: str
    content_type: str

    def answer(self, request: web.Request) -> web.Response:
        headers = _HEADERS | {"ETag": self.etag}
        if self.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = self.content_type
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=self.body, headers=headers)
        return web.Response(body=self.compressed, headers=headers | {"Content-Encoding": "gzip"})


def _read(path: Path) -> _File:
    body = path.read_bytes()
    return _File(
        body=body,
        compressed=gzip.compress(body, mtime=0),
        # Weak: one for the plain and the compressed form.
        etag=f'W/"{hashlib.sha256(body).hexdigest()[:32]}"',
        content_type=_CONTENT_TYPES[path.suffix],
    )


class Dashboard:
    """The files, by their path below /dashboard/."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in _CONTENT_TYPES
        }

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET", "/", self._index,
                access=Access.PUBLIC, tag="Dashboard",
                summary="The dashboard's page",
                answers={200: Content("text/html"), 304: None},
            ),
            Route(
                "GET", "/dashboard", self._to_index,
                access=Access.PUBLIC, tag="Dashboard",
                summary="Leads to the dashboard's page",
                answers={302: None},
            ),
            Route(
                "GET", "/dashboard/", self._to_index,
                access=Access.PUBLIC, tag="Dashboard",
                summary="Leads to the dashboard's page",
                answers={302: None},
            ),
            Route(
                "GET", "/dashboard/{path:.+}", self._file,
                access=Access.PUBLIC, tag="Dashboard",
                summary="A file of the dashboard",
                answers={200: Content("*/*"), 304: None}, errors=(404,),
            ),
        ]  # fmt: skip

    async def _index(self, request: web.Request) -> web.Response:
        return self._files[_INDEX].answer(request)

    async def _to_index(self, request: web.Request) -> web.Response:
        # Relative, so that it also leads home behind a proxy that serves us under a prefix.
        location = "../" if request.path.endswith("/") else "./"
        return web.Response(status=302, headers={"Location": location})

    async def _file(self, request: web.Request) -> web.Response:
        file = self._files.get(request.match_info["path"])
        if file is None:
            raise web.HTTPNotFound
        return file.answer(request)
