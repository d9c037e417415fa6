"""What the administration routes have in common: JSON answers, pages, the address of a message."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from queue_server.domain.names import PartitionId, check_text, parse_partition_id
from queue_server.http import wire
from queue_server.http.request import query_int

_LIMIT_MAX = 1000
# Who wants what lies deeper asks with times.
_OFFSET_MAX = 1_000_000


def json_answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=wire.encoder.encode(value),
        content_type="application/json",
        charset="utf-8",
    )


def page_of(request: web.Request, limit: int) -> tuple[int, int]:
    """`limit` and `offset` of the query; *limit* is the default."""
    return (
        query_int(request, "limit", limit, 1, _LIMIT_MAX),
        query_int(request, "offset", 0, 0, _OFFSET_MAX),
    )


def message_address(request: web.Request) -> tuple[PartitionId | None, str]:
    """The partition and the transaction id in the path; None for what cannot be a partition."""
    transaction_id = check_text(request.match_info["transaction_id"], "transactionId")
    return parse_partition_id(request.match_info["partition_id"]), transaction_id
