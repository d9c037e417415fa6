"""The state of maintenance, and the pushes that it holds back."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions

_HELD_MAX = 200
_HELD_BYTES_MAX = 8 * 1024 * 1024


class Modes(msgspec.Struct, frozen=True):
    """Whether pushes are held back, and whether pops bring nothing."""

    push: bool = False
    pop: bool = False


class HeldPush(msgspec.Struct, frozen=True):
    """A push that was held back; `items` as it was stored."""

    id: int
    producer_sub: str | None
    traceparent: str | None
    # Of a credential for some queues; None: it was for all.
    push_patterns: list[str] | None
    items: bytes
    message_count: int


class HeldCounts(msgspec.Struct, frozen=True):
    """Messages held back; `failed` are those of them that could not be read."""

    total: int
    failed: int

    @property
    def pending(self) -> int:
        return self.total - self.failed


async def read(transactions: Transactions) -> Modes:
    rows = await transactions.call(STATEMENTS["get_maintenance"], {})
    return Modes(*rows[0])


async def write(
    transactions: Transactions, *, push: bool | None = None, pop: bool | None = None
) -> Modes:
    """Switch what is not None; how it is then."""
    rows = await transactions.call(STATEMENTS["set_maintenance"], {"push": push, "pop": pop})
    return Modes(*rows[0])


async def hold(
    transactions: Transactions,
    items: bytes,
    message_count: int,
    producer_sub: str | None,
    traceparent: str | None,
    push_patterns: Sequence[str] | None,
) -> None:
    """Keep a push for later. Errors: `Unavailable`.

    When the answer to a commit is lost it is kept twice. That is a repeated push like any other: it
    is stored once where its ids are within the deduplication window, and there is one.
    """
    await transactions.call(
        STATEMENTS["hold_push"],
        {
            "items": items,
            "message_count": message_count,
            "producer_sub": producer_sub,
            "traceparent": traceparent,
            "push_patterns": None if push_patterns is None else list(push_patterns),
        },
    )


async def count_held(transactions: Transactions) -> HeldCounts:
    """How many messages are held back."""
    rows = await transactions.call(STATEMENTS["count_held"], {})
    return HeldCounts(*rows[0])


async def read_held(transactions: Transactions, after: int) -> list[HeldPush]:
    """Some pushes behind the one with the id *after*, the oldest first."""
    rows = await transactions.call(
        STATEMENTS["read_held"],
        {"after": after, "limit": _HELD_MAX, "bytes_max": _HELD_BYTES_MAX},
    )
    return [HeldPush(*row) for row in rows]


async def note_failed(transactions: Transactions, ids: Sequence[int]) -> set[int]:
    """Note that these cannot be read; those of which it was not known yet."""
    if not ids:
        return set()
    rows = await transactions.call(STATEMENTS["note_held_failed"], {"ids": list(ids)})
    return {row[0] for row in rows}


async def delete_held_in(connection: Connection, ids: Sequence[int]) -> int:
    """Delete them as a part of the transaction of *connection*; how many there were."""
    cursor = await connection.execute(STATEMENTS["delete_held"], {"ids": list(ids)})
    return len(await cursor.fetchall())
