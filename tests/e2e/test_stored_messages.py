"""Messages of the log, for operators: list, get, delete, dlq, clear (wire-api 5.4)."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.client import Answer, Client, Message, drain, segment, unique, uuid7


async def listed(client: Client, **filters: Any) -> dict[str, Any]:
    filters = {name.rstrip("_"): value for name, value in filters.items()}
    answer = await client.get(f"/api/v1/messages?{urlencode(filters)}")
    assert answer.status == 200, answer
    body = answer.json
    assert isinstance(body, dict)
    return body


async def data(client: Client, **filters: Any) -> list[Any]:
    return [message["data"] for message in (await listed(client, **filters))["messages"]]


def path(message: Message) -> str:
    return f"/api/v1/messages/{message['partitionId']}/{segment(message['transactionId'])}"


async def detail(client: Client, message: Message) -> dict[str, Any]:
    answer = await client.get(path(message))
    assert answer.status == 200, answer
    body = answer.json
    assert isinstance(body, dict)
    return body


async def delete(client: Client, message: Message) -> Answer:
    return await client.send("DELETE", path(message))


async def stored(client: Client, queue: str) -> dict[Any, Message]:
    """The messages of a queue by payload, without consuming them."""
    body = await listed(client, queue=queue, limit=1000)
    return {message["data"]: message for message in body["messages"]}


# ── list ────────────────────────────────────────────────────────────────────────────────────────


async def test_an_entry_tells_everything(client: Client, queue: str) -> None:
    await client.configure(queue, {"priority": 4}, namespace="billing", task="export")
    trace_id = str(uuid.uuid4())
    await client.push_items(
        [{"queue": queue, "partition": "p", "payload": {"total": 1.50}, "transactionId": "inv-1",
          "traceId": trace_id}]
    )  # fmt: skip
    pop = await client.pop(queue, group="g")
    body = await listed(client, queue=queue)
    (entry,) = body["messages"]
    message = pop.messages[0]
    assert entry == {
        "id": message["id"],
        "transactionId": "inv-1",
        "partitionId": message["partitionId"],
        "queuePath": f"{queue}/p",
        "queue": queue,
        "partition": "p",
        "namespace": "billing",
        "task": "export",
        "status": "pending",
        "queueStatus": "pending",
        "busStatus": {"consumedBy": 0, "totalGroups": 1},
        "traceId": trace_id,
        "producerSub": None,
        "queuePriority": 4,
        "createdAt": message["createdAt"],
        "leaseExpiresAt": None,
        "offset": 0,
        "data": {"total": 1.5},
        "payload": {"total": 1.5},
        "payloadAvailable": True,
        "errorMessage": None,
        "retryCount": None,
        "failedAt": None,
    }
    assert body["mode"] == {"hasQueueMode": False, "busGroupsCount": 1, "type": "bus"}
    assert body["total"] == 1
    assert body["pagination"] == {"limit": 200, "offset": 0}


async def test_newest_first_over_all_partitions_in_pages(client: Client, queue: str) -> None:
    expected: list[str] = []
    for number in range(30):
        name = f"{number:02}"
        await client.push(queue, [f"{name}a", f"{name}b"], partition=f"p{number % 4}")
        expected[:0] = [f"{name}b", f"{name}a"]
    assert await data(client, queue=queue) == expected
    for limit in (1, 7, 59, 100):
        pages: list[str] = []
        while page := await data(client, queue=queue, limit=limit, offset=len(pages)):
            assert len(page) <= limit
            pages += page
        assert pages == expected
    assert await data(client, queue=queue, partition="p1", limit=3) == ["29b", "29a", "25b"]
    refused = await client.get(f"/api/v1/messages?queue={segment(queue)}&limit=many")
    assert refused.status == 400


async def test_pages_go_on_however_many_partitions_there_are(client: Client, queue: str) -> None:
    items = [{"queue": queue, "partition": f"p{n}", "payload": n} for n in range(1200)]
    await client.push_items(items)
    pages: list[int] = []
    while page := await data(client, queue=queue, limit=500, offset=len(pages)):
        pages += page
    assert sorted(pages) == list(range(1200))


async def test_a_page_that_begins_too_far_in_is_refused(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    for path in ("/api/v1/messages", f"/api/v1/status/queues/{segment(queue)}/messages"):
        assert (await client.get(f"{path}?offset=10000")).status == 200
        answer = await client.get(f"{path}?offset=10001")
        assert answer.status == 400
        assert "10000 at most" in answer.error


async def test_a_message_by_its_message_id(client: Client, queue: str) -> None:
    other = unique("other")
    items = [
        {"queue": queue, "partition": f"p{n}", "payload": n, "transactionId": f"{queue}-{n}"}
        for n in range(400)
    ]
    pushed = await client.push_items(items)
    await client.push(other, ["newer"])
    for number in (0, 17, 399):
        id_ = pushed[number]["message_id"]
        for filters in ({}, {"queue": queue}):
            (entry,) = (await listed(client, id=id_, **filters))["messages"]
            assert (entry["id"], entry["data"]) == (id_, number)
            (same,) = (await listed(client, queue=queue, partition=f"p{number}"))["messages"]
            assert entry == same
        assert await data(client, id=id_, queue=other) == []
    # A dead letter, a message that was deleted, and one that never was.
    message = (await listed(client, id=pushed[5]["message_id"]))["messages"][0]
    assert (await bury(client, message)).status == 200
    (dead,) = (await listed(client, id=message["id"]))["messages"]
    assert (dead["status"], dead["data"]) == ("dead_letter", 5)
    await delete(client, message)
    assert await data(client, id=message["id"]) == []
    assert await data(client, id=uuid7()) == []
    for wrong in ("x", str(uuid.uuid4()), uuid7().upper(), f"{queue}-3"):
        answer = await client.get(f"/api/v1/messages?{urlencode({'id': wrong})}")
        assert answer.status == 400
        assert "id must be a message id" in answer.error


async def test_holes_do_not_shorten_pages(client: Client, queue: str) -> None:
    for number in range(20):
        await client.push(queue, [number])
    messages = await stored(client, queue)
    for number in range(5, 19):
        assert (await delete(client, messages[number])).status == 200
    assert await data(client, queue=queue, limit=3) == [19, 4, 3]
    assert await data(client, queue=queue, limit=3, offset=3) == [2, 1, 0]


async def test_time_bounds(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    now = datetime.now(UTC)
    assert await data(client, queue=queue, from_=(now - timedelta(minutes=5)).isoformat()) == [1]
    assert await data(client, queue=queue, from_=(now + timedelta(minutes=5)).isoformat()) == []
    # The whole minute of `to` counts.
    assert await data(client, queue=queue, to=now.strftime("%Y-%m-%dT%H:%M:00Z")) in ([1], [])
    assert await data(client, queue=queue, to=(now + timedelta(minutes=1)).isoformat()) == [1]
    earlier = (now - timedelta(minutes=5)).isoformat()
    assert await data(client, queue=queue, to=earlier) == []
    assert await data(client, queue=queue, from_="2020-01-01T00:00:00Z", to=earlier) == []
    refused = await client.get(f"/api/v1/messages?queue={segment(queue)}&from=whenever")
    assert refused.status == 400


async def test_filters_by_label(client: Client) -> None:
    namespace, task = unique("ns"), unique("task")
    kinds: list[dict[str, Any]] = [
        {"namespace": namespace, "task": task}, {"namespace": namespace}, {"task": task},
    ]  # fmt: skip
    for number, labels in enumerate(kinds):
        queue = unique("labelled")
        await client.configure(queue, **labels)
        await client.push(queue, [number])
    assert await data(client, ns=namespace) == [1, 0]
    assert await data(client, namespace=namespace) == [1, 0]
    assert await data(client, task=task) == [2, 0]
    assert await data(client, ns=namespace, task=task) == [0]
    assert await data(client, ns=unique("no such")) == []


async def by_status(client: Client, queue: str) -> dict[str, list[Any]]:
    """The payloads by status; asked with the filter and without, which must agree."""
    plain: dict[str, list[Any]] = {}
    for message in (await listed(client, queue=queue))["messages"]:
        plain.setdefault(message["status"], []).append(message["data"])
    for status in ("pending", "processing", "completed", "dead_letter"):
        assert await data(client, queue=queue, status=status) == plain.get(status, []), status
    return plain


async def test_status_in_queue_mode(client: Client, queue: str) -> None:
    await client.push(queue, list(range(6)))
    assert await by_status(client, queue) == {"pending": [5, 4, 3, 2, 1, 0]}
    assert (await listed(client, queue=queue))["mode"]["type"] == "none"
    pop = await client.pop(queue, batch=4)
    assert await by_status(client, queue) == {"pending": [5, 4], "processing": [3, 2, 1, 0]}
    leased = (await listed(client, queue=queue, status="processing"))["messages"]
    assert all(datetime.fromisoformat(m["leaseExpiresAt"]) > datetime.now(UTC) for m in leased)
    await client.ack(pop.messages[0])
    assert await by_status(client, queue) == {
        "pending": [5, 4], "processing": [3, 2, 1], "completed": [0],
    }  # fmt: skip
    await client.ack(pop.messages[1], "dlq", error="bad one")
    assert await by_status(client, queue) == {
        "pending": [5, 4, 3, 2], "completed": [0], "dead_letter": [1],
    }  # fmt: skip
    (dead,) = (await listed(client, queue=queue, status="dead_letter"))["messages"]
    assert dead["errorMessage"] == "bad one"
    assert dead["transactionId"] == pop.ids[1]
    assert dead["id"] == pop.messages[1]["id"]
    assert (await listed(client, queue=queue))["mode"]["type"] == "queue"
    assert await data(client, queue=queue, status="failed") == []


async def test_status_with_named_groups(client: Client, queue: str) -> None:
    await client.push(queue, [0, 1, 2])
    first = await client.pop(queue, group="a", batch=2)
    await client.complete(first, group="a")
    assert await by_status(client, queue) == {"pending": [2], "completed": [1, 0]}
    second = await client.pop(queue, group="b", batch=1)
    assert await by_status(client, queue) == {"pending": [2, 1, 0]}
    await client.complete(second, group="b")
    assert await by_status(client, queue) == {"pending": [2, 1], "completed": [0]}
    messages = await stored(client, queue)
    assert messages[1]["busStatus"] == {"consumedBy": 1, "totalGroups": 2}
    assert messages[0]["busStatus"] == {"consumedBy": 2, "totalGroups": 2}
    await client.pop(queue, batch=1)
    assert (await listed(client, queue=queue))["mode"] == {
        "hasQueueMode": True, "busGroupsCount": 2, "type": "hybrid",
    }  # fmt: skip
    assert await by_status(client, queue) == {"pending": [2, 1], "processing": [0]}


async def test_a_status_is_found_however_many_others_lie_before_it(
    client: Client, queue: str
) -> None:
    await client.push(queue, ["old"], partition="quiet")
    done = await client.pop(queue, partition="quiet")
    await client.complete(done)
    await client.push(queue, ["older"], partition="read")
    await client.complete(await client.pop(queue, partition="read"))
    for number in range(5):
        await client.push_items(
            [{"queue": queue, "partition": f"p{n}", "payload": number} for n in range(300)]
        )
    assert await data(client, queue=queue, status="completed", limit=2) == ["older", "old"]


async def test_an_empty_listing(client: Client) -> None:
    body = await listed(client, queue=unique("nothing"))
    assert body["messages"] == []
    assert body["mode"] == {"hasQueueMode": False, "busGroupsCount": 0, "type": "none"}


# ── get ─────────────────────────────────────────────────────────────────────────────────────────


async def test_the_detail_after_a_pop_that_commits_on_delivery(client: Client, queue: str) -> None:
    """Exactly one entry, as the official suite wants it."""
    await client.push(queue, [{"total": 12.5}], ids=["a/b c"])
    pop = await client.pop(queue, batch=1, autoAck="true")
    body = await detail(client, pop.messages[0])
    assert body["consumerGroups"] == [
        {
            "name": "__QUEUE_MODE__", "consumed": True, "gaveUp": False, "errorMessage": None,
            "leaseExpiresAt": None,
        }
    ]  # fmt: skip
    assert body["payload"] == {"total": 12.5}
    assert body["transactionId"] == "a/b c"
    assert body["isEncrypted"] is False
    assert body["errorMessage"] is None
    assert body["retryCount"] is None
    assert body["status"] == "completed"
    assert body["queueConfig"] == {
        "leaseTime": 60, "retryLimit": 3, "retryDelay": 1000, "ttl": 3600, "priority": 0,
    }  # fmt: skip
    assert body["mode"] == {
        "hasQueueMode": True, "busGroupsCount": 0, "consumedByGroups": 0, "type": "queue",
    }  # fmt: skip


async def test_the_detail_of_leased_and_dead_messages(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    pop = await client.pop(queue)
    body = await detail(client, pop.messages[1])
    assert body["status"] == "processing"
    (group,) = body["consumerGroups"]
    assert group["consumed"] is False
    assert datetime.fromisoformat(group["leaseExpiresAt"]) > datetime.now(UTC)
    await client.ack(pop.messages[0], "dlq", error="no good")
    body = await detail(client, pop.messages[0])
    assert body["status"] == "dead_letter"
    assert body["errorMessage"] == "no good"
    assert body["retryCount"] == 0


@pytest.mark.parametrize("address", ["17/x", "0/x", "x/x", "99999999999999999999/x"])
async def test_unknown_messages(client: Client, queue: str, address: str) -> None:
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/dlq"), ("POST", "/retry")):
        answer = await client.send(method, f"/api/v1/messages/{address}{tail}")
        assert answer.status == 404
        assert answer.error == "Message not found"
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    answer = await client.get(path(message | {"transactionId": "unknown"}))
    assert answer.status == 404


# ── delete ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_deleted_message_is_not_delivered_and_its_neighbours_are(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(6)))
    messages = await stored(client, queue)
    for number in (0, 3, 5):
        answer = await delete(client, messages[number])
        assert answer.status == 200
        assert answer.json == {
            "success": True,
            "partitionId": messages[number]["partitionId"],
            "transactionId": messages[number]["transactionId"],
            "message": "Message deleted successfully",
            "deleted": 0,
        }
    again = await delete(client, messages[0])
    assert again.status == 404
    assert again.json["success"] is False
    assert (await client.get(path(messages[0]))).status == 404
    assert [m["data"] for m in await drain(client, queue)] == [1, 2, 4]
    assert [m["offset"] for m in await drain(client, queue, group="g")] == [1, 2, 4]
    await client.push(queue, [6])
    assert [m["data"] for m in await drain(client, queue)] == [6]


async def test_a_message_is_deleted_with_its_dead_letters(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    for group in ("a", "b"):
        pop = await client.pop(queue, group=group, batch=1)
        await client.ack(pop.messages[0], "dlq", group=group)
    answer = await delete(client, pop.messages[0])
    assert answer.json["deleted"] == 2
    assert (await client.get(f"/api/v1/dlq?queue={segment(queue)}")).json["total"] == 0
    assert [m["data"] for m in await drain(client, queue, group="c")] == [2]


async def test_an_ack_of_a_leased_batch_survives_a_deletion_in_it(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1, 2, 3])
    pop = await client.pop(queue)
    await delete(client, pop.messages[1])
    await client.complete(pop)
    assert (await client.pop(queue)).status == 204


async def test_the_place_of_a_deleted_message_counts_nowhere(client: Client, queue: str) -> None:
    """Not for maxSize, not as depth, not as lag; and the figures agree with one another."""
    await client.configure(queue, {"maxSize": 4, "leaseTime": 300})
    await client.push(queue, [0, 1, 2, 3])
    messages = await stored(client, queue)
    pop = await client.pop(queue, group="g", batch=2)
    for number in (1, 3):
        await delete(client, messages[number])
    for group in ("", "?group=g"):
        depth = (await client.get(f"/api/v1/resources/queues/{segment(queue)}/depth{group}")).json
        assert (depth["pending"], depth["processing"], depth["ready"]) == (2, 1, 1), group
    body = (await client.get(f"/api/v1/resources/queues/{segment(queue)}")).json
    assert body["totals"] | {"deadLetter": 0} == {
        "total": 2, "pending": 1, "processing": 1, "completed": 0, "failed": 0, "deadLetter": 0,
    }  # fmt: skip
    (group,) = (await client.get("/api/v1/consumer-groups/g")).json[queue]["partitions"]
    assert group["offsetLag"] == 2
    await client.push(queue, [4, 5])
    refused = await client.post("/api/v1/push", {"items": [{"queue": queue, "payload": 6}]})
    assert refused.status == 409
    assert "Current: 4" in refused.error
    await client.complete(pop, group="g")
    assert [m["data"] for m in await drain(client, queue, group="g")] == [2, 4, 5]
    for group in ("", "?group=g"):
        depth = (await client.get(f"/api/v1/resources/queues/{segment(queue)}/depth{group}")).json
        assert (depth["pending"], depth["processing"], depth["ready"]) == (0, 0, 0), group


async def test_a_full_queue_takes_more_after_deletions(client: Client, queue: str) -> None:
    await client.configure(queue, {"maxSize": 3})
    await client.push(queue, [1, 2, 3])
    for message in (await stored(client, queue)).values():
        await delete(client, message)
    await client.push(queue, [4, 5, 6])
    assert [m["data"] for m in await drain(client, queue)] == [4, 5, 6]


@pytest.mark.parametrize("how", ["delete", "bury"])
async def test_a_lease_ends_with_the_last_message_of_its_batch(
    client: Client, queue: str, how: str
) -> None:
    remove = delete if how == "delete" else bury
    await client.configure(queue, {"leaseTime": 300})
    await client.push(queue, [1, 2, 3])
    pop = await client.pop(queue, batch=2)
    await remove(client, pop.messages[0])
    # Part of the batch is left: the lease goes on.
    assert (await client.pop(queue)).status == 204
    assert (await client.extend(pop.lease_id, 400))["success"] is True
    waiting = asyncio.create_task(client.pop(queue, wait_ms=10_000))
    await asyncio.sleep(0.3)
    await remove(client, pop.messages[1])
    assert (await waiting).data == [3]
    assert (await client.extend(pop.lease_id, 400))["success"] is False
    result = await client.ack(pop.messages[1])
    assert (result["success"], result["error"]) == (False, "Invalid or expired lease")


async def test_a_deleted_message_does_not_become_a_dead_letter(client: Client, queue: str) -> None:
    """Nor does one that was given up become two. The rest of the batch goes its way."""
    await client.push(queue, [1, 2, 3])
    pop = await client.pop(queue)
    await delete(client, pop.messages[0])
    await bury(client, pop.messages[1])
    results = await client.ack_batch([(message, "dlq") for message in pop.messages[:2]])
    assert [(r["success"], r["dlq"]) for r in results] == [(True, False)] * 2
    entries = (await client.get(f"/api/v1/dlq?queue={segment(queue)}")).json["messages"]
    assert [entry["data"] for entry in entries] == [2]
    assert (await client.pop(queue)).data == [3]


async def test_the_retries_of_a_deleted_message_are_not_the_next_ones(
    client: Client, queue: str
) -> None:
    await client.configure(queue, {"retryLimit": 1})
    await client.push(queue, [1, 2])
    pop = await client.pop(queue, batch=1)
    await client.ack(pop.messages[0], "failed")
    await delete(client, pop.messages[0])
    pop = await client.pop(queue, batch=1)
    assert (pop.data, pop.messages[0]["retryCount"]) == ([2], 0)
    assert (await client.ack(pop.messages[0], "failed"))["dlq"] is False
    assert (await client.pop(queue)).data == [2]


# ── to the dead letters ─────────────────────────────────────────────────────────────────────────


async def bury(client: Client, message: Message) -> Answer:
    return await client.send("POST", f"{path(message)}/dlq")


async def test_a_pending_message_moves_to_the_dead_letters_of_all_who_wait_for_it(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1, 2, 3])
    for group, batch in (("a", 1), ("b", 2), ("c", 1)):
        pop = await client.pop(queue, group=group, batch=batch)
        await client.complete(pop, group=group)
    message = (await stored(client, queue))[2]
    answer = await bury(client, message)
    assert answer.status == 200
    assert answer.json == {
        "success": True,
        "movedToDLQ": True,
        "partitionId": message["partitionId"],
        "transactionId": message["transactionId"],
        "consumerGroups": ["a", "c"],
    }
    entries = (await client.get(f"/api/v1/dlq?queue={segment(queue)}")).json["messages"]
    assert sorted((e["consumerGroup"], e["data"]) for e in entries) == [("a", 2), ("c", 2)]
    for group in ("a", "b", "c", "fresh"):
        expected = [1, 3] if group == "fresh" else [3]
        assert [m["data"] for m in await drain(client, queue, group=group)] == expected
    assert (await bury(client, message)).status == 404
    retried = await client.send("POST", f"{path(message)}/retry")
    assert retried.json["result"] == "moved"
    assert [m["data"] for m in await drain(client, queue, group="a")] == [2]


async def test_a_message_that_nobody_waits_for(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    other = unique("other")
    await client.push(other, ["x"])
    lonely = (await stored(client, other))["x"]
    assert (await bury(client, lonely)).json["consumerGroups"] == ["__QUEUE_MODE__"]
    (message,) = await drain(client, queue)
    answer = await bury(client, message)
    assert answer.status == 400
    assert "pending" in answer.error


# ── by the transaction id alone, as the first server's clients name a message ──────────────────


def bare(transaction_id: str, tail: str = "") -> str:
    return f"/api/v1/messages/{segment(transaction_id)}{tail}"


@pytest.mark.parametrize("form", ["text", "uuid7", "uuid4"])
async def test_a_transaction_id_names_a_message(client: Client, queue: str, form: str) -> None:
    id_ = {"text": unique("inv/ 7"), "uuid7": uuid7(), "uuid4": str(uuid.uuid4())}[form]
    for number in range(5):
        await client.push(queue, [0, 1], partition=f"p{number}")
    await client.push(queue, ["before", "this", "after"], partition="p3", ids=["a", id_, "b"])
    answer = await client.get(bare(id_))
    assert answer.status == 200, answer
    assert answer.json["payload"] == "this"
    assert answer.json == await detail(client, answer.json)


async def test_a_deletion_by_transaction_id(client: Client, queue: str) -> None:
    id_ = unique("gone")
    await client.push(queue, [1, 2, 3], ids=["a", id_, "b"])
    message = (await stored(client, queue))[2]
    answer = await client.send("DELETE", bare(id_))
    assert answer.status == 200
    assert answer.json == {
        "deleted": True,
        "success": True,
        "partitionId": message["partitionId"],
        "transactionId": id_,
    }
    again = await client.send("DELETE", bare(id_))
    assert (again.status, again.error) == (404, "Message not found")
    assert [m["data"] for m in await drain(client, queue)] == [1, 3]


async def test_to_the_dead_letters_and_back_by_transaction_id(client: Client, queue: str) -> None:
    id_ = unique("poison")
    await client.push(queue, [1, 2], ids=[id_, "ok"])
    answer = await client.send("POST", bare(id_, "/dlq"))
    assert answer.status == 200
    assert answer.json["movedToDLQ"] is True
    assert answer.json["transactionId"] == id_
    # The log has it no more; its dead letter has.
    answer = await client.get(bare(id_))
    assert (answer.json["status"], answer.json["payload"]) == ("dead_letter", 1)
    answer = await client.send("POST", bare(id_, "/retry"))
    assert answer.status == 200
    assert answer.json["retried"] is True
    assert answer.json["transactionId"] == id_
    assert (await client.get(bare(id_))).status == 404
    assert (await client.send("POST", bare(id_, "/retry"))).status == 404
    assert [m["data"] for m in await drain(client, queue)] == [2, 1]


async def test_messages_with_one_id_in_several_partitions_are_listed_and_left_alone(
    client: Client, queue: str
) -> None:
    id_ = unique("twice")
    for partition in ("a", "b"):
        await client.push(queue, [partition], partition=partition, ids=[id_])
    messages = await stored(client, queue)
    for method, tail in (
        ("GET", ""), ("GET", "/related"), ("DELETE", ""), ("POST", "/dlq"), ("POST", "/retry"),
    ):  # fmt: skip
        answer = await client.send(method, bare(id_, tail))
        assert answer.status == 409, (method, tail)
        assert answer.json["code"] == "ambiguous"
        assert "/api/v1/messages/:partitionId/:transactionId" in answer.error
        assert answer.json["messages"] == [
            {
                "partitionId": messages[name]["partitionId"],
                "transactionId": id_,
                "queue": queue,
                "partition": name,
            }
            for name in ("a", "b")
        ]
    assert await stored(client, queue) == messages
    # One of them as a dead letter alone still counts.
    assert (await bury(client, messages["a"])).status == 200
    assert (await client.get(bare(id_))).status == 409
    assert (await delete(client, messages["a"])).status == 200
    assert (await client.get(bare(id_))).json["payload"] == "b"


async def test_of_many_places_ten_are_listed(client: Client, queue: str) -> None:
    id_ = unique("everywhere")
    await client.push_items(
        [{"queue": queue, "partition": f"p{n}", "payload": n, "transactionId": id_}
         for n in range(30)]
    )  # fmt: skip
    answer = await client.get(bare(id_))
    assert answer.status == 409
    assert len({place["partition"] for place in answer.json["messages"]}) == 10


@pytest.mark.parametrize("tail", ["", "/retry", "/dlq", "/related"])
async def test_an_unknown_transaction_id(client: Client, tail: str) -> None:
    answer = await client.send(
        "GET" if tail in ("", "/related") else "POST", bare(unique("none"), tail)
    )
    assert (answer.status, answer.error) == (404, "Message not found")


async def test_related_messages_are_those_around_in_the_same_partition(
    client: Client, queue: str
) -> None:
    id_ = unique("middle")
    for number in range(8):
        await client.push(queue, [number], partition="p")
    await client.push(queue, ["this"], partition="p", ids=[id_])
    for number in range(8, 12):
        await client.push(queue, [number], partition="p")
    await client.push(queue, ["elsewhere"], partition="q")
    pop = await client.pop(queue, partition="p", batch=10)
    answer = await client.get(bare(id_, "/related"))
    assert answer.status == 200
    found = answer.json["messages"]
    assert [m["payload"] for m in found] == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert [m["status"] for m in found] == ["pending"] * 3 + ["processing"] * 7
    assert found[-1] == {
        "transactionId": pop.ids[2],
        "partitionId": pop.messages[2]["partitionId"],
        "status": "processing",
        "createdAt": pop.messages[2]["createdAt"],
        "payload": 2,
    }


async def test_a_message_called_related_comes_before_the_related_of_a_message(
    client: Client, queue: str
) -> None:
    await client.push(queue, ["of the partition"], ids=["related"])
    partition_id = (await stored(client, queue))["of the partition"]["partitionId"]
    # A message that is called like that partition.
    other = unique("other")
    await client.push(other, ["neighbour"])
    await client.push(other, ["named"], ids=[partition_id])
    named = (await stored(client, other))["named"]
    answer = await client.get(bare(partition_id, "/related"))
    assert answer.json["payload"] == "of the partition"
    assert (await client.send("DELETE", bare(partition_id, "/related"))).status == 200
    answer = await client.get(bare(partition_id, "/related"))
    assert [m["payload"] for m in answer.json["messages"]] == ["neighbour"]
    await delete(client, named)
    assert (await client.get(bare(partition_id, "/related"))).status == 404


# ── the messages of a queue ─────────────────────────────────────────────────────────────────────


async def test_the_messages_of_a_queue_are_a_bare_array(client: Client, queue: str) -> None:
    target = f"/api/v1/status/queues/{segment(queue)}/messages"
    assert (await client.get(target)).status == 404
    await client.configure(queue)
    assert (await client.get(target)).json == []
    for number in range(60):
        await client.push(queue, [number], partition=f"p{number % 3}")
    messages = await stored(client, queue)
    pop = await client.pop(queue, partition="p2")
    (entry,) = (await client.get(f"{target}?limit=1")).json
    assert entry == {
        "id": pop.messages[-1]["id"],
        "transactionId": pop.ids[-1],
        "partitionId": pop.messages[-1]["partitionId"],
        "queuePath": f"{queue}/p2",
        "queue": queue,
        "partition": "p2",
        "status": "processing",
        "createdAt": pop.messages[-1]["createdAt"],
    }
    ids = [messages[number]["id"] for number in reversed(range(60))]
    assert [m["id"] for m in (await client.get(target)).json] == ids[:50]
    assert [m["id"] for m in (await client.get(f"{target}?limit=7&offset=55")).json] == ids[55:]


# ── clear ───────────────────────────────────────────────────────────────────────────────────────


async def clear(client: Client, queue: str, **parameters: str) -> Answer:
    return await client.send(
        "DELETE", f"/api/v1/queues/{segment(queue)}/clear?{urlencode(parameters)}"
    )


async def test_clear_deletes_all_messages_and_keeps_positions(
    fresh_client: Client, queue: str
) -> None:
    client = fresh_client
    await client.push(queue, [1, 2], partition="a", ids=["one", "two"])
    await client.push(queue, [3], partition="b")
    await client.complete(await client.pop(queue, group="g", partition="a"), group="g")
    await delete(client, (await stored(client, queue))[1])
    answer = await clear(client, queue)
    assert answer.status == 200
    assert answer.json == {
        "cleared": True, "success": True, "count": 2, "queue": queue, "partition": "all",
    }  # fmt: skip
    assert await stored(client, queue) == {}
    for group in (None, "g", "fresh"):
        assert await drain(client, queue, group=group) == []
    # An id is forgotten with its message; offsets go on.
    (result,) = await client.push(queue, ["again"], partition="a", ids=["one"])
    assert result["status"] == "queued"
    assert result["offset"] == 2
    for group in (None, "g", "fresh"):
        assert [m["data"] for m in await drain(client, queue, group=group)] == ["again"]
    assert (await clear(client, queue)).json["count"] == 1
    assert (await clear(client, queue)).json["count"] == 0


async def test_a_lease_ends_when_its_messages_are_cleared(client: Client, queue: str) -> None:
    await client.configure(queue, {"leaseTime": 300})
    await client.push(queue, [1, 2], partition="a")
    pop = await client.pop(queue, batch=1)
    waiting = asyncio.create_task(client.pop(queue, wait_ms=10_000))
    await clear(client, queue)
    await client.push(queue, ["fresh"], partition="a")
    assert (await waiting).data == ["fresh"]
    for status in ("completed", "failed", "retry"):
        result = await client.ack(pop.messages[0], status)
        assert (result["success"], result["error"]) == (False, "Invalid or expired lease")
    assert (await client.extend(pop.lease_id, 60))["success"] is False
    depth = (await client.get(f"/api/v1/resources/queues/{segment(queue)}/depth")).json
    assert (depth["pending"], depth["processing"], depth["ready"]) == (1, 1, 0)


async def test_clear_of_one_partition(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2], partition="a")
    await client.push(queue, [3], partition="b")
    answer = await clear(client, queue, partition="a")
    assert answer.json["count"] == 2
    assert answer.json["partition"] == "a"
    assert [m["data"] for m in await drain(client, queue)] == [3]
    assert (await clear(client, queue, partition="nowhere")).status == 404
    assert (await clear(client, unique("missing"))).status == 404


async def test_acks_of_messages_that_were_cleared(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2])
    pop = await client.pop(queue)
    await clear(client, queue)
    result = await client.ack(pop.messages[0])
    assert result["success"] is False
    assert "lease" in result["error"]
    assert (await client.extend(pop.lease_id, 60))["success"] is False
    await client.push(queue, [3])
    assert (await client.pop(queue)).data == [3]


async def test_queues_are_cleared_while_everybody_pushes(client: Client, queue: str) -> None:
    """Each message is either counted by a clear or delivered."""
    stop = asyncio.Event()
    pushed = 0

    async def produce(partition: str) -> None:
        nonlocal pushed
        while not stop.is_set():
            await client.push(queue, list(range(5)), partition=partition)
            pushed += 5

    await client.configure(queue)
    producers = [asyncio.create_task(produce(f"p{n}")) for n in range(4)]
    cleared = 0
    for _ in range(15):
        answer = await clear(client, queue)
        assert answer.status == 200, answer
        cleared += answer.json["count"]
        await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*producers)
    assert cleared + len(await drain(client, queue)) == pushed


# -- large pages --


async def test_listings_end_a_page_by_its_bytes(client: Client, queue: str) -> None:
    """After 16 MiB of payloads, and it says so; what is left is on the next."""
    payloads = [f"{number:02}" + "x" * 1_000_000 for number in range(20)]
    ids = [f"{queue}-{number:02}" for number in range(20)]
    for start in range(0, 20, 10):
        await client.push(queue, payloads[start : start + 10], ids=ids[start : start + 10])

    async def pages(target: str) -> list[tuple[list[dict[str, Any]], bool]]:
        found: list[tuple[list[dict[str, Any]], bool]] = []
        count = 0
        while not found or found[-1][1]:
            answer = await client.get(f"{target}&limit=1000&offset={count}")
            assert answer.status == 200, answer.raw[:200]
            assert int(answer.headers["Content-Length"]) == len(answer.raw)
            found.append((answer.json["messages"], answer.json["truncated"]))
            count += len(found[-1][0])
        return found

    def check(found: list[tuple[list[dict[str, Any]], bool]]) -> None:
        assert [(len(messages), truncated) for messages, truncated in found] == [
            (17, True),
            (3, False),
        ]
        listed = [message for messages, _ in found for message in messages]
        assert {one["transactionId"]: one["data"] for one in listed} == dict(
            zip(ids, payloads, strict=True)
        )

    found = await pages(f"/api/v1/messages?queue={queue}")
    check(found)
    assert all(one["payload"] == one["data"] for messages, _ in found for one in messages)
    # Where no payload is shown a page is as long as was asked for.
    bare = await client.get(f"/api/v1/status/queues/{queue}/messages?limit=1000")
    assert [one["transactionId"] for one in bare.json] == ids[::-1]
    pop = await client.pop(queue)
    assert pop.data == payloads
    await client.ack_batch([(message, "dlq") for message in pop.messages])
    check(await pages(f"/api/v1/dlq?queue={queue}"))
    check(await pages(f"/api/v1/messages?queue={queue}&status=dead_letter"))
    small = (await client.get(f"/api/v1/dlq?queue={queue}&limit=2")).json
    assert (small["total"], small["truncated"], len(small["messages"])) == (20, True, 2)
