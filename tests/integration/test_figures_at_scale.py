"""Figures over a hundred thousand partitions: looked at once, then told to all who ask."""

import asyncio
import time

import psycopg
import pytest

from queue_server.broker.snapshot import Looks
from queue_server.storage import dashboard, series, statistics
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_queue

pytestmark = pytest.mark.alone

PARTITIONS = 100_000
# A look takes about a second on two cores that nobody else uses.
LOOK_MAX_S = 20
# Longer than the test.
DELAY_S = 900
TOLD_MAX_S = 0.2
OLD_S = 3 * 3600


async def fill(conninfo: str, queue_id: str, small_id: str) -> None:
    """A hundred thousand partitions with 30 messages each, of which a group has read 10.

    In one of them a single message is left, which has waited for hours; so has the only message of
    the small queue.
    """
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "SELECT count(*) FROM queen.ensure_partitions(1::smallint, %(queue_id)s::uuid,"
            " (SELECT array_agg('p' || n) FROM generate_series(1, %(count)s) n))",
            {"queue_id": queue_id, "count": PARTITIONS},
        )
        await connection.execute(
            "SELECT count(*) FROM queen.ensure_partitions(1::smallint, %s::uuid, ARRAY['p'])",
            (small_id,),
        )
        await connection.execute(
            "INSERT INTO queen.segments (shard, partition_id, base_offset, next_offset, created_at,"
            "  first_message_id, raw_bytes, codec, ids, body)"
            " SELECT 1, a.partition_id, n * 10, n * 10 + 10,"
            "  clock_timestamp() - make_interval(secs => 100 - n), gen_random_uuid(), 10, 0, '', ''"
            " FROM queen.allocators a, generate_series(0, 2) n"
        )
        await connection.execute(
            "UPDATE queen.allocators SET next_offset = 30, last_segment_at = clock_timestamp()"
        )
        # One message, of a partition that is caught up but for it, and of the small queue.
        await connection.execute(
            "WITH alone AS ("
            " SELECT max(p.id) AS id FROM queen.partitions p GROUP BY p.queue_id"
            "), old AS ("
            " UPDATE queen.segments s"
            " SET created_at = clock_timestamp() - make_interval(secs => %s)"
            " FROM alone WHERE s.partition_id = alone.id AND s.base_offset = 20"
            ") "
            "UPDATE queen.allocators a SET low_watermark = 29 FROM alone"
            " WHERE a.partition_id = alone.id",
            (OLD_S,),
        )
        await connection.execute(
            "INSERT INTO queen.subscriptions"
            " (queue_id, consumer_group, queue_wide, mode, starts_at)"
            " VALUES (%s, 'readers', true, 'all', now())",
            (queue_id,),
        )
        await connection.execute(
            "INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset)"
            " SELECT 1, a.partition_id, u.id, 10 FROM queen.allocators a"
            " JOIN queen.subscriptions u ON u.queue_id = a.queue_id"
        )
        await connection.execute("ANALYZE")


async def test_figures_over_100000_partitions_are_told_at_once(
    conninfo: str, transactions: Transactions
) -> None:
    wide_id = await make_queue(transactions, "wide")
    await fill(conninfo, wide_id, await make_queue(transactions, "small"))
    looks = Looks(transactions, 100)
    begin = time.monotonic()
    first = await looks.overview.current()
    look_s = time.monotonic() - begin
    assert look_s < LOOK_MAX_S
    assert first.value.partition_count == PARTITIONS + 1
    assert first.value.lag_offsets.max == 20
    assert first.value.lag_seconds.max >= OLD_S
    # However deep others are, nobody's oldest message is overlooked.
    wide, small = sorted(first.value.queues, key=lambda queue: -queue.depth)
    assert (small.name, small.depth) == ("small", 1)
    assert (wide.name, wide.depth) == ("wide", 20 * (PARTITIONS - 1) + 1)
    for queue in (wide, small):
        assert queue.oldest_at is not None
        assert OLD_S <= queue.oldest_s < OLD_S + 3600

    # A hundred at the same time, and whoever comes later, look no more.
    begin = time.monotonic()
    told = await asyncio.gather(*(looks.overview.current() for _ in range(100)))
    told_s = time.monotonic() - begin
    assert told_s < TOLD_MAX_S
    assert {one.taken_at for one in told} == {first.taken_at}
    assert told[0].age_s >= look_s

    begin = time.monotonic()
    (group,) = (await looks.groups.current()).value
    groups_s = time.monotonic() - begin
    assert (group.lag, group.lagging_count) == (wide.depth, PARTITIONS)
    assert group.lag_s_max >= OLD_S
    begin = time.monotonic()
    (row,) = await dashboard.groups(transactions, wide_id)
    rows_s = time.monotonic() - begin
    assert row.oldest_unread_at == wide.oldest_at
    begin = time.monotonic()
    await looks.groups.current()
    assert time.monotonic() - begin < TOLD_MAX_S

    # Asked for, it is new.
    assert (await looks.overview.refresh()).taken_at > first.taken_at

    begin = time.monotonic()
    assert await series.book_depths(transactions) == 2
    assert time.monotonic() - begin < LOOK_MAX_S

    # The worst that a delay does: each partition has both, so each is searched.
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        await connection.execute(
            "UPDATE queen.queues SET delayed_processing = %s WHERE name = 'wide'", (DELAY_S,)
        )
        await connection.execute(
            "UPDATE queen.segments SET created_at = created_at - make_interval(secs => %s)"
            " WHERE base_offset = 10",
            (DELAY_S,),
        )
    begin = time.monotonic()
    delayed = {one.name: one for one in (await statistics.overview(transactions)).queues}
    delayed_s = time.monotonic() - begin
    assert delayed_s < LOOK_MAX_S
    assert delayed["wide"].depth == wide.depth
    assert delayed["wide"].scheduled == 10 * (PARTITIONS - 1)
    assert delayed["small"].scheduled == 0
    begin = time.monotonic()
    (group,) = await statistics.groups(transactions)
    assert group.scheduled == delayed["wide"].scheduled
    delayed_groups_s = time.monotonic() - begin
    assert delayed_groups_s < LOOK_MAX_S
    print(
        f"\na look {look_s:.2f} s, told to a hundred in {told_s * 1000:.1f} ms;"
        f" groups {groups_s:.2f} s, those of the queue {rows_s:.2f} s;"
        f" with a delay {delayed_s:.2f} s, groups {delayed_groups_s:.2f} s"
    )
    await looks.close()


async def test_who_has_pushed_sees_it(transactions: Transactions) -> None:
    """With few partitions a look costs little, so everybody gets a new one."""
    looks = Looks(transactions, 100)
    assert (await looks.overview.current()).value.queues == []
    await make_queue(transactions, "q")
    assert [one.name for one in (await looks.overview.current()).value.queues] == ["q"]
