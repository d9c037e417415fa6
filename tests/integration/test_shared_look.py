"""Pops for any partition that share a flush, and with it one look at what their group may read."""

import asyncio
from collections.abc import Sequence

import msgspec
import psycopg
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Delivery, Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, ConsumerGroup, PartitionName, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counter, Counters
from queue_server.storage.transactions import Transactions
from tests.fix_db import make_queue

QUEUE = QueueName("q")


def wish(
    group: ConsumerGroup = QUEUE_MODE,
    messages: int = 1,
    partitions: int = 1,
    partition: str | None = None,
    auto_ack: bool = False,
) -> PopRequest:
    return PopRequest(
        queue=QUEUE,
        group=group,
        start=ALL,
        partition=None if partition is None else PartitionName(partition),
        message_limit=messages,
        partition_limit=partitions,
        auto_ack=auto_ack,
    )


class Worker:
    """The broker of one worker and a queue with these groups."""

    def __init__(self, transactions: Transactions) -> None:
        self.transactions = transactions
        self.row = Counters(1).worker(0)
        directory, rooms, keyring = Directory(transactions), Rooms(), Keyring()
        self.pusher = Pusher(transactions, directory, rooms, self.row, keyring)
        self.popper = Popper(transactions, directory, rooms, self.row, keyring, Pace())

    async def prepare(
        self, partitions: int, messages: int, groups: Sequence[ConsumerGroup] = (QUEUE_MODE,)
    ) -> None:
        await make_queue(self.transactions, "q")
        for group in groups:
            assert (await self.popper.pop(wish(group))).delivery is None
        await self.pusher.push(
            [
                NewMessage("q", msgspec.Raw(b"%d" % number), f"p{partition}")
                for partition in range(partitions)
                for number in range(messages)
            ],
            10_000,
        )

    async def pop_together(self, wishes: Sequence[PopRequest]) -> list[list[str]]:
        """What each of them got, as "partition/offset-from/to" of its runs."""
        flushes = self.row.get(Counter.POP_TRANSACTIONS)
        answers = await asyncio.gather(*map(self.popper.pop, wishes))
        assert self.row.get(Counter.POP_TRANSACTIONS) == flushes + 1
        return [_told(answer.delivery) for answer in answers]


def _told(delivery: Delivery | None) -> list[str]:
    if delivery is None:
        return []
    return [
        f"{delivery.partitions[claim.partition_id].partition}/{run.start}-{run.end}"
        for claim in delivery.claims
        for run in claim.runs
    ]


@pytest.fixture
def worker(transactions: Transactions) -> Worker:
    return Worker(transactions)


async def test_each_gets_a_partition_of_its_own(worker: Worker) -> None:
    await worker.prepare(30, 2)
    got = await worker.pop_together([wish(messages=5) for _ in range(40)])
    assert sorted(got[:30]) == sorted([f"p{number}/0-2"] for number in range(30))
    assert got[30:] == [[]] * 10


async def test_one_takes_several_and_the_next_goes_on_behind_them(worker: Worker) -> None:
    await worker.prepare(7, 1)
    got = await worker.pop_together([wish(messages=10, partitions=3) for _ in range(4)])
    assert [len(runs) for runs in got] == [3, 3, 1, 0]
    assert len({run for runs in got for run in runs}) == 7


async def test_the_round_goes_on_in_the_next_flush_and_comes_to_the_beginning(
    worker: Worker,
) -> None:
    await worker.prepare(10, 100)
    first = await worker.pop_together([wish(messages=2, auto_ack=True) for _ in range(6)])
    second = await worker.pop_together([wish(messages=2, auto_ack=True) for _ in range(6)])
    assert first == [[f"p{number}/0-2"] for number in range(6)]
    assert second[:4] == [[f"p{number}/0-2"] for number in range(6, 10)]
    assert second[4:] == [["p0/2-4"], ["p1/2-4"]]


async def test_what_one_leaves_of_a_partition_without_a_lease_is_for_the_next(
    worker: Worker,
) -> None:
    await worker.prepare(2, 7)
    got = await worker.pop_together([wish(messages=3, auto_ack=True) for _ in range(7)])
    assert got == [
        ["p0/0-3"], ["p1/0-3"], ["p0/3-6"], ["p1/3-6"], ["p0/6-7"], ["p1/6-7"], [],
    ]  # fmt: skip


async def test_a_pop_of_several_partitions_takes_none_of_them_twice(worker: Worker) -> None:
    await worker.prepare(2, 7)
    got = await worker.pop_together(
        [wish(messages=10, partitions=5, auto_ack=True) for _ in range(2)]
    )
    assert got == [["p0/0-7", "p1/0-3"], ["p1/3-7"]]


async def test_groups_and_named_partitions_that_come_mixed_get_what_is_theirs(
    worker: Worker,
) -> None:
    groups = [ConsumerGroup("a"), ConsumerGroup("b")]
    await worker.prepare(3, 1, groups)
    # What it names is resolved ahead, so that this one too shares the flush.
    assert (await worker.popper.pop(wish(groups[0], partition="p2"))).delivery is not None
    got = await worker.pop_together(
        [
            wish(groups[0]), wish(groups[1]), wish(groups[0], partition="p2"),
            wish(groups[0]), wish(groups[1]), wish(groups[1]), wish(groups[0]),
        ]
    )  # fmt: skip
    assert got == [["p0/0-1"], ["p0/0-1"], [], ["p1/0-1"], ["p1/0-1"], ["p2/0-1"], []]


@pytest.mark.databases("embedded", "pg15", reason="PgBouncer keeps the backends")
async def test_many_pops_look_at_leased_partitions_once(
    conninfo: str, transactions: Transactions, worker: Worker
) -> None:
    """Looking is what pops cost when most of what there is is leased to others."""
    partitions, pops = 50, 40
    await worker.prepare(partitions, 1)
    assert all(await worker.pop_together([wish() for _ in range(partitions)]))
    rounds = 10
    for _ in range(rounds):
        assert not any(await worker.pop_together([wish() for _ in range(pops)]))
    await transactions.close()
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE schemaname = 'queen' AND relname = 'cursors'"
        )
        row = await cursor.fetchone()
    assert row is not None
    # Each for itself would look at all of them: 20,000.
    assert row[0] < 3 * rounds * partitions, row
