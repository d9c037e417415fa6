"""How it goes: status, statistics, maintenance (wire-api 5.2, 5.3, 5.8, 5.9)."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from aiohttp import web

from queue_server.domain.options import RETRY_DELAY_ECHO_MS, TTL_ECHO_S
from queue_server.domain.segment import wire_time
from queue_server.http.administration_wire import switch_reader
from queue_server.http.answers import (
    json_answer,
    page_of,
    page_of_partitions,
    shared_answer,
)
from queue_server.http.handlers.resources import (
    page_of_queues,
    queue_entry,
    queue_filter,
    queue_in_path,
    read_queue,
    six,
    slowest_groups,
    time_or_null,
)
from queue_server.http.handlers.series import (
    frame,
    points_of,
    sum_counts,
    throughput_entry,
    time_range,
    worker_entries,
)
from queue_server.http.request import read_body
from queue_server.http.state import STATE
from queue_server.observability.counters import Life
from queue_server.storage import statistics
from queue_server.storage.dashboard import ErrorRow
from queue_server.storage.statistics import NOTHING, PartitionPage, QueueFilter
from queue_server.storage.stored_messages import MessageFilter
from queue_server.storage.transactions import Transactions

# Before all messages.
_FIRST_TIME = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MESSAGES_LIMIT = 50
# Of what keeps dead rows from being removed, the oldest.
_HOLDERS_MAX = 50
_TOP_ERRORS = 10
# Queues that the status lists, the newest; the sums are those of all.
_QUEUES_MAX = 1000


async def status(request: web.Request) -> web.Response:
    """Requests, errors and throughput are those of the time asked for, the rest is as of now."""
    state = request.app[STATE]
    filter_ = queue_filter(request)
    range_ = time_range(request)
    if filter_ == QueueFilter():
        snapshot = await state.looks.overview.current()
        queues, age_s, queue_ids = snapshot.value.queues, snapshot.age_s, None
    else:
        found = await state.looks.share(
            ("all queues", filter_), lambda: statistics.all_queues(state.reads, filter_)
        )
        queues, age_s = found.value, found.age_s
        queue_ids = [queue.id for queue in queues]
    leases = (
        await state.looks.share(
            ("leases", filter_), lambda: statistics.leases(state.reads, queue_ids)
        )
    ).value
    letters = (
        await state.looks.share(
            ("dead letters", filter_), lambda: statistics.dead_letters(state.reads, queue_ids)
        )
    ).value
    errors = await state.looks.errors.current()
    age_s = max(age_s, errors.age_s)
    keys = state.key_check.state
    points = await points_of(state, range_, filter_)
    sums = sum_counts(points)
    requests = {
        "push": sums.push_requests,
        "pop": sums.pop_requests,
        "ack": sums.ack_requests,
    }
    messages = {
        "push": sums.push_messages,
        "pop": sums.pop_messages,
        "ack": sums.ack_messages,
    }
    return json_answer(
        frame(range_, len(points))
        | {
            "throughput": [throughput_entry(point) for point in reversed(points)],
            "queues": [
                {
                    "id": queue.id,
                    "name": queue.name,
                    "namespace": queue.namespace,
                    "task": queue.task,
                    "partitions": queue.partition_count,
                    "totalConsumed": queue.consumed,
                }
                for queue in queues[:_QUEUES_MAX]
            ],
            "queuesTruncated": len(queues) > _QUEUES_MAX,
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
                # A batch ends where the acknowledged messages end: what is leased is not acked.
                "totalAcked": 0,
            },
            "deadLetterQueue": {
                "totalMessages": letters.total,
                "affectedPartitions": letters.partition_count,
                "topErrors": [
                    {"error": text, "count": count}
                    for text, count in _top_errors(errors.value, {queue.name for queue in queues})
                ],
            },
            "encryption": {
                "hasKey": keys.can_seal,
                "encryptedQueues": keys.queue_count,
                "queuesWithoutKey": keys.keyless_count,
                "missingKeys": [
                    {"keyId": key_id, "neededFor": places}
                    for key_id, places in keys.unknown_keys.items()
                ],
                "unreadablePartitions": max(state.counters.states(Life.PARTITIONS_UNREADABLE)),
            },
            "workers": await worker_entries(state, range_),
            "errors": {
                "dbErrors": sums.retries,
                "ackFailed": sums.ack_failed,
                "dlqMessages": sums.dead_letters,
            },
            "statsAge": int(age_s),
        }
    )


def _top_errors(rows: Iterable[ErrorRow], names: Collection[str]) -> list[tuple[str, int]]:
    """The most frequent errors in queues of these names."""
    counts: Counter[str] = Counter()
    for row in rows:
        if row.queue in names:
            counts[row.error] += row.count
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:_TOP_ERRORS]


async def queues(request: web.Request) -> web.Response:
    limit, offset = page_of(request, 100)

    async def read() -> dict[str, Any]:
        found = await page_of_queues(request, limit, offset)
        slowest = await slowest_groups(request)
        return {
            "queues": [queue_entry(queue, slowest.get(queue.name)) for queue in found],
            "pagination": {"limit": limit, "offset": offset},
        }

    key = ("status of queues", queue_filter(request), limit, offset)
    return await shared_answer(request, key, read)


async def queue(request: web.Request) -> web.Response:
    """A queue with a page of its partitions; `totals` are those of all of them."""
    reads = request.app[STATE].reads
    name, queue_id = await queue_in_path(request)
    limit, offset = page_of_partitions(request)

    async def read() -> dict[str, Any]:
        found = await read_queue(request, name)
        partitions = await statistics.partitions(reads, PartitionPage(found.id, offset, limit))
        options = await statistics.options(reads, found.id)
        totals = six(found.counts)
        return {
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
                    "scheduled": one.scheduled,
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
            "scheduled": found.scheduled,
            "partitionCount": found.partition_count,
            "truncated": offset + len(partitions) < found.partition_count,
        }

    return await shared_answer(request, ("queue status", queue_id, limit, offset), read)


async def queue_messages(request: web.Request) -> web.Response:
    """The messages of a queue, newest first, as a bare array."""
    name, _ = await queue_in_path(request)
    limit, offset = page_of(request, _MESSAGES_LIMIT)
    listing = await request.app[STATE].administration.stored_messages.page(
        MessageFilter(start=_FIRST_TIME, queue=name), limit, offset, with_payloads=False
    )
    return json_answer(
        [
            {
                "id": one.message.id,
                "transactionId": one.message.transaction_id,
                "partitionId": str(one.message.partition.id),
                "queuePath": f"{name}/{one.message.partition.partition}",
                "queue": name,
                "partition": one.message.partition.partition,
                "status": one.status.value,
                "createdAt": wire_time(one.message.created_at),
            }
            for one in listing.messages
        ]
    )


async def refresh(request: web.Request) -> web.Response:
    """Compute the cached figures anew; how many things there are of each kind."""
    state = request.app[STATE]
    if state.looks.overview.is_looking:
        return json_answer(
            {
                "success": True,
                "refreshed": False,
                "skipped": True,
                "reason": "they are being computed now",
            }
        )
    overview = (await state.looks.overview.refresh()).value
    await state.looks.groups.refresh()
    await state.looks.errors.refresh()
    return json_answer(
        {
            "success": True,
            "refreshed": True,
            "partition": overview.partition_count,
            "queue": len(overview.queues),
            "namespace": len(overview.namespaces),
            "task": len(overview.tasks),
            "system": 1,
            "cleanup": 0,  # old figures go by themselves
        }
    )


async def postgres(request: web.Request) -> web.Response:
    """PostgreSQL's own figures."""
    return await shared_answer(
        request, "postgres", lambda: _read_postgres(request.app[STATE].reads)
    )


