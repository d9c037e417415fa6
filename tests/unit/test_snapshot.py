"""Looks that are shared: a slow one is made anew before the last one is too old."""

import asyncio
import time

import pytest

from queue_server.broker.snapshot import Snapshot, Snapshots


@pytest.mark.parametrize(
    ("cost_s", "age_s", "is_renewed"),
    [(1.0, 10.0, False), (1.0, 30.0, True), (10.0, 50.0, False), (10.0, 70.0, True)],
)
async def test_a_slow_look_is_renewed_in_the_background(
    cost_s: float, age_s: float, is_renewed: bool
) -> None:
    goes_on = asyncio.Event()

    async def look() -> str:
        await goes_on.wait()
        return "new"

    snapshots = Snapshots(look)
    snapshots._last = Snapshot("old", time.monotonic() - age_s, cost_s)
    assert (await snapshots.current()).value == "old"
    await asyncio.sleep(0)
    assert snapshots.is_looking == is_renewed
    goes_on.set()
    await snapshots.close()
