"""Takes old messages out of delivery, drops their segments, and removes what nobody uses.

Two steps, explained in sql/functions/retention.sql: raising a low watermark needs a lock that
pushes need, and lasts an instant; dropping what lies below needs none, and goes in batches.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import msgspec

from queue_server.domain.ids import id_ranges
from queue_server.domain.names import PartitionId
from queue_server.domain.options import QueueOptions
from queue_server.domain.retention import RetentionType, Rule
from queue_server.storage.messages import SHARD
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions

# What one transaction deletes at most, beside a number of segments. The ids of the messages are
# looked through in the worker's event loop, at about 0.2 microseconds each.
_BATCH_MESSAGES_MAX = 8192
# A body goes in pieces of 2 KB.
_BATCH_BODY_BYTES_MAX = 8 * 1024 * 1024


class QueueRule(msgspec.Struct, frozen=True):
    """A queue and what is to be done to it."""

    queue_id: str
    rule: Rule


class Place(msgspec.Struct, frozen=True):
    """Where a walk over partitions goes on: behind `after` in the queue with this index."""

    queue: int
    after: PartitionId


class Expired(msgspec.Struct, frozen=True):
    """A partition whose low watermark may rise to `low`."""

    queue_id: str
    partition_id: PartitionId
    low: int
    type: RetentionType


class Span(msgspec.Struct, frozen=True):
    """Offsets [start, end) of a partition, below its low watermark: to be dropped."""

    partition_id: PartitionId
    start: int
    end: int


class Raised(msgspec.Struct, frozen=True):
    """What raising low watermarks has removed: `spans` are to be dropped.

    `message_count` includes those that were taken out before; `freed` are the partitions in which a
    lease ended because nothing was left of its batch.
    """

    spans: list[Span]
    freed: list[PartitionId]

    @property
    def message_count(self) -> int:
        return sum(span.end - span.start for span in self.spans)


class Dropped(msgspec.Struct, frozen=True):
    """What one batch deleted, and what is left of what it was told to."""

    segment_count: int
    left: list[Span]


class HistoryPoint(msgspec.Struct, frozen=True):
    """What was deleted for one reason in one bucket of time."""

    bucket: datetime.datetime
    type: RetentionType
    message_count: int
    event_count: int


async def queues_with_rules(transactions: Transactions) -> list[tuple[str, QueueOptions]]:
    """The queues whose options make messages go, ascending by id.

    Shape: of the options only those that domain/retention.py reads are filled in.
    """
    rows = await transactions.call(STATEMENTS["queues_with_rules"], {})
    return [
        (
            str(queue_id),
            QueueOptions(
                retention_enabled=enabled,
                retention_seconds=seconds,
                completed_retention_seconds=completed_seconds,
                max_wait_time_seconds=max_wait_seconds,
                ttl=ttl,
            ),
        )
        for queue_id, enabled, seconds, completed_seconds, max_wait_seconds, ttl in rows
    ]


async def find_expired(
    transactions: Transactions,
    queues: Sequence[QueueRule],
    after: PartitionId,
    limit: int,
    *,
    now: datetime.datetime | None = None,
) -> tuple[list[Expired], Place | None]:
    """Look at up to *limit* partitions of *queues*, from behind *after* in the first.

    Shape: what may go, and where to go on; None when that was all.
    """
    rows = await transactions.call(
        STATEMENTS["find_expired"],
        {
            "shard": SHARD,
            "queue_ids": [q.queue_id for q in queues],
            "ages_s": [q.rule.age_s for q in queues],
            "completed_ages_s": [q.rule.completed_age_s for q in queues],
            "after": after,
            "limit": limit,
            "now": now,
        },
    )
    expired = []
    place = None
    for number, partition_id, low, completed in rows:
        queue = queues[number - 1]
        if low is None:
            place = Place(number - 1, PartitionId(partition_id))
        else:
            type_ = RetentionType.COMPLETED if completed else queue.rule.type
            expired.append(Expired(queue.queue_id, PartitionId(partition_id), low, type_))
    return expired, place


async def raise_low_watermarks(transactions: Transactions, expired: Sequence[Expired]) -> Raised:
    """Take *expired* out of delivery.

    A partition that a push holds just now is asked for again, alone, and waited for as a push
    does: a busy one would otherwise be passed over for ever.
    """
    raised = await _raise(transactions, expired, wait=False)
    done = {span.partition_id for span in raised.spans}
    for one in expired:
        if one.partition_id not in done:
            more = await _raise(transactions, [one], wait=True)
            raised.spans.extend(more.spans)
            raised.freed.extend(more.freed)
    return raised


async def _raise(transactions: Transactions, expired: Sequence[Expired], *, wait: bool) -> Raised:
    rows = await transactions.call(
        STATEMENTS["raise_low_watermarks"],
        {
            "shard": SHARD,
            "queue_ids": [e.queue_id for e in expired],
            "partition_ids": [e.partition_id for e in expired],
            "lows": [e.low for e in expired],
            "types": [e.type.value for e in expired],
            "wait": wait,
        },
    )
    return Raised([Span(*row[:3]) for row in rows], [row[0] for row in rows if row[3]])


async def drop(transactions: Transactions, spans: Sequence[Span], segment_limit: int) -> Dropped:
    """Delete up to *segment_limit* segments of *spans*, with all that hangs on their messages."""
    segments = await transactions.call(
        STATEMENTS["read_droppable"],
        {
            "shard": SHARD,
            "partition_ids": [s.partition_id for s in spans],
            "starts": [s.start for s in spans],
            "ends": [s.end for s in spans],
            "segment_limit": segment_limit,
            "message_limit": _BATCH_MESSAGES_MAX,
            "body_bytes_limit": _BATCH_BODY_BYTES_MAX,
        },
    )
    if not segments:
        return Dropped(0, [])
    done: dict[int, Span] = {}
    # The ids tell under which keys the segment is listed, so no index by segment is needed: one
    # would cost every push 110 bytes of WAL a range, whether or not messages ever go.
    ranges: list[tuple[PartitionId, bytes, int]] = []
    for number, base_offset, next_offset, ids in segments:
        span = spans[number - 1]
        start = done[number - 1].start if number - 1 in done else span.start
        done[number - 1] = Span(span.partition_id, start, next_offset)
        ranges += [(span.partition_id, r.max, base_offset) for r in id_ranges(ids)]
    rows = await transactions.call(
        STATEMENTS["drop_segments"],
        {
            "shard": SHARD,
            "partition_ids": [spans[row[0] - 1].partition_id for row in segments],
            "base_offsets": [row[1] for row in segments],
            "range_partition_ids": [r[0] for r in ranges],
            "range_max_ids": [r[1] for r in ranges],
            "range_base_offsets": [r[2] for r in ranges],
            "span_partition_ids": [s.partition_id for s in done.values()],
            "span_starts": [s.start for s in done.values()],
            "span_ends": [s.end for s in done.values()],
        },
    )
    last = max(done)
    left = [Span(spans[last].partition_id, done[last].end, spans[last].end), *spans[last + 1 :]]
    return Dropped(rows[0][0], left if left[0].start < left[0].end else left[1:])


async def find_leftovers(
    transactions: Transactions, after: PartitionId, limit: int
) -> tuple[list[Span], PartitionId | None]:
    """Look at up to *limit* partitions behind *after* for segments that should be gone.

    Shape: what is to be dropped, and behind which partition to go on; None when that was all.
    """
    rows = await transactions.call(
        STATEMENTS["find_leftovers"], {"shard": SHARD, "after": after, "limit": limit}
    )
    spans = [Span(*row) for row in rows if row[1] is not None]
    return spans, (PartitionId(rows[-1][0]) if rows and rows[-1][1] is None else None)


async def remove_idle_partitions(
    transactions: Transactions,
    after: PartitionId,
    limit: int,
    idle_s: int,
    *,
    now: datetime.datetime | None = None,
) -> tuple[int, PartitionId | None]:
    """Look at up to *limit* partitions behind *after* and remove those that nobody uses.

    Shape: how many were removed, and behind which partition to go on; None when that was all.
    """
    rows = await transactions.call(
        STATEMENTS["remove_idle_partitions"],
        {"shard": SHARD, "after": after, "limit": limit, "idle_seconds": idle_s, "now": now},
    )
    return rows[0][0], rows[0][1]


async def delete_old_traces(transactions: Transactions, age_s: int, limit: int) -> int:
    """Delete up to *limit* traces that are older than *age_s*; how many."""
    rows = await transactions.call(
        STATEMENTS["delete_old_traces"], {"shard": SHARD, "age_s": age_s, "limit": limit}
    )
    count: int = rows[0][0]
    return count


async def delete_old_history(transactions: Transactions, age_s: int, limit: int) -> int:
    """Delete up to *limit* entries of the history that are older than *age_s*; how many."""
    rows = await transactions.call(
        STATEMENTS["delete_old_history"], {"age_s": age_s, "limit": limit}
    )
    count: int = rows[0][0]
    return count


async def delete_old_expected_groups(transactions: Transactions, age_s: int, limit: int) -> int:
    """Delete up to *limit* groups that wait for a queue and have not asked for *age_s*."""
    rows = await transactions.call(
        STATEMENTS["delete_old_expected_groups"], {"age_s": age_s, "limit": limit}
    )
    count: int = rows[0][0]
    return count


async def history(
    transactions: Transactions,
    start: datetime.datetime,
    end: datetime.datetime,
    bucket_s: int,
) -> list[HistoryPoint]:
    """What retention and eviction deleted in [*start*, *end*), ascending by bucket."""
    rows = await transactions.call(
        STATEMENTS["retention_history"], {"start": start, "end": end, "bucket_s": bucket_s}
    )
    return [HistoryPoint(row[0], RetentionType(row[1]), row[2], row[3]) for row in rows]
