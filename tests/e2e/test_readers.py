"""Clients that read lists and statistics: however many there are, they do not stop producers."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from statistics import quantiles
from typing import Any

import psycopg
import pytest

from tests.client import Client
from tests.cluster_process import ClusterProcess

# It compares times.
pytestmark = pytest.mark.alone

# As few as show it: the largest answer takes most of a second where all are listed.
PARTITIONS = 30_000
READERS = 24
LOAD_S = 1.5
# A push may take so much longer than beside nobody; more than a second was common without a bound.
SLOWER_MAX = 20
SLOW_S = 0.5

# One of each kind that reads a row of every partition.
ROUTES = [
    "analytics/queues",
    "analytics/queue-stats",
    "analytics/queue/wide",
    "resources/queues/wide",
    "resources/queues/wide/depth",
    "resources/queues/wide/depth?group=readers",
    "resources/partitions?limit=10000",
    "status/queues/wide",
    "consumer-groups/readers",
    "dashboard/queues/wide/groups/readers/seek-preview?toEnd=true",
    "messages/unknown",
]


@pytest.fixture
def cluster(conninfo: str) -> Iterator[ClusterProcess]:
    with ClusterProcess(env={"DATABASE_URL": conninfo}) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]


@pytest.fixture
async def client(cluster: ClusterProcess, conninfo: str) -> AsyncIterator[Client]:
    async with Client(cluster.url) as client:
        await client.configure("wide", namespace="wide")
        await client.pop("wide", group="readers")
        await widen(conninfo, "wide", PARTITIONS)
        yield client


async def widen(conninfo: str, queue: str, count: int) -> None:
    """Give a queue partitions with 30 messages each, none of which its groups have read."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "SELECT count(*) FROM queen.ensure_partitions(1::smallint,"
            " (SELECT q.id FROM queen.queues q WHERE q.name = %s),"
            " (SELECT array_agg('p' || lpad(n::text, 6, '0')) FROM generate_series(1, %s) n))",
            (queue, count),
        )
        await connection.execute(
            "UPDATE queen.allocators a SET next_offset = 30, last_segment_at = clock_timestamp()"
            " FROM queen.partitions p WHERE p.id = a.partition_id AND p.name LIKE 'p%'"
        )
        await connection.execute(
            "INSERT INTO queen.cursors (shard, partition_id, subscription_id, committed_offset)"
            " SELECT 1, a.partition_id, u.id, 0 FROM queen.allocators a"
            " JOIN queen.subscriptions u ON u.queue_id = a.queue_id ON CONFLICT DO NOTHING"
        )
        await connection.execute("ANALYZE")


async def push_for(client: Client, seconds: float) -> list[float]:
    """Push one message after the other; how long each took."""
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.monotonic()
        answer = await client.post("/api/v1/push", {"items": [{"queue": "written", "payload": 1}]})
        took.append(time.monotonic() - begin)
        assert answer.status == 201, answer
    return took


def p95(took: Sequence[float]) -> float:
    return quantiles([*took, *took], n=20)[-1]


async def test_readers_do_not_stop_writers(cluster: ClusterProcess, client: Client) -> None:
    """They get what others asked for at the same time, an old answer or a 429."""
    await push_for(client, 0.5)
    quiet_s = p95(await push_for(client, LOAD_S))
    async with Client(cluster.url, fresh=True) as readers:
        for route in ROUTES:
            statuses: set[int] = set()
            tasks = [asyncio.create_task(read_on(readers, route, statuses)) for _ in range(READERS)]
            try:
                took_s = p95(await push_for(client, LOAD_S))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert took_s < max(SLOW_S, SLOWER_MAX * quiet_s), (route, took_s, quiet_s)
            assert statuses
            assert statuses <= {200, 404, 429}, (route, statuses)


async def read_on(client: Client, route: str, statuses: set[int]) -> None:
    while True:
        statuses.add((await client.get(f"/api/v1/{route}")).status)


async def test_long_lists_come_in_pages_with_the_sums_of_all(client: Client) -> None:
    """What is left out of a page is counted, and the next page has it."""
    names = [f"p{number:06}" for number in range(1, PARTITIONS + 1)]
    names = ["Default", *names]

    async def get(target: str) -> Any:
        answer = await client.get(f"/api/v1/{target}")
        assert answer.status == 200, answer
        return answer.json

    messages = 30 * PARTITIONS
    for route in ("resources/queues/wide", "status/queues/wide", "analytics/queue/wide"):
        first = await get(route)
        assert [one["name"] for one in first["partitions"]] == names[:1000], route
        assert (first["partitionCount"], first["truncated"]) == (PARTITIONS + 1, True)
        assert first["totals"]["total"] == messages
        last = await get(f"{route}?limit=10000&offset={PARTITIONS - 50}")
        assert [one["name"] for one in last["partitions"]] == names[-51:], route
        assert last["truncated"] is False
        assert last["totals"]["total"] == messages

    for group in ("", "&group=readers"):
        depth = await get(f"resources/queues/wide/depth?limit=3&offset=1{group}")
        assert (depth["pending"], depth["partitionsPending"]) == (messages, PARTITIONS)
        assert [one["partition"] for one in depth["partitions"]] == names[1:4]
        assert (depth["partitionCount"], depth["truncated"]) == (PARTITIONS + 1, True)
        one = await get(f"resources/queues/wide/depth?partition=p000007{group}")
        assert (one["pending"], one["truncated"]) == (messages, False)
        assert [(each["partition"], each["pending"]) for each in one["partitions"]] == [
            ("p000007", 30)
        ]
        beyond = await get(f"resources/queues/wide/depth?offset=900000{group}")
        assert (beyond["pending"], beyond["partitions"]) == (messages, [])

    place = (await get("consumer-groups/readers?limit=2&offset=2"))["wide"]
    assert [one["partition"] for one in place["partitions"]] == names[2:4]
    assert (place["partitionCount"], place["truncated"]) == (PARTITIONS + 1, True)

    for route, key in (("analytics/queues", "queues"), ("analytics/queue-depths", "depths")):
        body = await get(route)
        assert body["truncated"] is True
        (wide,) = [one for one in body[key] if one["queue"] == "wide"]
        assert [one["name"] for one in wide["partitions"]] == names[:5000], route
        assert wide["partitionCount"] == PARTITIONS + 1
        body = await get(f"{route}?offset=1000")
        assert (body[key], body["truncated"]) == ([], False)

    page = await get(f"analytics/queue-stats?queue=wide&limit=1000&offset={PARTITIONS - 1}")
    assert [(one["queue"], one["partition"]) for one in page] == [
        ("wide", name) for name in names[-2:]
    ]
