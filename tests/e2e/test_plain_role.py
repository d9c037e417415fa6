"""A role that owns its database and may do nothing else is enough, as docs/operating.md says."""

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.client import Client, unique
from tests.cluster_process import ClusterProcess
from tests.databases import SharedPostgres

pytestmark = pytest.mark.databases("embedded", "pg15", reason="the role logs in past PgBouncer")


async def test_the_owner_of_a_database_runs_a_server_on_it(postgres: SharedPostgres) -> None:
    name = unique("plain_role").replace("-", "_")
    with psycopg.connect(postgres.direct_conninfo("postgres"), autocommit=True) as admin:
        role = sql.Identifier(name)
        # As on the page.
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(role))
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
        try:
            url = make_conninfo(postgres.direct_conninfo(name), user=name)
            with ClusterProcess(env={"DATABASE_URL": url, "DB_POOL_SIZE": "6"}) as cluster:
                async with Client(cluster.wait_ready()) as client:
                    await client.push("orders", [1, 2])
                    popped = await client.pop("orders")
                    assert popped.data == [1, 2]
                    for message in popped.messages:
                        assert (await client.ack(message))["success"]
                    for look in ("/readyz", "/health", "/metrics/prometheus", "/api/v1/status"):
                        assert (await client.get(look)).status == 200
                assert cluster.stop() == 0, cluster.output[-5000:]
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))
