"""What the administration routes have in common: JSON answers, pages, the address of a message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from aiohttp import web

from queue_server.domain.names import PartitionId, check_text, parse_partition_id
from queue_server.http import wire
from queue_server.http.request import query_int
from queue_server.http.state import STATE

_LIMIT_MAX = 1000
# Partitions of one answer: a page of them by default, and at most. A thousand take a worker ten
# milliseconds, in which it does nothing else.
PARTITIONS_LIMIT = 1000
PARTITIONS_LIMIT_MAX = 10_000
# Who wants what lies deeper asks with times.
_OFFSET_MAX = 1_000_000


def json_answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=wire.encoder.encode(value),
        content_type="application/json",
        charset="utf-8",
    )


async def shared_answer(
    request: web.Request, key: Hashable, make: Callable[[], Awaitable[Any]]
) -> web.Response:
    """Answer with what *make* reads: read and encoded once for all callers with the same *key*."""

    async def look() -> bytes:
        return wire.encoder.encode(await make())

    found = await request.app[STATE].looks.share(key, look)
    return web.Response(body=found.value, content_type="application/json", charset="utf-8")


def page_of(request: web.Request, limit: int, limit_max: int = _LIMIT_MAX) -> tuple[int, int]:
    """`limit` and `offset` of the query; *limit* is the default."""
    return (
        query_int(request, "limit", limit, 1, limit_max),
        query_int(request, "offset", 0, 0, _OFFSET_MAX),
    )


def page_of_partitions(request: web.Request) -> tuple[int, int]:
    """`limit` and `offset` of the query, for partitions in the order of their names."""
    return page_of(request, PARTITIONS_LIMIT, PARTITIONS_LIMIT_MAX)


def message_address(request: web.Request) -> tuple[PartitionId | None, str]:
    """The partition and the transaction id in the path; None for what cannot be a partition."""
    transaction_id = check_text(request.match_info["transaction_id"], "transactionId")
    return parse_partition_id(request.match_info["partition_id"]), transaction_id
