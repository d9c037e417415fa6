"""Look at messages in the log without consuming them, and take single ones out of it."""

from __future__ import annotations

import contextlib
import datetime
import heapq
import itertools
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from queue_server.domain.encryption import Keyring, Unreadable, is_sealed
from queue_server.domain.ids import id_keys, id_ranges
from queue_server.domain.message import RUN_LENGTH_MAX, message_id
from queue_server.domain.names import QUEUE_MODE, PartitionId
from queue_server.domain.segment import (
    CODEC_ENCRYPTED,
    OpenSegment,
    StoredMessage,
    decrypt,
    sealed_by,
)
from queue_server.domain.status import Consumption, GroupPlace, MessageStatus
from queue_server.storage.dead_letters import queue_id
from queue_server.storage.messages import (
    SHARD,
    Segment,
    find_ids,
    read_segment_at,
    read_segments,
)
from queue_server.storage.sealing import open_payload, open_reason, seal_letter
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions

# Partitions that one statement searches for an id.
_SEARCH_PARTITIONS = 5000

MOVED_BY_HAND = "Moved to the dead letters by hand"


class MessageFilter(msgspec.Struct, frozen=True):
    """Which messages; None = any. `start` and `end` bound the time of the push."""

    start: datetime.datetime
    end: datetime.datetime | None = None
    queue: str | None = None
    partition: str | None = None
    namespace: str | None = None
    task: str | None = None
    status: MessageStatus | None = None

    def parameters(self) -> dict[str, Any]:
        return (
            {"shard": SHARD}
            | msgspec.structs.asdict(self)
            | {"status": None if self.status is None else self.status.value}
        )


class PartitionView(msgspec.Struct, frozen=True):
    """A partition and what its messages tell of their queue."""

    id: PartitionId
    partition: str
    queue: str
    namespace: str
    task: str
    priority: int


class QueueConfig(msgspec.Struct, frozen=True):
    """What a message's detail tells of its queue's options."""

    queue_id: str
    lease_time: int
    retry_limit: int
    retry_delay: int | None
    ttl: int | None
    is_encrypted: bool = False  # what is stored of its messages from now on


class Death(msgspec.Struct, frozen=True):
    """What the newest dead letter of a message says; the reason is None when it cannot be read."""

    error_message: str | None
    retry_count: int
    failed_at: datetime.datetime


class MessageView(msgspec.Struct, frozen=True):
    """A message as it is stored, or, when the log has it no more, in its dead letter.

    Where it is encrypted and cannot be opened, `payload` is None, and so is what lies beside it.
    """

    partition: PartitionView
    offset: int
    id: str
    transaction_id: str | None
    trace_id: str | None
    producer_sub: str | None
    payload: bytes | None  # JSON text
    created_at: datetime.datetime
    is_encrypted: bool = False
    death: Death | None = None


class SegmentPlace(msgspec.Struct, frozen=True):
    """A segment without its body."""

    partition_id: PartitionId
    base_offset: int
    next_offset: int
    created_at: datetime.datetime
    first_message_id: uuid.UUID
    raw_bytes: int

    @property
    def age(self) -> tuple[datetime.datetime, PartitionId, int]:
        """By what listings are ordered, the newest first."""
        return self.created_at, self.partition_id, self.base_offset


class Range(msgspec.Struct, frozen=True, gc=False):
    """Offsets [start, end) of a partition."""

    partition_id: PartitionId
    start: int
    end: int


class TooManyPartitions(Exception):
    """More partitions than could be searched in the time that was given."""


class Removed(msgspec.Struct, frozen=True):
    """What became of a message that was to be taken out of the log.

    `dead_letter_count` were deleted with it; `groups` were given one. `freed`: a lease ended,
    because nothing was left of its batch.
    """

    was_stored: bool
    dead_letter_count: int = 0
    groups: Sequence[str] = ()
    freed: bool = False


class NotPending(Exception):
    """Every group of the partition has consumed the message."""


def open_segment(segment: Segment, queue: str, keyring: Keyring) -> OpenSegment:
    """A segment ready to be read. Errors: those of `Keyring.open`."""
    codec, body = decrypt(segment.codec, segment.body, keyring, segment.place(queue))
    return OpenSegment(segment.base_offset, segment.next_offset, codec, body)


