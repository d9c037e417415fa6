"""A partition that the transaction of a push creates is met by all that has to meet it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.errors import QueueFull
from queue_server.domain.message import NewMessage
from queue_server.domain.names import ConsumerGroup, QueueName
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import groups, queues
from queue_server.storage.transactions import Transactions

Q = QueueName("q")
GROUP = ConsumerGroup("g")


class Worker:
    """The broker of one worker, without HTTP around it."""

    def __init__(self, transactions: Transactions) -> None:
        row, rooms, keyring = Counters(1).worker(0), Rooms(), Keyring()
        directory = Directory(transactions)
        self.pusher = Pusher(transactions, directory, rooms, row, keyring)
        self.popper = Popper(transactions, directory, rooms, row, keyring, Pace())

    async def push(self, partition: str, queue: str = "q") -> None:
        await self.pusher.push([NewMessage(queue, msgspec.Raw(b"1"), partition)], 1)

    async def pop(self) -> int:
        """Pop as the group, which registers; how many messages came."""
        request = PopRequest(Q, GROUP, ALL, message_limit=10, partition_limit=10)
        delivery = (await self.popper.pop(request)).delivery
        return 0 if delivery is None else delivery.message_count


@asynccontextmanager
async def pushing(
    worker: Worker, partition: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """A push that creates its partition; everything of it is done but the commit."""
    stored, go_on = asyncio.Event(), asyncio.Event()
    real = Pusher._store

    async def paused(self: Pusher, requests: Sequence[Any], *args: Any, **options: Any) -> Any:
        lanes = await real(self, requests, *args, **options)
        if any(request.missing for request in requests):
            stored.set()
            await go_on.wait()
        return lanes

    with monkeypatch.context() as patch:
        patch.setattr(Pusher, "_store", paused)
        push = asyncio.create_task(worker.push(partition))
        await stored.wait()
        try:
            yield
        finally:
            go_on.set()
            await push


async def stays_waiting(task: asyncio.Task[Any]) -> bool:
    done, _ = await asyncio.wait([task], timeout=0.3)
    return not done


async def test_a_group_that_registers_meanwhile_misses_nothing(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push did not see the group, so the group waits for the push and lists its partition."""
    worker = Worker(transactions)
    await worker.push("before")
    async with pushing(worker, "new", monkeypatch):
        popping = asyncio.create_task(Worker(transactions).pop())
        assert await stays_waiting(popping)
    assert await popping == 2


async def test_a_group_that_is_deleted_meanwhile_leaves_no_cursor(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(transactions)
    await worker.push("before")
    assert await worker.pop() == 1
    queue_id = await groups.find_queue(transactions, Q)
    assert queue_id is not None
    async with pushing(worker, "new", monkeypatch):
        deleting = asyncio.create_task(delete_group(transactions, queue_id))
        assert await stays_waiting(deleting)
    await deleting
    for table in ("cursors", "pending", "subscriptions"):
        rows = await transactions.call(f"SELECT count(*) FROM queen.{table}", {})
        assert rows[0][0] == 0, table


async def delete_group(transactions: Transactions, queue_id: str) -> None:
    id_ = await groups.delete(transactions, queue_id, GROUP, delete_metadata=True)
    assert id_ is not None
    await transactions.call(
        "SELECT * FROM queen.clear_remains(1::smallint, %(id)s::integer, 1000)", {"id": id_}
    )


async def test_a_queue_that_is_deleted_meanwhile_takes_the_partition_along(
    transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(transactions)
    await worker.push("before")
    async with pushing(worker, "new", monkeypatch):
        deleting = asyncio.create_task(queues.delete_queue(transactions, Q))
        assert await stays_waiting(deleting)
    assert await deleting
    for table in ("queues", "partitions", "allocators", "segments", "id_ranges"):
        rows = await transactions.call(f"SELECT count(*) FROM queen.{table}", {})
        assert rows[0][0] == 0, table
    await worker.push("new")


async def test_creations_of_the_same_names_are_one(transactions: Transactions) -> None:
    """By workers that create the same queues and partitions in different orders, with full ones."""
    await Worker(transactions).push("p", "full")
    await transactions.call("UPDATE queen.queues SET max_size = 1 RETURNING 1", {})

    async def push(number: int) -> None:
        names = [(f"q{q}", f"p{p}") for q in range(4) for p in range(4)]
        items = [NewMessage(q, msgspec.Raw(b"1"), p) for q, p in names[number:] + names[:number]]
        if number % 3 == 0:
            items.insert(number, NewMessage("full", msgspec.Raw(b"1"), f"p{number}"))
            with pytest.raises(QueueFull):
                await Worker(transactions).pusher.push(items, 1)
        else:
            await Worker(transactions).pusher.push(items, 1)

    await asyncio.gather(*[push(number) for number in range(12)])
    rows = await transactions.call(
        "SELECT (SELECT count(*) FROM queen.queues), (SELECT count(*) FROM queen.partitions),"
        " (SELECT count(DISTINCT id) FROM queen.partitions), (SELECT sum(next_offset)::int FROM"
        " queen.allocators)",
        {},
    )
    assert rows[0] == (5, 17, 17, 1 + 8 * 16)
