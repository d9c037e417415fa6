"""What one line of the route table says: how a request is served, who may send it, and what the
OpenAPI document says of it. The tables are http/routes.py and http/administration.py."""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from aiohttp import web

from queue_server.domain.access import Access, Use

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Named(enum.Enum):
    """Where a request names its queue."""

    PATH = "path"
    QUERY = "query"
    PARTITION = "the path names a partition"
    HANDLER = "the body, or the database: the handler asks"


@dataclass(frozen=True)
class Query:
    """A parameter of the query. One that cannot be read is refused (400)."""

    name: str
    about: str
    kind: Literal["string", "integer", "boolean", "time"] = "string"
    low: int | None = None
    high: int | None = None
    choices: Sequence[str] = ()  # in any case of letters


@dataclass(frozen=True)
class Content:
    """An answer that is no JSON."""

    media_type: str


@dataclass(frozen=True)
class Route:
    method: str
    path: str  # its parameters in braces; `{name:.*}` for one that may hold slashes
    handler: Handler
    _: KW_ONLY
    access: Access
    # What is asked of credentials that are for some queues. None: closed to them, because the
    # route is about all queues, or names a message whose queue would first have to be looked for.
    scope: tuple[Use, Named] | None = None
    tag: str
    summary: str
    query: Sequence[Query] = ()
    body: Any = None  # the type of the request's body
    body_required: bool = True
    # By status: the type of the body, a `Content`, or None where there is no body.
    answers: Mapping[int, Any]
    # Refusals of its own; those that any route may give are in the document anyway.
    errors: Sequence[int] = ()

    @property
    def canonical_path(self) -> str:
        """The path with nothing but names in its braces."""
        return re.sub(r"\{(\w+):[^{}]+\}", r"{\1}", self.path)

    def definition(self) -> web.RouteDef:
        # A name may hold anything but a slash that is not percent-encoded.
        path = re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", self.path)
        if self.method != "GET":
            return web.route(self.method, path, self.handler)
        # HEAD is served where GET changes nothing: a pop takes.
        return web.get(path, self.handler, allow_head=self.access is not Access.WRITE)


def lines_served(app: web.Application, table: Sequence[Route]) -> Mapping[web.AbstractRoute, Route]:
    """The line of the table for each route of the application; HEAD has that of its GET.

    The files of the dashboard are in no table: they are open.
    """
    lines = {(line.method, line.canonical_path): line for line in table}
    return {
        served: line
        for served in app.router.routes()
        if (resource := served.resource) is not None
        and (
            line := lines.get(
                ("GET" if served.method == "HEAD" else served.method, resource.canonical)
            )
        )
    }
