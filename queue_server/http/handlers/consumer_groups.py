"""Delete consumer groups, move them, change where they start: wire-api 3.12."""

from __future__ import annotations

import datetime

from aiohttp import web

from queue_server.broker.groups import Sought
from queue_server.domain.errors import BadRequest
from queue_server.domain.names import ConsumerGroup, PartitionName, QueueName, check_names
from queue_server.domain.segment import wire_time
from queue_server.domain.subscription import parse_time
from queue_server.http import administration_wire as wire
from queue_server.http.answers import json_answer
from queue_server.http.request import query_bool, read_body
from queue_server.http.state import STATE


async def delete(request: web.Request) -> web.Response:
    """The group everywhere, or on the queue that the path names."""
    state = request.app[STATE]
    group = ConsumerGroup(request.match_info["group"])
    queue = request.match_info.get("queue")
    check_names(queue or "", group, "consumer group")
    delete_metadata = query_bool(request, "deleteMetadata", default=True)
    cursor_count = await state.administration.groups.delete(
        group, None if queue is None else QueueName(queue), delete_metadata=delete_metadata
    )
    answer: dict[str, object] = {
        "success": True,
        "consumerGroup": group,
        "deletedPartitions": cursor_count,
        "metadataDeleted": delete_metadata,
    }
    if queue is not None:
        answer["queueName"] = queue
    return json_answer(answer)


async def restart(request: web.Request) -> web.Response:
    """Change where the group starts in partitions it has not met yet."""
    state = request.app[STATE]
    group = ConsumerGroup(request.match_info["group"])
    check_names("", group, "consumer group")
    body = wire.subscription_reader.read(await read_body(request))
    starts_at = parse_time(body.subscription_timestamp)
    if starts_at is None:
        raise BadRequest("subscriptionTimestamp must be an ISO 8601 time")
    return json_answer(
        {
            "success": True,
            "consumerGroup": group,
            "newTimestamp": body.subscription_timestamp,
            "rowsUpdated": await state.administration.groups.restart(group, starts_at),
        }
    )


async def seek(request: web.Request) -> web.Response:
    """Move the group in every partition of a queue."""
    state = request.app[STATE]
    group, queue = _group_and_queue(request)
    # The official client sends no body when it is called without options: refused like `{}`, a
    # whole queue is not skipped by mistake.
    body = wire.seek_reader.read(await read_body(request) or b"{}")
    sought = await state.administration.groups.seek(group, queue, _target(body))
    if sought is None:
        return json_answer(
            {
                "success": False,
                "error": "Queue not found or has no partitions",
                "code": "not_found",
                "partitionsUpdated": 0,
            },
            status=404,
        )
    return json_answer(
        {
            "success": True,
            "consumerGroup": group,
            "queueName": queue,
            "seekToEnd": body.to_end,
            "targetTimestamp": None if body.to_end else body.timestamp,
            "partitionsUpdated": sought.partition_count,
        }
    )


async def seek_partition(request: web.Request) -> web.Response:
    """Move the group in one partition; without a body to its end."""
    state = request.app[STATE]
    group, queue = _group_and_queue(request)
    partition = PartitionName(request.match_info["partition"])
    check_names(queue, partition, "partition")
    body = wire.seek_reader.read(await read_body(request) or b'{"toEnd":true}')
    sought = await state.administration.groups.seek_partition(
        group, queue, partition, _target(body)
    )
    if sought is None:
        return json_answer(
            {"success": False, "error": "Partition not found", "code": "not_found"}, status=404
        )
    return json_answer(
        {
            "success": True,
            "consumerGroup": group,
            "queueName": queue,
            "partitionName": partition,
            "updated": True,
            "cursorMovedTo": _moved_to(body, sought),
        }
    )


def _group_and_queue(request: web.Request) -> tuple[ConsumerGroup, QueueName]:
    group = ConsumerGroup(request.match_info["group"])
    queue = QueueName(request.match_info["queue"])
    check_names(queue, group, "consumer group")
    return group, queue


def _target(body: wire.SeekBody) -> datetime.datetime | None:
    """The time to go to; None = the end."""
    if body.to_end:
        return None
    if body.timestamp is None:
        raise BadRequest("Must specify either 'toEnd': true or 'timestamp'")
    to = parse_time(body.timestamp)
    if to is None:
        raise BadRequest("timestamp must be an ISO 8601 time")
    return to


def _moved_to(body: wire.SeekBody, sought: Sought) -> str | None:
    if not body.to_end:
        return body.timestamp
    return None if sought.newest_at is None else wire_time(sought.newest_at)
