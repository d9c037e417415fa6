"""Append to the log, read from it, and find ids in it."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

import msgspec
from psycopg.rows import TupleRow

from queue_server.domain.encryption import segment_place
from queue_server.domain.ids import id_ranges
from queue_server.domain.names import PartitionId
from queue_server.domain.segment import CODEC_ENCRYPTED
from queue_server.storage.arrays import Bigints, Booleans, Byteas, Integers, Smallints, Uuids
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions

# One machine uses a single shard; every statement filters by it.
SHARD = 1


class SegmentDraft(msgspec.Struct, frozen=True):
    """A segment to append: everything but its place.

    `ids` are the id keys of its messages in one, `raw_bytes` the size of the opened body.
    """

    partition_id: PartitionId
    first_message_id: uuid.UUID
    message_count: int
    raw_bytes: int
    codec: int
    ids: bytes
    body: bytes


class StoredId(msgspec.Struct, frozen=True, gc=False):
    """Where an id is stored: list and position of the look-up, then its place in the log.

    `gone`: the message was removed; what is left of it waits for retention.
    """

    list: int
    position: int
    offset: int
    first_message_id: uuid.UUID
    index: int
    created_at: datetime.datetime
    gone: bool = False


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where an append put the messages of one partition: the first of them, and when."""

    base_offset: int
    created_at: datetime.datetime


class FullQueue(msgspec.Struct, frozen=True, gc=False):
    """A queue that the append would take over its `maxSize`, by one of its partitions."""

    partition_id: PartitionId
    message_count: int
    message_count_max: int


class Appended(msgspec.Struct, frozen=True):
    """What came of an append; one is not empty, and only `places` means that it was done."""

    places: dict[PartitionId, Place]
    duplicates: Sequence[StoredId] = ()  # `list` is the draft's index
    missing: Sequence[PartitionId] = ()
    # Partitions whose bodies should (not) have been encrypted.
    mistaken: Sequence[PartitionId] = ()
    full: Sequence[FullQueue] = ()
    # Partitions to whose queues maintenance holds pushes back.
    held: Sequence[PartitionId] = ()


class Segment(msgspec.Struct, frozen=True):
    """A segment as stored."""

    partition_id: PartitionId
    base_offset: int
    next_offset: int
    created_at: datetime.datetime
    first_message_id: uuid.UUID
    codec: int
    body: bytes

    def place(self, queue: str) -> bytes:
        """Where it belongs, if it is encrypted."""
        return segment_place(
            queue, self.partition_id, self.first_message_id, self.next_offset - self.base_offset
        )


async def append(
    transactions: Transactions, drafts: Sequence[SegmentDraft], *, can_encrypt: bool = False
) -> Appended:
    """Append all *drafts* in one transaction, or none.

    Shape: *drafts* ascend by partition; those of one partition are appended in the given order.
    *can_encrypt*: the messages of encrypted queues have to be encrypted. False when this server
    has no key and may store them as plain text.
    """
    return _appended(
        await transactions.call(STATEMENTS["push"], _push_parameters(drafts, can_encrypt))
    )


