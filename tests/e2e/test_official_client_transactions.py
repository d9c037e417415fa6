"""Transactions of the official Python client (queen-mq 2.6.0), unchanged.

Named after the tests of the client's own suite, whose behaviour wire-api 4.1 lists.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from queen import Queen

from tests.client import unique
from tests.cluster_process import ClusterProcess

Message = dict[str, Any]


@pytest.fixture
async def queen(server: ClusterProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setenv("QUEEN_SDK_POP_AUTOPILOT", "off")
    # The client takes over SIGINT and SIGTERM of its process; pytest wants its own back.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    client = Queen(server.url)
    yield client
    await client.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


async def made(queen: Any, *names: str, **options: Any) -> None:
    """Create queues, as the client's suite does before it uses them."""
    for name in names:
        builder = queen.queue(name)
        if options:
            builder = builder.config(options)
        assert (await builder.create())["configured"] is True


async def taken(queen: Any, queue: str, *values: int, batch: int = 1, **pop: str) -> list[Message]:
    """Push messages with *values*, if any, and lease *batch* of the queue's, without waiting."""
    if values:
        await queen.queue(queue).push([{"data": {"value": value}} for value in values])
    messages = await popped(queen, queue, batch=batch, **pop)
    assert len(messages) == batch
    return messages


async def popped(
    queen: Any,
    queue: str,
    *,
    batch: int = 1,
    partition: str | None = None,
    group: str | None = None,
) -> list[Message]:
    builder = queen.queue(queue)
    if partition is not None:
        builder = builder.partition(partition)
    if group is not None:
        builder = builder.group(group).subscription_mode("all")
    messages = await builder.batch(batch).wait(False).pop()
    assert isinstance(messages, list)
    return messages


def values(messages: list[Message]) -> list[Any]:
    return [message["data"]["value"] for message in messages]


async def test_transaction_basic_push_ack(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, queue, target)
    (message,) = await taken(queen, queue, 1)
    result = await (
        queen.transaction()
        .queue(target)
        .push([{"data": {"value": message["data"]["value"] + 1}}])
        .ack(message)
        .commit()
    )
    assert result["success"] is True
    assert values(await popped(queen, target)) == [2]
    assert await popped(queen, queue) == []


async def test_transaction_multiple_pushes(queen: Any, queue: str) -> None:
    targets = [unique("b"), unique("c")]
    await made(queen, queue, *targets)
    (message,) = await taken(queen, queue, 1)
    transaction = queen.transaction()
    for number, target in enumerate(targets):
        transaction.queue(target).push([{"data": {"value": number}}])
    assert await transaction.ack(message).commit()
    for number, target in enumerate(targets):
        assert values(await popped(queen, target)) == [number]
    assert await popped(queen, queue) == []


async def test_transaction_multiple_acks(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, queue, target)
    messages = await taken(queen, queue, 1, 2, 3, batch=3)
    transaction = queen.transaction()
    for message in messages:
        transaction.ack(message)
    total = sum(values(messages))
    assert await transaction.queue(target).push([{"data": {"value": total}}]).commit()
    assert values(await popped(queen, target)) == [6]
    # The batch is complete, so its lease is gone: a later message comes at once.
    assert await popped(queen, queue) == []
    assert values(await taken(queen, queue, 4)) == [4]


async def test_transaction_ack_with_status(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, target)
    await made(queen, queue, retryLimit=0)
    (message,) = await taken(queen, queue, 1)
    result = await (
        queen.transaction()
        .ack(message, "failed")
        .queue(target)
        .push([{"data": {"value": "went wrong"}}])
        .commit()
    )
    assert result["success"] is True
    assert values(await popped(queen, target)) == ["went wrong"]
    assert await popped(queen, queue) == []
    letters = await queen.queue(queue).dlq().limit(10).get()
    assert [letter["data"] for letter in letters["messages"]] == [{"value": 1}]


async def test_transaction_atomicity(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, queue, target)
    (message,) = await taken(queen, queue, 1)
    await queen.transaction().ack(message).queue(target).push([{"data": {"value": 2}}]).commit()
    assert await popped(queen, queue) == []
    assert values(await popped(queen, target)) == [2]


