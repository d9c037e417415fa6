"""What the dashboard asks beyond the protocol: who asks, pages of long lists, previews, settings.

The cost of each: a row for each partition of the queue that it is about, or of all queues for the
list of queues. Who asks for the same shares a look that took long (broker/snapshot.py), and the
dashboard waits the longer between two requests the longer one took.
"""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from queue_server.domain.access import Access, Use
from queue_server.domain.errors import BadRequest, NotFound, QueueServerError
from queue_server.domain.names import (
    ConsumerGroup,
    PartitionKey,
    PartitionName,
    QueueName,
    check_names,
    check_text,
)
from queue_server.domain.options import OptionChanges
from queue_server.domain.segment import wire_time
from queue_server.http.answers import json_answer, page_of, shared_answer
from queue_server.http.handlers.resources import queue_in_path, time_or_null
from queue_server.http.request import PRINCIPAL, grants_of, query_bool, query_choice, query_time
from queue_server.http.state import STATE
from queue_server.observability.counters import Counter, Life, Row
from queue_server.settings import Option, options
from queue_server.storage import dashboard, groups, series, statistics
from queue_server.storage import queues as stored_queues
from queue_server.storage.dashboard import QueueRow, SeekPreview
from queue_server.storage.series import Address, LastBooking, QueueRates
from queue_server.storage.statistics import GroupStatistics, QueueFilter, QueueStatistics

_PAGE = 50
# Of many queues those with the most unread messages are listed, and besides those that may not be
# well with few of them: the oldest has waited long, or the queue is nearly full.
_DEEPEST_MAX = 1000
_OLDEST_MAX = 500
_FULLEST_MAX = 500


async def identity(request: web.Request) -> web.Response:
    """Who asks and what that credential opens; without authentication everybody may do all."""
    principal = request.get(PRINCIPAL)
    levels = [level for level in Access if level is not Access.PUBLIC]
    if principal is None:
        return json_answer(
            {
                "authentication": False,
                "subject": None,
                "access": [level.value for level in levels],
                "grants": None,
            }
        )
    return json_answer(
        {
            "authentication": True,
            "subject": principal.subject,
            "access": [level.value for level in levels if principal.may(level)],
            "grants": principal.grants,
        }
    )


async def workers(request: web.Request) -> web.Response:
    """The workers of all servers on the database, by host and slot.

    Those of this server are told as they are now, by what each wrote down within the last second;
    the others as they last booked, `silentSeconds` ago. `cpu` (of one core, in ten seconds) and
    `loopLagMs` (in the minute) are as booked of all. A worker that ended in good order is not told
    any more, one that did not for an hour. While the database does not answer, the others are not
    known, which `everywhere` says.
    """
    state = request.app[STATE]
    counters, own = state.counters, state.address
    interval_s = state.settings.stats_interval_ms / 1000
    is_known = True
    try:
        booked = await series.last_bookings(state.reads, interval_s)
    except QueueServerError:
        booked, is_known = [], False
    by_place = {(one.address, one.pid): one for one in booked}
    rows = []
    for slot in range(counters.worker_count):
        address = Address(own.hostname, own.port, slot)
        row = counters.worker(slot)
        # What a predecessor booked is not its own.
        rows.append(_worker_here(address, row, by_place.get((address, row.get(Life.PID)))))
    rows += [
        _worker_elsewhere(one)
        for one in booked
        if (one.address.hostname, one.address.port) != (own.hostname, own.port)
    ]
    rows.sort(key=lambda row: (row["hostname"], row["port"], row["slot"]))
    return json_answer(
        {
            "hostname": own.hostname,
            "port": own.port,
            "restarts": counters.total(Counter.WORKER_RESTARTS),
            "everywhere": is_known,
            "silentAfterSeconds": series.silence_s(interval_s),
            "workers": rows,
        }
    )


