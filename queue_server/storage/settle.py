"""The long way of an acknowledgement: one transaction that decides item by item.

It locks the cursors, finds the ids in the log, lets domain/settlement.py decide and writes that
back, with a copy of each message that becomes a dead letter.

Locks: cursors, ascending (partition, subscription). Isolation: READ COMMITTED; the log is read
after the lock, and what lies below a cursor or in its lease does not change.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from queue_server.domain import settlement
from queue_server.domain.encryption import Keyring
from queue_server.domain.ids import id_keys
from queue_server.domain.message import message_id
from queue_server.domain.names import PartitionRef, QueueName, SubscriptionId
from queue_server.domain.segment import OpenSegment, decrypt, sealed_by
from queue_server.domain.settlement import AckItem, AckResult, AckStatus, Cursor
from queue_server.storage.leases import Exhausted
from queue_server.storage.messages import SHARD, Segment, find_gone, find_ids, read_segment_at
from queue_server.storage.sealing import seal_letter
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection

# Of the reason of a failure, what a dead letter keeps: a long stack trace.
ERROR_CHARS_MAX = 10_000


class SettleItem(msgspec.Struct, frozen=True, gc=False):
    """One message of an acknowledgement, as the client names it."""

    transaction_id: str
    status: AckStatus
    lease_id: uuid.UUID | None
    error: str | None
    retry_after_ms: int | None = None  # None = as the queue says


class SettleRequest(msgspec.Struct, frozen=True):
    """The items of one call for one partition and group."""

    partition: PartitionRef
    consumer_group: str
    subscription_id: SubscriptionId
    items: Sequence[SettleItem]


class Settled(msgspec.Struct, frozen=True):
    """Results aligned with the request's items; whether the lease was released."""

    results: list[AckResult]
    released: bool


class GroupGone(Exception):
    """A registration was deleted after the caller had resolved it."""

    def __init__(self, queues: set[QueueName]) -> None:
        self.queues = queues


# A message that is nacked again and again comes back after an hour at the latest.
_RETRY_DELAY_MAX_MS = 3_600_000


class _Rules(msgspec.Struct, frozen=True):
    """What a queue says about failures. `retry_delay_ms` None = nobody set one."""

    retry_limit: int
    retry_delay_ms: int | None
    retry_backoff: bool
    is_encrypted: bool  # what is stored of its messages

    def delay_ms(self, item: SettleItem, retry_count: int) -> int | None:
        """How long a nacked message is to stay away; None = not at all."""
        if item.retry_after_ms is not None:
            return item.retry_after_ms
        if self.retry_delay_ms is None:
            return None
        if not self.retry_backoff:
            return self.retry_delay_ms
        doublings = min(max(retry_count - 1, 0), 30)
        return min(self.retry_delay_ms << doublings, _RETRY_DELAY_MAX_MS)


async def settle(
    connection: Connection,
    requests: Sequence[SettleRequest],
    keyring: Keyring,
    *,
    allow_resend: bool = True,
) -> list[Settled]:
    """Apply *requests*, which name distinct (partition, group) pairs, inside a transaction.

    Errors: `GroupGone`, nothing was done then.
    """
    cursors = await _lock_cursors(connection, requests)
    rules = await _rules(connection, requests)
    gone = {r.partition.queue for r in requests if r.subscription_id not in rules}
    if gone:
        raise GroupGone(gone)
    offsets = await _find_offsets(connection, requests, cursors)
    settled: list[Settled] = []
    for request, own_offsets in zip(requests, offsets, strict=True):
        cursor = cursors.get((request.partition.id, request.subscription_id))
        if cursor is None:
            settled.append(Settled([_refusal(item) for item in request.items], False))
            continue
        items = [
            AckItem(offset, item.status, item.lease_id, item.error)
            for item, offset in zip(request.items, own_offsets, strict=True)
        ]
        own_rules = rules[request.subscription_id]
        outcome = settlement.settle(cursor, items, own_rules.retry_limit, allow_resend=allow_resend)
        if outcome.dead_letters:
            removed = await _bury(
                connection,
                request,
                outcome.dead_letters,
                keyring,
                is_encrypted=own_rules.is_encrypted,
            )
            for offset, result in zip(own_offsets, outcome.results, strict=True):
                if offset in removed:
                    result.dead_letter = False
        if outcome.changed:
            delay_ms = None
            if outcome.nacked_by is not None:
                nack = request.items[outcome.nacked_by]
                delay_ms = own_rules.delay_ms(nack, outcome.cursor.retry_count)
            await _update_cursor(connection, request, outcome.cursor, delay_ms)
        settled.append(Settled(outcome.results, outcome.released))
    return settled


def _refusal(item: SettleItem) -> AckResult:
    """The answer when the group has no place in the partition: it never got a message there."""
    error = settlement.UNRESOLVABLE if item.lease_id is None else settlement.STALE_LEASE
    return AckResult(False, error)


async def _lock_cursors(
    connection: Connection, requests: Sequence[SettleRequest]
) -> dict[tuple[int, int], Cursor]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        STATEMENTS["lock_cursors"],
        {
            "shard": SHARD,
            "partition_ids": [r.partition.id for r in requests],
            "subscription_ids": [r.subscription_id for r in requests],
        },
    )
    return {(row[0], row[1]): Cursor(*row[2:]) for row in await cursor.fetchall()}


