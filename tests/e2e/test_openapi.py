"""What each route answers is what the OpenAPI document says of it.

One story calls them all: messages are pushed, read, given up, moved and deleted. A route that is
described and not called here fails the test at the end.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.client import Answer, Client, segment, unique, uuid7
from tests.openapi import Document

MESSAGE = "/api/v1/messages/{partition_id}/{transaction_id}"
MESSAGE_ID = "/api/v1/messages/{transaction_id}"
QUEUE = "/api/v1/resources/queues/{queue}"
GROUP = "/api/v1/consumer-groups/{group}"
DASHBOARD = "/api/v1/dashboard"
POP = "/api/v1/pop/queue/{queue}"
# Copying the database is left to PostgreSQL.
NEVER_DONE = [
    f"/api/v1/migration/{step}" for step in ("test-connection", "start", "validate", "reset")
]


class Caller:
    """Calls routes by their path in the document, and checks each answer."""

    def __init__(self, client: Client, document: Document) -> None:
        self.client = client
        self.document = document

    async def __call__(
        self,
        method: str,
        path: str,
        status: int = 200,
        /,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        **names: str,
    ) -> Answer:
        target = path.format(**{name: segment(text) for name, text in names.items()})
        if query:
            target += f"?{urlencode(query)}"
        answer = await self.client.send(
            method, target, body=None if body is None else json.dumps(body).encode()
        )
        assert answer.status == status, (method, target, answer)
        self.document.check(method, path, answer)
        return answer


@pytest.fixture
async def call(fresh_client: Client) -> AsyncIterator[Caller]:
    yield Caller(fresh_client, await Document.fetch(fresh_client))


async def test_every_route_answers_as_described(call: Caller, queue: str) -> None:
    group = unique("group")
    await health(call)
    await messages(call, queue, group)
    await what_there_is(call, queue, group)
    await stored_messages(call, queue, group)
    await dead_letters(call, queue, group)
    await traces(call, queue)
    await groups(call, queue, group)
    await call("DELETE", "/api/v1/queues/{queue}/clear", queue=queue)
    await call("DELETE", "/api/v1/queues/{queue}/clear", 404, queue=unique("none"))
    await call("DELETE", QUEUE, queue=queue)
    await call("DELETE", QUEUE, queue=queue)
    # A WebSocket has no answer; tests/e2e/test_live.py opens it.
    missing = set(call.document.operations) - call.document.seen - {("GET", "/ws/dashboard")}
    missing -= {("POST", path) for path in NEVER_DONE}
    assert not missing, f"call these above, too: {sorted(missing)}"


async def health(call: Caller) -> None:
    for path in ("/health", "/livez", "/readyz", "/metrics", "/metrics/prometheus"):
        await call("GET", path)
    for path in ("/openapi.json", "/docs/api", "/"):
        await call("GET", path)
    for path in ("/dashboard", "/dashboard/"):
        assert (await call("GET", path, 302)).headers["Location"] in ("./", "../")
    await call("GET", "/dashboard/{path}", path="app.js")
    await call("GET", "/dashboard/{path}", 404, path="none.js")
    await call("GET", "/ws/dashboard", 400)


async def push(call: Caller, queue: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Push messages; the results."""
    items = [{"queue": queue, "payload": {"n": number}, **fields} for number in range(count)]
    answer = await call("POST", "/api/v1/push", 201, body={"items": items})
    return list(answer.json)


