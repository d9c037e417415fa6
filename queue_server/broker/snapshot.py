"""Figures over all partitions, computed once for everybody who asks at about the same time.

They are read from a row of each partition and cursor, or of each dead letter. With few of them that
takes some milliseconds and is done for each who asks. With many it takes a second; then what was
found is told again, as old as it says it is, while a new look is made in the background, so that
nobody waits and all looks together take a small part of one connection's time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from queue_server.domain.errors import QueueServerError
from queue_server.storage import dashboard, statistics
from queue_server.storage.dashboard import ErrorRow
from queue_server.storage.statistics import (
    NOTHING,
    Counts,
    GroupStatistics,
    QueueStatistics,
    Spread,
)
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Looks may take this part of the time...
_SHARE = 0.05
# ...but quick ones are not saved up: who has just pushed sees it.
_QUICK_S = 0.2
# What is older than this is not told any more: who asks waits.
_AGE_MAX_S = 120.0


class Snapshot(msgspec.Struct, Generic[T], frozen=True):
    """What a look found; `taken_at` is by time.monotonic(), before the look."""

    value: T
    taken_at: float
    cost_s: float

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.taken_at


class Snapshots(Generic[T]):
    """Makes one kind of look, one at a time."""

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._last: Snapshot[T] | None = None
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_looking(self) -> bool:
        return self._looking.locked()

    async def current(self) -> Snapshot[T]:
        """One that is as new as its cost allows. Errors: `Unavailable`."""
        last = self._last
        if last is not None and last.cost_s >= _QUICK_S and last.age_s < _AGE_MAX_S:
            # Long before it is too old, however slow a look is: else who asks would wait for it.
            due_s = min(last.cost_s / _SHARE, _AGE_MAX_S / 2)
            if last.age_s > due_s and self._task is None:
                self._task = asyncio.create_task(self._renew(), name="snapshot")
            return last
        asked_at = time.monotonic()
        async with self._looking:
            # Somebody who asked later, but came first, has looked for both.
            if self._last is not None and self._last.taken_at >= asked_at:
                return self._last
            return await self._take()

    async def refresh(self) -> Snapshot[T]:
        """A new one. Errors: `Unavailable`."""
        async with self._looking:
            return await self._take()

    async def close(self) -> None:
        """End a look that goes on in the background."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _renew(self) -> None:
        try:
            await self.refresh()
        except QueueServerError as exc:
            logger.warning("the figures are not renewed", extra={"error": exc.message})
        finally:
            self._task = None

    async def _take(self) -> Snapshot[T]:
        begin = time.monotonic()
        value = await self._look()
        self._last = Snapshot(value, begin, time.monotonic() - begin)
        return self._last


class Overview(msgspec.Struct, frozen=True):
    """What lies in the queues."""

    queues: list[QueueStatistics]  # newest first
    lag_seconds: Spread
    lag_offsets: Spread

    @property
    def counts(self) -> Counts:
        return sum((queue.counts for queue in self.queues), NOTHING)

    @property
    def partition_count(self) -> int:
        return sum(queue.partition_count for queue in self.queues)

    @property
    def namespaces(self) -> set[str]:
        return {queue.namespace for queue in self.queues if queue.namespace}

    @property
    def tasks(self) -> set[str]:
        return {queue.task for queue in self.queues if queue.task}


class Looks:
    """The looks that dashboards share."""

    def __init__(self, transactions: Transactions) -> None:
        async def look_at_queues() -> Overview:
            queues = await statistics.all_queues(transactions)
            seconds, offsets = await statistics.lags(transactions)
            return Overview(queues, seconds, offsets)

        async def look_at_groups() -> list[GroupStatistics]:
            return await statistics.groups(transactions)

        async def look_at_errors() -> list[ErrorRow]:
            return await dashboard.dead_letter_errors(transactions)

        self.overview = Snapshots(look_at_queues)
        self.groups = Snapshots(look_at_groups)
        self.errors = Snapshots(look_at_errors)

    async def close(self) -> None:
        await self.overview.close()
        await self.groups.close()
        await self.errors.close()
