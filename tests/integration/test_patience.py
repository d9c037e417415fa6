"""How a connection waits for its answers: nothing hangs, nothing is left behind.

Cancelled, lost, idle, or with more to say than the system takes at once.
"""

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from queue_server.storage.patience import PatientConnection
from queue_server.storage.transactions import Transactions
from tests.client import eventually
from tests.fix_db import pool_of, until_ended

# Of another session: `pg_stat_activity` of a pooler's backends says nothing about ours.
pytestmark = pytest.mark.databases("embedded", "pg15", reason="PgBouncer keeps the backends")


def open_sockets() -> int:
    """Descriptors of this process that are sockets."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += str(path.readlink()).startswith("socket:")
    return count


async def test_who_gives_up_leaves_a_connection_that_can_be_used(direct_conninfo: str) -> None:
    async with (
        pool_of(direct_conninfo, statement_timeout_ms=60_000) as pool,
        await psycopg.AsyncConnection.connect(direct_conninfo, autocommit=True) as other,
    ):
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
            sleeps = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))

            async def has_begun() -> bool:
                cursor = await other.execute(
                    "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", (pid,)
                )
                return await cursor.fetchone() == ("PgSleep",)

            await eventually(has_begun)
            sleeps.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeps
            # The server sleeps no longer, and the next question gets its own answer.
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE
            cursor = await connection.execute("SELECT 7")
            assert await cursor.fetchone() == (7,)
        async with pool.connection() as connection:
            assert connection.info.backend_pid == pid


async def test_a_body_larger_than_the_system_takes_at_once(transactions: Transactions) -> None:
    body = os.urandom(1 << 20) * 24
    rows = await transactions.call(
        "SELECT length(%(body)s::bytea), %(body)s::bytea", {"body": body}
    )
    assert rows == [(len(body), body)]


async def test_connections_that_are_lost_while_idle_leave_no_descriptor(
    direct_conninfo: str,
) -> None:
    """The server ends them; the loop hears of it when nobody waits."""
    async with (
        pool_of(direct_conninfo) as pool,
        await psycopg.AsyncConnection.connect(direct_conninfo, autocommit=True) as other,
    ):
        transactions = Transactions(pool)
        counts = []
        for _ in range(8):
            ((pid,),) = await transactions.call("SELECT pg_backend_pid()", {})
            counts.append(open_sockets())
            await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            await until_ended(other, pid)
        assert len(set(counts)) == 1, counts


async def test_what_comes_unasked_is_not_told_for_ever(direct_conninfo: str) -> None:
    """A notice for a connection on which nobody waits; after it, it is used as before."""
    async with (
        pool_of(direct_conninfo) as pool,
        pool.connection() as connection,
        await psycopg.AsyncConnection.connect(direct_conninfo, autocommit=True) as other,
    ):
        await connection.execute("LISTEN something")
        await other.execute("NOTIFY something")
        # What this process needs while it does nothing but wait.
        before = os.times()
        await asyncio.sleep(0.5)
        after = os.times()
        assert after.user + after.system - before.user - before.system < 0.25
        cursor = await connection.execute("SELECT 7")
        assert await cursor.fetchone() == (7,)


def _message(type_: bytes, body: bytes) -> bytes:
    return type_ + struct.pack("!i", len(body) + 4) + body


def shut_down(client: socket.socket) -> None:
    """As a server does that is stopped, while the client asks nothing."""
    client.sendall(_message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"))
    client.close()


def reset_in_an_answer(client: socket.socket) -> None:
    """A part of an answer, and the reset that comes before anybody has looked at it."""
    client.recv(65536)
    client.sendall(_message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0"))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


class ScriptedServer(threading.Thread):
    """As much of PostgreSQL as a connection and a statement need; then, on `go`, *end*."""

    def __init__(self, end: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._end = end
        self.go = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        port = self._listener.getsockname()[1]
        self.conninfo = f"host=127.0.0.1 port={port} user=x sslmode=disable gssencmode=disable"

    def run(self) -> None:
        with self._listener:
            client, _ = self._listener.accept()
        with client:
            client.settimeout(30)
            client.recv(65536)
            client.sendall(
                _message(b"R", struct.pack("!i", 0))
                + _message(b"S", b"server_version\00016.0\0")
                + _message(b"S", b"client_encoding\0UTF8\0")
                + _message(b"K", struct.pack("!ii", 1, 2))
                + _message(b"Z", b"I")
            )
            client.recv(65536)
            client.sendall(_message(b"C", b"SELECT 1\0") + _message(b"Z", b"I"))
            self.go.wait(30)
            self._end(client)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (shut_down, psycopg.errors.AdminShutdown),
        (reset_in_an_answer, psycopg.OperationalError),
    ],
)
async def test_a_lost_connection_is_known_at_once(
    end: Callable[[socket.socket], None], error: type[psycopg.Error]
) -> None:
    """Also where the socket has an error, of which uvloop tells once, and listens no more."""
    server = ScriptedServer(end)
    server.start()
    connection = await PatientConnection.connect(
        server.conninfo, autocommit=True, prepare_threshold=None
    )
    await connection.execute("SELECT")
    server.go.set()
    if end is shut_down:
        await asyncio.to_thread(server.join)
        await asyncio.sleep(0.05)  # the loop hears of it, and nobody waits
    asks = asyncio.create_task(connection.execute("SELECT"))
    if end is reset_in_an_answer:
        await asyncio.sleep(0)  # it has asked
        server.join()  # and this process does something else until all has come
    with pytest.raises(error) as lost:
        await asks
    assert type(lost.value) is error
    await connection.close()
