"""What a credential for some queues can do to the others, on two workers: nothing.

The requests are made from the OpenAPI document, so a new route is tried as well.
"""

import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import jwt
import pytest

from tests.client import Answer, Client, eventually, segment, unique
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

SECRET = "a secret that only the server and the tests know, and long enough for SHA-512"

Operation = tuple[str, str]


def token(queues: list[str] | None, role: str = "admin") -> str:
    now = int(time.time())
    claims: dict[str, Any] = {"role": role, "sub": "tenant", "iat": now, "exp": now + 600}
    if queues is not None:
        claims["queues"] = queues
    return jwt.encode(claims, SECRET, algorithm="HS256")


@pytest.fixture(scope="module")
def guarded() -> Iterator[ClusterProcess]:
    env = {"JWT_ENABLED": "true", "JWT_SECRET": SECRET}
    with server_directory() as directory, ClusterProcess(env=env, data_dir=directory) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]


class Tenants:
    """Clients with a credential; every request has a connection of its own."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._stack = stack

    async def client(self, *patterns: str, role: str = "admin") -> Client:
        """A client for queues with these names; without any for all."""
        client = Client(self._url, fresh=True, token=token([*patterns] or None, role))
        return await self._stack.enter_async_context(client)

    async def anonymous(self) -> Client:
        return await self._stack.enter_async_context(Client(self._url, fresh=True))


@pytest.fixture
async def tenants(guarded: ClusterProcess) -> AsyncIterator[Tenants]:
    async with AsyncExitStack() as stack:
        yield Tenants(guarded.url, stack)


async def operations(client: Client) -> list[Operation]:
    document = (await client.get("/openapi.json")).json
    return [
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        # A WebSocket is no request with an answer; the switches are the whole server's.
        if path != "/ws/dashboard" and not path.startswith("/api/v1/system/maintenance")
    ]


async def labels_of(admin: Client, queue: str) -> tuple[str, str]:
    found = (await admin.get(f"/api/v1/resources/queues/{segment(queue)}")).json
    return found["namespace"], found["task"]


def forbidden(answer: Answer, word: str) -> None:
    assert (answer.status, answer.json["code"]) == (403, "forbidden"), answer
    assert word in answer.error, answer


# -- labels --


@pytest.mark.parametrize("pattern", ["{mine}*", "{mine}.*", "*{mine}"])
async def test_no_route_puts_a_tenants_queue_into_a_label_of_others(
    tenants: Tenants, pattern: str
) -> None:
    """Every route, with bodies that name labels of others in all ways that any body has."""
    admin = await tenants.client()
    mine, billing, invoices = unique("mine"), unique("billing"), unique("invoices")
    client = await tenants.client(pattern.format(mine=mine))
    victims = {f"{billing}.{invoices}", f"other.{invoices}"}
    for victim in victims:
        await admin.push(victim, ["theirs"])
    requests: list[tuple[str, str, Any]] = []
    for queue in (f"{mine}.{invoices}", f"{billing}.{mine}", f"{mine}-evil"):
        name = segment(queue)
        labels = {"queue": queue, "namespace": billing, "task": invoices}
        options = {"priority": 2**31 - 1}
        item = {**labels, "payload": 1}
        bodies = [
            {**labels, "options": options, "items": [item]},
            {"queue": queue, "namespace": billing, "mode": "replace"},
            {"queue": queue, "task": invoices},
            {"queue": queue, **options},
            {"operations": [{"type": "push", "items": [item]}]},
        ]
        for method, path in await operations(admin):
            target = path
            for field, value in {
                "queue": name, "partition": "Default", "group": "g", "id": "1",
                "partition_id": "1", "transaction_id": "t", "name": "n", "lease_id": "1",
            }.items():  # fmt: skip
                target = target.replace(f"{{{field}}}", value)
            if method == "POST":
                requests += [(method, target, body) for body in bodies]
            else:
                labels_query = f"namespace={billing}&task={invoices}"
                more = "&conflation=true&consumerGroup=g" if "/pop" in path else ""
                requests.append((method, f"{target}?queue={name}&{labels_query}{more}", None))
    # Those that delete come first, or there is nothing to see.
    requests.sort(key=lambda request: request[0])
    for method, target, body in requests:
        if body is None:
            answer = await client.send(method, target)
        else:
            answer = await client.post(target, body)
        assert answer.status < 500, (method, target, answer)
    for label in (f"namespace={billing}", f"task={invoices}"):
        got = await admin.get(f"/api/v1/pop?{label}&batch=100&consumerGroup=honest&partitions=64")
        assert {message["queue"] for message in got.json["messages"]} <= victims, label
    listed = (await admin.get(f"/api/v1/resources/queues?search={mine}")).json["queues"]
    assert listed
    for one in listed:
        assert one["namespace"] in ("", mine, f"{mine}-evil"), one
        assert (one["task"], one["priority"]) == ("", 0), one


async def test_a_push_that_was_held_labels_no_more_than_its_credential_may(
    tenants: Tenants,
) -> None:
    admin = await tenants.client()
    mine, invoices = unique("mine"), unique("invoices")
    client = await tenants.client(f"{mine}.*")
    held, plain = f"{mine}.{invoices}", f"{unique('open')}.{invoices}"
    await admin.post("/api/v1/system/maintenance", {"enabled": True})
    try:

        async def is_held() -> bool:
            answers = [await client.push_items([{"queue": held, "payload": 1}]) for _ in range(4)]
            return all(answer[0]["status"] == "buffered" for answer in answers)

        await eventually(is_held)
        await admin.push(plain, ["held too"])
        # It may delete its queue, and what is held makes it anew.
        await client.delete(held)
    finally:
        await admin.post("/api/v1/system/maintenance", {"enabled": False})

    async def are_stored() -> bool:
        left = (await admin.get("/api/v1/system/maintenance")).json["bufferedMessages"]
        return bool(left == 0)

    await eventually(are_stored, deadline=30)
    assert await labels_of(admin, held) == (mine, "")
    assert await labels_of(admin, plain) == (plain.split(".", maxsplit=1)[0], invoices)


async def test_a_credential_gives_the_labels_that_its_patterns_name(tenants: Tenants) -> None:
    admin = await tenants.client()
    one, two = unique("a"), unique("b")
    for pattern, queue, labels in (
        (f"{one}.*", f"{one}.t.1", (one, "")),
        (f"{one}*", f"{one}-more.t", (f"{one}-more", "")),
        (f"{one}.x.*", f"{one}.x.1", (one, "x")),
        (f"{one}.y", f"{one}.y", (one, "y")),
        (f"{one}.z*", f"{one}.zz.1", (one, "")),
        (two, two, (two, "")),
        ("*", f"{two}.t", (two, "t")),
    ):
        client = await tenants.client(pattern)
        await client.push(queue, [1])
        assert await labels_of(admin, queue) == labels, pattern
        # What was given so may be given by hand, too.
        await client.configure(queue, namespace=labels[0], task=labels[1])
    client = await tenants.client(f"{one}.*")
    configure, queue = "/api/v1/configure", f"{one}.t.1"
    await client.configure(queue, {"priority": 100}, namespace="")
    forbidden(await client.post(configure, {"queue": queue, "namespace": two}), repr(two))
    forbidden(await client.post(configure, {"queue": queue, "task": "t"}), "'t'")
    forbidden(await client.post(configure, {"queue": queue, "priority": 101}), "100")
    forbidden(await client.post(configure, {"queue": f"{one}.none", "task": "t"}), "'t'")
    assert (await admin.get(f"/api/v1/resources/queues/{one}.none")).status == 404
    # What an operator gave the queue it keeps.
    await admin.configure(queue, {"priority": 7000}, namespace=two, task="t")
    kept = await client.configure(queue, {"priority": 7000, "leaseTime": 9}, namespace=two)
    assert (kept["namespace"], kept["task"], kept["options"]["priority"]) == (two, "t", 7000)


# -- what does not exist, and what is not theirs --


async def test_an_id_of_others_is_answered_as_one_that_does_not_exist(tenants: Tenants) -> None:
    """Every route, with each kind of id in its path and in its body, for every role."""
    admin = await tenants.client()
    mine, theirs = unique("mine"), unique("secret")
    await admin.push(theirs, ["x", "y", "z"], ids=["1", "2", "3"])
    letter = await admin.pop(theirs, batch=1)
    await admin.ack(letter.messages[0], "dlq")
    (dead,) = (await admin.get(f"/api/v1/dlq?queue={theirs}")).json["messages"]
    held = await admin.pop(theirs, batch=1)
    partition = held.messages[0]["partitionId"]
    own = await (await tenants.client(mine)).push(mine, [1])
    foreign = {"partition_id": partition, "id": dead["id"], "lease_id": held.lease_id}
    absent = {
        "partition_id": str(int(own[0]["partition_id"]) + 10_000_000),
        "id": str(uuid.uuid4()),
        "lease_id": str(uuid.uuid4()),
    }

    def bodies(ids: Mapping[str, str]) -> list[Any]:
        ack = {"transactionId": "2", "partitionId": ids["partition_id"]}
        leased = {**ack, "leaseId": ids["lease_id"], "status": "completed"}
        uniform = [{**leased, "transactionId": str(uuid.UUID(int=n))} for n in range(20)]
        push = {"type": "push", "items": [{"queue": mine, "payload": 1}]}
        return [
            {**ack, "data": 1, "queue": mine},
            {**leased, "status": "failed", "error": "e"},
            {"acknowledgments": [ack, leased]},
            {"acknowledgments": uniform},
            {"operations": [{"type": "ack", **ack}]},
            {"operations": [push, {"type": "ack", **leased}]},
            {"operations": [{"type": "ack", **ack}], "requiredLeases": [ids["lease_id"]]},
            {"seconds": 60},
        ]

    def as_told(answer: Answer, ids: Mapping[str, str]) -> tuple[int, str, set[str]]:
        text = answer.raw.decode()
        for name, id_ in ids.items():
            text = text.replace(id_, name)
        assert theirs not in text + str(answer.headers), answer
        # Each transaction has an id of its own.
        text = re.sub(r'"transactionId":"[0-9a-f-]{36}"', "", text)
        return answer.status, text, set(answer.headers)

    for role in ("admin", "read-write", "read-only", "write-only"):
        client = await tenants.client(f"{mine}*", role=role)
        seen = 0
        for method, path in await operations(admin):
            has_id = any(f"{{{name}}}" in path for name in foreign)
            if not has_id and not (method == "POST" and "{" not in path):
                continue
            told = []
            for ids in (foreign, absent, foreign):  # again: a worker may remember it now
                target = path.replace("{transaction_id}", "2")
                for name, id_ in ids.items():
                    target = target.replace(f"{{{name}}}", id_)
                if method == "POST":
                    answers = [await client.post(target, body) for body in bodies(ids)]
                else:
                    answers = [await client.send(method, f"{target}?queue={mine}")]
                told.append([as_told(answer, ids) for answer in answers])
            assert told[0] == told[1] == told[2], (role, method, path)
            seen += 1
        assert seen > 20
    # Nothing of it was done.
    assert (await admin.extend(held.lease_id))["success"] is True
    assert (await admin.get(f"/api/v1/dlq/{dead['id']}")).json == dead
    results = await admin.ack_batch([(message, "completed") for message in held.messages])
    assert all(result["success"] for result in results)
    assert (await admin.pop(theirs)).ids == ["3"]


async def test_an_id_of_a_queue_that_it_may_use_otherwise_is_refused_by_name(
    tenants: Tenants,
) -> None:
    admin = await tenants.client()
    queue = unique("both")
    await admin.push(queue, ["x"], ids=["1"])
    message = (await admin.pop(queue)).messages[0]
    producer = await tenants.client(queue, role="write-only")
    path = f"/api/v1/messages/{message['partitionId']}/1"
    assert (await producer.get(path)).status == 403
    reader = await tenants.client(queue, role="read-only")
    assert (await reader.get(path)).json["queue"] == queue


async def test_metrics_name_queues_to_who_may_read_all_of_them(tenants: Tenants) -> None:
    admin = await tenants.client()
    queue = unique("named")
    await admin.push(queue, [1, 2])
    await admin.pop(queue, batch=1, group=unique("group"))
    path = "/metrics/prometheus"

    async def is_counted() -> bool:
        # Its figures are some seconds old at most.
        return f'queue_messages{{queue="{queue}"}} 2.0' in (await admin.get(path)).raw.decode()

    await eventually(is_counted, deadline=30)
    reader = await tenants.client(role="read-only")
    assert queue in (await reader.get(path)).raw.decode()
    anonymous = await tenants.anonymous()
    for stranger in (
        anonymous,
        await tenants.client(f"{queue}*"),
        await tenants.client(role="write-only"),
    ):
        scraped = await stranger.get(path)
        text = scraped.raw.decode()
        assert scraped.status == 200
        # Its figures are those of all queues together.
        assert set(re.findall(r'queue="([^"]*)"', text)) == {"__other__"}
        assert 'group="' not in text
        assert float(re.findall(r'queue_messages{queue="__other__"} (.*)', text)[0]) >= 2
    wrong = await anonymous.send("GET", path, headers={"Authorization": "Bearer x.y.z"})
    assert wrong.status == 401
    assert queue not in (await anonymous.get("/metrics")).raw.decode()
