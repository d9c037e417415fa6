"""What dashboards and Admin classes read: resources, status, groups (wire-api 5.1, 5.2, 5.7)."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from queen import Queen

from tests.client import Client, eventually, segment, unique
from tests.cluster_process import ROOT, ClusterProcess

ZEROS = {
    "total": 0, "pending": 0, "processing": 0, "completed": 0, "failed": 0, "deadLetter": 0,
}  # fmt: skip


async def get(client: Client, target: str) -> Any:
    answer = await client.get(target)
    assert answer.status == 200, answer
    return answer.json


def times_are_times(value: Any, name: str = "") -> None:
    """Every time in an answer is in UTC with a `Z`."""
    if isinstance(value, dict):
        for key, item in value.items():
            times_are_times(item, key)
    elif isinstance(value, list):
        for item in value:
            times_are_times(item, name)
    elif name.endswith(("At", "Timestamp", "timestamp", "Message")) and isinstance(value, str):
        assert value.endswith("Z"), (name, value)
        assert datetime.fromisoformat(value).tzinfo == UTC


async def fill(client: Client, queue: str) -> None:
    """Ten messages in `a`: three completed, one of these dead, two leased; two pending in `b`."""
    await client.push(queue, list(range(10)), partition="a")
    await client.push(queue, [10, 11], partition="b")
    pop = await client.pop(queue, partition="a", batch=3)
    await client.ack_batch(
        [(pop.messages[0], "completed"), (pop.messages[1], "completed"), (pop.messages[2], "dlq")]
    )
    assert len((await client.pop(queue, partition="a", batch=2)).messages) == 2


IN_A = {"total": 10, "pending": 5, "processing": 2, "completed": 2, "failed": 0, "deadLetter": 1}
IN_B = ZEROS | {"total": 2, "pending": 2}
IN_BOTH = {name: IN_A[name] + IN_B[name] for name in ZEROS}


# ── an empty database ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def empty_client(data_dir: Path) -> AsyncIterator[Client]:
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url) as client:
            yield client
        assert cluster.stop() == 0


async def test_an_empty_database_answers_everything(empty_client: Client) -> None:
    client = empty_client
    overview = await get(client, "/api/v1/resources/overview")
    assert {overview[name] for name in ("queues", "partitions", "namespaces", "tasks")} == {0}
    assert overview["messages"] == ZEROS
    zero = {"avg": 0, "median": 0, "min": 0, "max": 0}
    assert overview["lag"] == {"time": zero, "offset": zero}
    assert overview["throughput"] == {"ingestedPerSecond": 0, "processedPerSecond": 0}
    for name in ("queues", "partitions", "namespaces", "tasks"):
        assert await get(client, f"/api/v1/resources/{name}") == {name: []}
    assert await get(client, "/api/v1/consumer-groups") == []
    assert await get(client, "/api/v1/consumer-groups/lagging?minLagSeconds=0") == []
    assert await get(client, "/api/v1/consumer-groups/nobody") == {}
    status = await get(client, "/api/v1/status")
    assert status["queues"] == []
    for point in status["throughput"]:
        assert (point["ingested"], point["processed"], point["popMessages"]) == (0, 0, 0)
    assert {name: status["messages"][name] for name in ZEROS} == ZEROS
    assert status["leases"] == {
        "active": 0, "partitionsWithLeases": 0, "totalBatchSize": 0, "totalAcked": 0,
    }  # fmt: skip
    assert status["deadLetterQueue"] == {
        "totalMessages": 0, "affectedPartitions": 0, "topErrors": [],
    }  # fmt: skip
    assert len(status["workers"]) == 2
    assert (await get(client, "/api/v1/status/queues"))["queues"] == []
    assert (await get(client, "/api/v1/status/analytics"))["dataPoints"] == []
    assert (await get(client, "/api/v1/messages"))["messages"] == []
    assert (await get(client, "/api/v1/dlq"))["total"] == 0
    assert (await get(client, "/api/v1/traces/names"))["trace_names"] == []
    metrics = await get(client, "/api/v1/analytics/system-metrics")
    assert metrics["replicaCount"] == len(metrics["replicas"])
    metrics = await get(client, "/api/v1/analytics/worker-metrics?from=1999-01-01T00:00:00Z")
    assert all(point["pushMessages"] == 0 for point in metrics["timeSeries"])
    assert metrics["summary"]["pendingMessages"] == 0
    nothing = {"queues": [], "truncated": False}
    assert await get(client, "/api/v1/analytics/queues") == nothing
    assert await get(client, "/api/v1/analytics/queue-depths") == {"depths": [], "truncated": False}
    assert await get(client, "/api/v1/analytics?task=none") == nothing
    assert (await get(client, "/api/v1/status/buffers"))["pending"] == 0
    for target in (
        "resources/queues/none", "resources/queues/none/depth", "status/queues/none",
        "analytics/queue/none",
    ):  # fmt: skip
        answer = await client.get(f"/api/v1/{target}")
        assert answer.status == 404
        assert answer.error == "Queue not found"


# ── queues and partitions ───────────────────────────────────────────────────────────────────────


async def test_the_first_servers_dashboard_reads_the_same_figures(
    client: Client, queue: str
) -> None:
    namespace = unique("ns")
    await client.configure(queue, namespace=namespace, task="export")
    await fill(client, queue)
    entry = await get(client, f"/api/v1/analytics/queue/{segment(queue)}")
    by_name = sorted(entry.pop("partitions"), key=lambda one: one["name"])
    assert by_name == [
        {"name": "Default", "stats": ZEROS},
        {"name": "a", "stats": IN_A},
        {"name": "b", "stats": IN_B},
    ]
    assert entry.pop("truncated") is False
    assert entry == {
        "queue": queue,
        "namespace": namespace,
        "task": "export",
        "partitionCount": 3,
        "totals": IN_BOTH,
    }
    for target in (
        f"/api/v1/analytics?namespace={namespace}",
        f"/api/v1/analytics?namespace={namespace}&task=export",
        f"/api/v1/analytics/queues?namespace={namespace}",
    ):
        (found,) = (await get(client, target))["queues"]
        assert sorted(found.pop("partitions"), key=lambda one: one["name"]) == by_name
        assert found == entry
    assert (await get(client, f"/api/v1/analytics?namespace={namespace}&task=x"))["queues"] == []
    assert (await client.get("/api/v1/analytics")).status == 400
    everything = await get(client, "/api/v1/analytics/queues?fromDateTime=x")
    assert queue in [one["queue"] for one in everything["queues"]]
    depths = (await get(client, "/api/v1/analytics/queue-depths"))["depths"]
    (depth,) = [one for one in depths if one["queue"] == queue]
    assert (depth["depth"], depth["processing"]) == (7, 2)
    partitions = {one.pop("name"): one for one in depth["partitions"]}
    assert partitions == {
        "a": {"depth": 5, "processing": 2},
        "b": {"depth": 2, "processing": 0},
        "Default": {"depth": 0, "processing": 0},
    }


async def test_a_queue_and_its_partitions(client: Client, queue: str) -> None:
    await client.configure(queue, {"leaseTime": 77}, namespace="billing", task="export")
    await fill(client, queue)
    body = await get(client, f"/api/v1/resources/queues/{segment(queue)}")
    times_are_times(body)
    assert (body["name"], body["namespace"], body["task"]) == (queue, "billing", "export")
    assert body["totals"] == IN_BOTH
    assert body["options"]["leaseTime"] == 77
    assert body["options"]["namespace"] == "billing"
    assert [p["name"] for p in body["partitions"]] == ["a", "b", "Default"] or sorted(
        p["name"] for p in body["partitions"]
    ) == ["Default", "a", "b"]
    partitions = {p["name"]: p for p in body["partitions"]}
    assert partitions["a"]["stats"] == IN_A
    assert partitions["b"]["stats"] == IN_B
    assert partitions["Default"]["stats"] == ZEROS
    assert partitions["Default"]["oldestMessage"] is None
    assert partitions["a"]["oldestMessage"] <= partitions["a"]["newestMessage"]

    listing = await get(client, f"/api/v1/resources/queues?search={segment(queue[:20])}&x=y")
    (entry,) = [q for q in listing["queues"] if q["name"] == queue]
    times_are_times(entry)
    assert entry["id"] == body["id"]
    assert entry["partitions"] == 3
    assert entry["messages"] == IN_BOTH

    status = await get(client, f"/api/v1/status/queues/{segment(queue)}")
    times_are_times(status)
    assert status["queue"]["config"]["leaseTime"] == 77
    assert status["totals"] == {"messages": IN_BOTH, **IN_BOTH}
    (in_a,) = [p for p in status["partitions"] if p["name"] == "a"]
    assert in_a["messages"] == in_a["stats"] == IN_A
    assert in_a["cursor"] == {"totalConsumed": 3, "batchesConsumed": 0}

    async def booked() -> Any:
        # Each push may have come to another worker, and each books by itself.
        points = await get(client, f"/api/v1/status/analytics?queue={segment(queue)}")
        if sum(one["messages"] for one in points["dataPoints"]) < 12:
            return None
        return await get(client, f"/api/v1/status?queue={segment(queue)}")

    status = await eventually(booked)
    times_are_times(status)
    assert status["queues"][0]["totalConsumed"] == 3
    assert status["queues"][0]["partitions"] == 3
    assert {name: status["messages"][name] for name in ZEROS} == IN_BOTH
    assert status["leases"]["active"] == 1
    assert status["leases"]["totalBatchSize"] == 2
    assert status["deadLetterQueue"]["totalMessages"] == 1
    assert status["deadLetterQueue"]["topErrors"] == [{"error": "Retries exhausted", "count": 1}]
    assert status["bucketMinutes"] == 1
    point = (await get(client, f"/api/v1/status/analytics?queue={segment(queue)}"))["dataPoints"]
    assert sum(one["messages"] for one in point) == 12


async def test_lists_are_stable_under_limit_and_offset(client: Client) -> None:
    names = [unique("Listed") for _ in range(5)]
    for name in names:
        await client.configure(name)
    expected = names[::-1]
    for route in ("resources/queues", "status/queues"):
        seen: list[str] = []
        for offset in range(0, 6, 2):
            body = await get(client, f"/api/v1/{route}?search=listed-&limit=2&offset={offset}")
            seen += [q["name"] for q in body["queues"]]
        assert seen[:5] == expected


async def test_labels(client: Client) -> None:
    namespace, task = unique("ns"), unique("task")
    for labels in ({"namespace": namespace, "task": task}, {"namespace": namespace}):
        name = unique("labelled")
        await client.configure(name, None, **labels)
        await client.push(name, [1, 2], partition="p")
    body = await get(client, "/api/v1/resources/namespaces")
    assert {
        "namespace": namespace, "queues": 2, "partitions": 4,
        "messages": {"total": 4, "pending": 4},
    } in body["namespaces"]  # fmt: skip
    body = await get(client, "/api/v1/resources/tasks")
    assert {
        "task": task, "queues": 1, "partitions": 2, "messages": {"total": 2, "pending": 2},
    } in body["tasks"]  # fmt: skip
    assert "" not in [one["task"] for one in body["tasks"]]
    listing = await get(client, f"/api/v1/resources/queues?namespace={namespace}&task={task}")
    assert len(listing["queues"]) == 1
    overview = await get(client, "/api/v1/resources/overview")
    times_are_times(overview)
    assert overview["namespaces"] >= 1
    assert overview["messages"]["total"] >= 4
    assert overview["lag"]["offset"]["max"] >= 2
    assert overview["lag"]["time"]["max"] > 0


# ── depth ───────────────────────────────────────────────────────────────────────────────────────


async def depth(client: Client, queue: str, group: str | None = None) -> dict[str, Any]:
    target = f"/api/v1/resources/queues/{segment(queue)}/depth"
    return dict(await get(client, target if group is None else f"{target}?group={segment(group)}"))


async def test_depth_of_a_group_and_of_the_slowest(client: Client, queue: str) -> None:
    await client.push(queue, list(range(9)), partition="a")
    await client.push(queue, [1, 2, 3], partition="b")
    everything = await depth(client, queue)
    assert (everything["pending"], everything["partitionsPending"]) == (12, 2)
    assert everything["group"] is None
    # The queue-mode place counts only while there is no named group.
    await client.pop(queue, autoAck="true", partition="b")
    assert (await depth(client, queue))["pending"] == 9
    first = await client.pop(queue, group="g", partition="a", batch=4)
    await client.complete(first, group="g")
    await client.pop(queue, group="g", partition="a", batch=2)
    assert await depth(client, queue, "g") == {
        "queue": queue,
        "group": "g",
        "pending": 8,
        "processing": 2,
        "ready": 6,
        "due": 6,
        "scheduled": 0,
        "partitionsPending": 2,
        "partitionsReady": 2,
        "conflation": False,
        "effectivePending": 8,
        "effectiveReady": 6,
        "partitions": [
            {"partition": "a", "pending": 5, "processing": 2, "ready": 3, "due": 3, "scheduled": 0},
            {"partition": "b", "pending": 3, "processing": 0, "ready": 3, "due": 3, "scheduled": 0},
        ],
        "partitionCount": 2,
        "truncated": False,
    }
    assert (await depth(client, queue, "unknown"))["pending"] == 12
    await client.pop(queue, group="g", partition="b", autoAck="true")
    slowest = await depth(client, queue)
    assert slowest["pending"] == 5
    body = await get(client, f"/api/v1/resources/partitions?queue={segment(queue)}")
    times_are_times(body)
    assert [(p["name"], p["depth"], p["total"]) for p in body["partitions"]] == [
        ("a", 5, 9), ("b", 0, 3),
    ]  # fmt: skip
    assert body["partitions"][0]["lagSeconds"] >= 0
    assert body["partitions"][1]["lagSeconds"] is None
    target = f"/api/v1/resources/partitions?queue={segment(queue)}&minDepth=1"
    assert len((await get(client, target))["partitions"]) == 1


async def test_a_consumer_without_a_group_that_has_stopped_shows_beside_a_group(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(10)))
    await client.pop(queue, batch=1, autoAck="true")
    await client.pop(queue, group="g", batch=10, autoAck="true")
    # The protocol has this route leave queue mode out where there are named groups.
    assert (await depth(client, queue))["pending"] == 0
    body = await get(client, f"/api/v1/resources/partitions?queue={segment(queue)}&minDepth=1")
    assert [one["depth"] for one in body["partitions"]] == [9]
    assert body["partitions"][0]["lagSeconds"] >= 0
    (entry,) = (await get(client, f"/api/v1/resources/queues?queue={segment(queue)}"))["queues"]
    assert (entry["depth"], entry["messages"]["pending"]) == (9, 9)
    (row,) = (await get(client, f"/api/v1/dashboard/queues?queue={segment(queue)}"))["queues"]
    assert row["depth"] == 9
    assert row["oldestUnreadAt"] == row["lastPushAt"]


async def test_depth_of_a_conflating_group(client: Client, queue: str) -> None:
    await client.push(queue, list(range(9)), partition="a")
    await client.push(queue, [1], partition="b")
    await client.pop(queue, group="latest", conflation="true", batch=1, leaseSeconds=1)
    body = await depth(client, queue, "latest")
    assert body["conflation"] is True
    assert body["pending"] == 10
    assert body["effectivePending"] == body["partitionsPending"] == 2


async def test_depth_after_a_clear(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2, 3])
    await client.pop(queue, group="g", batch=1, autoAck="true")
    await client.send("DELETE", f"/api/v1/queues/{segment(queue)}/clear")
    for group in (None, "g", "unknown"):
        assert (await depth(client, queue, group))["pending"] == 0
    body = await get(client, f"/api/v1/resources/queues/{segment(queue)}")
    assert body["totals"] == ZEROS


# ── groups ──────────────────────────────────────────────────────────────────────────────────────


async def test_groups_and_their_lag(client: Client, queue: str) -> None:
    group = unique("group")
    await client.push(queue, [1, 2, 3], partition="a")
    await client.push(queue, [4], partition="b")
    await client.pop(queue, group=group, subscriptionMode="all", batch=1, autoAck="true")
    await asyncio.sleep(1.1)
    listing = await get(client, "/api/v1/consumer-groups")
    assert isinstance(listing, list)
    times_are_times(listing)
    (entry,) = [one for one in listing if one["name"] == group]
    partitions = {
        p["partition"]: p
        for p in (await get(client, f"/api/v1/consumer-groups/{group}"))[queue]["partitions"]
    }
    assert entry["topics"] == [queue]
    assert entry["queueName"] == queue
    assert entry["members"] == entry["partitionCursors"] == 2
    assert entry["totalLag"] == 3
    assert entry["partitionsWithLag"] == (2 if partitions["b"]["offsetLag"] else 1)
    assert entry["maxTimeLag"] >= 1
    assert entry["state"] == "Stable"
    assert entry["subscriptionMode"] == "all"
    assert entry["conflation"] is False
    assert partitions["a"]["offsetLag"] + partitions["b"]["offsetLag"] == 3
    assert partitions["a"]["totalConsumed"] + partitions["b"]["totalConsumed"] == 1
    assert partitions["a"]["leaseActive"] is False
    assert partitions["a"]["workerId"] is None
    behind = await get(client, "/api/v1/consumer-groups/lagging?minLagSeconds=1")
    own = [one for one in behind if one["consumer_group"] == group]
    assert sum(one["offset_lag"] for one in own) == 3
    assert all(one["queue_name"] == queue and one["time_lag_seconds"] >= 1 for one in own)
    assert [one["time_lag_seconds"] for one in behind] == sorted(
        (one["time_lag_seconds"] for one in behind), reverse=True
    )
    for named in (
        {"consumerGroup": group}, {"queue": queue}, {"consumerGroup": group, "queue": queue},
    ):  # fmt: skip
        query = urlencode({"minLagSeconds": 1} | named)
        told = await get(client, f"/api/v1/consumer-groups/lagging?{query}")
        assert [one["partition_id"] for one in told] == [one["partition_id"] for one in own]
    query = urlencode({"minLagSeconds": 0, "consumerGroup": group, "queue": unique("none")})
    assert await get(client, f"/api/v1/consumer-groups/lagging?{query}") == []
    behind = await get(client, "/api/v1/consumer-groups/lagging")
    assert [one for one in behind if one["consumer_group"] == group] == []


async def test_a_group_without_partitions_is_dead(client: Client, queue: str) -> None:
    group = unique("group")
    await client.configure(queue)
    await client.pop(queue, group=group, subscriptionMode="new")
    (entry,) = [one for one in await get(client, "/api/v1/consumer-groups") if one["name"] == group]
    assert entry["state"] == "Dead"
    assert entry["subscriptionMode"] == "new"
    assert await get(client, f"/api/v1/consumer-groups/{group}") == {
        queue: {
            "partitions": [],
            "conflation": False,
            "partitionCount": 0,
            "truncated": False,
        }
    }


# ── the rest ────────────────────────────────────────────────────────────────────────────────────


async def test_series_of_any_time_are_no_errors(client: Client) -> None:
    for target in (
        "status",
        "status/analytics",
        "analytics/system-metrics",
        "analytics/worker-metrics",
    ):
        for query in (
            "from=1980-01-01T00:00:00Z&to=1980-01-02T00:00:00Z",
            "to=0002-01-01T00:00:00Z",
            "from=&to=&interval=DAY&unheard=of",
            "from=2090-01-01T00:00:00Z",
        ):
            answer = await client.get(f"/api/v1/{target}?{query}")
            assert answer.status == 200, (target, query, answer)
    answer = await client.get("/api/v1/status/analytics?from=1980-01-01T00:00:00Z&interval=minute")
    assert answer.status == 400


async def test_the_database_and_maintenance(client: Client) -> None:
    body = await get(client, "/api/v1/analytics/postgres-stats")
    times_are_times(body)
    assert body["database"]["sizeBytes"] > 0
    assert "segments" in [one["table"] for one in body["tableSizes"]]
    assert isinstance(body["activeQueries"], list)
    body = await get(client, "/api/v1/system/maintenance")
    assert body["maintenanceMode"] is False
    assert body["bufferStats"] == {"pendingCount": 0, "failedCount": 0, "dbHealthy": True}
    assert await get(client, "/api/v1/system/maintenance/pop") == {"popMaintenanceMode": False}
    answer = await client.send("POST", "/api/v1/stats/refresh")
    assert answer.status == 200
    assert answer.json["success"] is True


async def test_what_keeps_dead_rows_is_told_by_all_that_look(
    conninfo: str, direct_conninfo: str, queue: str
) -> None:
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8"}
    with (
        ClusterProcess(env=env) as cluster,
        psycopg.connect(direct_conninfo, application_name="a forgotten dump") as holder,
        psycopg.connect(direct_conninfo, autocommit=True) as own,
    ):
        async with Client(cluster.wait_ready()) as client:

            async def holders() -> dict[str, Any]:
                body = await get(client, "/api/v1/analytics/postgres-stats")
                return {one["name"]: one for one in body["holders"]}

            slot = unique("slot").replace("-", "_")
            own.execute("SELECT pg_create_physical_replication_slot(%s, true)", (slot,))
            try:
                await client.push(queue, [1])  # so that there is log after it
                idle = (await holders())[slot]
                assert (idle["kind"], idle["xminAge"]) == ("slot", None)
                assert idle["logBytes"] > 0
                checks = await asyncio.to_thread(doctor, conninfo)
                assert checks["replication slots"]["status"] == "warn"
                assert "without a reader" in checks["replication slots"]["found"]
            finally:
                own.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            assert slot not in await holders()

            # A snapshot, or no more than a transaction id: either keeps rows.
            pid = str(holder.info.backend_pid)
            for begin in (
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1",
                "SELECT pg_current_xact_id()",
            ):
                assert pid not in await holders()
                holder.execute(begin)
                before = (await holders())[pid]
                assert (before["kind"], before["application"]) == ("session", "a forgotten dump")
                assert before["logBytes"] is None
                await client.push(queue, [1])
                after = (await holders())[pid]
                assert after["xminAge"] > before["xminAge"]
                assert after["openSeconds"] > before["openSeconds"]
                holder.rollback()
            assert checks["oldest transaction"]["status"] == "ok"
        assert cluster.stop() == 0


def doctor(conninfo: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "queue_server", "doctor", "--json", "--database-url", conninfo],
        cwd=ROOT, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    return {one["check"]: one for one in json.loads(done.stdout)["checks"]}


async def test_the_official_admin_class(server: ClusterProcess, client: Client, queue: str) -> None:
    queen: Any = Queen({"url": server.url, "handleSignals": False})
    group = unique("group")
    try:
        await fill(client, queue)
        admin = queen.admin
        assert (await admin.get_overview())["queues"] >= 1
        assert "namespaces" in await admin.get_namespaces()
        assert "tasks" in await admin.get_tasks()
        assert (await admin.list_queues(search=queue, limit=1))["queues"][0]["name"] == queue
        assert (await admin.get_queue(queue))["totals"] == IN_BOTH
        assert (await admin.get_queue_depth(queue))["pending"] == 9
        assert (await admin.get_queue_depth(queue, group))["pending"] == 12
        assert len((await admin.get_partitions(queue=queue, limit=1))["partitions"]) == 1
        (message,) = (await admin.list_messages(queue=queue, status="dead_letter"))["messages"]
        address = (message["partitionId"], message["transactionId"])
        assert (await admin.get_message(*address))["status"] == "dead_letter"
        assert (await queen.queue(queue).dlq().limit(5).get())["total"] == 1
        assert (await admin.retry_message(*address))["result"] == "moved"
        (message,) = (await admin.list_messages(queue=queue, limit=1))["messages"]
        address = (message["partitionId"], message["transactionId"])
        assert (await admin.delete_message(*address))["success"] is True
        assert (await admin.get_status(queue=queue))["queues"][0]["name"] == queue
        assert (await admin.get_queue_stats(queue=queue))["queues"][0]["name"] == queue
        assert (await admin.get_queue_detail(queue))["queue"]["name"] == queue
        assert "dataPoints" in await admin.get_analytics(interval="day")
        assert "__QUEUE_MODE__" in [g["name"] for g in await admin.list_consumer_groups()]
        await admin.seek_consumer_group(group, queue, {"toEnd": True})
        assert (await admin.get_queue_depth(queue, group))["pending"] == 0
        assert queue in await admin.get_consumer_group(group)
        assert isinstance(await admin.get_lagging_consumers(60), list)
        body = await admin.delete_consumer_group_for_queue(group, queue)
        assert body["deletedPartitions"] == 2
        await queen.update_consumer_group_timestamp(group, "2026-02-01T00:00:00Z")
        await queen.delete_consumer_group(group)
        assert (await admin.refresh_consumer_stats())["success"] is True
        assert "replicas" in await admin.get_system_metrics()
        assert "workers" in await admin.get_worker_metrics()
    finally:
        await queen.close()
