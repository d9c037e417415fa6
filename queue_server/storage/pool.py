"""Opens the connections of one worker."""

from __future__ import annotations

import logging

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_server.storage.transactions import Connection

# psycopg_pool reports each failed attempt to connect; once for an outage says enough.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


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
    given = conninfo_to_dict(conninfo)
    options = f"-c statement_timeout={statement_timeout_ms} -c lock_timeout={lock_timeout_ms}"
    if given.get("options"):
        options = f"{given['options']} {options}"
    return psycopg_pool.AsyncConnectionPool(
        make_conninfo(conninfo, options=options, application_name="queue-server"),
        connection_class=psycopg.AsyncConnection,
        # Autocommit: a single statement is a transaction without BEGIN and COMMIT around it.
        # Every statement is prepared the first time; there are a few dozen.
        kwargs={"autocommit": True, "prepare_threshold": 0},
        min_size=min(2, size),
        max_size=size,
        open=False,
        timeout=connection_timeout_ms / 1000,
        # After an outage keep trying for a day rather than give up; the pool backs off by itself.
        reconnect_timeout=86_400,
    )
