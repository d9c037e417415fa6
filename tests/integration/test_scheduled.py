"""Messages that are not due yet are counted apart, and are not late.

Time goes by in the database: what was pushed is moved back.
"""

import msgspec
import psycopg
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.snapshot import Looks
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import ConsumerGroup, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import dashboard, series, statistics, stored_messages
from queue_server.storage.statistics import PartitionPage, QueueFilter, QueueStatistics
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_queue

QUEUE = QueueName("reminders")
READERS = ConsumerGroup("readers")
# A test takes less.
SOON_S = 60


class Held:
    """A queue that holds messages back."""

    def __init__(self, transactions: Transactions, conninfo: str, queue_id: str) -> None:
        row, rooms, keyring = Counters(1).worker(0), Rooms(), Keyring()
        directory = Directory(transactions)
        self.id = queue_id
        self._transactions, self._conninfo = transactions, conninfo
        self._pusher = Pusher(transactions, directory, rooms, row, keyring)
        self._popper = Popper(transactions, directory, rooms, row, keyring, Pace())

    async def configure(self, *, delay_s: int = 0, window_s: int = 0) -> None:
        await self._execute(
            "UPDATE queen.queues SET delayed_processing = %s, window_buffer = %s",
            (delay_s, window_s),
        )

    async def push(self, *transaction_ids: str, partition: str = "p") -> None:
        for transaction_id in transaction_ids:
            message = NewMessage(QUEUE, msgspec.Raw(b"1"), partition, transaction_id)
            await self._pusher.push([message], 1000)

    async def let_pass(self, seconds: float) -> None:
        await self._execute(
            "UPDATE queen.segments SET created_at = created_at - make_interval(secs => %s)",
            (seconds,),
        )
        await self._execute(
            "UPDATE queen.allocators SET"
            " last_segment_at = last_segment_at - make_interval(secs => %s)",
            (seconds,),
        )

    async def claim(self, count: int, group: ConsumerGroup = READERS) -> int:
        answer = await self._popper.pop(
            PopRequest(
                queue=QUEUE, group=group, start=ALL, partition=None, message_limit=count,
                partition_limit=1,
            )
        )  # fmt: skip
        if answer.delivery is None:
            return 0
        return sum(run.end - run.start for c in answer.delivery.claims for run in c.runs)

    async def look(self) -> QueueStatistics:
        (found,) = await statistics.queues(self._transactions, QueueFilter(), 10, 0, with_ages=True)
        return found

    async def _execute(self, statement: str, values: tuple[float, ...]) -> None:
        async with await psycopg.AsyncConnection.connect(self._conninfo) as connection:
            await connection.execute(statement.encode(), values)


@pytest.fixture
async def held(transactions: Transactions, conninfo: str) -> Held:
    return Held(transactions, conninfo, await make_queue(transactions, QUEUE))


def is_about(seconds: float, expected_s: float) -> bool:
    return expected_s <= seconds < expected_s + SOON_S


async def test_what_is_not_due_is_scheduled_and_not_late(
    held: Held, transactions: Transactions
) -> None:
    await held.configure(delay_s=3600)
    await held.push("a", "b")
    await held.let_pass(1800)
    await held.push("c")
    looks = Looks(transactions, 10)
    overview = (await looks.overview.current()).value
    (queue,) = overview.queues
    assert (queue.depth, queue.scheduled, queue.oldest_s) == (3, 3, 0)
    assert queue.oldest_at is not None
    assert queue.due_at is not None
    assert (queue.due_at - queue.oldest_at).total_seconds() == 3600
    assert (overview.scheduled, overview.lag_seconds.max, overview.lag_offsets.max) == (3, 0, 3)
    (deep,) = await statistics.deepest_partitions(transactions, QUEUE, 0, 10)
    assert (deep.scheduled, deep.due_s) == (3, 0)
    told = await looks.metrics()
    assert told is not None
    (figures,) = told.queues
    assert (figures.depth, figures.scheduled_count, figures.oldest_age_s) == (3, 3, 0)
    assert await series.book_depths(transactions) == 1
    ((depth, oldest_s),) = await transactions.call(
        "SELECT m.depth, m.oldest_s FROM queen.queue_minutes m", {}
    )
    assert (depth, oldest_s) == (3, 0)


