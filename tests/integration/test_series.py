"""Figures by minute: what several workers book adds up, and goes after its time."""

import asyncio
import datetime
from typing import Any
from unittest.mock import Mock

import msgspec
import psycopg
import pytest

from queue_server.broker.activity import Activity, QueueActivity
from queue_server.broker.directory import Directory
from queue_server.broker.groups import Groups
from queue_server.broker.throughput import Throughput
from queue_server.broker.wakeup import RoomKey, Rooms
from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.names import ConsumerGroup, SubscriptionId
from queue_server.domain.subscription import ALL
from queue_server.http.handlers.series import points_of, sum_counts
from queue_server.observability.counters import Counter, Counters
from queue_server.services import series as service
from queue_server.services.retention import DAY_S, Cleanup
from queue_server.services.series import Series
from queue_server.storage import queues, series
from queue_server.storage.series import Address, Range
from queue_server.storage.statistics import QueueFilter
from queue_server.storage.transactions import Transactions
from tests.client import eventually
from tests.fix_db import make_queue


class Worker:
    """What one worker books, without the worker."""

    def __init__(
        self,
        transactions: Transactions,
        counters: Counters,
        slot: int,
        port: int = 1,
        *,
        interval_s: float = 10,
    ):
        self.row = counters.worker(slot)
        self.activity = Activity()
        self.rooms = Rooms()
        self.throughput = Throughput(counters)
        self.series = Series(
            transactions,
            self.row,
            self.activity,
            self.rooms,
            self.throughput,
            Address("host", port, slot),
            interval_s=interval_s,
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
    await make_queue(transactions, "q")
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


async def test_groups_in_use_are_noted_and_not_with_each_booking(
    transactions: Transactions, queue: str, conninfo: str
) -> None:
    ids = []
    for group in ("polling", "acknowledging", "away"):
        queue_id = await make_queue(transactions, queue)
        subscription = await queues.subscribe(
            transactions, queue_id, ConsumerGroup(group), ALL, queue_wide=True
        )
        assert subscription is not None
        ids.append(subscription.id)
    worker = Worker(transactions, Counters(1), 0)
    contacts = worker.activity.contacts

    async def noted() -> list[tuple[int, bool, int]]:
        async with await psycopg.AsyncConnection.connect(conninfo) as connection:
            cursor = await connection.execute(
                "SELECT subscription_id, acked_at IS NOT NULL, xmin::text::bigint"
                " FROM queen.group_activity ORDER BY 1"
            )
            return await cursor.fetchall()

    contacts.popped.update(ids[:2])
    await worker.series.book()
    assert [row[:2] for row in await noted()] == [(ids[0], False), (ids[1], False)]
    # The first acknowledgement is noted at once, what was noted before is not noted again.
    before = await noted()
    contacts.popped.update(ids[:2])
    contacts.acked.add(ids[1])
    await worker.series.book()
    after = await noted()
    assert after[0] == before[0]
    assert after[1][:2] == (ids[1], True)
    contacts.popped.update(ids[:2])
    contacts.acked.add(ids[1])
    await worker.series.book()
    assert await noted() == after


async def test_a_worker_that_went_silent_is_missed_and_one_that_ended_is_not(
    transactions: Transactions,
) -> None:
    counters = Counters(2)
    workers = [Worker(transactions, counters, slot) for slot in (0, 1)]

    async def told() -> list[tuple[int, int]]:
        found = await series.last_bookings(transactions, 10)
        return [(one.address.worker_id, round(one.age_s / 60)) for one in found]

    async def pass_time(minutes: float) -> None:
        await transactions.call(
            "UPDATE queen.worker_minutes SET updated_at = updated_at - make_interval(secs => %(s)s)"
            " RETURNING 1",
            {"s": minutes * 60},
        )

    for worker in workers:
        await worker.series.book()
    assert await told() == [(0, 0), (1, 0)]
    await workers[0].series.stop()
    assert await told() == [(1, 0)]
    (first, second) = await series.worker_summaries(transactions, today())
    assert (first.ended, second.ended) == (True, False)
    await pass_time(10)
    assert await told() == [(1, 10)]
    await Worker(transactions, counters, 0).series.book()  # a successor
    assert await told() == [(0, 0), (1, 10)]
    await pass_time(55)
    assert await told() == [(0, 55)]  # the other one was so long ago that it is forgotten


async def test_a_version_that_does_not_tell_when_it_ends_is_not_missed(
    transactions: Transactions,
) -> None:
    await Worker(transactions, Counters(1), 0).series.book()
    for silent_s, count in ((20, 1), (40, 0)):
        await transactions.call(
            "UPDATE queen.worker_minutes SET started_at = NULL,"
            " updated_at = clock_timestamp() - make_interval(secs => %(s)s) RETURNING 1",
            {"s": silent_s},
        )
        assert len(await series.last_bookings(transactions, 10)) == count


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


async def test_waiting_pops_are_told_of_queues_that_are_there(
    transactions: Transactions, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_PARKED_MAX", 2)
    worker = Worker(transactions, Counters(1), 0)

    async def park(name: str, *, is_there: bool) -> None:
        with worker.rooms.enter(RoomKey(name, "g")) as room:
            room.subscription_ids = [SubscriptionId(1)] if is_there else []
            await room.sleep(room.news_count, 60)

    waiting = [asyncio.create_task(park("stranger", is_there=False))]
    for count, name in ((1, "few"), (2, "more"), (3, queue)):
        waiting += [asyncio.create_task(park(name, is_there=True)) for _ in range(count)]
    await asyncio.sleep(0)
    assert len(worker.rooms.occupied()) == 4
    await worker.series.book()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    points = await series.parked(transactions, today(), None)
    assert {point.queue: point.count for point in points} == {queue: 3, "more": 2}


async def test_rates_go_on_while_the_database_hangs(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(transactions, Counters(1), 0, interval_s=0.01)
    monkeypatch.setattr(service, "_SAMPLE_INTERVAL_S", 0.01)
    monkeypatch.setattr(service, "_LAST_BOOKING_TIMEOUT_S", 0.1)
    hangs = asyncio.Event()

    async def hang(*_: Any) -> None:
        hangs.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(series, "book", hang)
    worker.series.start()
    try:
        async with asyncio.timeout(10):
            await hangs.wait()
        worker.row.add(Counter.MESSAGES_PUSHED, 5)

        async def risen() -> bool:
            return worker.throughput.here().pushed > 0

        await eventually(risen)
    finally:
        await worker.series.stop()


async def test_what_is_booked_stays_booked_without_the_rates_of_others(
    transactions: Transactions, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(series, "other_rates", fail)
    worker = Worker(transactions, Counters(1), 0)
    worker.push(queue, 5)
    await worker.series.book()
    await worker.series.book()
    assert await sums(transactions, queue) == (1, 5, 1, 5)


async def test_sums_are_whole_where_single_points_are_too_many(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(transactions, Counters(1), 0)
    for name in ("q1", "q2", "r"):
        await make_queue(transactions, name)
        worker.push(name, 2)
        worker.activity.of(name).delivered(1, 30 if name == "q1" else 10)
    await worker.series.book()
    monkeypatch.setattr(series, "_POINTS_MAX", 1)
    filter_ = QueueFilter(search="Q")
    (point,) = await points_of(Mock(reads=transactions), today(), filter_)
    assert 1 <= point.seconds <= 60
    assert sum_counts([point]) == series.WorkerCounts(
        push_requests=2, push_messages=4, pop_messages=2, lag_ms_sum=40, lag_ms_max=30
    )


async def test_many_queues_at_once(transactions: Transactions) -> None:
    names = [f"q{number}" for number in range(2500)]
    for name in names:
        await make_queue(transactions, name)
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
        group_expire_s=0,
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


def test_names_that_anybody_may_invent_are_bounded() -> None:
    activity = Activity()
    for number in range(12_000):
        activity.of(f"q{number}").pop_empty += 1
    taken = activity.take()
    assert len(taken) <= 10_001
    assert sum(one.pop_empty for one in taken.values()) == 12_000
    activity.of("new").pop_empty += 1
    activity.put_back(taken)
    again = activity.take()
    assert len(again) <= 10_001
    assert sum(one.pop_empty for one in again.values()) == 12_001
