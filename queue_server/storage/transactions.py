"""The one way to the database: run a transaction, and run all of it again when that may help.

PostgreSQL ends transactions for reasons that lie outside of them (deadlock, serialization, a lock
that did not come, a restart). Such a transaction has to be repeated as a whole, on a clean
connection; repeating its last statement, or reporting the error, is wrong. So `call` and `run` take
what is to be done and decide themselves how often.

A connection that is lost during COMMIT leaves the outcome unknown. `run` notes the transaction's id
before the COMMIT and asks afterwards, on another connection, what became of it. `call` has no
moment to do that; its functions are safe to repeat: a push finds its own ids, an ack is fenced
(what a repeated ack is to be answered is another matter: see `leases.commit`).

A crash forgets transaction ids that had not reached the disk, and gives them to others: after one
(or on a standby that was promoted) "committed" may be said of somebody else's transaction. So the
id is noted together with the time of the last crash, as `pg_stat_wal` tells it: statistics are kept
over a clean restart and reset by recovery, also by that of a single killed backend.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sized
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.rows import TupleRow

from queue_server.domain.errors import StorageUnavailable
from queue_server.storage import failures

logger = logging.getLogger(__name__)

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]
Parameters = Mapping[str, Any]

ATTEMPTS_MAX = 8
# Full jitter: the n-th pause is uniform in [0, BASE * 2^n], at most CAP. Contenders spread, and
# eight attempts take about two seconds when every one fails at once.
BACKOFF_BASE_S = 0.01
BACKOFF_CAP_S = 1.0
# How long `run` waits for a database that is gone when it has to ask what became of a COMMIT.
OUTAGE_PATIENCE_S = 10.0

_LAST_CRASH = "(SELECT stats_reset::text FROM pg_stat_wal)"


class Transactions:
    """Runs transactions on the connections of a pool.

    *on_retry* is told the reason of each repetition: an SQLSTATE or `connection_lost`.
    """

    def __init__(
        self,
        pool: psycopg_pool.AsyncConnectionPool[Connection],
        on_retry: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._pool = pool
        self._on_retry = on_retry
        self._out_of_resources_at = float("-inf")

    async def call(
        self, statement: str, parameters: Parameters, *, prepare: bool = True
    ) -> list[TupleRow]:
        """Run one statement as a transaction of its own: one round trip.

        Without *prepare* it is planned each time, for these parameters. That is for a filter most
        of which is null: a plan for all parameters would have to read everything.

        Errors: `StorageUnavailable`, `StorageTimeout`; the outcome is then unknown. Others of
        psycopg's are our bugs and pass.
        """
        rows, _ = await self.call_knowing(statement, parameters, prepare=prepare)
        return rows

    async def call_knowing(
        self, statement: str, parameters: Parameters, *, prepare: bool = True
    ) -> tuple[list[TupleRow], bool]:
        """As `call`, and whether an attempt before the answered one may have been carried out."""
        was_lost = False

        async def work(connection: Connection) -> list[TupleRow]:
            nonlocal was_lost
            cursor = connection.cursor(binary=True)
            try:
                # None: as the connection prepares, which behind a pooler it does not.
                await cursor.execute(statement, parameters, prepare=None if prepare else False)
                return await cursor.fetchall()
            except psycopg.Error as exc:
                was_lost |= failures.retry_reason(exc) == failures.CONNECTION_LOST
                raise

        return await self._repeat(work), was_lost

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run *work* between BEGIN and COMMIT. It may be called several times.

        Errors: as `call`; and what *work* raises, after a rollback.
        """

        # An attempt whose COMMIT got no answer: its id, the last crash before it, and its result.
        unsure: list[tuple[str, str | None, T]] = []

        async def transaction(connection: Connection) -> T:
            if unsure:
                xid, last_crash, result = unsure[0]
                if await _was_committed(connection, xid, last_crash):
                    return result
                unsure.clear()
            async with connection.transaction():
                result = await work(connection)
                cursor = await connection.execute(
                    f"SELECT pg_current_xact_id_if_assigned()::text, {_LAST_CRASH}"
                )
                row = await cursor.fetchone()
                if row is not None and row[0] is not None:
                    unsure.append((row[0], row[1], result))
            return result

        return await self._repeat(transaction, unsure)

    def pool_stats(self) -> dict[str, int]:
        """psycopg_pool's figures: `pool_size`, `pool_available`, `requests_waiting` and more."""
        return self._pool.get_stats()

    def out_of_resources_s_ago(self) -> float:
        """How long ago the database last said that its disk, memory or connections ran out."""
        return time.monotonic() - self._out_of_resources_at

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def _repeat(self, attempt: Callable[[Connection], Awaitable[T]], unsure: Sized = ()) -> T:
        """*unsure* holds something while it has to be asked what became of an attempt."""
        ended: Exception | None = None  # the attempt before
        lost_at = float("-inf")
        number = 0
        while True:
            try:
                # Not `connection()`, which would commit what commits itself.
                connection = await self._pool.getconn()
                try:
                    return await attempt(connection)
                finally:
                    await self._pool.putconn(connection)
            except StorageUnavailable:
                # There is no database, which is told at once.
                if ended is None:
                    raise
                if not unsure or time.monotonic() - lost_at > OUTAGE_PATIENCE_S:
                    raise failures.translate(ended) from ended
                await asyncio.sleep(random.uniform(0.02, 0.1))
            except Exception as exc:
                ended, lost_at = exc, time.monotonic()
                reason = failures.retry_reason(exc)
                if reason is None or number + 1 == ATTEMPTS_MAX:
                    if failures.is_out_of_resources(exc):
                        self._out_of_resources_at = time.monotonic()
                    translated = failures.translate(exc)
                    if translated is exc:
                        raise
                    raise translated from exc
                self._on_retry(reason)
                logger.info("transaction repeated", extra={"reason": reason, "error": str(exc)})
                await self._tend_pool(exc, reason)
                ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**number)
                await asyncio.sleep(random.uniform(0, ceiling))
                number += 1

    async def _tend_pool(self, exc: Exception, reason: str) -> None:
        """After a failure, what the pool holds may be of no use."""
        if isinstance(exc, failures.Silence | psycopg.errors.ReadOnlySqlTransaction):
            # Asking its neighbours would take as long again for each of them, and on a server
            # that is read-only now they would all say that they are well.
            await self._pool.drain()
        elif reason == failures.CONNECTION_LOST:
            # Its neighbours in the pool are likely to be lost as well: replace them now rather
            # than spend an attempt on each.
            await self._pool.check()


async def _was_committed(connection: Connection, xid: str, last_crash: str | None) -> bool:
    """What became of a transaction.

    Errors: `CommitPending` while its backend has not finished; `CommitUnknown` when the database
    has crashed since, and its id is committed now, perhaps by another.
    """
    try:
        cursor = await connection.execute(
            f"SELECT pg_xact_status(%s::text::xid8), {_LAST_CRASH}", (xid,)
        )
    except psycopg.errors.InvalidParameterValue:
        # Not assigned yet as far as this server knows: it crashed before the id was on disk.
        return False
    row = await cursor.fetchone()
    assert row is not None
    if row[0] == "in progress":
        raise failures.CommitPending
    if row[0] != "committed":
        return False
    if last_crash is None or row[1] != last_crash:
        raise failures.CommitUnknown
    return True
