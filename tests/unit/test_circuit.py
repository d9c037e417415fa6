"""When nobody waits for a database, and when it is asked for again."""

import asyncio
import itertools
import time

import pytest

from queue_server.domain.errors import StorageUnavailable
from queue_server.storage.circuit import Circuit


class Database:
    """One that can be away; counts who tries to reach it."""

    def __init__(self) -> None:
        self.is_there = False
        self.tried_at: list[float] = []
        self.circuit = Circuit(self.try_to_connect)

    async def try_to_connect(self) -> None:
        if not self.circuit.may_try():
            return
        self.tried_at.append(time.monotonic())
        if self.is_there:
            self.circuit.connected()
        else:
            self.circuit.failed()


async def test_while_it_is_open_nobody_waits() -> None:
    database = Database()
    circuit = database.circuit
    never = asyncio.Event()

    async def wait() -> None:
        async with circuit.wait_for_connection():
            await never.wait()

    waiting = [asyncio.create_task(wait()) for _ in range(3)]
    await asyncio.sleep(0)
    circuit.open()
    began = time.monotonic()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [StorageUnavailable] * 3
    with pytest.raises(StorageUnavailable):
        await wait()
    assert time.monotonic() - began < 0.5
    await circuit.stop()


async def test_the_first_success_closes_it() -> None:
    database = Database()
    database.circuit.open()
    database.is_there = True
    async with asyncio.timeout(5):
        while database.circuit.is_open:
            await asyncio.sleep(0.01)
    async with database.circuit.wait_for_connection():
        pass
    # It opens again with the next outage, and asks again.
    database.is_there = False
    database.circuit.open()
    count = len(database.tried_at)
    async with asyncio.timeout(5):
        while len(database.tried_at) < count + 2:
            await asyncio.sleep(0.01)
    await database.circuit.stop()


async def test_attempts_have_pauses_between_them_that_grow_and_differ() -> None:
    async def pauses() -> list[float]:
        database = Database()
        database.circuit.open()
        # However often somebody else asks, too.
        async with asyncio.timeout(20):
            while len(database.tried_at) < 5:
                await database.try_to_connect()
                await asyncio.sleep(0.001)
        await database.circuit.stop()
        times = database.tried_at
        return [after - before for before, after in itertools.pairwise(times)]

    first, second = await asyncio.gather(pauses(), pauses())
    for found in (first, second):
        for number, pause in enumerate(found):
            assert pause >= 0.05 * 2**number
    assert first != second


async def test_who_leaves_while_waiting_is_not_told_of_an_outage() -> None:
    circuit = Database().circuit

    async def wait() -> None:
        async with circuit.wait_for_connection():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        # A deadline of somebody else's stays one.
        async with asyncio.timeout(0.01):
            await wait()
