"""Hundreds of thousands of dead letters: what looks at them all the time reads few of them.

That many are the incident itself, in which the figures are needed. Rows are counted, not seconds,
which are the machine's. An entry of an index is not: a thousand weigh as much as a few rows.
"""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

import psycopg
import pytest

from queue_server.broker import snapshot
from queue_server.broker.snapshot import Looks
from queue_server.domain.encryption import Keyring
from queue_server.storage import dashboard, dead_letters, statistics, stored_messages
from queue_server.storage.dead_letters import DeadLetterFilter
from queue_server.storage.figures import Figures
from queue_server.storage.pool import open_pool
from queue_server.storage.statistics import PartitionPage
from queue_server.storage.stored_messages import MessageFilter
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_queue

# What a backend has read it tells itself.
pytestmark = [
    pytest.mark.databases("embedded", "pg15", reason="PgBouncer keeps the backends"),
    pytest.mark.alone,
]

P = ParamSpec("P")
T = TypeVar("T")
Look = Callable[Concatenate[Transactions, P], Awaitable[T]]

LETTERS = 300_000
PARTITIONS = 100
# Of another queue, that had them before.
OTHERS = 20
# So many times in a row: after five PostgreSQL may think of another plan.
TIMES = 7
# Rows that a look may read: those it shows, and some of the newest that vacuum has not seen.
FEW = 500
PAGE = 50
BYTES = 1 << 20

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


