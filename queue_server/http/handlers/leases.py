"""Extend a lease: wire-api 3.9."""

from __future__ import annotations

import uuid

from aiohttp import web

from queue_server.domain.access import Use
from queue_server.domain.errors import BadRequest
from queue_server.domain.names import NO_PARTITION_ID
from queue_server.domain.segment import wire_time
from queue_server.http import wire
from queue_server.http.access import missing_partitions
from queue_server.http.request import grants_of, read_body
from queue_server.http.state import STATE
from queue_server.storage import leases

_DEFAULT_SECONDS = 60
# An id like any other, and never given to a lease.
_NO_LEASE = uuid.UUID(int=0)
_SECONDS_MAX = 7 * 24 * 3600


async def extend(request: web.Request) -> web.Response:
    state = request.app[STATE]
    text = request.match_info["lease_id"]
    # The newest client sends no body for the default, and older brokers read a malformed one so.
    seconds = float(_DEFAULT_SECONDS)
    body = await read_body(request)
    if body:
        try:
            given = wire.extend_reader.read(body).seconds
        except BadRequest:
            given = None
        if given is not None:
            seconds = min(max(given, 1), _SECONDS_MAX)
    try:
        lease_id = uuid.UUID(text)
    except ValueError:
        expiries = []
    else:
        grants = grants_of(request)
        if grants is not None:
            partitions = await leases.partitions_of(state.transactions, lease_id)
            ids = [str(id_) for id_ in partitions] or [NO_PARTITION_ID]
            if await missing_partitions(request, grants, Use.POP, ids):
                lease_id = _NO_LEASE
        expiries = await state.acker.extend(lease_id, int(seconds))
    expires_at = wire_time(min(expiries)) if expiries else None
    answer = {
        "leaseId": text,
        "success": bool(expiries),
        "renewed": len(expiries),
        "newExpiresAt": expires_at,
        "expiresAt": expires_at,
        "lease_expires_at": expires_at,
        "error": None if expiries else "Lease not found",
    }
    return web.Response(body=wire.encoder.encode(answer), content_type="application/json")
