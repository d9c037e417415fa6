"""What the dashboard asks beyond the protocol: pages of what may be long, previews, the schema."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

import msgspec

from queue_server.domain.encryption import REASON_CHARS, Keyring, Unreadable
from queue_server.domain.names import ConsumerGroup, PartitionId
from queue_server.storage.messages import SHARD
from queue_server.storage.sealing import open_reason
from queue_server.storage.series import QueueRates
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.statistics import GroupState, GroupStatistics, QueueStatistics
from queue_server.storage.transactions import Transactions

ERRORS_MAX = 200
# Groups that the list of queues names of each.
_READERS_MAX = 5
_NO_KEYS = Keyring()
# Stands for errors that are sealed with a key that is missing.
UNREADABLE_REASON = "The reason is encrypted and cannot be read"


class ReaderRow(msgspec.Struct, frozen=True, rename="camel"):
    """A group of a queue in the list of queues."""

    name: str
    lag: int
    scheduled: int  # those of the lag that are not due yet
    oldest_unread_at: datetime.datetime | None
    oldest_due_at: datetime.datetime | None  # when that one was or will be due
    state: GroupState
    last_active_at: datetime.datetime

    @classmethod
    def of(cls, group: GroupStatistics) -> ReaderRow:
        return cls(
            name=group.group,
            lag=group.lag,
            scheduled=group.scheduled,
            oldest_unread_at=group.oldest_at,
            oldest_due_at=group.due_at,
            state=group.state,
            last_active_at=group.seen_at,
        )


class QueueRow(msgspec.Struct, frozen=True, rename="camel"):
    """A queue in a list. `consumed` is what its slowest consumer has committed."""

    name: str
    namespace: str
    task: str
    priority: int
    created_at: datetime.datetime
    max_size: int
    partitions: int
    total: int
    depth: int  # what the slowest consumer has not committed
    scheduled: int  # those of them that are not due yet
    processing: int
    dead_letters: int
    pushed: int
    consumed: int
    last_push_at: datetime.datetime | None
    consumed_at: datetime.datetime | None
    oldest_unread_at: datetime.datetime | None
    oldest_due_at: datetime.datetime | None  # when that one was or will be due
    groups: int
    # Messages per second over the last minute: pushed, and acknowledged by all groups together.
    pushed_per_second: float
    acked_per_second: float
    # Acknowledgements of the last five minutes.
    acked_recently: int
    failed_recently: int
    limited: int  # what counts against `max_size`; 0 without one
    # Groups that count for the depth, and queue mode; of these the slowest, the first one first.
    reader_count: int
    readers: list[ReaderRow]
    idle_groups: int  # those that do not

    @classmethod
    def of(
        cls, queue: QueueStatistics, rates: QueueRates, groups: Sequence[GroupStatistics]
    ) -> QueueRow:
        readers = [one for one in groups if one.counted]
        readers.sort(key=lambda one: (*(-figure for figure in one.behind), one.group))
        return cls(
            name=queue.name,
            namespace=queue.namespace,
            task=queue.task,
            priority=queue.priority,
            created_at=queue.created_at,
            max_size=queue.max_size,
            partitions=queue.partition_count,
            total=queue.counts.total,
            depth=queue.depth,
            scheduled=queue.scheduled,
            processing=queue.counts.processing,
            dead_letters=queue.counts.dead,
            pushed=queue.pushed,
            consumed=queue.consumed,
            last_push_at=queue.pushed_at,
            consumed_at=queue.consumed_at,
            oldest_unread_at=queue.oldest_at,
            oldest_due_at=queue.due_at,
            groups=queue.group_count,
            pushed_per_second=round(rates.pushed_per_second, 2),
            acked_per_second=round(rates.acked_per_second, 2),
            acked_recently=rates.acked_recently,
            failed_recently=rates.failed_recently,
            limited=queue.limited,
            reader_count=len(readers),
            readers=[ReaderRow.of(one) for one in readers[:_READERS_MAX]],
            idle_groups=len(groups) - len(readers),
        )


class PartitionRow(msgspec.Struct, frozen=True, rename="camel"):
    """A partition in a list; its figures as a queue's."""

    id: str
    name: str
    created_at: datetime.datetime
    total: int
    depth: int
    scheduled: int
    processing: int
    dead_letters: int
    pushed: int
    consumed: int
    last_push_at: datetime.datetime | None
    consumed_at: datetime.datetime | None
    oldest_unread_at: datetime.datetime | None
    oldest_due_at: datetime.datetime | None


class GroupRow(msgspec.Struct, frozen=True, rename="camel"):
    """A group of a queue."""

    name: str
    mode: str
    starts_at: datetime.datetime
    created_at: datetime.datetime
    conflation: bool
    partitions: int  # in which it has a place
    lagging_partitions: int
    leased_partitions: int
    lag: int
    consumed_at: datetime.datetime | None
    oldest_unread_at: datetime.datetime | None
    oldest_due_at: datetime.datetime | None
    scheduled: int
    state: GroupState
    counted: bool  # whether what it has not read makes the queue deep and late
    last_active_at: datetime.datetime  # when it last popped, acknowledged or was moved
    last_ack_at: datetime.datetime | None


