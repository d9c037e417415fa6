"""Messages that retention drops between a pop's claim and its look at the segment.

The drop is put there by a claim that is followed by one, in a worker that has not opened the
segment before and gets the claim without its body, as it begins in the middle of a segment.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from queue_server.broker.directory import Directory
from queue_server.broker.pace import Pace
from queue_server.broker.pop import Popper, PopRequest
from queue_server.broker.push import Pusher
from queue_server.broker.wakeup import Rooms
from queue_server.domain.encryption import Keyring
from queue_server.domain.message import NewMessage
from queue_server.domain.names import QUEUE_MODE, QueueName
from queue_server.domain.retention import RetentionType
from queue_server.domain.subscription import ALL
from queue_server.observability.counters import Counters
from queue_server.storage import leases, retention
from queue_server.storage.leases import Claimed, ClaimRequest
from queue_server.storage.retention import Expired
from queue_server.storage.transactions import Transactions

SEGMENT = 10


class Worker:
    """The broker of one worker, with a partition of one queue."""

    def __init__(self, transactions: Transactions) -> None:
        self.transactions = transactions
        row = Counters(1).worker(0)
        directory, rooms, keyring = Directory(transactions), Rooms(), Keyring()
        self.pusher = Pusher(transactions, directory, rooms, row, keyring)
        self.popper = Popper(transactions, directory, rooms, row, keyring, Pace())

    async def push(self, numbers: Sequence[int]) -> None:
        """One segment."""
        await self.pusher.push(
            [NewMessage("q", msgspec.Raw(str(number).encode())) for number in numbers], 100
        )

    async def pop(self, count: int, *, auto_ack: bool = False, wait_ms: int = 0) -> list[int]:
        answer = await self.popper.pop(
            PopRequest(
                queue=QueueName("q"),
                group=QUEUE_MODE,
                start=ALL,
                message_limit=count,
                auto_ack=auto_ack,
                wait_ms=wait_ms,
            )
        )
        if answer.delivery is None:
            return []
        text = b"".join(
            [chunk async for chunk in self.popper.chunks(answer.delivery, lambda _c, _r: b"")]
        )
        numbers = [message["data"] for message in msgspec.json.decode(b"[" + text + b"]")]
        assert len(numbers) == answer.delivery.message_count
        return numbers


async def drop(transactions: Transactions, before: int) -> None:
    """What retention does to everything below an offset."""
    rows = await transactions.call("SELECT queue_id, partition_id FROM queen.allocators", {})
    raised = await retention.raise_low_watermarks(
        transactions,
        [Expired(str(queue_id), id_, before, RetentionType.RETENTION) for queue_id, id_ in rows],
    )
    spans = raised.spans
    while spans:
        spans = (await retention.drop(transactions, spans, 1000)).left


@pytest.fixture
async def worker(transactions: Transactions) -> Worker:
    """A worker that knows nothing of a segment of which three messages are read."""
    other = Worker(transactions)
    await other.push(range(SEGMENT))
    assert await other.pop(3, auto_ack=True) == [0, 1, 2]
    return Worker(transactions)


After = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture
def after_claim(monkeypatch: pytest.MonkeyPatch) -> After:
    """Has something done once, right after the next claim that got messages."""

    def hook(act: Callable[[], Awaitable[None]]) -> None:
        claim = leases.claim

        async def claim_and_act(
            transactions: Transactions, requests: Sequence[ClaimRequest], *rest: Any
        ) -> list[Claimed]:
            answers = await claim(transactions, requests, *rest)
            if any(answer.claims for answer in answers):
                monkeypatch.setattr(leases, "claim", claim)
                assert all(run.body is None for run in answers[0].claims[0].runs[:1])
                await act()
            return answers

        monkeypatch.setattr(leases, "claim", claim_and_act)

    return hook


async def lease_count(transactions: Transactions) -> int:
    rows = await transactions.call(
        "SELECT count(*) FROM queen.cursors WHERE lease_id IS NOT NULL", {}
    )
    count: int = rows[0][0]
    return count


@pytest.mark.parametrize("auto_ack", [False, True])
async def test_a_pop_goes_on_behind_what_was_dropped(
    transactions: Transactions, worker: Worker, after_claim: After, auto_ack: bool
) -> None:
    await worker.push([10, 11])
    after_claim(lambda: drop(transactions, SEGMENT))
    # The claim had ended with the first segment.
    assert await worker.pop(SEGMENT - 3, auto_ack=auto_ack) == [10, 11]
    assert await lease_count(transactions) == (0 if auto_ack else 1)


async def test_a_part_that_was_dropped_is_passed_over(
    transactions: Transactions, worker: Worker, after_claim: After
) -> None:
    await worker.push([10, 11])
    after_claim(lambda: drop(transactions, SEGMENT))
    assert await worker.pop(100) == [10, 11]


@pytest.mark.parametrize("auto_ack", [False, True])
async def test_a_pop_of_which_nothing_is_left_is_empty_and_holds_nothing(
    transactions: Transactions, worker: Worker, after_claim: After, auto_ack: bool
) -> None:
    after_claim(lambda: drop(transactions, SEGMENT))
    assert await worker.pop(100, auto_ack=auto_ack) == []
    assert await lease_count(transactions) == 0
    await worker.push([10])
    assert await worker.pop(100) == [10]


async def test_a_parked_pop_of_which_nothing_is_left_waits_on(
    transactions: Transactions, worker: Worker, after_claim: After
) -> None:
    dropped = asyncio.Event()

    async def act() -> None:
        await drop(transactions, SEGMENT)
        dropped.set()

    after_claim(act)
    parked = asyncio.create_task(worker.pop(100, wait_ms=20_000))
    await dropped.wait()
    await worker.push([10])
    async with asyncio.timeout(10):
        assert await parked == [10]
