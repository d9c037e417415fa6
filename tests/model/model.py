"""What a queue server has to do, in memory and in the fewest words: wire-api section 2.

Written from the protocol and not from the server, which it never imports: where the two differ, one
of them is wrong. Each operation takes a request; where the protocol leaves the server a choice (the
ids it mints, which partitions a pop claims) it takes the answer too, asserts that the choice was
allowed, and follows it.

Time is a count of pushes. A message is stored at a time, a group starts behind a time, and a lease
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
    is_gone: bool = False  # it was deleted, cleared or given up


@dataclass
class Partition:
    """`low`: all before it was cleared."""

    id: str = ""  # unknown until the first push
    messages: list[Message] = field(default_factory=list)
    low: int = 0

    def offset_of(self, transaction_id: str) -> int | None:
        """Where a message with the id is that may be delivered."""
        return next(
            (at for at in self.places(transaction_id) if not self.messages[at].is_gone), None
        )

    def places(self, transaction_id: str) -> list[int]:
        """Where messages with the id are, those that were deleted or given up among them."""
        return [
            offset
            for offset in range(self.low, len(self.messages))
            if self.messages[offset].transaction_id == transaction_id
        ]

    def left(self, start: int) -> list[int]:
        """The messages from an offset on that may be delivered."""
        return [at for at in range(start, len(self.messages)) if not self.messages[at].is_gone]

    def offset_after(self, time: float) -> int:
        return max(sum(message.stored_at <= time for message in self.messages), self.low)


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

    def commit(self, end: int) -> None:
        self.place = end
        if self.retry_place < end:
            self.retries, self.retry_place = 0, -1


@dataclass
class Group:
    """`start`: behind which time it begins; None until it is registered on the whole queue."""

    start: float | None = None
    cursors: dict[str, Cursor] = field(default_factory=dict)


@dataclass(frozen=True)
class DeadLetter:
    group: str
    partition: str
    transaction_id: str
    error: str
    retries: int | None  # None = not said
    offset: int = field(default=-1, compare=False)


@dataclass
class Queue:
    retry_limit: int = DEFAULT_RETRY_LIMIT
    partitions: dict[str, Partition] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)

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
        # Of queues that do not exist: where the groups start that popped them.
        self.expected: dict[str, dict[str, float]] = {}
        self.now = 0.0

    # -- queues --

    def configure(self, queue: str, retry_limit: int) -> None:
        own = self._create(queue)
        own.retry_limit, own.partitions = retry_limit, {"Default": Partition()}

    def _create(self, queue: str) -> Queue:
        """A queue that is new, with the groups that waited for it."""
        expected = self.expected.pop(queue, {})
        self.queues[queue] = Queue(groups={name: Group(at) for name, at in expected.items()})
        return self.queues[queue]

    def delete_queue(self, queue: str) -> bool:
        return self.queues.pop(queue, None) is not None

    def has(self, queue: str, partition: str | None) -> bool:
        """Whether the partition exists; without one, whether the queue has any."""
        partitions = self.queues[queue].partitions if queue in self.queues else {}
        return bool(partitions) if partition is None else partition in partitions

    # -- push (2.2, 2.4) --

    def push(self, items: Sequence[Item], entries: Sequence[dict[str, Any]]) -> list[bool]:
        """Store what is new; which *items* were. *entries* are the server's, for its ids."""
        self.now += 1
        stored = []
        for item, entry in zip(items, entries, strict=True):
            partitions = (self.queues.get(item.queue) or self._create(item.queue)).partitions
            partition = partitions.setdefault(item.partition, Partition())
            partition.id = partition.id or entry["partition_id"]
            offset = self.taken_by(item)
            stored.append(offset is None)
            if offset is None:
                offset = len(partition.messages)
                partition.messages.append(
                    Message(entry["message_id"], item.transaction_id, item.payload, self.now)
                )
            got = (entry["message_id"], entry["partition_id"], entry["offset"])
            assert got == (partition.messages[offset].id, partition.id, offset), (item, entry)
        return stored

    def taken_by(self, item: Item) -> int | None:
        """The place of the message that has the id: one to be delivered, or given up and kept."""
        if not self.has(item.queue, item.partition):
            return None
        queue = self.queues[item.queue]
        partition = queue.partitions[item.partition]
        kept = {one.offset for one in queue.dead_letters if one.partition == item.partition}
        return next(
            (
                offset
                for offset in partition.places(item.transaction_id)
                if not partition.messages[offset].is_gone or offset in kept
            ),
            None,
        )

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
        start = BEGINNING if group == QUEUE_MODE else start
        if partition is None and queue not in self.queues:
            assert not messages, "messages of a queue that does not exist"
            self.expected.setdefault(queue, {}).setdefault(group, start)
            return
        if partition is not None and not self.has(queue, partition):
            assert not messages, "messages of a partition that does not exist"
            return
        own_queue = self.queues[queue]
        own = own_queue.groups.setdefault(group, Group())
        if partition is None:
            own.start = start if own.start is None else own.start
        elif own.start is None and partition not in own.cursors:
            # Nothing is registered: the parameters seed the cursor of this partition.
            own.cursors[partition] = Cursor(own_queue.partitions[partition].offset_after(start))

        claimable = [
            name
            for name in (own_queue.partitions if partition is None else [partition])
            if (cursor := own_queue.cursor(group, name)).lease is None
            and own_queue.partitions[name].left(cursor.place)
        ]
        left = list(messages)
        messages_left = batch
        partitions_left = partition_limit
        while claimable and messages_left and partitions_left:
            assert left, f"nothing, or not enough, of {claimable}"
            name = left[0]["partition"]  # the server's choice
            assert name in claimable, f"{name} is not claimable: {left[0]}"
            claimable.remove(name)
            cursor = own.cursors.setdefault(name, own_queue.cursor(group, name))
            source = own_queue.partitions[name]
            offsets = source.left(cursor.place)[:messages_left]
            cursor.commit(offsets[0])  # it passes what is gone
            end = offsets[-1] + 1
            attempt = cursor.attempt + 1 if cursor.attempt_place == cursor.place else 1
            for offset in offsets:
                assert left, f"nothing, or not enough, of {name}"
                got, stored = left.pop(0), source.messages[offset]
                expected = {
                    "id": stored.id,
                    "transactionId": stored.transaction_id,
                    "data": stored.payload,
                    "offset": offset,
                    "queue": queue,
                    "partition": name,
                    "partitionId": source.id,
                    "consumerGroup": group,
                    "leaseId": "" if auto_ack else messages[0]["leaseId"],
                    "retryCount": cursor.retries,
                    "deliveryAttempt": 1 if auto_ack else attempt,
                }
                assert {key: got[key] for key in expected} == expected
            messages_left -= len(offsets)
            partitions_left -= 1
            if auto_ack:
                own.cursors[name] = Cursor(end, settled=cursor.settled)
            else:
                cursor.attempt, cursor.attempt_place = attempt, cursor.place
                cursor.lease, cursor.lease_end = messages[0]["leaseId"], end
        assert not left, f"more than was asked for, or than there is: {left}"

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

    def find(self, partition_id: str) -> tuple[Queue, str]:
        """A partition by its id, which was learnt from the server; it may be gone."""
        for queue in self.queues.values():
            for name, partition in queue.partitions.items():
                if partition.id == partition_id:
                    return queue, name
        return Queue(), ""

    def _settle(self, acks: Sequence[Ack], allow_resend: bool) -> list[Result]:
        """The items of a call that concern one (partition, group): the reference algorithm."""
        queue, name = self.find(acks[0].partition_id)
        cursor = queue.groups.get(acks[0].group, Group()).cursors.get(name)
        if cursor is None:
            # The group never got a message there.
            return [Result("lease" if ack.lease else "unresolv") for ack in acks]
        results = [Result()] * len(acks)
        rest: list[tuple[int, int, int]] = []  # offset, strength, index
        for i, ack in enumerate(acks):
            places = queue.partitions[name].places(ack.transaction_id)
            leased = [at for at in places if cursor.lease and cursor.place <= at < cursor.lease_end]
            # The one that is out for delivery is meant, else the newest.
            offset = max(leased or places, default=None)
            completed = ack.status == "completed"
            if ack.lease and ack.lease != cursor.lease:
                settled, begin, end = cursor.settled
                resent = allow_resend and completed and ack.lease == settled
                covered = offset is not None and begin <= offset < end
                results[i] = Result(released=True) if resent and covered else Result("lease")
            elif offset is None or (cursor.lease and offset >= cursor.lease_end):
                results[i] = Result("unresolv")
            elif offset < cursor.place:
                results[i] = Result(noop=True) if completed else Result("committed")
            else:
                rest.append((offset, STRENGTH.index(ack.status), i))

        rest.sort()
        begin, lease = cursor.place, cursor.lease
        completed_max = max((at for at, _, i in rest if acks[i].status == "completed"), default=-1)
        exhausted = buried = stopped = False
        seen = -1
        for offset, _, i in rest:
            ack = acks[i]
            if offset == seen:
                continue
            seen = offset
            if ack.status == "completed":
                cursor.commit(offset + 1)
            elif lease is None:
                continue  # there is nothing to give back
            elif buried and cursor.place < offset and completed_max < offset:
                stopped = True  # no second dead letter behind a message that the call leaves out
            elif ack.status == "dlq" or (
                ack.status == "failed" and (exhausted or cursor.retries >= queue.retry_limit)
            ):
                is_gone = queue.partitions[name].messages[offset].is_gone
                if not is_gone:
                    # Of several dead letters of one call, what the later count is is not said.
                    queue.dead_letters.append(
                        DeadLetter(
                            ack.group, name, ack.transaction_id, ack.error or "Retries exhausted",
                            None if buried else cursor.retries, offset,
                        )
                    )  # fmt: skip
                exhausted = exhausted or ack.status == "failed"
                buried = True
                cursor.commit(offset + 1)
                results[i] = replace(results[i], dlq=not is_gone)
            else:
                stopped = True
                if ack.status == "failed":
                    cursor.retries += 1
                    cursor.retry_place = offset
            if stopped:
                break  # the others are redelivered with this one

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

    # -- transactions (3.10) --

    def transact(self, items: Sequence[Item], acks: Sequence[Ack]) -> tuple[Model, list[Result]]:
        """What the acks do to a copy of this model, onto which *items* are then to be pushed.

        Errors: `Refused`.
        """
        after = copy.deepcopy(self)
        results = after.ack(acks, allow_resend=False)
        if any(result.refusal for result in results):
            raise Refused("rejected_ack")
        if any(after.taken_by(item) is not None for item in items):
            raise Refused("duplicate")
        return after, results

    # -- removal (5.4) --

    def is_passed(self, ack: Ack) -> bool:
        """Whether an ack names, out of its lease, what was deleted or given up.

        Whether the group has passed that place already depends on which partitions its empty pops
        looked at, which is not defined.
        """
        queue, name = self.find(ack.partition_id)
        places = queue.partitions[name].places(ack.transaction_id) if name else []
        cursor = queue.groups.get(ack.group, Group()).cursors.get(name)
        if cursor is None or not places:
            return False
        return queue.partitions[name].messages[max(places)].is_gone and not (
            cursor.lease and cursor.place <= max(places) < cursor.lease_end
        )

    def remove(self, queue: str, partition: str, transaction_id: str) -> bool:
        """Delete a message with its dead letters; whether there was anything."""
        own = self.queues[queue]
        offset = own.partitions[partition].offset_of(transaction_id)
        if offset is not None:
            self._take_out(own, partition, offset)
        count = len(own.dead_letters)
        own.dead_letters = [
            one
            for one in own.dead_letters
            if (one.partition, one.transaction_id) != (partition, transaction_id)
        ]
        return offset is not None or len(own.dead_letters) < count

    def give_up(
        self, queue: str, partition: str, transaction_id: str, groups: Sequence[str] | None
    ) -> None:
        """Move a message to the dead letters of *groups*, the server's choice; None = it refused.

        Those that have popped from the partition and wait for the message are among them. A group
        that is registered and has not met the partition may be, or not.
        """
        own = self.queues[queue]
        offset = own.partitions[partition].offset_of(transaction_id)
        assert offset is not None
        waiting = {name for name in own.groups if own.cursor(name, partition).place <= offset}
        met = {name for name, group in own.groups.items() if partition in group.cursors}
        if groups is None:
            assert met or own.groups, "nobody could have consumed it"
            assert not waiting & met, f"{waiting & met} wait for it"
            return
        assert groups, "it left without a dead letter"
        assert waiting & met <= set(groups), (waiting & met, groups)
        others = own.groups.keys() - met
        fallback = groups == [QUEUE_MODE] and not met
        assert set(groups) <= waiting | others or fallback, (waiting, groups)
        for group in groups:
            own.dead_letters.append(
                DeadLetter(
                    group, partition, transaction_id, "Moved to the dead letters by hand", 0, offset
                )
            )
        self._take_out(own, partition, offset)

    def _take_out(self, queue: Queue, partition: str, offset: int) -> None:
        queue.partitions[partition].messages[offset].is_gone = True
        self._end_leases(queue, partition)

    def _end_leases(self, queue: Queue, partition: str) -> None:
        """A lease of whose batch nothing is left protects nothing."""
        left = queue.partitions[partition].left(0)
        for group in queue.groups.values():
            cursor = group.cursors.get(partition)
            if (
                cursor
                and cursor.lease
                and not any(cursor.place <= offset < cursor.lease_end for offset in left)
            ):
                cursor.lease = None

    def clear(self, queue: str, partition: str | None) -> int:
        """Delete all messages; how many."""
        own = self.queues[queue]
        count = 0
        for name in own.partitions if partition is None else [partition]:
            source = own.partitions[name]
            count += len(source.left(0))
            source.low = len(source.messages)
            for message in source.messages:
                message.is_gone = True
            self._end_leases(own, name)
        return count

    def purge(self, queue: str) -> int:
        """Delete all dead letters; how many."""
        count = len(self.queues[queue].dead_letters)
        self.queues[queue].dead_letters = []
        return count

    # -- groups (3.12) --

    def seek(self, queue: str, group: str, partition: str | None, time: float) -> int:
        """Go on behind *time*; how many partitions that were."""
        own_queue = self.queues[queue]
        if group not in own_queue.groups:
            # A first contact, as a pop is.
            start = BEGINNING if group == QUEUE_MODE else min(time, self.now)
            own_queue.groups[group] = Group(start if partition is None else None)
        names = own_queue.partitions if partition is None else [partition]
        for name in names:
            place = own_queue.partitions[name].offset_after(time)
            own_queue.groups[group].cursors[name] = Cursor(place)
        return len(names)

    def delete_group(self, queue: str, group: str, *, delete_metadata: bool) -> None:
        groups = self.queues[queue].groups if queue in self.queues else {}
        own = groups.pop(group, None)
        if delete_metadata:
            self.expected.get(queue, {}).pop(group, None)
        elif own is not None:
            groups[group] = Group(own.start)
