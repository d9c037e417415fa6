"""Dead letters, and moving them back: wire-api 5.5, the retry of 5.4, the replay of 7.15."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from queue_server.broker.dead_letters import Destination, Replay
from queue_server.domain.access import Use
from queue_server.domain.errors import BadRequest, NotFound
from queue_server.domain.names import PartitionId, check_text
from queue_server.domain.segment import wire_time
from queue_server.domain.subscription import parse_time
from queue_server.http import administration_wire as wire
from queue_server.http.answers import (
    PAYLOAD_READS,
    PayloadAnswer,
    Payloads,
    json_answer,
    message_address,
    page_of,
)
from queue_server.http.request import grants_of, query_count, query_time, read_body
from queue_server.http.state import STATE
from queue_server.storage.dead_letters import DeadLetter, DeadLetterFilter

_LIMIT = 100
# What one call of a redrive moves at most: some ten seconds' worth. `remaining` tells the rest.
_REDRIVE_MAX = 100_000


async def page(request: web.Request) -> web.StreamResponse:
    limit, offset = page_of(request, _LIMIT)
    filter_ = _filter(request)
    async with request.app[PAYLOAD_READS]:
        found = await request.app[STATE].administration.dead_letters.page(filter_, limit, offset)
        payloads = Payloads()
        answer = PayloadAnswer(
            request,
            {
                "messages": [_entry(letter, payloads) for letter in found.letters],
                "total": found.total,
                "truncated": offset + len(found.letters) < found.total,
                "pagination": {"limit": limit, "offset": offset},
            },
            payloads,
        )
    return await answer.send()


async def get(request: web.Request) -> web.StreamResponse:
    id_ = _id(request)
    grants = grants_of(request)
    found = None
    if id_ is not None:
        is_visible = (lambda _: True) if grants is None else grants.knows
        found = await request.app[STATE].administration.dead_letters.get(id_, is_visible)
    if found is None:
        raise NotFound("Dead letter not found")
    if grants is not None:
        grants.require(Use.LOOK, found.queue)
    payloads = Payloads()
    return await PayloadAnswer(request, _entry(found, payloads), payloads).send()


async def purge(request: web.Request) -> web.Response:
    filter_ = _filter(request)
    if filter_.queue is None:
        raise BadRequest("queue is required")
    purged = await request.app[STATE].administration.dead_letters.purge(
        filter_, query_count(request, "limit")
    )
    return json_answer(
        {
            "success": True,
            "deleted": purged.deleted_count,
            "remaining": purged.remaining_count,
            "queue": filter_.queue,
            "consumerGroup": filter_.consumer_group,
        }
    )


async def redrive(request: web.Request) -> web.Response:
    """Move a filtered set back to where it came from."""
    body = wire.redrive_reader.read(await read_body(request))
    for text in (
        body.queue, body.consumer_group, body.partition, body.error, body.error_contains
    ):  # fmt: skip
        check_text(text or "", "the filter")
    grants = grants_of(request)
    if grants is not None:
        grants.require(Use.ADMINISTER, body.queue or "")
    limit = _REDRIVE_MAX if body.limit is None else min(body.limit, _REDRIVE_MAX)
    bounds = {}
    for name, text in (("from", body.from_), ("to", body.to)):
        bounds[name] = None if text is None else parse_time(text)
        if text is not None and bounds[name] is None:
            raise BadRequest(f"{name} must be an ISO 8601 time")
    letters = request.app[STATE].administration.dead_letters
    filter_ = DeadLetterFilter(
        queue=body.queue,
        consumer_group=body.consumer_group,
        partition=body.partition,
        start=bounds["from"],
        end=bounds["to"],
        error=body.error,
        error_contains=body.error_contains,
    )
    if body.dry_run:
        preview = await letters.preview(filter_)
        return json_answer(
            {
                "success": True,
                "moved": 0,
                "messages": preview.messages,
                "deliveries": preview.deliveries,
                "duplicates": 0,
                "remaining": preview.dead_letters,
            }
        )
    redriven = await letters.redrive(filter_, limit, grants, body.ids)
    return json_answer(
        {
            "success": True,
            "moved": redriven.moved_count,
            "messages": redriven.message_count,
            "duplicates": redriven.duplicate_count,
            "remaining": redriven.remaining_count,
        }
    )


async def replay(request: web.Request) -> web.Response:
    """Move one dead letter, to another queue or partition if the body names one."""
    body = wire.replay_reader.read(await read_body(request) or b"{}")
    if body.queue == "" or body.partition == "":
        raise BadRequest("queue and partition must not be empty")
    id_ = _id(request)
    if id_ is None:
        return _replayed(None)
    return _replayed(
        await request.app[STATE].administration.dead_letters.replay(
            id_, Destination(body.queue, body.partition)
        )
    )


async def retry(request: web.Request) -> web.Response:
    partition_id, transaction_id = message_address(request)
    if partition_id is None:
        return _replayed(None)
    return await retry_message(request, partition_id, transaction_id)


async def retry_message(
    request: web.Request, partition_id: PartitionId, transaction_id: str
) -> web.Response:
    """Move the newest dead letter of a message back to the end of its partition."""
    return _replayed(
        await request.app[STATE].administration.dead_letters.retry(
            partition_id, transaction_id, grants_of(request)
        )
    )


def _replayed(replay: Replay | None) -> web.Response:
    if replay is None:
        return json_answer(
            {
                "success": False,
                "result": "gone",
                "error": "Message not found",
                "code": "not_found",
            },
            status=404,
        )
    pushed = replay.pushed
    return json_answer(
        {
            "success": True,
            "result": "moved" if replay.moved else "duplicate",
            "retried": replay.moved,
            "transactionId": replay.letter.transaction_id,
            "queue": replay.message.queue,
            "partition": replay.message.partition,
            "consumerGroup": replay.letter.consumer_group,
            "dlqId": str(replay.letter.id),
            "originalTransactionId": replay.letter.first_transaction_id,
            "dlqRowRemoved": replay.moved,
            "replayedAs": {
                "index": 0,
                "message_id": pushed.message_id,
                "transaction_id": pushed.transaction_id,
                "queueName": pushed.queueName,
                "status": pushed.status,
                "offset": pushed.offset,
            },
        }
    )


def _id(request: web.Request) -> uuid.UUID | None:
    """The id in the path; None for what cannot be one."""
    try:
        return uuid.UUID(request.match_info["id"])
    except ValueError:
        return None


def _filter(request: web.Request) -> DeadLetterFilter:
    query = request.query
    for name in ("queue", "consumerGroup", "partition", "error", "errorContains"):
        check_text(query.get(name, ""), name)
    return DeadLetterFilter(
        queue=query.get("queue") or None,
        consumer_group=query.get("consumerGroup") or None,
        partition=query.get("partition") or None,
        start=query_time(request, "from"),
        end=query_time(request, "to"),
        error=query.get("error"),  # an empty one is one as well
        error_contains=query.get("errorContains") or None,
    )


def _entry(letter: DeadLetter, payloads: Payloads) -> dict[str, Any]:
    return {
        "id": str(letter.id),
        "transactionId": letter.transaction_id,
        "originalTransactionId": letter.first_transaction_id,
        "partitionId": str(letter.partition_id),
        "queue": letter.queue,
        "partition": letter.partition,
        "consumerGroup": letter.consumer_group,
        "errorMessage": letter.error_message,
        "retryCount": letter.retry_count,
        "data": payloads.place(letter.payload),
        "payloadAvailable": letter.payload is not None,
        "producerSub": letter.producer_sub,
        "traceId": letter.trace_id,
        "createdAt": wire_time(letter.created_at),
        "failedAt": wire_time(letter.failed_at),
    }
