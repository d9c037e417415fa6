"""Order inside a partition is strict, and a reader never passes a message that commits late (2.3).

The danger is a push that takes its place early and becomes visible late: a consumer that has moved
on would never see it. So consumers run while producers push through both workers, and every offset
from 0 on must come, one after the other.
"""

import asyncio
from collections import defaultdict

from tests.client import Client, Message, drain, uuid7


async def produce(client: Client, queue: str, producer: int, requests: int) -> dict[str, int]:
    """Push request by request, 1 to 5 messages each; the offset that each id was given."""
    stored: dict[str, int] = {}
    number = 0
    for request in range(requests):
        size = 1 + (request * 7 + producer) % 5
        ids = [uuid7() for _ in range(size)]
        payloads = [[producer, number + step] for step in range(size)]
        number += size
        for entry in await client.push(queue, payloads, ids=ids):
            assert entry["status"] == "queued"
            stored[entry["transaction_id"]] = entry["offset"]
        offsets = [stored[one] for one in ids]
        assert offsets == sorted(offsets), "one request keeps its order"
    return stored


def assert_each_producer_in_order(messages: list[Message]) -> None:
    by_producer: dict[int, list[int]] = defaultdict(list)
    for message in messages:
        producer, number = message["data"]
        by_producer[producer].append(number)
    for producer, numbers in by_producer.items():
        assert numbers == list(range(len(numbers))), f"producer {producer}"


async def test_eight_producers_on_one_partition_while_consumers_run(
    fresh_client: Client, queue: str
) -> None:
    """Two groups, one with three consumers, one with a single one that commits on delivery."""
    producers = [asyncio.create_task(produce(fresh_client, queue, n, 60)) for n in range(8)]
    done = asyncio.gather(*producers)
    leased: list[Message] = []
    taken: list[Message] = []

    async def consume() -> None:
        while True:
            finished = done.done()
            pop = await fresh_client.pop(queue, group="leased", batch=17, wait_ms=200)
            leased.extend(pop.messages)
            if pop.messages:
                await fresh_client.complete(pop, group="leased")
            elif finished:
                return

    async def take() -> None:
        while True:
            finished = done.done()
            pop = await fresh_client.pop(queue, group="taken", batch=11, autoAck="true")
            taken.extend(pop.messages)
            if not pop.messages and finished:
                return

    await asyncio.gather(take(), *[consume() for _ in range(3)])
    stored: dict[str, int] = {}
    for answer in await done:
        stored |= answer
    for messages in (leased, taken, await drain(fresh_client, queue)):
        assert [message["offset"] for message in messages] == list(range(len(stored)))
        assert {m["transactionId"]: m["offset"] for m in messages} == stored
        assert_each_producer_in_order(messages)


async def test_one_producer_keeps_its_order_over_changing_connections(
    fresh_client: Client, queue: str
) -> None:
    for number in range(120):
        entry = (await fresh_client.push(queue, [number]))[0]
        assert entry["offset"] == number
    assert (await fresh_client.pop(queue)).data == list(range(120))


async def test_partitions_do_not_disturb_one_another(fresh_client: Client, queue: str) -> None:
    """Requests that mix four partitions in different orders; each partition is a log of its own."""

    async def push(producer: int) -> None:
        for request in range(25):
            names = [f"p{(producer + request * step) % 4}" for step in range(8)]
            await fresh_client.push_items(
                [
                    {"queue": queue, "partition": name, "payload": [producer, request, step]}
                    for step, name in enumerate(names)
                ]
            )

    await asyncio.gather(*[push(producer) for producer in range(6)])
    total = 0
    for name in ("p0", "p1", "p2", "p3"):
        messages = await drain(fresh_client, queue, partition=name)
        total += len(messages)
        assert [message["offset"] for message in messages] == list(range(len(messages)))
        for producer in range(6):
            own = [m["data"][1:] for m in messages if m["data"][0] == producer]
            assert own == sorted(own)
    assert total == 6 * 25 * 8


async def test_offsets_and_creation_times_rise_together(fresh_client: Client, queue: str) -> None:
    await asyncio.gather(*[fresh_client.push(queue, [0, 1]) for _ in range(40)])
    pop = await fresh_client.pop(queue)
    assert pop.offsets == list(range(80))
    times = [message["createdAt"] for message in pop.messages]
    assert times == sorted(times)


async def test_a_pop_of_any_size_continues_where_the_last_one_stopped(
    client: Client, queue: str
) -> None:
    """Batches that end inside a stored push, at its end, and across several of them."""
    for start in (0, 100, 130, 131):
        end = {0: 100, 100: 130, 130: 131, 131: 300}[start]
        await client.push(queue, list(range(start, end)))
    seen: list[int] = []
    for batch in (1, 2, 97, 1, 29, 1, 1, 5, 163, 50):
        pop = await client.pop(queue, batch=batch)
        expected = list(range(len(seen), min(len(seen) + batch, 300)))
        assert pop.data == expected
        seen += pop.data
        if pop.messages:
            await client.complete(pop)
    assert seen == list(range(300))
