"""How it goes: status, analytics, statistics (wire-api 5.2, 5.3, 5.8, 5.9).

Figures of processes are those of this host. No history of them is kept: a chart is drawn from what
the metrics route tells over time, so the series here are empty.
"""

from __future__ import annotations

import datetime
import socket
import time
from typing import Any

from aiohttp import web

from queue_server.domain.errors import BadRequest
from queue_server.domain.options import RETRY_DELAY_ECHO_MS, TTL_ECHO_S
from queue_server.domain.segment import wire_time
from queue_server.http.answers import json_answer, page_of
from queue_server.http.handlers.resources import (
    find_queue,
    queue_entry,
    queue_filter,
    six,
    time_or_null,
)
from queue_server.http.request import query_time
from queue_server.http.state import STATE, State
from queue_server.observability.counters import Counter, Counters
from queue_server.observability.counters import State as Life
from queue_server.storage import statistics
from queue_server.storage.statistics import NOTHING, QueueFilter
from queue_server.storage.stored_messages import MessageFilter

_HOUR = datetime.timedelta(hours=1)
_DAY = datetime.timedelta(days=1)
# Before all messages.
_FIRST_TIME = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MESSAGES_LIMIT = 50
# The length of a bucket, in minutes, for ranges up to so many hours.
_BUCKETS = ((1, 1), (6, 5), (24, 15), (168, 60))
_BUCKET_MAX = 360
_INTERVALS = {"minute": 60, "hour": 3600, "day": 86_400}
# A chart has no room for more.
_POINTS_MAX = 10_000


def _range(
    request: web.Request, default: datetime.timedelta
) -> tuple[datetime.datetime, datetime.datetime]:
    end = query_time(request, "to") or datetime.datetime.now(datetime.UTC)
    start = query_time(request, "from")
    if start is None:
        # A time that is the first of all has none before it.
        start = max(end, datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)) - default
    return start, end


def _frame(request: web.Request) -> dict[str, Any]:
    """What all series have in common."""
    start, end = _range(request, _HOUR)
    hours = (end - start).total_seconds() / 3600
    bucket_minutes = next((minutes for most, minutes in _BUCKETS if hours <= most), _BUCKET_MAX)
    return {
        "timeRange": {"from": wire_time(start), "to": wire_time(end)},
        "bucketMinutes": bucket_minutes,
        "pointCount": 0,
    }


async def status(request: web.Request) -> web.Response:
    state = request.app[STATE]
    filter_ = queue_filter(request)
    queues = await statistics.all_queues(state.transactions, filter_)
    filtered = filter_ != QueueFilter()
    queue_ids = [queue.id for queue in queues] if filtered else None
    leases = await statistics.leases(state.transactions, queue_ids)
    letters = await statistics.dead_letters(state.transactions, queue_ids)
    counters = state.counters
    requests = {
        "push": counters.total(Counter.PUSH_REQUESTS),
        "pop": counters.total(Counter.POP_REQUESTS),
        "ack": counters.total(Counter.ACK_REQUESTS),
    }
    messages = {
        "push": counters.total(Counter.MESSAGES_PUSHED),
        "pop": counters.total(Counter.MESSAGES_POPPED),
        "ack": counters.total(Counter.MESSAGES_ACKED),
    }
    return json_answer(
        _frame(request)
        | {
            "throughput": [],
            "queues": [
                {
                    "id": queue.id,
                    "name": queue.name,
                    "namespace": queue.namespace,
                    "task": queue.task,
                    "partitions": queue.partition_count,
                    "totalConsumed": queue.consumed,
                }
                for queue in queues
            ],
            "messages": six(sum((queue.counts for queue in queues), NOTHING))
            | {
                "requests": requests,
                "batchEfficiency": {
                    verb: round(messages[verb] / max(count, 1), 2)
                    for verb, count in requests.items()
                },
            },
            "leases": {
                "active": leases.lease_count,
                "partitionsWithLeases": leases.partition_count,
                "totalBatchSize": leases.message_count,
                "totalAcked": 0,
            },
            "deadLetterQueue": {
                "totalMessages": letters.total,
                "affectedPartitions": letters.partition_count,
                "topErrors": [
                    {"error": text, "count": count} for text, count in letters.top_errors
                ],
            },
            "workers": _workers(state),
            "errors": {
                "dbErrors": sum(counters.retries().values()),
                "ackFailed": counters.total(Counter.MESSAGES_FAILED),
                "dlqMessages": letters.total,
            },
            "statsAge": 0,
        }
    )


