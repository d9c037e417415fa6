"""No hot statement reads a table from end to end, however much is in it."""

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
from queue_server.domain.names import QUEUE_MODE, PartitionKey, PartitionName, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage.queues import find_partitions
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_partitions

# It counts what backends have done, which they tell when they end.
pytestmark = pytest.mark.databases("embedded", "pg15", reason="PgBouncer keeps the backends")

HOT_TABLES = [
    "allocators", "cursors", "id_ranges", "leases", "partitions", "pending", "segments",
]  # fmt: skip


async def sequential_scans(conninfo: str) -> dict[str, int]:
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT relname, seq_scan FROM pg_stat_user_tables"
            " WHERE schemaname = 'queen' AND relname = ANY (%s)",
            (HOT_TABLES,),
        )
        return dict(await cursor.fetchall())


@pytest.mark.parametrize("analysed", [False, True])
async def test_push_pop_and_ack_scan_no_table(
    conninfo: str, transactions: Transactions, analysed: bool
) -> None:
    """Counted by PostgreSQL itself, with fresh statistics and with none."""
    row = Counters(1).worker(0)
    directory, rooms = Directory(transactions), Rooms()
    keyring, pace = Keyring(), Pace()
    pusher = Pusher(transactions, directory, rooms, row, keyring)
    popper = Popper(transactions, directory, rooms, row, keyring, pace)
    acker = Acker(transactions, directory, rooms, row, keyring, pace)

    def messages(round_: int) -> list[NewMessage]:
        return [
            NewMessage("q", msgspec.Raw(b"1"), f"p{n % 3000}", f"{round_}-{n}") for n in range(3000)
        ]

    request = PopRequest(
        queue=QueueName("q"), group=QUEUE_MODE, partition=None, start=ALL, message_limit=100,
        partition_limit=10, lease_seconds=60, auto_ack=False, wait_ms=0,
    )  # fmt: skip
    await popper.pop(request)
    for round_ in range(3):
        await pusher.push(messages(round_), 1000)
    if analysed:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await connection.execute("VACUUM ANALYZE")
    before = await sequential_scans(conninfo)

    await pusher.push(messages(3), 1000)
    for number in range(20):
        delivery = (await popper.pop(request)).delivery
        assert delivery is not None
        acks = []
        async for chunk in popper.chunks(delivery, lambda _claim, _run: b""):
            for message in msgspec.json.decode(b"[" + chunk.lstrip(b",") + b"]"):
                acks.append(message["transactionId"])
        places = [
            (str(claim.partition_id), run.end - run.start)
            for claim in delivery.claims
            for run in claim.runs
        ]
        partition_ids = [id_ for id_, count in places for _ in range(count)]
        status = "failed" if number % 5 == 0 else None
        outcomes = await acker.ack(
            [
                Ack(transaction_id, partition_id, status, None, str(delivery.lease_id))
                for transaction_id, partition_id in zip(acks, partition_ids, strict=True)
            ],
            QUEUE_MODE,
        )
        assert all(outcome.result.success for outcome in outcomes)

    # Statistics arrive when a backend is idle or ends.
    await transactions.close()
    assert await sequential_scans(conninfo) == before


async def test_a_pop_reads_a_few_rows_of_tables_that_were_never_analysed(
    conninfo: str, transactions: Transactions
) -> None:
    """Until autovacuum comes by, PostgreSQL takes a new table for tiny, and an index whose first
    column says nothing for as good as the whole key: reading all of it is no sequential scan, so
    the rows fetched through indexes are counted. They were 5,000 for each message once.
    """
    row = Counters(1).worker(0)
    directory, rooms = Directory(transactions), Rooms()
    keyring, pace = Keyring(), Pace()
    pusher = Pusher(transactions, directory, rooms, row, keyring)
    popper = Popper(transactions, directory, rooms, row, keyring, pace)
    request = PopRequest(
        queue=QueueName("q"), group=QUEUE_MODE, start=ALL, message_limit=10, partition_limit=10
    )
    await popper.pop(request)
    partitions = 2000
    for round_ in range(2):
        await pusher.push(
            [
                NewMessage("q", msgspec.Raw(b"1"), f"p{n}", f"{round_}-{n}")
                for n in range(partitions)
            ],
            1000,
        )
    pops = 30
    for _ in range(pops):
        assert (await popper.pop(request)).delivery is not None
    await transactions.close()
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT relname, idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE schemaname = 'queen' AND relname = ANY (%s)",
            (HOT_TABLES,),
        )
        fetched: dict[str, int] = dict(await cursor.fetchall())
    # A push looks a partition up about ten times; a pop reads the ten it takes and a few more.
    allowed = 2 * partitions * 15 + pops * 200
    assert all(count < allowed for count in fetched.values()), (allowed, fetched)


@pytest.mark.parametrize("analysed", [False, True])
async def test_partitions_are_found_and_made_by_name(
    conninfo: str, transactions: Transactions, analysed: bool
) -> None:
    """By one row each, however many the queue has: not by reading all of them for each name."""
    count = 2000
    before = await rows_of_partitions(conninfo)
    for batch in range(3):
        names = [f"{batch}-{n}" for n in range(count)]
        made = await make_partitions(transactions, "q", names)
        assert len({ref.id for ref in made}) == count
        if analysed:
            async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as own:
                await own.execute("ANALYZE queen.partitions")
    names = [f"1-{n}" for n in range(count)]
    keys = [PartitionKey(QueueName("q"), PartitionName(name)) for name in [*names, "absent"]]
    keys.append(PartitionKey(QueueName("absent"), PartitionName(names[0])))
    assert len(await find_partitions(transactions, keys)) == count
    again = await make_partitions(transactions, "q", names + names[:5])
    assert len(again) == count
    await transactions.close()  # a backend that ends tells what it has read
    # Each was read when it had been made, and when it was found; ANALYZE reads a sample. Each call
    # that makes some reads the newest one.
    read = await rows_of_partitions(conninfo) - before
    assert count * 5 <= read <= count * 7 + 3, read


async def rows_of_partitions(conninfo: str) -> int:
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT coalesce(idx_tup_fetch, 0) + seq_tup_read FROM pg_stat_user_tables"
            " WHERE schemaname = 'queen' AND relname = 'partitions'"
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])
