"""Turns acknowledgements into committed offsets.

The items of a call fall into *elements*, one for each partition and group. A call whose elements
are all plain (everything completed under one lease) goes the short way, together with those of
other calls: `queen.ack` compares the ids with the log's. Any other call, and one that turns out not
to be that simple, goes the long way alone: storage/settle.py.
"""

from __future__ import annotations

import datetime
import functools
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from queue_server.broker.activity import Activity, QueueActivity
from queue_server.broker.coalescer import Coalescer, Turns
from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.wakeup import News, Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import BadRequest, Unavailable
from queue_server.domain.ids import KEY_BYTES, id_keys
from queue_server.domain.names import (
    ConsumerGroup,
    PartitionId,
    PartitionRef,
    SubscriptionId,
    parse_partition_id,
)
from queue_server.domain.settlement import (
    ACK_STATUSES,
    STALE_LEASE,
    UNRESOLVABLE,
    AckResult,
    AckStatus,
)
from queue_server.observability.counters import Counter, Operation, Row
from queue_server.storage import leases
from queue_server.storage.leases import CommitRequest, Committed
from queue_server.storage.settle import GroupGone, Settled, SettleItem, SettleRequest, settle
from queue_server.storage.transactions import Connection, Transactions

_FLUSH_CALLS_MAX = 64
_WAITING_CALLS_MAX = 20_000
# How often an acknowledgement is tried again whose group was deleted under it.
_RESOLVE_ATTEMPTS_MAX = 5


# A lease id that is none: it fences like one, and no lease ever has it.
_NO_LEASE = uuid.UUID(int=0)


