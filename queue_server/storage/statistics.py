"""Figures for dashboards, from watermarks and cursors."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
from psycopg.rows import TupleRow

from queue_server.domain.names import PartitionId
from queue_server.domain.options import QueueOptions
from queue_server.storage.diagnostics import Horizon
from queue_server.storage.messages import SHARD
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions

_LAGGING_MAX = 1000
# Places of a group that one answer lists, on all its queues together.
_PLACES_MAX = 10_000
# More queues than anybody has.
_QUEUES_MAX = 1_000_000


GroupState = Literal["active", "idle", "never acknowledged"]
"""Of a group: idle for long, or not (queen.group_states); without an acknowledgement at all."""


class QueueFilter(msgspec.Struct, frozen=True):
    """Which queues; None = any. `search` is a part of the name, in any case."""

    queue: str | None = None
    namespace: str | None = None
    task: str | None = None
    search: str | None = None

    def parameters(self) -> dict[str, Any]:
        return {"shard": SHARD} | msgspec.structs.asdict(self)


class Counts(msgspec.Struct, frozen=True):
    """What lies somewhere: `passed` are behind the group that counts, dead letters among them."""

    total: int
    passed: int
    processing: int
    dead: int

    @property
    def completed(self) -> int:
        return max(self.passed - self.dead, 0)

    @property
    def pending(self) -> int:
        return max(self.total - self.passed - self.processing, 0)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.total + other.total,
            self.passed + other.passed,
            self.processing + other.processing,
            self.dead + other.dead,
        )


NOTHING = Counts(0, 0, 0, 0)


class QueueStatistics(msgspec.Struct, frozen=True):
    """A queue and what lies in it. `pushed` and `consumed` only rise.

    `oldest_at` is when the oldest message was stored that the slowest consumer has not committed,
    `due_at` when it was or will be due, and `oldest_s` how long it has been; None and 0 also where
    ages were not asked for.
    """

    id: str
    name: str
    namespace: str
    task: str
    priority: int
    created_at: datetime.datetime
    max_size: int
    group_count: int  # with a name
    partition_count: int
    counts: Counts
    depth: int  # what the slowest consumer in use has not committed, summed over partitions
    scheduled: int  # those of them that are not due yet
    pushed: int
    consumed: int
    pushed_at: datetime.datetime | None
    consumed_at: datetime.datetime | None
    oldest_at: datetime.datetime | None
    due_at: datetime.datetime | None
    oldest_s: float
    limited: int  # what counts against max_size; 0 without one, or without ages


class PartitionStatistics(msgspec.Struct, frozen=True):
    """A partition of a queue and what lies in it."""

    id: PartitionId
    name: str
    created_at: datetime.datetime
    counts: Counts
    scheduled: int  # of what the slowest consumer has not committed, those that are not due yet
    consumed: int
    consumed_at: datetime.datetime | None
    oldest_at: datetime.datetime | None
    newest_at: datetime.datetime | None
    last_push_at: datetime.datetime | None


class PartitionPage(msgspec.Struct, frozen=True):
    """Which of a queue's partitions to read, in the order of their names."""

    queue_id: str
    offset: int
    limit: int


class Depth(msgspec.Struct, frozen=True):
    """What a consumer of a partition has not committed.

    Of these, `processing` are leased and `scheduled` not due yet.
    """

    partition: str
    pending: int
    processing: int
    scheduled: int


class Depths(msgspec.Struct, frozen=True):
    """What a consumer of a queue has not committed: sums over all partitions, a page of these."""

    partition_count: int
    pending: int
    processing: int
    scheduled: int
    pending_count: int  # partitions with something to read
    ready_count: int  # partitions with something to read that is not leased
    page: list[Depth]


class DeepPartition(msgspec.Struct, frozen=True):
    """A partition whose slowest consumer is behind."""

    id: PartitionId
    name: str
    queue: str
    namespace: str
    task: str
    priority: int
    created_at: datetime.datetime
    total: int
    depth: int
    processing: int
    scheduled: int
    due_s: float | None  # for how long its oldest message has been due; None: it has none


class LabelStatistics(msgspec.Struct, frozen=True):
    """The queues with one namespace or task."""

    label: str
    queue_count: int
    partition_count: int
    total: int
    pending: int


class Spread(msgspec.Struct, frozen=True):
    """How a figure is spread over the partitions."""

    avg: float
    median: float
    min: float
    max: float


