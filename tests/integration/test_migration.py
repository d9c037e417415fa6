"""A new database gets the schema of this version, and a database of this version that of the next.

There is one migration so far, so the next version is made up: the files of this one, a migration
that adds to tables which every push and pop reads, and functions that were edited.
"""

import itertools
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
import pytest

from queue_server.broker.ack import Ack, Acker
from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher, PushResult
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, ConsumerGroup, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import migrate as migrate_module
from queue_server.storage.migrate import Plan, SchemaError, is_right, migrate, plan
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions
from tests.databases import SharedPostgres

FIRST = "migrations/0001_pre_initial.sql"
FILES = migrate_module._files("migrations") | migrate_module._files("functions")

ADDS = {
    "migrations/9001_pre_colour.sql": """
        ALTER TABLE queen.queues ADD COLUMN colour text NOT NULL DEFAULT 'grey';
        ALTER TABLE queen.cursors ADD COLUMN colour text;
        CREATE TABLE queen.colours (colour text PRIMARY KEY);
        INSERT INTO queen.colours SELECT DISTINCT q.colour FROM queen.queues q;
    """
}
TAKES_AWAY = {"migrations/9002_post_colour.sql": "DROP TABLE queen.colours;"}
EDITED = {
    name: FILES[name] + "-- Edited.\n"
    for name in ("functions/push.sql", "functions/pop.sql", "functions/ack.sql")
}
NEXT = FILES | ADDS | EDITED


@pytest.fixture
def empty(postgres: SharedPostgres) -> Iterator[str]:
    """A database without any schema."""
    with postgres.database() as name:
        yield postgres.conninfo(name)


@pytest.fixture
def current(empty: str) -> str:
    """A database as this version makes it."""
    migrate(empty)
    return empty


def use(patch: pytest.MonkeyPatch, files: Mapping[str, str]) -> None:
    """Be the version that has these files."""

    def files_in(folder: str) -> dict[str, str]:
        return {name: files[name] for name in sorted(files) if name.startswith(f"{folder}/")}

    patch.setattr(migrate_module, "_files", files_in)


def ask(conninfo: str, query: str) -> list[Any]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def plan_for(conninfo: str) -> Plan:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return plan(connection)


def state_of(conninfo: str) -> list[Any]:
    """Return the tables, indexes, constraints and functions, and what is recorded as applied."""
    return [
        ask(conninfo, query)
        for query in (
            "SELECT table_name, column_name, data_type, column_default, is_nullable"
            " FROM information_schema.columns WHERE table_schema = 'queen' ORDER BY 1, 2",
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'queen' ORDER BY 1",
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'queen'::regnamespace ORDER BY 1, 2",
            "SELECT relname, reloptions FROM pg_class"
            " WHERE relnamespace = 'queen'::regnamespace ORDER BY 1",
            "SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = 'queen'::regnamespace"
            " ORDER BY 1",
            "SELECT name, checksum, applied_at FROM public.queue_server_schema ORDER BY 1",
        )
    ]


class Server:
    """The broker of this version, for one queue."""

    def __init__(self, transactions: Transactions) -> None:
        directory, rooms, row = Directory(transactions), Rooms(), Counters(1).worker(0)
        keyring, pace = Keyring(), Pace()
        self.pusher = Pusher(transactions, directory, rooms, row, keyring)
        self.popper = Popper(transactions, directory, rooms, row, keyring, pace)
        self.acker = Acker(transactions, directory, rooms, row, keyring, pace)

    async def push(self, *ids: str) -> list[str]:
        messages = [NewMessage("q", partition="p", transaction_id=id_) for id_ in ids]
        answer = await self.pusher.push(messages, 100)
        return [result.status for result in msgspec.json.decode(answer, type=list[PushResult])]

    async def pop(self, limit: int) -> list[dict[str, Any]]:
        answer = await self.popper.pop(
            PopRequest(QueueName("q"), QUEUE_MODE, ALL, message_limit=limit)
        )
        delivery = answer.delivery
        if delivery is None:
            return []
        claim = (
            f',"leaseId":"{delivery.lease_id}","partitionId":"{delivery.claims[0].partition_id}"'
        )
        text = b"".join(
            [chunk async for chunk in self.popper.chunks(delivery, lambda *_: claim.encode())]
        )
        messages = json.loads(b"[" + text + b"]")
        assert isinstance(messages, list)
        return messages

    async def ack(self, messages: list[dict[str, Any]]) -> list[bool]:
        acks = [
            Ack(one["transactionId"], one["partitionId"], lease_id=one["leaseId"])
            for one in messages
        ]
        outcomes = await self.acker.ack(acks, ConsumerGroup(QUEUE_MODE))
        return [outcome.result.success for outcome in outcomes]


@asynccontextmanager
async def serving(conninfo: str) -> AsyncIterator[Server]:
    async with open_pool(
        conninfo, size=3, connection_timeout_ms=5000, statement_timeout_ms=10_000,
        lock_timeout_ms=5000,
    ) as pool:  # fmt: skip
        yield Server(Transactions(pool))


def test_a_new_database_gets_every_file_once(empty: str) -> None:
    planned = plan_for(empty)
    assert planned.problem is None
    assert planned.migrations + planned.functions == list(FILES)
    assert migrate(empty) == len(FILES)
    before = state_of(empty)
    assert migrate(empty) == 0
    assert state_of(empty) == before
    assert plan_for(empty).is_current


