"""Messages of the log, for operators: wire-api 5.4.

A path names a message by its partition and its transaction id, or, as the clients of the first
server did, by the transaction id alone. What is done is the same, so there is one function for it,
and `by_address` or `by_transaction_id` around it reads the path.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from queue_server.broker.stored_messages import AmbiguousId, Detail, Listed, Listing
from queue_server.domain.errors import BadRequest, NotFound
from queue_server.domain.names import (
    PartitionId,
    PartitionName,
    QueueName,
    check_names,
    check_text,
    parse_partition_id,
)
from queue_server.domain.options import RETRY_DELAY_ECHO_MS, TTL_ECHO_S
from queue_server.domain.segment import wire_time
from queue_server.domain.status import MessageStatus, mode_type
from queue_server.http import wire
from queue_server.http.answers import (
    PAYLOAD_READS,
    PayloadAnswer,
    Payloads,
    json_answer,
    message_address,
    page_of,
)
from queue_server.http.request import query_choice, query_time
from queue_server.http.state import STATE
from queue_server.storage.stored_messages import MessageFilter, NotPending

_LIMIT = 200
_DEFAULT_RANGE = datetime.timedelta(hours=1)
_STATUSES = {status.value: status for status in MessageStatus}
# Other servers of the protocol know it; here a message that failed is pending again, or dead.
_NEVER = "failed"
_RELATED_LIMIT = 10
_MESSAGE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# What is done with the message of a partition that has a transaction id.
Action = Callable[[web.Request, PartitionId, str], Awaitable[web.StreamResponse]]


def by_address(action: Action) -> Handler:
    """The handler of a path with a partition and a transaction id."""

    async def handle(request: web.Request) -> web.StreamResponse:
        partition_id, transaction_id = message_address(request)
        if partition_id is None:
            raise NotFound("Message not found")
        return await action(request, partition_id, transaction_id)

    return handle


def by_transaction_id(action: Action) -> Handler:
    """The handler of a path with a transaction id alone.

    It is unique only inside its partition, so every partition is asked whether its log or its dead
    letters have it. When several do, nothing is done: the answer is 409 and lists the messages by
    their full address, at most ten, because one that was picked for the caller may be the wrong
    one to delete, and no less the wrong one to look at.

    Cost: one look-up in an index for each partition of the server, whatever is stored in them,
    about 0.4 s for 100,000; given up with a 400 after five seconds.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        transaction_id = check_text(request.match_info["transaction_id"], "transactionId")
        try:
            partition_id = await request.app[STATE].administration.stored_messages.locate(
                transaction_id
            )
        except AmbiguousId as exc:
            return _ambiguous(transaction_id, exc)
        if partition_id is None:
            raise NotFound("Message not found")
        return await action(request, partition_id, transaction_id)

    return handle


def _ambiguous(transaction_id: str, exc: AmbiguousId) -> web.Response:
    error = wire.error_body(
        "several partitions have a message with this transaction id: name one of them as"
        " /api/v1/messages/:partitionId/:transactionId",
        "ambiguous",
    )
    places = [
        {
            "partitionId": str(place.id),
            "transactionId": transaction_id,
            "queue": place.queue,
            "partition": place.partition,
        }
        for place in exc.places
    ]
    return json_answer(error | {"messages": places}, status=409)


async def page(request: web.Request) -> web.StreamResponse:
    """Messages by time, or the one with the message id `id`, which may be looked for on a queue.

    Cost: a row for each partition that the query lets through, and a few for each message up to the
    end of the page. With `to` and with `id` also a search in each of these partitions that was
    pushed to since, 50 µs on a busy machine; what takes longer than ten seconds is given up with a
    400.
    """
    messages = request.app[STATE].administration.stored_messages
    limit, offset = page_of(request, _LIMIT)
    status = query_choice(request, "status", (*_STATUSES, _NEVER))
    filter_ = _filter(request, _STATUSES.get(status or ""))
    id_ = _message_id(request)
    has_queue_mode, named_count = await messages.mode(filter_)
    async with request.app[PAYLOAD_READS]:
        if id_ is not None:
            queue = None if filter_.queue is None else QueueName(filter_.queue)
            found = await messages.find(id_, queue)
            listing = Listing([] if found is None else [found])
        elif status == _NEVER:
            listing = Listing([])
        else:
            listing = await messages.page(filter_, limit, offset)
        payloads = Payloads()
        answer = PayloadAnswer(
            request,
            {
                "messages": [_entry(one, payloads) for one in listing.messages],
                "mode": {
                    "hasQueueMode": has_queue_mode,
                    "busGroupsCount": named_count,
                    "type": mode_type(has_queue_mode, named_count),
                },
                "total": len(listing.messages),
                "truncated": listing.truncated,
                "pagination": {"limit": limit, "offset": offset},
            },
            payloads,
        )
        del listing
    return await answer.send()


