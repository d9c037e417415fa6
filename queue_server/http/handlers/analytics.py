"""What lies in the queues, in the form the first server's dashboard reads it: wire-api 5.3."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from queue_server.domain.errors import BadRequest
from queue_server.http.answers import json_answer, page_of
from queue_server.http.handlers.resources import find_queue, queue_filter, six
from queue_server.http.state import STATE
from queue_server.storage import statistics
from queue_server.storage.statistics import PartitionStatistics, QueueFilter, QueueStatistics

_PARTITIONS_LIMIT = 1000


async def queues(request: web.Request) -> web.Response:
    found = await _partitions(request, queue_filter(request))
    return json_answer({"queues": [_entry(queue, partitions) for queue, partitions in found]})


async def labelled(request: web.Request) -> web.Response:
    """The queues with a namespace, a task or both."""
    filter_ = queue_filter(request)
    if filter_.namespace is None and filter_.task is None:
        raise BadRequest("namespace or task is required")
    found = await _partitions(request, filter_)
    return json_answer({"queues": [_entry(queue, partitions) for queue, partitions in found]})


async def queue(request: web.Request) -> web.Response:
    found = await find_queue(request)
    partitions = await statistics.partitions(request.app[STATE].transactions, found.id)
    return json_answer(_entry(found, partitions))


async def partition_stats(request: web.Request) -> web.Response:
    """A page of all partitions, by queue and name."""
    limit, offset = page_of(request, _PARTITIONS_LIMIT)
    found = await _partitions(request, queue_filter(request))
    rows = [
        {
            "queue": queue.name,
            "namespace": queue.namespace,
            "task": queue.task,
            "partition": one.name,
            "partitionId": str(one.id),
            **six(one.counts),
        }
        for queue, partitions in sorted(found, key=lambda pair: pair[0].name)
        for one in partitions
    ]
    return json_answer(rows[offset : offset + limit])


async def depths(request: web.Request) -> web.Response:
    """What is still to be read."""
    found = await _partitions(request, queue_filter(request))
    return json_answer(
        {
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
                }
                for queue, partitions in found
            ]
        }
    )


async def _partitions(
    request: web.Request, filter_: QueueFilter
) -> list[tuple[QueueStatistics, list[PartitionStatistics]]]:
    transactions = request.app[STATE].transactions
    found = await statistics.all_queues(transactions, filter_)
    partitions = await statistics.partitions_of(transactions, [queue.id for queue in found])
    return [(queue, partitions[queue.id]) for queue in found]


def _entry(queue: QueueStatistics, partitions: list[PartitionStatistics]) -> dict[str, Any]:
    return {
        "queue": queue.name,
        "namespace": queue.namespace,
        "task": queue.task,
        "partitions": [{"name": one.name, "stats": six(one.counts)} for one in partitions],
        "totals": six(queue.counts),
    }
