"""Every reason for which a transaction is repeated, provoked for real."""

import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import psycopg
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.push import Pusher, PushResult
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.message import NewMessage
from queue_server.observability.counters import Counters
from queue_server.storage.pool import SILENCE_MARGIN_S, open_pool
from queue_server.storage.transactions import ATTEMPTS_MAX, Connection, Transactions
from tests.fix_proxy import Proxy

needs_lock_timeout = pytest.mark.databases(
    "embedded", "pg15", reason="lock_timeout travels in what PgBouncer does not pass on"
)


@asynccontextmanager
async def counting(
    conninfo: str, lock_timeout_ms: int = 5000
) -> AsyncIterator[tuple[Transactions, Counter[str]]]:
    """Transactions whose repetitions are counted by reason."""
    reasons: Counter[str] = Counter()
    async with open_pool(
        conninfo,
        size=5,
        connection_timeout_ms=2000,
        statement_timeout_ms=10_000,
        lock_timeout_ms=lock_timeout_ms,
    ) as pool:
        yield Transactions(pool, on_retry=lambda reason: reasons.update([reason])), reasons


@pytest.fixture
async def table(conninfo: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A table `t` with the rows (1, 0) and (2, 0), and a connection beside the pool."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as other:
        await other.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int NOT NULL)")
        await other.execute("INSERT INTO public.t VALUES (1, 0), (2, 0)")
        yield other


async def fill_pool(transactions: Transactions, size: int) -> None:
    """Have the pool open all its connections, so that none is being opened afterwards."""
    barrier = asyncio.Barrier(size)

    async def hold(connection: Connection) -> None:
        await connection.execute("SELECT 1")
        await barrier.wait()

    await asyncio.gather(*(transactions.run(hold) for _ in range(size)))


async def values(connection: psycopg.AsyncConnection) -> list[int]:
    cursor = await connection.execute("SELECT n FROM public.t ORDER BY id")
    return [row[0] for row in await cursor.fetchall()]


def once(action: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    """Run *action* the first time only: the obstacle that a repetition does not meet."""
    calls = itertools.count()

    async def run() -> None:
        if next(calls) == 0:
            await action()

    return run


async def test_a_serialization_failure_repeats_the_whole_transaction(
    conninfo: str, table: psycopg.AsyncConnection
) -> None:
    interfere = once(lambda: table.execute("UPDATE public.t SET n = n + 10 WHERE id = 1"))

    async def work(connection: Connection) -> None:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SELECT n FROM public.t")
        await interfere()
        await connection.execute("UPDATE public.t SET n = n + 1 WHERE id IN (1, 2)")

    async with counting(conninfo) as (transactions, reasons):
        await transactions.run(work)
        assert reasons == {"40001": 1}
    assert await values(table) == [11, 1]


async def test_a_deadlock_repeats_the_loser_as_a_whole(
    conninfo: str, table: psycopg.AsyncConnection
) -> None:
    # Each holds one row before either asks for the other's, in the first round only.
    barrier = asyncio.Barrier(2)

    def transfer(first: int, second: int) -> Callable[[Connection], Awaitable[None]]:
        meet = once(barrier.wait)

        async def work(connection: Connection) -> None:
            await connection.execute("UPDATE public.t SET n = n + 1 WHERE id = %s", (first,))
            await meet()
            await connection.execute("UPDATE public.t SET n = n + 1 WHERE id = %s", (second,))

        return work

    async with counting(conninfo) as (transactions, reasons):
        await asyncio.gather(transactions.run(transfer(1, 2)), transactions.run(transfer(2, 1)))
        assert reasons["40P01"] >= 1
        assert set(reasons) == {"40P01"}
    assert await values(table) == [2, 2]


@needs_lock_timeout
async def test_a_lock_that_does_not_come_repeats_the_transaction(
    conninfo: str, table: psycopg.AsyncConnection
) -> None:
    async with counting(conninfo, lock_timeout_ms=50) as (transactions, reasons):
        async with table.transaction():
            await table.execute("UPDATE public.t SET n = 5 WHERE id = 1")
            running = asyncio.create_task(
                transactions.call("UPDATE public.t SET n = n + 1 WHERE id = 1 RETURNING n", {})
            )
            while not reasons["55P03"]:
                await asyncio.sleep(0.01)
        assert await running == [(6,)]
        assert set(reasons) == {"55P03"}


async def test_a_statement_in_a_failed_transaction_repeats_the_whole(
    conninfo: str, table: psycopg.AsyncConnection
) -> None:
    """25P02 hides what went wrong before; the server this one replaces dropped it."""
    calls = itertools.count()

    async def work(connection: Connection) -> None:
        await connection.execute("UPDATE public.t SET n = n + 1 WHERE id = 1")
        if next(calls) == 0:
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1 / 0")
        await connection.execute("UPDATE public.t SET n = n + 1 WHERE id = 2")

    async with counting(conninfo) as (transactions, reasons):
        await transactions.run(work)
        assert reasons == {"25P02": 1}
    assert await values(table) == [1, 1]


async def test_a_terminated_backend_repeats_the_whole_on_another_connection(
    conninfo: str, table: psycopg.AsyncConnection
) -> None:
    calls = itertools.count()

    async def work(connection: Connection) -> None:
        await connection.execute("UPDATE public.t SET n = n + 1 WHERE id = 1")
        if next(calls) == 0:
            # Asked for here: behind a pooler the connection does not know.
            cursor = await connection.execute("SELECT pg_backend_pid()")
            await table.execute("SELECT pg_terminate_backend(%s)", await cursor.fetchone())
        await connection.execute("UPDATE public.t SET n = n + 1 WHERE id = 2")

    async with counting(conninfo) as (transactions, reasons):
        await transactions.run(work)
        assert reasons == {"connection_lost": 1}
    assert await values(table) == [1, 1]


async def test_an_outage_of_every_pooled_connection_costs_one_repetition(
    proxied: str, proxy: Proxy
) -> None:
    """The first lost connection has its neighbours checked: no attempt is spent on each."""
    async with counting(proxied) as (transactions, reasons):
        # One that breaks while it is opened says that there is no database (storage/circuit.py).
        await fill_pool(transactions, 5)
        proxy.cut()
        assert await transactions.call("SELECT 1", {}) == [(1,)]
        assert reasons == {"connection_lost": 1}


@needs_lock_timeout
async def test_attempts_are_bounded(conninfo: str, table: psycopg.AsyncConnection) -> None:
    async with counting(conninfo, lock_timeout_ms=10) as (transactions, reasons):
        async with table.transaction():
            await table.execute("UPDATE public.t SET n = 5 WHERE id = 1")
            with pytest.raises(StorageUnavailable):
                await transactions.call("UPDATE public.t SET n = n + 1 WHERE id = 1", {})
        assert reasons == {"55P03": ATTEMPTS_MAX - 1}


async def test_an_error_of_our_own_is_not_repeated(
    conninfo: str, table: psycopg.AsyncConnection
) -> None:
    calls = itertools.count()

    async def work(connection: Connection) -> None:
        next(calls)
        await connection.execute("INSERT INTO public.t VALUES (1, 0)")

    async with counting(conninfo) as (transactions, reasons):
        with pytest.raises(psycopg.errors.UniqueViolation):
            await transactions.run(work)
        assert not reasons
    assert next(calls) == 1


@asynccontextmanager
async def pusher(conninfo: str) -> AsyncIterator[tuple[Pusher, Counter[str]]]:
    async with counting(conninfo) as (transactions, reasons):
        row = Counters(1).worker(0)
        yield Pusher(transactions, Directory(transactions), Rooms(), row, Keyring()), reasons


def message(transaction_id: str, partition: str = "p") -> NewMessage:
    return NewMessage(
        queue="q", payload=msgspec.Raw(b"1"), partition=partition, transaction_id=transaction_id
    )


async def stored_ids(conninfo: str) -> int:
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT coalesce(sum(next_offset - base_offset), 0)::int FROM queen.segments"
        )
        row = await cursor.fetchone()
        assert row is not None
        count: int = row[0]
        return count


