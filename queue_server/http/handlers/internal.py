"""What the instances of older brokers say to each other, and their copying of databases: wire-api
5.15. Ours need neither: hosts meet in the database, and PostgreSQL copies itself."""

from __future__ import annotations

from aiohttp import web

from queue_server.broker.wakeup import News
from queue_server.domain.errors import NotFound
from queue_server.domain.names import DEFAULT_PARTITION, check_names
from queue_server.http.administration_wire import notify_reader
from queue_server.http.answers import json_answer
from queue_server.http.request import read_body
from queue_server.http.state import STATE
from queue_server.observability.counters import Counter

_NO_COPY = (
    "This server does not copy its database to another one: use PostgreSQL's own means, such as"
    " pg_dump or replication, with pushes held back (POST /api/v1/system/maintenance)"
)


async def notify(request: web.Request) -> web.Response:
    """Wake who waits for a partition, as a push to it does."""
    body = notify_reader.read(await read_body(request))
    partition = body.partition or DEFAULT_PARTITION
    check_names(body.queue, partition, "partition")
    request.app[STATE].rooms.tell([News(body.queue, partition)])
    return json_answer({"success": True})


async def instances(request: web.Request) -> web.Response:
    """Wake-ups between the workers of this host, and those that only the database told."""
    counters = request.app[STATE].counters
    return json_answer(
        {
            "enabled": True,
            "told": counters.total(Counter.WAKE_UPS_TOLD),
            "received": counters.total(Counter.WAKE_UPS_RECEIVED),
            "polls": counters.total(Counter.FLOOR_POLLS),
            "foundByPoll": counters.total(Counter.FLOOR_POLL_HITS),
        }
    )


async def copy_status(_request: web.Request) -> web.Response:
    return json_answer({"status": "idle", "supported": False, "message": _NO_COPY})


async def copy(_request: web.Request) -> web.Response:
    """Errors: `NotFound`, always."""
    raise NotFound(_NO_COPY)
