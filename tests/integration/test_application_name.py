"""What the sessions of a server are called in PostgreSQL's views."""

import pytest
from psycopg.conninfo import make_conninfo

from tests.fix_db import pool_of


@pytest.mark.parametrize(("name", "shown"), [(None, "queue-server"), ("payroll", "payroll")])
async def test_a_name_that_the_connection_string_gives_is_kept(
    direct_conninfo: str, name: str | None, shown: str
) -> None:
    async with pool_of(make_conninfo(direct_conninfo, application_name=name)) as pool:
        await pool.open()
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT current_setting('application_name')")
            assert await cursor.fetchone() == (shown,)
