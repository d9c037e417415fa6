"""Which level of access each route needs (source: wire-api 5.13), and which queue it is about.

A rule and its exceptions, so that a new route is closed to readers until somebody thinks of it:
what is read by GET needs `read-only`, everything else `read-write`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from aiohttp import web

from queue_server.domain.access import Access, Grants, Use
from queue_server.domain.errors import Forbidden, NotFound
from queue_server.domain.names import parse_partition_id
from queue_server.http.state import STATE

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


class Named(enum.Enum):
    """Where a request names its queue."""

    PATH = "path"
    QUERY = "query"
    PARTITION = "the path names a partition"
    HANDLER = "the body, or the database: the handler asks"


_RESOURCE = "/api/v1/resources/queues/{queue}"
_GROUP_QUEUE = "/api/v1/consumer-groups/{group}/queues/{queue}"
_MESSAGE = "/api/v1/messages/{partition_id}/{transaction_id}"

# A route that is not here is closed to credentials that are for some queues only: it is about all
# of them, or names a message whose queue would first have to be looked for.
_SCOPES: Mapping[tuple[str, str], tuple[Use, Named]] = {
    ("POST", "/api/v1/push"): (Use.PUSH, Named.HANDLER),
    ("GET", "/api/v1/pop"): (Use.POP, Named.HANDLER),
    ("GET", "/api/v1/pop/queue/{queue}"): (Use.POP, Named.PATH),
    ("GET", "/api/v1/pop/queue/{queue}/partition/{partition}"): (Use.POP, Named.PATH),
    ("POST", "/api/v1/ack"): (Use.POP, Named.HANDLER),
    ("POST", "/api/v1/ack/batch"): (Use.POP, Named.HANDLER),
    ("POST", "/api/v1/transaction"): (Use.POP, Named.HANDLER),
    ("POST", "/api/v1/lease/{lease_id}/extend"): (Use.POP, Named.HANDLER),
    ("POST", "/api/v1/configure"): (Use.ADMINISTER, Named.HANDLER),
    ("GET", _RESOURCE): (Use.LOOK, Named.PATH),
    ("GET", f"{_RESOURCE}/depth"): (Use.LOOK, Named.PATH),
    ("DELETE", _RESOURCE): (Use.ADMINISTER, Named.PATH),
    ("GET", "/api/v1/status/queues/{queue}"): (Use.LOOK, Named.PATH),
    ("GET", "/api/v1/status/queues/{queue}/messages"): (Use.LOOK, Named.PATH),
    ("GET", "/api/v1/analytics/queue/{queue}"): (Use.LOOK, Named.PATH),
    ("DELETE", "/api/v1/queues/{queue}/clear"): (Use.ADMINISTER, Named.PATH),
    ("DELETE", _GROUP_QUEUE): (Use.ADMINISTER, Named.PATH),
    ("POST", f"{_GROUP_QUEUE}/seek"): (Use.ADMINISTER, Named.PATH),
    ("POST", f"{_GROUP_QUEUE}/partitions/{{partition}}/seek"): (Use.ADMINISTER, Named.PATH),
    ("GET", "/api/v1/dlq"): (Use.LOOK, Named.QUERY),
    ("DELETE", "/api/v1/dlq"): (Use.ADMINISTER, Named.QUERY),
    ("POST", "/api/v1/dlq/redrive"): (Use.ADMINISTER, Named.HANDLER),
    ("GET", "/api/v1/messages"): (Use.LOOK, Named.QUERY),
    ("GET", _MESSAGE): (Use.LOOK, Named.PARTITION),
    ("DELETE", _MESSAGE): (Use.ADMINISTER, Named.PARTITION),
    ("POST", f"{_MESSAGE}/retry"): (Use.ADMINISTER, Named.PARTITION),
    ("POST", f"{_MESSAGE}/dlq"): (Use.ADMINISTER, Named.PARTITION),
    ("POST", "/api/v1/traces"): (Use.POP, Named.HANDLER),
    ("GET", "/api/v1/traces/{partition_id}/{transaction_id}"): (Use.LOOK, Named.PARTITION),
}


async def check_queue(request: web.Request, grants: Grants) -> None:
    """Whether a credential that is for some queues opens this request.

    Errors: `Forbidden`; `NotFound` for a partition that does not exist.
    """
    resource = request.match_info.route.resource
    if resource is None:
        return  # no such route, which is told
    method = "GET" if request.method == "HEAD" else request.method
    scope = _SCOPES.get((method, resource.canonical))
    if scope is None:
        raise Forbidden("This needs a credential for all queues")
    use, named = scope
    match named:
        case Named.PATH:
            grants.require(use, request.match_info["queue"])
        case Named.QUERY:
            queue = request.query.get("queue")
            if not queue:
                raise Forbidden("This credential is for some queues: name one, as ?queue=")
            grants.require(use, queue)
        case Named.PARTITION:
            await require_partitions(request, grants, use, [request.match_info["partition_id"]])
        case Named.HANDLER:
            pass


async def require_partitions(
    request: web.Request,
    grants: Grants,
    use: Use,
    partition_ids: list[str],
    *,
    missing_ok: bool = False,
) -> None:
    """Errors: `Forbidden`; `NotFound` when a partition does not exist, unless *missing_ok*."""
    ids = [parse_partition_id(text) for text in set(partition_ids)]
    known = [id_ for id_ in ids if id_ is not None]
    found = await request.app[STATE].directory.name_partitions(known)
    for ref in found.values():
        grants.require(use, ref.queue)
    if len(found) < len(ids) and not missing_ok:
        raise NotFound("Partition not found")