async def messages(call: Caller, queue: str, group: str) -> None:
    await call(
        "POST",
        "/api/v1/configure",
        201,
        body={
            "queue": queue,
            "namespace": queue,
            "task": "t",
            "options": {"retryLimit": 0, "deadLetterQueue": True, "encryptionEnabled": False},
        },
    )
    await call("POST", "/api/v1/configure", 400, body={"namespace": queue})
    await push(call, queue, 4, traceId=uuid7())
    (first,) = await push(call, queue, partition="p", transactionId="once")
    await push(call, queue, partition="p", transactionId="once")
    await call("POST", "/api/v1/push", 400, body={"items": [{}]})
    await call("GET", "/api/v1/pop", 400)
    await call("GET", POP, 204, queue=unique("none"))
    await call("GET", POP, queue=queue, query={"consumerGroup": group, "conflation": "true"})
    await call(
        "GET", POP, queue=unique("none"), query={"consumerGroup": group, "conflation": "true"}
    )
    everything = {"consumerGroup": f"{group}-labels", "subscriptionMode": "all", "batch": 1}
    await call("GET", "/api/v1/pop", query={"namespace": queue, **everything})
    await call(
        "GET", f"{POP}/partition/{{partition}}", queue=queue, partition="p",
        query={"consumerGroup": f"{group}-p", "subscriptionMode": "all", "autoAck": "true"},
    )  # fmt: skip
    answer = await call("GET", POP, queue=queue, query={"batch": 4, "autopilot": "true"})
    popped = answer.json
    acks = [
        {"transactionId": m["transactionId"], "partitionId": m["partitionId"]}
        for m in popped["messages"]
    ]
    await call(
        "POST", "/api/v1/lease/{lease_id}/extend", body={"seconds": 60}, lease_id=popped["leaseId"]
    )
    await call("POST", "/api/v1/lease/{lease_id}/extend", lease_id="none")
    await call("POST", "/api/v1/ack", body=acks[0])
    await call("POST", "/api/v1/ack/batch", body={"acknowledgments": acks})
    await call("POST", "/api/v1/ack", 400, body={})
    ack = {"type": "ack", "transactionId": first["transaction_id"], "partitionId": "none"}
    new = {"type": "push", "items": [{"queue": queue, "payload": 1}]}
    for operations in ([new], [new, ack]):
        await call("POST", "/api/v1/transaction", body={"operations": operations})
    await call("POST", "/api/v1/transaction", 400, body={"operations": []})


async def what_there_is(call: Caller, queue: str, group: str) -> None:
    """The routes that look, with something to look at."""
    for path in ("overview", "namespaces", "tasks", "partitions", "queues"):
        await call("GET", f"/api/v1/resources/{path}")
    for path in ("", "/queues", "/buffers", "/analytics"):
        await call("GET", f"/api/v1/status{path}", query={"queue": queue})
    await call("GET", "/api/v1/status/analytics", 400, query={"from": "1980-01-01T00:00:00Z"})
    for path in (
        "system-metrics", "worker-metrics", "postgres-stats", "queues", "queue-depths",
        "throughput", "queue-stats", "queue-lag", "queue-ops", "queue-parked-replicas",
    ):  # fmt: skip
        await call("GET", f"/api/v1/analytics/{path}")
    await call("GET", "/api/v1/analytics/retention")
    await call("GET", "/api/v1/analytics", query={"namespace": queue})
    await call("GET", "/api/v1/analytics", 400)
    for path in (
        QUEUE,
        f"{QUEUE}/depth",
        "/api/v1/status/queues/{queue}",
        "/api/v1/status/queues/{queue}/messages",
        "/api/v1/analytics/queue/{queue}",
    ):
        await call("GET", path, queue=queue)
        await call("GET", path, 404, queue=unique("none"))
    await call("GET", f"{QUEUE}/depth", queue=queue, query={"group": group})
    await call("GET", "/api/v1/consumer-groups")
    await call("GET", "/api/v1/consumer-groups/lagging", query={"minLagSeconds": 0})
    await call("GET", "/api/v1/consumer-groups/lagging", query={"consumerGroup": group})
    await call("GET", GROUP, group=group)
    await dashboard(call, queue, group)
    await call("POST", "/api/v1/stats/refresh")
    await call("GET", "/api/v1/system/settings")
    await call("GET", "/api/v1/system/migrations")
    await call("GET", "/api/v1/system/maintenance")
    await call("GET", "/api/v1/system/maintenance/pop")
    for path in ("/api/v1/system/maintenance", "/api/v1/system/maintenance/pop"):
        await call("POST", path, body={"enabled": False})
        await call("POST", path, 400, body={})
    await call("GET", "/api/v1/system/shared-state")
    await call("POST", "/internal/api/notify", body={"queue": queue, "partition": "Default"})
    for path in ("shared-state", "inter-instance"):
        await call("GET", f"/internal/api/{path}/stats")
    await call("GET", "/api/v1/migration/status")
    for path in NEVER_DONE:
        await call("POST", path, 404)


async def dashboard(call: Caller, queue: str, group: str) -> None:
    await call("GET", f"{DASHBOARD}/throughput")
    await call("GET", f"{DASHBOARD}/identity")
    await call("GET", f"{DASHBOARD}/workers")
    await call("GET", f"{DASHBOARD}/queues")
    await call("GET", f"{DASHBOARD}/dead-letter-errors", query={"queue": queue})
    of_queue = f"{DASHBOARD}/queues/{{queue}}"
    for path in ("options", "partitions", "groups"):
        await call("GET", f"{of_queue}/{path}", queue=queue)
        await call("GET", f"{of_queue}/{path}", 404, queue=unique("none"))
    of_group: dict[str, Any] = {"queue": queue, "group": group}
    await call("GET", f"{of_queue}/groups/{{group}}/partitions", **of_group)
    preview = f"{of_queue}/groups/{{group}}/seek-preview"
    await call("GET", preview, query={"toEnd": "true"}, **of_group)
    await call("GET", preview, 400, **of_group)


