"""Counters that every process of the server can read, in one piece of shared memory.

The supervisor maps the memory before it forks, so all its children see the same bytes. A row
belongs to one worker slot, and one more row to the supervisor. **A process writes only its own
row**, so no increment needs a lock; anybody may read and sum. Rows outlive the worker in the slot:
a successor counts on where its predecessor died, so totals never fall. What describes one life only
(pid, heartbeat, ready) is in the same row as `Life` and is set anew for each life.

A reader sees each number whole (aligned 64-bit stores), but two numbers of a row may be from
slightly different moments.

Behind the numbers a row has its histograms: buckets with fixed bounds, so that to record a value is
to find its bucket and to add one there. Workers' buckets can be added up, which quantiles cannot.
"""

import enum
import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Sequence


class Counter(enum.IntEnum):
    """What is counted since the server started; a new counter needs no more than a name here."""

    REQUESTS = 0  # HTTP requests answered, whatever the answer
    REQUESTS_FAILED = enum.auto()  # of these, those answered with a 5xx
    PUSH_REQUESTS = enum.auto()
    POP_REQUESTS = enum.auto()
    POP_REQUESTS_EMPTY = enum.auto()  # of the pops, those that ended without a message
    ACK_REQUESTS = enum.auto()
    MESSAGES_PUSHED = enum.auto()  # stored, so without duplicates
    MESSAGES_DUPLICATE = enum.auto()
    MESSAGES_POPPED = enum.auto()
    MESSAGES_ACKED = enum.auto()  # completed; failed ones are counted apart
    MESSAGES_FAILED = enum.auto()  # acknowledged as failed
    MESSAGES_DEAD_LETTERED = enum.auto()
    BYTES_RECEIVED = enum.auto()  # bodies of pushes and transactions
    BYTES_SENT = enum.auto()  # answer bodies
    PUSH_TRANSACTIONS = enum.auto()  # commits behind the requests: coalescing makes them fewer
    POP_TRANSACTIONS = enum.auto()
    ACK_TRANSACTIONS = enum.auto()
    # Where pops spend their time, in microseconds; only what is work counts as work.
    POP_WAIT_US = enum.auto()  # parked, waiting for a message
    POP_LEASE_US = enum.auto()  # claiming partitions; once for the pops that share a transaction
    POP_QUERY_US = enum.auto()  # reading bodies that did not come with the claim
    POP_DECODE_US = enum.auto()  # opening segments and rendering the answer
    POP_DECRYPT_US = enum.auto()
    POP_SEND_US = enum.auto()  # writing to the client, its backpressure included
    LEASES_GIVEN_BACK = enum.auto()  # claims whose answer nobody received
    LEASES_GRANTED = enum.auto()  # one for each partition of a pop, none on commit on delivery
    LEASES_TAKEN_OVER = enum.auto()  # of these, after another one had run out unacknowledged
    ACKS_REFUSED = enum.auto()  # messages acknowledged under a lease that was over
    POPS_UNREADABLE = enum.auto()  # partitions that a pop found encrypted and could not open
    FLOOR_POLLS = enum.auto()
    FLOOR_POLL_HITS = enum.auto()  # parked pops that the floor poll woke, not a message
    WAKE_UPS_TOLD = enum.auto()  # parked pops woken by what happened in their own worker
    WAKE_UPS_RECEIVED = enum.auto()  # by a datagram from another worker
    # Transactions run again, by the SQLSTATE that ended the attempt.
    RETRIES_40001 = enum.auto()  # serialization failure
    RETRIES_40P01 = enum.auto()  # deadlock
    RETRIES_55P03 = enum.auto()  # lock not available
    RETRIES_25P02 = enum.auto()  # in a failed transaction
    RETRIES_CONNECTION_LOST = enum.auto()
    RETRIES_OTHER = enum.auto()
    CPU_USER_US = enum.auto()  # of all lives of the worker
    CPU_SYSTEM_US = enum.auto()
    # Written by the supervisor alone.
    WORKER_RESTARTS = enum.auto()  # unplanned ones; a replacement on SIGHUP is none
    DATABASE_RESTARTS = enum.auto()  # of the embedded PostgreSQL


