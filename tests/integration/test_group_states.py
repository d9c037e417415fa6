"""A group that no consumer uses is told apart and makes its queue neither deep nor late."""

import msgspec
import psycopg
import pytest

from queue_server.broker.activity import Activity
from queue_server.broker.directory import Directory
from queue_server.broker.groups import Groups
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import (
    QUEUE_MODE,
    ConsumerGroup,
    PartitionName,
    QueueName,
    SubscriptionId,
)
from queue_server.domain.options import OptionChanges
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import dashboard, groups, queues, statistics
from queue_server.storage.queues import Limits
from queue_server.storage.statistics import GroupStatistics
from queue_server.storage.transactions import Transactions

QUEUE = QueueName("orders")
BILLING, SHIPPING = ConsumerGroup("billing"), ConsumerGroup("shipping")


class World:
    """A queue with partitions a and b, five messages in each."""

    def __init__(self, conninfo: str, transactions: Transactions) -> None:
        self._conninfo = conninfo
        self._transactions = transactions
        self._activity = Activity()
        row, rooms, keyring = Counters(1).worker(0), Rooms(), Keyring()
        directory = Directory(transactions)
        self._pusher = Pusher(transactions, directory, rooms, row, keyring)
        self._popper = Popper(
            transactions, directory, rooms, row, keyring, Pace(), activity=self._activity
        )
        self.groups = Groups(transactions, directory, rooms)
        self._now = 0.0

    async def push(self, partition: str, count: int) -> None:
        await self._pusher.push(
            [NewMessage(QUEUE, msgspec.Raw(b"1"), PartitionName(partition))] * count, 10_000
        )

    async def pop(
        self, group: ConsumerGroup, *, auto_ack: bool, partition: str | None = None
    ) -> int:
        """Read what there is, note the group, and return how many messages it got."""
        popped = await self._popper.pop(
            PopRequest(
                queue=QUEUE, group=group, start=ALL, message_limit=100, partition_limit=10,
                partition=None if partition is None else PartitionName(partition),
                auto_ack=auto_ack,
            )
        )  # fmt: skip
        # As a worker does from time to time.
        contacts = self._activity.contacts
        self._now += 61
        await groups.note(self._transactions, *contacts.take([], self._now))
        if popped.delivery is None:
            return 0
        return popped.delivery.message_count

    async def pass_time(self, minutes: int) -> None:
        """Have all that happened to the groups happen earlier."""
        async with await psycopg.AsyncConnection.connect(self._conninfo) as connection:
            for table, *columns in (
                ("subscriptions", "created_at"),
                ("group_activity", "popped_at", "acked_at"),
                ("cursors", "consumed_at", "lease_expires_at"),
                ("segments", "created_at"),
            ):
                moved = ", ".join(f"{c} = {c} - make_interval(mins => {minutes})" for c in columns)
                await connection.execute(f"UPDATE queen.{table} SET {moved}")

    async def depth(self) -> tuple[int, float]:
        """What lies before the slowest consumer in use, and how old the oldest of it is."""
        (queue,) = (await statistics.overview(self._transactions)).queues
        return queue.depth, queue.oldest_s

    async def states(self) -> dict[str, GroupStatistics]:
        return {one.group: one for one in await statistics.groups(self._transactions)}


@pytest.fixture
async def world(conninfo: str, transactions: Transactions) -> World:
    world = World(conninfo, transactions)
    for partition in ("a", "b"):
        await world.push(partition, 5)
    return world


@pytest.mark.parametrize("reads", [False, True], ids=["a stray pop", "a reader that stopped"])
async def test_a_group_without_a_consumer_counts_for_an_hour(world: World, reads: bool) -> None:
    assert await world.pop(QUEUE_MODE, auto_ack=reads) == 10
    assert await world.pop(BILLING, auto_ack=True) == 10
    await world.push("a", 3)
    assert await world.pop(BILLING, auto_ack=True) == 3
    left = 3 if reads else 13

    # A consumer that has stopped is not hidden by one that reads on...
    await world.pass_time(59)
    assert await world.pop(BILLING, auto_ack=True) == 0
    depth, oldest_s = await world.depth()
    assert depth == left
    assert oldest_s >= 59 * 60
    told = (await world.states())[QUEUE_MODE]
    assert told.state == ("active" if reads else "never acknowledged")
    assert told.counted

    # ...and is told apart when it has been away for long.
    await world.pass_time(2)
    assert await world.pop(BILLING, auto_ack=True) == 0
    assert await world.depth() == (0, 0)
    told = (await world.states())[QUEUE_MODE]
    assert told.state == ("idle" if reads else "never acknowledged")
    assert (told.counted, told.lag) == (False, left)
    assert told.oldest_at is not None
    assert (await world.states())[BILLING].state == "active"

    # It counts again as soon as it comes back, also if it finds nothing to read.
    assert await world.pop(QUEUE_MODE, auto_ack=False, partition="c") == 0
    assert await world.pop(QUEUE_MODE, auto_ack=False) in (left, 0)
    assert (await world.depth())[0] == left


