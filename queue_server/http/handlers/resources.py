"""What there is: queues, partitions, labels, depth (wire-api 5.1), and the groups (5.7)."""

from __future__ import annotations

import datetime
from typing import Any

from aiohttp import web

from queue_server.domain.errors import NotFound
from queue_server.domain.names import check_names, check_text
from queue_server.domain.segment import wire_time
from queue_server.http import wire
from queue_server.http.answers import json_answer, page_of
from queue_server.http.request import query_int
from queue_server.http.state import STATE
from queue_server.storage import statistics
from queue_server.storage.statistics import Counts, QueueFilter, QueueStatistics, Spread

_QUEUES_LIMIT = 1000
_PARTITIONS_LIMIT = 610
_PARTITIONS_MAX = 10_000
_LAG_S_MIN = 3600
_LAGGING_S = 300  # from here on a group counts as lagging


def queue_filter(request: web.Request) -> QueueFilter:
    query = request.query
    for name in ("queue", "namespace", "task", "search"):
        check_text(query.get(name, ""), name)
    return QueueFilter(
        queue=query.get("queue") or None,
        namespace=query.get("namespace") or None,
        task=query.get("task") or None,
        search=query.get("search") or None,
    )


def six(counts: Counts) -> dict[str, int]:
    """The protocol's six counters."""
    return {
        "total": counts.total,
        "pending": counts.pending,
        "processing": counts.processing,
        "completed": counts.completed,
        "failed": 0,  # a nacked message is pending again at once
        "deadLetter": counts.dead,
    }


def queue_entry(queue: QueueStatistics) -> dict[str, Any]:
    return {
        "id": queue.id,
        "name": queue.name,
        "namespace": queue.namespace,
        "task": queue.task,
        "priority": queue.priority,
        "createdAt": wire_time(queue.created_at),
        "partitions": queue.partition_count,
        "messages": six(queue.counts),
        "depth": queue.depth,
    }


async def find_queue(request: web.Request) -> QueueStatistics:
    """The queue in the path. Errors: `NotFound`."""
    name = request.match_info["queue"]
    check_names(name, "", "partition")
    found = await statistics.queues(
        request.app[STATE].transactions, QueueFilter(queue=name), limit=1, offset=0
    )
    if not found:
        raise NotFound("Queue not found")
    return found[0]


async def page_of_queues(request: web.Request, limit: int, offset: int) -> list[QueueStatistics]:
    """The queues that the request asks for, newest first."""
    state, filter_ = request.app[STATE], queue_filter(request)
    found = await state.looks.share(
        ("queues", filter_, limit, offset),
        lambda: statistics.queues(state.transactions, filter_, limit, offset),
    )
    return found.value


async def queues(request: web.Request) -> web.Response:
    found = await page_of_queues(request, *page_of(request, _QUEUES_LIMIT))
    return json_answer({"queues": [queue_entry(queue) for queue in found]})


async def queue(request: web.Request) -> web.Response:
    transactions = request.app[STATE].transactions
    found = await find_queue(request)
    partitions = await statistics.partitions(transactions, found.id)
    options = await statistics.options(transactions, found.id)
    return json_answer(
        {
            "id": found.id,
            "name": found.name,
            "namespace": found.namespace,
            "task": found.task,
            "createdAt": wire_time(found.created_at),
            "partitions": [
                {
                    "id": str(partition.id),
                    "name": partition.name,
                    "createdAt": wire_time(partition.created_at),
                    "stats": six(partition.counts),
                    "oldestMessage": time_or_null(partition.oldest_at),
                    "newestMessage": time_or_null(partition.newest_at),
                }
                for partition in partitions
            ],
            "totals": six(found.counts),
            "options": wire.options_body(options)
            | {"namespace": found.namespace, "task": found.task},
        }
    )


async def depth(request: web.Request) -> web.Response:
    """What is to be read: by one group, or by the slowest named one of each partition."""
    transactions = request.app[STATE].transactions
    found = await find_queue(request)
    group = request.query.get("group") or None
    conflation = False
    if group is None:
        depths = await statistics.queue_depth(transactions, found.id)
    else:
        check_names(found.name, group, "consumer group")
        subscription = await statistics.find_subscription(transactions, found.id, group)
        conflation = subscription is not None and subscription.conflation
        depths = await statistics.group_depth(transactions, found.id, subscription)
    pending = sum(one.pending for one in depths)
    processing = sum(one.processing for one in depths)
    pending_count = sum(one.pending > 0 for one in depths)
    ready_count = sum(one.pending > one.processing for one in depths)
    return json_answer(
        {
            "queue": found.name,
            "group": group,
            "pending": pending,
            "processing": processing,
            "ready": pending - processing,
            "partitionsPending": pending_count,
            "partitionsReady": ready_count,
            "conflation": conflation,
            "effectivePending": pending_count if conflation else pending,
            "effectiveReady": ready_count if conflation else pending - processing,
            "partitions": [
                {
                    "partition": one.partition,
                    "pending": one.pending,
                    "processing": one.processing,
                    "ready": one.pending - one.processing,
                }
                for one in depths
            ],
        }
    )


