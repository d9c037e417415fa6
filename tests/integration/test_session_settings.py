"""What a role or a database presets for its sessions changes nothing that the server relies on."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from queue_server.domain.errors import StorageUnavailable
from queue_server.storage.connections import PINNED, SessionState
from queue_server.storage.migrate import SchemaError, migrate
from queue_server.storage.transactions import Connection, Transactions
from tests.databases import PgBouncer, SharedPostgres, Unavailable
from tests.fix_db import pool_of
from tests.server_directory import server_directory

# Each as far from what the server needs as PostgreSQL allows.
HOSTILE = {
    "default_transaction_isolation": "repeatable read",
    "search_path": "queen, public, pg_catalog",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "plan_cache_mode": "force_generic_plan",
    "client_encoding": "LATIN1",
    "synchronous_commit": "off",
}


def preset(postgres: SharedPostgres, name: str, settings: dict[str, str]) -> None:
    for setting, value in settings.items():
        with psycopg.connect(postgres.admin_conninfo, autocommit=True) as connection:
            # A list is several values, which a quoted text would not be.
            values = sql.SQL(", ").join(sql.Literal(one.strip()) for one in value.split(","))
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    sql.Identifier(name), sql.Identifier(setting), values
                )
            )


async def test_a_connection_works_as_the_server_needs_it(
    postgres: SharedPostgres, own_database: str
) -> None:
    assert set(HOSTILE) >= set(PINNED)
    preset(postgres, own_database, HOSTILE)
    conninfo = postgres.direct_conninfo(own_database)
    assert migrate(conninfo) == 0
    async with pool_of(conninfo) as pool:
        found = {}
        for name in HOSTILE:
            async with pool.connection() as connection:
                cursor = await connection.execute(f"SHOW {name}")
                ((found[name],),) = await cursor.fetchall()
        assert found == PINNED | {"client_encoding": "UTF8", "synchronous_commit": "on"}


async def test_transactions_name_their_isolation_themselves(
    transactions: Transactions,
) -> None:
    async def level(connection: Connection) -> str:
        # The default of the session, as a pooler may change it under a connection.
        cursor = await connection.execute("SHOW transaction_isolation")
        row = await cursor.fetchone()
        assert row is not None
        return str(row[0])

    async def stricter(connection: Connection) -> None:
        await connection.execute("SET default_transaction_isolation = 'serializable'")

    await transactions.run(stricter)
    assert await transactions.run(level) == "read committed"


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_a_database_that_is_not_utf8_is_refused(postgres: SharedPostgres, encoding: str) -> None:
    postgres.execute(
        f"CREATE DATABASE {{}} ENCODING '{encoding}' TEMPLATE template0"
        " LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'",
        "narrow",
    )
    try:
        with pytest.raises(SchemaError, match=f"encoding is {encoding}.*ENCODING 'UTF8'"):
            migrate(postgres.direct_conninfo("narrow"))
    finally:
        postgres.execute("DROP DATABASE {} WITH (FORCE)", "narrow")


async def test_a_session_without_triggers_is_refused(
    postgres: SharedPostgres, own_database: str
) -> None:
    preset(postgres, own_database, {"session_replication_role": "replica"})
    conninfo = postgres.direct_conninfo(own_database)
    with pytest.raises(SchemaError, match="session_replication_role = replica"):
        migrate(conninfo)
    async with pool_of(conninfo) as pool:
        with pytest.raises(StorageUnavailable):
            await Transactions(pool).call("SELECT 1", {})


def test_problems_name_setting_and_value() -> None:
    schemas = ["pg_temp_3", "pg_catalog", "public"]
    assert SessionState(1, "read committed", "on", "local", "local", schemas).problems() == []
    unfit = SessionState(1, "serializable", "off", "replica", "off", ["evil", "pg_catalog"])
    assert unfit.problems() == [
        "default_transaction_isolation = serializable",
        "array_nulls = off",
        "session_replication_role = replica",
        "synchronous_commit = off",
        "search_path = evil, pg_catalog",
    ]
    assert unfit.durable().problems()[3:] == ["search_path = evil, pg_catalog"]


@pytest.fixture
def bouncer(postgres: SharedPostgres, own_database: str) -> Iterator[PgBouncer]:
    with server_directory() as folder:
        folder.parent.chmod(0o755)
        try:
            bouncer = PgBouncer(postgres.direct_conninfo(own_database), folder, pool_size=2)
        except Unavailable as exc:
            pytest.skip(str(exc))
        try:
            bouncer.wait_ready()
            yield bouncer
        finally:
            bouncer.stop()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("default_transaction_isolation", "serializable"),
        ("synchronous_commit", "off"),
        ("array_nulls", "off"),
        ("search_path", "queen, pg_catalog"),
    ],
)
async def test_behind_a_pooler_what_cannot_be_set_is_refused(
    bouncer: PgBouncer, postgres: SharedPostgres, own_database: str, setting: str, value: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    assert migrate(bouncer.conninfo) == 0
    async with pool_of(bouncer.conninfo) as pool:
        assert await Transactions(pool).call("SHOW client_encoding", {}) == [("UTF8",)]
    preset(postgres, own_database, {setting: value})
    # Its backends were there before the change.
    with psycopg.connect(postgres.admin_conninfo, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            (own_database,),
        )
    with pytest.raises(SchemaError, match=f"{setting} = {value}.*pooler"):
        migrate(bouncer.conninfo)
    async with pool_of(bouncer.conninfo) as pool:
        with pytest.raises(StorageUnavailable):
            await Transactions(pool).call("SELECT 1", {})
    assert f"{setting} = {value}" in caplog.text
