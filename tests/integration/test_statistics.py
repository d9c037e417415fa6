"""What PostgreSQL tells of itself, and what of it is told on."""

import psycopg

from queue_server.storage import statistics
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_partitions


async def test_what_other_programs_ask_is_not_told(
    transactions: Transactions, direct_conninfo: str
) -> None:
    with (
        psycopg.connect(direct_conninfo, application_name="payroll") as other,
        psycopg.connect(direct_conninfo, application_name="queue-server") as own,
    ):
        other.execute("SELECT 'a salary'")
        own.execute("SELECT 'a queue'")
        # Both transactions are open.
        found = [one.query for one in (await statistics.postgres(transactions)).active]
    assert "SELECT 'a queue'" in found
    assert "SELECT 'a salary'" not in found


async def test_a_group_that_is_behind_is_told_however_many_others_are_further(
    transactions: Transactions, conninfo: str
) -> None:
    """The list ends after 1000 places: of the group that was asked for, not of all."""
    names = [f"p{number}" for number in range(1200)]
    await make_partitions(transactions, "old", names)
    await make_partitions(transactions, "new", names[:2])
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "INSERT INTO queen.segments (shard, partition_id, base_offset, next_offset, created_at,"
            "  first_message_id, raw_bytes, codec, ids, body)"
            " SELECT 1, p.id, 0, 10, clock_timestamp() - CASE q.name"
            "  WHEN 'old' THEN interval '1 day' ELSE interval '1 hour' END,"
            "  gen_random_uuid(), 10, 0, '', ''"
            " FROM queen.partitions p JOIN queen.queues q ON q.id = p.queue_id"
        )
        await connection.execute(
            "UPDATE queen.allocators SET next_offset = 10, last_segment_at = clock_timestamp()"
        )
        await connection.execute(
            "INSERT INTO queen.subscriptions"
            " (queue_id, consumer_group, queue_wide, mode, starts_at)"
            " SELECT q.id, g.name, true, 'all', now()"
            " FROM queen.queues q, unnest(ARRAY['slow', 'late']) AS g (name)"
            " WHERE g.name = 'slow' OR q.name = 'new'"
        )
        await connection.execute(
            "INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset)"
            " SELECT 1, p.id, u.id, 3 FROM queen.partitions p"
            " JOIN queen.subscriptions u ON u.queue_id = p.queue_id"
        )

    async def lagging(group: str | None, queue: str | None, seconds: float = 60) -> list[str]:
        found = await statistics.lagging(transactions, seconds, group, queue)
        assert {one.lag for one in found} <= {7}
        return [f"{one.group} {one.queue}" for one in found]

    assert await lagging(None, None) == ["slow old"] * 1000
    assert await lagging("late", None) == ["late new"] * 2
    assert sorted(await lagging(None, "new")) == ["late new"] * 2 + ["slow new"] * 2
    assert await lagging("slow", "new") == ["slow new"] * 2
    assert await lagging("late", "old") == []
    assert await lagging("late", None, 7200) == []
