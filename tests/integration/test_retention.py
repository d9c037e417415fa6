"""What retention, eviction and the clean-up take away, and above all what they leave.

Time is not slept: segments are made older than they are.
"""

import asyncio
import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.groups import Groups
from queue_server.broker.wakeup import Rooms
from queue_server.domain.ids import id_keys
from queue_server.domain.names import (
    ConsumerGroup,
    PartitionId,
    PartitionKey,
    PartitionName,
    PartitionRef,
    QueueName,
    SubscriptionId,
)
from queue_server.domain.options import OptionChanges, QueueOptions
from queue_server.domain.retention import RetentionType, Rule, eviction_rule, retention_rule
from queue_server.domain.segment import CODEC_RENDERED
from queue_server.domain.subscription import ALL, NEW, Start
from queue_server.services import retention as service
from queue_server.services.retention import Cleanup, MessageRetention
from queue_server.storage import groups, leases, messages, queues, retention
from queue_server.storage.leases import ANY_PARTITION, ClaimRequest
from queue_server.storage.messages import SHARD, SegmentDraft
from queue_server.storage.retention import Expired
from queue_server.storage.transactions import Connection, Transactions
from tests.client import uuid7
from tests.fix_db import make_partitions, make_queue

DAY_S = 24 * 3600


class Log:
    """A database with one queue `q` in it, written to and aged at will."""

    def __init__(self, transactions: Transactions) -> None:
        self.transactions = transactions

    async def configure(self, queue: str = "q", **options: Any) -> None:
        await queues.configure(
            self.transactions, QueueName(queue), None, None, OptionChanges(**options), mode="merge"
        )

    async def partition(self, name: str = "p", queue: str = "q") -> PartitionRef:
        return (await make_partitions(self.transactions, queue, [name]))[0]

    async def push(
        self, partition: PartitionRef, count: int = 10, ids: Sequence[str] | None = None
    ) -> list[str]:
        """Append one segment; its ids."""
        ids = ids or [uuid7() for _ in range(count)]
        draft = SegmentDraft(
            partition.id, uuid.uuid4(), len(ids), 10, CODEC_RENDERED, id_keys(ids), b"body"
        )
        appended = await messages.append(self.transactions, [draft])
        assert appended.places, appended
        return list(ids)

    async def age(self, partition: PartitionRef, seconds: float, before: int = 1 << 40) -> None:
        """Make the segments below an offset older."""
        await self.run(
            "UPDATE queen.segments SET created_at = created_at - make_interval(secs => %(s)s)"
            " WHERE partition_id = %(p)s AND base_offset < %(before)s RETURNING 1",
            s=seconds, p=partition.id, before=before,
        )  # fmt: skip

    async def run(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return list(await self.transactions.call(statement, parameters))

    async def kept(self, partition: PartitionRef) -> tuple[int, int, list[int]]:
        """Low watermark, high watermark, and the bases of the segments that are there."""
        rows = await self.run(
            "SELECT a.low_watermark, a.next_offset, array(SELECT s.base_offset"
            " FROM queen.segments s WHERE s.partition_id = a.partition_id ORDER BY 1)"
            " FROM queen.allocators a WHERE a.partition_id = %(p)s",
            p=partition.id,
        )
        low, high, bases = rows[0]
        return low, high, bases

    async def count(self, table: str, partition: PartitionRef) -> int:
        rows = await self.run(
            f"SELECT count(*) FROM queen.{table} WHERE partition_id = %(p)s", p=partition.id
        )
        count: int = rows[0][0]
        return count

    async def history(self) -> list[tuple[str, int]]:
        return [
            (row[0], row[1])
            for row in await self.run(
                "SELECT retention_type, messages_deleted FROM queen.retention_history ORDER BY id"
            )
        ]

    async def commit(self, partition: PartitionRef, group: str, offset: int) -> None:
        """Put the place of *group* to *offset*; the group reads the queue from its beginning."""
        subscription_id = await self.subscribe(group, ALL)
        await self.run(
            "UPDATE queen.cursors SET committed_offset = %(o)s"
            " WHERE partition_id = %(p)s AND subscription_id = %(g)s RETURNING 1",
            o=offset, p=partition.id, g=subscription_id,
        )  # fmt: skip

    async def subscribe(self, group: str, start: Start) -> int:
        queue_id = await make_queue(self.transactions, "q")
        await queues.subscribe(
            self.transactions, queue_id, ConsumerGroup(group), start, queue_wide=True
        )
        rows = await self.run(
            "SELECT id FROM queen.subscriptions WHERE consumer_group = %(g)s", g=group
        )
        subscription_id: int = rows[0][0]
        return subscription_id

    async def retain(self, batch_size: int = 1000) -> Mapping[str, int]:
        return await MessageRetention(
            "retention", self.transactions, Rooms(), retention_rule, batch_size
        ).run_once()

    async def evict(self) -> Mapping[str, int]:
        return await MessageRetention(
            "eviction", self.transactions, Rooms(), eviction_rule, 1000
        ).run_once()

    async def clean(self, idle_days: int = 30) -> Mapping[str, int]:
        return await Cleanup(
            self.transactions,
            Groups(self.transactions, Directory(self.transactions), Rooms()),
            idle_days=idle_days,
            group_expire_s=0,
            trace_age_s=7 * DAY_S,
            series_age_s=7 * DAY_S,
            batch_size=100,
        ).run_once()


@pytest.fixture
def log(transactions: Transactions) -> Log:
    return Log(transactions)


# -- which rule --


@pytest.mark.parametrize(
    ("options", "retention_", "eviction"),
    [
        (QueueOptions(), None, None),
        (QueueOptions(retention_seconds=5, completed_retention_seconds=5), None, None),
        (QueueOptions(retention_enabled=True), None, None),
        (
            QueueOptions(retention_enabled=True, retention_seconds=5),
            Rule(RetentionType.RETENTION, 5),
            None,
        ),
        (
            QueueOptions(retention_enabled=True, completed_retention_seconds=5),
            Rule(RetentionType.RETENTION, None, 5),
            None,
        ),
        (
            QueueOptions(
                retention_enabled=True, retention_seconds=5, completed_retention_seconds=5
            ),
            Rule(RetentionType.RETENTION, 5),
            None,
        ),
        (QueueOptions(max_wait_time_seconds=9), None, Rule(RetentionType.MAX_WAIT_TIME, 9)),
        (QueueOptions(ttl=9), None, Rule(RetentionType.TTL, 9)),
        (QueueOptions(ttl=0), None, None),
        (QueueOptions(ttl=9, max_wait_time_seconds=8), None, Rule(RetentionType.MAX_WAIT_TIME, 8)),
        (QueueOptions(ttl=7, max_wait_time_seconds=8), None, Rule(RetentionType.TTL, 7)),
    ],
)
def test_only_what_somebody_set_makes_messages_go(
    options: QueueOptions, retention_: Rule | None, eviction: Rule | None
) -> None:
    assert retention_rule(options) == retention_
    assert eviction_rule(options) == eviction


# -- retention --


async def test_old_segments_go_and_young_ones_stay(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()
    for _ in range(3):
        await log.push(partition)
    await log.age(partition, 61, before=20)
    assert await log.retain() == {"messages": 20, "segments": 2}
    assert await log.kept(partition) == (20, 30, [20])
    assert await log.history() == [("retention", 20)]
    assert await log.retain() == {"messages": 0, "segments": 0}
    assert await log.history() == [("retention", 20)]


async def test_offsets_go_on_where_they_were(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()
    await log.push(partition)
    await log.age(partition, 61)
    await log.retain()
    assert await log.kept(partition) == (10, 10, [])
    await log.push(partition)
    assert await log.kept(partition) == (10, 20, [10])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"retention_seconds": 1},
        {"retention_enabled": True},
        {"completed_retention_seconds": 1},
        {"ttl": 0},
    ],
)
async def test_nothing_goes_that_nobody_asked_to_go(log: Log, options: dict[str, Any]) -> None:
    await log.configure(**options)
    partition = await log.partition()
    await log.push(partition)
    await log.commit(partition, "g", 10)
    await log.age(partition, 1000 * DAY_S)
    assert await log.retain() == {"messages": 0, "segments": 0}
    assert await log.evict() == {"messages": 0, "segments": 0}


