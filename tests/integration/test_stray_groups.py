"""A group that no consumer reads with must not hold back all pushes to a queue with a maxSize."""

import msgspec
import psycopg
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import QueueFull
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, ConsumerGroup, QueueName
from queue_server.domain.options import OptionChanges
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import queues
from queue_server.storage.transactions import Transactions

QUEUE = QueueName("q")
STRAY = ConsumerGroup("stray")


class World:
    """A queue that holds five messages, and consumers of it."""

    def __init__(self, conninfo: str, transactions: Transactions) -> None:
        self._conninfo = conninfo
        row = Counters(1).worker(0)
        directory, rooms, keyring, pace = Directory(transactions), Rooms(), Keyring(), Pace()
        self._pusher = Pusher(transactions, directory, rooms, row, keyring)
        self._popper = Popper(transactions, directory, rooms, row, keyring, pace)

    async def push(self, count: int) -> None:
        await self._pusher.push([NewMessage("q", msgspec.Raw(b"1"))] * count, 1000)

    async def pop(self, group: ConsumerGroup, *, auto_ack: bool) -> int:
        """Read what there is and return how many messages that was."""
        popped = await self._popper.pop(
            PopRequest(
                queue=QUEUE, group=group, start=ALL, partition=None, message_limit=100,
                partition_limit=10, auto_ack=auto_ack,
            )
        )  # fmt: skip
        if popped.delivery is None:
            return 0
        return sum(run.end - run.start for claim in popped.delivery.claims for run in claim.runs)

    async def pass_time(self, minutes: int) -> None:
        """Have all that happened to the groups happen earlier."""
        async with await psycopg.AsyncConnection.connect(self._conninfo) as connection:
            await connection.execute(
                "UPDATE queen.subscriptions SET"
                " created_at = created_at - make_interval(mins => %s)",
                (minutes,),
            )
            await connection.execute(
                "UPDATE queen.cursors SET"
                " lease_expires_at = lease_expires_at - make_interval(mins => %(minutes)s),"
                " consumed_at = consumed_at - make_interval(mins => %(minutes)s)",
                {"minutes": minutes},
            )


@pytest.fixture
async def world(conninfo: str, transactions: Transactions) -> World:
    await queues.configure(
        transactions, QUEUE, None, None, OptionChanges(max_size=5, lease_time=60), mode="merge"
    )
    return World(conninfo, transactions)


@pytest.mark.parametrize("finds_something", [True, False])
async def test_one_that_popped_once_is_left_out_after_an_hour(
    world: World, finds_something: bool
) -> None:
    if not finds_something:
        assert await world.pop(STRAY, auto_ack=False) == 0
    await world.push(5)
    if finds_something:
        assert await world.pop(STRAY, auto_ack=False) == 5
    assert await world.pop(QUEUE_MODE, auto_ack=True) == 5
    with pytest.raises(QueueFull):
        await world.push(1)
    await world.pass_time(58)
    with pytest.raises(QueueFull):
        await world.push(1)
    await world.pass_time(4)
    await world.push(5)
    # Consumers that read still count.
    with pytest.raises(QueueFull):
        await world.push(1)
    assert await world.pop(QUEUE_MODE, auto_ack=True) == 5
    await world.push(1)
    # It has lost nothing, and counts again as soon as it reads.
    assert await world.pop(STRAY, auto_ack=False) == 11
    assert await world.pop(QUEUE_MODE, auto_ack=True) == 1
    with pytest.raises(QueueFull):
        await world.push(1)


async def test_one_that_acknowledged_counts(world: World) -> None:
    await world.push(5)
    assert await world.pop(STRAY, auto_ack=True) == 5
    await world.push(5)
    assert await world.pop(QUEUE_MODE, auto_ack=True) == 10
    await world.pass_time(24 * 60)
    with pytest.raises(QueueFull):
        await world.push(1)


async def test_without_readers_all_that_is_kept_counts(world: World) -> None:
    await world.push(5)
    assert await world.pop(STRAY, auto_ack=False) == 5
    await world.pass_time(24 * 60)
    with pytest.raises(QueueFull):
        await world.push(1)