async def append_in(
    connection: Connection,
    drafts: Sequence[SegmentDraft],
    *,
    can_encrypt: bool = False,
    past_holding: bool = False,
) -> Appended:
    """`append` as a part of the transaction of *connection*; *past_holding*: in maintenance too."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(STATEMENTS["push"], _push_parameters(drafts, can_encrypt, past_holding))
    return _appended(await cursor.fetchall())


def _push_parameters(
    drafts: Sequence[SegmentDraft], can_encrypt: bool, past_holding: bool = False
) -> dict[str, object]:
    ranges = [id_ranges(draft.ids) for draft in drafts]
    befores: list[int] = []
    totals: dict[PartitionId, int] = {}
    for draft in drafts:
        before = totals.get(draft.partition_id, 0)
        befores.append(before)
        totals[draft.partition_id] = before + draft.message_count
    owners = [i for i, own in enumerate(ranges) for _ in own]
    flat = [r for own in ranges for r in own]
    return {
        "shard": SHARD,
        "partition_ids": Bigints([d.partition_id for d in drafts]),
        "befores": Integers(befores),
        "afters": Integers(
            [totals[d.partition_id] - before for d, before in zip(drafts, befores, strict=True)]
        ),
        "counts": Integers([d.message_count for d in drafts]),
        "first_message_ids": Uuids([d.first_message_id for d in drafts]),
        "raw_bytes": Integers([d.raw_bytes for d in drafts]),
        "codecs": Smallints([d.codec for d in drafts]),
        "ids": Byteas([d.ids for d in drafts]),
        "bodies": Byteas([d.body for d in drafts]),
        "encrypted": Booleans([bool(d.codec & CODEC_ENCRYPTED) for d in drafts]),
        "can_encrypt": can_encrypt,
        "past_holding": past_holding,
        "range_segments": Integers([i + 1 for i in owners]),
        "range_partition_ids": Bigints([drafts[i].partition_id for i in owners]),
        "range_min_ids": Byteas([r.min for r in flat]),
        "range_max_ids": Byteas([r.max for r in flat]),
        "range_scan_ids": Byteas([r.scan_max for r in flat]),
    }


def _appended(rows: Sequence[TupleRow]) -> Appended:
    match rows[0][0]:
        case "stored":
            return Appended({row[1]: Place(row[4], row[7]) for row in rows})
        case "duplicate":
            return Appended({}, duplicates=[StoredId(row[2] - 1, *row[3:]) for row in rows])
        case "missing":
            return Appended({}, missing=[row[1] for row in rows])
        case "encrypt":
            return Appended({}, mistaken=[row[1] for row in rows])
        case "held":
            return Appended({}, held=[row[1] for row in rows])
        case status:
            assert status == "full", f"push answered {status}"
            return Appended({}, full=[FullQueue(row[1], row[3], row[6]) for row in rows])


async def find_ids(
    connection: Connection, lists: Sequence[tuple[PartitionId, bytes]]
) -> list[StoredId]:
    """Where the ids of *lists* are stored, each list within its partition.

    Shape: ids that are not stored do not appear; one that is stored twice (its first message was
    removed, or outside the deduplication window) appears twice.
    """
    ranges = [id_ranges(keys) for _, keys in lists]
    owners = [i for i, own in enumerate(ranges) for _ in own]
    flat = [r for own in ranges for r in own]
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        STATEMENTS["find_ids"],
        {
            "shard": SHARD,
            "list_partition_ids": Bigints([partition_id for partition_id, _ in lists]),
            "list_ids": Byteas([keys for _, keys in lists]),
            "range_lists": Integers([i + 1 for i in owners]),
            "range_partition_ids": Bigints([lists[i][0] for i in owners]),
            "range_min_ids": Byteas([r.min for r in flat]),
            "range_max_ids": Byteas([r.max for r in flat]),
            "range_scan_ids": Byteas([r.scan_max for r in flat]),
        },
    )
    return [StoredId(row[0] - 1, *row[1:]) for row in await cursor.fetchall()]


async def find_gone(
    connection: Connection, partition_id: PartitionId, offsets: Sequence[int]
) -> set[int]:
    """Those of *offsets* whose messages were removed, in bulk or one by one."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        STATEMENTS["find_gone"],
        {"shard": SHARD, "partition_id": partition_id, "offsets": list(offsets)},
    )
    return {row[0] for row in await cursor.fetchall()}


async def read_segments(
    transactions: Transactions, wanted: Sequence[tuple[PartitionId, int]]
) -> list[Segment]:
    """The segments with these partitions and base offsets, in no order; lost ones are left out."""
    rows = await transactions.call(
        STATEMENTS["read_segments"],
        {
            "shard": SHARD,
            "partition_ids": [partition_id for partition_id, _ in wanted],
            "base_offsets": [base_offset for _, base_offset in wanted],
        },
    )
    return [Segment(*row) for row in rows]


async def read_segment_at(
    connection: Connection, partition_id: PartitionId, offset: int
) -> Segment | None:
    """The segment that holds *offset*; None when it is no longer kept."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        STATEMENTS["read_segment_at"],
        {"shard": SHARD, "partition_id": partition_id, "offset": offset},
    )
    row = await cursor.fetchone()
    return None if row is None else Segment(*row)
