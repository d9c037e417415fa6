"""What PostgreSQL does before it knows how much is in the tables.

A new table has no statistics until autovacuum comes by, a restored or upgraded database none until
somebody says ANALYZE. The planner then takes a subquery for a single row, and would compute it anew
for each partition: figures over 5,000 partitions took ten seconds. So the rows read are counted.
"""

import datetime
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from psycopg import sql

from queue_server.domain.names import QUEUE_MODE, ConsumerGroup, PartitionId, QueueName
from queue_server.domain.retention import RetentionType, Rule
from queue_server.domain.status import MessageStatus
from queue_server.storage import dashboard, dead_letters, groups, retention, statistics
from queue_server.storage.dead_letters import DeadLetterFilter
from queue_server.storage.queues import delete_queue, find_subscription
from queue_server.storage.retention import QueueRule
from queue_server.storage.statistics import PartitionPage
from queue_server.storage.stored_messages import MessageFilter, browse
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_queue, pool_of, until_ended

# It counts what backends have done, which they tell when they end.
pytestmark = pytest.mark.databases("embedded", "pg15", reason="PgBouncer keeps the backends")

PARTITIONS = 5_000
SMALL_QUEUES = 50
QUEUES = ("wide", *(f"small-{number}" for number in range(SMALL_QUEUES)))
GROUPS = (QUEUE_MODE, "ledger", "audit")
# Three places in each partition, with allocator, dead letters and segments, some of them twice. Row
# for row it would be millions.
ROWS_MAX = PARTITIONS * 30
# Against the same look with statistics: what reads nothing again may still compare all with all.
SLOWER_MAX = 10
SLOWER_MAX_S = 0.5

TABLES = ("partitions", "allocators", "segments", "cursors", "subscriptions", "dead_letters")
LEDGER = ConsumerGroup("ledger")
HOUR = datetime.timedelta(hours=1)


async def make_partitions(conninfo: str, queue_id: str, count: int) -> None:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "SELECT count(*) FROM queen.ensure_partitions(1::smallint, %s::uuid,"
            " (SELECT array_agg('p' || n) FROM generate_series(1, %s) n))",
            (queue_id, count),
        )


async def fill(conninfo: str, queue_ids: list[str]) -> None:
    """The first queue is the wide one; three groups have a place in each partition."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        for table in TABLES:
            await connection.execute(
                sql.SQL("ALTER TABLE queen.{} SET (autovacuum_enabled = off)").format(
                    sql.Identifier(table)
                )
            )
        for number, queue_id in enumerate(queue_ids):
            await make_partitions(conninfo, queue_id, PARTITIONS if number == 0 else 1)
        await connection.execute(
            "INSERT INTO queen.segments (shard, partition_id, base_offset, next_offset, created_at,"
            "  first_message_id, raw_bytes, codec, ids, body)"
            " SELECT 1, a.partition_id, 0, 10, clock_timestamp(), gen_random_uuid(), 10, 0, '', ''"
            " FROM queen.allocators a"
        )
        await connection.execute(
            "UPDATE queen.allocators SET next_offset = 10, last_segment_at = clock_timestamp()"
        )
        await connection.execute(
            "INSERT INTO queen.subscriptions"
            " (queue_id, consumer_group, queue_wide, mode, starts_at)"
            " SELECT q.id, g, true, 'all', now() FROM queen.queues q, unnest(%s::text[]) g",
            (list(GROUPS),),
        )
        await connection.execute(
            "INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset)"
            " SELECT 1, a.partition_id, u.id, 5 FROM queen.allocators a"
            " JOIN queen.subscriptions u ON u.queue_id = a.queue_id"
        )
        await connection.execute(
            "INSERT INTO queen.dead_letters (shard, id, partition_id, queue_id, consumer_group,"
            "  message_offset, message_id, transaction_id, payload, error_message, retry_count,"
            "  created_at)"
            " SELECT 1, gen_random_uuid(), a.partition_id, a.queue_id, 'ledger', 4,"
            "  gen_random_uuid(), 't', '1', 'declined ' || a.partition_id % 7, 3,"
            "  clock_timestamp()"
            " FROM queen.allocators a"
        )


async def rows_read(connection: psycopg.AsyncConnection) -> int:
    """Of all tables, since the database was made, by backends that have ended."""
    cursor = await connection.execute(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint"
        " FROM pg_stat_user_tables WHERE schemaname = 'queen'"
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def measure(
    conninfo: str, look: Callable[[Transactions], Awaitable[object]]
) -> tuple[int, float]:
    """The rows it reads, and the seconds it takes."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        before = await rows_read(connection)
        async with pool_of(conninfo, statement_timeout_ms=30_000) as pool:
            own = Transactions(pool)
            ((pid,),) = await own.call("SELECT pg_backend_pid()", {})
            began = time.monotonic()
            await look(own)
            seconds = time.monotonic() - began
        await until_ended(connection, pid)
        return await rows_read(connection) - before, seconds