class Overview(msgspec.Struct, frozen=True):
    """What lies in all queues, and how far the slowest consumers of their partitions are behind."""

    queues: list[QueueStatistics]  # newest first
    lag_seconds: Spread
    lag_offsets: Spread

    @property
    def counts(self) -> Counts:
        return sum((queue.counts for queue in self.queues), NOTHING)

    @property
    def depth(self) -> int:
        return sum(queue.depth for queue in self.queues)

    @property
    def scheduled(self) -> int:
        return sum(queue.scheduled for queue in self.queues)

    @property
    def partition_count(self) -> int:
        return sum(queue.partition_count for queue in self.queues)

    @property
    def namespaces(self) -> set[str]:
        return {queue.namespace for queue in self.queues if queue.namespace}

    @property
    def tasks(self) -> set[str]:
        return {queue.task for queue in self.queues if queue.task}


class LeaseStatistics(msgspec.Struct, frozen=True):
    """Live leases."""

    lease_count: int
    partition_count: int
    message_count: int


class DeadLetterStatistics(msgspec.Struct, frozen=True):
    """Dead letters."""

    total: int
    partition_count: int


class GroupStatistics(msgspec.Struct, frozen=True):
    """A group on a queue."""

    group: str
    queue: str
    mode: str
    starts_at: datetime.datetime
    created_at: datetime.datetime
    conflation: bool
    cursor_count: int
    lagging_count: int
    lag: int
    lag_s_max: float  # since its oldest message was due
    scheduled: int  # those of the lag that are not due yet
    oldest_at: datetime.datetime | None  # of what it has not committed
    due_at: datetime.datetime | None  # when that one was or will be due
    state: GroupState
    counted: bool  # whether what it has not committed makes the queue deep and late
    seen_at: datetime.datetime  # its last sign of life
    acked_at: datetime.datetime | None

    @property
    def behind(self) -> tuple[float, int]:
        """How far it is behind: seconds, and messages that it could read."""
        return self.lag_s_max, self.lag - self.scheduled


def slowest(groups: Iterable[GroupStatistics]) -> dict[str, GroupStatistics]:
    """Of each queue the group that is furthest behind, of those that count."""
    found: dict[str, GroupStatistics] = {}
    for one in groups:
        known = found.get(one.queue)
        if one.counted and (known is None or one.behind > known.behind):
            found[one.queue] = one
    return found


class GroupPartition(msgspec.Struct, frozen=True):
    """A group in a partition; `partition` None = it has no place on this queue yet."""

    queue: str
    conflation: bool
    place_count: int  # on the queue
    partition: str | None
    committed_offset: int
    lag: int
    lag_s: float
    consumed_at: datetime.datetime | None
    leased: bool


class LaggingGroup(msgspec.Struct, frozen=True):
    """A group that is behind in a partition."""

    group: str
    queue: str
    partition: str
    partition_id: PartitionId
    lag: int
    lag_s: float
    oldest_at: datetime.datetime
    consumed_at: datetime.datetime | None


class Subscription(msgspec.Struct, frozen=True):
    """A group's registration."""

    id: int
    conflation: bool


class DatabaseStatistics(msgspec.Struct, frozen=True):
    """A row of pg_stat_database."""

    name: str
    size_bytes: int
    hits: int
    reads: int
    connections: int
    commits: int
    rollbacks: int


class TableStatistics(msgspec.Struct, frozen=True):
    """A table of ours, as pg_stat_user_tables and pg_statio_user_tables see it."""

    name: str
    live_rows: int
    dead_rows: int
    updates: int
    hot_updates: int
    autovacuumed_at: datetime.datetime | None
    autovacuum_count: int
    total_bytes: int
    heap_bytes: int
    heap_hits: int
    heap_reads: int
    index_hits: int
    index_reads: int


class ActiveQuery(msgspec.Struct, frozen=True):
    """A row of pg_stat_activity."""

    pid: int
    state: str
    started_at: datetime.datetime | None
    running_s: float | None  # by the database's clock, when it was read
    query: str
    wait_event: str | None


class PostgresStatistics(msgspec.Struct, frozen=True):
    """The database, our tables, what runs, how memory is set."""

    database: DatabaseStatistics
    tables: list[TableStatistics]
    active: list[ActiveQuery]
    settings: dict[str, str]
    horizon: Horizon