async def get(
    request: web.Request, partition_id: PartitionId, transaction_id: str
) -> web.StreamResponse:
    async with request.app[PAYLOAD_READS]:
        answer = _detail(request, await _find(request, partition_id, transaction_id))
    return await answer.send()


async def related(request: web.Request) -> web.StreamResponse:
    """Messages beside the one that the path names by its transaction id.

    The path is also the address of a message with the id `related` in a partition, which comes
    first where there is one.
    """
    partition_id = parse_partition_id(request.match_info["transaction_id"])
    if partition_id is not None:
        try:
            return await get(request, partition_id, "related")
        except NotFound:
            pass
    return await _related(request)


@by_transaction_id
async def _related(
    request: web.Request, partition_id: PartitionId, transaction_id: str
) -> web.StreamResponse:
    detail = await _find(request, partition_id, transaction_id)
    payloads = Payloads()
    async with request.app[PAYLOAD_READS]:
        found = await request.app[STATE].administration.stored_messages.related(
            detail, _RELATED_LIMIT
        )
        answer = PayloadAnswer(
            request,
            {
                "messages": [
                    {
                        "transactionId": one.message.transaction_id,
                        "partitionId": str(one.message.partition.id),
                        "status": one.status.value,
                        "createdAt": wire_time(one.message.created_at),
                        "payload": payloads.place(one.message.payload),
                    }
                    for one in found
                ]
            },
            payloads,
        )
    return await answer.send()


async def _find(request: web.Request, partition_id: PartitionId, transaction_id: str) -> Detail:
    """Errors: `NotFound`."""
    detail = await request.app[STATE].administration.stored_messages.get(
        partition_id, transaction_id
    )
    if detail is None:
        raise NotFound("Message not found")
    return detail


def _detail(request: web.Request, detail: Detail) -> PayloadAnswer:
    listed, config, reasons = detail.listed, detail.config, detail.reasons
    message, consumption = listed.message, listed.consumption
    queue_mode = consumption.queue_mode
    named_count = len(consumption.named)
    payloads = Payloads()
    return PayloadAnswer(
        request,
        _entry(listed, payloads)
        | {
            "isEncrypted": message.is_encrypted,
            "queueConfig": {
                "leaseTime": config.lease_time,
                "retryLimit": config.retry_limit,
                "retryDelay": (
                    RETRY_DELAY_ECHO_MS if config.retry_delay is None else config.retry_delay
                ),
                "ttl": TTL_ECHO_S if config.ttl is None else config.ttl,
                "priority": message.partition.priority,
            },
            "mode": {
                "hasQueueMode": queue_mode is not None,
                "busGroupsCount": named_count,
                "consumedByGroups": consumption.consumed_by(message.offset),
                "type": mode_type(queue_mode is not None, named_count),
            },
            "consumerGroups": [
                {
                    "name": place.group,
                    "consumed": place.committed_offset > message.offset,
                    "gaveUp": place.group in reasons,
                    "errorMessage": reasons.get(place.group),
                    "leaseExpiresAt": _time(place.lease_expires_at),
                }
                for place in consumption.places
            ],
        },
        payloads,
    )


async def delete(
    request: web.Request, partition_id: PartitionId, transaction_id: str
) -> web.Response:
    letters = await request.app[STATE].administration.stored_messages.delete(
        partition_id, transaction_id
    )
    if letters is None:
        answer = {
            "success": False,
            "partitionId": str(partition_id),
            "transactionId": transaction_id,
            "message": "Message not found",
            "error": "Message not found",
            "code": "not_found",
        }
        return json_answer(answer, status=404)
    return json_answer(
        {
            "success": True,
            "partitionId": str(partition_id),
            "transactionId": transaction_id,
            "message": "Message deleted successfully",
            "deleted": letters,
        }
    )


