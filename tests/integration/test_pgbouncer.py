"""Through PgBouncer in transaction mode: each transaction may get another backend."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.observability.counters import Counters
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Connection, Transactions
from tests.client import eventually
from tests.databases import PgBouncer, Unavailable
from tests.integration.test_torn_transactions import new
from tests.server_directory import server_directory


@pytest.fixture
async def bounced(direct_conninfo: str) -> AsyncIterator[Transactions]:
    """Six connections to PgBouncer, which has two to the test's database."""
    with server_directory() as folder:
        folder.parent.chmod(0o755)
        try:
            bouncer = PgBouncer(direct_conninfo, folder, pool_size=2)
        except Unavailable as exc:
            pytest.skip(str(exc))
        try:

            async def answers() -> bool:
                try:
                    asyncio_streams = await asyncio.open_connection("127.0.0.1", bouncer.port)
                except OSError:
                    return False
                asyncio_streams[1].close()
                return True

            await eventually(answers)
            async with open_pool(
                bouncer.conninfo,
                size=6,
                connection_timeout_ms=5000,
                statement_timeout_ms=10_000,
                lock_timeout_ms=5000,
            ) as pool:
                yield Transactions(pool)
        finally:
            bouncer.stop()


async def test_statements_are_not_prepared_in_another_ones_backend(bounced: Transactions) -> None:
    pusher = Pusher(bounced, Directory(bounced), Rooms(), Counters(1).worker(0), Keyring())
    mark = uuid.uuid4().hex

    async def push(number: int) -> None:
        await pusher.push([new(f"queue-{number}-{mark}", "p", str(number))], 10)

    async def backend(connection: Connection) -> int:
        cursor = await connection.execute("SELECT pg_backend_pid(), pg_sleep(0.01)")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    for _ in range(10):
        await asyncio.gather(*(push(number) for number in range(6)))
        backends = await asyncio.gather(*(bounced.run(backend) for _ in range(6)))
        assert len(set(backends)) <= 2