class Life(enum.IntEnum):
    """What a row says about the process that owns it now; overwritten, never summed."""

    PID = len(Counter)
    READY = enum.auto()  # 1 once it accepts requests
    STARTED_AT_MS = enum.auto()  # Unix time
    HEARTBEAT_NS = enum.auto()  # CLOCK_MONOTONIC, which all processes of a machine share
    CONNECTIONS = enum.auto()  # open ones of clients, as of a moment ago
    HANDED_IN = enum.auto()  # connections that other workers handed over; rises over all lives
    # What a worker says of itself once a second (observability/sampling.py).
    PARKED_POPS = enum.auto()
    POOL_SIZE = enum.auto()  # connections to the database
    POOL_AVAILABLE = enum.auto()  # of these, unused ones
    POOL_WAITING = enum.auto()  # transactions that wait for a connection now
    POOL_WAITS = enum.auto()  # transactions of this life that had to wait for one
    POOL_WAIT_MS = enum.auto()  # how long these waited
    RESIDENT_BYTES = enum.auto()
    VIRTUAL_BYTES = enum.auto()
    CPU_USER_US = enum.auto()  # of this life
    CPU_SYSTEM_US = enum.auto()
    SOCKETS = enum.auto()  # WebSockets of dashboards, as of now
    QUEUES_WITHOUT_KEY = enum.auto()  # encrypted ones, while the server has no key
    KEYS_MISSING = enum.auto()  # that something stored is encrypted with
    CERTIFICATE_ENDS_AT_S = enum.auto()  # Unix time; 0 without TLS; said by the supervisor
    PARTITIONS_UNREADABLE = enum.auto()  # that it leaves out of pops: it cannot open what is next


RETRY_COUNTERS = {
    "40001": Counter.RETRIES_40001,
    "40P01": Counter.RETRIES_40P01,
    "55P03": Counter.RETRIES_55P03,
    "25P02": Counter.RETRIES_25P02,
    "connection_lost": Counter.RETRIES_CONNECTION_LOST,
    "other": Counter.RETRIES_OTHER,
}
"""The counter of each reason for a retry; the keys are the labels that metrics show."""


class RouteGroup(enum.IntEnum):
    """Routes whose requests are counted and timed together: few, so that no client adds one."""

    PUSH = 0
    POP = enum.auto()
    POP_WAITING = enum.auto()  # pops that asked to wait: their time is mostly a wait
    ACK = enum.auto()
    TRANSACTION = enum.auto()
    LEASE = enum.auto()
    LOOK = enum.auto()  # everything else that is read: status, resources, messages, the dashboard
    CHANGE = enum.auto()  # everything else that changes something
    PROBE = enum.auto()  # health and metrics
    UNKNOWN = enum.auto()  # no such route


class Operation(enum.IntEnum):
    """What is coalesced and comes in batches."""

    PUSH = 0
    POP = enum.auto()
    ACK = enum.auto()


_LIFE_END = len(Counter) + len(Life)


class Histogram:
    """Where a histogram lies in each row: its buckets, the one without a bound last, then the sum.

    A value belongs to the first bucket whose bound is not below it.
    """

    __slots__ = ("bounds", "start", "sum_place")

    next_start = _LIFE_END

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self.start = Histogram.next_start
        self.sum_place = self.start + len(bounds) + 1
        Histogram.next_start = self.sum_place + 1


# In microseconds. A commit takes one to ten milliseconds, a busy disk some hundred, and a wait up
# to a minute.
DURATION_BOUNDS_US = (
    500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
)  # fmt: skip
MESSAGE_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
FLUSH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# How late the event loop is; above a heartbeat's interval it is a stall.
LAG_BOUNDS_US = (1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000)
# Classes of answers: 2xx, 3xx, 4xx, 499 (the client left before its answer), 5xx.
STATUS_BOUNDS = (299, 399, 498, 499)
STATUS_CLASSES = ("2xx", "3xx", "4xx", "left", "5xx")

# By route group and by operation, in their order.
REQUEST_DURATION = [Histogram(DURATION_BOUNDS_US) for _ in RouteGroup]
REQUEST_STATUS = [Histogram(STATUS_BOUNDS) for _ in RouteGroup]
BATCH_MESSAGES = [Histogram(MESSAGE_BOUNDS) for _ in Operation]
FLUSH_REQUESTS = [Histogram(FLUSH_BOUNDS) for _ in Operation]
FLUSH_DURATION = [Histogram(DURATION_BOUNDS_US) for _ in Operation]
LOOP_LAG = Histogram(LAG_BOUNDS_US)

# Looked up with every request.
_REQUEST_PLACES = [
    (status.start, duration.start, duration.sum_place)
    for status, duration in zip(REQUEST_STATUS, REQUEST_DURATION, strict=True)
]

