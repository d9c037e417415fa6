"""A refusal changed nothing: no queue, partition or group is left behind, whatever was refused.

The rows of a server's database are counted before and after requests of every mutating route.
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from tests.client import Answer, Client
from tests.cluster_process import ClusterProcess
from tests.openapi import Document

LONG = "x" * 5000
# Created and deleted by requests alone; what background services touch is left out.
TABLES = (
    "queues", "partitions", "allocators", "partition_quotas", "subscriptions", "cursors",
    "segments", "id_ranges", "dead_letters", "holes", "traces", "held_pushes", "held_queues",
)  # fmt: skip


@pytest.fixture
def server(conninfo: str) -> Iterator[ClusterProcess]:
    """A server without an encryption key, on a database that the test looks into."""
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "MAX_PARTITIONS_PER_QUEUE": "3"}
    with ClusterProcess(env=env) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-5000:]


@pytest.fixture
async def client(server: ClusterProcess) -> AsyncIterator[Client]:
    async with Client(server.url, fresh=True) as client:
        yield client


async def rows(direct_conninfo: str) -> dict[str, int]:
    async with await psycopg.AsyncConnection.connect(direct_conninfo) as connection:
        counts = {}
        for table in TABLES:
            cursor = await connection.execute(f"SELECT count(*) FROM queen.{table}")
            row = await cursor.fetchone()
            assert row is not None
            counts[table] = row[0]
        return counts


def item(queue: str, partition: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if partition is None else {"partition": partition}
    return {"queue": queue, "payload": 1} | named | more


def push(*items: dict[str, Any]) -> tuple[str, str, Any]:
    return "POST", "/api/v1/push", {"items": items}


def deep(first: dict[str, Any]) -> bytes:
    """A push of an item and of another whose payload has too many levels."""
    second = item("ghost") | {"payload": None}
    body = json.dumps({"items": [first, second]})
    return body.replace("null", "[" * 3000 + "]" * 3000).encode()


def transaction(*operations: dict[str, Any], **more: Any) -> tuple[str, str, Any]:
    return "POST", "/api/v1/transaction", {"operations": operations} | more


def pushing(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "push", "items": items}


def acking(**fields: Any) -> dict[str, Any]:
    return {"type": "ack", "status": "completed"} | fields


def refused(letter_id: str, partition_id: str) -> list[tuple[str, str, Any]]:
    """Requests that name queues, partitions and groups which do not exist, and are refused."""
    unknown = {"transactionId": "unknown", "partitionId": partition_id}
    ghost = item("ghost", "p")
    return [
        push(item("full", "ghost")),
        push(ghost, item("full")),
        push(item("full", "ghost"), item("other", "ghost")),
        push(item("sealed", "ghost")),
        push(ghost, item("sealed")),
        push(item("narrow", "ghost")),
        push(ghost, item("narrow", "ghost")),
        push(*[item("ghost", f"p{n}") for n in range(4)]),
        push(ghost, item(LONG)),
        push(ghost, item("ghost", LONG)),
        push(ghost, item("ghost", transactionId="\x00")),
        push(ghost, item("ghost", transactionId=LONG * 20)),
        ("POST", "/api/v1/push", deep(ghost)),
        push(ghost, {"payload": 1}),
        transaction(pushing(ghost, item("stored", transactionId="taken"))),
        transaction(pushing(ghost), acking(**unknown)),
        transaction(pushing(ghost), acking(transactionId="taken", partitionId="nonsense")),
        transaction(
            pushing(ghost),
            acking(transactionId="taken", partitionId=partition_id, leaseId=letter_id),
        ),
        transaction(pushing(ghost), acking(status="nonsense", **unknown)),
        transaction(pushing(ghost, item("full"))),
        transaction(pushing(item("full", "ghost"))),
        transaction(pushing(ghost, item("sealed"))),
        transaction(pushing(ghost, item("narrow", "ghost"))),
        transaction(pushing(ghost), {"type": "nonsense"}),
        transaction(pushing(ghost), kv=[{"key": "x"}]),
        ("GET", "/api/v1/pop/queue/ghost?conflation=true", None),
        ("GET", "/api/v1/pop/queue/ghost?consumerGroup=g&conflation=true&autoAck=true", None),
        ("GET", "/api/v1/pop/queue/ghost?consumerGroup=g&subscriptionFrom=nonsense", None),
        ("GET", "/api/v1/pop/queue/ghost?batch=nonsense", None),
        ("GET", f"/api/v1/pop/queue/ghost?consumerGroup={LONG}", None),
        ("GET", f"/api/v1/pop/queue/ghost/partition/{LONG}", None),
        ("GET", "/api/v1/pop?consumerGroup=ghost", None),
        ("POST", "/api/v1/configure", {"queue": "ghost", "options": {"leaseTime": -1}}),
        ("POST", "/api/v1/configure", {"queue": "ghost", "options": {"maxSize": "nonsense"}}),
        ("POST", "/api/v1/configure", {"queue": "ghost", "mode": "nonsense"}),
        ("POST", "/api/v1/configure", {"queue": "ghost", "namespace": LONG}),
        ("POST", "/api/v1/configure", {"queue": "full", "mode": "create"}),
        ("POST", "/api/v1/configure", {"queue": LONG}),
        ("POST", "/api/v1/ack", unknown | {"consumerGroup": "ghost", "status": "nonsense"}),
        ("POST", f"/api/v1/dlq/{letter_id}/replay", {"queue": "full", "partition": "ghost"}),
        ("POST", f"/api/v1/dlq/{letter_id}/replay", {"queue": "sealed", "partition": "ghost"}),
        ("POST", f"/api/v1/dlq/{letter_id}/replay", {"queue": "narrow", "partition": "ghost"}),
        ("POST", f"/api/v1/dlq/{letter_id}/replay", {"queue": "ghost", "partition": LONG}),
        ("POST", "/api/v1/traces", unknown | {"data": {"text": "x"}, "traceName": "ghost"}),
        ("POST", "/api/v1/consumer-groups/g/queues/full/seek", {"timestamp": "nonsense"}),
        ("POST", "/api/v1/consumer-groups/ghost/queues/ghost/seek", {"toEnd": True}),
    ]


async def send(client: Client, method: str, path: str, body: Any) -> Answer:
    return await client.send(
        method,
        path,
        body=body if isinstance(body, bytes) or body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )


async def test_what_is_refused_leaves_nothing_behind(client: Client, direct_conninfo: str) -> None:
    await client.configure("full", {"maxSize": 1})
    await client.push("full", [1])
    await client.configure("sealed", {"encryptionEnabled": True})
    await client.configure("narrow")
    await client.push_items([item("narrow", f"p{n}") for n in range(2)])
    await client.push("stored", [1], ids=["taken"])
    await client.push("failing", [1])
    await client.configure("failing", {"retryLimit": 0})
    pop = await client.pop("failing")
    (message,) = pop.messages
    await client.ack(message, "failed")
    (letter,) = (await client.get("/api/v1/dlq?queue=failing")).json["messages"]

    before = await rows(direct_conninfo)
    requests = refused(letter["id"], message["partitionId"])
    # Beside these every route that changes something, with a body that cannot be read, and with
    # names that do not exist.
    document = await Document.fetch(client)
    for method, path in document.operations:
        if method == "GET" or path.startswith("/api/v1/system/"):
            continue
        named = path.replace("{", "ghost").replace("}", "")
        requests += [(method, named, b'{"queue": "ghost", '), (method, named, {"queue": 1})]
    answered = {}
    for method, path, body in requests:
        answer = await send(client, method, path, body)
        after = await rows(direct_conninfo)
        assert after == before, (method, path, body, answer)
        answered[method, path, str(body)[:200]] = answer
    # They were refused for what they are meant to be refused for.
    for (method, path, body), answer in list(answered.items())[: len(refused("", ""))]:
        if path == "/api/v1/transaction" and answer.status == 200:
            assert answer.json["success"] is False, (body, answer)
        else:
            assert answer.status in (400, 404, 409, 413, 503), (method, path, body, answer)
