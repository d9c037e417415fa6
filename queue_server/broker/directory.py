"""What this worker remembers of names and ids.

Names resolve to ids that never change and are never used again, so a remembered pair cannot be
wrong, only outlived: when a queue was deleted the database answers that the id is gone, and the
caller forgets it here and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from typing import TypeVar

from queue_server.domain.names import (
    ConsumerGroup,
    PartitionId,
    PartitionKey,
    PartitionRef,
    QueueName,
    SubscriptionId,
    check_names,
)
from queue_server.domain.subscription import Start
from queue_server.storage import queues
from queue_server.storage.queues import Subscription
from queue_server.storage.transactions import Transactions

# Entries are about 500 bytes: some 50 MB when all three are full.
_ENTRIES_MAX = 50_000
# Of the partitions of one call. A push of a hundred thousand would put out all that others use, and
# find nothing of its own the next time.
_ENTRIES_OF_ONE_CALL_MAX = _ENTRIES_MAX // 4

K = TypeVar("K")
V = TypeVar("V")


def _remember(entries: dict[K, V], key: K, value: V) -> None:
    if len(entries) >= _ENTRIES_MAX and key not in entries:
        # The oldest goes; what is in use comes back with one query.
        del entries[next(iter(entries))]
    entries[key] = value


class Directory:
    """Resolves partitions and subscriptions, remembering the answers.

    It is a cache: an answer comes from the call that asked for it, never from what is remembered
    afterwards. One call may name more than there is room for.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._by_name: dict[tuple[str, str], PartitionRef] = {}
        self._by_id: dict[PartitionId, PartitionRef] = {}
        self._subscriptions: dict[tuple[str, str, bool], Subscription] = {}
        # Queues whose messages are to be encrypted. Not read from the database: a push that has it
        # wrong is told so, and nothing is written.
        self.encrypted_queues: set[str] = set()

    def known_partition(self, queue: str, partition: str) -> PartitionRef | None:
        """A partition that was resolved before."""
        return self._by_name.get((queue, partition))

    async def find_partitions(
        self, keys: Sequence[PartitionKey]
    ) -> dict[tuple[str, str], PartitionRef]:
        """Partitions by name, asked of the database; those that do not exist are left out.

        Errors: `BadRequest`, `NameTooLong`.
        """
        for key in keys:
            check_names(key.queue, key.partition, "partition")
        refs = await queues.find_partitions(self._transactions, keys)
        self.remember(refs)
        return {(ref.queue, ref.partition): ref for ref in refs}

    async def find_partition(self, key: PartitionKey) -> PartitionRef | None:
        """A partition by name; None when it does not exist."""
        ref = self._by_name.get((key.queue, key.partition))
        if ref is None:
            ref = await queues.find_partition(self._transactions, key)
            if ref is not None:
                self.remember([ref])
        return ref

    async def name_partitions(
        self, ids: Collection[PartitionId], is_visible: Callable[[str], bool] = lambda _: True
    ) -> dict[PartitionId, PartitionRef]:
        """Resolve partitions by id; those that do not exist are left out.

        So are those of a queue that is not visible. Each time they cost a query of the database,
        as those that do not exist do, so the time reveals nothing either.
        """
        refs = {
            id_: ref
            for id_ in ids
            if (ref := self._by_id.get(id_)) is not None and is_visible(ref.queue)
        }
        missing = [id_ for id_ in ids if id_ not in refs]
        if missing:
            found = await queues.name_partitions(self._transactions, missing)
            self.remember(found)
            refs |= {ref.id: ref for ref in found if is_visible(ref.queue)}
        return refs

    async def subscribe(
        self,
        queue: QueueName,
        group: ConsumerGroup,
        start: Start,
        *,
        conflation: bool = False,
    ) -> Subscription | None:
        """Find the registration of a group on a queue, or make it.

        Shape: None when the queue does not exist; it is registered with the queue's creation.
        """
        key = (queue, group, True)
        known = self._subscriptions.get(key)
        while known is None:
            queue_id = await queues.expect_group(
                self._transactions, queue, group, start, conflation=conflation
            )
            if queue_id is None:
                return None
            # None when it was deleted between the two calls.
            known = await queues.subscribe(
                self._transactions,
                queue_id,
                group,
                start,
                queue_wide=True,
                conflation=conflation,
            )
        _remember(self._subscriptions, key, known)
        return known

    async def subscribe_to_partition(
        self, partition: PartitionRef, group: ConsumerGroup, start: Start
    ) -> Subscription | None:
        """The registration of a group that names a partition: it registers nothing queue-wide.

        Shape: None when the queue is gone; it is forgotten here too.
        """
        key = (partition.queue, group, False)
        known = self._subscriptions.get(key)
        if known is None:
            known = await queues.subscribe(
                self._transactions, partition.queue_id, group, start, queue_wide=False
            )
            if known is None:
                self.forget_queue(partition.queue)
                return None
            _remember(self._subscriptions, key, known)
        return known

    async def find_subscription(
        self, partition: PartitionRef, group: ConsumerGroup
    ) -> SubscriptionId | None:
        """The registration of a group for an acknowledgement; nothing is registered."""
        for queue_wide in (True, False):
            known = self._subscriptions.get((partition.queue, group, queue_wide))
            if known is not None:
                return known.id
        found = await queues.find_subscription(self._transactions, partition.queue_id, group)
        if found is not None:
            _remember(self._subscriptions, (partition.queue, group, False), found)
        return None if found is None else found.id

    def forget_queue(self, queue: str) -> None:
        """Forget all that hangs on a queue that is gone."""
        self.forget_queues({queue})

    def forget_queues(self, gone: Set[str]) -> None:
        """Forget all that hangs on queues that are gone, in one pass over what is remembered."""
        for key in [key for key in self._by_name if key[0] in gone]:
            self._by_id.pop(self._by_name.pop(key).id, None)
        for name in [name for name in self._subscriptions if name[0] in gone]:
            del self._subscriptions[name]

    def remember(self, refs: Sequence[PartitionRef]) -> None:
        """Remember partitions that were found or created, once that is committed."""
        for ref in refs[:_ENTRIES_OF_ONE_CALL_MAX]:
            _remember(self._by_name, (ref.queue, ref.partition), ref)
            _remember(self._by_id, ref.id, ref)