async def test_a_lost_answer_about_duplicates_is_asked_for_again(
    conninfo: str, proxied: str, proxy: Proxy
) -> None:
    """The first answer of a push with a duplicate says so, and nothing was written then."""
    async with pusher(proxied) as (push, reasons):
        await push.push([message("before")], 10)
        # The text of a short body is not compressed, so the proxy can see the id in it.
        proxy.swallow = b"lost-1"
        items = [message("lost-1"), message("lost-2"), message("lost-1"), message("before")]
        results = msgspec.json.decode(await push.push(items, 10), type=list[PushResult])
        assert proxy.swallowed.is_set()
        assert reasons == {"connection_lost": 1}
        assert [(r.status, r.offset) for r in results] == [
            ("queued", 1),
            ("queued", 2),
            ("duplicate", 1),
            ("duplicate", 0),
        ]
    assert await stored_ids(conninfo) == 3


async def test_a_push_whose_commit_answer_was_lost_reports_what_really_happened(
    conninfo: str, proxied: str, proxy: Proxy
) -> None:
    """It was stored, so it is `queued` with the offset and ids it has, and stored once."""
    async with pusher(proxied) as (push, reasons):
        await push.push([message("before")], 10)
        ids = [f"lost-{uuid.uuid4()}" for _ in range(3)]
        proxy.swallow = ids[0].encode()
        results = msgspec.json.decode(
            await push.push([message(id_) for id_ in ids], 10), type=list[PushResult]
        )
        assert proxy.swallowed.is_set()
        assert reasons == {"connection_lost": 1}
        assert [(r.status, r.offset) for r in results] == [
            ("queued", 1),
            ("queued", 2),
            ("queued", 3),
        ]
        # The ids of the answer are those that are stored.
        again = msgspec.json.decode(
            await push.push([message(id_) for id_ in ids], 10), type=list[PushResult]
        )
        assert [r.status for r in again] == ["duplicate"] * 3
        assert [r.message_id for r in again] == [r.message_id for r in results]
    assert await stored_ids(conninfo) == 4


async def test_a_connection_that_falls_silent_is_given_up(conninfo: str, proxy: Proxy) -> None:
    """It is not waited for longer than a statement may run, nor are its neighbours in the pool."""
    reasons: Counter[str] = Counter()
    async with open_pool(
        proxy.leads_to(conninfo),
        size=4,
        connection_timeout_ms=2000,
        statement_timeout_ms=200,
        lock_timeout_ms=200,
    ) as pool:
        await pool.wait()
        transactions = Transactions(pool, on_retry=lambda reason: reasons.update([reason]))
        await fill_pool(transactions, 4)
        proxy.silent = True
        began = time.monotonic()
        call = asyncio.create_task(transactions.call("SELECT 1", {}))
        await asyncio.sleep(0.1)
        proxy.silent = False
        assert await call == [(1,)]
        assert time.monotonic() - began < 0.2 + SILENCE_MARGIN_S + 1
        assert reasons == {"connection_lost": 1}
        assert await transactions.call("SELECT 2", {}) == [(2,)]
        assert reasons == {"connection_lost": 1}
