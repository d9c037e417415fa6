"""Opens the connections of one worker.

When no connection is left and none can be made, nobody waits for one (storage/circuit.py).
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections import deque
from typing import Any, Self

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_server.storage.circuit import Circuit
from queue_server.storage.connections import (
    SessionState,
    SessionUnfit,
    pinned_conninfo,
    refuse,
)
from queue_server.storage.patience import PatientConnection
from queue_server.storage.statements import STATEMENTS
from queue_server.storage.transactions import Connection

# On top of what PostgreSQL itself allows a statement: for the way, and a machine that is busy.
SILENCE_MARGIN_S = 2.0

# For losses that the kernel can see: it gives a dead peer up within a quarter of a minute.
_KEEPALIVES = {
    "keepalives_idle": "5",  # seconds
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",  # milliseconds
}

_REPORT_INTERVAL_S = 60.0

logger = logging.getLogger(__name__)

# psycopg_pool reports each failed attempt to connect; once for an outage says enough.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class _LastUsedFirst(deque[Connection]):
    """The idle connections of a pool, which gives back on the right and takes on the left.

    Here it takes on the right too. The backend that was busy last has its memory in the
    processor's caches: it needs 15 % less for a small flush than one that waited for its turn.
    """

    popleft = deque.pop


class Pool(psycopg_pool.AsyncConnectionPool[Connection]):
    """psycopg's pool with a circuit; open it with `await pool.open()` in the worker's loop."""

    def __init__(self, conninfo: str, *, patience_s: float, **arguments: Any) -> None:
        alive: weakref.WeakSet[PatientConnection] = weakref.WeakSet()
        unfit = _UnfitReport()

        class OwnConnection(PatientConnection):
            """A connection of this pool."""

            @classmethod
            async def connect(cls, conninfo: str = "", **given: Any) -> Self:
                if not circuit.may_try():
                    check()
                    raise psycopg.OperationalError("not tried again yet")
                try:
                    connection = await super().connect(conninfo, **given)
                    connection.patience_s = patience_s
                    try:
                        await _settle(connection)
                    except BaseException:
                        await connection.close()
                        raise
                except Exception as exc:
                    if isinstance(exc, SessionUnfit):
                        unfit.report(exc)
                    circuit.failed()
                    check()
                    raise
                alive.add(connection)
                circuit.connected()
                return connection

        def check() -> None:
            # Without one more the others go on: the database may just have none to spare.
            if all(connection.closed for connection in alive):
                circuit.open()

        async def try_to_connect() -> None:
            with contextlib.suppress(psycopg.Error):
                connection = await OwnConnection.connect(conninfo, **arguments["kwargs"])
                await connection.close()

        circuit = self._circuit = Circuit(try_to_connect)
        super().__init__(conninfo, connection_class=OwnConnection, **arguments)
        self._pool = _LastUsedFirst()

    async def getconn(self, timeout: float | None = None) -> Connection:
        """Errors: as the pool's, and `StorageUnavailable` at once when there is no database."""
        if self._pool and not self._lock.locked():
            # There is one, and nobody takes it away meanwhile: no wait to be ended.
            return await super().getconn(timeout)
        async with self._circuit.wait_for_connection():
            return await super().getconn(timeout)

    async def close(self, timeout: float = 5.0) -> None:
        await self._circuit.stop()
        await super().close(timeout)


class _UnfitReport:
    """Logs why connections are refused: the same reason for each attempt, so now and then."""

    def __init__(self) -> None:
        self._reported_at = float("-inf")

    def report(self, exc: SessionUnfit) -> None:
        if time.monotonic() - self._reported_at > _REPORT_INTERVAL_S:
            self._reported_at = time.monotonic()
            logger.error("a connection to the database is not used: %s", exc)


async def _settle(connection: PatientConnection) -> None:
    """Errors: `SessionUnfit`."""
    # BEGIN then names the level itself, so transactions do not depend on a default.
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    cursor = await connection.execute(STATEMENTS["session_state"], prepare=False)
    row = await cursor.fetchone()
    assert row is not None
    state = SessionState(*row)
    # Behind a pooler the backend is not the one that said hello, and in transaction mode it is
    # another one each time: what one has prepared the next does not know.
    pooled = state.backend_pid != connection.info.backend_pid
    if pooled:
        connection.prepare_threshold = None
    elif not state.is_durable:
        await connection.execute(STATEMENTS["session_durable"], prepare=False)
        state = state.durable()
    if problems := state.problems():
        raise refuse(problems, pooled=pooled)


def open_pool(
    conninfo: str,
    *,
    size: int,
    connection_timeout_ms: int,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
) -> Pool:
    """A pool that is not open yet: `await pool.open()` in the worker's event loop.

    Units: *connection_timeout_ms* bounds the wait for a free connection, the others each statement.
    """
    given = conninfo_to_dict(conninfo)
    keepalives = {name: value for name, value in _KEEPALIVES.items() if given.get(name) is None}
    return Pool(
        make_conninfo(
            pinned_conninfo(
                conninfo,
                statement_timeout=statement_timeout_ms,
                lock_timeout=lock_timeout_ms,
                # A transaction of ours never rests between two statements: its worker hangs, or the
                # network between has gone silent, and others wait for its locks.
                idle_in_transaction_session_timeout=statement_timeout_ms,
            ),
            application_name=str(given.get("application_name") or "queue-server"),
            **keepalives,
        ),
        patience_s=statement_timeout_ms / 1000 + SILENCE_MARGIN_S,
        # Autocommit: a single statement is a transaction without BEGIN and COMMIT around it.
        # Every statement is prepared the first time; there are a few dozen. (Not behind a pooler.)
        kwargs={"autocommit": True, "prepare_threshold": 0},
        min_size=min(2, size),
        max_size=size,
        open=False,
        timeout=connection_timeout_ms / 1000,
        # The circuit says when to try again; the pool makes connections anew when they are asked
        # for. Its own pauses would grow to hours.
        reconnect_timeout=0,
    )
