"""The official Python client's Admin class (queen-mq 2.6.0), each method once: wire-api 3.13.

Two workers answer; what they say is that of the whole server.
"""

import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from queen import Queen

from tests.client import Client, eventually, unique
from tests.cluster_process import ClusterProcess

SIX = {"total", "pending", "processing", "completed", "failed", "deadLetter"}


@pytest.fixture
async def admin(server: ClusterProcess) -> AsyncIterator[Any]:
    # The client takes over SIGINT and SIGTERM of its process; pytest wants its own back.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    client = Queen(server.url)
    yield client.admin
    await client.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Done:
    """Four messages in one partition: one read, one failed for good, two left; and a trace."""

    def __init__(self, queue: str, namespace: str, messages: list[dict[str, Any]]) -> None:
        self.queue = queue
        self.namespace = namespace
        self.messages = messages

    def address(self, index: int) -> tuple[str, str]:
        message = self.messages[index]
        return message["partition_id"], message["transaction_id"]


@pytest.fixture
async def done(fresh_client: Client, queue: str) -> Done:
    client, namespace = fresh_client, unique("ns")
    await client.configure(
        queue, {"retryLimit": 0, "deadLetterQueue": True}, namespace=namespace, task=namespace
    )
    messages = await client.push(queue, [0, 1, 2, 3], partition="p")
    pop = await client.pop(queue, group="readers", batch=2)
    trace = {
        "transactionId": messages[0]["transaction_id"],
        "partitionId": messages[0]["partition_id"],
        "data": {"text": "seen"},
        "traceNames": [namespace],
    }
    assert (await client.post("/api/v1/traces", trace)).status in (200, 201)
    await client.ack_batch(
        [(pop.messages[0], "completed"), (pop.messages[1], "dlq")], group="readers", error="no"
    )
    return Done(queue, namespace, messages)


async def test_resources(admin: Any, done: Done) -> None:
    overview = await admin.get_overview()
    assert set(overview["messages"]) == SIX
    assert overview["queues"] >= 1
    assert overview["messages"]["total"] >= 4
    assert set(overview["lag"]) == {"time", "offset"}
    assert set(overview["throughput"]) == {"ingestedPerSecond", "processedPerSecond"}
    assert isinstance(overview["statsAge"], int)

    (namespace,) = [
        one
        for one in (await admin.get_namespaces())["namespaces"]
        if one["namespace"] == done.namespace
    ]
    assert (namespace["queues"], namespace["messages"]["total"]) == (1, 4)
    (task,) = [one for one in (await admin.get_tasks())["tasks"] if one["task"] == done.namespace]
    assert (task["queues"], task["messages"]["total"]) == (1, 4)

    listed = (await admin.list_queues(limit=1000))["queues"]
    assert done.queue in [one["name"] for one in listed]
    queue = await admin.get_queue(done.queue)
    assert queue["totals"]["total"] == 4
    assert {one["name"] for one in queue["partitions"]} == {"Default", "p"}

    depth = await admin.get_queue_depth(done.queue, "readers")
    assert (depth["pending"], depth["partitionsPending"], depth["group"]) == (2, 1, "readers")
    assert (await admin.get_queue_depth(done.queue))["pending"] == 2
    with pytest.raises(NotImplementedError):
        await admin.clear_queue(done.queue)
    (partition,) = [
        one
        for one in (await admin.get_partitions(queue=done.queue))["partitions"]
        if one["name"] == "p"
    ]
    assert (partition["depth"], partition["pending"], partition["total"]) == (2, 2, 4)
    assert partition["lagSeconds"] >= 0


