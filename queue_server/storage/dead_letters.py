"""Read and remove dead letters."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from queue_server.domain.encryption import Keyring
from queue_server.domain.names import PartitionId, QueueName
from queue_server.storage import groups
from queue_server.storage.messages import SHARD
from queue_server.storage.sealing import open_payload, open_reason
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions

# Rows of one transaction of a purge.
_PURGE_ROWS = 5000
# What one transaction of a redrive moves at most.
_RUN_ROWS = 500
_RUN_PAYLOAD_BYTES = 4 * 1024 * 1024


class DeadLetterFilter(msgspec.Struct, frozen=True):
    """Which dead letters; None = any. `start` and `end` bound the time of the failure."""

    queue: str | None = None
    consumer_group: str | None = None
    partition: str | None = None
    start: datetime.datetime | None = None
    end: datetime.datetime | None = None
    error: str | None = None  # the error text, of which the first 500 characters count
    error_contains: str | None = None  # of error texts that are not sealed
    error_keys: Sequence[bytes] = []  # what `error` is known by where it is sealed

    async def parameters(self, transactions: Transactions) -> dict[str, Any]:
        """What the statements take, planned for these values: see `find_dead_letters`."""
        return {
            "shard": SHARD,
            "queue_id": await queue_id(transactions, self.queue),
        } | msgspec.structs.asdict(self)


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was given up for one group. `payload` is JSON text.

    As it is stored, `payload` may be sealed, and `sealed_error` stands for `error_message`; see
    `opened`. Where they cannot be opened, both are None.
    """

    id: uuid.UUID
    partition_id: PartitionId
    partition: str
    queue: str
    consumer_group: str
    transaction_id: str
    trace_id: str | None
    producer_sub: str | None
    payload: bytes | None
    error_message: str | None
    retry_count: int
    created_at: datetime.datetime  # of the message
    failed_at: datetime.datetime
    sealed_error: bytes | None = None
    # What it was before it was moved back from the dead letters; None when it never was.
    original_transaction_id: str | None = None

    @property
    def first_transaction_id(self) -> str:
        """The id that its producer gave it, however often it was moved back since."""
        return self.original_transaction_id or self.transaction_id


def opened(letter: DeadLetter, keyring: Keyring) -> DeadLetter:
    """A dead letter that can be read. Errors: those of `Keyring.open`."""
    assert letter.payload is not None
    assert letter.error_message is not None
    place = letter.queue, letter.partition_id, letter.id
    return msgspec.structs.replace(
        letter,
        payload=open_payload(keyring, *place, letter.payload),
        error_message=open_reason(keyring, *place, letter.error_message, letter.sealed_error),
        sealed_error=None,
    )


async def queue_id(transactions: Transactions, name: str | None) -> str | None:
    """The id of the queue of a filter; one that no queue has, when there is none of this name."""
    if name is None:
        return None
    return await groups.find_queue(transactions, QueueName(name)) or str(uuid.UUID(int=0))


async def page(
    transactions: Transactions, filter_: DeadLetterFilter, limit: int, offset: int, bytes_max: int
) -> tuple[list[DeadLetter], int]:
    """Read dead letters, newest failure first.

    A page ends with the one whose payload exceeds *bytes_max*. Shape: also how many it would have
    without.
    """
    rows = await transactions.call(
        STATEMENTS["list_dead_letters"],
        await filter_.parameters(transactions)
        | {"limit": limit, "offset": offset, "bytes_max": bytes_max},
        prepare=False,
    )
    return [DeadLetter(*row[:-1]) for row in rows], rows[0][-1] if rows else 0


async def next_run(
    transactions: Transactions, filter_: DeadLetterFilter, after: DeadLetter | None, limit: int
) -> list[DeadLetter]:
    """The dead letters that follow *after*, at most *limit*, oldest failure first."""
    rows = await transactions.call(
        STATEMENTS["next_dead_letters"],
        await filter_.parameters(transactions)
        | {
            "after_failed_at": None if after is None else after.failed_at,
            "after_id": None if after is None else after.id,
            "limit": min(limit, _RUN_ROWS),
            "bytes_max": _RUN_PAYLOAD_BYTES,
        },
        prepare=False,
    )
    return [DeadLetter(*row) for row in rows]


async def by_id(
    transactions: Transactions, filter_: DeadLetterFilter, ids: Sequence[uuid.UUID]
) -> list[DeadLetter]:
    """Read those of *ids* that the filter lets through, oldest failure first."""
    rows = await transactions.call(
        STATEMENTS["dead_letters_by_id"],
        await filter_.parameters(transactions) | {"ids": list(ids)},
        prepare=False,
    )
    return [DeadLetter(*row) for row in rows]


async def of_same_messages(
    transactions: Transactions, filter_: DeadLetterFilter, ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[uuid.UUID]]:
    """For each of *ids* all that the filter lets through of the same message, itself included."""
    rows = await transactions.call(
        STATEMENTS["dead_letters_of_messages"],
        await filter_.parameters(transactions) | {"ids": list(ids)},
        prepare=False,
    )
    found: dict[uuid.UUID, list[uuid.UUID]] = {}
    for id_, other in rows:
        found.setdefault(id_, []).append(other)
    return found


class RedrivePreview(msgspec.Struct, frozen=True, rename="camel"):
    """What a redrive would do: remove entries, push messages, which are delivered to groups."""

    dead_letters: int
    messages: int
    deliveries: int


async def preview_redrive(transactions: Transactions, filter_: DeadLetterFilter) -> RedrivePreview:
    rows = await transactions.call(
        STATEMENTS["preview_redrive"], await filter_.parameters(transactions), prepare=False
    )
    return RedrivePreview(*rows[0])


async def count(transactions: Transactions, filter_: DeadLetterFilter) -> int:
    rows = await transactions.call(
        STATEMENTS["count_dead_letters"],
        await filter_.parameters(transactions),
        prepare=False,
    )
    number: int = rows[0][0]
    return number


async def get(transactions: Transactions, id_: uuid.UUID) -> DeadLetter | None:
    rows = await transactions.call(STATEMENTS["get_dead_letter"], {"shard": SHARD, "id": id_})
    return DeadLetter(*rows[0]) if rows else None


async def of_message(
    transactions: Transactions, partition_id: PartitionId, transaction_id: str
) -> list[DeadLetter]:
    """The dead letters of a message, one for each group that gave it up, newest failure first."""
    rows = await transactions.call(
        STATEMENTS["dead_letters_of_message"],
        {"shard": SHARD, "partition_id": partition_id, "transaction_id": transaction_id},
    )
    return [DeadLetter(*row) for row in rows]


async def delete_in(connection: Connection, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Delete these as a part of the transaction of *connection*; which there were."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(STATEMENTS["delete_dead_letters"], {"shard": SHARD, "ids": list(ids)})
    return {row[0] for row in await cursor.fetchall()}


async def purge(transactions: Transactions, filter_: DeadLetterFilter, limit: int | None) -> int:
    """Delete what the filter lets through, oldest failure first, at most *limit*; how many.

    A bounded number goes in one transaction.
    """
    parameters = await filter_.parameters(transactions)
    total = 0
    while True:
        rows_max = _PURGE_ROWS if limit is None else min(_PURGE_ROWS, limit - total)
        rows = await transactions.call(
            STATEMENTS["purge_dead_letters"], parameters | {"limit": rows_max}, prepare=False
        )
        deleted: int = rows[0][0]
        total += deleted
        if deleted < rows_max or total == limit:
            return total
