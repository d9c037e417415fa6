"""Administers consumer groups: deletes them, moves them, changes where they start.

A deletion or a seek over many partitions is many transactions. It is not atomic, and need not be:
each partition is one of its own for its readers. Who repeats a seek that broke off ends at the same
place; what a deletion that broke off has left is taken away by the clean-up service.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence

import msgspec

from queue_server.broker.directory import Directory
from queue_server.broker.wakeup import News, Rooms
from queue_server.domain.errors import Unavailable
from queue_server.domain.names import (
    QUEUE_MODE,
    ConsumerGroup,
    PartitionId,
    PartitionKey,
    PartitionName,
    QueueName,
)
from queue_server.domain.subscription import ALL, NEW, Start
from queue_server.storage import groups, queues
from queue_server.storage.groups import Moved
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

# How often a seek begins again whose group is deleted under it.
_SEEK_ATTEMPTS_MAX = 5


class Sought(msgspec.Struct, frozen=True):
    """What a seek did; `newest_at` is the time of the newest message in those partitions."""

    partition_count: int
    newest_at: datetime.datetime | None


class PartitionSet(msgspec.Struct, frozen=True):
    """Some partitions of one queue."""

    queue: QueueName
    queue_id: str
    ids: Sequence[PartitionId]


class Groups:
    """Carries out the administration of consumer groups."""

    def __init__(self, transactions: Transactions, directory: Directory, rooms: Rooms) -> None:
        self._transactions = transactions
        self._directory = directory
        self._rooms = rooms

    async def delete(
        self, group: ConsumerGroup, queue: QueueName | None, *, delete_metadata: bool
    ) -> int:
        """Delete a group, everywhere or on one queue; how many cursors that were.

        Unless *delete_metadata*, what it starts with is kept.
        """
        if delete_metadata:
            # Before the queues are read: one that is created meanwhile either has registered the
            # group, which is found there, or no longer expects it.
            await groups.forget_expected(self._transactions, group, queue)
        cursor_count = 0
        for found in await groups.find_queues(self._transactions, group, queue):
            subscription_id = await groups.delete(
                self._transactions, found.id, group, delete_metadata=delete_metadata
            )
            self._directory.forget_queue(found.name)
            if subscription_id is not None:
                async for cleared in groups.clear(self._transactions, subscription_id):
                    cursor_count += cleared.cursor_count
                    self._tell(found.name, group, cleared)
        return cursor_count

    async def expire(self, idle_s: int) -> int:
        """Delete the groups that have neither popped nor acknowledged for *idle_s*; how many."""
        expired = await groups.find_expired(self._transactions, idle_s)
        for group, queue in expired:
            await self.delete(group, queue, delete_metadata=True)
            logger.warning(
                "a group has expired: it has not popped for GROUP_EXPIRE_SECONDS",
                extra={"group": group, "queue": queue},
            )
        return len(expired)

    async def clear_remains(self) -> int:
        """Finish the deletions that a crash broke off; how many cursors that were."""
        cursor_count = 0
        for subscription_id in await groups.find_remains(self._transactions):
            async for cleared in groups.clear(self._transactions, subscription_id):
                cursor_count += cleared.cursor_count
        return cursor_count

    async def restart(self, group: ConsumerGroup, starts_at: datetime.datetime) -> int:
        """Change where a group starts in partitions it has not met; on how many queues.

        Queue mode always starts at the beginning.
        """
        if group == QUEUE_MODE:
            return 0
        return await groups.restart(self._transactions, group, starts_at)

    async def seek(
        self, group: ConsumerGroup, queue: QueueName, to: datetime.datetime | None
    ) -> Sought | None:
        """Move a group in every partition of a queue to a time; None = to the end.

        Shape: None when the queue does not exist or has no partitions.
        """
        queue_id = await groups.find_queue(self._transactions, queue)
        if queue_id is None:
            return None
        # A seek is a contact as a pop is: a group that is new is registered on the queue, and gets
        # what is pushed to later partitions.
        start = NEW if to is None else Start("timestamp", to)
        moves: list[Moved] = []
        async for partition_ids in groups.chunks(self._transactions, queue_id):
            moved = await self._seek(
                group, PartitionSet(queue, queue_id, partition_ids), to, start, queue_wide=True
            )
            moves.append(moved)
        return _sum(moves)

    async def seek_partition(
        self,
        group: ConsumerGroup,
        queue: QueueName,
        partition: PartitionName,
        to: datetime.datetime | None,
    ) -> Sought | None:
        """Move a group in one partition to a time; None = to the end.

        Shape: None when the partition does not exist.
        """
        ref = await queues.find_partition(self._transactions, PartitionKey(queue, partition))
        if ref is None:
            return None
        # As a pop that names a partition, it says nothing about the others.
        moved = await self._seek(
            group, PartitionSet(queue, ref.queue_id, [ref.id]), to, ALL, queue_wide=False
        )
        return _sum([moved])

    async def _seek(
        self,
        group: ConsumerGroup,
        partitions: PartitionSet,
        to: datetime.datetime | None,
        start: Start,
        *,
        queue_wide: bool,
    ) -> Moved:
        for _ in range(_SEEK_ATTEMPTS_MAX):
            subscription_id = await groups.register(
                self._transactions,
                partitions.queue_id,
                group,
                ALL if group == QUEUE_MODE else start,
                queue_wide=queue_wide,
            )
            if subscription_id is None:
                # Another registered it at this moment, or the queue is gone.
                if await groups.find_queue(self._transactions, partitions.queue) is None:
                    return Moved(0, ())
                continue
            moved = await groups.seek(self._transactions, subscription_id, partitions.ids, to)
            if moved is not None:
                self._tell(partitions.queue, group, moved)
                return moved
        raise Unavailable("the group is being deleted again and again; try later")

    def _tell(self, queue: QueueName, group: ConsumerGroup, moved: Moved) -> None:
        self._rooms.tell([News(queue, partition, group) for partition in moved.partitions])


def _sum(moves: Sequence[Moved]) -> Sought | None:
    partition_count = sum(moved.cursor_count for moved in moves)
    times = [moved.newest_at for moved in moves if moved.newest_at is not None]
    return Sought(partition_count, max(times, default=None)) if partition_count else None
