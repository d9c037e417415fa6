"""The official Python client (queen-mq 2.6.0) works unchanged.

Named after the tests of the client's own suite, whose behaviour wire-api 4.1 lists; what belongs
to transactions, traces, encryption, delays and dead-letter listing has tests elsewhere. As that
suite does, pops are sized by the client here (autopilot off); the last section turns it on.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from queen import Queen

from tests.client import Client, unique
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


async def consume(builder: Any, *, limit: int, seconds: float = 20) -> list[Message]:
    """Consume until *limit* messages were handled; they come in the order of their handling."""
    handled: list[Message] = []

    async def handler(messages: Any) -> None:
        handled.extend(messages if isinstance(messages, list) else [messages])

    async with asyncio.timeout(seconds):
        await builder.limit(limit).consume(handler)
    return handled


def numbers(messages: list[Message]) -> list[Any]:
    return [message["data"]["n"] for message in messages]


async def pushed(queen: Any, queue: str, count: int, *, partition: str | None = None) -> None:
    builder = queen.queue(queue)
    if partition:
        builder = builder.partition(partition)
    await builder.push([{"data": {"n": number}} for number in range(count)])


# ── queues ──────────────────────────────────────────────────────────────────────────────────────


async def test_create_queue(queen: Any, queue: str) -> None:
    for _ in range(2):  # also when it exists
        assert (await queen.queue(queue).create())["configured"] is True


async def test_delete_queue(queen: Any, queue: str) -> None:
    await queen.queue(queue).create()
    assert (await queen.queue(queue).delete())["deleted"] is True


async def test_configure_queue(queen: Any, queue: str) -> None:
    wanted = {"leaseTime": 60, "retryLimit": 5, "priority": 7, "maxSize": 5000}
    result = await queen.queue(queue).namespace("billing").task("bills").config(wanted).create()
    assert result["configured"] is True
    assert {name: result["options"][name] for name in wanted} == wanted


# ── push ────────────────────────────────────────────────────────────────────────────────────────


async def test_push_message(queen: Any, queue: str) -> None:
    results = await queen.queue(queue).push([{"data": {"message": "Hello, world!"}}])
    assert isinstance(results, list)
    assert results[0]["status"] == "queued"


async def test_push_duplicate_message(queen: Any, queue: str) -> None:
    item = {"transactionId": "test-transaction-id", "data": {"n": 1}}
    first = await queen.queue(queue).push([item])
    second = await queen.queue(queue).push([item])
    assert [first[0]["status"], second[0]["status"]] == ["queued", "duplicate"]
    assert second[0]["message_id"] == first[0]["message_id"]


async def test_push_duplicate_message_on_specific_partition(queen: Any, queue: str) -> None:
    item = {"transactionId": "test-transaction-id", "data": {"n": 1}}
    statuses = [
        (await queen.queue(queue).partition(name).push([item]))[0]["status"]
        for name in ("0", "0", "1")  # the third: test_push_duplicate_message_on_different_partition
    ]
    assert statuses == ["queued", "duplicate", "queued"]


async def test_push_message_with_transaction_id(queen: Any, queue: str) -> None:
    results = await queen.queue(queue).push([{"transactionId": "my-id", "data": {"n": 1}}])
    assert results[0].get("transaction_id") or results[0]["transactionId"] == "my-id"


async def test_push_calls_back_for_duplicates(queen: Any, queue: str) -> None:
    told: dict[str, list[Any]] = {}

    async def on_success(items: list[Any]) -> None:
        told["success"] = items

    async def on_duplicate(items: list[Any], _: Exception) -> None:
        told["duplicate"] = items

    items = [{"transactionId": name, "data": {"n": 1}} for name in ("a", "b", "a")]
    await queen.queue(queue).push(items).on_success(on_success).on_duplicate(on_duplicate)
    assert [item["transactionId"] for item in told["success"]] == ["a", "b"]
    assert [item["transactionId"] for item in told["duplicate"]] == ["a"]


async def test_push_buffered_message(queen: Any, queue: str) -> None:
    builder = queen.queue(queue).buffer({"message_count": 10, "time_millis": 400})
    await builder.push([{"data": {"n": 1}}])
    assert await queen.queue(queue).batch(1).wait(False).pop() == []
    messages = await queen.queue(queue).batch(1).timeout_millis(5000).pop()
    assert numbers(messages) == [1]


async def test_push_max_queue_size(queen: Any, queue: str) -> None:
    """Enforced with a telling error, or not enforced at all."""
    await queen.queue(queue).config({"maxSize": 10}).create()
    try:
        for number in range(20):
            await queen.queue(queue).push([{"data": {"n": number}}])
    except Exception as error:
        assert "max capacity" in str(error) or "exceed" in str(error)


async def test_push_large_payload(queen: Any, queue: str) -> None:
    payload = [
        {"id": number, "name": f"Item {number}", "description": "x" * 120, "on": True}
        for number in range(10_000)
    ]
    await queen.queue(queue).push([{"data": payload}])
    messages = await queen.queue(queue).batch(1).wait(False).pop()
    assert messages[0]["data"] == payload


@pytest.mark.parametrize("payload", [None, {}], ids=["null", "empty"])
async def test_push_null_or_empty_payload(queen: Any, queue: str, payload: Any) -> None:
    await queen.queue(queue).push([{"data": payload}])
    messages = await queen.queue(queue).batch(1).wait(False).pop()
    assert messages[0]["data"] == payload


# ── pop ─────────────────────────────────────────────────────────────────────────────────────────


async def test_pop_empty_queue(queen: Any, queue: str) -> None:
    await queen.queue(queue).create()
    assert await queen.queue(queue).batch(1).wait(False).pop() == []


async def test_pop_non_empty_queue(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 1)
    assert numbers(await queen.queue(queue).batch(1).wait(True).pop()) == [0]


async def test_pop_with_wait(queen: Any, queue: str) -> None:
    await queen.queue(queue).create()
    waiting = asyncio.create_task(queen.queue(queue).batch(1).wait(True).pop())
    await asyncio.sleep(0.5)
    await pushed(queen, queue, 1)
    assert numbers(await waiting) == [0]


async def test_pop_with_ack_reconsume(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 2)
    for number in range(2):
        messages = await queen.queue(queue).batch(1).wait(False).pop()
        assert numbers(messages) == [number]
        assert (await queen.ack(messages[0]))["success"] is True
    assert await queen.queue(queue).batch(1).wait(False).pop() == []


async def test_pop_with_commit_on_delivery(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 2)
    builder = queen.queue(queue).batch(1).wait(False).commit_on_delivery(True)
    messages = await builder.pop()
    assert numbers(messages) == [0]
    assert not messages[0]["leaseId"]
    assert numbers(await queen.queue(queue).batch(1).wait(False).pop()) == [1]


async def test_nack_and_redelivery(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 3)
    messages = await queen.queue(queue).batch(3).wait(False).pop()
    assert (await queen.ack(messages[0], False, {"error": "boom"}))["success"] is True
    again = await queen.queue(queue).batch(3).wait(False).pop()
    assert numbers(again) == [0, 1, 2]
    assert {message["deliveryAttempt"] for message in again} == {2}


# ── consume ─────────────────────────────────────────────────────────────────────────────────────


async def test_consumer(queen: Any, queue: str) -> None:
    """The default long poll: the consumer is there first, the message comes later."""
    await queen.queue(queue).create()
    consuming = asyncio.create_task(consume(queen.queue(queue).batch(1), limit=1))
    await asyncio.sleep(0.2)
    await pushed(queen, queue, 1)
    assert numbers(await consuming) == [0]
    assert await queen.queue(queue).batch(1).wait(False).pop() == []


async def test_consumer_with_partition(queen: Any, queue: str) -> None:
    for partition in ("test-partition-01", "test-partition-02"):
        await pushed(queen, queue, 100, partition=partition)
    for partition in ("test-partition-01", "test-partition-02"):
        builder = queen.queue(queue).partition(partition).batch(100).wait(False)
        messages = await consume(builder, limit=1)
        assert numbers(messages) == list(range(100))
        assert {message["partition"] for message in messages} == {partition}


async def test_consumer_batch_consume(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 3)
    assert numbers(await consume(queen.queue(queue).batch(10), limit=1)) == [0, 1, 2]


async def test_consumer_ordering(queen: Any, queue: str) -> None:
    for number in range(100):
        await queen.queue(queue).push([{"data": {"n": number}}])
    handled = await consume(queen.queue(queue).batch(1).each(), limit=100)
    assert numbers(handled) == list(range(100))


async def test_consumer_ordering_batch(queen: Any, queue: str) -> None:
    for number in range(100):
        await queen.queue(queue).push([{"data": {"n": number}}])
    assert numbers(await consume(queen.queue(queue).batch(100), limit=100)) == list(range(100))


@pytest.mark.parametrize("batch", [1, 10])
async def test_consumer_ordering_concurrency(queen: Any, queue: str, batch: int) -> None:
    """Ten workers on one partition, one lease at a time: a strict order over all of them."""
    await pushed(queen, queue, 100)
    builder = queen.queue(queue).batch(batch).concurrency(10).wait(False)
    handled = await consume(builder.idle_millis(500), limit=10)
    rest = await consume(queen.queue(queue).batch(100).wait(False).idle_millis(300), limit=100)
    assert numbers(handled + rest) == list(range(100))


@pytest.mark.parametrize("partition", [None, "test-partition-01"])
async def test_consumer_group(queen: Any, queue: str, partition: str | None) -> None:
    await pushed(queen, queue, 100, partition=partition)
    for group in ("test-group-01", "test-group-02"):
        builder = queen.queue(queue).group(group).subscription_mode("all").batch(100)
        if partition:
            builder = builder.partition(partition)
        assert numbers(await consume(builder, limit=100)) == list(range(100))


async def test_batch_consume_with_auto_ack(queen: Any, queue: str) -> None:
    for start in range(0, 10_000, 1000):
        await queen.queue(queue).push([{"data": {"n": start + step}} for step in range(1000)])
    handled = await consume(queen.queue(queue).batch(1000).auto_ack(True), limit=10_000)
    assert numbers(handled) == list(range(10_000))


@pytest.mark.parametrize("group", [None, "test-group-01"])
async def test_retries(queen: Any, queue: str, group: str | None) -> None:
    """A batch of 100 fails twice as a whole and is taken the third time."""
    await queen.queue(queue).config({"retryLimit": 3}).create()
    await pushed(queen, queue, 100)
    deliveries: list[list[int]] = []

    async def handler(messages: list[Message]) -> None:
        deliveries.append(numbers(messages))
        if len(deliveries) < 3:
            raise RuntimeError("Test error")

    builder = queen.queue(queue).batch(100).wait(False).idle_millis(600)
    if group:
        builder = builder.group(group).subscription_mode("all")
    async with asyncio.timeout(20):
        await builder.consume(handler)
    assert deliveries == [list(range(100))] * 3
    if group:
        other = queen.queue(queue).batch(100).group("test-group-02").subscription_mode("all")
        assert numbers(await consume(other, limit=100)) == list(range(100))


async def test_auto_renew_lease(queen: Any, queue: str) -> None:
    """Work for longer than the lease, renewing it: nobody else gets the message meanwhile."""
    await queen.queue(queue).config({"leaseTime": 1}).create()
    await pushed(queen, queue, 1)
    stolen: list[Message] = []

    async def handler(message: Message) -> None:
        for _ in range(5):
            await asyncio.sleep(0.4)
            stolen.extend(await queen.queue(queue).batch(1).wait(False).pop())

    builder = queen.queue(queue).batch(1).limit(1).each().renew_lease(True, 300)
    async with asyncio.timeout(20):
        await builder.consume(handler)
    assert stolen == []
    assert await queen.queue(queue).batch(1).wait(False).pop() == []


async def test_renew(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 2)
    messages = await queen.queue(queue).batch(2).wait(False).pop()
    one = await queen.renew(messages[0])
    assert (one["success"], one["renewed"]) == (True, 1)
    assert one["newExpiresAt"]
    assert [result["success"] for result in await queen.renew(messages)] == [True]
    assert (await queen.renew(messages[0]["leaseId"]))["success"] is True


async def test_consumer_multi_partition_basic(queen: Any, queue: str) -> None:
    for partition in ("a", "b", "c"):
        await pushed(queen, queue, 2, partition=partition)
    messages = await queen.queue(queue).batch(100).partitions(3).wait(False).pop()
    assert len(messages) == 6
    assert len({message["partitionId"] for message in messages}) == 3
    assert len({message["leaseId"] for message in messages}) == 1
    assert (await queen.ack(messages))["success"] is True


async def test_consumer_multi_partition_global_cap(queen: Any, queue: str) -> None:
    for partition in "abcde":
        await pushed(queen, queue, 100, partition=partition)
    assert len(await queen.queue(queue).batch(10).partitions(5).wait(False).pop()) == 10


async def test_consumer_multi_partition_default_one(queen: Any, queue: str) -> None:
    for partition in "abc":
        await pushed(queen, queue, 2, partition=partition)
    messages = await queen.queue(queue).batch(100).wait(False).pop()
    assert len({message["partitionId"] for message in messages}) == 1
    assert len(messages) == 2


# ── the acknowledgement contract ────────────────────────────────────────────────────────────────


async def leased(queen: Any, queue: str, count: int, **config: int) -> list[Message]:
    if config:
        await queen.queue(queue).config(config).create()
    await pushed(queen, queue, count)
    messages: list[Message] = await queen.queue(queue).batch(count).wait(False).pop()
    assert len(messages) == count
    return messages


def with_statuses(messages: list[Message], *statuses: Any) -> list[Message]:
    return [
        {**message, "_status": status} for message, status in zip(messages, statuses, strict=True)
    ]


async def test_nack_not_skipped_by_later_ack_same_call(queen: Any, queue: str) -> None:
    messages = await leased(queen, queue, 5)
    result = await queen.ack(with_statuses(messages, True, False, True, True, True))
    assert result["success"] is True, result
    assert numbers(await queen.queue(queue).batch(10).wait(False).pop()) == [1, 2, 3, 4]


async def test_retry_not_skipped_by_later_ack_same_call(queen: Any, queue: str) -> None:
    messages = await leased(queen, queue, 3, retry_limit=0)
    result = await queen.ack(with_statuses(messages, True, "retry", True))
    assert result["success"] is True, result
    assert numbers(await queen.queue(queue).batch(10).wait(False).pop()) == [1, 2]


async def test_nack_below_cursor_is_rejected(queen: Any, queue: str) -> None:
    messages = await leased(queen, queue, 3)
    assert (await queen.ack(messages[1]))["success"] is True
    result = await queen.ack(messages[0], False)
    assert result["success"] is False
    assert "committed" in result["error"]


async def test_ack_below_cursor_is_noop_flagged(queen: Any, queue: str) -> None:
    messages = await leased(queen, queue, 3)
    await queen.ack(messages[1])
    below = await queen.ack(messages[0])
    assert (below["success"], below["noop"]) == (True, True)
    ahead = await queen.ack(messages[2])
    assert ahead["success"] is True
    assert not ahead.get("noop")


async def test_each_stops_batch_after_nack(queen: Any, queue: str) -> None:
    """One poison message in a batch of 5: delivered twice, then dead; the others once each."""
    await queen.queue(queue).config({"lease_time": 30, "retry_limit": 1}).create()
    await pushed(queen, queue, 5)
    handled: list[int] = []

    async def handler(message: Message) -> None:
        handled.append(message["data"]["n"])
        if message["data"]["n"] == 1:
            raise RuntimeError("poison")

    started = time.monotonic()
    async with asyncio.timeout(20):
        await queen.queue(queue).batch(5).each().wait(False).idle_millis(500).consume(handler)
    assert handled == [0, 1, 1, 2, 3, 4]
    assert time.monotonic() - started < 5, "the lease is released after each nack"


async def test_ack_unknown_txn_must_fail(queen: Any, queue: str) -> None:
    messages = await leased(queen, queue, 2)
    ghost = {**messages[0], "transactionId": "never-pushed"}
    for status in (True, False):
        result = await queen.ack(ghost, status)
        assert result["success"] is False
        assert "unresolv" in result["error"]
    assert (await queen.ack(messages))["success"] is True


async def test_batch_ack_under_a_stale_lease_reports_failure(queen: Any, queue: str) -> None:
    messages = await leased(queen, queue, 2)
    wrong = [{**message, "leaseId": unique("wrong")} for message in messages]
    result = await queen.ack(wrong)
    assert result["success"] is False
    assert [item["success"] for item in result["results"]] == [False, False]
    assert all("lease" in item["error"] for item in result["results"])
    assert (await queen.ack(messages))["success"] is True


async def test_renew_of_a_released_lease_reports_failure(queen: Any, queue: str) -> None:
    messages = await leased(queen, queue, 1)
    live = await queen.renew(messages[0])
    assert (live["success"], live["renewed"], bool(live["newExpiresAt"])) == (True, 1, True)
    await queen.ack(messages[0])
    gone = await queen.renew(messages[0])
    assert (gone["success"], gone["renewed"], gone["newExpiresAt"]) == (False, 0, None)


# ── subscriptions ───────────────────────────────────────────────────────────────────────────────


def from_group(queen: Any, queue: str, group: str) -> Any:
    return queen.queue(queue).group(group).batch(10).wait(False)


async def test_subscription_mode_new(queen: Any, queue: str) -> None:
    """The second pops carry no mode: what the first one said is remembered."""
    await pushed(queen, queue, 5)
    old = await from_group(queen, queue, "all").subscription_mode("all").pop()
    assert len(old) == 5
    await queen.ack(old, True, {"group": "all"})
    assert await from_group(queen, queue, "new").subscription_mode("new").pop() == []
    await queen.queue(queue).push([{"data": {"n": 100 + step}} for step in range(3)])
    for group in ("all", "new"):
        assert numbers(await from_group(queen, queue, group).pop()) == [100, 101, 102]


async def test_subscription_from_now(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 5)
    assert await from_group(queen, queue, "now").subscription_from("now").pop() == []
    await queen.queue(queue).push([{"data": {"n": 100}}])
    assert numbers(await from_group(queen, queue, "now").pop()) == [100]


async def test_subscription_from_timestamp(queen: Any, queue: str) -> None:
    await pushed(queen, queue, 2)
    await asyncio.sleep(0.05)
    between = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    await asyncio.sleep(0.05)
    await queen.queue(queue).push([{"data": {"n": 100}}])
    messages = await from_group(queen, queue, "since").subscription_from(between).pop()
    assert numbers(messages) == [100]


# ── the whole way, and what the server sizes ────────────────────────────────────────────────────


async def test_the_docs_example(queen: Any, queue: str) -> None:
    """A group reads one order and then nothing; queue mode still sees it; the id stays taken."""
    item = {"transactionId": "order-1", "data": {"n": 1}}
    first = await queen.queue(queue).partition("customer-42").push([item])
    messages = await from_group(queen, queue, "billing").subscription_mode("all").pop()
    assert numbers(messages) == [1]
    assert (await queen.ack(messages[0], True, {"group": "billing"}))["success"] is True
    assert await from_group(queen, queue, "billing").pop() == []
    assert numbers(await queen.queue(queue).batch(1).wait(False).pop()) == [1]
    second = await queen.queue(queue).partition("customer-42").push([item])
    assert second[0]["status"] == "duplicate"
    assert second[0]["message_id"] == first[0]["message_id"]


async def test_with_autopilot_the_server_sizes_the_pop(queen: Any, queue: str) -> None:
    """The client's default: neither batch nor partitions are sent."""
    await pushed(queen, queue, 30)
    builder = queen.queue(queue).autopilot(True).wait(False).idle_millis(400)
    assert numbers(await consume(builder, limit=30)) == list(range(30))
    assert await queen.queue(queue).autopilot(True).wait(False).pop() == []


async def test_names_that_the_client_puts_into_paths_unencoded(queen: Any, client: Client) -> None:
    """Its HTTP library escapes what it must; the server sees the name that was meant."""
    queue, partition = unique("two words, a:colon é"), "part one; it's"
    await queen.queue(queue).partition(partition).push([{"data": {"n": 1}}])
    messages = await queen.queue(queue).partition(partition).batch(1).wait(False).pop()
    assert numbers(messages) == [1]
    assert messages[0]["partition"] == partition
    assert (await queen.queue(queue).delete())["existed"] is True
    assert (await client.pop(queue)).status == 204
