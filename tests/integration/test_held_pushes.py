"""What maintenance held back arrives once, and what cannot be read holds up nobody."""

from collections.abc import Sequence

import msgspec
import pytest

from queue_server.broker.activity import Activity
from queue_server.broker.directory import Directory
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import KEY_BYTES, Keyring
from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QueueName
from queue_server.observability.counters import Counters
from queue_server.storage import maintenance, queues
from queue_server.storage.maintenance import HeldCounts
from queue_server.storage.transactions import Connection, Transactions


class Worker:
    """One worker's maintenance."""

    def __init__(self, transactions: Transactions, keyring: Keyring | None = None) -> None:
        keyring = keyring or Keyring()
        self.activity = Activity()
        pusher = Pusher(
            transactions, Directory(transactions), Rooms(), Counters(1).worker(0), keyring,
            self.activity,
        )  # fmt: skip
        self.maintenance = Maintenance(
            transactions, pusher, keyring, self.activity, on_pops_resumed=lambda: None
        )

    async def hold(self, *ids: str, queue: str = "q", sub: str | None = None) -> None:
        items = [NewMessage(queue, msgspec.Raw(b"1"), "p", transaction_id=id_) for id_ in ids]
        await self.maintenance.hold(items, sub, None)


async def message_count(transactions: Transactions) -> int:
    rows = await transactions.call(
        "SELECT coalesce(sum(next_offset - base_offset), 0)::bigint FROM queen.segments", {}
    )
    return int(rows[0][0])


async def configure(transactions: Transactions, dedup_window_s: int) -> None:
    await queues.ensure_queue(transactions, QueueName("q"))
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

    async def failing_delete(connection: Connection, ids: Sequence[int]) -> int:
        await real_delete(connection, ids)
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
    held = await maintenance.read_held(transactions, 0)
    assert await worker.maintenance.push_held() == {"pushes": 2, "messages": 3}
    with monkeypatch.context() as patch:

        async def stale(_: Transactions, after: int) -> list[maintenance.HeldPush]:
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
    await queues.ensure_queue(transactions, QueueName("q"))
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
