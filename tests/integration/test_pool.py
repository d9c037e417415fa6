"""Which connection a pool hands out, and what becomes of one that falls silent."""

import psycopg
import pytest

from tests.fix_db import pool_of


async def test_the_connection_used_last_comes_first(direct_conninfo: str) -> None:
    async with pool_of(direct_conninfo, size=4) as pool:
        async with pool.connection() as one, pool.connection() as two, pool.connection() as three:
            pids = [connection.info.backend_pid for connection in (one, two, three)]
        assert len(set(pids)) == 3
        # They are given back from the inside out.
        for _ in range(5):
            async with pool.connection() as connection:
                assert connection.info.backend_pid == pids[0]
        async with pool.connection(), pool.connection() as connection:
            assert connection.info.backend_pid == pids[1]


@pytest.mark.databases("embedded", "pg15", reason="a pooler drops what a session asks for")
async def test_a_transaction_that_falls_silent_lets_go_of_its_locks(conninfo: str) -> None:
    """As when the network between has gone: PostgreSQL hears of no end."""
    async with pool_of(conninfo, size=2, statement_timeout_ms=500) as pool:
        silent, other = await pool.getconn(), await pool.getconn()
        try:
            await silent.execute("BEGIN")
            await silent.execute("SELECT 1 FROM queen.maintenance FOR UPDATE")
            await other.execute("SET statement_timeout = '20s'")
            await other.execute("SET lock_timeout = '20s'")
            await other.execute("SELECT 1 FROM queen.maintenance FOR UPDATE")
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                await silent.execute("SELECT 1")
        finally:
            await pool.putconn(silent)
            await pool.putconn(other)