def _worker_here(address: Address, row: Row, booked: LastBooking | None) -> dict[str, Any]:
    return {
        "hostname": address.hostname,
        "port": address.port,
        "slot": address.worker_id,
        "pid": row.get(Life.PID),
        "here": True,
        "ready": row.is_ready(),
        "silentSeconds": round(row.silent_seconds(), 3),
        "startedAt": wire_time(
            datetime.datetime.fromtimestamp(row.get(Life.STARTED_AT_MS) / 1000, datetime.UTC)
        ),
        "connections": row.get(Life.CONNECTIONS),
        "parkedPops": row.get(Life.PARKED_POPS),
        "poolSize": row.get(Life.POOL_SIZE),
        "poolAvailable": row.get(Life.POOL_AVAILABLE),
        "poolWaiting": row.get(Life.POOL_WAITING),
        "residentBytes": row.get(Life.RESIDENT_BYTES),
        "cpu": None if booked is None else round(booked.cpu_share, 4),
        "loopLagMs": None if booked is None else round(booked.loop_lag_ms, 2),
    }


def _worker_elsewhere(one: LastBooking) -> dict[str, Any]:
    return {
        "hostname": one.address.hostname,
        "port": one.address.port,
        "slot": one.address.worker_id,
        "pid": one.pid,
        "here": False,
        "ready": True,  # one that is not books nothing
        "silentSeconds": round(one.age_s, 3),
        "startedAt": time_or_null(one.started_at),
        "connections": one.connections,
        "parkedPops": one.parked_pops,
        "poolSize": one.pool_size,
        "poolAvailable": one.pool_idle,
        "poolWaiting": one.pool_waiting,
        "residentBytes": one.resident_bytes,
        "cpu": round(one.cpu_share, 4),
        "loopLagMs": round(one.loop_lag_ms, 2),
    }


async def queues(request: web.Request) -> web.Response:
    """The queues that the caller may look into, those with the most unread messages first."""
    state = request.app[STATE]
    queue, search = _text(request, "queue"), _text(request, "search")
    if queue is None:
        found = (await state.looks.overview.current()).value.queues
    else:
        filter_ = QueueFilter(queue=queue)
        look = await state.looks.share(
            ("queue", queue),
            lambda: statistics.queues(state.reads, filter_, 1, 0, with_ages=True),
        )
        found = look.value
    rates = await state.looks.share(
        ("queue rates", queue),
        lambda: series.queue_rates(state.reads, None if queue is None else QueueName(queue)),
    )
    groups: dict[str, list[GroupStatistics]] = {}
    for group in (await state.looks.groups.current()).value:
        groups.setdefault(group.queue, []).append(group)
    grants = grants_of(request)
    shown = [
        one
        for one in found
        if (search is None or _matches(one, search.lower()))
        and (grants is None or grants.allow(Use.LOOK, one.name))
    ]
    return json_answer(
        {
            "queues": [
                QueueRow.of(one, rates.value.get(one.name, QueueRates()), groups.get(one.name, []))
                for one in most_telling(shown)
            ],
            "total": len(shown),
        }
    )


async def throughput(request: web.Request) -> web.Response:
    """The last five minutes of all servers on the database, a sample each second, oldest first."""
    return json_answer(
        {
            "samples": [
                {
                    "at": round(at, 3),
                    "pushedPerSecond": round(rates.pushed, 2),
                    "poppedPerSecond": round(rates.popped, 2),
                    "ackedPerSecond": round(rates.acked, 2),
                }
                for at, rates in request.app[STATE].throughput.history
            ]
        }
    )


def most_telling(queues: Sequence[QueueStatistics]) -> list[QueueStatistics]:
    """All of them, or, of more than 2,000, those that there is most to say of; by depth."""
    if len(queues) > _DEEPEST_MAX + _OLDEST_MAX + _FULLEST_MAX:
        chosen = {
            one.id: one
            for count, rank in (
                (_DEEPEST_MAX, lambda one: one.depth),
                (_OLDEST_MAX, lambda one: one.oldest_s),
                (_FULLEST_MAX, lambda one: one.limited / one.max_size if one.max_size else 0),
            )
            for one in heapq.nlargest(count, queues, rank)
        }
        queues = list(chosen.values())
    return sorted(queues, key=lambda one: (-one.depth, one.name))


def _matches(queue: QueueStatistics, search: str) -> bool:
    return any(search in text.lower() for text in (queue.name, queue.namespace, queue.task))


async def queue_options(request: web.Request) -> web.Response:
    """The options as they are stored: null is what nobody set, which the protocol echoes as set."""
    reads = request.app[STATE].reads
    _, queue_id = await queue_in_path(request)
    namespace, task = await statistics.labels(reads, queue_id)
    options = await statistics.options(reads, queue_id)
    return json_answer(
        {"namespace": namespace, "task": task}
        | {
            field.encode_name: getattr(options, field.name)
            for field in msgspec.structs.fields(OptionChanges)
        }
    )


