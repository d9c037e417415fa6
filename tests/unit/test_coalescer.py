"""An answer always has an owner: its requester, or who is told that it is abandoned."""

import asyncio
from collections.abc import Sequence

import pytest

from queue_server.broker.coalescer import Coalescer


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
