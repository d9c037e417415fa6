"""Keeps reads for operators from taking the connections that pushes, pops and acks need.

Listings and statistics may read a row of every partition, group or dead letter. A worker's pool is
small, so a few clients that ask for them again and again would hold all of it. Their reads use a
small share of the pool; more than that wait, a bounded number for a bounded time, and are refused
after it. A read also ends at a deadline of its own, which is shorter than that of other statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from contextlib import asynccontextmanager
from typing import TypeVar

import psycopg_pool

from queue_server.domain.errors import Overloaded, StorageTimeout
from queue_server.storage.transactions import Connection, Transactions

T = TypeVar("T")

# A dashboard sends some ten reads at once; this is several dashboards on one worker.
_WAITING_MAX = 100
# As long as two slow reads take; a client that would wait longer does better to ask again.
_WAIT_S = 5.0


class ReadTransactions(Transactions):
    """Runs reads on at most *connections_max* connections of a pool that others use too.

    Errors: `Overloaded` when too many reads wait already, or one waited too long; `StorageTimeout`
    for a read that takes longer than *deadline_s*.
    """

    def __init__(
        self,
        pool: psycopg_pool.AsyncConnectionPool[Connection],
        on_retry: Callable[[str], None] = lambda _reason: None,
        *,
        connections_max: int,
        deadline_s: float,
        waiting_max: int = _WAITING_MAX,
        wait_s: float = _WAIT_S,
    ) -> None:
        super().__init__(pool, on_retry)
        self._slots = asyncio.Semaphore(connections_max)
        self._deadline_s = deadline_s
        self._waiting_max = waiting_max
        self._wait_s = wait_s
        self._waiting = 0

    async def _repeat(self, attempt: Callable[[Connection], Awaitable[T]], unsure: Sized = ()) -> T:
        async with self._slot():
            try:
                async with asyncio.timeout(self._deadline_s) as deadline:
                    return await super()._repeat(attempt, unsure)
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise StorageTimeout(
                    f"the read took longer than READ_TIMEOUT, {self._deadline_s:g} s, and was"
                    " stopped; ask for less, or again later"
                ) from None

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Hold one of the connections that reads may use."""
        if self._slots.locked():
            if self._waiting >= self._waiting_max:
                raise Overloaded(
                    f"{self._waiting} reads are waiting on this worker already; try again"
                )
            self._waiting += 1
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._slots.acquire()
            except TimeoutError:
                raise Overloaded(
                    f"the reads before this one took longer than {self._wait_s:g} s; try again"
                ) from None
            finally:
                self._waiting -= 1
        else:
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()
