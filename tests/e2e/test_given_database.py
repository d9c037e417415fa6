"""A given database whose role or owner has presets of its own, or that cannot be used at all."""

import asyncio

import psycopg
import pytest

from tests.client import Client, eventually
from tests.cluster_process import ClusterProcess
from tests.databases import SharedPostgres


@pytest.mark.databases("embedded", "pg15", reason="a pooler drops the server's settings")
async def test_presets_of_the_database_change_nothing(
    postgres: SharedPostgres, own_database: str, conninfo: str
) -> None:
    for preset in (
        "client_encoding = 'LATIN1'",
        "default_transaction_isolation = 'repeatable read'",
        "array_nulls = off",
        "search_path = public, pg_catalog",
        "\"TimeZone\" = 'Asia/Tokyo'",
        "bytea_output = escape",
        "statement_timeout = '1ms'",
    ):
        postgres.execute(f"ALTER DATABASE {{}} SET {preset}", own_database)
    with ClusterProcess(env={"DATABASE_URL": conninfo, "DB_POOL_SIZE": "16"}) as cluster:
        async with Client(cluster.wait_ready(), fresh=True) as client:
            # A name and a payload of a script that LATIN1 lacks, wherever names are shown.
            await client.push("中文", ["😀"], ids=["идентификатор"])
            popped = await client.pop("中文")
            assert (popped.data, popped.ids) == (["😀"], ["идентификатор"])
            for path in ("/api/v1/resources/queues", "/api/v1/resources/overview"):
                assert (await client.get(path)).status == 200

            # A bound holds while pushes wait for the same row: see READ COMMITTED in push.sql.
            await client.configure("bound", {"maxSize": 2})
            await client.push("bound", [0])
            pushes: list[asyncio.Task[int]] = []

            async def push() -> int:
                item = {"queue": "bound", "partition": str(len(pushes)), "payload": 1}
                return (await client.post("/api/v1/push", {"items": [item]})).status

            async def both_workers_wait() -> bool:
                pushes.append(asyncio.create_task(push()))
                row = watcher.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = %s AND wait_event_type = 'Lock'",
                    (own_database,),
                ).fetchone()
                return row is not None and row[0] >= 2

            direct = postgres.direct_conninfo(own_database)
            with (
                psycopg.connect(postgres.admin_conninfo, autocommit=True) as watcher,
                psycopg.connect(direct, options="-c statement_timeout=0") as holder,
            ):
                holder.execute("SELECT FROM queen.queues WHERE name = 'bound' FOR NO KEY UPDATE")
                await eventually(both_workers_wait)
            statuses = await asyncio.gather(*pushes)
            assert sorted(statuses) == [201] + [409] * (len(pushes) - 1)


@pytest.mark.databases("embedded", reason="the kinds differ in nothing here")
def test_a_database_that_is_not_utf8_ends_the_start_with_one_line(
    postgres: SharedPostgres,
) -> None:
    postgres.execute(
        "CREATE DATABASE {} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        " LOCALE_PROVIDER libc",
        "ascii",
    )
    try:
        with ClusterProcess(env={"DATABASE_URL": postgres.conninfo("ascii")}) as cluster:
            assert cluster.wait(30) == 1
            (failure,) = [one for one in cluster.records if one["level"] == "error"]
            assert "the database's encoding is SQL_ASCII" in failure["message"]
            assert "Traceback" not in cluster.output
    finally:
        postgres.execute("DROP DATABASE {} WITH (FORCE)", "ascii")
