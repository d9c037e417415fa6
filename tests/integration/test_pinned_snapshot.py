"""An old snapshot that somebody keeps (pg_dump, a forgotten session) does not slow the queue down.

PostgreSQL may then remove no version of a row, and the rows of a partition that are updated all the
time, its allocator and its cursors, leave thousands. Look-ups begin with the newest.
"""

import contextlib
from collections.abc import AsyncIterator

import msgspec
import psycopg
import pytest

from queue_server.broker.ack import Ack, Acker
from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions

# It counts what backends have done, which they tell when they end.
pytestmark = pytest.mark.databases("embedded", "pg15", reason="PgBouncer keeps the backends")

_CYCLES = 800


@contextlib.asynccontextmanager
async def old_snapshot(conninfo: str) -> AsyncIterator[None]:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SELECT count(*) FROM queen.cursors")
        yield
        await connection.execute("COMMIT")


async def cycle(transactions: Transactions, count: int) -> None:
    """Push, pop and acknowledge *count* single messages, one after another."""
    row = Counters(1).worker(0)
    directory, rooms = Directory(transactions), Rooms()
    keyring, pace = Keyring(), Pace()
    pusher = Pusher(transactions, directory, rooms, row, keyring)
    popper = Popper(transactions, directory, rooms, row, keyring, pace)
    acker = Acker(transactions, directory, rooms, row, keyring, pace)
    request = PopRequest(
        queue=QueueName("q"), group=QUEUE_MODE, start=ALL, message_limit=1, partition_limit=1
    )
    await popper.pop(request)
    for _ in range(count):
        await pusher.push([NewMessage("q", msgspec.Raw(b"1"))], 100)
        delivery = (await popper.pop(request)).delivery
        assert delivery is not None
        text = b"".join([chunk async for chunk in popper.chunks(delivery, lambda *_: b"")])
        acks = [
            Ack(
                msgspec.json.decode(text)["transactionId"],
                str(delivery.claims[0].partition_id),
                lease_id=str(delivery.lease_id),
            )
        ]
        outcomes = await acker.ack(acks, QUEUE_MODE)
        assert outcomes[0].result.success


async def read_of(conninfo: str) -> dict[str, int]:
    """Entries that were read of the primary keys, by table."""
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT relname, idx_tup_read FROM pg_stat_user_indexes"
            " WHERE schemaname = 'queen' AND indexrelname = ANY"
            " (ARRAY['allocators_pkey', 'cursors_pkey'])"
        )
        return dict(await cursor.fetchall())


async def test_a_kept_snapshot_does_not_make_look_ups_longer(
    conninfo: str, transactions: Transactions
) -> None:
    async with old_snapshot(conninfo):
        await cycle(transactions, _CYCLES // 2)
        # The planner now takes the tables for as small as they look, whatever lies in them.
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as own:
            await own.execute("VACUUM ANALYZE queen.allocators, queen.cursors, queen.leases")
        await cycle(transactions, _CYCLES // 2)
        await transactions.close()  # a backend that ends tells what it has read
        before = await read_of(conninfo)
        count = 50
        async with open_pool(
            conninfo,
            size=2,
            connection_timeout_ms=5000,
            statement_timeout_ms=10_000,
            lock_timeout_ms=5000,
        ) as pool:
            await cycle(Transactions(pool), count)
        after = await read_of(conninfo)
    read = {table: (after[table] - before[table]) / count for table in before}
    # Seven look-ups of each in a cycle, and a few versions that lie behind the newest in the index.
    # Passing over all versions would be a dozen and more for each of them.
    assert all(entries < 25 for entries in read.values()), read


async def test_claims_and_acknowledgements_touch_no_index(
    conninfo: str, transactions: Transactions
) -> None:
    """All but a few are HOT updates: what changes is not indexed, and the pages have room."""
    await cycle(transactions, 300)
    await transactions.close()
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
            " WHERE schemaname = 'queen' AND relname IN ('allocators', 'cursors')"
        )
        counts = {table: (updates, hot) for table, updates, hot in await cursor.fetchall()}
    assert counts["allocators"][0] >= 300
    assert counts["cursors"][0] >= 600
    assert all(hot >= 0.95 * updates for updates, hot in counts.values()), counts
