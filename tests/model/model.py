"""What a queue server has to do, in memory and in the fewest words: wire-api section 2.

Written from the protocol and not from the server, which it never imports: where the two differ, one
of them is wrong. Each operation takes a request; where the protocol leaves the server a choice (the
ids it mints, which partitions a pop claims) it takes the answer too, asserts that the choice was
allowed, and follows it.

Time is a count of events. A message is stored at a time, a group starts behind a time, and a lease
lives until somebody calls `expire`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

QUEUE_MODE = "__QUEUE_MODE__"
BEGINNING, NEVER = -1.0, float("inf")  # times before and after all messages
DEFAULT_RETRY_LIMIT = 3
STRENGTH = ["dlq", "failed", "retry", "completed"]  # of a message that a call names twice


@dataclass
class Message:
    id: str
    transaction_id: str
    payload: Any
    stored_at: float


@dataclass
class Partition:
    id: str = ""  # unknown until the first push
    messages: list[Message] = field(default_factory=list)

    def offset_of(self, transaction_id: str) -> int | None:
        ids = [message.transaction_id for message in self.messages]
        return ids.index(transaction_id) if transaction_id in ids else None

    def offset_after(self, time: float) -> int:
        return sum(message.stored_at <= time for message in self.messages)


@dataclass
class Cursor:
    """A group's place in a partition. `attempt` counts the claims that began at `attempt_place`."""

    place: int
    lease: str | None = None
    lease_end: int = -1
    attempt: int = 0
    attempt_place: int = -1
    retries: int = 0
    retry_place: int = -1  # of the message that was nacked
    # The lease that the last ack brought to its end, and what that ack covered.
    settled: tuple[str, int, int] = ("", 0, 0)


@dataclass
class Group:
    """`start`: behind which time it begins; None until it is registered on the whole queue."""

    start: float | None = None
    cursors: dict[str, Cursor] = field(default_factory=dict)


@dataclass
class Queue:
    retry_limit: int = DEFAULT_RETRY_LIMIT
    partitions: dict[str, Partition] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    dead_letters: list[tuple[str, str, str, str, int | None]] = field(default_factory=list)

    def cursor(self, group: str, partition: str) -> Cursor:
        """The group's cursor, or the one it would get; it becomes the group's when it is used."""
        own = self.groups[group]
        start = BEGINNING if own.start is None else own.start
        return own.cursors.get(partition) or Cursor(self.partitions[partition].offset_after(start))


@dataclass(frozen=True)
class Item:
    """A message to push."""

    queue: str
    partition: str
    transaction_id: str
    payload: Any


@dataclass(frozen=True)
class Ack:
    transaction_id: str
    partition_id: str
    group: str
    status: str
    lease: str = ""  # empty = not fenced
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """Of an ack. `refusal` is a word that the error text must hold; empty = success."""

    refusal: str = ""
    noop: bool = False
    dlq: bool = False
    released: bool = False


class Refused(Exception):
    """A transaction was rolled back; the text is its reason."""


