"""All queues in a few numbers, computed once for everybody who asks at about the same time.

What lies in the queues is read from a row of each partition and cursor. With few of them that takes
some milliseconds and is done for each who asks. With a hundred thousand it takes a good part of a
second; then what was found is told again for a while, as old as it says it is, so that all looks
together take a small part of one connection's time.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from queue_server.storage import statistics
from queue_server.storage.statistics import NOTHING, Counts, QueueStatistics, Spread
from queue_server.storage.transactions import Transactions

# Looks may take this part of the time...
_SHARE = 0.05
# ...but quick ones are not saved up: who has just pushed sees it.
_QUICK_S = 0.05
_AGE_MAX_S = 60.0


class Snapshot(msgspec.Struct, frozen=True):
    """What lay in the queues when it was taken, by time.monotonic()."""

    taken_at: float
    cost_s: float
    queues: list[QueueStatistics]  # newest first
    lag_seconds: Spread
    lag_offsets: Spread

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.taken_at

    @property
    def counts(self) -> Counts:
        return sum((queue.counts for queue in self.queues), NOTHING)

    @property
    def partition_count(self) -> int:
        return sum(queue.partition_count for queue in self.queues)


class Snapshots:
    """Takes snapshots, one at a time."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._last: Snapshot | None = None
        self._taking = asyncio.Lock()

    @property
    def is_taking(self) -> bool:
        return self._taking.locked()

    async def current(self) -> Snapshot:
        """One that is as new as its cost allows. Errors: `Unavailable`."""
        asked_at = time.monotonic()
        async with self._taking:
            last = self._last
            if last is not None and (last.taken_at >= asked_at or last.age_s < _lifetime_s(last)):
                return last
            return await self._take()

    async def refresh(self) -> Snapshot:
        """A new one. Errors: `Unavailable`."""
        async with self._taking:
            return await self._take()

    async def _take(self) -> Snapshot:
        begin = time.monotonic()
        queues = await statistics.all_queues(self._transactions)
        seconds, offsets = await statistics.lags(self._transactions)
        cost_s = time.monotonic() - begin
        self._last = Snapshot(begin, cost_s, queues, seconds, offsets)
        return self._last


def _lifetime_s(snapshot: Snapshot) -> float:
    if snapshot.cost_s < _QUICK_S:
        return 0.0
    return min(snapshot.cost_s / _SHARE, _AGE_MAX_S)