async def fill(conninfo: str, queue_id: str, other_id: str) -> None:
    """A dead letter each millisecond, of ten reasons, the first of which the others contain."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "SELECT count(*) FROM queen.ensure_partitions(1::smallint, %(queue_id)s::uuid,"
            " (SELECT array_agg('p' || n) FROM generate_series(1, %(count)s) n))",
            {"queue_id": queue_id, "count": PARTITIONS},
        )
        await connection.execute(
            "INSERT INTO queen.dead_letters (shard, id, partition_id, queue_id, consumer_group,"
            "  message_offset, message_id, transaction_id, payload, error_message, retry_count,"
            "  created_at, failed_at)"
            " SELECT 1, gen_random_uuid(), p.id, p.queue_id, 'group-' || n %% 2, n,"
            "  gen_random_uuid(), 'id-' || n, convert_to(to_json(repeat('x', 200))::text, 'UTF8'),"
            "  CASE n %% 10 WHEN 0 THEN 'timeout' ELSE 'timeout of card ' || n %% 10 END, 3,"
            "  now() - make_interval(secs => (%(letters)s - n) * 0.001),"
            "  now() - make_interval(secs => (%(letters)s - n) * 0.001) + interval '1 second'"
            " FROM generate_series(1, %(letters)s) n"
            " JOIN (SELECT i.*, row_number() OVER (ORDER BY i.id) AS number"
            "       FROM queen.partitions i WHERE i.queue_id = %(queue_id)s::uuid) p"
            "  ON p.number = n %% %(count)s + 1"
            " ORDER BY n",
            {"queue_id": queue_id, "count": PARTITIONS, "letters": LETTERS},
        )
        await connection.execute(
            "WITH made AS (SELECT e.o_id FROM queen.ensure_partitions(1::smallint,"
            "  %(queue_id)s::uuid, ARRAY['p1']) e (o_name, o_id))"
            " INSERT INTO queen.dead_letters (shard, id, partition_id, queue_id, consumer_group,"
            "  message_offset, message_id, transaction_id, trace_id, producer_sub, payload,"
            "  error_message, retry_count, created_at, failed_at)"
            " SELECT d.shard, gen_random_uuid(), m.o_id,"
            "  %(queue_id)s::uuid, d.consumer_group, d.message_offset, d.message_id,"
            "  'other-' || d.message_offset, d.trace_id, d.producer_sub, d.payload, 'void',"
            "  d.retry_count, d.created_at - interval '1 day', d.failed_at - interval '1 day'"
            " FROM queen.dead_letters d, made m WHERE d.message_offset <= %(count)s",
            {"queue_id": other_id, "count": OTHERS},
        )
        # As autovacuum does while they come.
        await connection.execute("VACUUM (ANALYZE) queen.dead_letters")


class Reader:
    """Looks at the dead letters, and counts the rows that this takes."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    async def rows(self, look: Look[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[int, T]:
        """How many rows *look* read, in the table or by an index; and what it found."""
        before = await self._told()
        async with open_pool(
            self._conninfo,
            size=1,
            connection_timeout_ms=5000,
            statement_timeout_ms=60_000,
            lock_timeout_ms=5000,
        ) as pool:
            found = await look(Transactions(pool), *args, **kwargs)
            async with pool.connection() as connection:
                await connection.execute("SELECT pg_stat_force_next_flush()")
        return await self._told() - before, found

    async def few(self, look: Look[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What *look* finds each time, reading few rows."""

        async def looks(transactions: Transactions) -> T:
            for _ in range(TIMES - 1):
                await look(transactions, *args, **kwargs)
            return await look(transactions, *args, **kwargs)

        rows, found = await self.rows(looks)
        assert rows <= TIMES * FEW, rows
        return found

    async def _told(self) -> int:
        async with await psycopg.AsyncConnection.connect(self._conninfo) as connection:
            cursor = await connection.execute(
                "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables"
                " WHERE schemaname = 'queen' AND relname = 'dead_letters'"
            )
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])


async def look_at_figures(transactions: Transactions) -> Figures | None:
    looks = Looks(transactions, 10)
    figures = await looks.metrics()
    await looks.close()
    return figures


async def look_at_errors(transactions: Transactions) -> list[dashboard.ErrorRow]:
    looks = Looks(transactions, 10)
    first = await looks.errors.current()
    told = await asyncio.gather(*(looks.errors.current() for _ in range(TIMES)))
    assert {one.taken_at for one in told} == {first.taken_at}
    await looks.close()
    return first.value


async def test_looks_read_few_of_many_dead_letters(
    conninfo: str, transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_id = await make_queue(transactions, "q")
    other_id = await make_queue(transactions, "other")
    await fill(conninfo, queue_id, other_id)
    reader = Reader(conninfo)
    own = DeadLetterFilter(queue="q")

    # What dashboards and Prometheus ask for, again and again.
    assert (await reader.few(statistics.all_queues))[1].counts.dead == LETTERS
    places = await reader.few(statistics.partitions, PartitionPage(queue_id, 0, PARTITIONS))
    assert {place.counts.dead for place in places} == {LETTERS // PARTITIONS}
    queues = (await reader.few(statistics.overview)).queues
    assert {queue.name: queue.counts.dead for queue in queues} == {"q": LETTERS, "other": OTHERS}
    figures = await reader.few(look_at_figures)
    assert figures is not None
    assert {one.name: one.dead_letter_count for one in figures.queues} == {
        "q": LETTERS, "other": OTHERS,
    }  # fmt: skip
    for queue_ids, total, partition_count in (
        (None, LETTERS + OTHERS, PARTITIONS + 1),
        ([queue_id], LETTERS, PARTITIONS),
        ([other_id], OTHERS, 1),
    ):
        sums = await reader.few(statistics.dead_letters, queue_ids)
        assert (sums.total, sums.partition_count) == (total, partition_count)

    # The pages of dead letters, and of messages that are.
    for filter_, total in ((DeadLetterFilter(), LETTERS + OTHERS), (own, LETTERS)):
        assert await reader.few(dead_letters.count, filter_) == total
        for offset in (0, 3 * PAGE):
            page, size = await reader.few(dead_letters.page, filter_, PAGE, offset, BYTES)
            assert size == PAGE
            assert [letter.transaction_id for letter in page] == [
                f"id-{LETTERS - offset - n}" for n in range(PAGE)
            ]
    for queue in (None, "q"):
        newest = MessageFilter(LONG_AGO, queue=queue)
        messages, cut = await reader.few(
            stored_messages.dead_messages, newest, PAGE, PAGE, BYTES, Keyring()
        )
        assert not cut
        assert [one.transaction_id for one in messages] == [
            f"id-{LETTERS - PAGE - n}" for n in range(PAGE)
        ]

    # Those of a queue that has few are not looked for among the others.
    few = DeadLetterFilter(queue="other")
    newest = MessageFilter(LONG_AGO, queue="other")
    ids = [f"other-{OTHERS - n}" for n in range(OTHERS)]
    for filter_ in (few, DeadLetterFilter(queue="other", partition="p1", error="void")):
        assert await reader.few(dead_letters.count, filter_) == OTHERS
        page, _ = await reader.few(dead_letters.page, filter_, PAGE, 0, BYTES)
        assert [letter.transaction_id for letter in page] == ids
        run = await reader.few(dead_letters.next_run, filter_, None, PAGE)
        assert [letter.transaction_id for letter in run] == ids[::-1]
    messages, _ = await reader.few(stored_messages.dead_messages, newest, PAGE, 0, BYTES, Keyring())
    assert [one.transaction_id for one in messages] == ids

    # A run of a redrive, from the start and behind another, reads what it moves.
    first = await reader.few(dead_letters.next_run, own, None, PAGE)
    assert [letter.transaction_id for letter in first] == [f"id-{n + 1}" for n in range(PAGE)]
    second = await reader.few(dead_letters.next_run, own, first[-1], PAGE)
    assert [letter.transaction_id for letter in second] == [
        f"id-{PAGE + n + 1}" for n in range(PAGE)
    ]

    # By reason: all of them are read, once for everybody who asks.
    monkeypatch.setattr(snapshot, "_QUICK_S", 0.0)
    monkeypatch.setattr(snapshot, "_SHARE", 1e-6)
    read, errors = await reader.rows(look_at_errors)
    assert LETTERS <= read < 1.1 * LETTERS, read
    *most, last = errors
    assert len(most) == 10
    assert {row.count for row in most} == {LETTERS // 10}
    assert {row.groups for row in most} == {1}  # even ones are of one group, odd ones of another
    assert (most[0].queue, most[0].error) == ("q", "timeout")
    assert (last.queue, last.error, last.count, last.groups) == ("other", "void", OTHERS, 2)

    # A purge reads the rows that it deletes: to choose them, and to delete them.
    count = 10 * FEW
    read, deleted = await reader.rows(dead_letters.purge, own, count)
    assert deleted == count
    assert read < 4 * count, read
    (oldest,) = await dead_letters.next_run(transactions, own, None, 1)
    assert oldest.transaction_id == f"id-{count + 1}"
    assert await dead_letters.count(transactions, own) == LETTERS - count
