"""Many partitions, of which few have something to read: what a pop costs does not grow with them.

Figures are compared within one run, as the machine is not ours alone; `pytest -s` prints them.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence

import msgspec
import psycopg
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, ConsumerGroup, QueueName
from queue_server.domain.subscription import ALL, NEW, Start
from queue_server.observability.counters import Counters
from queue_server.storage.transactions import Transactions

pytestmark = pytest.mark.alone

MANY = 100_000
FEW = 10


class Worker:
    """The broker of one worker, without HTTP around it."""

    def __init__(self, transactions: Transactions) -> None:
        row = Counters(1).worker(0)
        directory, rooms, keyring = Directory(transactions), Rooms(), Keyring()
        self._pusher = Pusher(transactions, directory, rooms, row, keyring)
        self._popper = Popper(transactions, directory, rooms, row, keyring, Pace())

    async def push(self, queue: str, numbers: Sequence[int]) -> None:
        await self._pusher.push(
            [NewMessage(queue, msgspec.Raw(b"1"), f"p{number}") for number in numbers], 100
        )

    async def pop(
        self,
        queue: str,
        group: ConsumerGroup = QUEUE_MODE,
        start: Start = ALL,
        *,
        messages: int = 1,
        partitions: int = 1,
    ) -> int:
        """Pop and commit at once; how many messages came."""
        answer = await self._popper.pop(
            PopRequest(
                queue=QueueName(queue),
                group=group,
                start=start,
                message_limit=messages,
                partition_limit=partitions,
                auto_ack=True,
            )
        )
        return 0 if answer.delivery is None else answer.delivery.message_count


@pytest.fixture
def worker(transactions: Transactions) -> Worker:
    return Worker(transactions)


async def create_partitions(conninfo: str, queue: str, count: int) -> None:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        created = await connection.execute(
            "SELECT count(*) FROM queen.ensure_queue(gen_random_uuid(), %s, '', '', 60) q,"
            " LATERAL queen.ensure_partitions(1::smallint, q.o_queue_id,"
            "  (SELECT array_agg('p' || n) FROM generate_series(1, %s) n))",
            (queue, count),
        )
        assert await created.fetchone() == (count,)
        await connection.execute("ANALYZE")


async def drain(worker: Worker, queue: str, group: ConsumerGroup, count: int) -> float:
    """Pop *count* messages; the seconds it took."""
    begin = time.perf_counter()
    seen = 0
    while seen < count:
        came = await worker.pop(queue, group, messages=1000, partitions=64)
        assert came, f"nothing after {seen} of {count} messages"
        seen += came
    assert seen == count
    return time.perf_counter() - begin


async def test_a_new_group_on_5000_partitions_finds_what_comes_after_it(worker: Worker) -> None:
    numbers = range(5000)
    group = ConsumerGroup("late")
    await worker.push("q", numbers)
    begin = time.perf_counter()
    assert await worker.pop("q", group, NEW) == 0
    registered_s = time.perf_counter() - begin
    await worker.push("q", numbers)
    drained_s = await drain(worker, "q", group, 5000)
    assert await worker.pop("q", group) == 0
    print(f"\nregistered in {registered_s * 1000:.1f} ms, 5000 messages in {drained_s:.2f} s")
    # One registration covers all partitions without a visit to each.
    assert registered_s < 0.5
    assert drained_s < 10


async def median_ms(worker: Worker, queue: str, count: int) -> tuple[float, float]:
    """How long a pop takes that finds the only message, and one that finds none."""
    hits: list[float] = []
    misses: list[float] = []
    for round_ in range(60):
        await worker.push(queue, [1 + round_ * 37 % count])
        for found, times in ((1, hits), (0, misses)):
            begin = time.perf_counter()
            assert await worker.pop(queue) == found
            times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(hits), statistics.median(misses)


async def test_a_pop_over_100000_partitions_takes_as_long_as_over_10(
    conninfo: str, worker: Worker
) -> None:
    """Both for mostly empty partitions and after a burst that went through a quarter of them."""
    for queue, count in (("few", FEW), ("many", MANY)):
        await create_partitions(conninfo, queue, count)
        await worker.pop(queue)
    few = await median_ms(worker, "few", FEW)
    many = await median_ms(worker, "many", MANY)

    burst = range(1, MANY // 4 + 1)
    for start in range(0, len(burst), 5000):
        await worker.push("many", burst[start : start + 5000])
    drained_s = await drain(worker, "many", QUEUE_MODE, len(burst))
    after_burst = await median_ms(worker, "many", MANY)
    print(
        f"\nhit, miss in ms: {few} over {FEW}, {many} over {MANY}, {after_burst} after a burst "
        f"to {len(burst)}, which was read in {drained_s:.1f} s"
    )
    for figures in (many, after_burst):
        for one, base in zip(figures, few, strict=True):
            # About the same: without an index on what is pending it is a hundred times as long.
            assert one < base * 5 + 1


async def test_registering_a_group_on_100000_partitions_does_not_hold_pushes_up(
    conninfo: str, worker: Worker
) -> None:
    await create_partitions(conninfo, "q", MANY)
    await worker.pop("q")
    latencies: list[float] = []
    done = asyncio.Event()

    async def produce() -> None:
        number = 0
        while not done.is_set():
            number += 1
            begin = time.perf_counter()
            await worker.push("q", [number * 7919 % MANY + 1])
            latencies.append(time.perf_counter() - begin)

    producer = asyncio.create_task(produce())
    begin = time.perf_counter()
    await worker.pop("q", ConsumerGroup("history"))
    registered_s = time.perf_counter() - begin
    done.set()
    await producer
    print(f"\nregistered in {registered_s:.1f} s, slowest push {max(latencies) * 1000:.0f} ms")
    assert max(latencies) < registered_s / 2
    # Nothing was missed between registering and visiting the partitions.
    await drain(worker, "q", ConsumerGroup("history"), len(latencies) - 1)