async def queues(request: web.Request) -> web.Response:
    limit, offset = page_of(request, 100)
    found = await statistics.queues(
        request.app[STATE].transactions, queue_filter(request), limit, offset
    )
    return json_answer(
        {
            "queues": [queue_entry(queue) for queue in found],
            "pagination": {"limit": limit, "offset": offset},
        }
    )


async def queue(request: web.Request) -> web.Response:
    transactions = request.app[STATE].transactions
    found = await find_queue(request)
    partitions = await statistics.partitions(transactions, found.id)
    options = await statistics.options(transactions, found.id)
    totals = six(found.counts)
    return json_answer(
        {
            "queue": {
                "id": found.id,
                "name": found.name,
                "namespace": found.namespace,
                "task": found.task,
                "priority": found.priority,
                "createdAt": wire_time(found.created_at),
                "config": {
                    "leaseTime": options.lease_time,
                    "retryLimit": options.retry_limit,
                    "retryDelay": (
                        RETRY_DELAY_ECHO_MS if options.retry_delay is None else options.retry_delay
                    ),
                    "ttl": TTL_ECHO_S if options.ttl is None else options.ttl,
                    "maxQueueSize": options.max_size,
                    "deadLetterQueue": options.dead_letter_queue,
                },
            },
            "partitions": [
                {
                    "id": str(one.id),
                    "name": one.name,
                    "createdAt": wire_time(one.created_at),
                    "messages": six(one.counts),
                    "stats": six(one.counts),
                    # Batches are not counted.
                    "cursor": {"totalConsumed": one.consumed, "batchesConsumed": 0},
                    "lastActivity": time_or_null(
                        max(
                            (t for t in (one.last_push_at, one.consumed_at) if t is not None),
                            default=None,
                        )
                    ),
                    "oldestMessage": time_or_null(one.oldest_at),
                    "newestMessage": time_or_null(one.newest_at),
                }
                for one in partitions
            ],
            "totals": {"messages": totals, **totals},
        }
    )


async def queue_messages(request: web.Request) -> web.Response:
    """The messages of a queue, newest first, as a bare array."""
    found = await find_queue(request)
    limit, offset = page_of(request, _MESSAGES_LIMIT)
    listed = await request.app[STATE].administration.stored_messages.page(
        MessageFilter(start=_FIRST_TIME, queue=found.name), limit, offset
    )
    return json_answer(
        [
            {
                "id": one.message.id,
                "transactionId": one.message.transaction_id,
                "partitionId": str(one.message.partition.id),
                "queuePath": f"{found.name}/{one.message.partition.partition}",
                "queue": found.name,
                "partition": one.message.partition.partition,
                "status": one.status.value,
                "createdAt": wire_time(one.message.created_at),
            }
            for one in listed
        ]
    )


async def analytics(request: web.Request) -> web.Response:
    """Messages pushed over time, as far as they are still stored."""
    start, end = _range(request, _DAY)
    interval = request.query.get("interval", "hour")
    if interval not in _INTERVALS:
        interval = "hour"
    if (end - start).total_seconds() / _INTERVALS[interval] > _POINTS_MAX:
        raise BadRequest(f"more than {_POINTS_MAX} intervals of a {interval}: ask for a larger one")
    points = await statistics.pushes(
        request.app[STATE].transactions, queue_filter(request), start, end, _INTERVALS[interval]
    )
    return json_answer(
        {
            "dataPoints": [
                {"timestamp": wire_time(bucket), "messages": count} for bucket, count in points
            ],
            "interval": interval,
            "from": wire_time(start),
            "to": wire_time(end),
        }
    )


async def refresh(request: web.Request) -> web.Response:
    """Nothing is cached, so there is nothing to be recomputed."""
    return json_answer({"success": True, "refreshed": False})


async def system_metrics(request: web.Request) -> web.Response:
    return json_answer(_frame(request) | {"replicas": [], "replicaCount": 0})


async def worker_metrics(request: web.Request) -> web.Response:
    state = request.app[STATE]
    counters = state.counters
    found = await statistics.all_queues(state.transactions)
    counts = sum((queue.counts for queue in found), NOTHING)
    return json_answer(
        _frame(request)
        | {
            "timeSeries": [],
            "workers": _workers(state),
            "queues": [],
            "summary": {
                "totalPushMessages": counters.total(Counter.MESSAGES_PUSHED),
                "totalPopMessages": counters.total(Counter.MESSAGES_POPPED),
                "totalAckMessages": counters.total(Counter.MESSAGES_ACKED),
                "totalPushRequests": counters.total(Counter.PUSH_REQUESTS),
                "totalPopRequests": counters.total(Counter.POP_REQUESTS),
                "totalAckRequests": counters.total(Counter.ACK_REQUESTS),
                "totalDbErrors": sum(counters.retries().values()),
                "totalAckFailed": counters.total(Counter.MESSAGES_FAILED),
                "totalDlq": counters.total(Counter.MESSAGES_DEAD_LETTERED),
                "pendingMessages": counts.pending,
            },
        }
    )