class GroupPartitionRow(msgspec.Struct, frozen=True, rename="camel"):
    """A group in a partition."""

    id: str
    name: str
    committed_offset: int
    next_offset: int
    lag: int
    consumed_at: datetime.datetime | None
    lease_expires_at: datetime.datetime | None
    oldest_unread_at: datetime.datetime | None
    oldest_due_at: datetime.datetime | None


class SeekPreview(msgspec.Struct, frozen=True, rename="camel"):
    """What a seek would do: messages passed over, read again, before the group afterwards."""

    partitions: int
    skipped: int
    read_again: int
    lag_after: int
    leases_ended: int

    def __add__(self, other: SeekPreview) -> SeekPreview:
        return SeekPreview(
            self.partitions + other.partitions,
            self.skipped + other.skipped,
            self.read_again + other.read_again,
            self.lag_after + other.lag_after,
            self.leases_ended + other.leases_ended,
        )


class ErrorRow(msgspec.Struct, frozen=True, rename="camel"):
    """The dead letters of a queue with one error text, of which the first 500 characters count."""

    queue: str
    error: str
    count: int
    groups: int
    first_failed_at: datetime.datetime
    last_failed_at: datetime.datetime

    def __add__(self, other: ErrorRow) -> ErrorRow:
        return ErrorRow(
            self.queue,
            self.error,
            self.count + other.count,
            max(self.groups, other.groups),  # nearly always the same ones
            min(self.first_failed_at, other.first_failed_at),
            max(self.last_failed_at, other.last_failed_at),
        )


class SchemaFile(msgspec.Struct, frozen=True, rename="camel"):
    """A migration, or a file of functions, as it was applied to the database."""

    name: str
    checksum: str
    applied_at: datetime.datetime


async def partitions(
    transactions: Transactions,
    queue_id: str,
    search: str | None,
    *,
    by_name: bool,
    limit: int,
    offset: int,
) -> tuple[list[PartitionRow], int]:
    """A page of a queue's partitions, and how many match; those with the most unread first."""
    rows = await transactions.call(
        STATEMENTS["dashboard_partitions"],
        {
            "shard": SHARD,
            "queue_id": queue_id,
            "search": search,
            "by_name": by_name,
            "limit": limit,
            "offset": offset,
        },
    )
    return [PartitionRow(str(row[0]), *row[1:-1]) for row in rows], rows[0][-1] if rows else 0


async def groups(transactions: Transactions, queue_id: str) -> list[GroupRow]:
    """The groups of a queue, the one that is furthest behind first."""
    rows = await transactions.call(
        STATEMENTS["dashboard_groups"], {"shard": SHARD, "queue_id": queue_id}
    )
    return [GroupRow(*row) for row in rows]


async def group_partitions(
    transactions: Transactions,
    queue_id: str,
    group: ConsumerGroup,
    search: str | None,
    *,
    limit: int,
    offset: int,
) -> tuple[list[GroupPartitionRow], int]:
    """A page of the partitions in which a group has a place, and how many match."""
    rows = await transactions.call(
        STATEMENTS["dashboard_group_partitions"],
        {
            "shard": SHARD,
            "queue_id": queue_id,
            "consumer_group": group,
            "search": search,
            "limit": limit,
            "offset": offset,
        },
    )
    return [GroupPartitionRow(str(row[0]), *row[1:-1]) for row in rows], rows[0][-1] if rows else 0


async def preview_seek(
    transactions: Transactions,
    queue_id: str,
    group: ConsumerGroup,
    partition_ids: Sequence[PartitionId],
    to: datetime.datetime | None,
) -> SeekPreview:
    """What a seek to *to* would do in these partitions; None = to the end."""
    rows = await transactions.call(
        STATEMENTS["preview_seek"],
        {
            "shard": SHARD,
            "queue_id": queue_id,
            "consumer_group": group,
            "partition_ids": list(partition_ids),
            "time": to,
        },
    )
    return SeekPreview(*rows[0])


async def dead_letter_errors(
    transactions: Transactions, keyring: Keyring = _NO_KEYS
) -> list[ErrorRow]:
    """Dead letters by queue and error, the most frequent first, ERRORS_MAX errors of each queue.

    Cost: every dead letter is read.
    """
    rows = await transactions.call(
        STATEMENTS["dead_letter_errors"], {"shard": SHARD, "limit": ERRORS_MAX}
    )
    errors: dict[tuple[str, str], ErrorRow] = {}
    for *fields, id_, partition_id, sealed_error in rows:
        one = ErrorRow(*fields)
        if id_ is not None:
            one = msgspec.structs.replace(
                one, error=_reason(keyring, one.queue, partition_id, id_, sealed_error)
            )
        # The same error has another key, and a row of its own, for each key that sealed it.
        known = errors.get((one.queue, one.error))
        errors[one.queue, one.error] = one if known is None else known + one
    return sorted(errors.values(), key=lambda one: (-one.count, one.queue, one.error))


def _reason(
    keyring: Keyring, queue: str, partition_id: PartitionId, id_: uuid.UUID, sealed_error: bytes
) -> str:
    try:
        return open_reason(keyring, queue, partition_id, id_, "", sealed_error)[:REASON_CHARS]
    except Unreadable as exc:
        key = "" if exc.key_id is None else f" (key {exc.key_id.hex()})"
        return UNREADABLE_REASON + key


async def schema_files(transactions: Transactions) -> list[SchemaFile]:
    """What was applied to the database, by name."""
    return [SchemaFile(*row) for row in await transactions.call(STATEMENTS["schema_files"], {})]
