"""Keep and read the events that consumers attach to messages."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

import msgspec

from queue_server.domain.encryption import Keyring, Unreadable
from queue_server.domain.ids import id_keys
from queue_server.domain.names import PartitionId
from queue_server.storage.messages import SHARD, find_ids
from queue_server.storage.sealing import must_seal, open_trace, seal_trace
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions


class NewTrace(msgspec.Struct, frozen=True):
    """An event to be attached to a message. `data` is JSON text."""

    partition_id: PartitionId
    transaction_id: str
    consumer_group: str
    event_type: str
    data: bytes
    names: Sequence[str]


class Trace(msgspec.Struct, frozen=True):
    """An event of a message.

    `data` is JSON text; None when it is encrypted and cannot be opened, as is `event_type`.
    """

    id: uuid.UUID
    partition_id: PartitionId
    message_offset: int
    transaction_id: str
    consumer_group: str
    event_type: str
    data: bytes | None
    worker_id: str | None
    created_at: datetime.datetime
    names: list[str]
    queue: str
    partition: str


class NameUse(msgspec.Struct, frozen=True):
    """How much a name is used."""

    name: str
    trace_count: int
    message_count: int
    last_seen: datetime.datetime


async def add(transactions: Transactions, keyring: Keyring, trace: NewTrace) -> uuid.UUID | None:
    """Attach an event to a message. Shape: its id; None when there is no such message.

    Errors: `EncryptionKeyMissing` when it would have to be sealed.
    """
    id_ = uuid.uuid4()

    async def work(connection: Connection) -> uuid.UUID | None:
        offset = await _find_offset(connection, trace.partition_id, trace.transaction_id)
        if offset is None:
            return None
        cursor = await connection.execute(
            STATEMENTS["encryption_of_partition"],
            {"shard": SHARD, "partition_id": trace.partition_id},
        )
        row = await cursor.fetchone()
        if row is None:
            return None
        queue, is_encrypted = row
        event_type, data = trace.event_type, trace.data
        if must_seal(keyring, queue, is_encrypted=is_encrypted):
            event_type, data = seal_trace(keyring, queue, trace.partition_id, id_, event_type, data)
        await connection.execute(
            STATEMENTS["insert_trace"],
            {
                "shard": SHARD,
                "id": id_,
                "partition_id": trace.partition_id,
                "message_offset": offset,
                "transaction_id": trace.transaction_id,
                "consumer_group": trace.consumer_group,
                "event_type": event_type,
                "data": data,
                "names": sorted(set(trace.names)),
            },
        )
        return id_

    return await transactions.run(work)


async def _find_offset(
    connection: Connection, partition_id: PartitionId, transaction_id: str
) -> int | None:
    found = await find_ids(connection, [(partition_id, id_keys([transaction_id]))])
    stored = [place.offset for place in found if not place.gone]
    if stored:
        return max(stored)
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        STATEMENTS["message_offset_in_dead_letters"],
        {"shard": SHARD, "partition_id": partition_id, "transaction_id": transaction_id},
    )
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def of_message(
    transactions: Transactions,
    keyring: Keyring,
    partition_id: PartitionId,
    transaction_id: str,
    limit: int,
    offset: int,
    bytes_max: int,
) -> tuple[list[Trace], int]:
    """The events of a message, oldest first, and how many there are on all pages.

    A page ends with the event whose data exceeds *bytes_max*.
    """
    parameters = {"shard": SHARD, "partition_id": partition_id, "transaction_id": transaction_id}
    rows = await transactions.call(
        STATEMENTS["traces_of_message"],
        parameters | {"limit": limit, "offset": offset, "bytes_max": bytes_max},
    )
    if offset == 0 and not rows:
        return [], 0
    total = await transactions.call(STATEMENTS["count_traces_of_message"], parameters)
    return [_opened(Trace(*row), keyring) for row in rows], total[0][0]


def _opened(trace: Trace, keyring: Keyring) -> Trace:
    assert trace.data is not None
    try:
        event_type, data = open_trace(
            keyring, trace.queue, trace.partition_id, trace.id, trace.event_type, trace.data
        )
    except Unreadable:
        return msgspec.structs.replace(trace, data=None)
    return msgspec.structs.replace(trace, event_type=event_type, data=data)


async def by_name(
    transactions: Transactions,
    keyring: Keyring,
    name: str,
    start: datetime.datetime | None,
    end: datetime.datetime | None,
    limit: int,
    offset: int,
    bytes_max: int,
) -> tuple[list[Trace], int]:
    """The events with a name, newest first, and how many there are on all pages.

    A page ends with the event whose data exceeds *bytes_max*.
    """
    parameters = {"shard": SHARD, "name": name, "start": start, "end": end}
    rows = await transactions.call(
        STATEMENTS["traces_by_name"],
        parameters | {"limit": limit, "offset": offset, "bytes_max": bytes_max},
    )
    total = await transactions.call(STATEMENTS["count_traces_by_name"], parameters)
    return [_opened(Trace(*row), keyring) for row in rows], total[0][0]


async def names(transactions: Transactions, limit: int, offset: int) -> tuple[list[NameUse], int]:
    """The names in use, those first that were used last, and how many there are on all pages."""
    rows = await transactions.call(
        STATEMENTS["trace_names"], {"shard": SHARD, "limit": limit, "offset": offset}
    )
    if rows:
        return [NameUse(*row[:4]) for row in rows], rows[0][4]
    total = await transactions.call(STATEMENTS["count_trace_names"], {"shard": SHARD})
    return [], total[0][0]