async def test_no_look_compares_all_with_all(conninfo: str, transactions: Transactions) -> None:
    queue_ids = [await make_queue(transactions, name) for name in QUEUES]
    await fill(conninfo, queue_ids)
    wide_id = queue_ids[0]
    partition_ids = [id_ async for chunk in groups.chunks(transactions, wide_id) for id_ in chunk]
    assert len(partition_ids) == PARTITIONS
    now = datetime.datetime.now(datetime.UTC)
    page = PartitionPage(wide_id, 0, PARTITIONS)
    looks: dict[str, Callable[[Transactions], Awaitable[object]]] = {
        "overview": statistics.overview,
        "partitions": lambda t: statistics.partitions(t, page),
        "depth": lambda t: statistics.queue_depth(t, page),
        "deepest partitions": lambda t: statistics.deepest_partitions(t, None, 0, 100),
        "namespaces": statistics.namespaces,
        "tasks": statistics.tasks,
        "leases": statistics.leases,
        "dead letters, counted": statistics.dead_letters,
        "groups": statistics.groups,
        "a group": lambda t: statistics.group(t, "ledger", 1000, 0),
        "lagging groups": lambda t: statistics.lagging(t, 0, None, None),
        "a page of partitions": lambda t: dashboard.partitions(
            t, wide_id, None, by_name=False, limit=50, offset=0
        ),
        "groups of a queue": lambda t: dashboard.groups(t, wide_id),
        "a page of a group's places": lambda t: dashboard.group_partitions(
            t, wide_id, LEDGER, None, limit=50, offset=0
        ),
        "errors of dead letters": dashboard.dead_letter_errors,
        "a page of dead letters": lambda t: dead_letters.page(
            t, DeadLetterFilter(), 50, 0, 1 << 24
        ),
        "a page of messages": lambda t: browse(t, MessageFilter(now - HOUR), 50, 5),
        "a page of unread messages": lambda t: browse(
            t, MessageFilter(now - HOUR, status=MessageStatus.PENDING), 50, 5
        ),
        "preview of a seek": lambda t: dashboard.preview_seek(
            t, wide_id, LEDGER, partition_ids, now - HOUR
        ),
    }
    found = {name: await measure(conninfo, look) for name, look in looks.items()}
    assert not {name: rows for name, (rows, _) in found.items() if rows > ROWS_MAX}
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute("ANALYZE")
    for name, look in looks.items():
        _, seconds = await measure(conninfo, look)
        assert found[name][1] < SLOWER_MAX * seconds + SLOWER_MAX_S, name


async def test_no_step_compares_all_with_all(conninfo: str, transactions: Transactions) -> None:
    queue_ids = [await make_queue(transactions, name) for name in QUEUES]
    await fill(conninfo, queue_ids)
    wide_id = queue_ids[0]
    subscription = await find_subscription(transactions, wide_id, LEDGER)
    assert subscription is not None
    partition_ids = [id_ async for chunk in groups.chunks(transactions, wide_id) for id_ in chunk]
    now = datetime.datetime.now(datetime.UTC)
    rules = [QueueRule(wide_id, Rule(RetentionType.RETENTION, 1800))]

    async def forget_group(transactions: Transactions) -> None:
        deleted = await groups.delete(transactions, wide_id, LEDGER, delete_metadata=True)
        assert deleted == subscription.id
        async for _ in groups.clear(transactions, deleted):
            pass

    steps: dict[str, Callable[[Transactions], Awaitable[object]]] = {
        "seek": lambda t: groups.seek(t, subscription.id, partition_ids, now - HOUR),
        "what has expired": lambda t: retention.find_expired(
            t, rules, PartitionId(0), PARTITIONS, now=now + HOUR
        ),
        "leftovers": lambda t: retention.find_leftovers(t, PartitionId(0), 2 * PARTITIONS),
        "purge": lambda t: dead_letters.purge(t, DeadLetterFilter(queue="wide"), None),
        "forget a group": forget_group,
        "delete": lambda t: delete_queue(t, QueueName("wide")),
    }
    found = {name: await measure(conninfo, step) for name, step in steps.items()}
    assert not {name: rows for name, (rows, _) in found.items() if rows > ROWS_MAX}

    # Partitions in which nothing ever was.
    idle_id = await make_queue(transactions, "idle")
    await make_partitions(conninfo, idle_id, PARTITIONS)
    rows, _ = await measure(
        conninfo,
        lambda t: retention.remove_idle_partitions(
            t, PartitionId(0), 2 * PARTITIONS, 60, now=now + HOUR
        ),
    )
    assert PARTITIONS < rows <= ROWS_MAX
