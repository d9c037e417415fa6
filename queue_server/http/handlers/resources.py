"""What there is: queues, partitions, labels, depth (wire-api 5.1), and the groups (5.7)."""

from __future__ import annotations

import datetime
from typing import Any

from aiohttp import web

from queue_server.domain.errors import NotFound
from queue_server.domain.names import QueueName, check_names, check_text
from queue_server.domain.segment import wire_time
from queue_server.http import wire
from queue_server.http.answers import (
    PARTITIONS_LIMIT_MAX,
    json_answer,
    page_of,
    page_of_partitions,
    shared_answer,
)
from queue_server.http.request import query_int
from queue_server.http.state import STATE
from queue_server.storage import groups as stored_groups
from queue_server.storage import statistics
from queue_server.storage.statistics import (
    Counts,
    GroupStatistics,
    PartitionPage,
    QueueFilter,
    QueueStatistics,
    Spread,
)

_QUEUES_LIMIT = 1000
_GROUPS_LIMIT = 10_000
_PARTITIONS_LIMIT = 610
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


def queue_entry(queue: QueueStatistics, slowest: GroupStatistics | None) -> dict[str, Any]:
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
        "scheduled": queue.scheduled,
        "slowestGroup": None if slowest is None else slowest_group(slowest),
    }


def slowest_group(group: GroupStatistics) -> dict[str, Any]:
    return {
        "queue": group.queue,
        "group": group.group,
        "lag": group.lag,
        "scheduled": group.scheduled,
        "lagSeconds": int(group.lag_s_max),
        "activity": group.state,
        "lastActiveAt": wire_time(group.seen_at),
    }


async def slowest_groups(request: web.Request) -> dict[str, GroupStatistics]:
    """Of each queue the group that is furthest behind, of those that count."""
    return statistics.slowest((await request.app[STATE].looks.groups.current()).value)


async def queue_in_path(request: web.Request) -> tuple[QueueName, str]:
    """The name and the id of the queue in the path. Errors: `NotFound`."""
    name = QueueName(request.match_info["queue"])
    check_names(name, "", "partition")
    queue_id = await stored_groups.find_queue(request.app[STATE].reads, name)
    if queue_id is None:
        raise NotFound("Queue not found")
    return name, queue_id


async def read_queue(request: web.Request, name: QueueName) -> QueueStatistics:
    """What lies in a queue. Errors: `NotFound` when it was deleted meanwhile."""
    found = await statistics.queues(
        request.app[STATE].reads, QueueFilter(queue=name), limit=1, offset=0
    )
    if not found:
        raise NotFound("Queue not found")
    return found[0]


async def page_of_queues(request: web.Request, limit: int, offset: int) -> list[QueueStatistics]:
    """The queues that the request asks for, newest first."""
    return await statistics.queues(request.app[STATE].reads, queue_filter(request), limit, offset)


async def queues(request: web.Request) -> web.Response:
    limit, offset = page_of(request, _QUEUES_LIMIT)

    async def read() -> dict[str, Any]:
        found = await page_of_queues(request, limit, offset)
        slowest = await slowest_groups(request)
        return {"queues": [queue_entry(queue, slowest.get(queue.name)) for queue in found]}

    return await shared_answer(request, ("queues", queue_filter(request), limit, offset), read)


async def queue(request: web.Request) -> web.Response:
    """A queue with a page of its partitions; `totals` are those of all of them."""
    reads = request.app[STATE].reads
    name, queue_id = await queue_in_path(request)
    limit, offset = page_of_partitions(request)

    async def read() -> dict[str, Any]:
        found = await read_queue(request, name)
        partitions = await statistics.partitions(reads, PartitionPage(found.id, offset, limit))
        options = await statistics.options(reads, found.id)
        return {
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
                    "scheduled": partition.scheduled,
                    "oldestMessage": time_or_null(partition.oldest_at),
                    "newestMessage": time_or_null(partition.newest_at),
                }
                for partition in partitions
            ],
            "totals": six(found.counts),
            "scheduled": found.scheduled,
            "options": wire.options_body(options)
            | {"namespace": found.namespace, "task": found.task},
            "partitionCount": found.partition_count,
            "truncated": offset + len(partitions) < found.partition_count,
        }

    return await shared_answer(request, ("queue with partitions", queue_id, limit, offset), read)


async def depth(request: web.Request) -> web.Response:
    """What is to be read: by one group, or by the slowest named one of each partition.

    The sums are those of all partitions, of which a page is listed, or the one that is asked for.
    """
    reads = request.app[STATE].reads
    name, queue_id = await queue_in_path(request)
    limit, offset = page_of_partitions(request)
    page = PartitionPage(queue_id, offset, limit)
    group = request.query.get("group") or None
    partition = request.query.get("partition") or None
    check_names(name, group or "", "consumer group")
    check_names(name, partition or "", "partition")

    async def read() -> dict[str, Any]:
        conflation = False
        if group is None:
            depths = await statistics.queue_depth(reads, page, partition)
        else:
            subscription = await statistics.find_subscription(reads, queue_id, group)
            conflation = subscription is not None and subscription.conflation
            depths = await statistics.group_depth(reads, page, subscription, partition)
        pending, ready = depths.pending, depths.pending - depths.processing
        return {
            "queue": name,
            "group": group,
            "pending": pending,
            "processing": depths.processing,
            "ready": ready,
            "due": ready - depths.scheduled,
            "scheduled": depths.scheduled,
            "partitionsPending": depths.pending_count,
            "partitionsReady": depths.ready_count,
            "conflation": conflation,
            "effectivePending": depths.pending_count if conflation else pending,
            "effectiveReady": depths.ready_count if conflation else ready,
            "partitions": [
                {
                    "partition": one.partition,
                    "pending": one.pending,
                    "processing": one.processing,
                    "ready": one.pending - one.processing,
                    "due": one.pending - one.processing - one.scheduled,
                    "scheduled": one.scheduled,
                }
                for one in depths.page
            ],
            "partitionCount": depths.partition_count,
            "truncated": partition is None and offset + len(depths.page) < depths.partition_count,
        }

    return await shared_answer(request, ("depth", page, group, partition), read)


