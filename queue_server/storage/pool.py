"""Opens the connections of one worker.

A network can lose a connection without a word: a cable, a firewall that forgets, a pooler that
hangs. Nothing would ever come back, and a flush that waits for it holds up all that come after. So
a connection is given up when the database says nothing for longer than a statement may run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from queue_server.storage.failures import Silence
from queue_server.storage.transactions import Connection

T = TypeVar("T")

# On top of what PostgreSQL itself allows a statement: for the way, and a machine that is busy.
SILENCE_MARGIN_S = 2.0

# For losses that the kernel can see: it gives a dead peer up within a quarter of a minute.
_KEEPALIVES = {
    "keepalives_idle": "5",  # seconds
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",  # milliseconds
}

# psycopg_pool reports each failed attempt to connect; once for an outage says enough.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class PatientConnection(psycopg.AsyncConnection[TupleRow]):
    """A connection that waits *patience_s* for an answer and no longer."""

    patience_s = 60.0

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Errors: `Silence` when nothing came; the connection is then closed."""
        hung_up = False

        def hang_up() -> None:
            # libpq is to find the connection closed, as if the other side had done it.
            nonlocal hung_up
            hung_up = True
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as own:
                own.shutdown(socket.SHUT_RDWR)

        timer = asyncio.get_running_loop().call_later(self.patience_s, hang_up)
        try:
            return await super().wait(gen, *args, **kwargs)
        except psycopg.OperationalError as exc:
            if hung_up:
                raise Silence(f"no answer within {self.patience_s} s") from exc
            raise
        finally:
            timer.cancel()


def open_pool(
    conninfo: str,
    *,
    size: int,
    connection_timeout_ms: int,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
) -> psycopg_pool.AsyncConnectionPool[Connection]:
    """A pool that is not open yet: `await pool.open()` in the worker's event loop.

    Units: *connection_timeout_ms* bounds the wait for a free connection, the others each statement.
    """

    async def configure(connection: Connection) -> None:
        assert isinstance(connection, PatientConnection)
        connection.patience_s = statement_timeout_ms / 1000 + SILENCE_MARGIN_S
        # Behind a pooler the backend is not the one that said hello, and in transaction mode it is
        # another one each time: what one has prepared the next does not know.
        cursor = await connection.execute("SELECT pg_backend_pid()", prepare=False)
        if await cursor.fetchone() != (connection.info.backend_pid,):
            connection.prepare_threshold = None

    given = conninfo_to_dict(conninfo)
    options = f"-c statement_timeout={statement_timeout_ms} -c lock_timeout={lock_timeout_ms}"
    if given.get("options"):
        options = f"{given['options']} {options}"
    return psycopg_pool.AsyncConnectionPool(
        make_conninfo(
            conninfo,
            options=options,
            application_name="queue-server",
            **{name: value for name, value in _KEEPALIVES.items() if given.get(name) is None},
        ),
        connection_class=PatientConnection,
        configure=configure,
        # Autocommit: a single statement is a transaction without BEGIN and COMMIT around it.
        # Every statement is prepared the first time; there are a few dozen. (Not behind a pooler.)
        kwargs={"autocommit": True, "prepare_threshold": 0},
        min_size=min(2, size),
        max_size=size,
        open=False,
        timeout=connection_timeout_ms / 1000,
        # After an outage keep trying for a day rather than give up; the pool backs off by itself.
        reconnect_timeout=86_400,
    )
