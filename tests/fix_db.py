"""A real PostgreSQL for tests that need no server: one for the session, a fresh database a test."""

import itertools
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from queue_server.cluster.database import EmbeddedPostgres
from queue_server.storage.migrate import migrate
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions
from tests.server_directory import server_directory

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The embedded PostgreSQL, without a supervisor around it."""
    with server_directory() as directory:
        database = EmbeddedPostgres(directory, pool_size=30)
        database.lock()
        database.start()
        try:
            yield database
        finally:
            database.stop(10)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database; cloning it is faster than migrating anew."""
    with psycopg.connect(postgres.conninfo, autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_queue")
    migrate(make_conninfo(postgres.conninfo, dbname="template_queue"))
    return "template_queue"


@pytest.fixture
def conninfo(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres.conninfo, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        yield make_conninfo(postgres.conninfo, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def transactions(conninfo: str) -> AsyncIterator[Transactions]:
    """Transactions on a pool of five connections to the test's database."""
    async with open_pool(
        conninfo,
        size=5,
        connection_timeout_ms=5000,
        statement_timeout_ms=10_000,
        lock_timeout_ms=5000,
    ) as pool:
        yield Transactions(pool)
