"""Figures over time, of all workers and hosts (wire-api 5.2, 5.3): they agree with what was done.

The servers here book often, so that a test waits for a fraction of a second where a user waits for
ten seconds.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from yarl import URL

from tests.client import Client, eventually, segment
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

ENV = {"STATS_INTERVAL_MS": "200"}


@pytest.fixture(scope="module")
def server() -> Iterator[ClusterProcess]:
    with server_directory() as directory, ClusterProcess(data_dir=directory, env=ENV) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-5000:]


@pytest.fixture
async def client(server: ClusterProcess) -> AsyncIterator[Client]:
    """A connection for each request: both workers get some."""
    async with Client(server.url, fresh=True) as client:
        yield client


async def get(client: Client, path: str) -> Any:
    answer = await client.send("GET", path)
    assert answer.status == 200, answer
    return answer.json


def total(points: list[dict[str, Any]], name: str) -> int:
    return sum(point[name] for point in points)


async def operations(client: Client, queue: str) -> list[dict[str, Any]]:
    body = await get(client, f"/api/v1/analytics/queue-ops?queue={segment(queue)}")
    points = body["series"]
    assert body["pointCount"] == len(points)
    assert isinstance(points, list)
    return points


async def booked(client: Client, queue: str, expected: dict[str, int]) -> list[dict[str, Any]]:
    """The points of a queue once both workers have booked exactly *expected*."""
    seen: dict[str, int] = {}

    async def look() -> list[dict[str, Any]] | None:
        points = await operations(client, queue)
        seen.update({name: total(points, name) for name in expected})
        return points if seen == expected else None

    try:
        return await eventually(look, deadline=5)
    except AssertionError:
        assert seen == expected
        raise


async def test_figures_agree_with_what_was_done(client: Client, queue: str) -> None:
    before = (await get(client, "/api/v1/analytics/worker-metrics"))["summary"]
    # The figures of what other tests did may not be booked yet, so they have no part in this.
    await client.push(queue, list(range(100)), partition="a")
    await client.push(queue, list(range(50)), partition="b")
    for partition, count in (("a", 100), ("b", 40)):
        pop = await client.pop(queue, batch=count, partition=partition)
        assert len(pop.messages) == count
        await client.complete(pop)
    pop = await client.pop(queue, batch=10, partition="b")
    await client.ack_batch([(message, "failed") for message in pop.messages], error="no")
    again = await client.pop(queue, batch=10, partition="b")
    assert len(again.messages) == 10
    await client.complete(again)
    assert (await client.pop(queue)).status == 204
    await client.push(queue, ["x"], partition="a", ids=["one"])
    await client.push(queue, ["x"], partition="a", ids=["one"])
    last = await client.pop(queue, autoAck="true")
    assert len(last.messages) == 1

    expected = {
        "pushRequests": 4, "pushMessages": 151, "popRequests": 6, "popEmpty": 1,
        "popMessages": 161, "ackRequests": 4, "ackSuccess": 151, "ackFailed": 10, "dlqCount": 0,
        "transactions": 0,
    }  # fmt: skip
    points = await booked(client, queue, expected)
    assert max(point["maxLagMs"] for point in points) > 0
    for point in points:
        assert point["pushPerSecond"] <= point["pushMessages"]

    name = segment(queue)
    status = await get(client, f"/api/v1/status?queue={name}")
    assert status["messages"]["requests"] == {"push": 4, "pop": 6, "ack": 4}
    assert status["messages"]["batchEfficiency"]["push"] == round(151 / 4, 2)
    assert total(status["throughput"], "ingested") == 151
    assert total(status["throughput"], "processed") == 151
    assert total(status["throughput"], "popMessages") == 161
    assert status["errors"]["ackFailed"] == 10
    for interval in ("minute", "hour", "day"):
        body = await get(client, f"/api/v1/status/analytics?queue={name}&interval={interval}")
        assert total(body["dataPoints"], "messages") == 151
    lag = await get(client, f"/api/v1/analytics/queue-lag?queue={name}")
    assert total(lag, "popCount") == 161
    minutes = (await get(client, f"/api/v1/analytics/throughput?queue={name}"))["throughput"]
    assert sum(one["incoming"]["messagesPerMinute"] for one in minutes) == 151
    assert sum(one["failed"]["messagesPerMinute"] for one in minutes) == 10

    # The workers' own figures have all of it, whoever of the two did it.
    async def summary() -> dict[str, int] | None:
        sums = (await get(client, "/api/v1/analytics/worker-metrics"))["summary"]
        return sums if sums["totalPushMessages"] >= before["totalPushMessages"] + 151 else None

    sums = await eventually(summary)
    assert sums["totalPopMessages"] >= before["totalPopMessages"] + 161
    assert sums["totalAckFailed"] >= before["totalAckFailed"] + 10


async def test_workers_say_how_they_are(client: Client) -> None:
    async def both() -> list[dict[str, Any]] | None:
        body = await get(client, "/api/v1/analytics/system-metrics")
        assert body["replicaCount"] == len(body["replicas"])
        return body["replicas"] if body["replicaCount"] == 2 else None

    replicas = await eventually(both)
    assert [one["workerId"] for one in replicas] == [0, 1]
    for one in replicas:
        metrics = one["timeSeries"][-1]["metrics"]
        assert metrics["memory"]["rss_bytes"]["min"] > 10 * 2**20
        assert metrics["database"]["pool_size"]["last"] >= 1
        assert metrics["cpu"]["user_us"]["last"] > 0
        assert one["timeSeries"][-1]["sampleCount"] > 0
    only = await get(client, "/api/v1/analytics/system-metrics?workerId=1")
    assert [one["workerId"] for one in only["replicas"]] == [1]
    assert (await get(client, "/api/v1/analytics/system-metrics?hostname=x"))["replicas"] == []

    status = await get(client, "/api/v1/status")
    assert [one["workerId"] for one in status["workers"]] == [0, 1]
    newest = status["throughput"][0]
    assert newest["queenRssMb"] > 20
    assert newest["dbPoolSize"] >= 2
    assert newest["minFreeSlots"] > 0


@pytest.mark.parametrize(
    "route",
    [
        "status", "analytics/system-metrics", "analytics/worker-metrics", "analytics/queue-ops",
        "analytics/queue-parked-replicas", "analytics/retention",
    ],
)  # fmt: skip
async def test_the_far_past_is_empty(client: Client, route: str) -> None:
    body = await get(client, f"/api/v1/{route}?from=1999-01-01T00:00:00Z&to=2001-01-01T00:00:00Z")
    assert body["pointCount"] == 0
    assert body["timeRange"]["from"].startswith("1999-01-01T00:00:00")
    for name in ("throughput", "replicas", "timeSeries", "series"):
        assert body.get(name, []) == []
    if route != "analytics/retention":
        assert body["bucketMinutes"] == 360


async def test_buckets_grow_with_the_range(client: Client) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for hours, minutes in ((1, 1), (6, 5), (24, 15), (168, 60), (1000, 360)):
        start = (now - datetime.timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
        end = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        body = await get(client, f"/api/v1/status?from={start}&to={end}")
        assert body["bucketMinutes"] == minutes


async def test_the_lag_of_a_stopped_consumer_rises(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2, 3], partition="p")
    pop = await client.pop(queue, group="readers", batch=1)
    await client.complete(pop, group="readers")
    # From here on nobody reads.
    name = segment(queue)

    async def age_of_at_least(seconds: float) -> float | None:
        # The first points may be older than the acknowledgement, and count all three as unread.
        points = [point for point in await operations(client, queue) if point["depth"] == 2]
        ages = [p["oldestUnreadSeconds"] for p in points if p["oldestUnreadSeconds"] is not None]
        return ages[-1] if ages and ages[-1] >= seconds else None

    first = await eventually(lambda: age_of_at_least(0.01))
    await eventually(lambda: age_of_at_least(first + 1))
    (group,) = [
        one
        for one in await get(client, "/api/v1/consumer-groups")
        if one["queueName"] == queue and one["name"] == "readers"
    ]
    assert group["totalLag"] == 2
    assert group["maxTimeLag"] >= 1
    overview = await get(client, "/api/v1/resources/overview")
    assert overview["lag"]["time"]["max"] >= 1
    lag = await get(client, f"/api/v1/analytics/queue-lag?queue={name}")
    assert lag[-1]["oldestUnreadSeconds"] >= first + 1


async def test_waiting_pops_are_counted_where_they_wait(client: Client, queue: str) -> None:
    await client.configure(queue)
    waiting = [asyncio.create_task(client.pop(queue, wait_ms=20_000)) for _ in range(5)]
    name = segment(queue)

    async def parked() -> dict[str, Any] | None:
        body = await get(client, f"/api/v1/analytics/queue-parked-replicas?queue={name}")
        return body if total(body["series"], "parkedCount") == 5 else None

    body = await eventually(parked)
    assert {one["queueName"] for one in body["series"]} == {queue}
    await client.push(queue, [1] * 5, partition="a")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_overview_is_that_of_all_workers(client: Client, queue: str) -> None:
    async def pushed() -> float | None:
        await client.push(queue, list(range(100)))
        rates = (await get(client, "/api/v1/resources/overview"))["throughput"]
        assert set(rates) == {"ingestedPerSecond", "processedPerSecond"}
        return float(rates["ingestedPerSecond"]) or None

    assert await eventually(pushed) > 0


async def test_figures_survive_a_restart_and_are_shared_by_hosts(conninfo: str, queue: str) -> None:
    env = ENV | {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8"}
    with ClusterProcess(env=env) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url, fresh=True) as client:
            await client.push(queue, list(range(30)))
            await client.complete(await client.pop(queue, batch=10))
        # At once: what is not booked yet is booked on the way out.
        assert cluster.stop() == 0
    with ClusterProcess(env=env) as cluster, ClusterProcess(env=env) as other:
        cluster.wait_ready()
        other.wait_ready()
        async with Client(cluster.url) as here, Client(other.url) as there:
            points = await operations(here, queue)
            assert total(points, "pushMessages") == 30
            assert total(points, "ackSuccess") == 10
            sums = (await get(here, "/api/v1/analytics/worker-metrics"))["summary"]
            assert (sums["totalPushMessages"], sums["totalAckMessages"]) == (30, 10)
            assert sums["pendingMessages"] == 20

            await there.push(queue, list(range(7)))

            every_worker = {
                (port, slot)
                for port in (URL(cluster.url).port, URL(other.url).port)
                for slot in (0, 1)
            }

            async def everything() -> bool:
                status = await get(here, "/api/v1/status")
                seen = {(one["port"], one["workerId"]) for one in status["workers"]}
                return seen >= every_worker and total(status["throughput"], "ingested") == 37

            await eventually(everything)
            refreshed = await here.send("POST", "/api/v1/stats/refresh")
            assert refreshed.json["refreshed"] is True
            assert refreshed.json["queue"] == 1
        assert other.stop() == 0
        assert cluster.stop() == 0
