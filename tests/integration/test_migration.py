"""A database of an earlier version becomes one of this version, with everything in it.

`old_schemas/0001/` holds the migration and the functions of the first version as they were, and is
never changed. The test writes with those functions, migrates, and reads with today's code.
"""

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
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
from queue_server.domain.ids import id_keys, id_ranges
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, ConsumerGroup, QueueName
from queue_server.domain.options import OptionChanges
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import leases, queues
from queue_server.storage import migrate as migrate_module
from queue_server.storage.migrate import SchemaError, migrate
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions
from tests.client import uuid7
from tests.databases import SharedPostgres

OLD = Path(__file__).parent / "old_schemas" / "0001"

FILES = migrate_module._files


def old_files(folder: str) -> dict[str, str]:
    return {
        f"{folder}/{file.name}": file.read_text(encoding="utf-8")
        for file in sorted((OLD / folder).glob("*.sql"))
    }


@pytest.fixture
def empty(postgres: SharedPostgres) -> Iterator[str]:
    """A database without any schema."""
    with postgres.database() as name:
        yield postgres.conninfo(name)


@pytest.fixture
def old(empty: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database as the first version made it."""
    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, "_files", old_files)
        assert migrate(empty) == len(old_files("migrations")) + len(old_files("functions"))
    return empty


def ask(conninfo: str, query: str) -> list[Any]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


class OldServer:
    """What the first version did with its functions, for a queue `q`."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.queue_id = self._call(
            "ensure_queue(gen_random_uuid(), 'q', 'q', '', 60)", "o_queue_id"
        )
        self.partition_id = self._call(
            f"ensure_partitions(1::smallint, '{self.queue_id}', '{{p}}')", "o_partition_id"
        )

    def _call(self, call: str, column: str) -> Any:
        row = self.connection.execute(f"SELECT {column} FROM queen.{call}".encode()).fetchone()
        assert row is not None
        return row[0]

    def subscribe(self, group: str) -> int:
        id_ = self._call(
            f"subscribe('{self.queue_id}', '{group}', true, 'all', NULL)", "o_subscription_id"
        )
        while self._call(f"backfill_subscription(1::smallint, {id_}, 1000)", "*"):
            pass
        return int(id_)

    def push(self, ids: list[str], payloads: list[Any]) -> None:
        first = uuid.uuid4()
        body = ",".join(
            f'{{"offset":\x01,"id":"{uuid.UUID(int=first.int + i)}","transactionId":"{id_}",'
            f'"traceId":null,"data":{json.dumps(payload)},"producerSub":null}}'
            for i, (id_, payload) in enumerate(zip(ids, payloads, strict=True))
        ).encode()
        keys = id_keys(ids)
        ranges = id_ranges(keys)
        count = len(ranges)
        cursor = self.connection.execute(
            b"SELECT * FROM queen.push(1::smallint, %s::bigint[], '{0}', %s::integer[], %s::uuid[],"
            b" %s::integer[], '{0}', %s::bytea[], %s::bytea[], %s::integer[], %s::bigint[],"
            b" %s::integer[], %s::bytea[], %s::bytea[], %s::bytea[])",
            (
                [self.partition_id], [len(ids)], [first], [len(body)], [keys], [body],
                [1] * count, [self.partition_id] * count, [0] * count, [r.min for r in ranges],
                [r.max for r in ranges], [r.scan_max for r in ranges],
            ),
        )  # fmt: skip
        row = cursor.fetchone()
        assert row is not None
        assert row[0] == "stored"

    def pop(self, subscription_id: int, limit: int, lease_id: uuid.UUID) -> None:
        self.connection.execute(
            b"SELECT * FROM queen.pop(1::smallint, %s::integer[], '{0}', '{0}', %s::integer[],"
            b" '{1}', '{600}', %s::uuid[], '{f}', 1000000, 1000000)",
            ([subscription_id], [limit], [lease_id]),
        )

    def ack(self, subscription_id: int, lease_id: uuid.UUID, ids: list[str]) -> None:
        cursor = self.connection.execute(
            b"SELECT o_applied FROM queen.ack(1::smallint, '{0}', %s::bigint[], %s::integer[],"
            b" %s::uuid[], %s::bytea[])",
            ([self.partition_id], [subscription_id], [lease_id], [id_keys(ids)]),
        )
        assert cursor.fetchone() == (True,)

    def bury(self, group: str, offset: int, id_: str) -> None:
        self.connection.execute(
            b"INSERT INTO queen.dead_letters (shard, id, partition_id, queue_id, consumer_group,"
            b" message_offset, message_id, transaction_id, payload, error_message, retry_count,"
            b" created_at) VALUES (1, gen_random_uuid(), %s, %s, %s, %s, gen_random_uuid(), %s,"
            b" '{\"n\": 1}', 'poison', 3, now())",
            (self.partition_id, self.queue_id, group, offset, id_),
        )


