"""An answer always has an owner: its requester, or who is told that it is abandoned. Flushes of a
worker follow one another while they are small.
"""

import asyncio
from collections.abc import Sequence

import pytest

from queue_server.broker.coalescer import Coalescer, Turns


@pytest.mark.parametrize("late", [False, True])
async def test_an_answer_to_somebody_cancelled_is_abandoned(late: bool) -> None:
    """Cancelled during the flush, or in the tick in which it ends: the answer is given then."""
    abandoned: list[str] = []
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def flush(requests: Sequence[int]) -> list[str]:
        begun.set()
        await goes_on.wait()
        return [f"lease {request}" for request in requests]

    def on_flush(_count: int, _duration_us: int) -> None:
        if late:
            # Runs after the answers were given out and before the requester goes on.
            asyncio.get_running_loop().call_soon(requester.cancel)

    coalescer = Coalescer(
        "pop",
        flush,
        flush_weight_max=10,
        waiting_weight_max=10,
        abandon=abandoned.append,
        on_flush=on_flush,
    )
    requester = asyncio.create_task(coalescer.submit(1))
    await begun.wait()
    if not late:
        requester.cancel()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await requester
    # Cancelled during the flush, the requester is gone before it ends.
    async with asyncio.timeout(5):
        while not abandoned:
            await asyncio.sleep(0)
    assert abandoned == ["lease 1"]


class Flushes:
    """A coalescer whose flushes last until they are let go."""

    def __init__(self, turns: Turns) -> None:
        self.sizes: list[int] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.coalescer = Coalescer(
            "push", self._flush, flush_weight_max=100, waiting_weight_max=100, turns=turns
        )

    async def _flush(self, requests: Sequence[int]) -> Sequence[int]:
        self.sizes.append(len(requests))
        self.begun.set()
        await self.go_on.wait()
        return requests

    def submit(self, count: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.coalescer.submit(number)) for number in range(count)]


async def ticks(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_small_flush_waits_for_the_one_under_way_and_grows() -> None:
    turns = Turns(company_min=4, patience_s=60)
    first, second, third = Flushes(turns), Flushes(turns), Flushes(turns)
    tasks = first.submit(1)
    await first.begun.wait()
    tasks += second.submit(1)
    await ticks()
    tasks += third.submit(1)
    await ticks()
    tasks += second.submit(2)
    await ticks()
    assert (second.sizes, third.sizes) == ([], [])
    first.go_on.set()
    await second.begun.wait()
    await ticks()
    assert (second.sizes, third.sizes) == ([3], []), "one after the other, as they came"
    second.go_on.set()
    third.go_on.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*tasks) == [0, 0, 0, 0, 1]
    assert third.sizes == [1]


async def test_a_flush_with_company_goes_beside_the_one_under_way() -> None:
    turns = Turns(company_min=4, patience_s=60)
    first, second = Flushes(turns), Flushes(turns)
    tasks = first.submit(1)
    await first.begun.wait()
    tasks += second.submit(3)
    await ticks()
    assert second.sizes == []
    tasks += second.submit(1)
    await ticks()
    assert second.sizes == [4]
    # What gathers behind a flush under way goes at once, too.
    tasks += second.submit(4)
    second.go_on.set()
    await ticks()
    assert second.sizes == [4, 4]
    first.go_on.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)


async def test_nobody_waits_longer_than_patience_lasts() -> None:
    turns = Turns(company_min=4, patience_s=0.01)
    first, second = Flushes(turns), Flushes(turns)
    tasks = first.submit(1)
    await first.begun.wait()
    tasks += second.submit(1)
    async with asyncio.timeout(5):
        await second.begun.wait()
    first.go_on.set()
    second.go_on.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)


async def test_a_requester_that_leaves_takes_its_request_along() -> None:
    """Requests of clients that have gone do not wait for their turn, and take nobody's room."""
    flushed: list[Sequence[bytes]] = []
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def flush(requests: Sequence[bytes]) -> list[int]:
        flushed.append(requests)
        begun.set()
        await goes_on.wait()
        return [len(request) for request in requests]

    coalescer = Coalescer("push", flush, weight=len, flush_weight_max=10, waiting_weight_max=10)
    running = asyncio.create_task(coalescer.submit(b"first"))
    await begun.wait()
    for _ in range(20):
        left = asyncio.create_task(coalescer.submit(b"x" * 10))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
    stayed = asyncio.create_task(coalescer.submit(b"y" * 10))
    await asyncio.sleep(0)
    goes_on.set()
    assert [await running, await stayed] == [5, 10]
    assert flushed == [[b"first"], [b"y" * 10]]