async def test_where_no_group_is_in_use_the_slowest_counts_for_ever(world: World) -> None:
    assert await world.pop(BILLING, auto_ack=True) == 10
    await world.push("b", 2)
    assert await world.pop(SHIPPING, auto_ack=True) == 12
    await world.pass_time(60 * 24 * 30)
    states = await world.states()
    assert {one.state for one in states.values()} == {"idle"}
    assert all(one.counted for one in states.values())
    assert (await world.depth())[0] == 2


async def test_a_partition_that_only_idle_groups_read_is_not_taken_for_unread(
    world: World,
) -> None:
    assert await world.pop(SHIPPING, auto_ack=True, partition="b") == 5
    await world.pass_time(61)
    assert await world.pop(BILLING, auto_ack=True, partition="a") == 5
    assert not (await world.states())[SHIPPING].counted
    assert (await world.depth())[0] == 0


async def test_a_group_that_only_waits_for_messages_is_in_use(
    world: World, transactions: Transactions
) -> None:
    for _ in range(3):
        await world.pop(BILLING, auto_ack=True)
        await world.pass_time(45)
    assert (await world.states())[BILLING].counted
    (queue,) = (await statistics.overview(transactions)).queues
    (row,) = await dashboard.groups(transactions, queue.id)
    assert (row.name, row.state, row.counted) == (BILLING, "active", True)


async def test_the_time_is_a_setting(world: World, transactions: Transactions) -> None:
    assert await world.pop(QUEUE_MODE, auto_ack=False) == 10
    await world.pass_time(120)
    assert await world.pop(BILLING, auto_ack=True) == 10
    assert (await world.depth())[0] == 0
    for idle_s in (0, 4 * 3600):
        await queues.set_limits(transactions, Limits(1000, 1000, 1000, idle_s))
        assert (await world.depth())[0] == 10
    await queues.set_limits(transactions, Limits(1000, 1000, 1000, 3600))
    assert (await world.depth())[0] == 0


async def test_what_counts_against_a_limit_is_told_as_pushes_count_it(
    world: World, transactions: Transactions
) -> None:
    await queues.configure(
        transactions, QUEUE, None, None, OptionChanges(max_size=20), mode="merge"
    )
    assert await world.pop(QUEUE_MODE, auto_ack=True) == 10
    await world.push("a", 4)
    await world.pass_time(120)
    assert await world.pop(BILLING, auto_ack=True) == 14
    # One that acknowledged holds messages back, however long it is away.
    (queue,) = (await statistics.overview(transactions)).queues
    assert (queue.depth, queue.limited) == (0, 4)


async def test_idle_groups_expire_when_asked_to(world: World) -> None:
    assert await world.pop(QUEUE_MODE, auto_ack=True) == 10
    assert await world.pop(SHIPPING, auto_ack=False) == 10
    await world.pass_time(50)
    assert await world.pop(BILLING, auto_ack=True) == 10
    await world.pass_time(50)
    assert await world.groups.expire(2 * 3600) == 0
    assert await world.groups.expire(3600) == 2
    assert set(await world.states()) == {BILLING}
    # It comes back as a new one.
    assert await world.pop(SHIPPING, auto_ack=False) == 10
    assert (await world.states())[SHIPPING].state == "never acknowledged"


async def test_a_group_that_holds_a_lease_does_not_expire(
    world: World, conninfo: str, transactions: Transactions
) -> None:
    assert await world.pop(SHIPPING, auto_ack=False) == 10
    await world.pass_time(100)
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        await connection.execute(
            "UPDATE queen.cursors SET lease_expires_at = now() + interval '1 hour'"
        )
    assert await world.groups.expire(3600) == 0
    assert set(await world.states()) == {SHIPPING}


async def test_activity_goes_with_its_group(
    world: World, conninfo: str, transactions: Transactions
) -> None:
    await world.pop(SHIPPING, auto_ack=True)
    await world.pop(BILLING, auto_ack=True)
    await world.groups.delete(SHIPPING, QUEUE, delete_metadata=True)
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute("SELECT count(*) FROM queen.group_activity")
        assert await cursor.fetchone() == (1,)
    await queues.delete_queue(transactions, QUEUE)
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute("SELECT count(*) FROM queen.group_activity")
        assert await cursor.fetchone() == (0,)
    # A worker that has not heard of it notes nothing.
    await groups.note(transactions, [SubscriptionId(10**6)], [])