class NewServer:
    """Today's broker on one pool."""

    def __init__(self, transactions: Transactions) -> None:
        directory, rooms, row = Directory(transactions), Rooms(), Counters(1).worker(0)
        keyring, pace = Keyring(), Pace()
        self.pusher = Pusher(transactions, directory, rooms, row, keyring)
        self.popper = Popper(transactions, directory, rooms, row, keyring, pace)
        self.acker = Acker(transactions, directory, rooms, row, keyring, pace)

    async def pop(self, group: str = QUEUE_MODE) -> list[dict[str, Any]]:
        answer = await self.popper.pop(
            PopRequest(QueueName("q"), ConsumerGroup(group), ALL, message_limit=100)
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

    async def ack(
        self, ids: list[str], partition_id: int | str, lease_id: object, group: str = QUEUE_MODE
    ) -> list[bool]:
        acks = [Ack(id_, str(partition_id), lease_id=str(lease_id)) for id_ in ids]
        outcomes = await self.acker.ack(acks, ConsumerGroup(group))
        return [outcome.result.success for outcome in outcomes]


async def test_a_database_of_the_first_version_is_migrated_and_served(old: str) -> None:
    ids = [uuid7() for _ in range(5)] + [str(uuid.uuid4()), "not a uuid", "ünïcode"]
    payloads: list[Any] = [{"n": n} for n in range(len(ids))]
    lease_id = uuid.uuid4()
    with psycopg.connect(old, autocommit=True) as connection:
        server = OldServer(connection)
        reader = server.subscribe(QUEUE_MODE)
        server.push(ids[:3], payloads[:3])
        server.push(ids[3:], payloads[3:])
        server.subscribe("late")
        # Three committed, of which one is a dead letter; then a live lease on two.
        server.pop(reader, 3, uuid.UUID(int=1))
        server.ack(reader, uuid.UUID(int=1), ids[:3])
        server.bury(QUEUE_MODE, 1, ids[1])
        server.pop(reader, 2, lease_id)
        partition_id = server.partition_id

    assert migrate(old) > 0
    assert migrate(old) == 0

    async with open_pool(
        old, size=3, connection_timeout_ms=5000, statement_timeout_ms=10_000, lock_timeout_ms=5000
    ) as pool:
        transactions = Transactions(pool)
        broker = NewServer(transactions)

        # The lease is alive: nothing for others, and its holder's acknowledgement counts.
        assert await broker.pop() == []
        assert len(await leases.extend(transactions, lease_id, 600)) == 1
        assert await broker.ack(ids[3:5], partition_id, lease_id) == [True, True]
        rest = await broker.pop()
        assert [m["offset"] for m in rest] == [5, 6, 7]
        assert [m["transactionId"] for m in rest] == ids[5:]
        assert [m["data"] for m in rest] == payloads[5:]
        assert all(await broker.ack(ids[5:], partition_id, rest[0]["leaseId"]))

        # Another group has its own place, and groups that come now get one.
        for group in ("late", "new"):
            everything = await broker.pop(group)
            assert [m["transactionId"] for m in everything] == ids, group
            assert [m["data"] for m in everything] == payloads, group
            acked = await broker.ack(ids, partition_id, everything[0]["leaseId"], group)
            assert all(acked), group

        # Old ids are known, offsets go on.
        answer = await broker.pusher.push(
            [NewMessage("q", partition="p", transaction_id=id_) for id_ in [*ids, "fresh"]], 100
        )
        results = msgspec.json.decode(answer, type=list[PushResult])
        assert [r.status for r in results] == ["duplicate"] * len(ids) + ["queued"]
        assert [r.offset for r in results] == list(range(len(ids) + 1))
        assert [m["transactionId"] for m in await broker.pop()] == ["fresh"]

        await queues.configure(
            transactions, QueueName("q"), None, None, OptionChanges(ttl=5), mode="merge"
        )
    assert ask(
        old, "SELECT message_offset, transaction_id, error_message FROM queen.dead_letters"
    ) == [(1, ids[1], "poison")]


def schema_of(conninfo: str) -> list[Any]:
    """Columns with types and defaults, constraints, indexes and storage options of every table."""
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
        )
    ]


