"""A pop that waits: woken by whatever makes a message available, and by nothing else (2.12)."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

import pytest

from tests.client import Client, Pop, as_pop, eventually, unique

# A second too late is what a pop is that nobody woke.
pytestmark = pytest.mark.alone


@pytest.fixture
async def consumer(fresh_client: Client) -> AsyncIterator[Client]:
    """The side that waits; each pop on a connection of its own."""
    yield fresh_client


async def parked(consumer: Client, queue: str, **parameters: object) -> asyncio.Task[Pop]:
    """A pop that has surely reached the server and waits there.

    There is no telling from outside, so give it time: 50 ms are many times what a request takes.
    """
    wait_ms = int(str(parameters.pop("wait_ms", 20_000)))
    task = asyncio.create_task(consumer.pop(queue, wait_ms=wait_ms, **parameters))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


async def test_a_waiting_pop_gets_a_message_within_tens_of_milliseconds(
    client: Client, consumer: Client, queue: str
) -> None:
    """From the push on one connection to the answer on another, many times over both workers."""
    latencies: list[float] = []
    for number in range(20):
        waiting = await parked(consumer, queue)
        started = time.monotonic()
        async with Client(client.url, fresh=True) as producer:
            await producer.push(queue, [number])
        pop = await waiting
        latencies.append(time.monotonic() - started)
        assert pop.data == [number]
        await client.complete(pop)
    print("latencies in ms:", [round(latency * 1000) for latency in sorted(latencies)])
    assert statistics.median(latencies) < 0.1
    assert max(latencies) < 2


async def test_a_pop_finds_what_is_there_without_waiting(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    started = time.monotonic()
    assert (await client.pop(queue, wait_ms=20_000)).data == [1]
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("timeout_ms", [200, 1000])
async def test_a_pop_that_waits_in_vain_answers_204_at_its_timeout(
    client: Client, queue: str, timeout_ms: int
) -> None:
    for target in (queue, f"{queue}/partition/p"):
        started = time.monotonic()
        answer = await client.get(f"/api/v1/pop/queue/{target}?wait=1&timeout={timeout_ms}")
        assert as_pop(answer).status == 204
        assert timeout_ms / 1000 - 0.05 <= time.monotonic() - started < timeout_ms / 1000 + 0.8


async def test_without_wait_an_empty_pop_answers_at_once(client: Client, queue: str) -> None:
    started = time.monotonic()
    for wait in ("false", "0", ""):
        answer = await client.get(f"/api/v1/pop/queue/{queue}?timeout=10000&wait={wait}")
        assert as_pop(answer).status == 204
    assert time.monotonic() - started < 2


async def test_the_partition_route_waits_for_its_partition_only(
    client: Client, consumer: Client, queue: str
) -> None:
    waiting = await parked(consumer, queue, partition="mine")
    await client.push(queue, ["no"], partition="other")
    await client.push(queue, ["no"])
    await asyncio.sleep(0.3)
    assert not waiting.done()
    started = time.monotonic()
    await client.push(queue, ["yes"], partition="mine")
    assert (await waiting).data == ["yes"]
    assert time.monotonic() - started < 1


async def test_many_who_wait_for_partitions_to_come_are_told_of_theirs(
    client: Client, consumer: Client, queue: str
) -> None:
    """They are so many that each looks by itself only every few seconds."""
    await client.push(queue, ["other"], partition="other")
    waiting = [
        asyncio.create_task(consumer.pop(queue, partition=f"p{n}", wait_ms=20_000))
        for n in range(200)
    ]
    await asyncio.sleep(3)  # until all are parked, and each has looked once
    started = time.monotonic()
    for n in (0, 77, 199):
        await client.push(queue, [n], partition=f"p{n}")
        assert (await waiting[n]).data == [n]
    assert time.monotonic() - started < 2
    for pop in waiting:
        pop.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_pops_of_all_groups_get_their_copy(
    client: Client, consumer: Client, queue: str
) -> None:
    groups = [None, "a", "b", "c"]
    waiting = [await parked(consumer, queue, group=group) for group in groups]
    await client.push(queue, [1])
    assert [pop.data for pop in await asyncio.gather(*waiting)] == [[1]] * 4


async def test_one_message_is_given_to_one_of_many_waiting_pops(
    client: Client, consumer: Client, queue: str
) -> None:
    waiting = [await parked(consumer, queue) for _ in range(10)]
    for number in range(10):
        await client.push(queue, [number])
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        (first,) = done
        waiting.remove(first)
        pop = await first
        assert pop.data == [number]
        assert pop.attempts == {1}
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in waiting)
        await client.complete(pop)


async def test_a_push_to_many_partitions_serves_as_many_waiting_pops(
    client: Client, consumer: Client, queue: str
) -> None:
    waiting = [await parked(consumer, queue, group="g") for _ in range(8)]
    started = time.monotonic()
    await client.push_items(
        [{"queue": queue, "partition": f"p{number}", "payload": number} for number in range(8)]
    )
    pops = await asyncio.gather(*waiting)
    assert sorted(number for pop in pops for number in pop.data) == list(range(8))
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("release", ["ack of the rest", "nack", "retry", "dlq of the last"])
async def test_a_release_wakes_a_waiting_pop(
    client: Client, consumer: Client, queue: str, release: str
) -> None:
    await client.push(queue, [1, 2, 3])
    pop = await client.pop(queue, batch=2)
    waiting = await parked(consumer, queue)
    started = time.monotonic()
    if release == "ack of the rest":
        await client.complete(pop)
    elif release == "dlq of the last":
        await client.ack(pop.messages[1], "dlq")
    else:
        await client.ack(pop.messages[0], "failed" if release == "nack" else "retry")
    expected = [3] if release in ("ack of the rest", "dlq of the last") else [1, 2, 3]
    assert (await waiting).data == expected
    assert time.monotonic() - started < 1.5


async def test_an_expiry_wakes_a_waiting_pop(client: Client, consumer: Client, queue: str) -> None:
    started = time.monotonic()
    await client.push(queue, [1])
    await client.pop(queue, leaseSeconds=1)
    waiting = await parked(consumer, queue)
    assert (await waiting).attempts == {2}
    assert 0.9 < time.monotonic() - started < 2.6


async def test_an_extended_lease_keeps_the_waiting_pop_waiting(
    client: Client, consumer: Client, queue: str
) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, leaseSeconds=1)
    waiting = await parked(consumer, queue)
    await client.extend(pop.lease_id, 3)
    await asyncio.sleep(1.5)
    assert not waiting.done()
    await client.ack(pop.messages[0], "retry")
    assert (await waiting).data == [1]


async def test_a_client_that_leaves_while_waiting_gets_nothing_leased(
    client: Client, consumer: Client, queue: str
) -> None:
    """Many leave at once; the next consumer gets every message, and as a first delivery."""
    for round_number in range(3):
        waiting = [await parked(consumer, queue, group="g") for _ in range(6)]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if round_number:  # at once as well as a moment later
            await asyncio.sleep(0.1 * round_number)
        await client.push(queue, [round_number])
        pop = await eventually(lambda: non_empty(client, queue, "g"), deadline=2)
        assert pop.data == [round_number]
        assert pop.attempts == {1}
        await client.complete(pop, group="g")


async def non_empty(client: Client, queue: str, group: str) -> Pop | None:
    """For the moment in which a delivery to nobody is being taken back."""
    pop = await client.pop(queue, group=group)
    return pop if pop.messages else None


async def test_a_client_that_leaves_makes_room_for_the_one_behind_it(
    client: Client, consumer: Client, queue: str
) -> None:
    gone = [await parked(consumer, queue) for _ in range(3)]
    stays = await parked(consumer, queue)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    started = time.monotonic()
    await client.push(queue, [1])
    pop = await stays
    assert (pop.data, pop.attempts) == ([1], {1})
    assert time.monotonic() - started < 2


async def test_of_200_waiting_pops_one_push_answers_just_one(
    client: Client, consumer: Client
) -> None:
    stem = unique("crowd")
    tasks = {
        number: asyncio.create_task(consumer.pop(f"{stem}-{number}", wait_ms=20_000))
        for number in range(200)
    }
    try:
        await asyncio.sleep(1)  # for 200 connections on a busy machine
        for number in (0, 123, 199):
            started = time.monotonic()
            await client.push(f"{stem}-{number}", [number])
            assert (await tasks.pop(number)).data == [number]
            assert time.monotonic() - started < 1
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in tasks.values())
        started = time.monotonic()
        assert (await client.get("/health")).status == 200
        assert time.monotonic() - started < 1
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_waiting_pops_outlive_the_deletion_of_their_queue(
    client: Client, consumer: Client, queue: str
) -> None:
    """On both workers, in queue mode and in groups, on the queue route and the partition route."""
    await client.push(queue, [1])
    groups = [None, *"abcdefg"]
    for group in groups:
        await client.complete(await client.pop(queue, group=group), group=group)
    waiting = [
        await parked(consumer, queue, group=group, partition="Default" if number % 2 else None)
        for number, group in enumerate(groups)
    ]
    await client.delete(queue)
    await client.push(queue, [2])
    started = time.monotonic()
    assert [pop.data for pop in await asyncio.gather(*waiting)] == [[2]] * len(groups)
    assert time.monotonic() - started < 5


async def test_a_waiting_pop_commits_on_delivery_too(
    client: Client, consumer: Client, queue: str
) -> None:
    waiting = await parked(consumer, queue, autoAck="true")
    await client.push(queue, [1])
    pop = await waiting
    assert (pop.data, pop.lease_id) == ([1], "")
    assert (await client.pop(queue)).status == 204


async def test_many_consumers_and_one_producer_lose_nothing_on_the_way(
    client: Client, consumer: Client, queue: str
) -> None:
    """Twelve long polls chase single messages in four partitions: each one is woken in time."""
    seen: list[int] = []

    async def consume() -> None:
        while len(seen) < 200:
            pop = await consumer.pop(queue, batch=3, wait_ms=1000)
            seen.extend(pop.data)
            if pop.messages:
                await consumer.complete(pop)

    started = time.monotonic()
    consumers = [asyncio.create_task(consume()) for _ in range(12)]
    for number in range(200):
        await client.push(queue, [number], partition=f"p{number % 4}")
    await asyncio.gather(*consumers)
    assert sorted(seen) == list(range(200))
    assert time.monotonic() - started < 15
