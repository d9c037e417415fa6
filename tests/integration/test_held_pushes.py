"""What maintenance held back arrives once, and what cannot be read holds up nobody."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
import pytest

from queue_server.broker import maintenance as broker_maintenance
from queue_server.broker.ack import Acker
from queue_server.broker.activity import Activity
from queue_server.broker.directory import Directory
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.pace import Pace
from queue_server.broker.push import Pusher
from queue_server.broker.transaction import Transactor
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import KEY_BYTES, Keyring
from queue_server.domain.errors import StorageUnavailable, Unavailable
from queue_server.domain.message import NewMessage
from queue_server.domain.segment import OpenSegment
from queue_server.observability.counters import Counters
from queue_server.storage import maintenance
from queue_server.storage.maintenance import HeldCounts, HeldPush
from queue_server.storage.transactions import Connection, Transactions
from tests.fix_db import make_queue


class Worker:
    """One worker's maintenance."""

    def __init__(self, transactions: Transactions, keyring: Keyring | None = None) -> None:
        keyring = keyring or Keyring()
        self.activity = Activity()
        directory, row = Directory(transactions), Counters(1).worker(0)
        pusher = Pusher(transactions, directory, Rooms(), row, keyring, self.activity)
        self.maintenance = Maintenance(
            transactions, pusher, keyring, self.activity, on_pops_resumed=lambda: None
        )

        self.transactor = Transactor(
            transactions, pusher, Acker(transactions, directory, Rooms(), row, keyring, Pace())
        )

    async def hold(self, *ids: str, queue: str = "q", sub: str | None = None) -> None:
        """Push in maintenance, which ends at once; what is held stays."""
        await self.maintenance.switch(push=True)
        assert await self.push(*ids, queue=queue, sub=sub) == {"buffered"}
        await self.maintenance.switch(push=False)

    async def push(
        self, *ids: str, queue: str = "q", others: Sequence[str] = (), sub: str | None = None
    ) -> set[str]:
        """Push the ids to *queue*, and one item to each of *others*; the statuses."""
        messages = [new(queue, id_) for id_ in ids] + [new(other, ids[0]) for other in others]
        answer, is_stored = await self.maintenance.push(messages, 1, sub, None)
        statuses = {result["status"] for result in json.loads(answer)}
        assert is_stored == ("buffered" not in statuses)
        return statuses

    async def drain(self) -> tuple[int, int]:
        """Pushes and messages that were stored."""
        counts = await self.maintenance.push_held()
        return counts["pushes"], counts["messages"]


def new(queue: str, id_: str) -> NewMessage:
    return NewMessage(queue, msgspec.Raw(b"1"), "p", transaction_id=id_)


async def message_count(transactions: Transactions) -> int:
    rows = await transactions.call(
        "SELECT coalesce(sum(next_offset - base_offset), 0)::bigint FROM queen.segments", {}
    )
    return int(rows[0][0])


async def configure(transactions: Transactions, dedup_window_s: int) -> None:
    await make_queue(transactions, "q")
    await transactions.call(
        "UPDATE queen.queues SET dedup_window_seconds = %(s)s RETURNING 1", {"s": dedup_window_s}
    )


