"""Acquire, extend and give back leases; commit runs of messages."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

import msgspec

from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.names import PartitionId, SubscriptionId
from queue_server.storage.arrays import Bigints, Booleans, Byteas, Integers, Uuids
from queue_server.storage.messages import SHARD
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Transactions

# What one pop hands out at most, measured opened: a consumer that asks for more gets a part.
POP_RAW_BYTES_MAX = 64 * 1024 * 1024
# How much of it, as stored, travels with the claim; the rest is read while it is sent, so that a
# worker never holds a large answer.
POP_INLINE_BYTES_MAX = 4 * 1024 * 1024

ANY_PARTITION = PartitionId(0)


class ClaimRequest(msgspec.Struct, frozen=True):
    """What a pop asks of the database.

    `partition_id` ANY_PARTITION = any of the group's queue; `start_after` begins the round there;
    a negative `partition_limit` shares what is readable among so many pops; `lease_seconds` 0 = as
    the queue says. Requests in a row with one `lease_id` are one over several queues.
    """

    subscription_id: SubscriptionId
    partition_id: PartitionId
    start_after: PartitionId
    message_limit: int
    partition_limit: int
    lease_seconds: int
    lease_id: uuid.UUID
    auto_ack: bool


class Run(msgspec.Struct):
    """Messages [start, end) of one segment. `body` is None when it is to be read separately."""

    start: int
    end: int
    base_offset: int
    next_offset: int
    created_at: datetime.datetime
    first_message_id: uuid.UUID  # of the segment
    codec: int
    body: bytes | None


class Claim(msgspec.Struct):
    """What was handed out of one partition; `runs` are in order and without a gap but for holes.

    `taken_over`: from a lease that had run out.
    """

    partition_id: PartitionId
    attempt: int
    retry_count: int
    priority: int
    runs: list[Run]
    subscription_id: SubscriptionId
    taken_over: bool = False


class MissingKey(msgspec.Struct, frozen=True, gc=False):
    """A message that was not claimed because it is encrypted with a key that is not there."""

    partition_id: PartitionId
    offset: int
    key_id: bytes


class Exhausted(msgspec.Struct, frozen=True, gc=False):
    """A message that was claimed as often as its queue allows and never acknowledged."""

    subscription_id: SubscriptionId
    partition_id: PartitionId
    offset: int
    attempt: int


class Claimed(msgspec.Struct):
    """The answer to one ClaimRequest: claims, or the reason why none could be made."""

    claims: list[Claim]
    partition_limit: int = 0  # what a negative limit came to
    unknown_subscription: bool = False
    no_cursor: bool = False
    exhausted: list[Exhausted] = []
    unreadable: list[MissingKey] = []


class CommitRequest(msgspec.Struct, frozen=True):
    """Completed messages of one partition and group, in order: their id keys in one."""

    call: int
    partition_id: PartitionId
    subscription_id: SubscriptionId
    lease_id: uuid.UUID | None
    ids: bytes


class Committed(msgspec.Struct, frozen=True, gc=False):
    """`applied` False: the call needs the long way. `more`: messages are left behind the batch."""

    applied: bool
    released: bool
    more: bool


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """Consumers that wait for the same thing."""

    subscription_id: SubscriptionId
    partition_id: PartitionId
    count: int


class Claimable(msgspec.Struct, frozen=True, gc=False):
    """How many could be served, in how many seconds more could, and since when messages wait."""

    count: int
    readable_in_s: float | None
    oldest_at: datetime.datetime | None


async def claim(
    transactions: Transactions,
    requests: Sequence[ClaimRequest],
    key_ids: Sequence[bytes] = (),
    left_out: Sequence[PartitionId] = (),
) -> list[Claimed]:
    """Serve *requests* in one transaction, one after another.

    *key_ids*: only what is encrypted with one of these, or not at all, is claimed; *left_out*: not
    of these partitions, unless a request names one.
    Shape: aligned with *requests*; an empty `claims` means that there is nothing to hand out.
    """
    rows = await transactions.call(
        STATEMENTS["pop"],
        {
            "shard": SHARD,
            "subscription_ids": Integers([r.subscription_id for r in requests]),
            "partition_ids": Bigints([r.partition_id for r in requests]),
            "start_after": Bigints([r.start_after for r in requests]),
            "message_limits": Integers([r.message_limit for r in requests]),
            "partition_limits": Integers([r.partition_limit for r in requests]),
            "lease_seconds": Integers([r.lease_seconds for r in requests]),
            "lease_ids": Uuids([r.lease_id for r in requests]),
            "auto_acks": Booleans([r.auto_ack for r in requests]),
            "raw_bytes_max": POP_RAW_BYTES_MAX,
            "inline_bytes_max": POP_INLINE_BYTES_MAX,
            "key_ids": Byteas(key_ids),
            "left_out": Bigints(left_out),
        },
    )
    answers = [Claimed([]) for _ in requests]
    for row in rows:
        request, status, partition_id, start, end, attempt, retry_count, priority, limit = row[:9]
        answer = answers[request - 1]
        match status:
            case "unknown":
                answer.unknown_subscription = True
            case "no_cursor":
                answer.no_cursor = True
            case "exhausted":
                answer.exhausted = [
                    *answer.exhausted,
                    Exhausted(requests[request - 1].subscription_id, partition_id, start, attempt),
                ]
            case "unreadable":
                answer.unreadable = [*answer.unreadable, MissingKey(partition_id, start, row[15])]
            case _:
                if not answer.claims or answer.claims[-1].partition_id != partition_id:
                    taken_over = status == "taken_over"
                    answer.claims.append(
                        Claim(
                            partition_id,
                            attempt,
                            retry_count,
                            priority,
                            [],
                            requests[request - 1].subscription_id,
                            taken_over,
                        )
                    )
                answer.claims[-1].runs.append(Run(start, end, *row[10:]))
                answer.partition_limit = limit
    return answers


async def commit(transactions: Transactions, requests: Sequence[CommitRequest]) -> list[Committed]:
    """Commit runs of messages in one transaction; a call is applied whole or left alone.

    Shape: aligned with *requests*.
    Errors: `StorageUnavailable`, also when a call that was repeated finds its lease gone and
    nothing tells whether that is its own doing.
    """
    rows, may_be_done = await transactions.call_knowing(
        STATEMENTS["ack"],
        {
            "shard": SHARD,
            "calls": Integers([r.call for r in requests]),
            "partition_ids": Bigints([r.partition_id for r in requests]),
            "subscription_ids": Integers([r.subscription_id for r in requests]),
            "lease_ids": Uuids([r.lease_id for r in requests]),
            "ids": Byteas([r.ids for r in requests]),
        },
    )
    committed = [Committed(*row[1:]) for row in rows]
    if may_be_done:
        await _recognise(transactions, requests, committed)
    return committed


async def _recognise(
    transactions: Transactions, requests: Sequence[CommitRequest], committed: list[Committed]
) -> None:
    """Tell calls that an attempt without an answer had carried out from calls to be refused.

    Such a call finds its lease at an end. It ended it itself when the cursor says that this was the
    last lease to be settled; *committed* then says so. A later one may have taken its place there:
    "lease expired", on which a consumer undoes its work, would be a lie about committed messages.
    """
    refused = [i for i, one in enumerate(committed) if not one.applied and requests[i].lease_id]
    if not refused:
        return
    rows = await transactions.call(
        STATEMENTS["lease_fates"],
        {
            "shard": SHARD,
            "partition_ids": [requests[i].partition_id for i in refused],
            "subscription_ids": [requests[i].subscription_id for i in refused],
            "lease_ids": [requests[i].lease_id for i in refused],
        },
    )
    fates: dict[int, set[str]] = {}
    for i, (fate,) in zip(refused, rows, strict=True):
        fates.setdefault(requests[i].call, set()).add(fate)
    if any("gone" in own for own in fates.values()):
        raise StorageUnavailable(
            "the database did not complete the request; it may or may not have been carried out"
        )
    for i in refused:
        if fates[requests[i].call] == {"settled"}:
            committed[i] = Committed(applied=True, released=True, more=True)


async def extend(
    transactions: Transactions, lease_id: uuid.UUID, seconds: int
) -> list[datetime.datetime]:
    """Put off the expiry of a live lease; the new expiry in each of its partitions."""
    rows = await transactions.call(
        STATEMENTS["extend_lease"], {"shard": SHARD, "lease_id": lease_id, "seconds": seconds}
    )
    return [row[0] for row in rows]


async def release(
    transactions: Transactions, lease_ids: Sequence[uuid.UUID]
) -> list[tuple[PartitionId, SubscriptionId]]:
    """Give leases back whose messages nobody received; the partitions that are free again."""
    rows = await transactions.call(
        STATEMENTS["release_leases"], {"shard": SHARD, "lease_ids": list(lease_ids)}
    )
    return [(row[0], row[1]) for row in rows]


async def take_back(
    transactions: Transactions, lease_id: uuid.UUID | None, claim: Claim, start: int, end: int
) -> bool:
    """Undo the claim of one partition; without a lease, commit less: only what is before *start*.

    Shape: False when it could not be: the group has gone on from *end*, or lost the lease.
    """
    rows = await transactions.call(
        STATEMENTS["take_back"],
        {
            "shard": SHARD,
            "partition_id": claim.partition_id,
            "subscription_id": claim.subscription_id,
            "lease_id": lease_id,
            "start": start,
            "end": end,
        },
    )
    return bool(rows[0][0])


async def sweep(
    transactions: Transactions, after: uuid.UUID | None, limit: int
) -> tuple[int, uuid.UUID | None]:
    """Look at up to *limit* leases behind *after* and forget those that are over.

    Shape: how many rows were deleted, and behind which lease to go on; None when that was all.
    """
    rows = await transactions.call(
        STATEMENTS["sweep_leases"], {"shard": SHARD, "after": after, "limit": limit}
    )
    return rows[0][0], rows[0][1]


async def claimable(
    transactions: Transactions,
    rooms: Sequence[Waiting],
    *,
    left_out: Sequence[PartitionId] = (),
    with_oldest: bool = False,
) -> list[Claimable]:
    """Which of those who wait could be served now. Shape: aligned with *rooms*.

    *left_out* are partitions that do not count for those who wait for any.
    """
    rows = await transactions.call(
        STATEMENTS["claimable"],
        {
            "shard": SHARD,
            "subscription_ids": [r.subscription_id for r in rooms],
            "partition_ids": [r.partition_id for r in rooms],
            "limits": [r.count for r in rooms],
            "with_oldest": with_oldest,
            "left_out": Bigints(left_out),
        },
    )
    return [Claimable(*row[1:]) for row in rows]


async def sweep_pending(
    transactions: Transactions, subscription_id: SubscriptionId, limit: int
) -> int:
    """Forget up to *limit* idle partitions that the group has read to the end; how many."""
    rows = await transactions.call(
        STATEMENTS["sweep_pending"],
        {"shard": SHARD, "subscription_id": subscription_id, "limit": limit},
    )
    count: int = rows[0][0]
    return count


async def partitions_of(transactions: Transactions, lease_id: uuid.UUID) -> list[PartitionId]:
    """The partitions that a lease holds."""
    rows = await transactions.call(
        STATEMENTS["leased_partitions"], {"shard": SHARD, "lease_id": lease_id}
    )
    return [PartitionId(id_) for (id_,) in rows]
