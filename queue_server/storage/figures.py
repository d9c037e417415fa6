"""What the database says of itself and of the queues, for metrics.

Asking is free for as many as want to: one look at a time, and the next one after a pause that grows
with what the last one cost. Who asks while a slow look goes on gets the figures of the last one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec
import psycopg
from psycopg.rows import TupleRow

from queue_server.domain.errors import QueueServerError
from queue_server.storage import statistics
from queue_server.storage.diagnostics import Horizon
from queue_server.storage.messages import SHARD
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions

logger = logging.getLogger(__name__)

# Scrapes come four times a minute or more rarely.
_INTERVAL_S = 5.0
# A look reads a few rows of each partition: a second or so for a hundred thousand of them. All
# looks together may take this part of the time of one connection.
_SHARE = 0.05
# A look that takes longer is given up.
_LOOK_MAX_MS = 10_000
# A scrape commonly waits ten seconds.
_PATIENCE_S = 3.0
# Figures that are older than this are no longer told.
_AGE_MAX_S = 300.0


class QueueFigures(msgspec.Struct, frozen=True):
    """A queue, or with the name None all queues that have no series of their own."""

    name: str | None
    queue_count: int
    partition_count: int
    message_count: int
    depth: int  # what the slowest reader of each partition has not committed
    leased_count: int
    dead_letter_count: int
    oldest_age_s: float  # of the oldest message that its slowest reader has not committed


class QueueMinute(msgspec.Struct, frozen=True):
    """What all workers booked for a queue in the last whole minute (storage/series.py)."""

    queue: str
    push_requests: int = 0
    push_messages: int = 0
    pop_messages: int = 0
    pop_empty: int = 0
    transactions: int = 0
    ack_success: int = 0
    ack_failed: int = 0
    lag_ms_sum: int = 0
    lag_ms_max: int = 0


class Figures(msgspec.Struct, frozen=True):
    """One look at the database; `taken_at` by CLOCK_MONOTONIC."""

    taken_at: float
    queues: list[QueueFigures]
    minutes: list[QueueMinute]  # of queues that are told apart
    minute_age_s: float
    lease_count: int  # live ones
    held_count: int  # messages that maintenance holds back
    database: statistics.DatabaseStatistics
    tables: list[statistics.TableStatistics]
    xmin_age: int
    oldest_transaction_s: float


class FiguresCache:
    """The figures of a worker; the *queues_max* oldest queues are told apart."""

    def __init__(self, transactions: Transactions, queues_max: int) -> None:
        self._transactions = transactions
        self._queues_max = queues_max
        self._figures: Figures | None = None
        self._next_at = float("-inf")
        self._look: asyncio.Task[None] | None = None

    async def current(self) -> Figures | None:
        """The newest figures that are to be had soon; None when there are none."""
        if self._look is None and time.monotonic() >= self._next_at:
            # A task, as who asked first may leave while others wait for the same answer.
            self._look = asyncio.create_task(self._take(), name="figures")
        if self._look is not None:
            await asyncio.wait({self._look}, timeout=_PATIENCE_S)
        figures = self._figures
        if figures is not None and time.monotonic() - figures.taken_at > _AGE_MAX_S:
            return None
        return figures

    async def close(self) -> None:
        """End a look that goes on."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})

    async def _take(self) -> None:
        begin = time.monotonic()
        try:
            self._figures = await self._transactions.run(self._read)
        except (QueueServerError, psycopg.Error) as exc:
            logger.warning("no figures for metrics", extra={"error": str(exc)})
        finally:
            now = time.monotonic()
            self._next_at = now + max(_INTERVAL_S, (now - begin) / _SHARE)
            self._look = None

    async def _read(self, connection: Connection) -> Figures:
        async def rows(name: str, **parameters: Any) -> list[TupleRow]:
            return await (await connection.execute(STATEMENTS[name], parameters)).fetchall()

        await connection.execute(f"SET LOCAL statement_timeout = {_LOOK_MAX_MS}")
        taken_at = time.monotonic()
        queues = await rows("queue_figures", shard=SHARD, own_max=self._queues_max)
        names = [row[0] for row in queues if row[0] is not None]
        minutes = await rows("last_minute", queues=names)
        age = await rows("last_minute_age")
        held = await rows("count_held")
        leases = await rows("lease_statistics", shard=SHARD, queue_ids=None)
        database = await rows("database_sizes")
        tables = await rows("table_statistics")
        horizon = Horizon.of(await rows("vacuum_horizon"))
        oldest = horizon.oldest_session
        return Figures(
            taken_at=taken_at,
            queues=[QueueFigures(*row) for row in queues],
            minutes=[QueueMinute(*row) for row in minutes],
            minute_age_s=age[0][0],
            lease_count=leases[0][0],
            held_count=held[0][0],
            database=statistics.DatabaseStatistics(*database[0]),
            tables=[statistics.TableStatistics(*row) for row in tables],
            xmin_age=horizon.xmin_age,
            oldest_transaction_s=0.0 if oldest is None else oldest.open_s or 0.0,
        )
