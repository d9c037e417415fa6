"""The state of maintenance, and the pushes that it holds back."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions

# Pushes of one read.
HELD_READ_MAX = 200
_HELD_BYTES_MAX = 8 * 1024 * 1024
_ID_MAX = 2**63 - 1


class Modes(msgspec.Struct, frozen=True):
    """Whether pushes are held back, and whether pops bring nothing.

    `holding`: pushes are held back, if only those to queues for which something is held.
    """

    push: bool = False
    pop: bool = False
    holding: bool = False


class HeldPush(msgspec.Struct, frozen=True):
    """A push that was held back; `items` as it was stored."""

    id: int
    producer_sub: str | None
    traceparent: str | None
    # Of a credential for some queues; None: it was for all.
    push_patterns: list[str] | None
    items: bytes
    message_count: int
    # Those that it names and that were not deleted since; empty if they are not known.
    queues: list[str]


class HeldCounts(msgspec.Struct, frozen=True):
    """Messages held back; `failed` are those of them that could not be stored."""

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
    rows = await transactions.call(STATEMENTS["switch_maintenance"], {"push": push, "pop": pop})
    return Modes(*rows[0])


async def lock_in(connection: Connection) -> Modes:
    """Lock the modes until the commit of *connection*: no push is held meanwhile."""
    cursor = await connection.execute(STATEMENTS["lock_maintenance"])
    row = await cursor.fetchone()
    assert row is not None
    return Modes(*row)


async def hold(
    transactions: Transactions,
    items: bytes,
    queues: Collection[str],
    message_count: int,
    producer_sub: str | None,
    traceparent: str | None,
    push_patterns: Sequence[str] | None,
) -> bool:
    """Keep a push for later; False when it is to be stored now. Errors: `Unavailable`.

    When the answer to a commit is lost it is kept twice. That is a repeated push like any other: it
    is stored once where its ids are within the deduplication window, and there is one.
    """
    rows = await transactions.call(
        STATEMENTS["hold_push"],
        {
            "items": items,
            "queues": list(queues),
            "message_count": message_count,
            "producer_sub": producer_sub,
            "traceparent": traceparent,
            "push_patterns": None if push_patterns is None else list(push_patterns),
        },
    )
    return bool(rows[0][0])


async def count_held(transactions: Transactions) -> HeldCounts:
    """How many messages are held back."""
    rows = await transactions.call(STATEMENTS["count_held"], {})
    return HeldCounts(*rows[0])


async def newest_held(transactions: Transactions) -> int | None:
    """The newest push that is held: with a lower id none is committed after this call."""
    rows = await transactions.call(STATEMENTS["newest_held"], {})
    newest: int | None = rows[0][0]
    return newest


async def release_queues(transactions: Transactions) -> int:
    """Let pushes to queues for which nothing is held any more through; how many these were."""
    rows = await transactions.call(STATEMENTS["release_queues"], {})
    count: int = rows[0][0]
    return count


async def release_queues_in(connection: Connection) -> None:
    """`release_queues` as a part of the transaction of *connection*."""
    await connection.execute(STATEMENTS["release_queues"])


async def read_held(
    transactions: Transactions,
    after: int,
    up_to: int,
    blocked: Collection[str] = (),
    skipped: Collection[int] = (),
) -> list[HeldPush]:
    """Some pushes in (*after*, *up_to*], the oldest first.

    Those that name a queue of *blocked*, and those of *skipped*, are left out.
    """
    rows = await transactions.call(
        STATEMENTS["read_held"], _read_parameters(after, up_to, blocked, skipped)
    )
    return [HeldPush(*row) for row in rows]


async def read_held_in(
    connection: Connection, blocked: Collection[str], skipped: Collection[int]
) -> list[HeldPush]:
    """The oldest pushes, as `read_held`, in the transaction of *connection*."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(STATEMENTS["read_held"], _read_parameters(0, _ID_MAX, blocked, skipped))
    return [HeldPush(*row) for row in await cursor.fetchall()]


def _read_parameters(
    after: int, up_to: int, blocked: Collection[str], skipped: Collection[int]
) -> dict[str, object]:
    return {
        "after": after,
        "up_to": up_to,
        "blocked": list(blocked),
        "skipped": list(skipped),
        "limit": HELD_READ_MAX,
        "bytes_max": _HELD_BYTES_MAX,
    }


async def note_failed(transactions: Transactions, ids: Sequence[int]) -> set[int]:
    """Note that these cannot be stored; those of which it was not known yet."""
    if not ids:
        return set()
    rows = await transactions.call(STATEMENTS["note_held_failed"], {"ids": list(ids)})
    return {row[0] for row in rows}


async def delete_held_in(connection: Connection, pushes: Sequence[HeldPush]) -> int:
    """Delete them as a part of the transaction of *connection*; how many were as they were read."""
    cursor = await connection.execute(
        STATEMENTS["delete_held"],
        {"ids": [one.id for one in pushes], "queue_counts": [len(one.queues) for one in pushes]},
    )
    return len(await cursor.fetchall())
