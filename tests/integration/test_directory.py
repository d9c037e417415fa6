"""What a worker remembers of names bounds what it remembers, never what a request may name."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from queue_server.broker import directory as directory_module
from queue_server.broker.ack import Ack, Acker
from queue_server.broker.activity import Activity
from queue_server.broker.directory import Directory
from queue_server.broker.maintenance import Maintenance
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.transaction import Transactor
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, PartitionKey, PartitionName, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage.transactions import Transactions

ROOM = 20


class Worker:
    """The broker of one worker, without HTTP around it."""

    def __init__(self, transactions: Transactions) -> None:
        row, keyring, activity = Counters(1).worker(0), Keyring(), Activity()
        self.directory, rooms, pace = Directory(transactions), Rooms(), Pace()
        self.pusher = Pusher(transactions, self.directory, rooms, row, keyring)
        self.popper = Popper(transactions, self.directory, rooms, row, keyring, pace)
        self.acker = Acker(transactions, self.directory, rooms, row, keyring, pace)
        self.transactor = Transactor(transactions, self.pusher, self.acker)
        self.maintenance = Maintenance(transactions, self.pusher, keyring, activity, lambda: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a few names only."""
    monkeypatch.setattr(directory_module, "_ENTRIES_MAX", ROOM)
    monkeypatch.setattr(directory_module, "_ENTRIES_OF_ONE_CALL_MAX", ROOM // 4)


def items(count: int, queue: str = "wide", first: int = 0) -> list[NewMessage]:
    return [
        NewMessage(queue, msgspec.Raw(b"1"), f"p{number}", transaction_id=f"t{number}")
        for number in range(first, first + count)
    ]


def read(answer: bytes) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(answer)
    return results


async def partitions_of(transactions: Transactions) -> int:
    rows = await transactions.call("SELECT count(*) FROM queen.segments", {})
    return int(rows[0][0])


@pytest.mark.usefixtures("small")
async def test_a_request_may_name_more_than_is_remembered(transactions: Transactions) -> None:
    """Pushes, transactions, pops and acknowledgements of more partitions than there is room for."""
    worker = Worker(transactions)
    count = 3 * ROOM
    async with asyncio.timeout(20):
        results = read(await worker.pusher.push(items(count), 1))
        assert [result["status"] for result in results] == ["queued"] * count
        ids = [str(result["partition_id"]) for result in results]
        assert len(set(ids)) == count
        pop = await worker.popper.pop(
            PopRequest(
                QueueName("wide"), QUEUE_MODE, ALL, partition_limit=count, message_limit=count
            )
        )
        assert pop.delivery is not None
        assert len(pop.delivery.claims) == count
        acks = [
            Ack(f"t{number}", ids[number], lease_id=str(pop.delivery.lease_id))
            for number in range(count)
        ]
        outcomes = await worker.acker.ack(acks, QUEUE_MODE)
        assert all(outcome.result.success for outcome in outcomes)
        done = await worker.transactor.execute(items(count, first=count), [], [])
        assert [result.status for result in done.pushed] == ["queued"] * count


@pytest.mark.usefixtures("small")
async def test_wide_pushes_at_once_ask_a_bounded_number_of_times(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(transactions)
    calls = 0
    real = Transactions.call

    async def counted(self: Transactions, *args: Any, **options: Any) -> Sequence[Any]:
        nonlocal calls
        calls += 1
        return await real(self, *args, **options)

    monkeypatch.setattr(Transactions, "call", counted)
    async with asyncio.timeout(20):
        await asyncio.gather(
            *[worker.pusher.push(items(ROOM + 1, first=100 * n), 1) for n in range(4)]
        )
    assert await partitions_of(transactions) == 4 * (ROOM + 1)
    # Of each push: names found, queue and partitions made; and the flushes.
    assert calls <= 4 * 5


@pytest.mark.usefixtures("small")
async def test_a_wide_push_leaves_others_their_room(transactions: Transactions) -> None:
    worker = Worker(transactions)
    await worker.pusher.push(items(5, "narrow"), 1)
    await worker.pusher.push(items(10 * ROOM), 1)
    assert worker.directory.known_partition("narrow", "p0") is not None


@pytest.mark.usefixtures("small")
async def test_a_wide_push_is_held_and_stored(transactions: Transactions) -> None:
    worker = Worker(transactions)
    await worker.maintenance.switch(push=True)
    await worker.maintenance.hold(items(3 * ROOM), None, None)
    await worker.maintenance.hold(items(1, "other"), None, None)
    await worker.maintenance.switch(push=False)
    async with asyncio.timeout(20):
        pushed = await worker.maintenance.push_held()
    assert pushed == {"pushes": 2, "messages": 3 * ROOM + 1}
    assert await partitions_of(transactions) == 3 * ROOM + 1


async def test_names_that_mean_one_partition_are_one(transactions: Transactions) -> None:
    """A partition that is not named is `Default`, also when another item names it so."""
    worker = Worker(transactions)
    unnamed = [
        NewMessage("q", msgspec.Raw(b"1"), name, transaction_id=f"t{i}")
        for i, name in enumerate([None, "Default", None])
    ]
    results = read(await worker.pusher.push(unnamed, 1))
    assert sorted(result["offset"] for result in results) == [0, 1, 2]
    assert results[0]["offset"] < results[2]["offset"]
    found = await worker.directory.find_partition(
        PartitionKey(QueueName("q"), PartitionName("Default"))
    )
    assert found is not None
    assert {result["partition_id"] for result in results} == {str(found.id)}


async def test_a_wide_push_may_be_repeated(transactions: Transactions) -> None:
    """A client that got no answer sends it again: all ids are found within a statement's time."""
    worker = Worker(transactions)
    wide = items(20_000)
    await worker.pusher.push(wide, 1)
    results = read(await worker.pusher.push(wide, 1))
    assert {result["status"] for result in results} == {"duplicate"}
