"""Figures over time: wire-api 5.2 and 5.3. They come from what all workers of all hosts booked, so
they are late by STATS_INTERVAL_MS at most, and outlive restarts."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from queue_server.domain.errors import BadRequest
from queue_server.domain.names import check_text
from queue_server.domain.segment import wire_time
from queue_server.http.answers import json_answer
from queue_server.http.handlers.resources import queue_filter
from queue_server.http.request import query_choice, query_int, query_time
from queue_server.http.state import STATE, State
from queue_server.observability.counters import Counter, Life
from queue_server.storage import series
from queue_server.storage.series import Gauge, Range, WorkerCounts, WorkersPoint
from queue_server.storage.statistics import QueueFilter

_HOUR = datetime.timedelta(hours=1)
_DAY = datetime.timedelta(days=1)
# The length of a bucket, in minutes, for ranges up to so many hours.
_BUCKETS = ((1, 1), (6, 5), (24, 15), (168, 60))
_BUCKET_MAX = 360
_INTERVALS = {"minute": 1, "hour": 60, "day": 1440}
# A chart has no room for more.
_POINTS_MAX = 10_000
# A worker of another server that has not booked for so long is gone.
_SILENCE_MAX_S = 60


def time_range(
    request: web.Request,
    default: datetime.timedelta = _HOUR,
    *,
    bucket_minutes: int | None = None,
    names: tuple[str, str] = ("from", "to"),
) -> Range:
    """The time that is asked for, cut into buckets by its length."""
    end = query_time(request, names[1]) or datetime.datetime.now(datetime.UTC)
    start = query_time(request, names[0])
    if start is None:
        # A time that is the first of all has none before it.
        start = max(end, datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)) - default
    if bucket_minutes is None:
        hours = (end - start).total_seconds() / 3600
        bucket_minutes = next((minutes for most, minutes in _BUCKETS if hours <= most), _BUCKET_MAX)
    return Range(start, end, bucket_minutes)


def frame(range_: Range, point_count: int) -> dict[str, Any]:
    """What all series have in common."""
    return {
        "timeRange": {"from": wire_time(range_.start), "to": wire_time(range_.end)},
        "bucketMinutes": range_.bucket_minutes,
        "pointCount": point_count,
    }


def sum_counts(points: Sequence[WorkersPoint]) -> WorkerCounts:
    total = WorkerCounts()
    for name in WorkerCounts.__struct_fields__:
        values = [getattr(point.counts, name) for point in points]
        combined = max(values, default=0) if name == "lag_ms_max" else sum(values)
        setattr(total, name, combined)
    return total


async def points_of(state: State, range_: Range, filter_: QueueFilter) -> list[WorkersPoint]:
    """All workers over time; with a filter only what they did for these queues.

    Shape: ascending by time; the figures of the workers themselves only without a filter.
    """
    if filter_ == QueueFilter():
        return await series.workers(state.reads, range_)
    return await series.queue_totals(state.reads, range_, filter_)


def throughput_entry(point: WorkersPoint) -> dict[str, Any]:
    """A point of the status route."""
    counts, seconds = point.counts, point.seconds
    return {
        "timestamp": wire_time(point.bucket),
        "ingested": counts.push_messages,
        "processed": counts.ack_messages,
        "popMessages": counts.pop_messages,
        "ingestedPerSecond": _round(counts.push_messages / seconds),
        "processedPerSecond": _round(counts.ack_messages / seconds),
        "popPerSecond": _round(counts.pop_messages / seconds),
        "avgLagMs": _lag_ms(counts),
        "maxLagMs": counts.lag_ms_max,
        "avgEventLoopLagMs": _round(point.loop_lag_ms_avg),
        "maxEventLoopLagMs": _round(point.loop_lag_ms_max),
        "minFreeSlots": int(point.free_slots_min),
        "dbErrors": counts.retries,
        "ackFailed": counts.ack_failed,
        "dlqCount": counts.dead_letters,
        # Of one core; several workers may make it more than 100.
        "queenCpuUserPct": _round(counts.cpu_user_us / seconds / 10_000),
        "queenCpuSysPct": _round(counts.cpu_system_us / seconds / 10_000),
        "queenRssMb": _round(point.resident_bytes / 2**20),
        "dbPoolActive": _round(point.pool_size - point.pool_idle),
        "dbPoolIdle": _round(point.pool_idle),
        "dbPoolSize": _round(point.pool_size),
    }


async def worker_entries(state: State, range_: Range) -> list[dict[str, Any]]:
    """The workers of all servers: ours as they are now, others as they last said."""
    known = {one.address: one for one in await series.worker_summaries(state.reads, range_)}
    now = datetime.datetime.now(datetime.UTC)
    entries = []
    for address, one in known.items():
        if (address.hostname, address.port) == (state.address.hostname, state.address.port):
            continue
        if one.ended or (now - one.updated_at).total_seconds() > _SILENCE_MAX_S:
            continue
        entries.append(
            {
                "hostname": address.hostname,
                "port": address.port,
                "workerId": address.worker_id,
                "pid": one.pid,
                "avgEventLoopLagMs": _round(one.loop_lag_ms_avg),
                "maxEventLoopLagMs": _round(one.loop_lag_ms_max),
                "freeSlots": int(one.free_slots),
                "dbConnections": int(one.pool_size),
                "jobQueueSize": int(one.waiting),
                "messagesProcessed": one.message_count,
                "lastSeen": wire_time(one.updated_at),
            }
        )
    counters = state.counters
    for slot in range(counters.worker_count):
        row = counters.worker(slot)
        if not row.is_ready():
            continue
        address = series.Address(state.address.hostname, state.address.port, slot)
        booked = known.get(address)
        seen = datetime.datetime.fromtimestamp(time.time() - row.silent_seconds(), datetime.UTC)
        entries.append(
            {
                "hostname": address.hostname,
                "port": address.port,
                "workerId": slot,
                "pid": row.get(Life.PID),
                "avgEventLoopLagMs": 0 if booked is None else _round(booked.loop_lag_ms_avg),
                "maxEventLoopLagMs": 0 if booked is None else _round(booked.loop_lag_ms_max),
                "freeSlots": 0 if booked is None else int(booked.free_slots),
                "dbConnections": row.get(Life.POOL_SIZE),
                "jobQueueSize": row.get(Life.POOL_WAITING),
                "messagesProcessed": row.get(Counter.MESSAGES_PUSHED)
                + row.get(Counter.MESSAGES_POPPED),
                "lastSeen": wire_time(seen),
            }
        )
    return entries


async def analytics(request: web.Request) -> web.Response:
    """Messages pushed over time."""
    interval = query_choice(request, "interval", _INTERVALS) or "hour"
    minutes = _INTERVALS[interval]
    range_ = time_range(request, _DAY, bucket_minutes=minutes)
    if (range_.end - range_.start).total_seconds() / 60 / minutes > _POINTS_MAX:
        raise BadRequest(f"more than {_POINTS_MAX} intervals of a {interval}: ask for a larger one")
    points = await series.queue_totals(request.app[STATE].reads, range_, queue_filter(request))
    return json_answer(
        {
            "dataPoints": [
                {"timestamp": wire_time(point.bucket), "messages": point.counts.push_messages}
                for point in points
                if point.counts.push_messages
            ],
            "interval": interval,
            "from": wire_time(range_.start),
            "to": wire_time(range_.end),
        }
    )


async def system_metrics(request: web.Request) -> web.Response:
    """Memory, CPU and connections of each worker."""
    hostname = request.query.get("hostname") or None
    check_text(hostname or "", "hostname")
    worker_id = query_int(request, "workerId", -1, 0, 2**31 - 1)
    range_ = time_range(request)
    points = await series.replicas(
        request.app[STATE].reads, range_, hostname, None if worker_id < 0 else worker_id
    )
    replicas: dict[series.Address, list[dict[str, Any]]] = {}
    for point in points:
        replicas.setdefault(point.address, []).append(
            {
                "timestamp": wire_time(point.bucket),
                "sampleCount": point.sample_count,
                "metrics": {
                    "cpu": {
                        "user_us": _gauge(point.cpu_user_us),
                        "system_us": _gauge(point.cpu_system_us),
                    },
                    "memory": {
                        "rss_bytes": _gauge(point.resident_bytes),
                        "virtual_bytes": _gauge(point.virtual_bytes),
                    },
                    "database": {
                        "pool_size": _gauge(point.pool_size),
                        "pool_idle": _gauge(point.pool_idle),
                        "pool_active": _active(point.pool_size, point.pool_idle),
                    },
                    # A worker has no threads of its own: what waits, waits for a connection.
                    "threadpool": {
                        "db": {
                            "pool_size": _gauge(point.pool_size),
                            "queue_size": _gauge(point.pool_waiting),
                        },
                        "system": {"pool_size": _NOTHING, "queue_size": _NOTHING},
                    },
                    "registries": {"response": _NOTHING},
                    "shared_state": {"enabled": _NOTHING},
                },
            }
        )
    return json_answer(
        frame(range_, len({point.bucket for point in points}))
        | {
            "replicas": [
                {
                    "hostname": address.hostname,
                    "port": address.port,
                    "workerId": address.worker_id,
                    "timeSeries": entries,
                }
                for address, entries in replicas.items()
            ],
            "replicaCount": len(replicas),
        }
    )


async def worker_metrics(request: web.Request) -> web.Response:
    """All workers together over time, each of them, and what queues waited."""
    state = request.app[STATE]
    range_ = time_range(request)
    points = await series.workers(state.reads, range_)
    lags = await series.queue_lags(state.reads, range_)
    sums = sum_counts(points)
    overview = (await state.looks.overview.current()).value
    return json_answer(
        frame(range_, len(points))
        | {
            "timeSeries": [_worker_entry(point) for point in points],
            "workers": await worker_entries(state, range_),
            "queues": [
                {
                    "queueName": one.queue,
                    "popCount": one.message_count,
                    "avgLagMs": _round(one.lag_ms_sum / max(one.message_count, 1)),
                    "maxLagMs": one.lag_ms_max,
                }
                for one in lags
            ],
            "summary": {
                "totalPushMessages": sums.push_messages,
                "totalPopMessages": sums.pop_messages,
                "totalAckMessages": sums.ack_messages,
                "totalPushRequests": sums.push_requests,
                "totalPopRequests": sums.pop_requests,
                "totalAckRequests": sums.ack_requests,
                "totalDbErrors": sums.retries,
                "totalAckFailed": sums.ack_failed,
                "totalDlq": sums.dead_letters,
                "pendingMessages": overview.counts.pending,
            },
        }
    )


async def queue_lag(request: web.Request) -> web.Response:
    """How old messages were when they were delivered, and how old the oldest unread one was."""
    points = await series.queues(
        request.app[STATE].reads, time_range(request), queue_filter(request)
    )
    return json_answer(
        [
            {
                "queueName": one.queue,
                "popCount": one.pop_messages,
                "avgLagMs": _round(one.lag_ms_avg),
                "maxLagMs": one.lag_ms_max,
                "bucketTime": wire_time(one.bucket),
                "depth": one.depth,
                "oldestUnreadSeconds": None if one.oldest_s is None else _round(one.oldest_s),
            }
            for one in points
        ]
    )


async def queue_operations(request: web.Request) -> web.Response:
    """What was done to each queue."""
    state = request.app[STATE]
    range_ = time_range(request)
    filter_ = queue_filter(request)
    points = await series.queues(state.reads, range_, filter_)
    parked: dict[tuple[datetime.datetime, str], int] = {}
    for waiting in await series.parked(state.reads, range_, filter_.queue):
        key = (waiting.bucket, waiting.queue)
        parked[key] = parked.get(key, 0) + waiting.count
    entries = []
    # Partitions are counted once a minute: more of them were created, fewer deleted.
    known: dict[str, int] = {}
    for one in points:
        last = one.partitions_last
        before = known.get(one.queue, one.partitions_first)
        change = 0 if last is None or before is None else last - before
        if last is not None:
            known[one.queue] = last
        entries.append(
            {
                "bucket": wire_time(one.bucket),
                "queueName": one.queue,
                "pushRequests": one.push_requests,
                "pushMessages": one.push_messages,
                "popRequests": one.pop_requests,
                "popMessages": one.pop_messages,
                "popEmpty": one.pop_empty,
                "ackRequests": one.ack_requests,
                "ackSuccess": one.ack_success,
                "ackFailed": one.ack_failed,
                "dlqCount": one.dead_letters,
                "transactions": one.transactions,
                "partitionsCreated": max(change, 0),
                "partitionsDeleted": max(-change, 0),
                "partitionCount": known.get(one.queue, 0),
                "avgLagMs": _round(one.lag_ms_avg),
                "maxLagMs": one.lag_ms_max,
                "pushPerSecond": _round(one.push_messages / one.seconds),
                "popPerSecond": _round(one.pop_messages / one.seconds),
                "ackPerSecond": _round(one.ack_success / one.seconds),
                "emptyPerSecond": _round(one.pop_empty / one.seconds),
                "parkedCount": parked.get((one.bucket, one.queue), 0),
                "depth": one.depth,
                "oldestUnreadSeconds": None if one.oldest_s is None else _round(one.oldest_s),
            }
        )
    return json_answer(
        frame(range_, len({one.bucket for one in points}))
        | {"series": entries, "queues": sorted({one.queue for one in points})}
    )


async def parked_replicas(request: web.Request) -> web.Response:
    """At which workers pops wait for queues."""
    queue = request.query.get("queue") or None
    check_text(queue or "", "queue")
    range_ = time_range(request)
    points = await series.parked(request.app[STATE].reads, range_, queue)
    addresses = sorted({(p.address.hostname, p.address.worker_id) for p in points})
    return json_answer(
        frame(range_, len({point.bucket for point in points}))
        | {
            "series": [
                {
                    "bucket": wire_time(point.bucket),
                    "queueName": point.queue,
                    "hostname": point.address.hostname,
                    "workerId": point.address.worker_id,
                    "parkedCount": point.count,
                }
                for point in points
            ],
            "replicas": [
                {"hostname": hostname, "workerId": worker_id} for hostname, worker_id in addresses
            ],
        }
    )


async def throughput(request: web.Request) -> web.Response:
    """Minute by minute, newest first, as the first server's dashboard reads it."""
    range_ = time_range(request, bucket_minutes=1, names=("fromDateTime", "toDateTime"))
    if (range_.end - range_.start).total_seconds() / 60 > _POINTS_MAX:
        raise BadRequest(f"more than {_POINTS_MAX} minutes: ask for fewer")
    points = await points_of(request.app[STATE], range_, queue_filter(request))
    return json_answer({"throughput": [_minute_entry(point) for point in reversed(points)]})


