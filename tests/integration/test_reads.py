"""Reads for operators use a few connections of the pool, wait a while for one, and end in time."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from queue_server.domain.errors import Overloaded, StorageTimeout
from queue_server.storage.reads import ReadTransactions
from queue_server.storage.transactions import Transactions
from tests.fix_db import pool_of

SLEEP = "SELECT pg_sleep(%(seconds)s)"


@pytest.fixture
async def pair(conninfo: str) -> AsyncIterator[tuple[ReadTransactions, Transactions]]:
    """Two of three connections are for reads, one more may wait; and those that use all."""
    async with pool_of(conninfo, size=3) as pool:
        reads = ReadTransactions(pool, connections_max=2, deadline_s=3.0, waiting_max=1, wait_s=0.3)
        yield reads, Transactions(pool)


async def sleeping(reads: ReadTransactions, seconds: float) -> list[asyncio.Task[object]]:
    """Two reads that hold all connections there are for them."""
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(reads.call(SLEEP, {"seconds": seconds})) for _ in range(2)
    ]
    await asyncio.sleep(0)
    return tasks


async def test_more_reads_wait_and_are_refused(
    pair: tuple[ReadTransactions, Transactions],
) -> None:
    reads, others = pair
    slow = await sleeping(reads, 1.5)
    waiting = asyncio.create_task(reads.call("SELECT 1", {}))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as one_too_many:
        await reads.call("SELECT 1", {})
    assert one_too_many.value.retry_after_s == 1
    # Others find a connection at once.
    assert await asyncio.wait_for(others.call("SELECT 2", {}), 1) == [(2,)]
    with pytest.raises(Overloaded, match=r"took longer than 0\.3 s"):
        await waiting
    await asyncio.gather(*slow)
    assert await reads.call("SELECT 3", {}) == [(3,)]


async def test_a_read_gets_the_place_of_one_that_ended(
    pair: tuple[ReadTransactions, Transactions],
) -> None:
    reads, _ = pair
    slow = await sleeping(reads, 0.1)
    assert await reads.call("SELECT 1", {}) == [(1,)]
    await asyncio.gather(*slow)


async def test_a_long_read_is_stopped(pair: tuple[ReadTransactions, Transactions]) -> None:
    """Also on the server, whose connection serves the next one."""
    reads, others = pair
    begin = time.monotonic()
    with pytest.raises(StorageTimeout, match="READ_TIMEOUT"):
        await reads.call(SLEEP, {"seconds": 60})
    assert time.monotonic() - begin < 20
    # All three connections are there.
    assert await asyncio.gather(*(others.call("SELECT 1", {}) for _ in range(3))) == [[(1,)]] * 3
    rows = await others.call(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'active' AND query LIKE '%%pg_sleep(%%'"
        " AND pid <> pg_backend_pid()",
        {},
    )
    assert rows == [(0,)]