async def test_messages(admin: Any, done: Done) -> None:
    listed = (await admin.list_messages(queue=done.queue))["messages"]
    assert {one["transactionId"] for one in listed} == {
        message["transaction_id"] for message in done.messages
    }
    message = await admin.get_message(*done.address(2))
    assert message["payload"] == 2
    with pytest.raises(NotImplementedError):
        await admin.move_message_to_dlq(*done.address(2))
    assert (await admin.retry_message(*done.address(1)))["success"] is True
    assert (await admin.delete_message(*done.address(3)))["success"] is True
    left = (await admin.list_messages(queue=done.queue))["messages"]
    assert done.address(3)[1] not in [one["transactionId"] for one in left]


async def test_traces(admin: Any, done: Done) -> None:
    (trace,) = (await admin.get_traces_by_name(done.namespace))["traces"]
    assert trace["data"] == {"text": "seen"}
    names = (await admin.get_trace_names(limit=1000))["trace_names"]
    assert done.namespace in [one["trace_name"] for one in names]
    assert len((await admin.get_traces_for_message(*done.address(0)))["traces"]) == 1


async def test_status(admin: Any, done: Done) -> None:
    async def booked() -> Any:
        status = await admin.get_status(queue=done.queue)
        complete = status["messages"]["requests"] == {"push": 1, "pop": 1, "ack": 1}
        return status if complete and status["errors"]["dlqMessages"] == 1 else None

    status = await eventually(booked)
    assert [one["name"] for one in status["queues"]] == [done.queue]
    assert sum(point["ingested"] for point in status["throughput"]) == 4
    assert status["messages"]["batchEfficiency"]["push"] == 4
    assert status["deadLetterQueue"]["totalMessages"] == 1
    assert len(status["workers"]) == 2
    assert set(status["messages"]) >= SIX

    stats = await admin.get_queue_stats(limit=1000)
    assert stats["pagination"] == {"limit": 1000, "offset": 0}
    assert done.queue in [one["name"] for one in stats["queues"]]
    detail = await admin.get_queue_detail(done.queue)
    assert detail["totals"]["total"] == 4
    assert detail["queue"]["config"]["retryLimit"] == 0
    analytics = await admin.get_analytics(queue=done.queue, interval="minute")
    assert sum(point["messages"] for point in analytics["dataPoints"]) == 4


async def test_consumer_groups(admin: Any, done: Done) -> None:
    (group,) = [one for one in await admin.list_consumer_groups() if one["queueName"] == done.queue]
    assert (group["name"], group["totalLag"], group["state"]) == ("readers", 2, "Stable")
    refreshed = await admin.refresh_consumer_stats()
    assert refreshed["success"] is True
    if refreshed["refreshed"]:
        assert refreshed["queue"] >= 1
    partitions = (await admin.get_consumer_group("readers"))[done.queue]["partitions"]
    assert {one["partition"]: one["offsetLag"] for one in partitions} == {"Default": 0, "p": 2}
    lagging = await admin.get_lagging_consumers(0)
    assert done.queue in [one["queue_name"] for one in lagging]
    await admin.seek_consumer_group("readers", done.queue, {"toEnd": True})
    assert (await admin.get_queue_depth(done.queue, "readers"))["pending"] == 0
    await admin.delete_consumer_group_for_queue("readers", done.queue)
    assert done.queue not in (await admin.get_consumer_group("readers"))


async def test_the_system(admin: Any, done: Done) -> None:
    health = await admin.health()
    assert (health["status"], health["connections"]) == ("healthy", 0)
    metrics = await admin.metrics()
    assert metrics["messages"]["total"] >= 4
    assert {"uptime", "requests", "messages", "database", "memory", "cpu"} <= set(metrics)

    async def both() -> Any:
        body = await admin.get_system_metrics()
        return body if body["replicaCount"] == 2 else None

    body = await eventually(both)
    point = body["replicas"][0]["timeSeries"][-1]
    assert set(point["metrics"]["memory"]["rss_bytes"]) == {"avg", "min", "max", "last"}
    workers = await admin.get_worker_metrics()
    assert len(workers["workers"]) == 2
    assert workers["pointCount"] == len(workers["timeSeries"]) > 0
    assert workers["summary"]["totalPushMessages"] >= 0