async def queues(
    transactions: Transactions,
    filter_: QueueFilter,
    limit: int,
    offset: int,
    *,
    with_ages: bool = False,
) -> list[QueueStatistics]:
    """A page of queues, newest first."""
    rows = await _queue_rows(transactions, filter_, limit, offset, with_ages=with_ages)
    return [_queue(row) for row in rows]


async def overview(transactions: Transactions) -> Overview:
    """All queues, with ages."""
    rows = await _queue_rows(transactions, QueueFilter(), _QUEUES_MAX, 0, with_ages=True)
    lags = rows[0][-8:] if rows else (0.0,) * 8
    return Overview([_queue(row) for row in rows], Spread(*lags[:4]), Spread(*lags[4:]))


async def _queue_rows(
    transactions: Transactions, filter_: QueueFilter, limit: int, offset: int, *, with_ages: bool
) -> list[TupleRow]:
    return await transactions.call(
        STATEMENTS["queue_statistics"],
        filter_.parameters() | {"limit": limit, "offset": offset, "with_ages": with_ages},
    )


def _queue(row: TupleRow) -> QueueStatistics:
    return QueueStatistics(*(str(row[0]), *row[1:9], Counts(*row[9:13]), *row[13:23]))


async def partitions(transactions: Transactions, page: PartitionPage) -> list[PartitionStatistics]:
    """A page of a queue's partitions, by name."""
    return (await partitions_of(transactions, [page]))[page.queue_id]


async def partitions_of(
    transactions: Transactions, pages: Sequence[PartitionPage]
) -> dict[str, list[PartitionStatistics]]:
    """A page of the partitions of each of these queues, by name."""
    rows = await transactions.call(
        STATEMENTS["partition_statistics"],
        {
            "shard": SHARD,
            "queue_ids": [page.queue_id for page in pages],
            "offsets": [page.offset for page in pages],
            "limits": [page.limit for page in pages],
        },
        # The plan depends on how many partitions the pages have.
        prepare=False,
    )
    found: dict[str, list[PartitionStatistics]] = {page.queue_id: [] for page in pages}
    for queue_id, id_, name, created_at, *figures in rows:
        found[str(queue_id)].append(
            PartitionStatistics(id_, name, created_at, Counts(*figures[:4]), *figures[4:])
        )
    return found


async def labels(transactions: Transactions, queue_id: str) -> tuple[str, str]:
    """Namespace and task of a queue; empty ones when it is gone."""
    rows = await transactions.call(STATEMENTS["queue_labels"], {"queue_id": queue_id})
    return (rows[0][0], rows[0][1]) if rows else ("", "")


async def options(transactions: Transactions, queue_id: str) -> QueueOptions:
    rows = await transactions.call(STATEMENTS["queue_options"], {"queue_id": queue_id})
    return QueueOptions(*rows[0]) if rows else QueueOptions()


async def queue_depth(
    transactions: Transactions, page: PartitionPage, partition: str | None = None
) -> Depths:
    """What the slowest named group of each partition has not committed, by partition name.

    Queue mode counts where no named group has a place (source: wire-api 5.1). With *partition* the
    page has this one alone.
    """
    return await _depths(transactions, "queue_depth", page, partition, {})


async def _depths(
    transactions: Transactions,
    statement: str,
    page: PartitionPage,
    partition: str | None,
    parameters: dict[str, Any],
) -> Depths:
    rows = await transactions.call(
        STATEMENTS[statement],
        {"shard": SHARD, "partition": partition} | msgspec.structs.asdict(page) | parameters,
    )
    page_rows = [Depth(*row[6:]) for row in rows if row[6] is not None]
    partition_count, pending, processing, scheduled, pending_count, ready_count, *_ = rows[0]
    return Depths(
        partition_count, pending, processing, scheduled, pending_count, ready_count, page_rows
    )


async def find_subscription(
    transactions: Transactions, queue_id: str, group: str
) -> Subscription | None:
    rows = await transactions.call(
        STATEMENTS["subscription_of"], {"queue_id": queue_id, "consumer_group": group}
    )
    return Subscription(*rows[0]) if rows else None


async def group_depth(
    transactions: Transactions,
    page: PartitionPage,
    subscription: Subscription | None,
    partition: str | None = None,
) -> Depths:
    """What a group has not committed in each partition, by name; one that is unknown: all.

    With *partition* the page has this one alone.
    """
    subscription_id = None if subscription is None else subscription.id
    return await _depths(
        transactions, "group_depth", page, partition, {"subscription_id": subscription_id}
    )


