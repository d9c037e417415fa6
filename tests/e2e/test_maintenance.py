"""Maintenance mode: wire-api 5.9. What is accepted in it arrives once and in order."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.client import Answer, Client, drain, eventually, unique
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

PUSH = "/api/v1/system/maintenance"
POP = "/api/v1/system/maintenance/pop"


@pytest.fixture(scope="module")
def server() -> Iterator[ClusterProcess]:
    """Maintenance is that of a whole server, so these tests have their own."""
    with server_directory() as directory, ClusterProcess(data_dir=directory) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-5000:]


@pytest.fixture
async def client(server: ClusterProcess) -> AsyncIterator[Client]:
    async with Client(server.url, fresh=True) as client:
        yield client
        for path in (PUSH, POP):
            await switch(client, path, False)


async def get(client: Client, path: str) -> Any:
    answer = await client.get(path)
    assert answer.status == 200, answer
    return answer.json


async def switch(client: Client, path: str, enabled: bool) -> Any:
    answer = await client.post(path, {"enabled": enabled})
    assert answer.status == 200, answer
    return answer.json


async def is_over(client: Client) -> bool:
    """Whether nothing is held any more; pushes are stored then."""
    return bool((await get(client, PUSH))["bufferedMessages"] == 0)


async def test_it_is_off_until_somebody_switches_it(client: Client) -> None:
    assert await get(client, PUSH) == {
        "maintenanceMode": False, "popMaintenanceMode": False, "bufferedMessages": 0,
        "bufferHealthy": True,
        "bufferStats": {"pendingCount": 0, "failedCount": 0, "dbHealthy": True},
    }  # fmt: skip
    assert await get(client, POP) == {"popMaintenanceMode": False}
    assert await get(client, "/api/v1/system/shared-state") == {"enabled": False}
    for path in (PUSH, POP):
        for body in ({}, {"enabled": "yes"}, {"enabled": None}):
            answer: Answer = await client.post(path, body)
            assert answer.status == 400
            assert answer.error == "enabled (boolean) is required"


async def test_pushes_are_kept_and_arrive_once_and_in_order(
    server: ClusterProcess, client: Client, queue: str
) -> None:
    await client.push(queue, [0], partition="p")
    switched = await switch(client, PUSH, True)
    assert switched["maintenanceMode"] is True
    assert switched["message"]
    for number in range(1, 21):
        # A connection each: no worker stores it, whether it has learned of maintenance or not.
        (result,) = await client.push(queue, [number], partition="p")
        assert result["status"] == "buffered"
        assert result["transaction_id"]
        assert result["queueName"] == queue
    # An id that comes again is no second message, in maintenance or after it.
    for _ in range(2):
        await client.push(queue, ["once"], partition="p", ids=[f"{queue}-once"])
    new = unique("new")
    await client.push(new, ["x"])
    assert (await get(client, PUSH))["bufferedMessages"] >= 23
    assert (await get(client, "/api/v1/status/buffers"))["pending"] >= 23
    # No queue is touched meanwhile; what was there before can be read.
    assert (await client.get(f"/api/v1/resources/queues/{new}")).status == 404
    assert [m["data"] for m in await drain(client, queue)] == [0]

    assert (await switch(client, PUSH, False))["maintenanceMode"] is False

    await eventually(lambda: is_over(client), deadline=20)
    assert [m["data"] for m in await drain(client, queue)] == [*range(1, 21), "once"]
    assert [m["data"] for m in await drain(client, new)] == ["x"]
    (again,) = await client.push(queue, ["once"], partition="p", ids=[f"{queue}-once"])
    assert again["status"] == "duplicate"


async def test_what_cannot_be_put_off_is_refused(
    server: ClusterProcess, client: Client, queue: str
) -> None:
    await switch(client, PUSH, True)
    operation = {"type": "push", "items": [{"queue": queue, "payload": 1}]}
    for _ in range(6):
        answer = await client.post("/api/v1/transaction", {"operations": [operation]})
        assert answer.status == 503
        assert answer.headers["Retry-After"]
    bad = await client.post("/api/v1/push", {"items": [{"queue": "q" * 5000, "payload": 1}]})
    assert bad.status == 413


async def test_held_pushes_outlive_the_server(queue: str) -> None:
    with server_directory() as directory:
        with ClusterProcess(data_dir=directory) as cluster:
            cluster.wait_ready()
            async with Client(cluster.url) as client:
                await switch(client, PUSH, True)
                await client.push(queue, [1, 2, 3], partition="p")
            cluster.kill()
        with ClusterProcess(data_dir=directory) as cluster:
            cluster.wait_ready()
            async with Client(cluster.url) as client:
                assert (await get(client, PUSH))["maintenanceMode"] is True
                assert (await get(client, PUSH))["bufferedMessages"] == 3
                await switch(client, PUSH, False)
                # Who was elected before the kill keeps the office for 15 s.
                pop = await client.pop(queue, wait_ms=40_000)
                assert [m["data"] for m in pop.messages] == [1, 2, 3]
            assert cluster.stop() == 0


async def test_a_full_queue_takes_the_rest_later(
    server: ClusterProcess, client: Client, queue: str
) -> None:
    await client.configure(queue, {"maxSize": 5})
    other = unique("other")
    await switch(client, PUSH, True)
    for number in range(4):
        (result, _) = await client.push(queue, [number * 2, number * 2 + 1], partition="p")
        assert result["status"] == "buffered"
    await client.push(other, ["x"])
    await switch(client, PUSH, False)
    assert [m["data"] for m in (await client.pop(other, wait_ms=12_000)).messages] == ["x"]
    seen: list[int] = []

    async def more() -> bool:
        seen.extend(m["data"] for m in await drain(client, queue))
        return len(seen) >= 8

    await eventually(more, deadline=20)
    assert seen == list(range(8))


async def test_a_producer_that_awaits_every_answer_is_read_in_order(
    server: ClusterProcess, client: Client, queue: str
) -> None:
    """By a connection each to either worker, while maintenance is switched on, off and on."""
    held: list[int] = []
    count = 0
    is_done = False

    async def produce() -> None:
        nonlocal count
        while not is_done:
            (result,) = await client.push(queue, [count], partition="p")
            if result["status"] == "buffered":
                held.append(count)
            count += 1

    async def reached(number: int) -> None:
        async def is_reached() -> bool:
            return count >= number

        await eventually(is_reached, deadline=30)

    producer = asyncio.create_task(produce())
    await reached(20)
    for _ in range(3):
        await switch(client, PUSH, True)
        await reached(count + 20)
        await switch(client, PUSH, False)
        await reached(count + 20)
    await eventually(lambda: is_over(client), deadline=30)
    await reached(count + 20)
    is_done = True
    await producer
    assert 60 <= len(held) < count - 20
    seen = [message["data"] for message in await drain(client, queue)]
    assert seen == list(range(count)), f"{len(held)} held, of {held[:1]}..{held[-1:]}"


async def test_pops_bring_nothing_until_it_ends(
    server: ClusterProcess, client: Client, queue: str
) -> None:
    await client.push(queue, [1], partition="p")
    assert (await switch(client, POP, True))["popMaintenanceMode"] is True
    assert (await get(client, POP)) == {"popMaintenanceMode": True}
    assert (await get(client, PUSH))["popMaintenanceMode"] is True

    nothing = 0

    async def nobody_pops() -> bool:
        nonlocal nothing
        async with Client(server.url) as one:
            pop = await one.pop(queue, leaseSeconds=1)
            nothing = nothing + 1 if pop.status == 204 else 0
            return nothing >= 8

    await eventually(nobody_pops)
    begin = time.monotonic()
    assert (await client.pop(queue, wait_ms=500)).status == 204
    assert time.monotonic() - begin >= 0.5
    # Pushes go on, and who waits is served when it ends.
    waiting = asyncio.create_task(client.pop(queue, wait_ms=20_000))
    await client.push(queue, [2], partition="p")
    await asyncio.sleep(0.2)
    assert not waiting.done()
    begin = time.monotonic()
    await switch(client, POP, False)
    assert (await waiting).messages
    assert time.monotonic() - begin < 5


async def test_every_server_of_the_database_obeys(conninfo: str, queue: str) -> None:
    """Two servers as on two hosts: what one is told the other does within a second or so."""
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8"}
    with ClusterProcess(env=env) as one, ClusterProcess(env=env) as two:
        one.wait_ready()
        two.wait_ready()
        async with Client(one.url) as here, Client(two.url) as there:
            await switch(here, PUSH, True)
            pushed = await there.push(queue, list(range(50)), partition="p")
            assert {result["status"] for result in pushed} == {"buffered"}
            held = (await get(here, PUSH))["bufferedMessages"]
            assert held >= 50
            await switch(there, PUSH, False)
            pop = await here.pop(queue, wait_ms=12_000)
            assert [m["data"] for m in pop.messages] == list(range(50))
            await here.complete(pop)
            await eventually(lambda: is_over(here))
            (result,) = await there.push(queue, [50], partition="p")
            assert result["status"] == "queued"
            pop = await here.pop(queue, wait_ms=5000)
            assert pop.data == [50]
            await here.complete(pop)
            assert (await there.pop(queue)).status == 204
        assert one.stop() == 0
        assert two.stop() == 0
