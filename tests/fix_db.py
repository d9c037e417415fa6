"""A real PostgreSQL for tests that need no server: one for the session, a fresh database a test.

It is the embedded one unless `--database` says otherwise (see tests/databases.py).
"""

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence

import psycopg
import pytest

from queue_server.cluster.database import EmbeddedPostgres
from queue_server.domain.names import PartitionName, PartitionRef, QueueName
from queue_server.storage import queues
from queue_server.storage.migrate import migrate
from queue_server.storage.pool import Pool, open_pool
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection, Transactions
from tests.client import eventually
from tests.cluster_process import ClusterProcess
from tests.databases import DatabaseKind, SharedPostgres, given_database
from tests.server_directory import server_directory


@pytest.fixture(scope="session")
def database_kind(pytestconfig: pytest.Config) -> DatabaseKind:
    """What `--database` says."""
    kind: DatabaseKind = pytestconfig.option.database
    return kind


@pytest.fixture(scope="session", autouse=True)
def given(database_kind: DatabaseKind) -> Iterator[SharedPostgres | None]:
    """The PostgreSQL that all servers are given; None when each runs its own."""
    if database_kind == "embedded":
        yield None
        return
    with server_directory() as folder, given_database(database_kind, folder) as postgres:
        ClusterProcess.stand_in = postgres.stand_in
        yield postgres
        ClusterProcess.stand_in = None


@pytest.fixture(scope="session")
def postgres(given: SharedPostgres | None) -> Iterator[SharedPostgres]:
    """The PostgreSQL of the session's tests; embedded, without a supervisor around it."""
    if given is not None:
        yield given
        return
    with server_directory() as directory:
        database = EmbeddedPostgres(directory, pool_size=30)
        database.lock()
        database.start()
        try:
            yield SharedPostgres(database.conninfo)
        finally:
            database.stop(10)


@pytest.fixture(scope="session")
def template(postgres: SharedPostgres) -> str:
    """The name of a migrated database; cloning it is faster than migrating anew."""
    postgres.execute("CREATE DATABASE {}", "template_queue")
    migrate(postgres.direct_conninfo("template_queue"))
    return "template_queue"


@pytest.fixture
def own_database(postgres: SharedPostgres, template: str) -> Iterator[str]:
    """The name of a migrated database of the test's own."""
    with postgres.database(template) as name:
        yield name


@pytest.fixture
def conninfo(postgres: SharedPostgres, own_database: str) -> str:
    """The way to the test's database that a server takes."""
    return postgres.conninfo(own_database)


@pytest.fixture
def direct_conninfo(postgres: SharedPostgres, own_database: str) -> str:
    """The way to the test's database past any pooler, with a session of one's own."""
    return postgres.direct_conninfo(own_database)


@pytest.fixture
async def transactions(conninfo: str) -> AsyncIterator[Transactions]:
    """Transactions on a pool of five connections to the test's database."""
    async with pool_of(conninfo, size=5) as pool:
        yield Transactions(pool)


def pool_of(conninfo: str, *, size: int = 1, statement_timeout_ms: int = 10_000) -> Pool:
    """A pool that is not open yet, with the timeouts of tests."""
    return open_pool(
        conninfo,
        size=size,
        connection_timeout_ms=5000,
        statement_timeout_ms=statement_timeout_ms,
        lock_timeout_ms=5000,
    )


async def make_queue(transactions: Transactions, name: str) -> str:
    """Create a queue as its first push does, and return its id."""
    rows = await transactions.call(
        STATEMENTS["ensure_queue"],
        {"id": uuid.uuid4(), "name": name, "namespace": name, "task": "", "lease_time": 60},
    )
    return str(rows[0][0])


async def make_partitions(
    transactions: Transactions, queue: str, names: Sequence[str]
) -> list[PartitionRef]:
    """Create partitions as a push would, or find them."""

    async def work(connection: Connection) -> list[PartitionRef]:
        return await queues.create_partitions(
            connection,
            [
                queues.NewPartition(QueueName(queue), PartitionName(name), "", "")
                for name in dict.fromkeys(names)
            ],
        )

    return await transactions.run(work)


async def until_ended(connection: psycopg.AsyncConnection, pid: int) -> None:
    """Wait until a backend is gone, and has told what it has done."""

    async def has_ended() -> bool:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,)
        )
        return await cursor.fetchone() == (0,)

    await eventually(has_ended)
