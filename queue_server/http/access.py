"""Whether a credential that is for some queues opens a request (source: wire-api 5.13).

Which level of access a route needs, and where it names its queue, is in its line of the route
table.
"""

from __future__ import annotations

from aiohttp import web

from queue_server.domain.access import Grants, Use
from queue_server.domain.errors import Forbidden, NotFound
from queue_server.domain.names import parse_partition_id
from queue_server.http.route import Named, Route
from queue_server.http.state import STATE


async def check_queue(request: web.Request, line: Route, grants: Grants) -> None:
    """Errors: `Forbidden`; `NotFound` for a partition that does not exist."""
    if line.scope is None:
        raise Forbidden("This needs a credential for all queues")
    use, named = line.scope
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
