"""What lies in the queues, in the form the first server's dashboard reads it: wire-api 5.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from queue_server.domain.errors import BadRequest
from queue_server.http.answers import page_of, page_of_partitions, shared_answer
from queue_server.http.handlers.resources import queue_filter, queue_in_path, read_queue, six
from queue_server.http.state import STATE, State
from queue_server.storage import statistics
from queue_server.storage.statistics import (
    PartitionPage,
    PartitionStatistics,
    QueueFilter,
    QueueStatistics,
)

_QUEUES_LIMIT = 1000
_PARTITIONS_LIMIT = 1000
# Partitions that an answer about several queues lists; `totals` and `depth` are those of all.
_PARTITIONS_MAX = 5000


async def queues(request: web.Request) -> web.Response:
    return await _queues(request, queue_filter(request))


async def labelled(request: web.Request) -> web.Response:
    """The queues with a namespace, a task or both."""
    filter_ = queue_filter(request)
    if filter_.namespace is None and filter_.task is None:
        raise BadRequest("namespace or task is required")
    return await _queues(request, filter_)


async def _queues(request: web.Request, filter_: QueueFilter) -> web.Response:
    """A page of queues; of their partitions those of the first ones."""
    limit, offset = page_of(request, _QUEUES_LIMIT)

    async def read() -> dict[str, Any]:
        found, is_truncated = await _with_partitions(request.app[STATE], filter_, limit, offset)
        return {
            "queues": [_entry(queue, partitions) for queue, partitions in found],
            "truncated": is_truncated,
        }

    return await shared_answer(request, ("analytics", filter_, limit, offset), read)


async def queue(request: web.Request) -> web.Response:
    """A queue with a page of its partitions."""
    name, queue_id = await queue_in_path(request)
    limit, offset = page_of_partitions(request)

    async def read() -> dict[str, Any]:
        found = await read_queue(request, name)
        partitions = await statistics.partitions(
            request.app[STATE].reads, PartitionPage(found.id, offset, limit)
        )
        return _entry(found, partitions) | {
            "truncated": offset + len(partitions) < found.partition_count
        }

    return await shared_answer(request, ("analytics of a queue", queue_id, limit, offset), read)


async def partition_stats(request: web.Request) -> web.Response:
    """A page of all partitions, by queue and name."""
    filter_ = queue_filter(request)
    limit, offset = page_of(request, _PARTITIONS_LIMIT)

    async def read() -> list[dict[str, Any]]:
        state = request.app[STATE]
        queues = sorted(await _all_queues(state, filter_), key=lambda queue: queue.name)
        pages = _pages(queues, offset, limit)
        partitions = await statistics.partitions_of(state.reads, pages)
        return [
            {
                "queue": queue.name,
                "namespace": queue.namespace,
                "task": queue.task,
                "partition": one.name,
                "partitionId": str(one.id),
                **six(one.counts),
            }
            for queue in queues
            for one in partitions.get(queue.id, ())
        ]

    return await shared_answer(request, ("partition stats", filter_, limit, offset), read)


async def depths(request: web.Request) -> web.Response:
    """What is still to be read: a page of queues; of their partitions those of the first ones."""
    filter_ = queue_filter(request)
    limit, offset = page_of(request, _QUEUES_LIMIT)

    async def read() -> dict[str, Any]:
        found, is_truncated = await _with_partitions(request.app[STATE], filter_, limit, offset)
        return {
            "depths": [
                {
                    "queue": queue.name,
                    "depth": queue.counts.pending,
                    "processing": queue.counts.processing,
                    "partitions": [
                        {
                            "name": one.name,
                            "depth": one.counts.pending,
                            "processing": one.counts.processing,
                        }
                        for one in partitions
                    ],
                    "partitionCount": queue.partition_count,
                }
                for queue, partitions in found
            ],
            "truncated": is_truncated,
        }

    return await shared_answer(request, ("depths", filter_, limit, offset), read)


async def _all_queues(state: State, filter_: QueueFilter) -> list[QueueStatistics]:
    """The queues that the filter lets through, newest first; read once for all who ask now."""
    if filter_ == QueueFilter():
        return (await state.looks.overview.current()).value.queues
    found = await state.looks.share(
        ("all queues", filter_), lambda: statistics.all_queues(state.reads, filter_)
    )
    return found.value


async def _with_partitions(
    state: State, filter_: QueueFilter, limit: int, offset: int
) -> tuple[list[tuple[QueueStatistics, list[PartitionStatistics]]], bool]:
    """A page of queues with their partitions, and whether there are more of either."""
    all_ = await _all_queues(state, filter_)
    queues = all_[offset : offset + limit]
    pages = _pages(queues, 0, _PARTITIONS_MAX)
    partitions = await statistics.partitions_of(state.reads, pages)
    found = [(queue, partitions.get(queue.id, [])) for queue in queues]
    is_truncated = offset + len(queues) < len(all_) or any(
        len(shown) < queue.partition_count for queue, shown in found
    )
    return found, is_truncated


def _pages(queues: Sequence[QueueStatistics], offset: int, limit: int) -> list[PartitionPage]:
    """Cut *limit* partitions behind the first *offset* out of those of all *queues*."""
    pages = []
    for queue in queues:
        if offset < queue.partition_count and limit > 0:
            count = min(queue.partition_count - offset, limit)
            pages.append(PartitionPage(queue.id, offset, count))
            limit -= count
        offset = max(offset - queue.partition_count, 0)
    return pages


def _entry(queue: QueueStatistics, partitions: list[PartitionStatistics]) -> dict[str, Any]:
    return {
        "queue": queue.name,
        "namespace": queue.namespace,
        "task": queue.task,
        "partitions": [{"name": one.name, "stats": six(one.counts)} for one in partitions],
        "partitionCount": queue.partition_count,
        "totals": six(queue.counts),
    }