async def deepest_partitions(
    transactions: Transactions, queue: str | None, depth_min: int, limit: int
) -> list[DeepPartition]:
    """The partitions whose slowest consumers have the most before them."""
    rows = await transactions.call(
        STATEMENTS["deepest_partitions"],
        {"shard": SHARD, "queue": queue, "depth_min": depth_min, "limit": limit},
    )
    return [DeepPartition(*row) for row in rows]


async def namespaces(transactions: Transactions) -> list[LabelStatistics]:
    rows = await transactions.call(STATEMENTS["namespace_statistics"], {"shard": SHARD})
    return [LabelStatistics(*row) for row in rows]


async def tasks(transactions: Transactions) -> list[LabelStatistics]:
    rows = await transactions.call(STATEMENTS["task_statistics"], {"shard": SHARD})
    return [LabelStatistics(*row) for row in rows]


async def leases(
    transactions: Transactions, queue_ids: Sequence[str] | None = None
) -> LeaseStatistics:
    """Live leases, on all queues or on these."""
    rows = await transactions.call(
        STATEMENTS["lease_statistics"], {"shard": SHARD, "queue_ids": queue_ids}
    )
    return LeaseStatistics(*rows[0])


async def dead_letters(
    transactions: Transactions, queue_ids: Sequence[str] | None = None
) -> DeadLetterStatistics:
    """Dead letters, of all queues or of these."""
    rows = await transactions.call(
        STATEMENTS["dead_letter_statistics"], {"shard": SHARD, "queue_ids": queue_ids}
    )
    return DeadLetterStatistics(*rows[0])


async def groups(transactions: Transactions) -> list[GroupStatistics]:
    """All groups on all queues."""
    rows = await transactions.call(STATEMENTS["list_groups"], {"shard": SHARD})
    return [GroupStatistics(*row) for row in rows]


async def group(
    transactions: Transactions, name: str, limit: int, offset: int
) -> list[GroupPartition]:
    """A page of the places of a group on each of its queues, by queue and partition."""
    rows = await transactions.call(
        STATEMENTS["get_group"],
        {
            "shard": SHARD,
            "consumer_group": name,
            "limit": limit,
            "offset": offset,
            "rows": _PLACES_MAX,
        },
    )
    found = [
        GroupPartition(
            queue,
            conflation,
            count,
            partition,
            committed or 0,
            lag or 0,
            lag_s,
            consumed_at,
            bool(leased),
        )
        for queue, conflation, count, partition, committed, lag, lag_s, consumed_at, leased in rows
    ]
    return sorted(found, key=lambda one: (one.queue, one.partition or ""))


async def lagging(
    transactions: Transactions, lag_s_min: float, group: str | None, queue: str | None
) -> list[LaggingGroup]:
    """Groups whose oldest message not committed is at least so old, the 1000 worst places first.

    *group*, *queue* None: any.
    """
    rows = await transactions.call(
        STATEMENTS["lagging_groups"],
        {
            "shard": SHARD,
            "lag_s_min": lag_s_min,
            "consumer_group": group,
            "queue": queue,
            "limit": _LAGGING_MAX,
        },
    )
    return [LaggingGroup(*row) for row in rows]


async def all_queues(
    transactions: Transactions, filter_: QueueFilter | None = None
) -> list[QueueStatistics]:
    """All queues that the filter lets through, newest first."""
    return await queues(transactions, filter_ or QueueFilter(), _QUEUES_MAX, 0)


async def postgres(transactions: Transactions) -> PostgresStatistics:
    """PostgreSQL's own figures."""
    database = await transactions.call(STATEMENTS["database_sizes"], {})
    tables = await transactions.call(STATEMENTS["table_statistics"], {})
    active = await transactions.call(STATEMENTS["active_queries"], {})
    settings = await transactions.call(STATEMENTS["buffer_settings"], {})
    horizon = await transactions.call(STATEMENTS["vacuum_horizon"], {})
    return PostgresStatistics(
        DatabaseStatistics(*database[0]),
        [TableStatistics(*row) for row in tables],
        [ActiveQuery(*row) for row in active],
        {row[0]: row[1] for row in settings},
        Horizon.of(horizon),
    )