async def test_transaction_chained_processing(queen: Any, queue: str) -> None:
    second, third = unique("b"), unique("c")
    await made(queen, queue, second, third)
    await queen.queue(queue).push([{"data": {"value": 1}}])
    for source, target in ((queue, second), (second, third)):
        (message,) = await popped(queen, source)
        value = message["data"]["value"] * 10
        transaction = queen.transaction().ack(message)
        assert await transaction.queue(target).push([{"data": {"value": value}}]).commit()
    assert values(await popped(queen, third)) == [100]
    assert await popped(queen, queue) == await popped(queen, second) == []


async def test_transaction_batch_push(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, queue, target)
    (message,) = await taken(queen, queue, 1)
    items = [{"data": {"value": number}} for number in range(5)]
    result = await queen.transaction().queue(target).push(items).ack(message).commit()
    assert [one["type"] for one in result["results"]] == ["push"] * 5 + ["ack"]
    assert values(await popped(queen, target, batch=10)) == [0, 1, 2, 3, 4]


async def test_transaction_with_partitions(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, queue, target)
    held: list[Message] = []
    for number, partition in enumerate(("p1", "p2")):
        builder = queen.queue(queue).partition(partition)
        await builder.push([{"data": {"value": number}}])
        held += await popped(queen, queue, partition=partition)
    assert len({message["leaseId"] for message in held}) == 2
    transaction = queen.transaction().ack(held[0]).ack(held[1])
    result = await transaction.queue(target).partition("p").push({"data": {"value": 3}}).commit()
    assert result["success"] is True
    assert values(await popped(queen, target, partition="p")) == [3]
    for partition in ("p1", "p2"):
        assert await popped(queen, queue, partition=partition) == []


async def test_transaction_with_consumer(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, queue, target)
    await queen.queue(queue).push([{"data": {"value": number}} for number in range(5)])
    seen: list[Any] = []

    async def handler(messages: Any) -> None:
        message = messages[0] if isinstance(messages, list) else messages
        seen.append(message["data"]["value"])
        transaction = queen.transaction().ack(message)
        await transaction.queue(target).push([{"data": message["data"]}]).commit()

    # No acknowledgement by the client: each commit alone frees the partition for the next pop.
    async with asyncio.timeout(10):
        await queen.queue(queue).batch(1).auto_ack(False).limit(5).each().consume(handler)
    assert seen == [0, 1, 2, 3, 4]
    assert values(await popped(queen, target, batch=10)) == seen
    assert await popped(queen, queue) == []


async def test_transaction_empty_commit(queen: Any) -> None:
    with pytest.raises(Exception, match="Transaction has no operations to commit"):
        await queen.transaction().commit()


async def test_transaction_large_payload(queen: Any, queue: str) -> None:
    target = unique("b")
    await made(queen, queue, target)
    large = {"array": [{"id": number, "text": f"item {number}" * 10} for number in range(1000)]}
    await queen.queue(queue).push([{"data": large}])
    (message,) = await popped(queen, queue)
    assert message["data"] == large
    transaction = queen.transaction().ack(message)
    assert await transaction.queue(target).push([{"data": message["data"]}]).commit()
    assert [one["data"] for one in await popped(queen, target)] == [large]


async def test_transaction_multiple_queues(queen: Any, queue: str) -> None:
    other, target = unique("b"), unique("c")
    await made(queen, queue, other, target)
    (one,) = await taken(queen, queue, 1)
    (two,) = await taken(queen, other, 2)
    transaction = queen.transaction().ack(one).ack(two)
    assert await transaction.queue(target).push([{"data": {"value": 3}}]).commit()
    assert values(await popped(queen, target)) == [3]
    assert await popped(queen, queue) == await popped(queen, other) == []


async def test_transaction_rollback(queen: Any, queue: str) -> None:
    """The happy path as in the client's suite; and what it does not try, a refusal."""
    target = unique("b")
    await made(queen, queue, target)
    (message,) = await taken(queen, queue, 1)
    ghost = message | {"transactionId": "never pushed"}
    transaction = queen.transaction().queue(target).push([{"data": {"value": 2}}])
    with pytest.raises(Exception, match="rolled back"):
        await transaction.ack(message).ack(ghost).commit()
    assert await popped(queen, target) == []
    transaction = queen.transaction().queue(target).push([{"data": {"value": 2}}])
    assert await transaction.ack(message).commit()
    assert values(await popped(queen, target)) == [2]
    assert await popped(queen, queue) == []