async def browse(
    transactions: Transactions, filter_: MessageFilter, limit: int, within_s: float
) -> tuple[dict[PartitionId, PartitionView], dict[PartitionId, Range], list[SegmentPlace]]:
    """The newest *limit* segments in which messages may lie that the filter lets through.

    Shape: the partitions, the offsets in each that have the wanted status (dead letters apart),
    and the segments, newest first. None is left out, whatever the partitions are in which they lie.
    Errors: `TooManyPartitions` when *within_s* were too few to search them all.
    """
    rows = await transactions.call(
        STATEMENTS["browse_partitions"],
        filter_.parameters() | {"limit": limit, "within_s": within_s},
    )
    if rows and rows[0][7] is None:
        raise TooManyPartitions
    partitions = {row[0]: PartitionView(*row[:6]) for row in rows}
    ranges = {row[0]: Range(row[0], row[6], row[7]) for row in rows}
    segments = await _newest_segments(transactions, list(ranges.values()), filter_.start, limit)
    return partitions, ranges, segments


async def _newest_segments(
    transactions: Transactions, ranges: list[Range], start: datetime.datetime, limit: int
) -> list[SegmentPlace]:
    """The newest *limit* segments of *ranges* since *start*, newest first.

    A look takes a few of each partition. Where all of these are among the newest there may be more
    of them, so there it is looked again, at twice as many: that cannot be in many partitions. One
    look is the rule, log2(*limit*) are the most, each at some *limit* rows and a few a partition.
    """
    found: list[SegmentPlace] = []
    share = min(4 * limit // max(len(ranges), 1) + 1, limit)
    while ranges:
        rows = await transactions.call(
            STATEMENTS["browse_segments"],
            {
                "shard": SHARD,
                "partition_ids": [r.partition_id for r in ranges],
                "lows": [r.start for r in ranges],
                "highs": [r.end for r in ranges],
                "start": start,
                "share": share,
                "limit": limit,
            },
        )
        looked_at = [SegmentPlace(*row) for row in rows]
        merged = heapq.merge(found, looked_at, key=lambda s: s.age, reverse=True)
        found = list(itertools.islice(merged, limit))
        counts = Counter(segment.partition_id for segment in looked_at)
        oldest = {segment.partition_id: segment for segment in looked_at}
        ranges = [
            Range(r.partition_id, r.start, oldest[r.partition_id].base_offset)
            for r in ranges
            if counts[r.partition_id] == share
            and (len(found) < limit or oldest[r.partition_id].age > found[-1].age)
        ]
        share *= 2
    return found


def _ranges(ranges: Sequence[Range]) -> dict[str, Any]:
    return {
        "shard": SHARD,
        "partition_ids": [r.partition_id for r in ranges],
        "starts": [r.start for r in ranges],
        "ends": [r.end for r in ranges],
    }


async def holes(
    transactions: Transactions, ranges: Sequence[Range]
) -> set[tuple[PartitionId, int]]:
    """The messages in *ranges* that were taken out."""
    rows = await transactions.call(STATEMENTS["list_holes"], _ranges(ranges))
    return {(row[0], row[1]) for row in rows}


async def deaths(
    transactions: Transactions, ranges: Sequence[Range], keyring: Keyring
) -> dict[tuple[PartitionId, int], Death]:
    """The messages in *ranges* that are dead letters."""
    rows = await transactions.call(STATEMENTS["list_dead_offsets"], _ranges(ranges))
    return {
        (partition_id, offset): _death(keyring, queue, partition_id, *rest)
        for partition_id, offset, queue, *rest in rows
    }


def _death(
    keyring: Keyring,
    queue: str,
    partition_id: PartitionId,
    id_: uuid.UUID,
    error_message: str,
    sealed_error: bytes | None,
    retry_count: int,
    failed_at: datetime.datetime,
) -> Death:
    reason: str | None = None
    with contextlib.suppress(Unreadable):
        reason = open_reason(keyring, queue, partition_id, id_, error_message, sealed_error)
    return Death(reason, retry_count, failed_at)


async def consumptions(
    transactions: Transactions, partition_ids: Sequence[PartitionId]
) -> dict[PartitionId, Consumption]:
    """Where the groups stand in each of these partitions."""
    rows = await transactions.call(
        STATEMENTS["list_places"], {"shard": SHARD, "partition_ids": list(partition_ids)}
    )
    places: dict[PartitionId, list[GroupPlace]] = {id_: [] for id_ in partition_ids}
    for row in rows:
        places[row[0]].append(GroupPlace(*row[1:]))
    return {id_: Consumption(own) for id_, own in places.items()}


async def consumption_mode(
    transactions: Transactions, queue: str | None, partition: str | None
) -> tuple[bool, int]:
    """Whether anybody consumes in queue mode, and how many named groups there are."""
    rows = await transactions.call(
        STATEMENTS["consumption_mode"], {"shard": SHARD, "queue": queue, "partition": partition}
    )
    return rows[0][0], rows[0][1]


async def dead_messages(
    transactions: Transactions,
    filter_: MessageFilter,
    limit: int,
    offset: int,
    bytes_max: int,
    keyring: Keyring,
) -> tuple[list[MessageView], bool]:
    """Read messages that are dead letters, newest first.

    A page ends with the one whose payload exceeds *bytes_max*: whether it was cut short so.
    """
    rows = await transactions.call(
        STATEMENTS["list_dead_messages"],
        filter_.parameters()
        | {
            "queue_id": await queue_id(transactions, filter_.queue),
            "limit": limit,
            "offset": offset,
            "bytes_max": bytes_max,
        },
        prepare=False,
    )
    views = [_dead_view(PartitionView(*row[:6]), row[6:-1], keyring) for row in rows]
    return views, bool(rows) and len(rows) < rows[0][-1]


def _dead_view(partition: PartitionView, row: Sequence[Any], keyring: Keyring) -> MessageView:
    (
        offset, id_, transaction_id, trace_id, producer_sub, stored, created_at,
        letter_id, error_message, sealed_error, retry_count, failed_at,
    ) = row  # fmt: skip
    payload: bytes | None = None
    with contextlib.suppress(Unreadable):
        payload = open_payload(keyring, partition.queue, partition.id, letter_id, stored)
    return MessageView(
        partition=partition,
        offset=offset,
        id=str(id_),
        transaction_id=transaction_id,
        trace_id=trace_id,
        producer_sub=producer_sub,
        payload=payload,
        created_at=created_at,
        is_encrypted=is_sealed(stored),
        death=_death(
            keyring, partition.queue, partition.id, letter_id, error_message, sealed_error,
            retry_count, failed_at,
        ),
    )  # fmt: skip


def view(
    partition: PartitionView,
    segment: Segment,
    offset: int,
    message: StoredMessage | None,
    death: Death | None,
    transaction_id: str | None = None,
) -> MessageView:
    """A message of a segment; without *message*, what is known of one that cannot be read."""
    return MessageView(
        partition=partition,
        offset=offset,
        id=message_id(segment.first_message_id, offset - segment.base_offset),
        transaction_id=transaction_id if message is None else message.transactionId,
        trace_id=None if message is None else message.traceId,
        producer_sub=None if message is None else message.producerSub,
        payload=None if message is None else bytes(message.data),
        created_at=segment.created_at,
        is_encrypted=bool(segment.codec & CODEC_ENCRYPTED),
        death=death,
    )


def read_message(
    segment: Segment, queue: str, offset: int, keyring: Keyring
) -> StoredMessage | None:
    """A message of a segment; None when it cannot be read."""
    try:
        return open_segment(segment, queue, keyring).message(offset)
    except Unreadable:
        return None


async def find_partition(
    transactions: Transactions, partition_id: PartitionId
) -> tuple[PartitionView, QueueConfig] | None:
    """A partition by id."""
    rows = await transactions.call(
        STATEMENTS["partition_of_message"], {"shard": SHARD, "partition_id": partition_id}
    )
    if not rows:
        return None
    row = rows[0]
    return (
        PartitionView(partition_id, *row[:5]),
        QueueConfig(str(row[5]), *row[6:]),
    )


async def view_partitions(
    transactions: Transactions, partition_ids: Sequence[PartitionId]
) -> list[PartitionView]:
    """Partitions by id, ascending; those that do not exist are left out."""
    rows = await transactions.call(
        STATEMENTS["name_partition_views"], {"shard": SHARD, "partition_ids": list(partition_ids)}
    )
    return [PartitionView(*row) for row in rows]


async def search(
    transactions: Transactions, transaction_id: str, after: PartitionId
) -> tuple[list[PartitionId], PartitionId | None]:
    """Search the logs of the next partitions behind *after* for an id, a bounded number of them.

    Shape: those that have a message with it, and where to go on; None when all were searched.
    """
    key = id_keys([transaction_id])
    (range_,) = id_ranges(key)
    rows = await transactions.call(
        STATEMENTS["find_id"],
        {
            "shard": SHARD,
            "after": after,
            "limit": _SEARCH_PARTITIONS,
            "id": key,
            "scan_id": range_.scan_max,
        },
    )
    return rows[0][0], rows[0][1]


async def search_message(
    transactions: Transactions,
    id_: uuid.UUID,
    queue: str | None,
    after: PartitionId,
    start: datetime.datetime,
    end: datetime.datetime,
    keyring: Keyring,
) -> tuple[MessageView | None, PartitionId | None]:
    """Search the next partitions behind *after*, a bounded number of them, for a message by its id.

    Shape: the message, if the log has it and it was stored in [*start*, *end*); and where to go
    on, None when all were searched. *queue* None: any.
    """
    rows = await transactions.call(
        STATEMENTS["find_message"],
        {
            "shard": SHARD,
            "queue": queue,
            "after": after,
            "limit": _SEARCH_PARTITIONS,
            "id_min": uuid.UUID(int=max(id_.int - RUN_LENGTH_MAX + 1, 0)),
            "id": id_,
            "start": start,
            "end": end,
        },
    )
    partition_ids, base_offsets, next_ = rows[0]
    for segment in await read_segments(
        transactions, list(zip(partition_ids, base_offsets, strict=True))
    ):
        offset = segment.base_offset + id_.int - segment.first_message_id.int
        place = Range(segment.partition_id, offset, offset + 1)
        partitions = await view_partitions(transactions, [segment.partition_id])
        if (
            offset >= segment.next_offset
            or not partitions  # its queue was deleted since
            or await holes(transactions, [place])
        ):
            continue
        found = view(
            partitions[0],
            segment,
            offset,
            read_message(segment, partitions[0].queue, offset, keyring),
            (await deaths(transactions, [place], keyring)).get((segment.partition_id, offset)),
        )
        return found, None
    return None, next_


async def dead_message(
    transactions: Transactions,
    id_: uuid.UUID,
    queue: str | None,
    start: datetime.datetime,
    end: datetime.datetime,
    keyring: Keyring,
) -> MessageView | None:
    """A message by its id, as its newest dead letter has it, if it was stored in [*start*, *end*).

    *queue* None: any.
    """
    rows = await transactions.call(
        STATEMENTS["dead_message_by_id"],
        {"shard": SHARD, "id": id_, "queue": queue, "start": start, "end": end},
    )
    return _dead_view(PartitionView(*rows[0][:6]), rows[0][6:], keyring) if rows else None


async def dead_letter_partitions(
    transactions: Transactions, transaction_id: str, limit: int
) -> list[PartitionId]:
    """Up to *limit* partitions with a dead letter of a message with this id."""
    rows = await transactions.call(
        STATEMENTS["dead_letter_partitions"],
        {"shard": SHARD, "transaction_id": transaction_id, "limit": limit},
    )
    return [row[0] for row in rows]


async def find_in(
    connection: Connection, partition_id: PartitionId, transaction_id: str
) -> tuple[int, Segment] | None:
    """The newest stored message with this id, with its segment; None when there is none."""
    found = await find_ids(connection, [(partition_id, id_keys([transaction_id]))])
    stored = [place.offset for place in found if not place.gone]
    for offset in sorted(stored, reverse=True):
        segment = await read_segment_at(connection, partition_id, offset)
        if segment is not None:
            return offset, segment
    return None


async def get(
    transactions: Transactions, partition: PartitionView, transaction_id: str, keyring: Keyring
) -> MessageView | None:
    """A message by its ids, from the log or from its dead letter."""

    async def work(connection: Connection) -> MessageView | None:
        parameters = {
            "shard": SHARD,
            "partition_id": partition.id,
            "transaction_id": transaction_id,
        }
        cursor = connection.cursor(binary=True)
        await cursor.execute(STATEMENTS["dead_message"], parameters)
        row = await cursor.fetchone()
        dead = None if row is None else _dead_view(partition, row, keyring)
        found = await find_in(connection, partition.id, transaction_id)
        if found is None:
            return dead
        offset, segment = found
        return view(
            partition,
            segment,
            offset,
            read_message(segment, partition.queue, offset, keyring),
            dead.death if dead is not None and dead.offset == offset else None,
            transaction_id,
        )

    return await transactions.run(work)


async def delete(
    transactions: Transactions, partition_id: PartitionId, transaction_id: str
) -> Removed:
    """Remove a message with its dead letters and traces.

    Locks: the cursors of the partition, then its allocator.
    """

    async def work(connection: Connection) -> Removed:
        address = {"shard": SHARD, "partition_id": partition_id}
        cursor = connection.cursor(binary=True)
        await cursor.execute(STATEMENTS["lock_places"], address)
        await _lock_allocator(connection, partition_id)
        found = await find_in(connection, partition_id, transaction_id)
        await cursor.execute(
            STATEMENTS["delete_message_dead_letters"], address | {"transaction_id": transaction_id}
        )
        row = await cursor.fetchone()
        assert row is not None
        count, offsets = row
        freed = False
        if found is not None:
            offsets.append(found[0])
            freed = await _take_out(connection, partition_id, found[0])
        if offsets:
            await connection.execute(
                STATEMENTS["delete_message_traces"], address | {"offsets": offsets}
            )
        return Removed(found is not None, dead_letter_count=count, freed=freed)

    return await transactions.run(work)


async def bury(
    transactions: Transactions,
    partition: PartitionView,
    config: QueueConfig,
    transaction_id: str,
    keyring: Keyring,
) -> Removed:
    """Move a message to the dead letters of every group that has not consumed it.

    Shape: those groups; queue mode when the partition has no group at all. There is always one, so
    no message leaves the log without a dead letter.
    Errors: `NotPending`, those of `open_segment`; nothing was done.
    Locks: the cursors of the partition, then its allocator.
    """

    async def work(connection: Connection) -> Removed:
        cursor = connection.cursor(binary=True)
        address = {"shard": SHARD, "partition_id": partition.id}
        await cursor.execute(STATEMENTS["lock_places"], address)
        places = await cursor.fetchall()
        await _lock_allocator(connection, partition.id)
        found = await find_in(connection, partition.id, transaction_id)
        if found is None:
            return Removed(was_stored=False)
        offset, segment = found
        groups: list[str] = [group for group, committed in places if committed <= offset]
        if places and not groups:
            raise NotPending
        groups = groups or [QUEUE_MODE]
        message = open_segment(segment, partition.queue, keyring).message(offset)
        for group in groups:
            await connection.execute(
                STATEMENTS["insert_dead_letter"],
                address
                | {
                    "queue_id": config.queue_id,
                    "consumer_group": group,
                    "message_offset": offset,
                    "message_id": message_id(
                        segment.first_message_id, offset - segment.base_offset
                    ),
                    "transaction_id": message.transactionId,
                    "original_transaction_id": message.originalTransactionId,
                    "trace_id": message.traceId,
                    "producer_sub": message.producerSub,
                    "retry_count": 0,
                    "created_at": segment.created_at,
                }
                | seal_letter(
                    keyring,
                    partition.queue,
                    partition.id,
                    bytes(message.data),
                    MOVED_BY_HAND,
                    is_encrypted=config.is_encrypted,
                    opened_with=sealed_by(segment.codec, segment.body),
                ),
            )
        freed = await _take_out(connection, partition.id, offset)
        return Removed(was_stored=True, groups=groups, freed=freed)

    return await transactions.run(work)


async def _lock_allocator(connection: Connection, partition_id: PartitionId) -> None:
    """Nothing is removed from the partition, and the partition is not deleted, until the commit."""
    await connection.execute(
        STATEMENTS["lock_allocator"], {"shard": SHARD, "partition_id": partition_id}
    )


async def _take_out(connection: Connection, partition_id: PartitionId, offset: int) -> bool:
    """Take a message out of the log; whether a lease ended because of it."""
    address = {"shard": SHARD, "partition_id": partition_id}
    await connection.execute(STATEMENTS["insert_hole"], address | {"message_offset": offset})
    cursor = connection.cursor(binary=True)
    await cursor.execute(STATEMENTS["end_empty_leases"], address)
    return bool(await cursor.fetchall())


async def count_holes(transactions: Transactions, ranges: Sequence[Range]) -> int:
    """How many of the messages in *ranges* were taken out before."""
    rows = await transactions.call(STATEMENTS["count_holes"], _ranges(ranges))
    count: int = rows[0][0]
    return count


async def flush_commits(transactions: Transactions) -> None:
    """Return when all commits so far are on disk, those included that did not wait for it."""
    await transactions.call(STATEMENTS["flush_commits"], {})
