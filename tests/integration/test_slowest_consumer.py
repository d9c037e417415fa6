"""A queue that groups read and consumers without a group: its figures are those of the slowest."""

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
from queue_server.domain.names import QUEUE_MODE, ConsumerGroup, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import series, statistics
from queue_server.storage.statistics import PartitionPage
from queue_server.storage.transactions import Transactions

QUEUE = QueueName("q")
LEDGER = ConsumerGroup("ledger")
OLD_S = 7200


class Hybrid:
    """Partitions a and b with ten messages each, two hours old."""

    def __init__(self, transactions: Transactions, conninfo: str) -> None:
        row, rooms, keyring = Counters(1).worker(0), Rooms(), Keyring()
        directory = Directory(transactions)
        self._conninfo = conninfo
        self._pusher = Pusher(transactions, directory, rooms, row, keyring)
        self._popper = Popper(transactions, directory, rooms, row, keyring, Pace())

    async def push(self) -> None:
        await self._pusher.push(
            [
                NewMessage(QUEUE, msgspec.Raw(b"%d" % number), partition)
                for partition in ("a", "b")
                for number in range(10)
            ],
            10_000,
        )
        async with await psycopg.AsyncConnection.connect(self._conninfo) as connection:
            await connection.execute(
                "UPDATE queen.segments SET created_at = created_at - make_interval(secs => %s)",
                (OLD_S,),
            )

    async def read(self, group: ConsumerGroup, count: int, partitions: int = 2) -> None:
        """Read and acknowledge *count* messages."""
        answer = await self._popper.pop(
            PopRequest(
                queue=QUEUE,
                group=group,
                start=ALL,
                partition=None,
                message_limit=count,
                partition_limit=partitions,
                auto_ack=True,
            )
        )
        assert answer.delivery is not None
        assert sum(run.end - run.start for c in answer.delivery.claims for run in c.runs) == count


@pytest.fixture
async def hybrid(transactions: Transactions, conninfo: str) -> Hybrid:
    hybrid = Hybrid(transactions, conninfo)
    await hybrid.push()
    return hybrid


@pytest.mark.parametrize(
    ("stopped", "busy"), [(QUEUE_MODE, LEDGER), (LEDGER, QUEUE_MODE)], ids=["queue mode", "a group"]
)
async def test_who_has_stopped_is_not_hidden_by_who_has_read_all(
    hybrid: Hybrid,
    transactions: Transactions,
    conninfo: str,
    stopped: ConsumerGroup,
    busy: ConsumerGroup,
) -> None:
    await hybrid.read(stopped, 3, partitions=1)
    await hybrid.read(busy, 20)

    looks = Looks(transactions, 10)
    found = (await looks.overview.current()).value
    assert found.depth == 17
    assert found.lag_offsets.max == 10
    assert OLD_S <= found.lag_seconds.max < OLD_S + 600
    (queue,) = found.queues
    assert (queue.depth, queue.group_count) == (17, 1)
    assert OLD_S <= queue.oldest_s < OLD_S + 600

    deepest = await statistics.deepest_partitions(transactions, QUEUE, 0, 10)
    assert sorted(one.depth for one in deepest) == [7, 10]
    assert all(one.due_s is not None and one.due_s >= OLD_S for one in deepest)

    figures = await looks.metrics()
    assert figures is not None
    (told,) = figures.queues
    assert (told.name, told.depth) == (QUEUE, 17)
    assert OLD_S <= told.oldest_age_s < OLD_S + 600
    assert [(one.group, one.lag) for one in figures.groups] == [(stopped, 17), (busy, 0)]
    assert figures.groups[0].lag_s_max >= OLD_S
    assert figures.groups[1].lag_s_max == 0

    assert await series.book_depths(transactions) == 1
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute("SELECT depth, oldest_s FROM queen.queue_minutes")
        assert [row[0] for row in await cursor.fetchall()] == [17]
    await looks.close()


async def test_one_route_asks_for_named_groups_first(
    hybrid: Hybrid, transactions: Transactions
) -> None:
    await hybrid.read(QUEUE_MODE, 3, partitions=1)
    (queue,) = (await statistics.overview(transactions)).queues
    depths = await statistics.queue_depth(transactions, PartitionPage(queue.id, 0, 100))
    assert depths.pending == queue.depth == 17
    await hybrid.read(LEDGER, 20)
    (queue,) = (await statistics.overview(transactions)).queues
    depths = await statistics.queue_depth(transactions, PartitionPage(queue.id, 0, 100))
    assert depths.pending == 0
    assert queue.depth == 17


async def test_queue_mode_counts_from_its_first_pop_on(
    hybrid: Hybrid, transactions: Transactions
) -> None:
    async def depth() -> int:
        return (await statistics.overview(transactions)).depth

    assert await depth() == 20
    await hybrid.read(LEDGER, 20)
    assert await depth() == 0
    await hybrid.read(QUEUE_MODE, 1, partitions=1)
    assert await depth() == 19
