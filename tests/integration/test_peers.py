"""The database that a job queue gets when `make bench SCENARIO=peers` measures it."""

import psycopg
import pytest

from bench.peers import postgres
from tests.server_directory import server_directory


def test_a_peer_on_postgresql_has_a_durable_one_of_its_own() -> None:
    query = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"
    durable = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    with server_directory() as home, postgres.running(home) as database:
        with psycopg.connect(database.conninfo) as connection:
            assert dict(connection.execute(query, [list(durable)]).fetchall()) == durable
        assert database.number("SELECT count(*) FROM pg_stat_user_tables") == 0
        assert database.meter.read().postgres > 0
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database.conninfo)
