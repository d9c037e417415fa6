"""Books what this worker did and how it was: samples each second, a booking every some seconds.

Unlike the other services this one runs in every worker. It is off the way of messages: a booking
is one small transaction, however much happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import heapq
import logging
import os
import time
from collections import deque
from collections.abc import Mapping

import msgspec

from queue_server.broker.activity import Activity
from queue_server.broker.throughput import Throughput
from queue_server.broker.wakeup import Rooms
from queue_server.domain.errors import QueueServerError
from queue_server.observability.counters import LOOP_LAG, RETRY_COUNTERS, Counter, Life, Row
from queue_server.observability.tasks import keep_running
from queue_server.storage import groups, series
from queue_server.storage.series import Address, Booking, Gauge, Rates, WorkerCounts
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

_SAMPLE_INTERVAL_S = 1.0
_LAST_BOOKING_TIMEOUT_S = 2.0
DEPTH_INTERVALS = 6
_CPU_SAMPLES = 11
# Queues whose waiting pops are booked.
_PARKED_MAX = 1000

# What is counted in shared memory, by the figure that it is added to.
_COUNTERS: Mapping[str, tuple[Counter, ...]] = {
    "requests": (Counter.REQUESTS,),
    "push_requests": (Counter.PUSH_REQUESTS,),
    "pop_requests": (Counter.POP_REQUESTS,),
    "pop_empty": (Counter.POP_REQUESTS_EMPTY,),
    "ack_requests": (Counter.ACK_REQUESTS,),
    "push_messages": (Counter.MESSAGES_PUSHED,),
    "pop_messages": (Counter.MESSAGES_POPPED,),
    "ack_messages": (Counter.MESSAGES_ACKED,),
    "ack_failed": (Counter.MESSAGES_FAILED,),
    "dead_letters": (Counter.MESSAGES_DEAD_LETTERED,),
    "transactions": (
        Counter.PUSH_TRANSACTIONS,
        Counter.POP_TRANSACTIONS,
        Counter.ACK_TRANSACTIONS,
    ),
    "retries": tuple(RETRY_COUNTERS.values()),
}
_GAUGES = (
    "loop_lag_ms", "pool_size", "pool_idle", "pool_waiting", "free_slots", "resident_bytes",
    "virtual_bytes", "cpu_user_total_us", "cpu_system_total_us",
)  # fmt: skip


class Depths:
    """Books how many messages lie in each queue, and how old the oldest unread one is.

    One worker of the cluster does; it reads a row of each partition. Interval: a minute, that is
    DEPTH_INTERVALS of those of `Series`.
    """

    name = "depths"

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def run_once(self) -> Mapping[str, int]:
        """Look once. It is no news, so nothing is reported."""
        await series.book_depths(self._transactions)
        return {}


class Series:
    """Samples and books for one worker.

    Interval: a second for samples, *interval_s* for bookings. *pool_size_max* is how many
    connections the worker may have.
    """

    def __init__(
        self,
        transactions: Transactions,
        row: Row,
        activity: Activity,
        rooms: Rooms,
        throughput: Throughput,
        address: Address,
        *,
        interval_s: float,
        pool_size_max: int,
    ) -> None:
        self._transactions = transactions
        self._row = row
        self._activity = activity
        self._rooms = rooms
        self._throughput = throughput
        self._address = address
        self._interval_s = interval_s
        self._pool_size_max = pool_size_max
        self._booked = self._counted()
        self._booked_at = time.monotonic()
        self._cpu_us = (0, 0)  # of this life, at the last booking
        # When, and what it had used: of so many samples, however often it books.
        self._cpu_samples: deque[tuple[float, int]] = deque(maxlen=_CPU_SAMPLES)
        self._loop_lag = self._loop_lag_sums()
        self._minute: object = None
        self._sample_count = 0
        self._gauges: dict[str, Gauge] = {}
        self._booking = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        # Apart, so that the rates go on while the database hangs.
        self._tasks = [keep_running(loop, "series") for loop in (self._sample_on, self._book_on)]

    async def stop(self) -> None:
        """Book what is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        with contextlib.suppress(QueueServerError, TimeoutError):
            async with asyncio.timeout(_LAST_BOOKING_TIMEOUT_S):
                await self.book(is_last=True)

    async def _sample_on(self) -> None:
        while True:
            self._throughput.sample()
            self.sample()
            await asyncio.sleep(_SAMPLE_INTERVAL_S)

    async def _book_on(self) -> None:
        # Each worker has its own seconds, so that they do not all book at once.
        await asyncio.sleep(self._interval_s * (self._address.worker_id % 8 / 8))
        due = time.monotonic()
        while True:
            due = max(due + self._interval_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            try:
                await self.book()
            except QueueServerError as exc:
                logger.warning("the figures are not booked", extra={"error": exc.message})
            except Exception:
                logger.exception("booking the figures failed")

    def sample(self) -> None:
        """Note how it is now, as the worker says in shared memory."""
        get = self._row.get
        lag_us, lag_count = self._loop_lag_sums()
        fresh_us, fresh_count = lag_us - self._loop_lag[0], lag_count - self._loop_lag[1]
        self._loop_lag = (lag_us, lag_count)
        size, idle = get(Life.POOL_SIZE), get(Life.POOL_AVAILABLE)
        values = (
            fresh_us / fresh_count / 1000 if fresh_count else 0.0,
            size,
            idle,
            get(Life.POOL_WAITING),
            self._pool_size_max - size + idle,
            get(Life.RESIDENT_BYTES),
            get(Life.VIRTUAL_BYTES),
            get(Life.CPU_USER_US),
            get(Life.CPU_SYSTEM_US),
        )
        self._cpu_samples.append(
            (time.monotonic(), get(Life.CPU_USER_US) + get(Life.CPU_SYSTEM_US))
        )
        self._sample_count += 1
        for name, value in zip(_GAUGES, map(float, values), strict=True):
            gauge = self._gauges.get(name)
            if gauge is None:
                self._gauges[name] = [value] * 4
            else:
                gauge[:] = gauge[0] + value, min(gauge[1], value), max(gauge[2], value), value

    async def book(self, *, is_last: bool = False) -> None:
        """Add what was done since the last time to the current minute.

        Errors: `Unavailable`; it is added the next time then, for the second time if the answer to
        a commit was lost.
        """
        async with self._booking:
            if not self._gauges:
                self.sample()
            counted = self._counted()
            cpu_us = (self._row.get(Life.CPU_USER_US), self._row.get(Life.CPU_SYSTEM_US))
            now = time.monotonic()
            seconds = max(now - self._booked_at, 0.001)
            activity = self._activity.take()
            counts = WorkerCounts(
                **{name: counted[name] - self._booked[name] for name in counted},
                lag_ms_sum=sum(one.lag_ms_sum for one in activity.values()),
                lag_ms_max=max((one.lag_ms_max for one in activity.values()), default=0),
                cpu_user_us=cpu_us[0] - self._cpu_us[0],
                cpu_system_us=cpu_us[1] - self._cpu_us[1],
            )
            sample_count = self._sample_count
            booking = Booking(
                address=self._address,
                pid=os.getpid(),
                counts=counts,
                sample_count=sample_count,
                gauges={name: list(gauge) for name, gauge in self._gauges.items()},
                # Other hosts take the rate for what goes on.
                rates=Rates()
                if is_last
                else Rates(
                    counts.push_messages / seconds,
                    counts.pop_messages / seconds,
                    counts.ack_messages / seconds,
                    counts.ack_failed / seconds,
                    counts.requests / seconds,
                ),
                cpu_share=self._cpu_share(),
                started_at=datetime.datetime.fromtimestamp(
                    self._row.get(Life.STARTED_AT_MS) / 1000, datetime.UTC
                ),
                connections=self._row.get(Life.CONNECTIONS),
                parked_pops=self._row.get(Life.PARKED_POPS),
                ended=is_last,
                parked=self._parked(),
            )
            try:
                minute = await series.book(
                    self._transactions,
                    booking,
                    {queue: msgspec.structs.astuple(one) for queue, one in activity.items()},
                )
            except BaseException:
                self._activity.put_back(activity)
                raise
            self._booked, self._booked_at, self._cpu_us = counted, now, cpu_us
            if minute != self._minute:
                # What follows are the samples of the minute that has begun.
                self._minute = minute
                self._sample_count = 0
                self._gauges = {}
            await self._note_groups()
            try:
                self._throughput.others = await series.other_rates(
                    self._transactions, self._address, self._interval_s
                )
            except QueueServerError as exc:
                logger.warning(
                    "the rates of other servers are not known", extra={"error": exc.message}
                )

    async def _note_groups(self) -> None:
        """Note which groups are in use; what fails is made up for by their next pop."""
        contacts, now = self._activity.contacts, time.monotonic()
        waiting = [
            id_
            for room in self._rooms.occupied()
            if room.sleeper_count
            for id_ in room.subscription_ids
        ]
        popped, acked = contacts.take(waiting, now)
        if not popped and not acked:
            return
        try:
            await groups.note(self._transactions, popped, acked)
        except QueueServerError as exc:
            logger.warning("which groups are in use is not booked", extra={"error": exc.message})
        else:
            contacts.noted(popped, acked, now)

    def _cpu_share(self) -> float:
        (began, before), (ended, after) = self._cpu_samples[0], self._cpu_samples[-1]
        return (after - before) / 1e6 / max(ended - began, _SAMPLE_INTERVAL_S)

    def _counted(self) -> dict[str, int]:
        return {
            name: sum(self._row.get(counter) for counter in counters)
            for name, counters in _COUNTERS.items()
        }

    def _loop_lag_sums(self) -> tuple[int, int]:
        words = self._row.words
        return (
            int(words[LOOP_LAG.sum_place]),
            sum(words[LOOP_LAG.start : LOOP_LAG.sum_place]),
        )

    def _parked(self) -> dict[str, int]:
        parked: dict[str, int] = {}
        for room in self._rooms.occupied():
            # Who pops may name anything: only of a queue that is there are there subscriptions.
            if room.key.queue is not None and room.subscription_ids:
                queue = room.key.queue
                parked[queue] = parked.get(queue, 0) + room.sleeper_count
        return dict(heapq.nlargest(_PARKED_MAX, parked.items(), key=lambda entry: entry[1]))
