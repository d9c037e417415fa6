"""Which level of access each route needs. Source: wire-api 5.13.

A rule and its exceptions, so that a new route is closed to readers until somebody thinks of it:
what is read by GET needs `read-only`, everything else `read-write`.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from queue_server.domain.access import Access

_ADMIN_PREFIXES = ("/api/v1/system/", "/api/v1/migration/", "/internal/")

_EXCEPTIONS: Mapping[tuple[str, str], Access] = {
    # Reading a message takes it.
    ("GET", "/api/v1/pop"): Access.WRITE,
    ("GET", "/api/v1/pop/queue/{queue}"): Access.WRITE,
    ("GET", "/api/v1/pop/queue/{queue}/partition/{partition}"): Access.WRITE,
    ("POST", "/api/v1/push"): Access.PRODUCE,
    ("POST", "/api/v1/stats/refresh"): Access.ADMIN,
    ("DELETE", "/api/v1/resources/queues/{queue}"): Access.ADMIN,
    ("DELETE", "/api/v1/queues/{queue}/clear"): Access.ADMIN,
    ("DELETE", "/api/v1/consumer-groups/{group}"): Access.ADMIN,
    ("DELETE", "/api/v1/consumer-groups/{group}/queues/{queue}"): Access.ADMIN,
    ("DELETE", "/api/v1/dlq"): Access.ADMIN,
}


def access_of(method: str, path: str) -> Access:
    """The level for a route; *path* with its parameters as `{name}`."""
    if path.startswith(_ADMIN_PREFIXES):
        return Access.ADMIN
    default = Access.READ if method in ("GET", "HEAD") else Access.WRITE
    return _EXCEPTIONS.get((method, path), default)


def route_accesses(app: web.Application) -> Mapping[web.AbstractRoute, Access]:
    """The level of each route of the application."""
    return {
        route: access_of(route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
