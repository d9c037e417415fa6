"""Figures by minute: what several workers book adds up, and goes after its time."""

import datetime
from typing import Any

import msgspec
import pytest

from queue_server.broker.activity import Activity, QueueActivity
from queue_server.broker.directory import Directory
from queue_server.broker.groups import Groups
from queue_server.broker.throughput import Throughput
from queue_server.broker.wakeup import Rooms
from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.names import QueueName
from queue_server.observability.counters import Counter, Counters
from queue_server.services.retention import DAY_S, Cleanup
from queue_server.services.series import Series
from queue_server.storage import queues, series
from queue_server.storage.series import Address, Range
from queue_server.storage.statistics import QueueFilter
from queue_server.storage.transactions import Transactions


class Worker:
    """What one worker books, without the worker."""

    def __init__(self, transactions: Transactions, counters: Counters, slot: int, port: int = 1):
        self.row = counters.worker(slot)
        self.activity = Activity()
        self.throughput = Throughput(counters)
        self.series = Series(
            transactions,
            self.row,
            self.activity,
            Rooms(),
            self.throughput,
            Address("host", port, slot),
            interval_s=10,
            pool_size_max=8,
        )

    def push(self, queue: str, count: int) -> None:
        self.row.add(Counter.PUSH_REQUESTS)
        self.row.add(Counter.MESSAGES_PUSHED, count)
        self.activity.count_push([queue])
        self.activity.of(queue).push_messages += count


def today() -> Range:
    now = datetime.datetime.now(datetime.UTC)
    half = datetime.timedelta(hours=12)
    return Range(now - half, now + half, 1)


@pytest.fixture
async def queue(transactions: Transactions) -> str:
    await queues.ensure_queue(transactions, QueueName("q"))
    return "q"


async def sums(transactions: Transactions, queue: str) -> tuple[int, int, int, int]:
    """Requests and messages pushed: by all workers, and to the queue."""
    points = await series.workers(transactions, today())
    of_queue = await series.queues(transactions, today(), QueueFilter(queue=queue))
    return (
        sum(point.counts.push_requests for point in points),
        sum(point.counts.push_messages for point in points),
        sum(point.push_requests for point in of_queue),
        sum(point.push_messages for point in of_queue),
    )


async def test_bookings_of_all_workers_add_up(transactions: Transactions, queue: str) -> None:
    counters = Counters(2)
    workers = [Worker(transactions, counters, 0), Worker(transactions, counters, 1)]
    # Another server, on a host of the same name.
    workers.append(Worker(transactions, Counters(1), 0, port=2))
    for _ in range(3):
        for number, worker in enumerate(workers):
            worker.push(queue, 10 + number)
            await worker.series.book()
    assert await sums(transactions, queue) == (9, 99, 9, 99)
    summaries = await series.worker_summaries(transactions, today())
    assert [one.address for one in summaries] == [
        Address("host", 1, 0), Address("host", 1, 1), Address("host", 2, 0),
    ]  # fmt: skip
    assert [one.message_count for one in summaries] == [30, 33, 36]
    # What the others do is known from what they booked.
    assert workers[0].throughput.others.pushed > 0
    assert workers[2].throughput.others.pushed > 0


async def test_what_cannot_be_booked_is_booked_the_next_time(
    transactions: Transactions, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(transactions, Counters(1), 0)
    worker.push(queue, 5)

    async def fail(*_: Any) -> None:
        raise StorageUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(series, "book", fail)
        with pytest.raises(StorageUnavailable):
            await worker.series.book()
    worker.push(queue, 7)
    await worker.series.book()
    assert await sums(transactions, queue) == (2, 12, 2, 12)


async def test_names_that_are_no_queue_leave_nothing(
    transactions: Transactions, queue: str
) -> None:
    """Who pops may name anything."""
    worker = Worker(transactions, Counters(1), 0)
    worker.activity.of("none").pop_empty += 1
    worker.push(queue, 1)
    await worker.series.book()
    points = await series.queues(transactions, today(), QueueFilter())
    assert [point.queue for point in points] == [queue]


async def test_many_queues_at_once(transactions: Transactions) -> None:
    names = [f"q{number}" for number in range(2500)]
    for name in names:
        await queues.ensure_queue(transactions, QueueName(name))
    worker = Worker(transactions, Counters(1), 0)
    for name in names:
        worker.push(name, 2)
    await worker.series.book()
    points = await series.queues(transactions, today(), QueueFilter())
    assert sum(point.push_messages for point in points) == 5000


async def test_figures_go_after_their_time(transactions: Transactions, queue: str) -> None:
    worker = Worker(transactions, Counters(1), 0)
    worker.push(queue, 1)
    await worker.series.book()
    for table in ("queue_minutes", "worker_minutes"):
        await transactions.call(
            f"INSERT INTO queen.{table} SELECT (jsonb_populate_record(m, jsonb_build_object("
            f" 'minute', m.minute - make_interval(days => n)))).*"
            f" FROM queen.{table} m, generate_series(1, 300) n RETURNING 1",
            {},
        )
    cleanup = Cleanup(
        transactions,
        Groups(transactions, Directory(transactions), Rooms()),
        idle_days=30,
        trace_age_s=7 * DAY_S,
        series_age_s=7 * DAY_S,
        batch_size=100,
    )
    # Those of seven days stay; the one of just seven days ago may be a few seconds too old.
    assert (await cleanup.run_once())["minutes"] in range(2 * 293, 2 * 294 + 1)
    assert (await cleanup.run_once())["minutes"] in (0, 1, 2)
    assert await sums(transactions, queue) == (1, 1, 1, 1)


def test_activity_adds_up_but_for_the_longest_lag() -> None:
    activity = Activity()
    activity.of("q").delivered(2, 30)
    activity.of("q").delivered(1, -5)  # the database's clock is ahead of ours
    activity.count_push(["q", "q", "r"])
    taken = activity.take()
    activity.of("q").delivered(1, 10)
    activity.put_back(taken)
    expected = QueueActivity(push_requests=1, pop_messages=4, lag_ms_sum=70, lag_ms_max=30)
    assert msgspec.structs.astuple(activity.take()["q"]) == msgspec.structs.astuple(expected)
    assert activity.take() == {}