async def test_completed_messages_go_when_every_group_has_read_them(log: Log) -> None:
    await log.configure(retention_enabled=True, completed_retention_seconds=60)
    partition = await log.partition()
    for _ in range(3):
        await log.push(partition)
    await log.age(partition, 61)
    assert (await log.retain())["messages"] == 0, "no group reads the partition"

    await log.commit(partition, "fast", 30)
    await log.commit(partition, "slow", 0)
    assert (await log.retain())["messages"] == 0
    await log.commit(partition, "slow", 15)
    assert (await log.retain())["messages"] == 10, "whole segments only"
    assert await log.kept(partition) == (10, 30, [10, 20])
    await log.commit(partition, "slow", 30)
    assert (await log.retain())["messages"] == 20
    assert await log.kept(partition) == (30, 30, [])
    assert await log.history() == [("completed_retention", 10), ("completed_retention", 20)]


async def test_completed_messages_stay_until_they_are_old(log: Log) -> None:
    await log.configure(retention_enabled=True, completed_retention_seconds=60)
    partition = await log.partition()
    await log.push(partition)
    await log.push(partition)
    await log.commit(partition, "g", 20)
    await log.age(partition, 61, before=10)
    assert (await log.retain())["messages"] == 10
    assert await log.kept(partition) == (10, 20, [10])