async def postgres(request: web.Request) -> web.Response:
    """PostgreSQL's own figures."""
    found = await statistics.postgres(request.app[STATE].transactions)
    database = found.database
    table_hits = sum(table.heap_hits for table in found.tables)
    table_reads = sum(table.heap_reads for table in found.tables)
    index_hits = sum(table.index_hits for table in found.tables)
    index_reads = sum(table.index_reads for table in found.tables)
    cache = {
        "database": _cache(database.hits, database.reads),
        "table": _cache(table_hits, table_reads),
        "index": _cache(index_hits, index_reads),
    }
    return json_answer(
        {
            "timestamp": wire_time(datetime.datetime.now(datetime.UTC)),
            "database": {
                "name": database.name,
                "sizeBytes": database.size_bytes,
                "connections": database.connections,
                "commits": database.commits,
                "rollbacks": database.rollbacks,
            },
            "databaseCache": cache["database"],
            "tableCache": [
                {"table": table.name, **_cache(table.heap_hits, table.heap_reads)}
                for table in found.tables
            ],
            "indexCache": [
                {"table": table.name, **_cache(table.index_hits, table.index_reads)}
                for table in found.tables
            ],
            "cacheSummary": cache,
            "deadTuples": [
                {"table": table.name, "live": table.live_rows, "dead": table.dead_rows}
                for table in found.tables
            ],
            "hotUpdates": [
                {"table": table.name, "updates": table.updates, "hot": table.hot_updates}
                for table in found.tables
            ],
            "activeQueries": [
                {
                    "pid": one.pid,
                    "state": one.state,
                    "startedAt": time_or_null(one.started_at),
                    "query": one.query,
                    "waitEvent": one.wait_event,
                }
                for one in found.active
            ],
            "autovacuumStatus": [
                {
                    "table": table.name,
                    "lastAutovacuum": time_or_null(table.autovacuumed_at),
                    "count": table.autovacuum_count,
                }
                for table in found.tables
            ],
            "bufferConfig": found.settings,
            "bufferUsage": [],
            "tableSizes": [
                {
                    "table": table.name,
                    "totalBytes": table.total_bytes,
                    "tableBytes": table.heap_bytes,
                }
                for table in found.tables
            ],
        }
    )


async def maintenance(_request: web.Request) -> web.Response:
    """There is no maintenance mode; dashboards of older servers ask for it."""
    return json_answer(
        {
            "maintenanceMode": False,
            "popMaintenanceMode": False,
            "bufferedMessages": 0,
            "bufferHealthy": True,
            "bufferStats": {"pendingCount": 0, "failedCount": 0, "dbHealthy": True},
        }
    )


async def buffers(_request: web.Request) -> web.Response:
    """Nothing is buffered outside the database; dashboards of older servers ask for it."""
    return json_answer({"pending": 0, "failed": 0, "dbHealthy": True, "worker": 0})


async def pop_maintenance(_request: web.Request) -> web.Response:
    return json_answer({"popMaintenanceMode": False})


def _cache(hits: int, reads: int) -> dict[str, float]:
    return {
        "hits": hits,
        "reads": reads,
        "hitRatio": round(hits / (hits + reads), 4) if hits + reads else 0,
    }


def _workers(state: State) -> list[dict[str, Any]]:
    """The workers of this host; what they do not measure is 0."""
    counters: Counters = state.counters
    host = socket.gethostname()
    pool = state.transactions.pool_stats()
    workers = []
    for slot in range(counters.worker_count):
        row = counters.worker(slot)
        if not row.is_ready():
            continue
        seen = time.time() - row.silent_seconds()
        workers.append(
            {
                "hostname": host,
                "workerId": slot,
                "pid": row.get(Life.PID),
                "avgEventLoopLagMs": 0,
                "maxEventLoopLagMs": 0,
                "freeSlots": 0,
                # The pools of a server's workers have one size.
                "dbConnections": pool.get("pool_size", 0),
                "jobQueueSize": 0,
                "messagesProcessed": row.get(Counter.MESSAGES_PUSHED)
                + row.get(Counter.MESSAGES_POPPED),
                "lastSeen": wire_time(datetime.datetime.fromtimestamp(seen, datetime.UTC)),
            }
        )
    return workers