async def partitions(request: web.Request) -> web.Response:
    state = request.app[STATE]
    limit, offset = page_of(request, _PAGE)
    queue_id, search = await _queue_id(request), _text(request, "search")
    by_name = query_choice(request, "sort", ("depth", "name")) == "name"

    async def read() -> dict[str, Any]:
        found, total = await dashboard.partitions(
            state.reads, queue_id, search, by_name=by_name, limit=limit, offset=offset
        )
        return {"partitions": found, "total": total}

    key = ("partitions of a queue", queue_id, search, by_name, limit, offset)
    return await shared_answer(request, key, read)


async def queue_groups(request: web.Request) -> web.Response:
    state = request.app[STATE]
    queue_id = await _queue_id(request)

    async def read() -> dict[str, Any]:
        return {"groups": await dashboard.groups(state.reads, queue_id)}

    return await shared_answer(request, ("groups of a queue", queue_id), read)


async def group_partitions(request: web.Request) -> web.Response:
    group = ConsumerGroup(request.match_info["group"])
    check_names("", group, "consumer group")
    state = request.app[STATE]
    limit, offset = page_of(request, _PAGE)
    queue_id, search = await _queue_id(request), _text(request, "search")

    async def read() -> dict[str, Any]:
        found, total = await dashboard.group_partitions(
            state.reads, queue_id, group, search, limit=limit, offset=offset
        )
        return {"partitions": found, "total": total}

    key = ("partitions of a group", queue_id, group, search, limit, offset)
    return await shared_answer(request, key, read)


async def preview_seek(request: web.Request) -> web.Response:
    """What a seek with these parameters would do now: `toEnd=true` or `timestamp`, `partition`."""
    reads = request.app[STATE].reads
    group = ConsumerGroup(request.match_info["group"])
    queue = QueueName(request.match_info["queue"])
    check_names(queue, group, "consumer group")
    to, to_end = query_time(request, "timestamp"), query_bool(request, "toEnd")
    if to is None and not to_end:
        raise BadRequest("toEnd=true, or timestamp as an ISO 8601 time, is required")
    partition = _text(request, "partition")
    if partition is not None:
        ref = await stored_queues.find_partition(
            reads, PartitionKey(queue, PartitionName(partition))
        )
        if ref is None:
            raise NotFound("Partition not found")
        return json_answer(await dashboard.preview_seek(reads, ref.queue_id, group, [ref.id], to))
    queue_id = await _queue_id(request)

    async def read() -> SeekPreview:
        preview = SeekPreview(0, 0, 0, 0, 0)
        async for partition_ids in groups.chunks(reads, queue_id):
            preview += await dashboard.preview_seek(reads, queue_id, group, partition_ids, to)
        return preview

    return await shared_answer(request, ("seek preview", queue_id, group, to), read)


async def dead_letter_errors(request: web.Request) -> web.Response:
    """By queue and error, as they were when they were last counted."""
    queue = _text(request, "queue")
    snapshot = await request.app[STATE].looks.errors.current()
    found = [row for row in snapshot.value if queue is None or row.queue == queue]
    return json_answer(
        {"errors": found[: dashboard.ERRORS_MAX], "ageSeconds": round(snapshot.age_s, 1)}
    )


async def settings(request: web.Request) -> web.Response:
    """The settings of this server with where they come from; of a secret, whether it is set."""
    values = request.app[STATE].settings
    return json_answer(
        {
            "settings": [
                {
                    "name": name,
                    "environment": list(option.env),
                    "flag": option.flag or None,
                    "text": option.text,
                    "value": _shown(option, getattr(values, name)),
                    "secret": option.secret,
                }
                for name, option in options().items()
            ]
        }
    )


async def migrations(request: web.Request) -> web.Response:
    """The schema's files as they were applied to the database."""
    found = await dashboard.schema_files(request.app[STATE].reads)
    return json_answer({"files": found})


def _shown(option: Option, value: Any) -> Any:
    if option.secret:
        return "set" if value else "not set"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(request: web.Request, name: str) -> str | None:
    return check_text(request.query.get(name, ""), name) or None


async def _queue_id(request: web.Request) -> str:
    """The id of the queue in the path. Errors: `NotFound`."""
    return (await queue_in_path(request))[1]
