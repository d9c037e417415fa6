"""Events that consumers attach to messages: wire-api 5.6. The names here are in snake case."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from queue_server.domain.access import Use
from queue_server.domain.errors import BadRequest, NotFound
from queue_server.domain.names import QUEUE_MODE, check_text, parse_partition_id
from queue_server.domain.segment import wire_time
from queue_server.http import administration_wire as wire
from queue_server.http.access import missing_partitions
from queue_server.http.answers import (
    PAYLOAD_READS,
    PayloadAnswer,
    Payloads,
    json_answer,
    message_address,
    page_of,
)
from queue_server.http.request import check_nesting, grants_of, query_time, read_body
from queue_server.http.state import STATE
from queue_server.storage.traces import NewTrace, Trace

_LIMIT = 100
_OF_MESSAGE_LIMIT = 1000
_NAMES_LIMIT = 50


async def add(request: web.Request) -> web.Response:
    body = wire.trace_reader.read(await read_body(request))
    if body.data is msgspec.UNSET:
        raise BadRequest("data is required")
    await check_nesting([body.data], lambda _: "data")
    names = body.trace_names or []
    if isinstance(names, str):
        names = [names]
    for text in (body.transaction_id, body.consumer_group or "", body.event_type or "", *names):
        check_text(text, "a trace")
    partition_id = parse_partition_id(body.partition_id)
    if partition_id is None:
        raise NotFound("Message not found")
    grants = grants_of(request)
    if grants is not None and await missing_partitions(
        request, grants, Use.POP, [body.partition_id]
    ):
        raise NotFound("Message not found")
    id_ = await request.app[STATE].administration.traces.add(
        NewTrace(
            partition_id=partition_id,
            transaction_id=body.transaction_id,
            consumer_group=body.consumer_group or QUEUE_MODE,
            event_type=body.event_type or "info",
            data=bytes(body.data),
            names=[name for name in names if name],
        )
    )
    if id_ is None:
        raise NotFound("Message not found")
    return json_answer({"success": True, "traceId": str(id_)}, status=201)


async def of_message(request: web.Request) -> web.StreamResponse:
    partition_id, transaction_id = message_address(request)
    limit, offset = page_of(request, _OF_MESSAGE_LIMIT)
    found: list[Trace] = []
    total = 0
    async with request.app[PAYLOAD_READS]:
        if partition_id is not None:
            found, total = await request.app[STATE].administration.traces.of_message(
                partition_id, transaction_id, limit, offset
            )
        payloads = Payloads()
        answer = PayloadAnswer(
            request,
            {
                "traces": [_entry(trace, payloads) for trace in found],
                "total": total,
                "truncated": offset + len(found) < total,
            },
            payloads,
        )
    return await answer.send()


async def by_name(request: web.Request) -> web.StreamResponse:
    name = check_text(request.match_info["name"], "the name")
    limit, offset = page_of(request, _LIMIT)
    start, end = query_time(request, "from"), query_time(request, "to")
    async with request.app[PAYLOAD_READS]:
        found, total = await request.app[STATE].administration.traces.by_name(
            name, start, end, limit, offset
        )
        payloads = Payloads()
        answer = PayloadAnswer(
            request,
            {
                "traces": [
                    _entry(one.trace, payloads)
                    | {
                        "transaction_id": one.trace.transaction_id,
                        "partition_id": str(one.trace.partition_id),
                        "queue_name": one.trace.queue,
                        "partition_name": one.trace.partition,
                        "message_payload": payloads.place(one.payload),
                    }
                    for one in found
                ],
                "total": total,
                "truncated": offset + len(found) < total,
                "pagination": {"limit": limit, "offset": offset},
            },
            payloads,
        )
    return await answer.send()


async def names(request: web.Request) -> web.Response:
    limit, offset = page_of(request, _NAMES_LIMIT)
    traces = request.app[STATE].administration.traces
    look = await request.app[STATE].looks.share(
        ("trace names", limit, offset), lambda: traces.names(limit, offset)
    )
    found, total = look.value
    return json_answer(
        {
            "trace_names": [
                {
                    "trace_name": use.name,
                    "trace_count": use.trace_count,
                    "message_count": use.message_count,
                    "last_seen": wire_time(use.last_seen),
                }
                for use in found
            ],
            "total": total,
            "pagination": {"limit": limit, "offset": offset},
        }
    )


def _entry(trace: Trace, payloads: Payloads) -> dict[str, Any]:
    return {
        "id": str(trace.id),
        "event_type": trace.event_type,
        "data": payloads.place(trace.data),
        "data_available": trace.data is not None,
        "consumer_group": trace.consumer_group,
        "worker_id": trace.worker_id,
        "created_at": wire_time(trace.created_at),
        "trace_names": trace.names,
    }