async def stored_messages(call: Caller, queue: str, group: str) -> None:
    listed = (await call("GET", "/api/v1/messages", query={"queue": queue})).json["messages"]
    assert len(listed) > 1
    await call("GET", "/api/v1/messages", query={"id": listed[0]["id"]})
    await call("GET", "/api/v1/messages", 400, query={"id": "x"})
    address: dict[str, Any] = {"partition_id": "1", "transaction_id": uuid7()}
    for method, path in (
        ("GET", MESSAGE),
        ("DELETE", MESSAGE),
        ("POST", f"{MESSAGE}/dlq"),
        ("POST", f"{MESSAGE}/retry"),
    ):
        await call(method, path, 404, **address)
    for suffix, method in (("", "GET"), ("", "DELETE"), ("/dlq", "POST"), ("/retry", "POST")):
        (one,) = await push(call, queue, partition="address")
        for path in (MESSAGE, MESSAGE_ID):
            names: dict[str, Any] = {"transaction_id": one["transaction_id"]}
            if path == MESSAGE:
                names["partition_id"] = one["partition_id"]
            if suffix == "/retry":
                await call("POST", f"{path}/dlq", **names)
            await call(method, path + suffix, **names)
            # What was changed is made anew for the other path.
            (one,) = await push(call, queue, partition="address")
    await call("GET", f"{MESSAGE_ID}/related", transaction_id=one["transaction_id"])
    await push(call, queue, partition="twin", transactionId=one["transaction_id"])
    await call("GET", MESSAGE_ID, 409, transaction_id=one["transaction_id"])


async def dead_letters(call: Caller, queue: str, group: str) -> None:
    for _ in range(4):
        (one,) = await push(call, queue, partition="dead")
        await call(
            "POST", f"{MESSAGE}/dlq",
            partition_id=one["partition_id"], transaction_id=one["transaction_id"],
        )  # fmt: skip
    answer = await call("GET", "/api/v1/dlq", query={"queue": queue})
    letter = answer.json["messages"][0]
    await call("GET", "/api/v1/dlq/{id}", id=letter["id"])
    await call("POST", "/api/v1/dlq/{id}/replay", id=letter["id"])
    await call("POST", "/api/v1/dlq/{id}/replay", 404, id=letter["id"])
    await call("GET", "/api/v1/dlq/{id}", 404, id=letter["id"])
    await call("POST", "/api/v1/dlq/redrive", body={"queue": queue, "limit": 1})
    await call("DELETE", "/api/v1/dlq", query={"queue": queue})
    await call("DELETE", "/api/v1/dlq", 400)


async def traces(call: Caller, queue: str) -> None:
    (one,) = await push(call, queue)
    name = unique("trace")
    trace = {
        "transactionId": one["transaction_id"], "partitionId": one["partition_id"],
        "data": {"step": 1}, "traceNames": [name],
    }  # fmt: skip
    await call("POST", "/api/v1/traces", 201, body=trace)
    await call("POST", "/api/v1/traces", 404, body=trace | {"transactionId": "none"})
    await call("GET", "/api/v1/traces/names")
    await call("GET", "/api/v1/traces/by-name/{name}", name=name)
    await call(
        "GET", "/api/v1/traces/{partition_id}/{transaction_id}",
        partition_id=one["partition_id"], transaction_id=one["transaction_id"],
    )  # fmt: skip


async def groups(call: Caller, queue: str, group: str) -> None:
    names: dict[str, Any] = {"group": group, "queue": queue}
    seek = f"{GROUP}/queues/{{queue}}/seek"
    seek_partition = f"{GROUP}/queues/{{queue}}/partitions/{{partition}}/seek"
    await call("POST", seek, body={"toEnd": True}, **names)
    await call("POST", seek, 400, **names)
    await call("POST", seek, 404, body={"toEnd": True}, group=group, queue=unique("none"))
    await call("POST", seek_partition, **names, partition="p")
    await call("POST", seek_partition, 404, **names, partition="none")
    subscription = {"subscriptionTimestamp": "2026-01-01T00:00:00Z"}
    await call("POST", f"{GROUP}/subscription", body=subscription, group=group)
    await call("DELETE", f"{GROUP}/queues/{{queue}}", **names)
    await call("DELETE", GROUP, group=group)