async def _rules(
    connection: Connection, requests: Sequence[SettleRequest]
) -> dict[SubscriptionId, _Rules]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        STATEMENTS["failure_rules"], {"subscription_ids": [r.subscription_id for r in requests]}
    )
    return {row[0]: _Rules(*row[1:]) for row in await cursor.fetchall()}


async def _find_offsets(
    connection: Connection,
    requests: Sequence[SettleRequest],
    cursors: dict[tuple[int, int], Cursor],
) -> list[list[int | None]]:
    """The offset of each item of each request; None when its id is not stored."""
    found = await find_ids(
        connection,
        [(r.partition.id, id_keys([item.transaction_id for item in r.items])) for r in requests],
    )
    offsets: list[list[int | None]] = [[None] * len(r.items) for r in requests]
    own_cursors = [cursors.get((r.partition.id, r.subscription_id)) for r in requests]
    # An id can be stored again, after its deduplication window or when its first message was
    # removed: the one that is out for delivery is meant, else the newest. That one comes last.
    found.sort(key=lambda place: (_is_leased(own_cursors[place.list], place.offset), place.offset))
    for place in found:
        offsets[place.list][place.position] = place.offset
    return offsets


def _is_leased(cursor: Cursor | None, offset: int) -> bool:
    return (
        cursor is not None
        and cursor.lease_end is not None
        and cursor.committed_offset <= offset < cursor.lease_end
    )


async def _bury(
    connection: Connection,
    request: SettleRequest,
    dead_letters: Sequence[settlement.DeadLetter],
    keyring: Keyring,
    *,
    is_encrypted: bool,
) -> set[int]:
    """Keep copies of messages that leave for the dead letters.

    Shape: the offsets of those that were removed from the log since they were handed out. Of these
    no copy is made: whoever removed them either kept one or wanted none.
    Errors: those of `Keyring.open` and `seal_letter`.
    """
    partition = request.partition
    gone = await find_gone(connection, partition.id, [d.offset for d in dead_letters])
    segment: Segment | None = None
    opened: OpenSegment | None = None
    for letter in dead_letters:
        if letter.offset in gone:
            continue
        if segment is None or not segment.base_offset <= letter.offset < segment.next_offset:
            segment = await read_segment_at(connection, request.partition.id, letter.offset)
            if segment is None:
                # Retention dropped it since it was found: it is gone for everybody.
                gone.add(letter.offset)
                continue
            codec, body = decrypt(
                segment.codec, segment.body, keyring, segment.place(partition.queue)
            )
            opened = OpenSegment(segment.base_offset, segment.next_offset, codec, body)
        assert opened is not None
        message = opened.message(letter.offset)
        await connection.execute(
            STATEMENTS["insert_dead_letter"],
            {
                "shard": SHARD,
                "partition_id": partition.id,
                "queue_id": partition.queue_id,
                "consumer_group": request.consumer_group,
                "message_offset": letter.offset,
                "message_id": message_id(
                    segment.first_message_id, letter.offset - segment.base_offset
                ),
                "transaction_id": message.transactionId,
                "original_transaction_id": message.originalTransactionId,
                "trace_id": message.traceId,
                "producer_sub": message.producerSub,
                "retry_count": letter.retry_count,
                "created_at": segment.created_at,
            }
            | seal_letter(
                keyring,
                partition.queue,
                partition.id,
                bytes(message.data),
                # Cut: the refusal of a long one would bring the message again and again.
                letter.error[:ERROR_CHARS_MAX],
                is_encrypted=is_encrypted,
                opened_with=sealed_by(segment.codec, segment.body),
            ),
        )
    return gone


async def bury_exhausted(
    connection: Connection, exhausted: Exhausted, partition: PartitionRef, keyring: Keyring
) -> bool:
    """Make a dead letter of a message that was claimed too often; whether it still had to be."""
    request = SettleRequest(partition, "", exhausted.subscription_id, [])
    cursor = (await _lock_cursors(connection, [request])).get(
        (partition.id, exhausted.subscription_id)
    )
    if (
        cursor is None
        or cursor.lease_live
        or cursor.committed_offset > exhausted.offset
        or cursor.attempt < exhausted.attempt
    ):
        return False
    rows = connection.cursor(binary=True)
    await rows.execute(STATEMENTS["subscription_group"], {"id": exhausted.subscription_id})
    row = await rows.fetchone()
    if row is None:
        return False
    letter = settlement.DeadLetter(
        exhausted.offset,
        f"claimed {exhausted.attempt} times without an acknowledgement",
        cursor.retry_count,
    )
    request = SettleRequest(partition, row[0], exhausted.subscription_id, [])
    rules = (await _rules(connection, [request]))[exhausted.subscription_id]
    await _bury(connection, request, [letter], keyring, is_encrypted=rules.is_encrypted)
    cursor.committed_offset = exhausted.offset + 1
    cursor.lease_id = cursor.lease_end = None
    cursor.attempt, cursor.attempt_offset = 0, -1
    cursor.retry_count, cursor.retry_offset = 0, -1
    await _update_cursor(connection, request, cursor, None)
    return True


async def _update_cursor(
    connection: Connection, request: SettleRequest, cursor: Cursor, delay_ms: int | None
) -> None:
    parameters = msgspec.structs.asdict(cursor)
    del parameters["lease_live"]
    parameters["delay_ms"] = delay_ms
    await connection.execute(
        STATEMENTS["update_cursor"],
        parameters
        | {
            "shard": SHARD,
            "partition_id": request.partition.id,
            "subscription_id": request.subscription_id,
        },
    )