def _minute_entry(point: WorkersPoint) -> dict[str, Any]:
    counts = point.counts

    def rate(count: int) -> dict[str, float]:
        return {
            "messagesPerMinute": count,
            "messagesPerSecond": _round(count / point.seconds),
        }

    return {
        "timestamp": wire_time(point.bucket),
        "incoming": rate(counts.push_messages),
        "completed": rate(counts.ack_messages),
        "processing": rate(counts.pop_messages),
        "failed": rate(counts.ack_failed),
        "deadLetter": rate(counts.dead_letters),
        "lag": {
            "avgSeconds": _round(_lag_ms(counts) / 1000),
            "avgMilliseconds": _lag_ms(counts),
            "sampleCount": counts.pop_messages,
        },
    }


def _worker_entry(point: WorkersPoint) -> dict[str, Any]:
    counts, seconds = point.counts, point.seconds
    return {
        "timestamp": wire_time(point.bucket),
        "pushMessages": counts.push_messages,
        "popMessages": counts.pop_messages,
        "ackMessages": counts.ack_messages,
        "pushRequests": counts.push_requests,
        "popRequests": counts.pop_requests,
        "ackRequests": counts.ack_requests,
        "jobsDone": counts.transactions,
        "pushPerSecond": _round(counts.push_messages / seconds),
        "popPerSecond": _round(counts.pop_messages / seconds),
        "ackPerSecond": _round(counts.ack_messages / seconds),
        "avgEventLoopLagMs": _round(point.loop_lag_ms_avg),
        "maxEventLoopLagMs": _round(point.loop_lag_ms_max),
        "avgFreeSlots": _round(point.free_slots_avg),
        "minFreeSlots": int(point.free_slots_min),
        "dbConnections": _round(point.pool_size),
        "avgJobQueueSize": _round(point.waiting_avg),
        "maxJobQueueSize": int(point.waiting_max),
        "backoffSize": 0,  # nothing is polled with growing pauses
        "avgLagMs": _lag_ms(counts),
        "maxLagMs": counts.lag_ms_max,
        "lagCount": counts.pop_messages,
        "dbErrors": counts.retries,
        "ackSuccess": counts.ack_messages,
        "ackFailed": counts.ack_failed,
        "dlqCount": counts.dead_letters,
    }


_NOTHING = {"avg": 0, "min": 0, "max": 0, "last": 0}


def _gauge(gauge: Gauge) -> dict[str, float]:
    avg, least, most, last = gauge
    return {"avg": _round(avg), "min": least, "max": most, "last": last}


def _active(size: Gauge, idle: Gauge) -> dict[str, float]:
    """Connections in use, as far as it follows from how many there are and how many are not."""
    return {
        "avg": _round(size[0] - idle[0]),
        "min": max(size[1] - idle[2], 0),
        "max": size[2] - idle[1],
        "last": size[3] - idle[3],
    }


def _lag_ms(counts: WorkerCounts) -> float:
    return _round(counts.lag_ms_sum / max(counts.pop_messages, 1))


def _round(value: float) -> float:
    return round(value, 2)
