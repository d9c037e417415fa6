"""Figures over many partitions, computed once for everybody who asks at about the same time.

They are read from a row of each partition and cursor, or of each dead letter. With few of them that
takes some milliseconds and is done for each who asks. With many it takes a second; then what was
found is told again, as old as it says it is, while a new look is made in the background, so that
nobody waits and all looks together take a small part of one connection's time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from time import monotonic
from typing import Any, Generic, TypeVar

import msgspec

from queue_server.domain.encryption import Keyring
from queue_server.storage import dashboard, figures, statistics
from queue_server.storage.dashboard import ErrorRow
from queue_server.storage.figures import Figures
from queue_server.storage.statistics import GroupStatistics, Overview
from queue_server.storage.transactions import Transactions

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Looks may take this part of the time...
_SHARE = 0.05
# ...but quick ones are not saved up: who has just pushed sees it.
_QUICK_S = 0.2
# What is older than this is not told any more: who asks waits.
_AGE_MAX_S = 120.0
# Kinds of looks of which the last one is kept, beside those that everybody asks for.
_KEPT_MAX = 32

# Scrapes come four times a minute or more rarely.
_METRICS_INTERVAL_S = 5.0
# A scrape commonly waits ten seconds.
_METRICS_PATIENCE_S = 3.0
# Figures that are older than this are no longer told to metrics.
_METRICS_AGE_MAX_S = 300.0

_NO_KEYS = Keyring()


class Snapshot(msgspec.Struct, Generic[T], frozen=True):
    """What a look found; `taken_at` is by CLOCK_MONOTONIC, before the look."""

    value: T
    taken_at: float
    cost_s: float

    @property
    def age_s(self) -> float:
        return monotonic() - self.taken_at

    @property
    def is_kept(self) -> bool:
        """Whether it is told again, because another look would cost too much."""
        return self.cost_s >= _QUICK_S and self.age_s < _AGE_MAX_S


class Snapshots(Generic[T]):
    """Makes one kind of look, one at a time."""

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._task: asyncio.Task[Snapshot[T]] | None = None
        self._began_at = float("-inf")
        # When another look may begin without anybody's waiting for it.
        self._due_at = float("-inf")
        self.last: Snapshot[T] | None = None

    @property
    def is_looking(self) -> bool:
        return self._task is not None

    async def current(self) -> Snapshot[T]:
        """One that is as new as its cost allows. Errors: those of the look, as `Unavailable`."""
        if self.last is None or not self.last.is_kept:
            return await self.refresh()
        if self._task is None and monotonic() >= self._due_at:
            self._begin().add_done_callback(_log_failure)
        return self.last

    async def refresh(self) -> Snapshot[T]:
        """One that began after now. Errors: those of the look, as `Unavailable`."""
        asked_at = monotonic()
        while True:
            look = self._task or self._begin()
            # Who asked first may leave while others wait for the same answer.
            if self._began_at >= asked_at:
                return await asyncio.shield(look)
            await asyncio.wait({look})

    async def newest(self, interval_s: float, patience_s: float) -> Snapshot[T] | None:
        """The newest that is to be had within *patience_s*; an old one is better than none.

        For those who ask for ever: a look begins *interval_s* after the last one or later, and as
        rarely as its cost demands, also while looks fail.
        """
        if self._task is None and monotonic() >= max(self._due_at, self._began_at + interval_s):
            self._begin().add_done_callback(_log_failure)
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=patience_s)
        return self.last

    async def close(self) -> None:
        """End a look that goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _begin(self) -> asyncio.Task[Snapshot[T]]:
        self._began_at = monotonic()
        self._task = asyncio.create_task(self._take(), name="snapshot")
        # Before those who wait go on.
        self._task.add_done_callback(self._end)
        return self._task

    def _end(self, look: asyncio.Task[Snapshot[T]]) -> None:
        self._task = None
        if not look.cancelled():
            look.exception()  # whoever waits hears of it; if nobody does, that is no error

    async def _take(self) -> Snapshot[T]:
        begin = self._began_at
        try:
            value = await self._look()
        finally:
            cost_s = monotonic() - begin
            # Long before it is too old, however slow a look is: else who asks would wait for it.
            self._due_at = begin + min(cost_s / _SHARE, _AGE_MAX_S / 2)
        self.last = Snapshot(value, begin, cost_s)
        return self.last


def _log_failure(look: asyncio.Task[Snapshot[T]]) -> None:
    if not look.cancelled() and (exc := look.exception()) is not None:
        logger.warning("the figures are not renewed", extra={"error": str(exc)})


class Looks:
    """The looks that callers share; *series_max* queues and groups have series of their own."""

    def __init__(
        self, transactions: Transactions, series_max: int, keyring: Keyring = _NO_KEYS
    ) -> None:
        async def look_at_queues() -> Overview:
            return await statistics.overview(transactions)

        async def look_at_groups() -> list[GroupStatistics]:
            return await statistics.groups(transactions)

        async def look_at_errors() -> list[ErrorRow]:
            return await dashboard.dead_letter_errors(transactions, keyring)

        async def look_for_metrics() -> Figures:
            overview = await self.overview.current()
            groups = await self.groups.current()
            return await figures.read(
                transactions,
                overview.value.queues,
                groups.value,
                series_max,
                min(overview.taken_at, groups.taken_at),
            )

        self.overview = Snapshots(look_at_queues)
        self.groups = Snapshots(look_at_groups)
        self.errors = Snapshots(look_at_errors)
        self._metrics = Snapshots(look_for_metrics)
        self._others: dict[Hashable, Snapshots[Any]] = {}

    async def metrics(self) -> Figures | None:
        """The newest figures that are to be had soon; None when there are none."""
        found = await self._metrics.newest(_METRICS_INTERVAL_S, _METRICS_PATIENCE_S)
        if found is None or monotonic() - found.value.taken_at > _METRICS_AGE_MAX_S:
            return None
        return found.value

    async def share(self, key: Hashable, look: Callable[[], Awaitable[T]]) -> Snapshot[T]:
        """What *look* finds, for all who ask for the same *key*. Errors: those of *look*."""
        # The one that was asked for last comes last.
        snapshots = self._others[key] = self._others.pop(key, Snapshots(look))
        try:
            found: Snapshot[T] = await snapshots.current()
            return found
        finally:
            self._forget()

    def _forget(self) -> None:
        """Keep the few that were slow and asked for last."""
        idle = [key for key, one in self._others.items() if not one.is_looking]
        slow = [key for key in idle if (last := self._others[key].last) and last.is_kept]
        for key in {*idle} - {*slow[-_KEPT_MAX:]}:
            del self._others[key]

    async def close(self) -> None:
        """End the looks that go on."""
        all_: list[Snapshots[Any]] = [self._metrics, self.overview, self.groups, self.errors]
        for snapshots in [*all_, *self._others.values()]:
            await snapshots.close()