async def partitions(request: web.Request) -> web.Response:
    """The partitions with the most messages that their slowest consumer has not committed."""
    state = request.app[STATE]
    queue_name = request.query.get("queue") or None
    check_text(queue_name or "", "queue")
    depth_min = query_int(request, "minDepth", 0, 0, 10**15)
    limit = query_int(request, "limit", _PARTITIONS_LIMIT, 1, PARTITIONS_LIMIT_MAX)

    async def read() -> dict[str, Any]:
        found = await statistics.deepest_partitions(state.reads, queue_name, depth_min, limit)
        return {
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
                    "scheduled": one.scheduled,
                    "total": one.total,
                    "lagSeconds": None if one.due_s is None else int(one.due_s),
                }
                for one in found
            ]
        }

    return await shared_answer(request, ("partitions", queue_name, depth_min, limit), read)


async def namespaces(request: web.Request) -> web.Response:
    state = request.app[STATE]

    async def read() -> dict[str, Any]:
        return {
            "namespaces": [
                {
                    "namespace": one.label,
                    "queues": one.queue_count,
                    "partitions": one.partition_count,
                    "messages": {"total": one.total, "pending": one.pending},
                }
                for one in await statistics.namespaces(state.reads)
            ]
        }

    return await shared_answer(request, "namespaces", read)


async def tasks(request: web.Request) -> web.Response:
    state = request.app[STATE]

    async def read() -> dict[str, Any]:
        return {
            "tasks": [
                {
                    "task": one.label,
                    "queues": one.queue_count,
                    "partitions": one.partition_count,
                    "messages": {"total": one.total, "pending": one.pending},
                }
                for one in await statistics.tasks(state.reads)
            ]
        }

    return await shared_answer(request, "tasks", read)


async def overview(request: web.Request) -> web.Response:
    state = request.app[STATE]
    snapshot = await state.looks.overview.current()
    found = snapshot.value
    slowest = max(
        (await slowest_groups(request)).values(),
        key=lambda one: one.behind,
        default=None,
    )
    rates = state.throughput.everywhere()
    return json_answer(
        {
            "queues": len(found.queues),
            "partitions": found.partition_count,
            "namespaces": len(found.namespaces),
            "tasks": len(found.tasks),
            "messages": six(found.counts),
            "depth": found.depth,
            "scheduled": found.scheduled,
            "lag": {
                "time": _spread(found.lag_seconds),
                "offset": _spread(found.lag_offsets),
            },
            "slowestGroup": None if slowest is None else slowest_group(slowest),
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
    """One element for each group and queue; a page of them, which is all unless there are many."""
    limit, offset = page_of(request, _GROUPS_LIMIT, _GROUPS_LIMIT)

    async def read() -> list[dict[str, Any]]:
        found = (await request.app[STATE].looks.groups.current()).value
        return [
            {
                "name": one.group,
                "topics": [one.queue],
                "queueName": one.queue,
                "members": one.cursor_count,
                "partitionCursors": one.cursor_count,
                "partitionsWithLag": one.lagging_count,
                "totalLag": one.lag,
                "scheduled": one.scheduled,
                "maxTimeLag": max(0, int(one.lag_s_max)),
                "state": _group_state(one.cursor_count, one.lag_s_max),
                "activity": one.state,
                "counted": one.counted,
                "lastActiveAt": wire_time(one.seen_at),
                "lastAckAt": time_or_null(one.acked_at),
                "subscriptionMode": one.mode,
                "subscriptionTimestamp": wire_time(one.starts_at),
                "subscriptionCreatedAt": wire_time(one.created_at),
                "conflation": one.conflation,
            }
            for one in found[offset : offset + limit]
        ]

    return await shared_answer(request, ("groups", limit, offset), read)


async def group(request: web.Request) -> web.Response:
    """Where a group stands: on each of its queues a page of the partitions."""
    name = request.match_info["group"]
    check_names("", name, "consumer group")
    limit, offset = page_of_partitions(request)
    return await shared_answer(
        request,
        ("group", name, limit, offset),
        lambda: _read_group(request, name, limit, offset),
    )


async def _read_group(request: web.Request, name: str, limit: int, offset: int) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for one in await statistics.group(request.app[STATE].reads, name, limit, offset):
        queue_ = answer.setdefault(
            one.queue,
            {
                "partitions": [],
                "conflation": one.conflation,
                "partitionCount": one.place_count,
                "truncated": False,
            },
        )
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
    for queue_ in answer.values():
        queue_["truncated"] = offset + len(queue_["partitions"]) < queue_["partitionCount"]
    return answer


async def lagging(request: web.Request) -> web.Response:
    state, query = request.app[STATE], request.query
    lag_s_min = query_int(request, "minLagSeconds", _LAG_S_MIN, 0, 10**9)
    for name in ("consumerGroup", "queue"):
        check_text(query.get(name, ""), name)
    group_name, queue_name = query.get("consumerGroup") or None, query.get("queue") or None

    async def read() -> list[dict[str, Any]]:
        found = await statistics.lagging(state.reads, lag_s_min, group_name, queue_name)
        return [
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
            for one in found
        ]

    return await shared_answer(request, ("lagging", lag_s_min, group_name, queue_name), read)


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