async def _read_postgres(reads: Transactions) -> dict[str, Any]:
    found = await statistics.postgres(reads)
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
    return {
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
                "runningSeconds": None if one.running_s is None else round(one.running_s, 3),
                "query": one.query,
                "waitEvent": one.wait_event,
            }
            for one in found.active
        ],
        "holders": [
            {
                "kind": one.kind,
                "name": one.name,
                "application": one.application,
                "xminAge": one.xmin_age,
                "openSeconds": one.open_s,
                "logBytes": one.log_bytes,
            }
            for one in found.horizon.holders[:_HOLDERS_MAX]
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


async def maintenance(request: web.Request) -> web.Response:
    """Whether pushes are held back and pops bring nothing, and what is held."""
    state = request.app[STATE]
    await state.maintenance.look()
    modes = state.maintenance.modes
    held = await state.maintenance.count_held()
    return json_answer(
        {
            "maintenanceMode": modes.push,
            "popMaintenanceMode": modes.pop,
            "bufferedMessages": held.total,
            "bufferHealthy": not held.failed,
            "bufferStats": {
                "pendingCount": held.pending,
                "failedCount": held.failed,
                "dbHealthy": True,
            },
        }
    )


async def switch_maintenance(request: web.Request) -> web.Response:
    """Hold pushes back, or let them through."""
    state = request.app[STATE]
    enabled = switch_reader.read(await read_body(request)).enabled
    modes = await state.maintenance.switch(push=enabled)
    held = await state.maintenance.count_held()
    return json_answer(
        {
            "maintenanceMode": modes.push,
            "bufferedMessages": held.total,
            "bufferHealthy": not held.failed,
            "message": (
                "Pushes are held back until maintenance ends"
                if modes.push
                else "Pushes are stored; what was held back follows in order"
            ),
        }
    )


async def pop_maintenance(request: web.Request) -> web.Response:
    state = request.app[STATE]
    await state.maintenance.look()
    return json_answer({"popMaintenanceMode": state.maintenance.modes.pop})


async def switch_pop_maintenance(request: web.Request) -> web.Response:
    """Let pops bring nothing, or what there is."""
    state = request.app[STATE]
    enabled = switch_reader.read(await read_body(request)).enabled
    modes = await state.maintenance.switch(pop=enabled)
    return json_answer(
        {
            "popMaintenanceMode": modes.pop,
            "message": "Pops bring nothing" if modes.pop else "Pops bring what there is",
        }
    )


async def buffers(request: web.Request) -> web.Response:
    """What is held back in maintenance: in the database, for all workers."""
    held = await request.app[STATE].maintenance.count_held()
    return json_answer(
        {"pending": held.pending, "failed": held.failed, "dbHealthy": True, "worker": 0}
    )


async def shared_state(_request: web.Request) -> web.Response:
    """There is no cache that the hosts share: what they share is in the database."""
    return json_answer({"enabled": False})


def _cache(hits: int, reads: int) -> dict[str, float]:
    return {
        "hits": hits,
        "reads": reads,
        "hitRatio": round(hits / (hits + reads), 4) if hits + reads else 0,
    }
