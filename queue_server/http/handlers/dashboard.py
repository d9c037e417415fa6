"""What the dashboard asks beyond the protocol: who asks, pages of long lists, previews, settings.

The cost of each: a row for each partition of the queue that it is about, or of all queues for the
list of queues. The dashboard waits the longer between two requests the longer one took.
"""

from __future__ import annotations

import datetime
import socket
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from aiohttp import web

from queue_server.domain.access import Access, Use
from queue_server.domain.errors import BadRequest, NotFound
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
from queue_server.http.answers import json_answer, page_of
from queue_server.http.handlers.resources import find_queue
from queue_server.http.request import PRINCIPAL, grants_of, query_bool, query_time
from queue_server.http.state import STATE
from queue_server.observability.counters import LOOP_LAG, Counter, Life, Row
from queue_server.settings import SECRETS, Option, Settings
from queue_server.storage import dashboard, groups, statistics
from queue_server.storage import queues as stored_queues
from queue_server.storage.dashboard import SeekPreview

_PAGE = 50


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
    """The workers of this host as they are now, by what each wrote down within the last second.

    `cpuMs`, `poolWaits` and the loop's lag only rise: two of them give a rate.
    """
    counters = request.app[STATE].counters
    return json_answer(
        {
            "hostname": socket.gethostname(),
            "restarts": counters.total(Counter.WORKER_RESTARTS),
            "workers": [
                _worker(slot, counters.worker(slot)) for slot in range(counters.worker_count)
            ],
        }
    )


def _worker(slot: int, row: Row) -> dict[str, Any]:
    return {
        "slot": slot,
        "pid": row.get(Life.PID),
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
        "poolWaits": row.get(Life.POOL_WAITS),
        "residentBytes": row.get(Life.RESIDENT_BYTES),
        "cpuMs": (row.get(Life.CPU_USER_US) + row.get(Life.CPU_SYSTEM_US)) // 1000,
        "requests": row.get(Counter.REQUESTS),
        "messages": row.get(Counter.MESSAGES_PUSHED) + row.get(Counter.MESSAGES_POPPED),
        "loopLagUs": int(row.words[LOOP_LAG.sum_place]),
        "loopLagCount": sum(row.words[LOOP_LAG.start : LOOP_LAG.sum_place]),
    }


async def queues(request: web.Request) -> web.Response:
    """The queues that the caller may look into, those with the most unread messages first."""
    found, total = await dashboard.queues(
        request.app[STATE].transactions, _text(request, "queue"), _text(request, "search")
    )
    grants = grants_of(request)
    if grants is not None:
        found = [row for row in found if grants.allow(Use.LOOK, row.name)]
        total = len(found)
    return json_answer({"queues": found, "total": total})


async def queue_options(request: web.Request) -> web.Response:
    """The options as they are stored: null is what nobody set, which the protocol echoes as set."""
    transactions = request.app[STATE].transactions
    found = await find_queue(request)
    options = await statistics.options(transactions, found.id)
    return json_answer(
        {"namespace": found.namespace, "task": found.task}
        | {
            field.encode_name: getattr(options, field.name)
            for field in msgspec.structs.fields(OptionChanges)
        }
    )


async def partitions(request: web.Request) -> web.Response:
    limit, offset = page_of(request, _PAGE)
    found, total = await dashboard.partitions(
        request.app[STATE].transactions,
        await _queue_id(request),
        _text(request, "search"),
        by_name=request.query.get("sort") == "name",
        limit=limit,
        offset=offset,
    )
    return json_answer({"partitions": found, "total": total})


async def queue_groups(request: web.Request) -> web.Response:
    found = await dashboard.groups(request.app[STATE].transactions, await _queue_id(request))
    return json_answer({"groups": found})


async def group_partitions(request: web.Request) -> web.Response:
    group = ConsumerGroup(request.match_info["group"])
    check_names("", group, "consumer group")
    limit, offset = page_of(request, _PAGE)
    found, total = await dashboard.group_partitions(
        request.app[STATE].transactions,
        await _queue_id(request),
        group,
        _text(request, "search"),
        limit=limit,
        offset=offset,
    )
    return json_answer({"partitions": found, "total": total})


async def preview_seek(request: web.Request) -> web.Response:
    """What a seek with these parameters would do now: `toEnd=true` or `timestamp`, `partition`."""
    transactions = request.app[STATE].transactions
    group = ConsumerGroup(request.match_info["group"])
    queue = QueueName(request.match_info["queue"])
    check_names(queue, group, "consumer group")
    to = query_time(request, "timestamp")
    if to is None and not query_bool(request, "toEnd"):
        raise BadRequest("toEnd=true, or timestamp as an ISO 8601 time, is required")
    partition = _text(request, "partition")
    if partition is not None:
        ref = await stored_queues.find_partition(
            transactions, PartitionKey(queue, PartitionName(partition))
        )
        if ref is None:
            raise NotFound("Partition not found")
        return json_answer(
            await dashboard.preview_seek(transactions, ref.queue_id, group, [ref.id], to)
        )
    queue_id = await _queue_id(request)
    preview = SeekPreview(0, 0, 0, 0, 0)
    async for partition_ids in groups.chunks(transactions, queue_id):
        preview += await dashboard.preview_seek(transactions, queue_id, group, partition_ids, to)
    return json_answer(preview)


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
    hints = get_type_hints(Settings, include_extras=True)
    return json_answer(
        {
            "settings": [
                {
                    "name": field.name,
                    "environment": list(option.env),
                    "flag": option.flag or None,
                    "text": option.text,
                    "value": _shown(field.name, getattr(values, field.name)),
                    "secret": field.name in SECRETS,
                }
                for field in msgspec.structs.fields(Settings)
                for option in _options(hints[field.name])
            ]
        }
    )


async def migrations(request: web.Request) -> web.Response:
    """The schema's files as they were applied to the database."""
    found = await dashboard.schema_files(request.app[STATE].transactions)
    return json_answer({"files": found})


def _options(hint: Any) -> list[Option]:
    if get_origin(hint) is not Annotated:
        return []
    return [note for note in get_args(hint)[1:] if isinstance(note, Option)]


def _shown(name: str, value: Any) -> Any:
    if name in SECRETS:
        return "set" if value else "not set"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(request: web.Request, name: str) -> str | None:
    return check_text(request.query.get(name, ""), name) or None


async def _queue_id(request: web.Request) -> str:
    """The id of the queue in the path. Errors: `NotFound`."""
    queue = QueueName(request.match_info["queue"])
    check_names(queue, "", "partition")
    queue_id = await groups.find_queue(request.app[STATE].transactions, queue)
    if queue_id is None:
        raise NotFound("Queue not found")
    return queue_id
