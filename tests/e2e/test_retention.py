"""Messages that go by themselves: within seconds, and nothing else with them.

The server looks for them every half second, so that a test need not wait long.
"""

import asyncio
import datetime
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.client import Client, drain, eventually, segment, uuid7
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory


@pytest.fixture(scope="module")
def brisk_server() -> Iterator[ClusterProcess]:
    with (
        server_directory() as directory,
        ClusterProcess(
            data_dir=directory, env={"RETENTION_INTERVAL": "500", "LOG_LEVEL": "debug"}
        ) as cluster,
    ):
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-5000:]


@pytest.fixture
async def client(brisk_server: ClusterProcess) -> AsyncIterator[Client]:
    async with Client(brisk_server.url, fresh=True) as client:
        yield client


async def deleted(client: Client, since: datetime.datetime) -> dict[str, Any]:
    """The totals of what was deleted since then."""
    text = since.isoformat().replace("+", "%2B")
    answer = await client.get(f"/api/v1/analytics/retention?from={text}")
    assert answer.status == 200, answer
    totals = answer.json["totals"]
    assert isinstance(totals, dict)
    return totals


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def gone(client: Client, queue: str, ids: list[str], deadline: float = 8) -> None:
    """Wait until messages with *ids* are gone: until then, pushing them again is a duplicate."""

    async def pushed_again() -> bool:
        results = await client.push(queue, ["again"], ids=ids[:1])
        return bool(results[0]["status"] == "queued")

    await eventually(pushed_again, deadline=deadline, interval=0.3)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"retentionEnabled": True, "retentionSeconds": 1}, "retentionMsgs"),
        ({"maxWaitTimeSeconds": 1}, "evictionMsgs"),
        ({"ttl": 1}, "evictionMsgs"),
    ],
)
async def test_old_messages_go_and_the_queue_goes_on(
    client: Client, queue: str, options: dict[str, Any], field: str
) -> None:
    since = now()
    await client.configure(queue, options)
    ids = [uuid7() for _ in range(50)]
    first = await client.push(queue, list(range(50)), ids=ids)
    await gone(client, queue, ids)

    # Where messages grow too old to be delivered, their ids are new before eviction has come by.
    async def evicted() -> dict[str, Any] | None:
        totals = await deleted(client, since)
        return totals if totals[field] >= 50 else None

    totals = await eventually(evicted, deadline=8)
    assert totals["totalMsgs"] >= 50
    assert totals["eventCount"] >= 1

    # Positions go on, and what comes now is delivered.
    await client.configure(queue, dict.fromkeys(options))
    results = await client.push(queue, ["new"])
    assert results[0]["offset"] == first[-1]["offset"] + 2
    messages = await drain(client, queue)
    assert [message["data"] for message in messages][-1] == "new"
    assert not {0, 1, 49} & {message["data"] for message in messages}


async def test_retention_seconds_alone_let_nothing_go(client: Client, queue: str) -> None:
    await client.configure(queue, {"retentionSeconds": 1, "completedRetentionSeconds": 1})
    plain, other = f"{queue}-plain", f"{queue}-other"
    await client.push(queue, [1])
    await client.push(plain, [2])  # its ttl of 3600 is an echo that enforces nothing
    await client.configure(other, {"retentionEnabled": True, "retentionSeconds": 1})
    ids = [uuid7()]
    await client.push(other, [3], ids=ids)
    await gone(client, other, ids)
    assert (await client.pop(queue)).data == [1]
    assert (await client.pop(plain)).data == [2]


async def test_completed_messages_go_when_the_last_group_has_read_them(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"retentionEnabled": True, "completedRetentionSeconds": 1})
    ids = [uuid7() for _ in range(10)]
    await client.push(queue, list(range(10)), ids=ids)
    slow = await client.pop(queue, group="slow")
    await client.complete(await client.pop(queue, group="fast"), group="fast")
    await asyncio.sleep(2.5)
    results = await client.push(queue, ["again"], ids=ids[:1])
    assert results[0]["status"] == "duplicate", "one group has not read it"
    await client.complete(slow, group="slow")
    await gone(client, queue, ids)
    for group in ("fast", "slow"):
        assert (await client.pop(queue, group=group)).data == ["again"]


