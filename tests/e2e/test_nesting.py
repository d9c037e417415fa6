"""Payloads are nested at most 500 levels deep, and what is accepted can go every way."""

import asyncio
from typing import Any

import pytest

from tests.client import Answer, Client, Message, segment

LEVELS_MAX = 500
# Around the limits of the server, and of JSON decoders that recurse in Python's stack.
REFUSED = [LEVELS_MAX + 1, LEVELS_MAX + 2, *range(960, 1001), 5000]


def nested(levels: int) -> str:
    return (
        '[{"a":' * (levels // 2)
        + "[]" * (levels % 2)
        + "1" * (1 - levels % 2)
        + "}]" * (levels // 2)
    )


async def send(client: Client, path: str, body: str) -> Answer:
    headers = {"Content-Type": "application/json"}
    return await client.send("POST", f"/api/v1/{path}", body=body.encode(), headers=headers)


def path_of(message: Message) -> str:
    return f"/api/v1/messages/{message['partitionId']}/{segment(message['transactionId'])}"


def address_of(message: Message) -> str:
    return f'"transactionId":"{message["transactionId"]}","partitionId":"{message["partitionId"]}"'


def push_bodies(queue: str, value: str) -> list[tuple[str, str]]:
    item = f'{{"queue":"{queue}","payload":{value}}}'
    data = item.replace('"payload"', '"data"')
    return [
        ("push", f'{{"items":[{{"queue":"{queue}"}},{item}]}}'),
        ("transaction", f'{{"operations":[{{"type":"push","items":[{data}]}}]}}'),
        ("transaction", f'{{"operations":[{{"type":"push",{item[1:]}]}}'),
    ]


async def test_deeper_payloads_are_refused_and_named(client: Client, queue: str) -> None:
    await client.push(queue, [0])
    message = (await client.pop(queue, group="g")).messages[0]
    address = address_of(message)
    for levels in REFUSED:
        requests = push_bodies(queue, nested(levels))
        requests.append(("traces", f'{{{address},"data":{nested(levels)}}}'))
        answers = await asyncio.gather(*(send(client, *request) for request in requests))
        for answer, place in zip(
            answers, ["items[1].payload", "operations[0]", "operations[0]", "data"], strict=True
        ):
            assert answer.status == 400, (levels, answer)
            if levels < 900:  # the decoder's own limit lies above
                assert place in answer.error, answer
                assert f"{LEVELS_MAX} levels" in answer.error
    assert (await client.pop(queue)).ids == [message["transactionId"]]


@pytest.mark.parametrize("levels", [LEVELS_MAX - 1, LEVELS_MAX])
async def test_what_is_accepted_goes_every_way(client: Client, queue: str, levels: int) -> None:
    value = nested(levels)
    await client.configure(queue, {"retryLimit": 1, "deadLetterQueue": True})
    for path, body in push_bodies(queue, value):
        assert (await send(client, path, body)).status in (200, 201)

    async def ok(method: str, target: str, body: Any = None) -> str:
        headers = {"Content-Type": "application/json"} if body else {}
        answer = await client.send(
            method, target, body=body.encode() if body else None, headers=headers
        )
        assert answer.status in (200, 201), answer
        return answer.raw.decode()

    async def give_up(status: str, times: int) -> Message:
        for _ in range(times):
            pop = await client.pop(queue, batch=1)
            message = pop.messages[0]
            result = await client.ack(message, status)
        assert result["dlq"] is True
        return message

    await client.complete(await client.pop(queue, batch=1))  # the first is shallow
    assert value in await ok("GET", f"/api/v1/messages?queue={queue}")
    spent = await give_up("failed", 2)
    given_up = await give_up("dlq", 1)
    waiting = (await client.pop(queue, batch=1, leaseSeconds=1)).messages[0]
    await ok("POST", f"{path_of(waiting)}/dlq")
    for message in (spent, given_up, waiting):
        assert value in await ok("GET", path_of(message))
        trace = f'{{{address_of(message)},"traceNames":"{queue}","data":{value}}}'
        await ok("POST", "/api/v1/traces", trace)
    assert (await ok("GET", f"/api/v1/dlq?queue={queue}")).count(value) == 3
    assert (await ok("GET", f"/api/v1/traces/by-name/{queue}")).count(value) == 2 * 3
    assert (await ok("GET", f"/api/v1/messages?queue={queue}&status=dead_letter")).count(value) >= 3
    await ok("POST", f"{path_of(spent)}/retry")
    letters = (await client.get(f"/api/v1/dlq?queue={queue}")).json["messages"]
    assert len(letters) == 2
    await ok("POST", f"/api/v1/dlq/{letters[0]['id']}/replay")
    await ok("POST", "/api/v1/dlq/redrive", f'{{"queue":"{queue}"}}')
    pop = await client.pop(queue, wait_ms=5000)  # the lease on what was given up may run yet
    assert len(pop.messages) == 3
    await client.complete(pop)
    await ok("DELETE", path_of(pop.messages[0]))
    assert value in await ok("GET", f"/api/v1/messages?queue={queue}&limit=2")
