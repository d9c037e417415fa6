"""Acks and pushes in one transaction: wire-api 3.10."""

from __future__ import annotations

import uuid

from aiohttp import web

from queue_server.broker.ack import Ack
from queue_server.broker.transaction import TransactionRefused, TransactionResult
from queue_server.domain.access import Use
from queue_server.domain.errors import BadRequest, BodyTooLarge, NameTooLong
from queue_server.domain.message import NewMessage
from queue_server.http import wire
from queue_server.http.access import hide_partitions
from queue_server.http.memory import ITEM_BYTES, memory_of, turn_of
from queue_server.http.request import check_count, check_nesting, grants_of, producer_sub, read_body
from queue_server.http.state import STATE
from queue_server.http.tracing import traceparent_of
from queue_server.http.whole_answer import whole_answer
from queue_server.observability.counters import Counter


async def execute(request: web.Request) -> web.StreamResponse:
    heads = request.app[STATE].heads
    try:
        return await whole_answer(request, heads, await _execute(request))
    except (BodyTooLarge, NameTooLong, wire.BadTransaction):
        raise
    except BadRequest as exc:
        raise wire.BadTransaction(exc.message) from None


async def _execute(request: web.Request) -> bytes:
    state = request.app[STATE]
    raw = await read_body(request, is_batch=True)
    state.row.add(Counter.BYTES_RECEIVED, len(raw))
    count_max = state.settings.max_transaction_operations
    wire.transaction_limit.check(raw, count_max)
    body = wire.transaction_reader.read(raw)
    if not body.operations:
        raise wire.BadTransaction("operations array cannot be empty")
    if body.has_riders:
        raise wire.BadTransaction("kv, timers and positions are not supported by this server")
    items: list[NewMessage] = []
    places: list[int] = []  # of the operations that the items belong to
    acks: list[Ack] = []
    order: list[tuple[bool, int]] = []  # pushed?, and its index there
    for place, operation in enumerate(body.operations):
        match operation.type:
            case "push":
                for item in operation.messages():
                    order.append((True, len(items)))
                    items.append(item)
                    places.append(place)
            case "ack":
                order.append((False, len(acks)))
                acks.append(operation.ack())
            case _:
                raise wire.BadTransaction(
                    f'type must be "push" or "ack", not {operation.type[:100]!r}'
                )
    check_count(len(order), count_max, "pushes and acks")
    memory_of(request).grow(len(order) * ITEM_BYTES)
    leases = body.leases(count_max)
    await check_nesting(
        [item.payload for item in items],
        lambda index: f"operations[{places[index]}]: a payload",
    )
    grants = grants_of(request)
    if grants is not None:
        for queue in {item.queue for item in items}:
            grants.require(Use.PUSH, queue)
        acks = await hide_partitions(request, Use.POP, acks)
    async with turn_of(request, len(order)):
        return await _carry_out(request, items, acks, order, leases)


async def _carry_out(
    request: web.Request,
    items: list[NewMessage],
    acks: list[Ack],
    order: list[tuple[bool, int]],
    leases: list[str],
) -> bytes:
    state = request.app[STATE]
    transaction_id = str(uuid.uuid4())
    try:
        result = await state.transactor.execute(
            items,
            acks,
            leases,
            producer_sub(request),
            traceparent_of(request),
            grants_of(request),
        )
    except TransactionRefused as exc:
        answer: dict[str, object] = {
            "transactionId": transaction_id,
            "success": False,
            "reason": exc.reason,
            "error": exc.message,
            "results": [],
        }
    else:
        answer = {
            "transactionId": transaction_id,
            "success": True,
            "results": _results(order, acks, result),
        }
    return wire.encoder.encode(answer)


def _results(
    order: list[tuple[bool, int]], acks: list[Ack], result: TransactionResult
) -> list[dict[str, object]]:
    """One entry for each push and ack, in the order they were written."""
    entries: list[dict[str, object]] = []
    for index, (is_push, place) in enumerate(order):
        if is_push:
            pushed = result.pushed[place]
            entry: dict[str, object] = {
                "index": index,
                "type": "push",
                "success": True,
                "transactionId": pushed.transaction_id,
                "messageId": pushed.message_id,
                "partitionId": pushed.partition_id,
                "queueName": pushed.queueName,
                "status": pushed.status,
                "offset": pushed.offset,
            }
            if pushed.status == "duplicate":
                # Repeated within the transaction, and stored once.
                entry["duplicate"] = True
        else:
            outcome = result.acked[place]
            entry = {
                "index": index,
                "type": "ack",
                "success": outcome.result.success,
                "transactionId": acks[place].transaction_id,
                "error": outcome.result.error,
                "dlq": outcome.result.dead_letter,
                "leaseReleased": outcome.result.lease_released,
            }
            if outcome.result.noop:
                entry["noop"] = True
        entries.append(entry)
    return entries