async def partitions(request: web.Request) -> web.Response:
    """The partitions with the most messages that their slowest consumer has not committed."""
    state = request.app[STATE]
    queue_name = request.query.get("queue") or None
    check_text(queue_name or "", "queue")
    depth_min = query_int(request, "minDepth", 0, 0, 10**15)
    limit = query_int(request, "limit", _PARTITIONS_LIMIT, 1, _PARTITIONS_MAX)
    now = datetime.datetime.now(datetime.UTC)
    found = await state.looks.share(
        ("partitions", queue_name, depth_min, limit),
        lambda: statistics.deepest_partitions(state.transactions, queue_name, depth_min, limit),
    )
    return json_answer(
        {
            "partitions": [
                {
                    "id": str(one.id),
                    "name": one.name,
                    "queue": one.queue,
                    "namespace": one.namespace,
                    "task": one.task,
                    "queuePriority": one.priority,
                    "createdAt": wire_time(one.created_at),
                    "depth": one.depth,
                    "pending": one.depth,
                    "processing": one.processing,
                    "total": one.total,
                    "lagSeconds": (
                        None
                        if one.oldest_at is None
                        else max(0, int((now - one.oldest_at).total_seconds()))
                    ),
                }
                for one in found.value
            ]
        }
    )


async def namespaces(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await state.looks.share("namespaces", lambda: statistics.namespaces(state.transactions))
    return json_answer(
        {
            "namespaces": [
                {
                    "namespace": one.label,
                    "queues": one.queue_count,
                    "partitions": one.partition_count,
                    "messages": {"total": one.total, "pending": one.pending},
                }
                for one in found.value
            ]
        }
    )


async def tasks(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await state.looks.share("tasks", lambda: statistics.tasks(state.transactions))
    return json_answer(
        {
            "tasks": [
                {
                    "task": one.label,
                    "queues": one.queue_count,
                    "partitions": one.partition_count,
                    "messages": {"total": one.total, "pending": one.pending},
                }
                for one in found.value
            ]
        }
    )


async def overview(request: web.Request) -> web.Response:
    state = request.app[STATE]
    snapshot = await state.looks.overview.current()
    found = snapshot.value
    rates = state.throughput.everywhere()
    return json_answer(
        {
            "queues": len(found.queues),
            "partitions": found.partition_count,
            "namespaces": len(found.namespaces),
            "tasks": len(found.tasks),
            "messages": six(found.counts),
            "depth": found.depth,
            "lag": {
                "time": _spread(found.lag_seconds),
                "offset": _spread(found.lag_offsets),
            },
            # Over the last seconds, of all hosts.
            "throughput": {
                "ingestedPerSecond": round(rates.pushed, 2),
                "processedPerSecond": round(rates.acked, 2),
            },
            "timestamp": wire_time(datetime.datetime.now(datetime.UTC)),
            "statsAge": int(snapshot.age_s),
        }
    )


async def groups(request: web.Request) -> web.Response:
    """One element for each group and queue."""
    found = (await request.app[STATE].looks.groups.current()).value
    return json_answer(
        [
            {
                "name": one.group,
                "topics": [one.queue],
                "queueName": one.queue,
                "members": one.cursor_count,
                "partitionCursors": one.cursor_count,
                "partitionsWithLag": one.lagging_count,
                "totalLag": one.lag,
                "maxTimeLag": max(0, int(one.lag_s_max)),
                "state": _group_state(one.cursor_count, one.lag_s_max),
                "subscriptionMode": one.mode,
                "subscriptionTimestamp": wire_time(one.starts_at),
                "subscriptionCreatedAt": wire_time(one.created_at),
                "conflation": one.conflation,
            }
            for one in found
        ]
    )


async def group(request: web.Request) -> web.Response:
    name = request.match_info["group"]
    check_names("", name, "consumer group")
    answer: dict[str, Any] = {}
    for one in await statistics.group(request.app[STATE].transactions, name):
        queue_ = answer.setdefault(one.queue, {"partitions": [], "conflation": one.conflation})
        if one.partition is not None:
            queue_["partitions"].append(
                {
                    "partition": one.partition,
                    "workerId": None,
                    "lastConsumedAt": time_or_null(one.consumed_at),
                    "totalConsumed": one.committed_offset,
                    "offsetLag": one.lag,
                    "timeLagSeconds": max(0, int(one.lag_s)),
                    "leaseActive": one.leased,
                }
            )
    return json_answer(answer)


async def lagging(request: web.Request) -> web.Response:
    state, query = request.app[STATE], request.query
    lag_s_min = query_int(request, "minLagSeconds", _LAG_S_MIN, 0, 10**9)
    for name in ("consumerGroup", "queue"):
        check_text(query.get(name, ""), name)
    group_name, queue_name = query.get("consumerGroup") or None, query.get("queue") or None
    found = await state.looks.share(
        ("lagging", lag_s_min, group_name, queue_name),
        lambda: statistics.lagging(state.transactions, lag_s_min, group_name, queue_name),
    )
    return json_answer(
        [
            {
                "consumer_group": one.group,
                "queue_name": one.queue,
                "partition_name": one.partition,
                "partition_id": str(one.partition_id),
                "worker_id": None,
                "offset_lag": one.lag,
                "time_lag_seconds": int(one.lag_s),
                "lag_hours": round(one.lag_s / 3600, 2),
                "oldest_unconsumed_at": wire_time(one.oldest_at),
                "last_consumed_at": time_or_null(one.consumed_at),
            }
            for one in found.value
        ]
    )


def time_or_null(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else wire_time(moment)


def _spread(spread: Spread) -> dict[str, float]:
    return {
        "avg": round(spread.avg, 3),
        "median": round(spread.median, 3),
        "min": round(spread.min, 3),
        "max": round(spread.max, 3),
    }


def _group_state(cursor_count: int, lag_s_max: float) -> str:
    if cursor_count == 0:
        return "Dead"
    return "Lagging" if lag_s_max > _LAGGING_S else "Stable"