async def test_transaction_ack_with_consumer_group(queen: Any, queue: str) -> None:
    await made(queen, queue)
    messages = await taken(queen, queue, 1, 2, batch=2, group="one")
    context = {"consumer_group": "one"}
    assert await queen.transaction().ack(messages, "completed", context).commit()
    assert await popped(queen, queue, batch=2, group="one") == []
    assert values(await popped(queen, queue, batch=2, group="two")) == [1, 2]


async def test_a_bundle_with_an_ack_under_an_expired_lease_is_refused_whole(
    queen: Any, queue: str
) -> None:
    other = unique("b")
    await made(queen, queue, leaseTime=1)
    await made(queen, other)
    (old,) = await taken(queen, queue, 1)
    (live,) = await taken(queen, other, 2)
    await asyncio.sleep(1.2)
    await made(queen, queue, leaseTime=30)
    (new,) = await popped(queen, queue)
    assert new["transactionId"] == old["transactionId"]
    assert new["leaseId"] != old["leaseId"]
    with pytest.raises(Exception, match="rolled back"):
        await queen.transaction().ack(old).ack(live).commit()
    for message in (new, live):
        assert await queen.transaction().ack(message).commit()
    assert await popped(queen, queue) == await popped(queen, other) == []


async def test_a_bundle_of_two_live_leases_completes_both(queen: Any, queue: str) -> None:
    other = unique("b")
    await made(queen, queue, other)
    (one,) = await taken(queen, queue, 1)
    (two,) = await taken(queen, other, 2)
    assert one["leaseId"] != two["leaseId"]
    assert await queen.transaction().ack(one).ack(two).commit()
    for name, value in ((queue, 3), (other, 4)):
        # Nothing comes again, and nothing is held.
        assert await popped(queen, name) == []
        assert values(await taken(queen, name, value)) == [value]


async def test_complete(queen: Any, queue: str) -> None:
    """Three stages: two consume and hand on in transactions, the last reads what arrives."""
    second, third = unique("b"), unique("c")
    await made(queen, queue, second, third)
    await queen.queue(queue).push([{"data": {"value": number}} for number in range(20)])

    async def stage(source: str, target: str) -> None:
        async def handler(messages: list[Message]) -> None:
            transaction = queen.transaction().ack(messages)
            data = [{"data": {"value": value + 100}} for value in values(messages)]
            await transaction.queue(target).push(data).commit()

        builder = queen.queue(source).batch(5).auto_ack(False).wait(False).idle_millis(1500)
        await builder.consume(handler)

    async with asyncio.timeout(30):
        await asyncio.gather(stage(queue, second), stage(second, third))
    assert values(await popped(queen, third, batch=100)) == [200 + n for n in range(20)]
    assert await popped(queen, queue) == await popped(queen, second) == []


async def test_docs_examples(queen: Any, queue: str) -> None:
    await made(queen, queue)
    item = {"transactionId": "order-1", "data": {"value": 1}}
    first = (await queen.queue(queue).push([item]))[0]
    (message,) = await popped(queen, queue, group="billing")
    assert (await queen.ack(message, True, {"group": "billing"}))["success"] is True
    assert await popped(queen, queue, group="billing") == []
    assert values(await popped(queen, queue)) == [1]
    second = (await queen.queue(queue).push([item]))[0]
    assert second["status"] == "duplicate"
    assert second["message_id"] == first["message_id"]


async def test_dlq(queen: Any, queue: str) -> None:
    """Two retries, so three deliveries; then the dead letter tells what and why."""
    await made(queen, queue, retryLimit=2)
    await queen.queue(queue).push([{"data": {"value": 1}}])
    deliveries = 0

    async def handler(_message: Any) -> None:
        nonlocal deliveries
        deliveries += 1
        raise ValueError("the handler always fails")

    async with asyncio.timeout(20):
        builder = queen.queue(queue).batch(1).each().wait(False).idle_millis(1000)
        await builder.consume(handler)
    assert deliveries == 3
    (letter,) = (await queen.queue(queue).dlq().limit(10).get())["messages"]
    assert letter["data"] == {"value": 1}
    assert "the handler always fails" in letter["errorMessage"]
