"""Which routes are counted and timed together."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from queue_server.observability.counters import RouteGroup

_PROBES = frozenset({"/health", "/livez", "/readyz", "/metrics", "/metrics/prometheus"})

_GROUPS: Mapping[tuple[str, str], RouteGroup] = {
    ("POST", "/api/v1/push"): RouteGroup.PUSH,
    ("GET", "/api/v1/pop"): RouteGroup.POP,
    ("GET", "/api/v1/pop/queue/{queue}"): RouteGroup.POP,
    ("GET", "/api/v1/pop/queue/{queue}/partition/{partition}"): RouteGroup.POP,
    ("POST", "/api/v1/ack"): RouteGroup.ACK,
    ("POST", "/api/v1/ack/batch"): RouteGroup.ACK,
    ("POST", "/api/v1/transaction"): RouteGroup.TRANSACTION,
    ("POST", "/api/v1/lease/{lease_id}/extend"): RouteGroup.LEASE,
}


def group_of(method: str, path: str) -> RouteGroup:
    """The group of a route; *path* with its parameters as `{name}`."""
    if path in _PROBES:
        return RouteGroup.PROBE
    default = RouteGroup.LOOK if method in ("GET", "HEAD") else RouteGroup.CHANGE
    return _GROUPS.get((method, path), default)


def route_groups(app: web.Application) -> dict[web.AbstractRoute, RouteGroup]:
    """The group of each route of the application."""
    return {
        route: group_of(route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