async def test_from_the_due_time_on_it_is_late(held: Held) -> None:
    await held.configure(delay_s=3600)
    await held.push("a", "b")
    await held.let_pass(1800)
    await held.push("c")
    await held.push("alone", partition="other")
    await held.let_pass(2100)
    queue = await held.look()
    assert (queue.depth, queue.scheduled) == (4, 2)
    assert is_about(queue.oldest_s, 300)
    # The option as it is now decides.
    await held.configure(delay_s=7200)
    queue = await held.look()
    assert (queue.scheduled, queue.oldest_s) == (4, 0)
    await held.configure()
    queue = await held.look()
    assert queue.scheduled == 0
    assert is_about(queue.oldest_s, 3900)


async def test_a_group_s_figures_tell_them_apart_too(
    held: Held, transactions: Transactions
) -> None:
    await held.configure(delay_s=3600)
    await held.push("a", "b", "c")
    await held.let_pass(3900)
    await held.push("d", "e")
    assert await held.claim(2) == 2
    await held.push("f")

    page = PartitionPage(held.id, 0, 10)
    subscription = await statistics.find_subscription(transactions, held.id, READERS)
    for depths in (
        await statistics.queue_depth(transactions, page),
        await statistics.group_depth(transactions, page, subscription),
    ):
        assert (depths.pending, depths.processing, depths.scheduled) == (6, 2, 3)
        (one,) = depths.page
        assert (one.pending, one.processing, one.scheduled) == (6, 2, 3)
    depths = await statistics.group_depth(transactions, page, None)
    assert (depths.pending, depths.processing, depths.scheduled) == (6, 0, 3)

    (group,) = await statistics.groups(transactions)
    assert (group.lag, group.scheduled) == (6, 3)
    assert is_about(group.lag_s_max, 300)
    (place,) = await statistics.group(transactions, READERS, 10, 0)
    assert is_about(place.lag_s, 300)
    (late,) = await statistics.lagging(transactions, 200, None, None)
    assert is_about(late.lag_s, 300)
    assert await statistics.lagging(transactions, 600, None, None) == []

    (row,) = await dashboard.groups(transactions, held.id)
    assert (row.lag, row.scheduled) == (6, 3)
    ((of_group,), _) = await dashboard.group_partitions(
        transactions, held.id, READERS, None, limit=10, offset=0
    )
    ((partition,), _) = await dashboard.partitions(
        transactions, held.id, None, by_name=False, limit=10, offset=0
    )
    assert (partition.depth, partition.scheduled, partition.processing) == (6, 3, 2)
    for unread, due in (
        (row.oldest_unread_at, row.oldest_due_at),
        (of_group.oldest_unread_at, of_group.oldest_due_at),
        (partition.oldest_unread_at, partition.oldest_due_at),
    ):
        assert unread is not None
        assert due is not None
        assert (due - unread).total_seconds() == 3600
    (found,) = await statistics.partitions(transactions, page)
    assert found.scheduled == 3

    # One that was taken out counts no more; leased messages are not scheduled, whatever the option.
    await stored_messages.delete(transactions, found.id, "e")
    await held.configure(delay_s=7200)
    queue = await held.look()
    assert (queue.depth, queue.counts.processing, queue.scheduled) == (5, 2, 3)
    (group,) = await statistics.groups(transactions)
    assert (group.lag, group.scheduled, group.lag_s_max) == (5, 3, 0)


async def test_a_window_holds_all_back_and_one_kept_open_is_late(held: Held) -> None:
    await held.configure(window_s=600)
    await held.push("a", "b")
    queue = await held.look()
    assert (queue.depth, queue.scheduled, queue.oldest_s) == (2, 2, 0)
    # Later messages keep it open beyond the time that was meant.
    await held.let_pass(900)
    await held.push("c")
    assert await held.claim(10) == 0
    queue = await held.look()
    assert (queue.depth, queue.scheduled) == (3, 3)
    assert is_about(queue.oldest_s, 300)
    await held.let_pass(601)
    queue = await held.look()
    assert (queue.depth, queue.scheduled) == (3, 0)
    assert await held.claim(10) == 3


async def test_what_waits_for_a_retry_was_due(
    held: Held, transactions: Transactions, conninfo: str
) -> None:
    await held.push("a")
    await held.let_pass(900)
    assert await held.claim(1) == 1
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        await connection.execute(
            "UPDATE queen.cursors SET lease_id = NULL, lease_end = NULL, lease_expires_at = NULL,"
            " available_at = clock_timestamp() + interval '1 hour'"
        )
    queue = await held.look()
    assert (queue.depth, queue.scheduled) == (1, 0)
    assert is_about(queue.oldest_s, 900)
    (group,) = await statistics.groups(transactions)
    assert (group.lag, group.scheduled) == (1, 0)
    assert is_about(group.lag_s_max, 900)
