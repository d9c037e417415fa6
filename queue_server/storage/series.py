"""Figures by minute: what workers book, and series over time from it.

Workers add up in memory and book the sums every some seconds, in the minute of the database's
clock. So a figure may stand in the minute after the one in which it happened, and what is read
lacks what was not booked yet.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec

from queue_server.domain.names import QueueName
from queue_server.storage import statistics
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.statistics import QueueFilter
from queue_server.storage.transactions import Connection, Transactions

Gauge = list[float]
"""{sum, least, most, last} of some samples when booked, {average, least, most, last} when read."""

# Queues that one statement books, or that one answer sums up.
_QUEUES_MAX = 1000
# Points of queues in one answer: a megabyte for each two thousand.
_POINTS_MAX = 20_000
# Queues whose depth is noted.
_DEPTHS_MAX = 10_000
# Workers that one answer tells of.
_WORKERS_MAX = 1000

# Who has not booked for so many intervals, and for so long, has gone silent.
_SILENT_INTERVALS = 3
_SILENCE_MIN_S = 10.0
# For so long a worker that went silent without a word is told of.
FORGET_S = 3600


class WorkerCounts(msgspec.Struct):
    """What a worker did; all of them add up but `lag_ms_max`."""

    requests: int = 0
    push_requests: int = 0
    pop_requests: int = 0
    pop_empty: int = 0
    ack_requests: int = 0
    push_messages: int = 0
    pop_messages: int = 0
    ack_messages: int = 0
    ack_failed: int = 0
    dead_letters: int = 0
    transactions: int = 0
    retries: int = 0
    lag_ms_sum: int = 0
    cpu_user_us: int = 0
    cpu_system_us: int = 0
    lag_ms_max: int = 0


class Address(msgspec.Struct, frozen=True):
    """A worker of a server."""

    hostname: str
    port: int
    worker_id: int


class Booking(msgspec.Struct, frozen=True):
    """What a worker books of itself: counts since the last time, gauges of the minute so far."""

    address: Address
    pid: int
    counts: WorkerCounts
    sample_count: int
    gauges: Mapping[str, Gauge]  # by column
    rates: Rates
    cpu_share: float  # of one core, in the last ten seconds
    started_at: datetime.datetime
    connections: int  # of clients
    parked_pops: int
    ended: bool  # it is the last one, as the worker ends in good order
    parked: Mapping[str, int]  # waiting pops by queue


class Rates(msgspec.Struct, frozen=True):
    """Messages a second, but for `requests`."""

    pushed: float = 0.0
    popped: float = 0.0
    acked: float = 0.0
    failed: float = 0.0
    requests: float = 0.0

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            self.pushed + other.pushed,
            self.popped + other.popped,
            self.acked + other.acked,
            self.failed + other.failed,
            self.requests + other.requests,
        )


class Range(msgspec.Struct, frozen=True):
    """A time, and how long the buckets are into which it is cut."""

    start: datetime.datetime
    end: datetime.datetime
    bucket_minutes: int

    def parameters(self) -> dict[str, object]:
        """The first bucket is a whole one."""
        width = datetime.timedelta(minutes=self.bucket_minutes)
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        # Before the epoch there is nothing, and a time of the year 1 cannot be rounded down.
        start = max(self.start, epoch)
        return {
            "start": start - (start - epoch) % width,
            "end": self.end,
            "bucket_minutes": self.bucket_minutes,
        }


class WorkersPoint(msgspec.Struct, frozen=True):
    """All workers together in one bucket, of which `seconds` have passed."""

    bucket: datetime.datetime
    seconds: float
    counts: WorkerCounts
    loop_lag_ms_avg: float = 0.0
    loop_lag_ms_max: float = 0.0
    waiting_avg: float = 0.0
    waiting_max: float = 0.0
    free_slots_avg: float = 0.0
    free_slots_min: float = 0.0
    pool_size: float = 0.0
    pool_idle: float = 0.0
    resident_bytes: float = 0.0


class WorkerSummary(msgspec.Struct, frozen=True):
    """A worker over a time; `free_slots`, `pool_size` and `waiting` are the last known."""

    address: Address
    pid: int
    updated_at: datetime.datetime
    loop_lag_ms_avg: float
    loop_lag_ms_max: float
    free_slots: float
    pool_size: float
    waiting: float
    message_count: int
    ended: bool  # in good order


class LastBooking(msgspec.Struct, frozen=True):
    """A worker as it last said it was, *age_s* ago."""

    address: Address
    pid: int
    age_s: float
    started_at: datetime.datetime | None  # None: of a version that does not tell
    connections: int
    parked_pops: int
    pool_size: int
    pool_idle: int
    pool_waiting: int
    resident_bytes: int
    loop_lag_ms: float
    cpu_share: float


class ReplicaPoint(msgspec.Struct, frozen=True):
    """The gauges of a worker in one bucket, as {average, least, most, last}."""

    address: Address
    bucket: datetime.datetime
    sample_count: int
    pool_size: Gauge
    pool_idle: Gauge
    pool_waiting: Gauge
    resident_bytes: Gauge
    virtual_bytes: Gauge
    cpu_user_us: Gauge
    cpu_system_us: Gauge


class QueuePoint(msgspec.Struct, frozen=True):
    """A queue in one bucket, of which `seconds` have passed.

    `depth` and `oldest_s` are those of its slowest consumers; None, as the number of partitions,
    where nobody looked.
    """

    bucket: datetime.datetime
    seconds: float
    queue: str
    push_requests: int
    push_messages: int
    pop_requests: int
    pop_empty: int
    pop_messages: int
    ack_requests: int
    ack_success: int
    ack_failed: int
    dead_letters: int
    transactions: int
    lag_ms_sum: int
    lag_ms_max: int
    partitions_first: int | None
    partitions_last: int | None
    depth: int | None
    oldest_s: float | None

    @property
    def lag_ms_avg(self) -> float:
        return self.lag_ms_sum / max(self.pop_messages, 1)


class QueueLag(msgspec.Struct, frozen=True):
    """How old the messages of a queue were when they were delivered."""

    queue: str
    message_count: int
    lag_ms_sum: int
    lag_ms_max: int


class ParkedPoint(msgspec.Struct, frozen=True):
    """The pops that wait for a queue at a worker, in one bucket."""

    bucket: datetime.datetime
    queue: str
    address: Address
    count: int


async def book(
    transactions: Transactions, booking: Booking, queues: Mapping[str, Sequence[int]]
) -> datetime.datetime:
    """Add to the current minute; which one that is.

    Shape: *queues* has for each queue the numbers of `QueueActivity` (broker/activity.py), in
    their order.
    Errors: `Unavailable`: nothing was booked, or it is not known whether it was.
    """
    address, rates = booking.address, booking.rates
    worker = {
        **msgspec.structs.asdict(address),
        "pid": booking.pid,
        **msgspec.structs.asdict(booking.counts),
        "sample_count": booking.sample_count,
        **booking.gauges,
        "push_rate": rates.pushed,
        "pop_rate": rates.popped,
        "ack_rate": rates.acked,
        "fail_rate": rates.failed,
        "request_rate": rates.requests,
        "cpu_share": booking.cpu_share,
        "started_at": booking.started_at,
        "connections": booking.connections,
        "parked_pops": booking.parked_pops,
        "ended": booking.ended,
        "parked": msgspec.json.encode(booking.parked).decode(),
    }
    names = sorted(queues)

    async def work(connection: Connection) -> datetime.datetime:
        for start in range(0, len(names), _QUEUES_MAX):
            some = names[start : start + _QUEUES_MAX]
            columns = zip(*(queues[name] for name in some), strict=True)
            await connection.execute(
                STATEMENTS["book_queues"],
                {"queue": some} | dict(zip(_QUEUE_COLUMNS, map(list, columns), strict=True)),
            )
        cursor = await connection.execute(STATEMENTS["book_worker"], worker)
        row = await cursor.fetchone()
        assert row is not None
        minute: datetime.datetime = row[0]
        return minute

    # It adds, so `run` finds out what became of an attempt before it makes another.
    return await transactions.run(work)


_QUEUE_COLUMNS = QueuePoint.__struct_fields__[3:15]


async def book_depths(transactions: Transactions) -> int:
    """Note for the current minute how many messages lie in each queue; in how many any do."""
    found = (await statistics.overview(transactions)).queues
    # The oldest ones, always the same.
    noted = sorted(found, key=lambda queue: (queue.created_at, queue.name))[:_DEPTHS_MAX]
    noted.sort(key=lambda queue: queue.name)
    booked = await transactions.call(
        STATEMENTS["book_depths"],
        {
            "queue": [queue.name for queue in noted],
            "partition_count": [queue.partition_count for queue in noted],
            "depth": [queue.depth for queue in noted],
            "oldest_s": [queue.oldest_s for queue in noted],
        },
    )
    return len(booked)


def silence_s(interval_s: float) -> float:
    """For how long a worker that books every *interval_s* may say nothing."""
    return max(_SILENT_INTERVALS * interval_s, _SILENCE_MIN_S)


class QueueRates(msgspec.Struct, frozen=True):
    """What all workers of all hosts did for a queue.

    Units: messages per second over the last minute; messages in the last five minutes.
    """

    pushed_per_second: float = 0.0
    acked_per_second: float = 0.0  # by all groups together
    acked_recently: int = 0
    failed_recently: int = 0


async def queue_rates(
    transactions: Transactions, queue: QueueName | None = None
) -> dict[str, QueueRates]:
    """Return the rates of queues, or of one, that something was done for in the last minutes.

    They are late by the interval in which workers report (`STATS_INTERVAL_MS`).
    """
    rows = await transactions.call(STATEMENTS["queue_rates"], {"queue": queue})
    return {row[0]: QueueRates(*row[1:]) for row in rows}


async def other_rates(transactions: Transactions, own: Address, interval_s: float) -> Rates:
    """The rates of all servers but *own*, without workers that have gone silent."""
    rows = await transactions.call(
        STATEMENTS["other_rates"],
        {"hostname": own.hostname, "port": own.port, "silence_s": silence_s(interval_s)},
    )
    return Rates(*rows[0])


async def last_bookings(transactions: Transactions, interval_s: float) -> list[LastBooking]:
    """The workers of all servers that book every *interval_s*, those that went silent included."""
    rows = await transactions.call(
        STATEMENTS["last_bookings"],
        {"silence_s": silence_s(interval_s), "forget_s": FORGET_S, "limit": _WORKERS_MAX},
    )
    return [LastBooking(Address(*row[:3]), *row[3:]) for row in rows]


async def workers(transactions: Transactions, range_: Range) -> list[WorkersPoint]:
    """All workers together, ascending by time."""
    rows = await transactions.call(STATEMENTS["worker_series"], range_.parameters())
    count = len(WorkerCounts.__struct_fields__)
    return [
        WorkersPoint(row[0], row[1], WorkerCounts(*row[2 : 2 + count]), *row[2 + count :])
        for row in rows
    ]


async def worker_summaries(transactions: Transactions, range_: Range) -> list[WorkerSummary]:
    """Each worker that was heard of in that time."""
    rows = await transactions.call(STATEMENTS["worker_summaries"], range_.parameters())
    return [WorkerSummary(Address(*row[:3]), *row[3:]) for row in rows]


async def replicas(
    transactions: Transactions, range_: Range, hostname: str | None, worker_id: int | None
) -> list[ReplicaPoint]:
    """The gauges of each worker, by worker and time."""
    rows = await transactions.call(
        STATEMENTS["replica_series"],
        range_.parameters() | {"hostname": hostname, "worker_id": worker_id},
    )
    return [ReplicaPoint(Address(*row[:3]), *row[3:]) for row in rows]


async def queues(
    transactions: Transactions, range_: Range, filter_: QueueFilter
) -> list[QueuePoint]:
    """Each queue, ascending by time; of too many points the newest."""
    rows = await transactions.call(
        STATEMENTS["queue_series"],
        range_.parameters() | filter_.parameters() | {"limit": _POINTS_MAX},
    )
    return sorted((QueuePoint(*row) for row in rows), key=lambda point: (point.bucket, point.queue))


async def queue_lags(transactions: Transactions, range_: Range) -> list[QueueLag]:
    """The queues with the most deliveries first."""
    rows = await transactions.call(
        STATEMENTS["queue_lags"], range_.parameters() | {"limit": _QUEUES_MAX}
    )
    return [QueueLag(*row) for row in rows]


async def queue_totals(
    transactions: Transactions, range_: Range, filter_: QueueFilter
) -> list[WorkersPoint]:
    """What all workers did for the queues of the filter, ascending by time."""
    rows = await transactions.call(
        STATEMENTS["queue_totals"], range_.parameters() | filter_.parameters()
    )
    return [
        WorkersPoint(
            row[0], row[1], WorkerCounts(**dict(zip(_TOTALS_COLUMNS, row[2:], strict=True)))
        )
        for row in rows
    ]


_TOTALS_COLUMNS = (
    "push_requests", "push_messages", "pop_requests", "pop_empty", "pop_messages", "ack_requests",
    "ack_messages", "ack_failed", "dead_letters", "transactions", "lag_ms_sum", "lag_ms_max",
)  # fmt: skip


async def parked(transactions: Transactions, range_: Range, queue: str | None) -> list[ParkedPoint]:
    """Waiting pops, by time, queue and worker; of too many points the newest."""
    rows = await transactions.call(
        STATEMENTS["parked_series"], range_.parameters() | {"queue": queue, "limit": _POINTS_MAX}
    )
    points = [ParkedPoint(row[0], row[1], Address(*row[2:5]), row[5]) for row in rows]
    return sorted(points, key=lambda point: point.bucket)


async def delete_old_worker_minutes(transactions: Transactions, age_s: int, limit: int) -> int:
    """Delete up to *limit* rows that are older than *age_s*; how many."""
    return await _delete_old(transactions, "delete_old_worker_minutes", age_s, limit)


async def delete_old_queue_minutes(transactions: Transactions, age_s: int, limit: int) -> int:
    """Delete up to *limit* rows that are older than *age_s*; how many."""
    return await _delete_old(transactions, "delete_old_queue_minutes", age_s, limit)


async def _delete_old(transactions: Transactions, name: str, age_s: int, limit: int) -> int:
    rows = await transactions.call(STATEMENTS[name], {"age_s": age_s, "limit": limit})
    count: int = rows[0][0]
    return count