async def test_without_deduplication_too_they_arrive_once(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of it fails, a push is either held or stored."""
    await configure(transactions, 0)
    worker = Worker(transactions)
    await worker.hold("a", sub="one")
    await worker.hold("b", "c", sub="two")
    real_delete = maintenance.delete_held_in
    real_push = Pusher.push_in

    async def failing_delete(connection: Connection, pushes: Sequence[HeldPush]) -> int:
        await real_delete(connection, pushes)
        raise StorageUnavailable

    async def failing_push(*args: object, **options: object) -> None:
        await real_push(*args, **options)  # type: ignore[arg-type]
        raise StorageUnavailable

    for owner, name, failing in (
        (maintenance, "delete_held_in", failing_delete),
        (Pusher, "push_in", failing_push),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(StorageUnavailable):
                await worker.maintenance.push_held()
        assert await message_count(transactions) == 0
        assert await worker.maintenance.count_held() == HeldCounts(3, 0)
    # Another worker that believes it is elected does no harm.
    other = Worker(transactions)
    held = await maintenance.read_held(transactions, 0, 1000)
    assert await worker.maintenance.push_held() == {"pushes": 2, "messages": 3}
    with monkeypatch.context() as patch:

        async def stale(_: Transactions, after: int, *__: object) -> list[maintenance.HeldPush]:
            return [] if after else held

        patch.setattr(maintenance, "read_held", stale)
        assert await other.maintenance.push_held() == {"pushes": 0, "messages": 0}
    assert await message_count(transactions) == 3
    assert await worker.maintenance.count_held() == HeldCounts(0, 0)
    assert worker.activity.take()["q"].push_requests == 2


async def test_what_is_stored_already_is_left_out(transactions: Transactions) -> None:
    await configure(transactions, 3600)
    worker = Worker(transactions)
    await worker.hold("a", "b")
    assert await worker.maintenance.push_held() == {"pushes": 1, "messages": 2}
    await worker.hold("b", "c")
    await worker.hold("c")
    await worker.hold("a")
    await worker.maintenance.push_held()
    await worker.hold("a")
    await worker.maintenance.push_held()
    assert await message_count(transactions) == 3
    assert await worker.maintenance.count_held() == HeldCounts(0, 0)


async def test_what_cannot_be_read_stays_and_the_rest_passes_it(
    transactions: Transactions, caplog: pytest.LogCaptureFixture
) -> None:
    await make_queue(transactions, "q")
    key, other_key = b"k" * KEY_BYTES, b"o" * KEY_BYTES
    await Worker(transactions, Keyring(key)).hold("a", "b")
    plain = Worker(transactions)
    await plain.hold("c")
    assert await plain.maintenance.push_held() == {"pushes": 1, "messages": 1}
    assert await plain.maintenance.push_held() == {"pushes": 0, "messages": 0}
    assert await plain.maintenance.count_held() == HeldCounts(2, 2)
    assert len([one for one in caplog.records if "cannot be read" in one.message]) == 1
    # With the key it arrives after all.
    found = Worker(transactions, Keyring(other_key, (key,)))
    assert await found.maintenance.push_held() == {"pushes": 1, "messages": 2}
    assert await found.maintenance.count_held() == HeldCounts(0, 0)
    assert await message_count(transactions) == 3


def believes_in_maintenance(worker: Worker) -> bool:
    return worker.maintenance.modes.push


async def stored_ids(transactions: Transactions, queue: str = "q") -> list[str]:
    """The transaction ids of a queue's partition, in its order."""
    rows = await transactions.call(
        "SELECT s.base_offset, s.next_offset, s.codec, s.body FROM queen.segments s"
        " JOIN queen.partitions p ON p.id = s.partition_id"
        " JOIN queen.queues q ON q.id = p.queue_id"
        " WHERE q.name = %(queue)s ORDER BY s.partition_id, s.base_offset",
        {"queue": queue},
    )
    return [
        OpenSegment(*row).message(offset).transactionId
        for row in rows
        for offset in range(row[0], row[1])
    ]


async def test_all_pushes_after_the_switch_are_held(transactions: Transactions) -> None:
    """Also those of a worker that has not learned of it yet, and it is known when nothing is."""
    one, other = Worker(transactions), Worker(transactions)
    assert await other.push("a") == {"queued"}
    await one.maintenance.switch(push=True)
    assert not believes_in_maintenance(other)
    assert await other.push("b") == {"buffered"}
    with pytest.raises(Unavailable, match="held back for maintenance"):
        await other.transactor.execute([new("q", "t")], [], [])
    await other.maintenance.look()
    await one.maintenance.switch(push=False)
    # It believes in maintenance still, and may store all the same.
    assert believes_in_maintenance(other)
    assert await other.push("a", queue="elsewhere") == {"queued"}
    done = await other.transactor.execute([new("elsewhere", "t")], [], [])
    assert [result.status for result in done.pushed] == ["queued"]


async def test_what_is_held_comes_before_what_is_pushed_later(transactions: Transactions) -> None:
    """For a queue that it names maintenance ends with the last held push, for others at once."""
    one, other = Worker(transactions), Worker(transactions)
    await one.push("a")
    await one.maintenance.switch(push=True)
    await one.push("b")
    await other.push("c")
    await one.maintenance.switch(push=False)
    assert await other.push("d") == {"buffered"}
    assert await other.push("x", queue="free") == {"queued"}
    with pytest.raises(Unavailable):
        await other.transactor.execute([new("q", "t")], [], [])
    # A push that waits takes its other queues with it.
    assert await other.push("e", others=["free"]) == {"buffered"}
    assert await other.push("y", queue="free") == {"buffered"}
    assert await one.drain() == (5, 6)
    assert await other.push("f") == {"queued"}
    assert await stored_ids(transactions) == ["a", "b", "c", "d", "e", "f"]
    assert await stored_ids(transactions, "free") == ["x", "e", "y"]
    await one.maintenance.look()
    assert not one.maintenance.modes.holding


async def test_the_drain_ends_though_pushes_go_on(transactions: Transactions) -> None:
    """The last of what is held is stored while new pushes wait; nobody has to stop pushing."""
    one, other = Worker(transactions), Worker(transactions)
    await one.hold("first")
    is_over = asyncio.Event()
    pushed: list[str] = []

    async def keep_pushing() -> None:
        while True:
            id_ = f"t{len(pushed)}"
            status = await other.push(id_)
            pushed.append(id_)
            if status == {"queued"}:
                is_over.set()
                return

    pushing = asyncio.create_task(keep_pushing())
    async with asyncio.timeout(20):
        while not is_over.is_set():
            await one.drain()
    await pushing
    assert await stored_ids(transactions) == ["first", *pushed]
    assert await one.maintenance.count_held() == HeldCounts(0, 0)


async def test_a_push_that_is_held_late_keeps_its_place(
    transactions: Transactions, direct_conninfo: str
) -> None:
    """A lower id that is committed later than a higher one is not passed by what follows it."""
    worker = Worker(transactions)
    await worker.maintenance.switch(push=True)
    await worker.push("first")
    async with await psycopg.AsyncConnection.connect(direct_conninfo) as late:
        await late.execute(
            "SELECT queen.hold_push(ARRAY['q'], 1, NULL, NULL, NULL, %s)",
            (msgspec.json.encode([new("q", "late")]),),
        )
        await worker.push("after")
        switching = asyncio.create_task(worker.maintenance.switch(push=False))
        done, _ = await asyncio.wait([switching], timeout=0.3)
        assert not done, "maintenance ended while a push was being held"
        await late.commit()
        await switching
    assert await worker.drain() == (3, 3)
    assert await stored_ids(transactions) == ["first", "late", "after"]


async def test_a_crash_before_the_end_ends_it_later(transactions: Transactions) -> None:
    """All is stored and the queue is still held: whoever drains next releases it."""
    worker = Worker(transactions)
    await worker.hold("a")
    await transactions.call("DELETE FROM queen.held_pushes RETURNING 1", {})
    assert await worker.push("b") == {"buffered"}
    assert await Worker(transactions).drain() == (1, 1)
    assert await worker.push("c") == {"queued"}
    await transactions.call("UPDATE queen.maintenance SET holding = true RETURNING 1", {})
    assert await worker.push("d") == {"queued"}
    await Worker(transactions).drain()
    await worker.maintenance.look()
    assert not worker.maintenance.modes.holding


async def test_a_full_queue_keeps_its_own_and_nobody_elses(transactions: Transactions) -> None:
    worker = Worker(transactions)
    await worker.push("a")
    await transactions.call("UPDATE queen.queues SET max_size = 2 RETURNING 1", {})
    await worker.maintenance.switch(push=True)
    await worker.push("b", "c")
    await worker.push("d")
    await worker.push("x", queue="free")
    await worker.maintenance.switch(push=False)
    assert await worker.drain() == (1, 1)
    assert await worker.push("y", queue="free") == {"queued"}
    assert await worker.push("e") == {"buffered"}
    assert await worker.drain() == (0, 0)
    await transactions.call("UPDATE queen.queues SET max_size = 0 RETURNING 1", {})
    assert await worker.drain() == (3, 4)
    assert await stored_ids(transactions) == ["a", "b", "c", "d", "e"]
    assert await worker.push("f") == {"queued"}


@pytest.mark.parametrize("problem", ["too slow", "a bug", "the database ends"])
async def test_a_push_that_never_gets_through_fails_and_others_pass_it(
    transactions: Transactions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    problem: str,
) -> None:
    worker = Worker(transactions)
    await worker.maintenance.switch(push=True)
    for id_ in ("a", "bad", "b"):
        await worker.push(id_)
    await worker.push("x", queue="other")
    await worker.maintenance.switch(push=False)
    monkeypatch.setattr(broker_maintenance, "_PUSH_TIME_MAX_S", 1.0)
    real = Pusher.push_in

    async def failing(self: Pusher, connection: Connection, requests: Any, **options: Any) -> Any:
        if any(item.transaction_id == "bad" for one in requests for item in one.items):
            if problem == "too slow":
                await connection.execute("SELECT pg_sleep(60)")
            if problem == "a bug":
                raise ZeroDivisionError
            raise StorageUnavailable
        return await real(self, connection, requests, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Pusher, "push_in", failing)
        async with asyncio.timeout(30):
            for _ in range(20):
                with contextlib.suppress(StorageUnavailable):
                    await worker.drain()
                if (await worker.maintenance.count_held()).total == 1:
                    break
    assert await worker.maintenance.count_held() == HeldCounts(1, 1)
    assert await stored_ids(transactions) == ["a", "b"]
    assert await stored_ids(transactions, "other") == ["x"]
    assert len([one for one in caplog.records if "cannot be stored" in one.message]) == 1
    # It holds nobody up, and a worker that is new to it tries again.
    assert await worker.push("c") == {"queued"}
    assert await worker.drain() == (0, 0)
    assert await Worker(transactions).drain() == (1, 1)
    assert await stored_ids(transactions) == ["a", "b", "c", "bad"]