async def test_completed_retention_waits_for_a_group_that_is_being_registered(log: Log) -> None:
    # It has no cursor yet on some partitions, whose history it may want.
    await log.configure(retention_enabled=True, completed_retention_seconds=60)
    partition = await log.partition()
    await log.push(partition)
    await log.commit(partition, "g", 10)
    await log.age(partition, 61)
    await log.run(
        "INSERT INTO queen.subscriptions (queue_id, consumer_group, queue_wide, mode, starts_at,"
        " backfilled_to) VALUES (%(q)s::uuid, 'late', true, 'all', now(), 0) RETURNING 1",
        q=partition.queue_id,
    )
    assert (await log.retain())["messages"] == 0
    await log.run("UPDATE queen.subscriptions SET backfilled_to = NULL RETURNING 1")
    assert (await log.retain())["messages"] == 10


async def test_the_two_ages_of_retention_work_side_by_side(log: Log) -> None:
    await log.configure(
        retention_enabled=True, retention_seconds=600, completed_retention_seconds=60
    )
    partition = await log.partition()
    for _ in range(4):
        await log.push(partition)
    await log.commit(partition, "g", 25)
    await log.age(partition, 100, before=40)
    await log.age(partition, 600, before=10)
    assert (await log.retain())["messages"] == 20
    assert await log.kept(partition) == (20, 40, [20, 30])
    # One pass, one reason: that of the rule which reached furthest.
    assert await log.history() == [("completed_retention", 20)]


# -- eviction --


@pytest.mark.parametrize(
    ("options", "type_"),
    [({"max_wait_time_seconds": 60}, "max_wait_time"), ({"ttl": 60}, "ttl")],
)
async def test_what_waited_too_long_goes_consumed_or_not(
    log: Log, options: dict[str, Any], type_: str
) -> None:
    await log.configure(**options)
    partition = await log.partition()
    await log.push(partition)
    await log.push(partition)
    await log.push(partition)
    await log.commit(partition, "g", 5)
    await log.age(partition, 61, before=20)
    assert await log.evict() == {"messages": 20, "segments": 2}
    assert await log.kept(partition) == (20, 30, [20])
    assert await log.history() == [(type_, 20)]


# -- what hangs on the messages --


