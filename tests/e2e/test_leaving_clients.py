"""Clients that go away in the middle of a request harm themselves at most.

A server that gathers the requests of many clients into one transaction must not let one of them
take the others along. Those who leave do it right after their request is sent, or in the middle of
it; around them others work and check what they get. (Those who leave while parked are in
test_long_poll, those who leave while an answer is being written in test_slow_readers.)
"""

import asyncio
import json
from collections import defaultdict
from urllib.parse import urlsplit

from tests.client import Client, Message, drain, eventually, uuid7


async def send_and_leave(url: str, request: bytes, *, politely: bool) -> None:
    """Write *request* and close at once: with a FIN when *politely*, else with a reset."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request)
    await writer.drain()
    if politely:
        writer.close()
        await writer.wait_closed()
    else:
        writer.transport.abort()


def post(path: str, value: object, *, cut: int = 0) -> bytes:
    """A POST request; the last *cut* bytes of its body are missing."""
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head + body[: len(body) - cut]


async def test_pushes_beside_clients_that_leave_are_answered_and_stored(
    fresh_client: Client, client: Client, queue: str
) -> None:
    """Requests of those who left are stored whole or not at all; nobody else notices."""
    answered: dict[str, int] = {}
    left: dict[int, list[str]] = {}

    async def work(pusher: Client) -> None:
        for _ in range(25):
            ids = [uuid7() for _ in range(3)]
            for entry in await pusher.push(queue, ["stays"] * 3, ids=ids):
                assert entry["status"] == "queued"
                answered[entry["transaction_id"]] = entry["offset"]

    async def leave(number: int) -> None:
        ids = [uuid7() for _ in range(10)]
        items = [{"queue": queue, "payload": "left", "transactionId": one} for one in ids]
        left[number] = ids
        await send_and_leave(
            client.url, post("/api/v1/push", {"items": items}), politely=bool(number % 2)
        )

    async def leave_often(first: int) -> None:
        for number in range(first, first + 20):
            await leave(number)

    await asyncio.gather(
        *[work(pusher) for pusher in (client, fresh_client) * 4],
        *[leave_often(first) for first in range(0, 80, 20)],
    )
    messages = await drain(client, queue)
    assert [message["offset"] for message in messages] == list(range(len(messages)))
    offsets = {message["transactionId"]: message["offset"] for message in messages}
    assert {one: offsets.get(one) for one in answered} == answered
    for ids in left.values():
        stored = [offsets[one] for one in ids if one in offsets]
        assert stored in ([], list(range(stored[0], stored[0] + 10)) if stored else [])
    assert len(offsets) == len(messages), "nothing is stored twice"


async def test_half_a_push_is_no_push(client: Client, queue: str) -> None:
    items = [{"queue": queue, "payload": number} for number in range(100)]
    for cut in (1, 2, 1000):
        for politely in (True, False):
            request = post("/api/v1/push", {"items": items}, cut=cut)
            await send_and_leave(client.url, request, politely=politely)
    await client.push(queue, ["whole"])
    assert (await client.pop(queue)).data == ["whole"]


async def test_acks_beside_clients_that_leave_are_applied(
    fresh_client: Client, client: Client, queue: str
) -> None:
    """Forty partitions, each leased on its own; every other client leaves after sending its ack."""
    names = [f"p{number}" for number in range(40)]
    await client.push_items(
        [{"queue": queue, "partition": name, "payload": name} for name in names]
    )
    messages: dict[str, Message] = {}
    for name in names:
        pop = await client.pop(queue, partition=name, leaseSeconds=30)
        messages[name] = pop.messages[0]

    async def settle(number: int) -> None:
        message = messages[names[number]]
        if number % 2:
            body = {key: message[key] for key in ("transactionId", "partitionId", "leaseId")}
            await send_and_leave(client.url, post("/api/v1/ack", body), politely=number % 4 == 1)
        else:
            result = await fresh_client.ack(message)
            assert (result["success"], result["leaseReleased"]) == (True, True)

    await asyncio.gather(*[settle(number) for number in range(40)])
    for number, name in enumerate(names):
        # Sent again by whoever does not know the outcome: a success either way.
        if number % 2:
            assert (await client.ack(messages[name]))["success"] is True
    assert (await client.pop(queue, partitions=64)).status == 204


async def test_pops_whose_clients_left_come_again(
    fresh_client: Client, client: Client, queue: str
) -> None:
    """A short answer may be written before anybody notices; then the lease has to run out."""
    names = [f"p{number}" for number in range(12)]
    await client.push_items(
        [
            {"queue": queue, "partition": name, "payload": [name, number]}
            for name in names
            for number in range(3)
        ]
    )
    target = f"/api/v1/pop/queue/{queue}?batch=10&leaseSeconds=1"
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    await asyncio.gather(
        *[
            send_and_leave(client.url, request, politely=bool(number % 2))
            for number in range(len(names))
        ]
    )
    seen: dict[str, list[int]] = defaultdict(list)

    async def everything() -> bool:
        pop = await fresh_client.pop(queue, partitions=64)
        for name, number in pop.data:
            seen[name].append(number)
        if pop.messages:
            await fresh_client.complete(pop)
        return len(seen) == len(names)

    await eventually(everything, deadline=6)
    assert dict(seen) == {name: [0, 1, 2] for name in names}


async def test_waiting_pops_that_come_and_go_lose_no_message(
    fresh_client: Client, client: Client, queue: str
) -> None:
    """Impatient consumers give up at any moment while messages arrive; a patient one gets all.

    A message that was on its way to somebody who had just left comes when its lease has run out.
    """
    count = 60
    stop = asyncio.Event()

    async def impatient(number: int) -> None:
        while not stop.is_set():
            waiting = asyncio.create_task(
                fresh_client.pop(queue, group="g", wait_ms=5000, leaseSeconds=1, batch=1)
            )
            await asyncio.sleep(0.002 * (number + 1))
            if waiting.done():  # got one in time: hand it back at once
                for message in (await waiting).messages:
                    await client.ack(message, "retry", group="g")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    crowd = [asyncio.create_task(impatient(number)) for number in range(6)]
    for number in range(count):
        await client.push(queue, [number], partition=f"p{number % 3}")
        await asyncio.sleep(0.005)
    stop.set()
    await asyncio.gather(*crowd)
    seen: list[int] = []

    async def everything() -> bool:
        pop = await client.pop(queue, group="g", partitions=3, batch=100)
        seen.extend(pop.data)
        if pop.messages:
            await client.complete(pop, group="g")
        return len(seen) >= count

    await eventually(everything, deadline=6)
    assert sorted(seen) == list(range(count))
    for lane in range(3):
        numbers = [number for number in seen if number % 3 == lane]
        assert numbers == sorted(numbers)