async def delete_by_id(
    request: web.Request, partition_id: PartitionId, transaction_id: str
) -> web.Response:
    """`delete` for clients of the first server, to whom `deleted` is whether, not how many."""
    letters = await request.app[STATE].administration.stored_messages.delete(
        partition_id, transaction_id
    )
    if letters is None:
        raise NotFound("Message not found")
    return json_answer(
        {
            "deleted": True,
            "success": True,
            "partitionId": str(partition_id),
            "transactionId": transaction_id,
        }
    )


async def bury(
    request: web.Request, partition_id: PartitionId, transaction_id: str
) -> web.Response:
    try:
        groups = await request.app[STATE].administration.stored_messages.bury(
            partition_id, transaction_id
        )
    except NotPending:
        raise BadRequest("the message is not pending: every group has consumed it") from None
    if groups is None:
        raise NotFound("Message not found")
    return json_answer(
        {
            "success": True,
            "movedToDLQ": True,
            "partitionId": str(partition_id),
            "transactionId": transaction_id,
            "consumerGroups": groups,
        }
    )


async def clear(request: web.Request) -> web.Response:
    state = request.app[STATE]
    queue = QueueName(request.match_info["queue"])
    partition = request.query.get("partition") or None
    check_names(queue, partition or "", "partition")
    count = await state.administration.stored_messages.clear(
        queue, None if partition is None else PartitionName(partition)
    )
    if count is None:
        raise NotFound("Queue not found" if partition is None else "Partition not found")
    return json_answer(
        {
            "cleared": True,
            "success": True,
            "count": count,
            "queue": queue,
            "partition": "all" if partition is None else partition,
        }
    )


def _message_id(request: web.Request) -> uuid.UUID | None:
    """Errors: `BadRequest` for what cannot be one; not all messages, as if none were asked for."""
    text = request.query.get("id", "")
    if not text:
        return None
    if _MESSAGE_ID.fullmatch(text) is None:
        raise BadRequest("id must be a message id: a UUID of version 7, in lower case")
    return uuid.UUID(text)


def _filter(request: web.Request, status: MessageStatus | None) -> MessageFilter:
    query = request.query
    for name in ("queue", "partition", "ns", "namespace", "task"):
        check_text(query.get(name, ""), name)
    end = query_time(request, "to")
    if end is not None:
        # Its whole minute is meant.
        end = end.replace(second=0, microsecond=0) + datetime.timedelta(minutes=1)
    return MessageFilter(
        start=query_time(request, "from") or datetime.datetime.now(datetime.UTC) - _DEFAULT_RANGE,
        end=end,
        queue=query.get("queue") or None,
        partition=query.get("partition") or None,
        namespace=query.get("ns") or query.get("namespace") or None,
        task=query.get("task") or None,
        status=status,
    )


def _entry(listed: Listed, payloads: Payloads) -> dict[str, Any]:
    message, consumption = listed.message, listed.consumption
    partition = message.partition
    status = listed.status.value
    return {
        "id": message.id,
        "transactionId": message.transaction_id,
        "partitionId": str(partition.id),
        "queuePath": f"{partition.queue}/{partition.partition}",
        "queue": partition.queue,
        "partition": partition.partition,
        "namespace": partition.namespace,
        "task": partition.task,
        "status": status,
        "queueStatus": status,
        "busStatus": {
            "consumedBy": consumption.consumed_by(message.offset),
            "totalGroups": len(consumption.named),
        },
        "traceId": message.trace_id,
        "producerSub": message.producer_sub,
        "queuePriority": partition.priority,
        "createdAt": wire_time(message.created_at),
        "leaseExpiresAt": _time(consumption.lease_expires_at(message.offset)),
        "offset": message.offset,
        "data": payloads.place(message.payload),
        "payload": payloads.place(message.payload),
        "payloadAvailable": message.payload is not None,
        "errorMessage": None if message.death is None else message.death.error_message,
        "retryCount": None if message.death is None else message.death.retry_count,
        "failedAt": None if message.death is None else wire_time(message.death.failed_at),
    }


def _time(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else wire_time(moment)
