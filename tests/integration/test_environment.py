"""No variable of libpq's in the operator's environment reaches a connection of the server."""

import pytest

from queue_server.storage.connections import connect
from tests.fix_db import pool_of
from tests.unit.test_libpq_variables import LISTED, UNLISTED

# The values that do most harm; the others get one that libpq refuses, or that leads nowhere.
HOSTILE = {
    "PGCLIENTENCODING": "LATIN1",
    "PGCHANNELBINDING": "require",
    "PGCONNECT_TIMEOUT": "never",
    "PGGSSENCMODE": "require",
    "PGHOSTADDR": "127.0.0.1",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGPORT": "1",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGTARGETSESSIONATTRS": "standby",
    "PGTZ": "Asia/Tokyo",
}
# Where a connection leads and how it works.
FACTS = (
    "SELECT current_setting('data_directory'), current_database(), current_user,"
    " current_setting('client_encoding'), current_setting('TimeZone'),"
    " current_setting('default_transaction_read_only'), current_setting('DateStyle')"
)


def facts_of(conninfo: str) -> tuple[object, ...] | None:
    with connect(conninfo) as connection:
        return connection.execute(FACTS).fetchone()


@pytest.mark.parametrize("name", [*LISTED, *UNLISTED])
async def test_a_variable_changes_nothing_about_a_connection(
    name: str, direct_conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = facts_of(direct_conninfo)
    assert before is not None
    assert before[3] == "UTF8"
    monkeypatch.setenv(name, HOSTILE.get(name, "hostile"))
    assert facts_of(direct_conninfo) == before
    monkeypatch.setenv(name, HOSTILE.get(name, "hostile"))
    async with pool_of(direct_conninfo) as pool, pool.connection() as connection:
        cursor = await connection.execute(FACTS)
        assert (await cursor.fetchone()) == before
