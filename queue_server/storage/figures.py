"""What the database says of itself and of the queues, for metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from psycopg.rows import TupleRow

from queue_server.storage import statistics
from queue_server.storage.diagnostics import Horizon
from queue_server.storage.messages import SHARD
from queue_server.storage.series import QueueRates
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.statistics import GroupStatistics, QueueStatistics
from queue_server.storage.transactions import Connection, Transactions


class QueueFigures(msgspec.Struct, frozen=True):
    """A queue, or with the name None all queues that have no series of their own."""

    name: str | None
    queue_count: int
    partition_count: int
    message_count: int
    depth: int  # what the slowest consumer of each partition has not committed
    scheduled_count: int  # those of them that are not due yet
    leased_count: int
    dead_letter_count: int
    # Since the oldest message was due that its slowest consumer has not committed.
    oldest_age_s: float
    max_size: int  # 0 = no limit
    limited: int  # what counts against it
    acked_recently: int  # in the last five minutes, as the next one
    failed_recently: int


class QueueMinute(msgspec.Struct, frozen=True):
    """What all workers booked for a queue in the last whole minute (storage/series.py)."""

    queue: str
    push_requests: int = 0
    push_messages: int = 0
    pop_messages: int = 0
    pop_empty: int = 0
    transactions: int = 0
    ack_success: int = 0
    ack_failed: int = 0
    lag_ms_sum: int = 0
    lag_ms_max: int = 0


class Figures(msgspec.Struct, frozen=True):
    """One look at the database; `taken_at` by CLOCK_MONOTONIC."""

    taken_at: float
    queues: list[QueueFigures]
    groups: list[GroupStatistics]  # those that are furthest behind
    minutes: list[QueueMinute]  # of queues that are told apart
    minute_age_s: float
    lease_count: int  # live ones
    held_count: int  # messages that maintenance holds back
    held_failed_count: int  # those of them that could not be stored
    database: statistics.DatabaseStatistics
    tables: list[statistics.TableStatistics]
    xmin_age: int
    oldest_transaction_s: float
    kept_log_bytes: int  # by replication slots without a reader
    connections: int  # to all databases of the server
    connections_max: int


async def read(
    transactions: Transactions,
    queues: Iterable[QueueStatistics],
    groups: Iterable[GroupStatistics],
    series_max: int,
    taken_at: float,
) -> Figures:
    """What there is to tell of *queues* and *groups*, found at *taken_at*, and of the database.

    Shape: *series_max* queues are told apart, and as many groups are told.
    """

    async def work(connection: Connection) -> Figures:
        async def rows(name: str, **parameters: Any) -> list[TupleRow]:
            return await (await connection.execute(STATEMENTS[name], parameters)).fetchall()

        rates = {row[0]: QueueRates(*row[1:]) for row in await rows("queue_rates", queue=None)}
        apart = tell_apart(queues, rates, series_max)
        names = [one.name for one in apart if one.name is not None]
        minutes = await rows("last_minute", queues=names)
        age = await rows("last_minute_age")
        held = await rows("count_held")
        leases = await rows("lease_statistics", shard=SHARD, queue_ids=None)
        database = await rows("database_sizes")
        tables = await rows("table_statistics")
        horizon = Horizon.of(await rows("vacuum_horizon"))
        oldest = horizon.oldest_session
        connections = await rows("database_connections")
        return Figures(
            taken_at=taken_at,
            queues=apart,
            groups=furthest_behind(groups, series_max),
            minutes=[QueueMinute(*row) for row in minutes],
            minute_age_s=age[0][0],
            lease_count=leases[0][0],
            held_count=held[0][0],
            held_failed_count=held[0][1],
            database=statistics.DatabaseStatistics(*database[0]),
            tables=[statistics.TableStatistics(*row) for row in tables],
            xmin_age=horizon.xmin_age,
            oldest_transaction_s=0.0 if oldest is None else oldest.open_s or 0.0,
            kept_log_bytes=sum(one.log_bytes or 0 for one in horizon.idle_slots),
            connections=connections[0][0],
            connections_max=connections[0][1],
        )

    return await transactions.run(work)


def tell_apart(
    queues: Iterable[QueueStatistics], rates: Mapping[str, QueueRates], own_max: int
) -> list[QueueFigures]:
    """The oldest queues one by one, and all others together.

    Queues keep their place in this order, so one that is made later never ends another one's
    series.
    """
    ranked = sorted(queues, key=lambda queue: (queue.created_at, queue.name))
    found = [_sum(queue.name, [queue], rates) for queue in ranked[:own_max]]
    if others := ranked[own_max:]:
        found.append(_sum(None, others, rates))
    return found


def _sum(
    name: str | None, queues: Sequence[QueueStatistics], rates: Mapping[str, QueueRates]
) -> QueueFigures:
    recent = [rates[queue.name] for queue in queues if queue.name in rates]
    return QueueFigures(
        name=name,
        queue_count=len(queues),
        partition_count=sum(queue.partition_count for queue in queues),
        message_count=sum(queue.counts.total for queue in queues),
        depth=sum(queue.depth for queue in queues),
        scheduled_count=sum(queue.scheduled for queue in queues),
        leased_count=sum(queue.counts.processing for queue in queues),
        dead_letter_count=sum(queue.counts.dead for queue in queues),
        oldest_age_s=max(queue.oldest_s for queue in queues),
        # The limits of several queues do not add up to one.
        max_size=queues[0].max_size if name is not None else 0,
        limited=queues[0].limited if name is not None else 0,
        acked_recently=sum(one.acked_recently for one in recent),
        failed_recently=sum(one.failed_recently for one in recent),
    )


def without_names(figures: Figures) -> Figures:
    """Return the figures of all queues together, without the names of queues and groups."""
    queues = figures.queues
    together = QueueFigures(
        name=None,
        queue_count=sum(queue.queue_count for queue in queues),
        partition_count=sum(queue.partition_count for queue in queues),
        message_count=sum(queue.message_count for queue in queues),
        depth=sum(queue.depth for queue in queues),
        scheduled_count=sum(queue.scheduled_count for queue in queues),
        leased_count=sum(queue.leased_count for queue in queues),
        dead_letter_count=sum(queue.dead_letter_count for queue in queues),
        oldest_age_s=max((queue.oldest_age_s for queue in queues), default=0.0),
        max_size=0,
        limited=0,
        acked_recently=sum(queue.acked_recently for queue in queues),
        failed_recently=sum(queue.failed_recently for queue in queues),
    )
    return msgspec.structs.replace(
        figures, queues=[together] if queues else [], groups=[], minutes=[]
    )


def furthest_behind(groups: Iterable[GroupStatistics], count_max: int) -> list[GroupStatistics]:
    """Those with the oldest messages before them; among others the oldest groups, which stay.

    Groups that do not count come last.
    """
    return sorted(
        groups,
        key=lambda group: (
            not group.counted, -group.lag_s_max, -group.lag, group.created_at, group.queue
        ),
    )[:count_max]  # fmt: skip
