"""Messages of the log, for operators: wire-api 5.4."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
from aiohttp import web

from queue_server.broker.stored_messages import Listed
from queue_server.domain.errors import BadRequest, NotFound
from queue_server.domain.names import PartitionId, PartitionName, QueueName, check_names, check_text
from queue_server.domain.options import RETRY_DELAY_ECHO_MS, TTL_ECHO_S
from queue_server.domain.segment import wire_time
from queue_server.domain.status import MessageStatus, mode_type
from queue_server.http.answers import json_answer, message_address, page_of
from queue_server.http.request import query_time
from queue_server.http.state import STATE
from queue_server.storage.stored_messages import MessageFilter, NotPending

_LIMIT = 200
_DEFAULT_RANGE = datetime.timedelta(hours=1)
_STATUSES = {status.value: status for status in MessageStatus}


async def page(request: web.Request) -> web.Response:
    messages = request.app[STATE].administration.stored_messages
    limit, offset = page_of(request, _LIMIT)
    filter_ = _filter(request)
    known = request.query.get("status", "") in ("", *_STATUSES)
    # Nothing is ever in a state that the protocol knows only from other servers (`failed`).
    listed = await messages.page(filter_, limit, offset) if known else []
    has_queue_mode, named_count = await messages.mode(filter_)
    return json_answer(
        {
            "messages": [_entry(one) for one in listed],
            "mode": {
                "hasQueueMode": has_queue_mode,
                "busGroupsCount": named_count,
                "type": mode_type(has_queue_mode, named_count),
            },
            "total": len(listed),
            "pagination": {"limit": limit, "offset": offset},
        }
    )


async def get(request: web.Request) -> web.Response:
    partition_id, transaction_id = _address(request)
    detail = await request.app[STATE].administration.stored_messages.get(
        partition_id, transaction_id
    )
    if detail is None:
        raise NotFound("Message not found")
    listed, config = detail.listed, detail.config
    message, consumption = listed.message, listed.consumption
    queue_mode = consumption.queue_mode
    named_count = len(consumption.named)
    return json_answer(
        _entry(listed)
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
                    "leaseExpiresAt": _time(place.lease_expires_at),
                }
                for place in consumption.places
            ],
        }
    )


async def delete(request: web.Request) -> web.Response:
    partition_id, transaction_id = _address(request)
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


async def bury(request: web.Request) -> web.Response:
    partition_id, transaction_id = _address(request)
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


def _address(request: web.Request) -> tuple[PartitionId, str]:
    partition_id, transaction_id = message_address(request)
    if partition_id is None:
        raise NotFound("Message not found")
    return partition_id, transaction_id


def _filter(request: web.Request) -> MessageFilter:
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
        status=_STATUSES.get(query.get("status", "")),
    )


def _entry(listed: Listed) -> dict[str, Any]:
    message, consumption = listed.message, listed.consumption
    partition = message.partition
    status = listed.status.value
    payload = msgspec.Raw(message.payload)
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
        "data": payload,
        "payload": payload,
        "payloadAvailable": True,
        "errorMessage": None if message.death is None else message.death.error_message,
        "retryCount": None if message.death is None else message.death.retry_count,
        "failedAt": None if message.death is None else wire_time(message.death.failed_at),
    }


def _time(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else wire_time(moment)