async def test_acks_of_a_lease_whose_messages_are_gone_are_answered(
    client: Client, queue: str
) -> None:
    options = {"retentionEnabled": True, "retentionSeconds": 2, "leaseTime": 300}
    await client.configure(queue, options)
    ids = [uuid7() for _ in range(4)]
    await client.push(queue, [0, 1], ids=ids[:2])
    await client.push(queue, [2, 3], ids=ids[2:])
    pop = await client.pop(queue)
    assert pop.data == [0, 1, 2, 3]
    assert (await client.ack(pop.messages[0]))["success"]
    other = await client.pop(queue, group="other", batch=2)
    await client.complete(other, group="other")
    await client.pop(queue, group="other", batch=1)
    await gone(client, queue, ids)

    # With its last message the lease has ended: what comes now is delivered at once.
    await client.configure(queue, options | {"retentionSeconds": 0})
    results = await client.ack_batch([(message, "completed") for message in pop.messages[1:]])
    assert {result["error"] for result in results} == {"Invalid or expired lease"}
    assert (await client.extend(pop.lease_id, 60))["success"] is False
    await client.push(queue, ["new"])
    for group in ("", "?group=other"):
        depth = (await client.get(f"/api/v1/resources/queues/{segment(queue)}/depth{group}")).json
        assert depth["processing"] == 0
        assert depth["pending"] == depth["ready"] >= 1
    assert (await client.pop(queue)).data[-1] == "new"
    assert (await client.pop(queue, group="other")).data[-1] == "new"


@pytest.mark.parametrize("option", ["ttl", "maxWaitTimeSeconds"])
async def test_the_id_of_a_message_too_old_to_be_delivered_is_new_again(
    client: Client, queue: str, option: str
) -> None:
    """Eviction has not come by yet, or it has: that makes no difference."""
    await client.configure(queue, {option: 1})
    await client.push(queue, ["old"], ids=["one"])
    assert (await client.push(queue, ["same"], ids=["one"]))[0]["status"] == "duplicate"
    await asyncio.sleep(1.1)
    assert (await client.pop(queue)).status == 204
    assert (await client.push(queue, ["new"], ids=["one"]))[0]["status"] == "queued"
    assert (await client.pop(queue)).data == ["new"]


async def test_a_waiting_consumer_gets_what_comes_after_everything_went(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"maxWaitTimeSeconds": 1})
    ids = [uuid7()]
    await client.push(queue, ["old"], ids=ids)
    await gone(client, queue, ids)
    await asyncio.sleep(2)
    waiting = asyncio.create_task(client.pop(queue, wait_ms=10_000))
    await asyncio.sleep(0.5)
    await client.push(queue, ["new"])
    assert (await waiting).data[-1] == "new"


async def test_the_history_says_its_range_and_refuses_one_that_is_none(client: Client) -> None:
    answer = await client.get("/api/v1/analytics/retention")
    assert answer.status == 200
    body = answer.json
    assert body["bucketMinutes"] == 1
    assert body["pointCount"] == len(body["series"])
    assert set(body["totals"]) == {
        "retentionMsgs", "completedRetentionMsgs", "evictionMsgs", "totalMsgs", "eventCount",
    }  # fmt: skip
    for field, total in body["totals"].items():
        assert total == sum(point[field] for point in body["series"])
    assert set(body["timeRange"]) == {"from", "to"}
    day = await client.get("/api/v1/analytics/retention?from=2026-01-01&to=2026-01-02T00:00:00Z")
    assert day.json["bucketMinutes"] == 12
    assert day.json["timeRange"]["from"] == "2026-01-01T00:00:00.000000Z"
    for query in ("from=yesterday", "to=1", "from=2026-01-02&to=2026-01-01"):
        refused = await client.get(f"/api/v1/analytics/retention?{query}")
        assert refused.status == 400, query
        assert refused.error


async def test_another_worker_takes_over_when_the_leader_is_replaced(
    brisk_server: ClusterProcess, client: Client, queue: str
) -> None:
    # SIGHUP replaces both workers: the leader gives its leases up, which end in 15 s otherwise.
    start = len(brisk_server.lines)
    before = set(brisk_server.worker_pids())
    brisk_server.signal(signal.SIGHUP)
    brisk_server.wait_until(
        lambda: not before & set(brisk_server.worker_pids()), 30, "workers are not replaced"
    )
    brisk_server.wait_for_line('"leading"', 12, start)
    await client.configure(queue, {"ttl": 1})
    ids = [uuid7()]
    await client.push(queue, ["old"], ids=ids)
    await gone(client, queue, ids, deadline=12)
