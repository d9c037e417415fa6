"""What a worker does when what it remembers is out of date, or when something fails on the way.

Each time with a worker whose memory has lost the partitions by id, as when others pushed them out.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
import pytest

from queue_server.broker import maintenance as maintenance_module
from queue_server.broker import pop as pop_module
from queue_server.broker.directory import Directory
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import KEY_BYTES, Keyring
from queue_server.domain.errors import StorageUnavailable
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import leases, queues
from queue_server.storage.failures import CONNECTION_LOST, retry_reason
from queue_server.storage.pool import open_pool
from queue_server.storage.transactions import Transactions
from tests.fix_proxy import Proxy
from tests.integration.test_torn_transactions import new

QUEUE = QueueName("q")


class Worker:
    """The broker of one worker."""

    def __init__(self, transactions: Transactions) -> None:
        row, rooms, keyring = Counters(1).worker(0), Rooms(), Keyring(b"k" * KEY_BYTES)
        self.directory = Directory(transactions)
        self.pusher = Pusher(transactions, self.directory, rooms, row, keyring)
        self.popper = Popper(transactions, self.directory, rooms, row, keyring, Pace())

    async def push(self, *items: NewMessage) -> list[dict[str, object]]:
        async with asyncio.timeout(10):
            answer = await self.pusher.push(items, 10)
        results: list[dict[str, object]] = msgspec.json.decode(answer)
        return results


@pytest.fixture
def worker(transactions: Transactions) -> Worker:
    return Worker(transactions)


async def one_value(transactions: Transactions, query: str) -> object:
    rows = await transactions.call(query, {})
    return rows[0][0]


async def test_encryption_is_corrected_both_ways(
    transactions: Transactions, worker: Worker
) -> None:
    await worker.push(new("q", "a", "1"), new("q", "b", "2"))
    for number, encrypted in enumerate((True, False)):
        await transactions.call(
            "UPDATE queen.queues SET encryption_enabled = %(e)s RETURNING 1", {"e": encrypted}
        )
        worker.directory._by_id.clear()
        await worker.push(new("q", "a", f"a{number}"), new("q", "b", f"b{number}"))
        assert ("q" in worker.directory.encrypted_queues) is encrypted


async def test_a_partition_that_is_gone_is_forgotten(
    transactions: Transactions, worker: Worker
) -> None:
    await worker.push(new("q", "p", "1"))
    assert await queues.delete_queue(transactions, QUEUE)
    worker.directory._by_id.clear()
    (result,) = await worker.push(new("q", "p", "1"))
    assert (result["status"], result["offset"]) == ("queued", 0)


async def test_a_repeated_append_finds_its_own_messages_without_a_window(
    conninfo: str, proxy: Proxy
) -> None:
    async with open_pool(
        proxy.leads_to(conninfo),
        size=1,
        connection_timeout_ms=3000,
        statement_timeout_ms=10_000,
        lock_timeout_ms=5000,
    ) as pool:
        transactions = Transactions(pool)
        worker = Worker(transactions)
        await worker.push(new("q", "p", "first"))
        await transactions.call("UPDATE queen.queues SET dedup_window_seconds = 0 RETURNING 1", {})
        # Without a window an id may come again, but an append that was lost does not.
        (again,) = await worker.push(new("q", "p", "first"))
        assert (again["status"], again["offset"]) == ("queued", 1)
        ids = [uuid.uuid4(), uuid.uuid4()]
        proxy.swallow = ids[0].bytes
        first, second = await worker.push(*[new("q", "p", str(one)) for one in ids])
        assert proxy.swallowed.is_set()
        assert [first["offset"], second["offset"]] == [2, 3]
        assert [first["status"], second["status"]] == ["queued", "queued"]
        assert await one_value(transactions, "SELECT next_offset FROM queen.allocators") == 4


async def test_a_claim_is_given_back_when_burying_fails(
    transactions: Transactions, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pop, two partitions: one brings messages, the other one that was claimed too often."""
    await worker.push(new("q", "a", "1"), new("q", "b", "2"))
    await transactions.call("UPDATE queen.queues SET delivery_limit = 1 RETURNING 1", {})
    request = PopRequest(QUEUE, QUEUE_MODE, ALL, message_limit=10, partition_limit=2)
    first = (await worker.popper.pop(msgspec.structs.replace(request, partition_limit=1))).delivery
    assert first is not None
    await transactions.call(
        "UPDATE queen.cursors SET lease_expires_at = now() - interval '1 s'"
        " WHERE lease_id IS NOT NULL RETURNING 1",
        {},
    )
    seen: list[tuple[int, int]] = []
    claim = leases.claim

    async def claim_and_note(
        transactions: Transactions, requests: Sequence[leases.ClaimRequest], *rest: Any
    ) -> list[leases.Claimed]:
        answers = await claim(transactions, requests, *rest)
        seen.extend((len(one.claims), len(one.exhausted)) for one in answers)
        return answers

    async def fail(*_: object) -> bool:
        raise StorageUnavailable

    monkeypatch.setattr(leases, "claim", claim_and_note)
    monkeypatch.setattr(pop_module, "bury_exhausted", fail)
    with pytest.raises(StorageUnavailable):
        await worker.popper.pop(request)
    assert seen == [(1, 1)]
    await worker.popper.finish()
    held = "SELECT count(*) FROM queen.cursors WHERE lease_expires_at > now()"
    assert await one_value(transactions, held) == 0


async def test_the_floor_poll_goes_on_whatever_fails(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled = asyncio.Event()
    errors: list[Exception] = [psycopg.errors.IoError("a disk"), StorageUnavailable()]

    async def poll() -> None:
        if errors:
            raise errors.pop()
        polled.set()

    monkeypatch.setattr(pop_module, "_FLOOR_POLL_S", 0.001)
    monkeypatch.setattr(worker.popper, "_poll", poll)
    watch = asyncio.create_task(worker.popper.watch())
    try:
        async with asyncio.timeout(10):
            await polled.wait()
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


class FailingLook(Maintenance):
    """Its look fails twice before it succeeds."""

    def __init__(self) -> None:
        self.looked = asyncio.Event()
        self._errors: list[Exception] = [psycopg.errors.IoError("a disk"), StorageUnavailable()]

    async def look(self) -> None:
        if self._errors:
            raise self._errors.pop()
        self.looked.set()


async def test_the_look_for_maintenance_goes_on_whatever_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maintenance_module, "_LOOK_INTERVAL_S", 0.001)
    maintenance = FailingLook()
    watch = asyncio.create_task(maintenance.watch())
    try:
        async with asyncio.timeout(10):
            await maintenance.looked.wait()
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


def test_a_session_that_the_database_ended_is_a_lost_one() -> None:
    for error in (
        psycopg.errors.IdleSessionTimeout,
        psycopg.errors.IdleInTransactionSessionTimeout,
        psycopg.errors.TransactionTimeout,
    ):
        assert retry_reason(error()) == CONNECTION_LOST


def test_rounds_are_remembered_for_so_many_groups(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pop_module, "_ROUNDS_MAX", 2)
    for number in (1, 2, 1, 3):
        worker.popper._note_round(number, number * 10)  # type: ignore[arg-type]
    assert worker.popper._rounds == {2: 20, 3: 30}
