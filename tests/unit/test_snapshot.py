"""Looks that are shared: a slow one is made anew before the last one is too old."""

import asyncio
import time
from unittest.mock import Mock

import pytest

from queue_server.broker.snapshot import Snapshot, Snapshots
from queue_server.storage import figures
from queue_server.storage.figures import FiguresCache


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


async def test_a_look_for_metrics_ends_with_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def hang(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(figures, "_PATIENCE_S", 0.01)
    cache = FiguresCache(Mock(run=hang), 10)
    assert await cache.current() is None
    assert not ended.is_set()
    await cache.close()
    assert ended.is_set()
    await cache.close()
