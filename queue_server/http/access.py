"""Whether a credential that is for some queues opens a request (source: wire-api 5.13).

Which level of access a route needs, and where it names its queue, is in its line of the route
table.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from aiohttp import web

from queue_server.broker.ack import Ack
from queue_server.domain.access import Grants, Use
from queue_server.domain.errors import Forbidden, NotFound
from queue_server.domain.names import NO_PARTITION_ID, parse_partition_id
from queue_server.http.request import grants_of
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
            text = request.match_info["partition_id"]
            if await missing_partitions(request, grants, use, [text]):
                raise NotFound("Partition not found")
        case Named.HANDLER:
            pass


async def missing_partitions(
    request: web.Request, grants: Grants, use: Use, partition_ids: Collection[str]
) -> set[str]:
    """Return those of *partition_ids* that do not exist for this credential.

    Ids can be counted, so a partition of a queue on which nothing is granted is answered as one
    that does not exist: with the same body, after the same time.
    Errors: `Forbidden` for a partition of a queue on which another use is granted.
    """
    ids = {text: parse_partition_id(text) for text in partition_ids}
    found = await request.app[STATE].directory.name_partitions(
        {id_ for id_ in ids.values() if id_ is not None}, is_visible=grants.knows
    )
    for ref in found.values():
        grants.require(use, ref.queue)
    return {text for text, id_ in ids.items() if id_ not in found}


async def hide_partitions(request: web.Request, use: Use, acks: list[Ack]) -> list[Ack]:
    """Return *acks* with the partitions replaced that do not exist for this credential.

    Errors: as `missing_partitions`.
    """
    grants = grants_of(request)
    if grants is None:
        return acks
    missing = await missing_partitions(request, grants, use, {ack.partition_id for ack in acks})
    return [
        msgspec.structs.replace(ack, partition_id=NO_PARTITION_ID)
        if ack.partition_id in missing
        else ack
        for ack in acks
    ]
