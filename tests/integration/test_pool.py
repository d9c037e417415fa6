"""Which connection a pool hands out."""

from tests.fix_db import pool_of


async def test_the_connection_used_last_comes_first(direct_conninfo: str) -> None:
    async with pool_of(direct_conninfo, size=4) as pool:
        async with pool.connection() as one, pool.connection() as two, pool.connection() as three:
            pids = [connection.info.backend_pid for connection in (one, two, three)]
        assert len(set(pids)) == 3
        # They are given back from the inside out.
        for _ in range(5):
            async with pool.connection() as connection:
                assert connection.info.backend_pid == pids[0]
        async with pool.connection(), pool.connection() as connection:
            assert connection.info.backend_pid == pids[1]