def test_a_migrated_database_has_the_same_tables_as_a_new_one(
    old: str, postgres: SharedPostgres
) -> None:
    migrate(old)
    with postgres.database() as name:
        new = postgres.conninfo(name)
        migrate(new)
        assert schema_of(old) == schema_of(new)


@pytest.mark.parametrize("start", ["empty", "old"])
def test_several_who_migrate_at_once_do_it_once(start: str, request: pytest.FixtureRequest) -> None:
    # Two hosts start their supervisors at the same moment.
    conninfo: str = request.getfixturevalue(start)
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
    assert sorted(counts, key=str)[:5] == [0] * 5, counts
    [(done,)] = ask(conninfo, "SELECT count(*) FROM public.queue_server_schema")
    assert done == len(FILES("migrations") | FILES("functions") | known_functions(start))


def known_functions(start: str) -> dict[str, str]:
    return old_files("functions") if start == "old" else {}


def test_a_migration_that_was_edited_after_it_was_applied_is_refused(old: str) -> None:
    with psycopg.connect(old, autocommit=True) as connection:
        connection.execute(
            "UPDATE public.queue_server_schema SET checksum = 'other'"
            " WHERE name = 'migrations/0001_pre_initial.sql'"
        )
    before = schema_of(old)
    with pytest.raises(SchemaError, match=r"0001_pre_initial\.sql was changed after"):
        migrate(old)
    assert schema_of(old) == before


def test_a_database_of_a_newer_version_is_refused(old: str) -> None:
    with psycopg.connect(old, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO public.queue_server_schema (name, checksum)"
            " VALUES ('migrations/9999_from_the_future.sql', 'x')"
        )
    before = schema_of(old)
    with pytest.raises(
        SchemaError, match=r"newer than this server: it has migrations/9999_from_the_future\.sql"
    ):
        migrate(old)
    assert schema_of(old) == before


def test_a_server_that_is_too_old_is_refused_before_anything_is_done(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "_SERVER_VERSION_MIN", 990_000)
    with pytest.raises(SchemaError, match=r"PostgreSQL \d+ is too old: 99 or newer is needed"):
        migrate(empty)
    assert ask(empty, "SELECT to_regclass('public.queue_server_schema')") == [(None,)]


@pytest.mark.parametrize("folder", ["migrations", "functions"])
def test_a_migration_that_fails_midway_leaves_the_old_schema(
    old: str, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    def with_a_bad_one(name: str) -> dict[str, str]:
        bad = {f"{folder}/9998_bad.sql": "CREATE TABLE queen.half (a int); SELECT 1 / 0;"}
        return FILES(name) | (bad if name == folder else {})

    applied = "SELECT name, checksum, applied_at FROM public.queue_server_schema ORDER BY 1"
    functions = "SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = 'queen'::regnamespace"
    before = schema_of(old), ask(old, applied), ask(old, functions)
    monkeypatch.setattr(migrate_module, "_files", with_a_bad_one)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(old)
    assert (schema_of(old), ask(old, applied), ask(old, functions)) == before
    # The old version goes on, and a repaired one gets through.
    with psycopg.connect(old, autocommit=True) as connection:
        OldServer(connection).push(["a"], [1])
    monkeypatch.undo()
    assert migrate(old) > 0


def test_a_migration_does_not_make_everybody_wait_behind_a_long_reader(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a pg_dump has: who waits for a table that it reads has all later readers wait, too.
    monkeypatch.setattr(migrate_module, "_LOCK_TIMEOUT_MS", 200)
    with psycopg.connect(old) as reader:
        reader.execute("SELECT count(*) FROM queen.cursors")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            migrate(old)
        with psycopg.connect(old, autocommit=True) as connection:
            OldServer(connection).push(["a"], [1])
    assert migrate(old) > 0


def test_what_the_old_version_calls_is_still_there_while_it_is_replaced(old: str) -> None:
    # On SIGHUP, and with several hosts, old workers run on beside the migrated schema.
    with psycopg.connect(old, autocommit=True) as connection:
        server = OldServer(connection)
        reader = server.subscribe(QUEUE_MODE)
        migrate(old)
        server.push(["a", "b"], [1, 2])
        lease_id = uuid.uuid4()
        server.pop(reader, 2, lease_id)
        server.ack(reader, lease_id, ["a", "b"])