class Ack(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One acknowledged message, decoded straight from the request. An empty lease id is none."""

    transaction_id: Annotated[str, msgspec.Meta(min_length=1)]
    partition_id: str
    status: str | None = None  # absent = completed
    error: str | None = None
    lease_id: str | None = None
    consumer_group: str | None = None
    # A nack may say itself how long the message is to stay away.
    retry_after_millis: Annotated[int, msgspec.Meta(ge=0, le=7 * 24 * 3_600_000)] | None = None

    @property
    def is_completed(self) -> bool:
        return _status(self.status) is AckStatus.COMPLETED


class AckOutcome(msgspec.Struct, frozen=True, gc=False):
    """The result for one message, and the partition it belongs to (None when there is none)."""

    result: AckResult
    partition: PartitionRef | None


class _Element(msgspec.Struct):
    """The items of one call for one partition and group."""

    partition: PartitionRef
    group: ConsumerGroup
    subscription_id: SubscriptionId
    indexes: list[int]
    plain: bool  # all completed, under `lease_id`
    lease_id: uuid.UUID | None


_Call = tuple[CommitRequest, ...]


class Acker:
    """Carries out acknowledgements."""

    def __init__(
        self,
        transactions: Transactions,
        directory: Directory,
        rooms: Rooms,
        counters: Row,
        keyring: Keyring,
        pace: Pace,
        activity: Activity | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._activity = activity or Activity()
        self._keyring = keyring
        self._pace = pace
        self._transactions = transactions
        self._directory = directory
        self._rooms = rooms
        self._counters = counters
        self._coalescer: Coalescer[_Call, list[Committed] | None] = Coalescer(
            "ack",
            self._flush,
            flush_weight_max=_FLUSH_CALLS_MAX,
            waiting_weight_max=_WAITING_CALLS_MAX,
            on_flush=functools.partial(counters.observe_flush, Operation.ACK),
            turns=turns,
        )

    async def ack(self, acks: Sequence[Ack], default_group: ConsumerGroup) -> list[AckOutcome]:
        """Carry out one call, in one transaction.

        Shape: outcomes aligned with *acks*; *default_group* is that of items which name none.
        Errors: `BadRequest` for an unknown status, nothing is done then; `Unavailable`, the outcome
        is then unknown, and the call may be repeated.
        """
        for _ in range(_RESOLVE_ATTEMPTS_MAX):
            outcomes: list[AckOutcome | None] = [None] * len(acks)
            elements = await self.resolve(acks, default_group, outcomes)
            try:
                if elements and not (
                    all(element.plain for element in elements)
                    and await self._commit(
                        elements,
                        [id_keys([acks[i].transaction_id for i in e.indexes]) for e in elements],
                        outcomes,
                    )
                ):
                    await self._settle(acks, elements, outcomes)
            except GroupGone as gone:
                self.forget(gone)
                continue
            return _all_of(outcomes)
        raise Unavailable("the group is being deleted again and again; try later")

    async def ack_runs(
        self, likes: Sequence[Ack], keys: Sequence[bytes], default_group: ConsumerGroup
    ) -> list[AckOutcome] | None:
        """Carry out runs of acknowledgements; each of a run says the same of another message.

        Shape: *likes* is what they say, *keys* their id keys, and the outcome is that of each of a
        run; all are aligned. None when it is not that simple: nothing was done then, and `ack` is
        to decide item by item.
        Errors: as `ack`.
        """
        outcomes: list[AckOutcome | None] = [None] * len(likes)
        elements = await self.resolve(likes, default_group, outcomes)
        if not all(element.plain for element in elements):
            return None
        own_keys = [b"".join([keys[i] for i in element.indexes]) for element in elements]
        if elements and not await self._commit(elements, own_keys, outcomes):
            return None
        return _all_of(outcomes)

    def forget(self, gone: GroupGone) -> None:
        """Forget groups that another worker deleted, and may have registered again."""
        for queue in gone.queues:
            self._directory.forget_queue(queue)

    async def extend(self, lease_id: uuid.UUID, seconds: int) -> list[datetime.datetime]:
        """Put off the expiry of a lease; the new expiry in each of its partitions."""
        return await leases.extend(self._transactions, lease_id, seconds)

    async def resolve(
        self,
        acks: Sequence[Ack],
        default_group: ConsumerGroup,
        outcomes: list[AckOutcome | None],
    ) -> list[_Element]:
        """The elements of a call; items that name nothing known are answered here."""
        # What items have in common is looked at once, not for each.
        kinds: dict[tuple[str, str | None, str | None, str | None], list[int]] = {}
        for index, ack in enumerate(acks):
            kind = (ack.partition_id, ack.consumer_group, ack.status, ack.lease_id)
            indexes = kinds.get(kind)
            if indexes is None:
                kinds[kind] = [index]
            else:
                indexes.append(index)
        for _, _, status, _ in kinds:
            if status is not None and status not in ACK_STATUSES:
                raise BadRequest(
                    f"status must be one of {', '.join(ACK_STATUSES)}, not {status[:100]!r}"
                )
        ids = {text: parse_partition_id(text) for text, *_ in kinds}
        partitions = await self._directory.name_partitions(
            {id_ for id_ in ids.values() if id_ is not None}
        )
        elements: dict[tuple[PartitionId, str], _Element] = {}
        for (text, named_group, status, lease_text), indexes in kinds.items():
            id_ = ids[text]
            partition = None if id_ is None else partitions.get(id_)
            group = ConsumerGroup(named_group) if named_group else default_group
            subscription_id = None
            if partition is not None:
                subscription_id = await self._directory.find_subscription(partition, group)
            if partition is None or subscription_id is None:
                for index in indexes:
                    error = STALE_LEASE if lease_text else UNRESOLVABLE
                    outcomes[index] = AckOutcome(AckResult(False, error), partition)
                continue
            lease_id = _parse_lease_id(lease_text)
            known = elements.get((partition.id, group))
            if known is None:
                plain = _status(status) is AckStatus.COMPLETED
                elements[partition.id, group] = _Element(
                    partition, group, subscription_id, indexes, plain, lease_id
                )
            else:
                # Also of a group that is named by some items and meant by others.
                known.indexes.extend(indexes)
                known.indexes.sort()
                known.plain = (
                    known.plain
                    and _status(status) is AckStatus.COMPLETED
                    and known.lease_id == lease_id
                )
        return list(elements.values())

    # -- the short way --

    async def _commit(
        self,
        elements: Sequence[_Element],
        keys: Sequence[bytes],
        outcomes: list[AckOutcome | None],
    ) -> bool:
        """Commit the messages with these id keys, all or none: False when it is not that simple."""
        call = tuple(
            CommitRequest(
                call=0,  # numbered by the flush
                partition_id=element.partition.id,
                subscription_id=element.subscription_id,
                lease_id=element.lease_id,
                ids=own_keys,
            )
            for element, own_keys in zip(elements, keys, strict=True)
        )
        committed = await self._coalescer.submit(call)
        if committed is None or not all(one.applied for one in committed):
            return False
        for element, one in zip(elements, committed, strict=True):
            outcome = AckOutcome(AckResult(True, lease_released=one.released), element.partition)
            for index in element.indexes:
                outcomes[index] = outcome
        for element, request in zip(elements, call, strict=True):
            message_count = len(request.ids) // KEY_BYTES
            self._counters.add(Counter.MESSAGES_ACKED, message_count)
            self._activity.of(element.partition.queue).ack_success += message_count
            self._activity.contacts.acked.add(request.subscription_id)
            self._pace.note(request.subscription_id, message_count)
        self._activity.count_ack([element.partition.queue for element in elements])
        self._tell(
            [
                element
                for element, one in zip(elements, committed, strict=True)
                if one.released and one.more
            ]
        )
        return True

    async def _flush(self, calls: Sequence[_Call]) -> list[list[Committed] | None]:
        # Each (partition, group) once: a second call for one, which concurrent requests may bring,
        # has to see what the first did.
        taken: set[tuple[PartitionId, SubscriptionId]] = set()
        requests: list[CommitRequest] = []
        spans: list[tuple[int, int] | None] = []
        for number, call in enumerate(calls):
            keys = {(request.partition_id, request.subscription_id) for request in call}
            if taken & keys:
                spans.append(None)
                continue
            taken |= keys
            spans.append((len(requests), len(requests) + len(call)))
            requests.extend(msgspec.structs.replace(request, call=number) for request in call)
        committed = await leases.commit(self._transactions, requests)
        self._counters.add(Counter.ACK_TRANSACTIONS)
        return [None if span is None else committed[span[0] : span[1]] for span in spans]

    # -- the long way --

    async def _settle(
        self,
        acks: Sequence[Ack],
        elements: Sequence[_Element],
        outcomes: list[AckOutcome | None],
    ) -> None:
        async def work(connection: Connection) -> list[Settled]:
            return await settle(connection, _settle_requests(acks, elements), self._keyring)

        settled = await self._transactions.run(work)
        self._counters.add(Counter.ACK_TRANSACTIONS)
        self._note_settled(acks, elements, settled, outcomes)
        self._activity.count_ack([element.partition.queue for element in elements])

    async def settle_in(
        self,
        connection: Connection,
        acks: Sequence[Ack],
        elements: Sequence[_Element],
        outcomes: list[AckOutcome | None],
    ) -> Callable[[], None]:
        """Carry out *acks* as a part of a transaction; *elements* are theirs from `resolve`.

        Shape: *outcomes* is filled; what to call after the commit is returned.
        Errors: `GroupGone`: `forget` it and resolve again.
        """
        settled = await settle(
            connection, _settle_requests(acks, elements), self._keyring, allow_resend=False
        )
        for element, one in zip(elements, settled, strict=True):
            for index, result in zip(element.indexes, one.results, strict=True):
                outcomes[index] = AckOutcome(result, element.partition)
        return lambda: self._note_settled(acks, elements, settled, outcomes)

    def _note_settled(
        self,
        acks: Sequence[Ack],
        elements: Sequence[_Element],
        settled: Sequence[Settled],
        outcomes: list[AckOutcome | None],
    ) -> None:
        """Fill in the outcomes, count and tell what was done; after the commit."""
        for element, one in zip(elements, settled, strict=True):
            activity = self._activity.of(element.partition.queue)
            if any(result.success for result in one.results):
                self._activity.contacts.acked.add(element.subscription_id)
            for index, result in zip(element.indexes, one.results, strict=True):
                outcomes[index] = AckOutcome(result, element.partition)
                self._count(_status(acks[index].status), result, activity)
        self._tell(
            [element for element, one in zip(elements, settled, strict=True) if one.released]
        )

    def _count(self, status: AckStatus, result: AckResult, activity: QueueActivity) -> None:
        if result.dead_letter:
            self._counters.add(Counter.MESSAGES_DEAD_LETTERED)
            activity.dead_letters += 1
        if result.error == STALE_LEASE:
            self._counters.add(Counter.ACKS_REFUSED)
        if result.success and status is AckStatus.COMPLETED:
            self._counters.add(Counter.MESSAGES_ACKED)
            activity.ack_success += 1
        elif result.success and status is AckStatus.FAILED:
            self._counters.add(Counter.MESSAGES_FAILED)
            activity.ack_failed += 1

    def _tell(self, elements: Sequence[_Element]) -> None:
        self._rooms.tell(
            [News(e.partition.queue, e.partition.partition, e.group) for e in elements]
        )


def _all_of(outcomes: Sequence[AckOutcome | None]) -> list[AckOutcome]:
    done = [outcome for outcome in outcomes if outcome is not None]
    assert len(done) == len(outcomes)
    return done


def _settle_requests(acks: Sequence[Ack], elements: Sequence[_Element]) -> list[SettleRequest]:
    return [
        SettleRequest(
            partition=element.partition,
            consumer_group=element.group,
            subscription_id=element.subscription_id,
            items=[
                SettleItem(
                    acks[i].transaction_id,
                    _status(acks[i].status),
                    _parse_lease_id(acks[i].lease_id),
                    acks[i].error,
                    acks[i].retry_after_millis,
                )
                for i in element.indexes
            ],
        )
        for element in elements
    ]


def _status(text: str | None) -> AckStatus:
    return AckStatus.COMPLETED if text is None else ACK_STATUSES[text]


def _parse_lease_id(text: str | None) -> uuid.UUID | None:
    if not text:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return _NO_LEASE