_WORD_BYTES = 8
_ROW_WORDS = 8 * -(-Histogram.next_start // 8)  # whole cache lines: no false sharing


class Row:
    """One process's numbers. On a hot path: `row.words[Counter.REQUESTS] += 1`."""

    def __init__(self, words: memoryview) -> None:
        self.words = words

    def add(self, counter: Counter, count: int = 1) -> None:
        self.words[counter] += count

    def add_retry(self, reason: str) -> None:
        """Count a repeated transaction; *reason* is its SQLSTATE or "connection_lost"."""
        self.words[RETRY_COUNTERS.get(reason, Counter.RETRIES_OTHER)] += 1

    def get(self, name: Counter | Life) -> int:
        return int(self.words[name])

    def observe(self, histogram: Histogram, value: int) -> None:
        words = self.words
        words[histogram.start + bisect_left(histogram.bounds, value)] += 1
        words[histogram.sum_place] += value

    def observe_request(self, group: RouteGroup, status: int, duration_us: int) -> None:
        """Count and time a request; *status* 499 when the client left before its answer."""
        words = self.words
        statuses, durations, duration_sum = _REQUEST_PLACES[group]
        words[statuses + bisect_left(STATUS_BOUNDS, status)] += 1
        words[durations + bisect_left(DURATION_BOUNDS_US, duration_us)] += 1
        words[duration_sum] += duration_us

    def observe_flush(self, operation: Operation, request_count: int, duration_us: int) -> None:
        """Count the requests that shared a transaction, and time it."""
        self.observe(FLUSH_REQUESTS[operation], request_count)
        self.observe(FLUSH_DURATION[operation], duration_us)

    # -- the sign of life --

    def begin(self, pid: int = 0) -> None:
        """A life begins: called before the fork, when nobody has the pid yet, then by the child."""
        self._forget()
        self.words[Life.PID] = pid
        self.words[Life.STARTED_AT_MS] = time.time_ns() // 1_000_000
        self.beat()

    def beat(self) -> None:
        self.words[Life.HEARTBEAT_NS] = time.monotonic_ns()

    def set_ready(self, ready: bool = True) -> None:
        self.words[Life.READY] = int(ready)

    def end(self) -> None:
        """The process is gone; its counts stay."""
        self._forget()
        self.words[Life.PID] = 0

    def _forget(self) -> None:
        """What was true of the last life is not true of the next."""
        self.words[Life.READY] = 0
        self.words[Life.CONNECTIONS] = 0
        for name in range(Life.PARKED_POPS, _LIFE_END):
            self.words[name] = 0

    def is_ready(self) -> bool:
        return bool(self.words[Life.READY])

    def silent_seconds(self) -> float:
        """How long ago the process gave its last sign of life."""
        return (time.monotonic_ns() - self.words[Life.HEARTBEAT_NS]) / 1e9


class Counters:
    """The shared memory: a row for each worker slot, then the supervisor's."""

    def __init__(self, worker_count: int) -> None:
        self.worker_count = worker_count
        row_bytes = _ROW_WORDS * _WORD_BYTES
        # Anonymous and shared: it belongs to this process and those it forks, and goes with them.
        self._memory = mmap.mmap(-1, (worker_count + 1) * row_bytes)
        words = memoryview(self._memory).cast("q")
        self._rows = [
            Row(words[start : start + _ROW_WORDS])
            for start in range(0, (worker_count + 1) * _ROW_WORDS, _ROW_WORDS)
        ]
        self.supervisor.begin(os.getpid())

    def worker(self, slot: int) -> Row:
        assert 0 <= slot < self.worker_count
        return self._rows[slot]

    @property
    def supervisor(self) -> Row:
        return self._rows[-1]

    def total(self, counter: Counter) -> int:
        return sum(row.words[counter] for row in self._rows)

    def totals(self) -> dict[str, int]:
        """Every counter over the whole server, by its name in lower case."""
        return {counter.name.lower(): self.total(counter) for counter in Counter}

    def retries(self) -> dict[str, int]:
        """Repeated transactions by reason, with the labels of `RETRY_COUNTERS`."""
        return {reason: self.total(counter) for reason, counter in RETRY_COUNTERS.items()}

    def buckets(self, histogram: Histogram, slot: int | None = None) -> tuple[list[int], int]:
        """The count in each bucket and the sum of the values, of one worker or of all."""
        rows = self._rows if slot is None else [self.worker(slot)]
        span = slice(histogram.start, histogram.sum_place)
        counts = [sum(column) for column in zip(*(row.words[span] for row in rows), strict=True)]
        return counts, sum(row.words[histogram.sum_place] for row in rows)

    def states(self, name: Life) -> list[int]:
        """What each worker says of itself, by slot."""
        return [self.worker(slot).get(name) for slot in range(self.worker_count)]

    def workers_ready(self) -> int:
        return sum(self.worker(slot).is_ready() for slot in range(self.worker_count))

    def connections(self) -> list[int]:
        """Open connections of clients, by worker slot."""
        return self.states(Life.CONNECTIONS)

    def uptime_seconds(self) -> float:
        """How long ago the server, not one worker, started."""
        return time.time() - self.supervisor.get(Life.STARTED_AT_MS) / 1000
