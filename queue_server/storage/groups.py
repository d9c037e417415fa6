"""Delete consumer groups, move them, change where they start.

Each works through a queue's partitions a bounded number at a time, every one in a transaction of
its own: pushes wait for no more than one of them, however many partitions the queue has.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence

import msgspec

from queue_server.domain.names import (
    ConsumerGroup,
    PartitionId,
    PartitionName,
    QueueName,
    SubscriptionId,
)
from queue_server.domain.subscription import Start
from queue_server.storage.messages import SHARD
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions

# Partitions of one transaction; a thousand take about ten milliseconds.
CHUNK_PARTITIONS = 1000


class GroupQueue(msgspec.Struct, frozen=True, gc=False):
    """A queue on which a group is registered."""

    id: str
    name: QueueName


class Moved(msgspec.Struct, frozen=True):
    """What one transaction of a deletion or a seek did.

    `partitions` are those in which the group has, or may again have, something to read.
    """

    cursor_count: int
    partitions: Sequence[PartitionName]
    newest_at: datetime.datetime | None = None


async def find_queues(
    transactions: Transactions, group: ConsumerGroup, queue: QueueName | None
) -> list[GroupQueue]:
    """The queues on which *group* is registered; only *queue* when one is named."""
    rows = await transactions.call(
        STATEMENTS["group_queues"], {"consumer_group": group, "queue": queue}
    )
    return [GroupQueue(str(row[0]), row[1]) for row in rows]


async def forget_expected(
    transactions: Transactions, group: ConsumerGroup, queue: QueueName | None
) -> None:
    """Forget that *group* waits for queues that do not exist, or for *queue* alone."""
    await transactions.call(
        STATEMENTS["forget_expected_group"], {"consumer_group": group, "queue": queue}
    )


async def delete(
    transactions: Transactions, queue_id: str, group: ConsumerGroup, *, delete_metadata: bool
) -> SubscriptionId | None:
    """Delete a registration; its cursors are to be cleared. None when there is none."""
    rows = await transactions.call(
        STATEMENTS["delete_group"],
        {"queue_id": queue_id, "consumer_group": group, "delete_metadata": delete_metadata},
    )
    return rows[0][0] if rows else None


async def clear(
    transactions: Transactions, subscription_id: SubscriptionId
) -> AsyncIterator[Moved]:
    """Take the cursors of a deleted registration away."""
    more = True
    while more:
        rows = await transactions.call(
            STATEMENTS["clear_remains"],
            {"shard": SHARD, "subscription_id": subscription_id, "limit": CHUNK_PARTITIONS},
        )
        cursor_count, partitions, more = rows[0]
        yield Moved(cursor_count, partitions)


async def note(
    transactions: Transactions, popped: Sequence[SubscriptionId], acked: Sequence[SubscriptionId]
) -> None:
    """Note that groups are in use: those that popped, and those that acknowledged, just now."""
    await transactions.call(
        STATEMENTS["note_groups"], {"popped": sorted(popped), "acked": sorted(acked)}
    )


async def find_expired(
    transactions: Transactions, idle_s: int
) -> list[tuple[ConsumerGroup, QueueName]]:
    """Groups that have neither popped nor acknowledged for *idle_s*, by queue."""
    rows = await transactions.call(
        STATEMENTS["find_expired_groups"], {"shard": SHARD, "idle_s": idle_s}
    )
    return [(ConsumerGroup(row[0]), QueueName(row[1])) for row in rows]


async def find_remains(transactions: Transactions) -> list[SubscriptionId]:
    """Deleted registrations whose cursors a crash has left."""
    return [row[0] for row in await transactions.call(STATEMENTS["remains"], {})]


async def restart(
    transactions: Transactions, group: ConsumerGroup, starts_at: datetime.datetime
) -> int:
    """Change where *group* starts in partitions it has not met; on how many queues."""
    rows = await transactions.call(
        STATEMENTS["restart_subscriptions"], {"consumer_group": group, "starts_at": starts_at}
    )
    for subscription_id, queue_wide in rows:
        more = queue_wide
        while more:
            chunk = await transactions.call(
                STATEMENTS["backfill_subscription"],
                {"shard": SHARD, "subscription_id": subscription_id, "limit": CHUNK_PARTITIONS},
            )
            more = chunk[0][0]
    return len(rows)


async def find_queue(transactions: Transactions, queue: QueueName) -> str | None:
    """The id of a queue, if it exists."""
    rows = await transactions.call(STATEMENTS["find_queue"], {"queue": queue})
    return str(rows[0][0]) if rows else None


async def chunks(transactions: Transactions, queue_id: str) -> AsyncIterator[list[PartitionId]]:
    """The partitions of a queue, ascending, a bounded number at a time."""
    after = PartitionId(0)
    while True:
        rows = await transactions.call(
            STATEMENTS["list_partitions"],
            {"shard": SHARD, "queue_id": queue_id, "after": after, "limit": CHUNK_PARTITIONS},
        )
        if not rows:
            return
        yield [row[0] for row in rows]
        if len(rows) < CHUNK_PARTITIONS:
            return
        after = rows[-1][0]


async def register(
    transactions: Transactions,
    queue_id: str,
    group: ConsumerGroup,
    start: Start,
    *,
    queue_wide: bool,
) -> SubscriptionId | None:
    """The registration of a group, made when it is missing; what is stored wins.

    Shape: None when the queue is gone, or another made it at this moment.
    """
    rows = await transactions.call(
        STATEMENTS["register_for_seek"],
        {
            "queue_id": queue_id,
            "consumer_group": group,
            "mode": start.mode,
            "starts_at": start.at,
            "queue_wide": queue_wide,
        },
    )
    return rows[0][0] if rows else None


async def seek(
    transactions: Transactions,
    subscription_id: SubscriptionId,
    partition_ids: Sequence[PartitionId],
    to: datetime.datetime | None,
) -> Moved | None:
    """Move a group in these partitions to the first message at or after *to*; None = to the end.

    Shape: None when the group is no longer registered.
    """
    rows = await transactions.call(
        STATEMENTS["seed_cursors"],
        {"shard": SHARD, "subscription_id": subscription_id, "partition_ids": partition_ids},
    )
    if not rows[0][0]:
        return None
    rows = await transactions.call(
        STATEMENTS["seek"],
        {
            "shard": SHARD,
            "subscription_id": subscription_id,
            "partition_ids": partition_ids,
            "time": to,
        },
    )
    return Moved(*rows[0]) if rows else None