async def test_cursors_and_live_leases_stay_as_they_are(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()
    await log.push(partition)
    await log.push(partition)
    await log.commit(partition, "g", 3)
    await log.run(
        "UPDATE queen.cursors SET lease_id = gen_random_uuid(), lease_end = 12,"
        " lease_expires_at = now() + interval '1 minute' RETURNING 1"
    )
    before = await log.run("SELECT * FROM queen.cursors")
    await log.age(partition, 61, before=10)
    await log.retain()
    assert await log.kept(partition) == (10, 20, [10])
    assert await log.run("SELECT * FROM queen.cursors") == before


@pytest.mark.parametrize("held", [False, True])
async def test_a_lease_ends_when_nothing_is_left_of_its_batch(log: Log, held: bool) -> None:
    """In the transaction that removes; a cursor that a claim holds just then is judged by the low
    watermark. Messages that were deleted before do not keep it.
    """
    partition = await log.partition()
    await log.push(partition)
    await log.push(partition)
    await log.commit(partition, "g", 3)
    await log.run(
        "UPDATE queen.cursors SET lease_id = gen_random_uuid(), lease_end = 12,"
        " consumed_at = now(), lease_expires_at = now() + interval '1 minute' RETURNING 1"
    )
    await log.run(
        "INSERT INTO queen.leases (shard, lease_id, partition_id, subscription_id)"
        " SELECT shard, lease_id, partition_id, subscription_id FROM queen.cursors RETURNING 1"
    )
    await log.run(
        "INSERT INTO queen.holes SELECT 1, %(p)s, unnest(ARRAY[10, 11]) RETURNING 1", p=partition.id
    )
    low = 20 if held else 10
    [(lease_id, subscription_id)] = await log.run(
        "SELECT lease_id, subscription_id FROM queen.cursors"
    )
    expired = [Expired(partition.queue_id, partition.id, low, RetentionType.RETENTION)]

    async def work(connection: Connection) -> None:
        await connection.execute("SELECT 1 FROM queen.cursors FOR NO KEY UPDATE")
        raised = await retention.raise_low_watermarks(log.transactions, expired)
        assert (len(raised.spans), raised.freed) == (1, [])

    if held:
        await log.transactions.run(work)
    else:
        raised = await retention.raise_low_watermarks(log.transactions, expired)
        assert raised.freed == [partition.id]
        assert await log.count("leases", partition) == 0
    waiting = [leases.Waiting(SubscriptionId(subscription_id), ANY_PARTITION, 1)]
    assert await leases.extend(log.transactions, lease_id, 60) == []
    if held:
        await log.push(partition)
    assert (await leases.claimable(log.transactions, waiting))[0].count == 1
    [claimed] = await leases.claim(
        log.transactions,
        [
            ClaimRequest(
                SubscriptionId(subscription_id), ANY_PARTITION, ANY_PARTITION, 100, 1, 60,
                uuid.uuid4(), auto_ack=False,
            )
        ],
    )  # fmt: skip
    [claim] = claimed.claims
    assert [(run.start, run.end) for run in claim.runs] == [(20, 30) if held else (12, 20)]
    assert not claim.taken_over
    assert await log.count("leases", partition) == 1


async def test_ids_below_the_low_watermark_are_new_before_their_segments_are_dropped(
    log: Log,
) -> None:
    partition = await log.partition()
    ids = await log.push(partition)
    expired = [Expired(partition.queue_id, partition.id, 10, RetentionType.CLEAR)]
    [span] = (await retention.raise_low_watermarks(log.transactions, expired)).spans
    assert await log.push(partition, ids=ids) == ids
    assert await log.kept(partition) == (10, 20, [0, 10])
    await retention.drop(log.transactions, [span], 1000)

    async def find(connection: Connection) -> list[int]:
        places = await messages.find_ids(connection, [(partition.id, id_keys(ids))])
        return [place.offset for place in places]

    assert sorted(await log.transactions.run(find)) == list(range(10, 20))


@pytest.mark.parametrize("ids", ["time-ordered", "random", "skewed clocks"])
async def test_id_ranges_go_with_their_segments_and_no_others(log: Log, ids: str) -> None:
    def some() -> list[str]:
        match ids:
            case "time-ordered":
                return [uuid7() for _ in range(50)]
            case "random":
                return [str(uuid.uuid4()) for _ in range(50)]
            case _:
                return [uuid7(1_700_000_000 + i % 7 * 10) for i in range(50)]

    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()
    first, second = await log.push(partition, ids=some()), await log.push(partition, ids=some())
    total = await log.count("id_ranges", partition)
    await log.age(partition, 61, before=50)
    assert (await log.retain())["segments"] == 1
    rows = await log.run("SELECT base_offset FROM queen.id_ranges")
    assert rows == [(50,)] * (total // 2)

    # A dropped id is new again, one that is kept is a duplicate.
    await log.push(partition, ids=first)
    draft = SegmentDraft(
        partition.id, uuid.uuid4(), 50, 10, CODEC_RENDERED, id_keys(second), b"body"
    )
    assert len((await messages.append(log.transactions, [draft])).duplicates) == 50


async def test_holes_and_traces_go_with_their_segments_and_dead_letters_stay(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()
    await log.push(partition)
    await log.push(partition)
    for offset in (3, 4, 13):
        await log.run(
            "INSERT INTO queen.holes (shard, partition_id, message_offset)"
            " VALUES (%(s)s, %(p)s, %(o)s) RETURNING 1",
            s=SHARD, p=partition.id, o=offset,
        )  # fmt: skip
        await trace(log, partition, offset)
        await dead_letter(log, partition, offset)
    await log.age(partition, 61, before=10)
    assert await log.retain() == {"messages": 10, "segments": 1}
    assert await log.history() == [("retention", 8)], "a hole was deleted before"
    for table, count in (("holes", 1), ("traces", 1), ("dead_letters", 3)):
        assert await log.count(table, partition) == count, table
    assert await log.run("SELECT count(*) FROM queen.trace_names") == [(1,)]


async def trace(
    log: Log, partition: PartitionRef, offset: int, age_s: float = 0, name: str = "n"
) -> None:
    await log.run(
        "WITH t AS (INSERT INTO queen.traces (shard, id, partition_id, message_offset,"
        "  transaction_id, consumer_group, event_type, data, created_at)"
        " VALUES (%(s)s, gen_random_uuid(), %(p)s, %(o)s, 'x', 'g', 'info', '{}',"
        "  clock_timestamp() - make_interval(secs => %(age)s)) RETURNING *)"
        " INSERT INTO queen.trace_names (shard, name, trace_id, created_at)"
        " SELECT shard, %(n)s, id, created_at FROM t RETURNING 1",
        s=SHARD, p=partition.id, o=offset, age=age_s, n=name,
    )  # fmt: skip


async def dead_letter(log: Log, partition: PartitionRef, offset: int) -> None:
    await log.run(
        "INSERT INTO queen.dead_letters (shard, id, partition_id, queue_id, consumer_group,"
        " message_offset, message_id, transaction_id, payload, error_message, retry_count,"
        " created_at) VALUES (%(s)s, gen_random_uuid(), %(p)s, %(q)s::uuid, 'g', %(o)s,"
        " gen_random_uuid(), 'x', '{}', 'e', 0, now()) RETURNING 1",
        s=SHARD, p=partition.id, q=partition.queue_id, o=offset,
    )  # fmt: skip


# -- batches, walks, and others at work --


async def test_small_batches_drop_everything_too(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partitions = [await log.partition(f"p{i}") for i in range(3)]
    for partition in partitions:
        for _ in range(7):
            await log.push(partition, 3)
        await log.age(partition, 61, before=18)
    assert await log.retain(batch_size=2) == {"messages": 54, "segments": 18}
    for partition in partitions:
        assert await log.kept(partition) == (18, 21, [18])
        assert await log.count("id_ranges", partition) == 1
    # A row for each queue and pass, whatever the number of partitions.
    assert await log.history() == [("retention", 54)]


async def test_a_batch_is_bounded_by_messages_too(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH_MESSAGES_MAX", 25)
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()
    for _ in range(5):
        await log.push(partition)
    span = retention.Span(partition.id, 0, 50)
    dropped = await retention.drop(log.transactions, [span], 1000)
    assert dropped == retention.Dropped(3, [retention.Span(partition.id, 30, 50)])


@pytest.mark.parametrize("step", [1, 2, 3, 7])
async def test_a_walk_of_any_step_visits_every_partition_of_every_queue_with_a_rule(
    log: Log, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(service, "STEP_PARTITIONS", step)
    partitions = []
    for queue in ("a", "b", "c", "d"):
        if queue != "c":
            await log.configure(queue, retention_enabled=True, retention_seconds=60)
        for i in range(5):
            partition = await log.partition(f"p{i}", queue)
            await log.push(partition)
            await log.age(partition, 61)
            partitions.append(partition)
    assert (await log.retain())["messages"] == 150
    for partition in partitions:
        assert (await log.kept(partition))[0] == (0 if partition.queue == "c" else 10)


async def test_a_pass_is_bounded_and_the_next_goes_on_there(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STEP_PARTITIONS", 2)
    monkeypatch.setattr(service, "PASS_PARTITIONS", 4)
    for queue in ("a", "b"):
        await log.configure(queue, retention_enabled=True, retention_seconds=60)
        for i in range(4):  # and Default makes five
            partition = await log.partition(f"p{i}", queue)
            await log.push(partition)
            await log.age(partition, 61)
    passes = MessageRetention("retention", log.transactions, Rooms(), retention_rule, 1000)
    counts = [(await passes.run_once())["messages"] for _ in range(3)]
    assert sum(counts) == 80
    assert max(counts) <= 40
    assert (await passes.run_once())["messages"] == 0
    # The fourth began at the beginning again.
    late = await log.partition("p0", "a")
    await log.push(late)
    await log.age(late, 61)
    assert sum([(await passes.run_once())["messages"] for _ in range(3)]) == 10


async def test_a_partition_that_a_push_holds_does_not_stop_the_others(
    log: Log, conninfo: str
) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    held, free = await log.partition("held"), await log.partition("free")
    for partition in (held, free):
        await log.push(partition)
        await log.age(partition, 61)
    async with await psycopg.AsyncConnection.connect(conninfo) as other:
        await other.execute(
            "SELECT 1 FROM queen.allocators WHERE partition_id = %s FOR NO KEY UPDATE", (held.id,)
        )
        running = asyncio.create_task(log.retain())
        async with asyncio.timeout(5):
            while (await log.kept(free))[0] == 0:
                await asyncio.sleep(0.01)
        assert (await log.kept(held))[0] == 0
        await other.rollback()
        # It is not passed over: it is waited for.
        assert (await running)["messages"] == 20
    assert await log.kept(held) == (10, 10, [])


async def test_two_passes_at_once_delete_everything_once(log: Log) -> None:
    # A leader that hung may come back while its successor is at work.
    await log.configure(retention_enabled=True, retention_seconds=60)
    for i in range(10):
        partition = await log.partition(f"p{i}")
        for _ in range(10):
            await log.push(partition)
        await log.age(partition, 61)
    counts = await asyncio.gather(*(log.retain(batch_size=3) for _ in range(3)))
    assert sum(count["messages"] for count in counts) == 1000
    assert sum(count for _, count in await log.history()) == 1000
    assert await log.run("SELECT count(*) FROM queen.segments") == [(0,)]
    assert await log.run("SELECT count(*) FROM queen.id_ranges") == [(0,)]


async def test_pushes_and_retention_side_by_side_lose_nothing(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()

    async def push() -> None:
        for _ in range(30):
            await log.push(partition, 3)
            await log.age(partition, 61)

    pushes = [asyncio.create_task(push()) for _ in range(3)]
    dropped = 0
    while not all(task.done() for task in pushes):
        dropped += (await log.retain())["messages"]
    await asyncio.gather(*pushes)
    low, high, bases = await log.kept(partition)
    assert high == 270
    assert dropped == low
    assert sum(count for _, count in await log.history()) == low
    assert bases == list(range(low, high, 3))


async def test_a_queue_that_goes_in_the_middle_of_a_pass_is_no_failure(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await log.partition()
    await log.push(partition)
    await log.age(partition, 61)
    [(queue_id, options)] = await retention.queues_with_rules(log.transactions)
    rule = retention_rule(options)
    assert rule is not None
    expired, _ = await retention.find_expired(
        log.transactions, [retention.QueueRule(queue_id, rule)], PartitionId(0), 10
    )
    assert len(expired) == 1
    await queues.delete_queue(log.transactions, QueueName("q"))
    assert (await retention.raise_low_watermarks(log.transactions, expired)).spans == []


async def test_what_a_crash_left_below_the_watermark_is_dropped_later(log: Log) -> None:
    partition = await log.partition()
    for _ in range(3):
        await log.push(partition)
    other = await log.partition("other")
    await log.push(other)
    # The first step was committed, the second never came; the rule is gone since.
    await log.run(
        "UPDATE queen.allocators SET low_watermark = 20 WHERE partition_id = %(p)s RETURNING 1",
        p=partition.id,
    )
    assert (await log.clean())["segments"] == 2
    assert await log.kept(partition) == (20, 30, [20])
    assert await log.count("id_ranges", partition) == 1
    assert await log.kept(other) == (0, 10, [0])
    assert (await log.clean())["segments"] == 0


async def test_its_commits_do_not_wait_for_the_disk(log: Log) -> None:
    partition = await log.partition()
    await log.push(partition)

    async def work(connection: Any) -> str:
        await connection.execute(
            "SELECT queen.raise_low_watermarks(1::smallint, '{}', '{}', '{}', '{}', false)"
        )
        cursor = await connection.execute("SHOW synchronous_commit")
        return str((await cursor.fetchone())[0])

    assert await log.transactions.run(work) == "off"
    assert await log.run("SELECT current_setting('synchronous_commit')") == [("on",)]


# -- the clean-up --


async def idle(log: Log, partition: PartitionRef, days: float) -> None:
    await log.run(
        "WITH a AS (UPDATE queen.allocators SET last_segment_at = last_segment_at"
        "  - make_interval(secs => %(s)s) WHERE partition_id = %(p)s)"
        " UPDATE queen.partitions SET created_at = created_at - make_interval(secs => %(s)s)"
        " WHERE id = %(p)s RETURNING 1",
        s=days * DAY_S, p=partition.id,
    )  # fmt: skip


async def exists(log: Log, name: str) -> bool:
    return (
        await queues.find_partition(
            log.transactions, PartitionKey(QueueName("q"), PartitionName(name))
        )
        is not None
    )


async def emptied(log: Log, name: str) -> PartitionRef:
    """A partition all of whose messages were read and are gone."""
    partition = await log.partition(name)
    await log.push(partition)
    await log.commit(partition, "g", 10)
    await log.age(partition, 61)
    assert (await log.retain())["messages"] == 10
    return partition


async def test_an_idle_empty_partition_goes_and_a_push_makes_it_anew(log: Log) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    idle_one, recent = await emptied(log, "idle"), await emptied(log, "recent")
    never_used = await log.partition("never used")
    default = await log.partition("Default")
    full = await log.partition("full")
    await log.push(full)
    for partition in (idle_one, never_used, default, full):
        await idle(log, partition, 31)
    await idle(log, recent, 29)

    assert (await log.clean())["partitions"] == 2
    assert not await exists(log, "idle")
    assert not await exists(log, "never used")
    for name in ("recent", "Default", "full"):
        assert await exists(log, name), name
    for table in ("cursors", "pending", "allocators"):
        assert await log.count(table, idle_one) == 0, table

    assert (await messages.append(log.transactions, [draft_for(idle_one)])).missing
    anew = await log.partition("idle")
    assert anew.id != idle_one.id
    await log.push(anew)
    assert await log.kept(anew) == (0, 10, [0])


def draft_for(partition: PartitionRef) -> SegmentDraft:
    return SegmentDraft(
        partition.id, uuid.uuid4(), 1, 10, CODEC_RENDERED, id_keys([uuid7()]), b"body"
    )


async def test_partitions_in_any_use_stay(log: Log, conninfo: str) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    names = ("dead letter", "lease", "consumed", "cursor locked", "allocator locked")
    partitions = {name: await emptied(log, name) for name in names}
    await dead_letter(log, partitions["dead letter"], 3)
    for name, change in (
        ("lease", "lease_id = gen_random_uuid(), lease_expires_at = now() + interval '1 min'"),
        ("consumed", "consumed_at = now() - interval '29 days'"),
    ):
        await log.run(
            f"UPDATE queen.cursors SET {change} WHERE partition_id = %(p)s RETURNING 1",
            p=partitions[name].id,
        )
    for partition in partitions.values():
        await idle(log, partition, 31)
    async with await psycopg.AsyncConnection.connect(conninfo) as other:
        for table in ("cursor", "allocator"):
            await other.execute(
                f"SELECT 1 FROM queen.{table}s WHERE partition_id = %s FOR NO KEY UPDATE",
                (partitions[f"{table} locked"].id,),
            )
        assert (await log.clean())["partitions"] == 0
        await other.rollback()
    assert (await log.clean(idle_days=0))["partitions"] == 0, "switched off"
    assert (await log.clean())["partitions"] == 2
    assert not await exists(log, "cursor locked")
    assert not await exists(log, "allocator locked")


async def test_a_group_that_began_at_now_still_gets_what_comes_to_a_partition_made_anew(
    log: Log,
) -> None:
    await log.configure(retention_enabled=True, retention_seconds=60)
    partition = await emptied(log, "p")
    subscription_id = await log.subscribe("new", NEW)
    await idle(log, partition, 31)
    assert (await log.clean())["partitions"] == 1
    anew = await log.partition("p")
    await log.push(anew)
    assert await log.run(
        "SELECT committed_offset FROM queen.cursors WHERE partition_id = %(p)s"
        " AND subscription_id = %(g)s",
        p=anew.id, g=subscription_id,
    ) == [(0,)]  # fmt: skip


async def test_old_traces_and_old_history_go(log: Log) -> None:
    partition = await log.partition()
    for days in (0, 6.9, 7.1, 100):
        await trace(log, partition, 1, days * DAY_S, f"n{days}")
    for days in (0, 89, 91):
        await log.run(
            "INSERT INTO queen.retention_history (shard, queue_id, partition_id, retention_type,"
            " messages_deleted, executed_at) VALUES (1, %(q)s::uuid, 1, 'ttl', 1,"
            " now() - make_interval(days => %(d)s)) RETURNING 1",
            q=partition.queue_id, d=days,
        )  # fmt: skip
    counts = await log.clean()
    assert (counts["traces"], counts["history"]) == (2, 1)
    assert await log.count("traces", partition) == 2
    assert await log.run("SELECT name FROM queen.trace_names ORDER BY 1") == [("n0",), ("n6.9",)]


async def test_the_deletion_of_a_group_that_a_crash_broke_off_is_finished(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "CHUNK_PARTITIONS", 2)
    partitions = [await log.partition(f"p{number}") for number in range(5)]
    for partition in partitions:
        await log.push(partition)
        await log.commit(partition, "gone", 3)
        await log.commit(partition, "stays", 4)
    subscription_id = await groups.delete(
        log.transactions, partitions[0].queue_id, ConsumerGroup("gone"), delete_metadata=True
    )
    assert subscription_id is not None
    # The crash comes after the first chunk.
    first = await anext(groups.clear(log.transactions, subscription_id))
    assert first.cursor_count == 2

    # While the deletion may still run somewhere, it is left alone.
    assert (await log.clean())["cursors"] == 0
    await log.run(
        "UPDATE queen.subscription_remains SET deleted_at = deleted_at - interval '61 s'"
        " RETURNING 1"
    )
    assert (await log.clean())["cursors"] == 3
    assert await log.run("SELECT 1 FROM queen.subscription_remains") == []
    assert await log.run(
        "SELECT u.consumer_group, c.committed_offset FROM queen.cursors c"
        " LEFT JOIN queen.subscriptions u ON u.id = c.subscription_id"
    ) == [("stays", 4)] * 5  # fmt: skip
    rows = await log.run("SELECT DISTINCT subscription_id FROM queen.pending")
    assert (subscription_id,) not in rows
    assert (await log.clean())["cursors"] == 0


# -- the history --


async def test_the_history_sums_up_by_reason_and_bucket(log: Log) -> None:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for minute, type_, count in (
        (0, "ttl", 5), (4, "ttl", 6), (4, "retention", 1), (5, "ttl", 7), (6, "clear", 9),
        (60, "ttl", 100),
    ):  # fmt: skip
        await log.run(
            "INSERT INTO queen.retention_history (shard, queue_id, partition_id, retention_type,"
            " messages_deleted, executed_at) VALUES (1, gen_random_uuid(), 1, %(t)s, %(c)s,"
            " %(at)s) RETURNING 1",
            t=type_, c=count, at=start + datetime.timedelta(minutes=minute),
        )  # fmt: skip
    points = await retention.history(
        log.transactions, start, start + datetime.timedelta(hours=1), 300
    )
    assert {(p.bucket - start, p.type.value, p.message_count, p.event_count) for p in points} == {
        (datetime.timedelta(0), "ttl", 11, 2),
        (datetime.timedelta(0), "retention", 1, 1),
        (datetime.timedelta(minutes=5), "ttl", 7, 1),
    }


@pytest.mark.parametrize("step", [1, 2, 1000])
async def test_leases_that_are_over_are_forgotten_and_live_ones_stay(
    log: Log, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(service, "STEP_LEASES", step)
    partition = await log.partition()
    await log.push(partition)
    subscription_id = await log.subscribe("g", ALL)
    live, others = uuid.UUID(int=5), [uuid.UUID(int=n) for n in (1, 3, 7, 9)]
    await log.run(
        "UPDATE queen.cursors SET lease_id = %(lease)s WHERE partition_id = %(p)s RETURNING 1",
        lease=live, p=partition.id,
    )  # fmt: skip
    # Two that the same cursor held before, and two of a partition that is gone.
    for lease_id, partition_id in [
        (live, partition.id), (others[0], partition.id), (others[1], partition.id + 1),
        (others[2], partition.id), (others[3], partition.id + 1),
    ]:  # fmt: skip
        await log.run(
            "INSERT INTO queen.leases VALUES (%(shard)s, %(lease)s, %(p)s, %(g)s) RETURNING 1",
            shard=SHARD, lease=lease_id, p=partition_id, g=subscription_id,
        )  # fmt: skip

    assert (await log.clean())["leases"] == 4
    assert await log.run("SELECT lease_id FROM queen.leases") == [(live,)]
    assert (await log.clean())["leases"] == 0
