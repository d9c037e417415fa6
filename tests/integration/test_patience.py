"""How a connection waits for its answers: nothing hangs, nothing is left behind.

Cancelled, lost, idle, or with more to say than the system takes at once.
"""

import asyncio
import contextlib
import os
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions

# Of another session: `pg_stat_activity` of a pooler's backends says nothing about ours.
pytestmark = pytest.mark.databases("embedded", "pg15", reason="PgBouncer keeps the backends")


def open_sockets() -> int:
    """Descriptors of this process that are sockets."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += str(path.readlink()).startswith("socket:")
    return count


async def until_gone(connection: psycopg.AsyncConnection, pid: int) -> None:
    while True:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,)
        )
        if await cursor.fetchone() == (0,):
            return
        await asyncio.sleep(0.01)


async def test_who_gives_up_leaves_a_connection_that_can_be_used(direct_conninfo: str) -> None:
    async with (
        open_pool(
            direct_conninfo,
            size=1,
            connection_timeout_ms=5000,
            statement_timeout_ms=60_000,
            lock_timeout_ms=5000,
        ) as pool,
        await psycopg.AsyncConnection.connect(direct_conninfo, autocommit=True) as other,
    ):
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
            sleeps = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            while True:
                cursor = await other.execute(
                    "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", (pid,)
                )
                if await cursor.fetchone() == ("PgSleep",):
                    break
            sleeps.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeps
            # The server sleeps no longer, and the next question gets its own answer.
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE
            cursor = await connection.execute("SELECT 7")
            assert await cursor.fetchone() == (7,)
        async with pool.connection() as connection:
            assert connection.info.backend_pid == pid


async def test_a_body_larger_than_the_system_takes_at_once(transactions: Transactions) -> None:
    body = os.urandom(1 << 20) * 24
    rows = await transactions.call(
        "SELECT length(%(body)s::bytea), %(body)s::bytea", {"body": body}
    )
    assert rows == [(len(body), body)]


async def test_connections_that_are_lost_while_idle_leave_no_descriptor(
    direct_conninfo: str,
) -> None:
    """The server ends them; the loop hears of it when nobody waits."""
    async with (
        open_pool(
            direct_conninfo,
            size=1,
            connection_timeout_ms=5000,
            statement_timeout_ms=5000,
            lock_timeout_ms=5000,
        ) as pool,
        await psycopg.AsyncConnection.connect(direct_conninfo, autocommit=True) as other,
    ):
        transactions = Transactions(pool)
        counts = []
        for _ in range(8):
            ((pid,),) = await transactions.call("SELECT pg_backend_pid()", {})
            counts.append(open_sockets())
            await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            await until_gone(other, pid)
        assert len(set(counts)) == 1, counts


async def test_what_comes_unasked_is_not_told_for_ever(direct_conninfo: str) -> None:
    """A notice for a connection on which nobody waits; after it, it is used as before."""
    async with (
        open_pool(
            direct_conninfo,
            size=1,
            connection_timeout_ms=5000,
            statement_timeout_ms=5000,
            lock_timeout_ms=5000,
        ) as pool,
        pool.connection() as connection,
        await psycopg.AsyncConnection.connect(direct_conninfo, autocommit=True) as other,
    ):
        await connection.execute("LISTEN something")
        await other.execute("NOTIFY something")
        # What this process needs while it does nothing but wait.
        before = os.times()
        await asyncio.sleep(0.5)
        after = os.times()
        assert after.user + after.system - before.user - before.system < 0.25
        cursor = await connection.execute("SELECT 7")
        assert await cursor.fetchone() == (7,)