class Model:
    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self.now = 0.0

    # -- queues --

    def configure(self, queue: str, retry_limit: int) -> None:
        self.queues[queue] = Queue(retry_limit, {"Default": Partition()})

    def delete_queue(self, queue: str) -> bool:
        return self.queues.pop(queue, None) is not None

    # -- push (2.2, 2.4) --

    def push(self, items: Sequence[Item], entries: Sequence[dict[str, Any]]) -> list[bool]:
        """Store what is new; which *items* were. *entries* are the server's, for its ids."""
        self.now += 1
        stored = []
        for item, entry in zip(items, entries, strict=True):
            partition = self.queues.setdefault(item.queue, Queue()).partitions.setdefault(
                item.partition, Partition(entry["partition_id"])
            )
            partition.id = partition.id or entry["partition_id"]
            offset = partition.offset_of(item.transaction_id)
            stored.append(offset is None)
            if offset is None:
                offset = len(partition.messages)
                partition.messages.append(
                    Message(entry["message_id"], item.transaction_id, item.payload, self.now)
                )
            assert entry["message_id"] == partition.messages[offset].id, (item, entry)
            assert entry["partition_id"] == partition.id, (item, entry)
            assert entry["offset"] == offset, (item, entry)
        return stored

    def is_stored(self, item: Item) -> bool:
        queue = self.queues.get(item.queue, Queue())
        partition = queue.partitions.get(item.partition, Partition())
        return partition.offset_of(item.transaction_id) is not None

    # -- pop (2.3, 2.5, 2.6) --

    def pop(
        self,
        queue: str,
        group: str,
        partition: str | None,
        batch: int,
        partition_limit: int,
        auto_ack: bool,
        start: float,
        messages: Sequence[dict[str, Any]],
    ) -> None:
        """Check that *messages* are what the server may hand out, and hold them for handed out."""
        if partition is None:
            self.queues.setdefault(queue, Queue())  # it may be created by a pop, a partition not
        elif partition not in self.queues.get(queue, Queue()).partitions:
            assert not messages, "messages of a partition that does not exist"
            return
        own_queue = self.queues[queue]
        own = own_queue.groups.setdefault(group, Group())
        start = BEGINNING if group == QUEUE_MODE else start
        if partition is None:
            own.start = start if own.start is None else own.start
        elif own.start is None and partition not in own.cursors:
            # Nothing is registered: the parameters seed the cursor of this partition.
            own.cursors[partition] = Cursor(own_queue.partitions[partition].offset_after(start))

        claimable = [
            name
            for name in (own_queue.partitions if partition is None else [partition])
            if (cursor := own_queue.cursor(group, name)).lease is None
            and cursor.place < len(own_queue.partitions[name].messages)
        ]
        left = list(messages)
        messages_left = batch
        partitions_left = partition_limit if partition is None else 1
        while claimable and messages_left and partitions_left:
            assert left, f"nothing, or not enough, of {claimable}"
            name = left[0]["partition"]  # the server's choice
            assert name in claimable, f"{name} is not claimable: {left[0]}"
            claimable.remove(name)
            cursor = own.cursors.setdefault(name, own_queue.cursor(group, name))
            stored = own_queue.partitions[name].messages
            count = min(messages_left, len(stored) - cursor.place)
            end = cursor.place + count
            attempt = cursor.attempt + 1 if cursor.attempt_place == cursor.place else 1
            for offset, message in zip(range(cursor.place, end), left[:count], strict=True):
                got = {key: message[key] for key in ("id", "transactionId", "data", "offset")}
                expected = stored[offset]
                assert got == {
                    "id": expected.id, "transactionId": expected.transaction_id,
                    "data": expected.payload, "offset": offset,
                }  # fmt: skip
                assert message["queue"] == queue, message
                assert message["partition"] == name, message
                assert message["partitionId"] == own_queue.partitions[name].id, message
                assert message["consumerGroup"] == group, message
                assert message["leaseId"] == ("" if auto_ack else messages[0]["leaseId"]), message
                assert message["retryCount"] == cursor.retries, (message, cursor)
                assert message["deliveryAttempt"] == (1 if auto_ack else attempt), (message, cursor)
            if auto_ack:
                own.cursors[name] = Cursor(end, settled=cursor.settled)
            else:
                cursor.attempt, cursor.attempt_place = attempt, cursor.place
                cursor.lease, cursor.lease_end = messages[0]["leaseId"], end
            del left[:count]
            messages_left -= count
            partitions_left -= 1
        assert not left, f"more than was asked for, or than there is: {left}"

    def may_start_late(self, queue: str, group: str, partition: str | None) -> bool:
        """Whether a start at a given time is well defined: for the queue, before any partition."""
        groups = self.queues[queue].groups if queue in self.queues else {}
        known = groups.get(group)
        return partition is None and (known is None or known.start is not None)

    def starts_at_beginning(self, queue: str, group: str) -> bool:
        groups = self.queues[queue].groups if queue in self.queues else {}
        return group not in groups or groups[group].start in (None, BEGINNING)

    # -- leases --

    def leased(self, lease: str) -> list[Cursor]:
        return [
            cursor
            for queue in self.queues.values()
            for group in queue.groups.values()
            for cursor in group.cursors.values()
            if cursor.lease == lease
        ]

    def expire(self, lease: str) -> None:
        for cursor in self.leased(lease):
            cursor.lease = None

    # -- ack (2.7, 2.8) --

    def ack(self, acks: Sequence[Ack], *, allow_resend: bool = True) -> list[Result]:
        results = [Result()] * len(acks)
        for place in dict.fromkeys((ack.partition_id, ack.group) for ack in acks):
            indexes = [i for i, ack in enumerate(acks) if (ack.partition_id, ack.group) == place]
            own = [acks[i] for i in indexes]
            for i, result in zip(indexes, self._settle(own, allow_resend), strict=True):
                results[i] = result
        return results

    def find(self, partition_id: str) -> tuple[Queue, str] | None:
        for queue in self.queues.values():
            for name, partition in queue.partitions.items():
                if partition_id and partition.id == partition_id:
                    return queue, name
        return None

    def cursor_of(self, partition_id: str, group: str) -> Cursor | None:
        """The cursor of a group that has met the partition."""
        found = self.find(partition_id)
        if found is None or group not in found[0].groups:
            return None
        return found[0].groups[group].cursors.get(found[1])

    def _settle(self, acks: Sequence[Ack], allow_resend: bool) -> list[Result]:
        """The items of a call that concern one (partition, group): the reference algorithm."""
        found = self.find(acks[0].partition_id)
        cursor = self.cursor_of(acks[0].partition_id, acks[0].group)
        if found is None or cursor is None:
            # The group never got a message there.
            return [Result("lease" if ack.lease else "unresolv") for ack in acks]
        queue, partition = found[0], found[0].partitions[found[1]]
        results = [Result()] * len(acks)
        rest: list[tuple[int, int, int]] = []  # offset, strength, index
        for i, ack in enumerate(acks):
            offset = partition.offset_of(ack.transaction_id)
            if ack.lease and ack.lease != cursor.lease:
                settled, begin, end = cursor.settled
                resent = allow_resend and ack.status == "completed" and ack.lease == settled
                if resent and offset is not None and begin <= offset < end:
                    results[i] = Result(released=True)
                else:
                    results[i] = Result("lease")
            elif offset is None or (cursor.lease and offset >= cursor.lease_end):
                results[i] = Result("unresolv")
            elif offset < cursor.place:
                done = ack.status == "completed"
                results[i] = Result(noop=True) if done else Result("committed")
            else:
                rest.append((offset, STRENGTH.index(ack.status), i))

        rest.sort()
        begin, lease = cursor.place, cursor.lease
        completed_max = max((at for at, strength, _ in rest if strength == 3), default=-1)
        exhausted = buried = stopped = False
        seen = -1
        for offset, _, i in rest:
            if stopped or offset == seen:
                continue
            seen = offset
            status = acks[i].status
            if status != "completed" and lease is None:
                continue
            if status == "completed":
                self._pass(cursor, offset)
            elif buried and cursor.place < offset and completed_max < offset:
                stopped = True  # no second dead letter behind a message that the call leaves out
            elif status == "dlq" or (
                status == "failed" and (exhausted or cursor.retries >= queue.retry_limit)
            ):
                # Of several dead letters of one call, what the later count is is not said.
                count = None if buried else cursor.retries
                queue.dead_letters.append(
                    (acks[i].group, found[1], acks[i].transaction_id,
                     acks[i].error or "Retries exhausted", count)
                )  # fmt: skip
                exhausted = exhausted or status == "failed"
                buried = True
                self._pass(cursor, offset)
                results[i] = replace(results[i], dlq=True)
            else:
                stopped = True
                if status == "failed":
                    cursor.retries += 1
                    cursor.retry_place = offset

        finished = lease is not None and cursor.place >= cursor.lease_end
        if finished:
            cursor.retries, cursor.retry_place = 0, -1
            cursor.settled = (lease or "", begin, cursor.place)
        if finished or buried:
            cursor.attempt, cursor.attempt_place = 0, -1
        elif lease and cursor.place != begin:
            cursor.attempt_place = cursor.place
        if lease and (finished or buried or stopped):
            cursor.lease = None
            for _, _, i in rest:
                results[i] = replace(results[i], released=True)
        return results

    @staticmethod
    def _pass(cursor: Cursor, offset: int) -> None:
        cursor.place = offset + 1
        if cursor.retry_place <= offset:
            cursor.retries, cursor.retry_place = 0, -1

    # -- transactions (3.10) --

    def transact(self, items: Sequence[Item], acks: Sequence[Ack]) -> tuple[Model, list[Result]]:
        """What the acks do to a copy of this model, onto which *items* are then to be pushed.

        Errors: `Refused`.
        """
        after = copy.deepcopy(self)
        results = after.ack(acks, allow_resend=False)
        if any(result.refusal for result in results):
            raise Refused("rejected_ack")
        if any(self.is_stored(item) for item in items):
            raise Refused("duplicate")
        return after, results

    # -- groups (3.12) --

    def seek(self, queue: str, group: str, partition: str | None, time: float) -> int:
        """Go on behind *time*; how many partitions that were."""
        own_queue = self.queues[queue]
        if group not in own_queue.groups:
            # A first contact, as a pop is.
            own_queue.groups[group] = Group()
            if partition is None:
                own_queue.groups[group].start = (
                    BEGINNING if group == QUEUE_MODE else min(time, self.now)
                )
        names = list(own_queue.partitions) if partition is None else [partition]
        for name in names:
            place = own_queue.partitions[name].offset_after(time)
            own_queue.groups[group].cursors[name] = Cursor(place)
        return len(names)

    def delete_group(self, queue: str, group: str, *, delete_metadata: bool) -> None:
        groups = self.queues[queue].groups if queue in self.queues else {}
        own = groups.pop(group, None)
        if own is not None and not delete_metadata:
            groups[group] = Group(own.start)
