"""A crash takes the COMMIT with it, and the transaction's id is given to somebody else.

PostgreSQL then calls the id committed, which says nothing of the transaction that had it first.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from queue_server.cluster.database import EmbeddedPostgres
from queue_server.domain.errors import StorageUnavailable
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Connection, Transactions
from tests.client import eventually
from tests.fix_proxy import Proxy
from tests.server_directory import server_directory

pytestmark = pytest.mark.databases(
    "embedded", reason="it is about the PostgreSQL that the server starts"
)


class CrashingProxy(Proxy):
    """Does *act* in the place of the first COMMIT that comes, and cuts the connection."""

    act: Callable[[], Awaitable[None]] | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await self.open_target()

        async def down() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await up_reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()

        task = asyncio.create_task(down())
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    if self.act is not None and b"COMMIT\x00" in data:
                        act, self.act = self.act, None
                        task.cancel()
                        await act()
                        break
                    up_writer.write(data)
                    await up_writer.drain()
        finally:
            task.cancel()
            for one in (writer, up_writer):
                one.transport.abort()


@pytest.fixture
def database() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of the test's own, which may crash."""
    with server_directory() as directory:
        database = EmbeddedPostgres(directory, pool_size=10)
        database.lock()
        database.start()
        with psycopg.connect(database.conninfo) as connection:
            connection.execute("CREATE TABLE public.t (text text)")
        try:
            yield database
        finally:
            database.stop(10)


@asynccontextmanager
async def transactions_through(
    database: EmbeddedPostgres, act: Callable[[], Awaitable[None]]
) -> AsyncIterator[Transactions]:
    with server_directory() as folder:
        folder.mkdir()
        proxy = CrashingProxy(database.conninfo, str(folder))
        await proxy.start()
        async with open_pool(
            proxy.leads_to(database.conninfo),
            size=2,
            connection_timeout_ms=3000,
            statement_timeout_ms=10_000,
            lock_timeout_ms=5000,
        ) as pool:
            await pool.wait()
            proxy.act = act
            yield Transactions(pool)
        await proxy.stop()


async def insert(connection: Connection) -> str:
    await connection.execute("INSERT INTO public.t VALUES ('lost')")
    return "done"


async def rows(database: EmbeddedPostgres) -> int:
    async with await psycopg.AsyncConnection.connect(database.conninfo) as connection:
        cursor = await connection.execute("SELECT count(*) FROM public.t WHERE text = 'lost'")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


async def take_ids(database: EmbeddedPostgres, count: int) -> None:
    async def taken() -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(
                database.conninfo, autocommit=True
            ) as connection:
                for _ in range(count):
                    await connection.execute("INSERT INTO public.t VALUES ('other')")
        except psycopg.OperationalError:
            return False
        return True

    await eventually(taken, deadline=20)


async def crash(database: EmbeddedPostgres, how: str) -> None:
    if how == "a backend is killed":
        # The postmaster lives on: it ends all the others and recovers.
        async with await psycopg.AsyncConnection.connect(database.conninfo) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            with contextlib.suppress(psycopg.OperationalError):
                await connection.execute("SELECT pg_sleep(10)")
    else:
        await asyncio.to_thread(database.kill)
        await asyncio.to_thread(database.start)


@pytest.mark.parametrize("how", ["the postmaster ends at once", "a backend is killed"])
async def test_an_id_that_another_transaction_got_proves_nothing(
    database: EmbeddedPostgres, how: str
) -> None:
    async def act() -> None:
        await crash(database, how)
        await take_ids(database, 3)

    async with transactions_through(database, act) as transactions:
        with pytest.raises(StorageUnavailable, match="may or may not"):
            await transactions.run(insert)
    assert await rows(database) == 0


@pytest.mark.parametrize("how", ["the postmaster ends at once", "a backend is killed"])
async def test_an_id_that_nobody_has_proves_that_it_did_not_happen(
    database: EmbeddedPostgres, how: str
) -> None:
    async with transactions_through(database, lambda: crash(database, how)) as transactions:
        assert await transactions.run(insert) == "done"
    assert await rows(database) == 1