async def test_old_and_new_version_serve_a_migrated_database_side_by_side(
    current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On SIGHUP, and with several hosts, old workers run on with the statements they have prepared.
    async with serving(current) as old:
        for n in range(6):  # psycopg prepares a statement that is repeated
            assert await old.push(f"early {n}") == ["queued"]
            assert await old.ack(await old.pop(1)) == [True]
        assert await old.push("a", "b", "c", "d") == ["queued"] * 4
        leased = await old.pop(2)
        assert [one["transactionId"] for one in leased] == ["a", "b"]

        use(monkeypatch, NEXT)
        planned = plan_for(current)
        assert (planned.migrations, planned.problem) == (list(ADDS), None)
        assert planned.functions == sorted(EDITED)
        assert migrate(current) == len(ADDS) + len(EDITED)
        assert migrate(current) == 0
        assert ask(current, "SELECT colour FROM queen.colours") == [("grey",)]

        async with serving(current) as new:
            # The lease holds for both; what one pushes and acknowledges the other finds.
            assert await new.pop(10) == []
            assert await old.ack(leased) == [True, True]
            assert await new.push("d", "e") == ["duplicate", "queued"]
            assert await old.push("e", "f") == ["duplicate", "queued"]
            rest = await old.pop(2)
            assert [one["transactionId"] for one in rest] == ["c", "d"]
            assert await new.ack(rest) == [True, True]
            rest = await new.pop(10)
            assert [one["transactionId"] for one in rest] == ["e", "f"]
            assert await old.ack(rest) == [True, True]


def test_a_version_works_with_what_only_adds_and_not_with_what_takes_away(
    current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def applied() -> list[str]:
        rows = ask(current, "SELECT name FROM public.queue_server_schema")
        return [name for (name,) in rows if name.startswith("migrations/")]

    assert is_right(applied())
    with monkeypatch.context() as patch:
        use(patch, NEXT)
        assert not is_right(applied())  # the next version needs its own migration
        migrate(current)
        assert is_right(applied())
    assert is_right(applied())
    with monkeypatch.context() as patch:
        use(patch, NEXT | TAKES_AWAY)
        migrate(current)
        assert is_right(applied())
    assert not is_right(applied())


def test_files_are_named_by_number_and_kind() -> None:
    names = list(migrate_module._files("migrations"))
    matches = [re.fullmatch(r"migrations/(\d{4})_(pre|post)_\w+\.sql", name) for name in names]
    assert all(matches), names
    numbers = [match[1] for match in matches if match]
    assert len(set(numbers)) == len(numbers), names


@pytest.mark.parametrize("start", ["empty", "current"])
def test_several_that_migrate_at_once_do_it_once(
    start: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two hosts start their supervisors at the same moment.
    conninfo: str = request.getfixturevalue(start)
    use(monkeypatch, NEXT)
    counts: list[int | Exception] = []
    barrier = threading.Barrier(6)

    def run() -> None:
        barrier.wait()
        try:
            counts.append(migrate(conninfo))
        except Exception as exc:
            counts.append(exc)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    missing = len(NEXT) if start == "empty" else len(ADDS) + len(EDITED)
    assert sorted(counts, key=str) == [0] * 5 + [missing], counts
    assert ask(conninfo, "SELECT count(*) FROM public.queue_server_schema") == [(len(NEXT),)]


def test_a_migration_that_was_edited_after_it_was_applied_is_refused(
    current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(current)
    use(monkeypatch, NEXT | {FIRST: FILES[FIRST] + "-- Edited.\n"})
    message = rf"{FIRST} was changed after it had been applied"
    assert re.match(message, plan_for(current).problem or "")
    with pytest.raises(SchemaError, match=message):
        migrate(current)
    assert state_of(current) == before


def test_a_database_of_a_newer_version_is_refused(
    current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        use(patch, NEXT)
        migrate(current)
    before = state_of(current)
    message = rf"newer than this server: it has {next(iter(ADDS))}; start the newer version"
    assert re.search(message, plan_for(current).problem or "")
    with pytest.raises(SchemaError, match=message):
        migrate(current)
    assert state_of(current) == before


def test_a_server_that_is_too_old_is_refused_before_anything_is_done(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "_SERVER_VERSION_MIN", 990_000)
    with pytest.raises(SchemaError, match=r"PostgreSQL \d+ is too old: 99 or newer is needed"):
        migrate(empty)
    assert ask(empty, "SELECT to_regclass('public.queue_server_schema')") == [(None,)]


async def test_a_migration_that_ends_midway_leaves_the_old_schema(
    current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(current)
    ends = {
        "SELECT 1 / 0;": psycopg.errors.DivisionByZero,
        "SELECT pg_terminate_backend(pg_backend_pid());": psycopg.OperationalError,  # a crash
    }
    for folder, (end, error) in itertools.product(("migrations", "functions"), ends.items()):
        with monkeypatch.context() as patch:
            use(patch, NEXT | {f"{folder}/9999_pre_bad.sql": f"CREATE TABLE queen.half (); {end}"})
            with pytest.raises(error):
                migrate(current)
        assert state_of(current) == before, (folder, end)
    # This version goes on, and a repaired next one gets through.
    async with serving(current) as server:
        assert await server.push("a") == ["queued"]
    use(monkeypatch, NEXT)
    assert migrate(current) == len(ADDS) + len(EDITED)


async def test_a_migration_does_not_make_everybody_wait_behind_a_long_reader(
    current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a pg_dump has: a statement that waits for a table that it reads has all later readers wait.
    monkeypatch.setattr(migrate_module, "_LOCK_TIMEOUT_MS", 200)
    use(monkeypatch, NEXT)
    with psycopg.connect(current) as reader:
        reader.execute("SELECT count(*) FROM queen.cursors")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            migrate(current)
        async with serving(current) as server:
            assert await server.push("a") == ["queued"]
    assert migrate(current) == len(ADDS) + len(EDITED)
