"""Looks that are shared: a slow one is made anew before the last one is too old."""

import asyncio
from typing import cast

import pytest

from queue_server.broker import snapshot
from queue_server.broker.snapshot import Looks, Snapshots
from queue_server.domain.errors import Unavailable
from queue_server.storage import statistics
from queue_server.storage.transactions import Transactions


class World:
    """A clock that is set, and looks that take the time they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cost_s = 0.0
        self.look_count = 0
        self.fails = False
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    def monotonic(self) -> float:
        return self.now

    async def look(self) -> int:
        self.look_count += 1
        number = self.look_count
        self.now += self.cost_s
        await self.goes_on.wait()
        if self.fails:
            raise Unavailable("the database cannot be reached")
        return number


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(snapshot, "monotonic", world.monotonic)
    return world


@pytest.mark.parametrize(
    ("cost_s", "age_s", "is_renewed"),
    [(1.0, 10.0, False), (1.0, 30.0, True), (10.0, 50.0, False), (10.0, 70.0, True)],
)
async def test_a_slow_look_is_renewed_in_the_background(
    world: World, cost_s: float, age_s: float, is_renewed: bool
) -> None:
    snapshots = Snapshots(world.look)
    world.cost_s = cost_s
    assert (await snapshots.current()).value == 1
    world.now += age_s - cost_s
    world.goes_on.clear()
    assert (await snapshots.current()).value == 1
    assert snapshots.is_looking == is_renewed
    world.goes_on.set()
    if is_renewed:
        assert (await snapshots.refresh()).value == 2
    await snapshots.close()


async def test_a_slow_look_that_is_too_old_is_not_told(world: World) -> None:
    snapshots = Snapshots(world.look)
    world.cost_s = 1.0
    await snapshots.current()
    world.now += 120
    assert (await snapshots.current()).value == 2


async def test_quick_looks_are_made_for_each_who_asks(world: World) -> None:
    snapshots = Snapshots(world.look)
    world.cost_s = 0.01
    assert [(await snapshots.current()).value for _ in range(3)] == [1, 2, 3]


async def test_who_asks_during_a_look_shares_the_next_one(world: World) -> None:
    """The one that goes on may have missed what the asker has just done."""
    snapshots = Snapshots(world.look)
    world.goes_on.clear()
    first = asyncio.create_task(snapshots.current())
    await asyncio.sleep(0)
    world.now += 1
    others = [asyncio.create_task(snapshots.current()) for _ in range(10)]
    await asyncio.sleep(0)
    world.goes_on.set()
    assert (await first).value == 1
    assert [one.value for one in await asyncio.gather(*others)] == [2] * 10


async def test_who_leaves_ends_nobody_s_look(world: World) -> None:
    snapshots = Snapshots(world.look)
    world.goes_on.clear()
    first, second = (asyncio.create_task(snapshots.current()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    world.goes_on.set()
    assert (await second).value == 1


async def test_all_who_wait_for_a_look_hear_of_its_failure(world: World) -> None:
    snapshots = Snapshots(world.look)
    world.fails = True
    found = await asyncio.gather(*(snapshots.current() for _ in range(5)), return_exceptions=True)
    assert {type(one) for one in found} == {Unavailable}
    assert world.look_count == 1


async def test_a_slow_look_that_fails_is_not_repeated_at_once(world: World) -> None:
    snapshots = Snapshots(world.look)
    world.cost_s = 1.0
    await snapshots.current()
    world.now += 30
    world.fails = True
    for _ in range(5):
        assert (await snapshots.current()).value == 1
        await asyncio.sleep(0)
    assert world.look_count == 2


async def test_metrics_are_told_old_figures_rather_than_none(world: World) -> None:
    snapshots = Snapshots(world.look)
    world.cost_s = 0.01

    async def told() -> int | None:
        found = await snapshots.newest(5, 0.01)
        return None if found is None else found.value

    assert await told() == 1
    assert await told() == 1
    world.now += 6
    world.fails = True
    assert await told() == 1
    world.fails = False
    world.now += 6
    world.goes_on.clear()
    assert await told() == 1
    world.goes_on.set()
    assert await told() == 3
    assert world.look_count == 3


async def test_a_look_for_metrics_ends_with_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def hang(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(statistics, "overview", hang)
    monkeypatch.setattr(snapshot, "_METRICS_PATIENCE_S", 0.01)
    looks = Looks(cast(Transactions, None), 10)
    assert await looks.metrics() is None
    assert not ended.is_set()
    await looks.close()
    assert ended.is_set()
    await looks.close()


async def test_slow_looks_of_many_kinds_are_shared_and_forgotten_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_KEPT_MAX", 2)
    looks = Looks(cast(Transactions, None), 10)
    world.cost_s = 0.01
    quick = [(await looks.share("quick", world.look)).value for _ in range(2)]
    assert quick == [1, 2]
    assert looks._others == {}
    world.cost_s = 1.0
    told = [(await looks.share(key, world.look)).value for key in "ababcba"]
    # c drove a out, which b then did not.
    assert told == [3, 4, 3, 4, 5, 4, 6]
    assert list(looks._others) == ["b", "a"]
    world.now += 120
    world.cost_s = 0.01
    await looks.share("d", world.look)
    assert looks._others == {}
    await looks.close()
