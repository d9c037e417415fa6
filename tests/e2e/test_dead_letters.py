"""Dead letters: list, filter, move back, remove (wire-api 5.5, 5.4 retry, 7.15 replay)."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from tests.client import Answer, Client, drain, segment, unique


async def bury(
    client: Client,
    queue: str,
    payloads: list[Any],
    *,
    partition: str = "Default",
    group: str | None = None,
    error: str = "boom",
) -> list[str]:
    """Push *payloads* and make dead letters of them; their transaction ids."""
    await client.push(queue, payloads, partition=partition)
    pop = await client.pop(queue, partition=partition, group=group, batch=len(payloads))
    results = await client.ack_batch(
        [(message, "dlq") for message in pop.messages], group=group, error=error
    )
    assert all(result["dlq"] for result in results)
    return pop.ids


async def listed(client: Client, **filters: Any) -> dict[str, Any]:
    filters = {name.rstrip("_"): value for name, value in filters.items()}
    answer = await client.get(f"/api/v1/dlq?{urlencode(filters)}")
    assert answer.status == 200, answer
    body = answer.json
    assert isinstance(body, dict)
    return body


async def retry(client: Client, message: dict[str, Any]) -> Answer:
    path = f"/api/v1/messages/{message['partitionId']}/{segment(message['transactionId'])}/retry"
    return await client.send("POST", path)


async def redrive(client: Client, queue: str, **body: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/dlq/redrive", {"queue": queue, **body})
    assert answer.status == 200, answer
    result = answer.json
    assert result["success"] is True
    return dict(result)


# ── list ────────────────────────────────────────────────────────────────────────────────────────


async def test_an_entry_tells_everything(client: Client, queue: str) -> None:
    await client.configure(queue, {"retryLimit": 1})
    before = datetime.now(UTC)
    await client.push(queue, [{"total": 3}], partition="p", ids=["inv-2"])
    for _ in range(2):
        pop = await client.pop(queue, group="g")
        result = await client.ack(pop.messages[0], "failed", group="g", error="tax down")
    assert result["dlq"] is True
    body = await listed(client, queue=queue)
    (entry,) = body["messages"]
    uuid.UUID(entry["id"])
    message = pop.messages[0]
    assert entry["id"] != message["id"]
    failed_at = datetime.fromisoformat(entry["failedAt"])
    assert before - timedelta(seconds=5) < failed_at < datetime.now(UTC) + timedelta(seconds=5)
    assert entry["createdAt"] == message["createdAt"]
    assert {name: entry[name] for name in entry if name not in ("id", "failedAt", "createdAt")} == {
        "transactionId": "inv-2",
        "originalTransactionId": "inv-2",
        "partitionId": message["partitionId"],
        "queue": queue,
        "partition": "p",
        "consumerGroup": "g",
        "errorMessage": "tax down",
        "retryCount": 1,
        "data": {"total": 3},
        "payloadAvailable": True,
        "producerSub": None,
        "traceId": None,
    }
    assert body["total"] == 1
    assert body["pagination"] == {"limit": 100, "offset": 0}


async def test_one_is_found_by_its_id(client: Client, queue: str) -> None:
    await bury(client, queue, [1, {"total": 2}])
    first, second = (await listed(client, queue=queue))["messages"]
    for entry in (first, second):
        answer = await client.get(f"/api/v1/dlq/{entry['id']}")
        assert (answer.status, answer.json) == (200, entry)
    await client.send("POST", f"/api/v1/dlq/{first['id']}/replay")
    for id_ in (first["id"], str(uuid.uuid4()), "nonsense", "redrive"):
        answer = await client.get(f"/api/v1/dlq/{id_}")
        assert (answer.status, answer.error) == (404, "Dead letter not found")


async def test_filters_and_pages(client: Client, queue: str) -> None:
    await bury(client, queue, [1, 2], partition="a", error="first kind 100% _")
    await asyncio.sleep(0.02)
    moment = (await listed(client, queue=queue))["messages"][0]["failedAt"]
    middle = (datetime.fromisoformat(moment) + timedelta(milliseconds=1)).isoformat()
    await bury(client, queue, [3], partition="b", group="g", error="second kind")
    await bury(client, unique("other"), [4])

    async def data(**filters: Any) -> list[Any]:
        body = await listed(client, queue=queue, **filters)
        assert body["total"] >= len(body["messages"])
        return [entry["data"] for entry in body["messages"]]

    assert await data() == [3, 2, 1]
    assert await data(consumerGroup="g") == [3]
    assert await data(consumerGroup="__QUEUE_MODE__") == [2, 1]
    assert await data(partition="a") == [2, 1]
    assert await data(partition="nowhere") == []
    assert await data(from_=middle) == [3]
    assert await data(to=middle) == [2, 1]
    assert await data(errorContains="100% _") == [2, 1]
    assert await data(errorContains="%") == [2, 1]
    assert await data(limit=2) == [3, 2]
    assert await data(limit=2, offset=2) == [1]
    assert await data(limit=2, offset=5) == []
    assert await data(limit="", offset="", unheard="of") == [3, 2, 1]
    assert (await listed(client, queue=queue, limit=1, offset=2))["total"] == 3
    assert (await listed(client, queue=queue, limit=1, offset=9))["total"] == 3
    assert (await listed(client, queue=unique("nothing")))["messages"] == []
    assert (await listed(client, queue=unique("nothing")))["total"] == 0
    everything = await listed(client, limit=1000)
    assert {3, 4} <= {entry["data"] for entry in everything["messages"] if entry["data"] in (3, 4)}


async def test_a_long_reason_is_cut(client: Client, queue: str) -> None:
    """A refused nack would bring the message again and again."""
    await client.configure(queue, {"retryLimit": 0})
    await client.push(queue, [1])
    (message,) = (await client.pop(queue)).messages
    reason = "é" * 10_000
    result = await client.ack(message, "failed", error=reason + "lost")
    assert result["dlq"] is True
    listed = (await client.get(f"/api/v1/dlq?queue={segment(queue)}")).json["messages"]
    assert [one["errorMessage"] for one in listed] == [reason]


async def test_a_reason_is_not_what_contains_it(client: Client, queue: str) -> None:
    long = "x" * 500
    errors = ["timeout", "card timeout", f"{long}1", f"{long}2", "Ünïcode ☂"]
    for number, error in enumerate(errors):
        await bury(client, queue, [number], error=error)

    async def data(**filters: Any) -> list[Any]:
        body = await listed(client, queue=queue, **filters)
        return [entry["data"] for entry in body["messages"]]

    assert await data(error="timeout") == [0]
    assert await data(errorContains="timeout") == [1, 0]
    assert await data(error="timeout", errorContains="card") == []
    assert await data(error="time") == []
    assert await data(error="TIMEOUT") == []
    assert await data(error="Ünïcode ☂") == [4]
    # As they are told apart by reason.
    assert await data(error=long) == await data(error=f"{long}1") == [3, 2]
    # None was given: no dead letter is without a reason, and it is not any.
    assert await data(error="") == []
    assert await redrive(client, queue, error="") == {
        "success": True, "moved": 0, "messages": 0, "duplicates": 0, "remaining": 0,
    }  # fmt: skip
    path = f"/api/v1/dlq?queue={segment(queue)}"
    assert (await client.send("DELETE", f"{path}&error=")).json["deleted"] == 0

    assert (await redrive(client, queue, error="timeout"))["moved"] == 1
    assert await data() == [4, 3, 2, 1]
    answer = await client.send("DELETE", f"{path}&{urlencode({'error': 'card timeout'})}")
    assert answer.json["deleted"] == 1
    assert await data() == [4, 3, 2]
    assert (await redrive(client, queue, error="card"))["moved"] == 0
    assert (await client.post("/api/v1/dlq/redrive", {"queue": queue, "error": 1})).status == 400
    assert [m["data"] for m in await drain(client, queue)] == [0]


async def test_entries_go_with_their_queue_and_stay_without_their_group(
    client: Client, queue: str
) -> None:
    await bury(client, queue, [1], group="g")
    await client.delete_group("g", queue)
    assert (await listed(client, queue=queue))["total"] == 1
    await client.delete(queue)
    assert (await listed(client, queue=queue))["total"] == 0


# ── move back ───────────────────────────────────────────────────────────────────────────────────


async def test_retry_moves_a_copy_to_the_end_of_the_partition(client: Client, queue: str) -> None:
    trace_id = str(uuid.uuid4())
    await client.push_items(
        [{"queue": queue, "partition": "p", "payload": {"n": 1}, "traceId": trace_id,
          "transactionId": "t/1 ?"}]
    )  # fmt: skip
    pop = await client.pop(queue, group="g")
    await client.ack(pop.messages[0], "dlq", group="g", error="boom")
    await client.push(queue, [2], partition="p")
    (entry,) = (await listed(client, queue=queue))["messages"]
    parked = asyncio.create_task(client.pop(queue, group="late", wait_ms=5000, partition="p"))
    assert (await parked).data == [{"n": 1}, 2]
    parked = asyncio.create_task(client.pop(queue, group="g2", wait_ms=5000, partition="p"))
    await parked

    answer = await retry(client, entry)
    assert answer.status == 200
    body = answer.json
    assert body.pop("replayedAs") == {
        "index": 0,
        "message_id": body_message_id(answer),
        "transaction_id": f"dlq:{entry['id']}",
        "queueName": queue,
        "status": "queued",
        "offset": 2,
    }
    assert body == {
        "success": True,
        "result": "moved",
        "retried": True,
        "transactionId": "t/1 ?",
        "queue": queue,
        "partition": "p",
        "consumerGroup": "g",
        "dlqId": entry["id"],
        "originalTransactionId": "t/1 ?",
        "dlqRowRemoved": True,
    }
    assert (await listed(client, queue=queue))["total"] == 0
    again = await client.pop(queue, group="g", partition="p")
    assert again.data == [2, {"n": 1}]
    assert again.messages[1]["traceId"] == trace_id
    assert again.messages[1]["id"] == body_message_id(answer)

    gone = await retry(client, entry)
    assert gone.status == 404
    assert gone.json["success"] is False
    assert gone.json["result"] == "gone"
    assert gone.error == "Message not found"


def body_message_id(answer: Answer) -> str:
    message_id = str(answer.json["replayedAs"]["message_id"])
    uuid.UUID(message_id)
    return message_id


async def test_of_several_groups_the_newest_entry_is_taken(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    for group in ("first", "second"):
        pop = await client.pop(queue, group=group)
        await client.ack(pop.messages[0], "dlq", group=group)
    answer = await retry(client, pop.messages[0])
    assert answer.json["consumerGroup"] == "second"
    (left,) = (await listed(client, queue=queue))["messages"]
    assert left["consumerGroup"] == "first"


async def test_only_dead_letters_can_be_retried(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue)
    for message in (
        pop.messages[0],
        pop.messages[0] | {"partitionId": "17"},
        pop.messages[0] | {"partitionId": "no-partition"},
        pop.messages[0] | {"transactionId": "unknown"},
    ):
        assert (await retry(client, message)).status == 404


async def test_replay_names_the_entry_and_may_name_another_place(
    client: Client, queue: str
) -> None:
    other = unique("other")
    await bury(client, queue, [1, 2, 3], partition="p")
    entries = {e["data"]: e for e in (await listed(client, queue=queue))["messages"]}

    async def replay(number: int, body: dict[str, Any] | None = None) -> Answer:
        path = f"/api/v1/dlq/{entries[number]['id']}/replay"
        return await (client.send("POST", path) if body is None else client.post(path, body))

    assert (await replay(1)).json["partition"] == "p"
    assert (await replay(2, {"queue": other})).json["replayedAs"]["queueName"] == other
    assert (await replay(3, {"queue": other, "partition": "q"})).json["partition"] == "q"
    assert [m["data"] for m in await drain(client, queue)] == [1]
    assert sorted((m["data"], m["partition"]) for m in await drain(client, other)) == [
        (2, "Default"), (3, "q"),
    ]  # fmt: skip
    assert (await replay(1, {})).status == 404
    assert (await replay(1, {"queue": ""})).status == 400
    assert (await client.send("POST", "/api/v1/dlq/nonsense/replay")).status == 404


async def test_a_copy_that_is_stored_already_leaves_the_entry(client: Client, queue: str) -> None:
    await bury(client, queue, [1])
    (entry,) = (await listed(client, queue=queue))["messages"]
    stored = (await client.push(queue, ["mine"], ids=[f"dlq:{entry['id']}"]))[0]
    answer = await retry(client, entry)
    assert answer.status == 200
    assert answer.json["result"] == "duplicate"
    assert answer.json["dlqRowRemoved"] is False
    assert answer.json["replayedAs"]["message_id"] == stored["message_id"]
    assert answer.json["replayedAs"]["offset"] == stored["offset"]
    assert (await listed(client, queue=queue))["total"] == 1
    assert await redrive(client, queue) == {
        "success": True, "moved": 0, "messages": 0, "duplicates": 1, "remaining": 1,
    }  # fmt: skip
    assert [m["data"] for m in await drain(client, queue)] == ["mine"]


async def test_many_retries_at_once_move_once(fresh_client: Client, queue: str) -> None:
    await bury(fresh_client, queue, [1])
    (entry,) = (await listed(fresh_client, queue=queue))["messages"]
    answers = await asyncio.gather(*[retry(fresh_client, entry) for _ in range(10)])
    assert sorted(answer.status for answer in answers) == [200] + [404] * 9
    assert [m["data"] for m in await drain(fresh_client, queue)] == [1]


async def test_redrive_moves_what_the_filter_lets_through_in_order(
    client: Client, queue: str
) -> None:
    await bury(client, queue, list(range(10)), partition="a", error="odd thing")
    await bury(client, queue, ["b1", "b2"], partition="b", group="g", error="other thing")
    assert await redrive(client, queue, errorContains="odd", limit=4) == {
        "success": True, "moved": 4, "messages": 4, "duplicates": 0, "remaining": 6,
    }  # fmt: skip
    assert [m["data"] for m in await drain(client, queue, partition="a")] == [0, 1, 2, 3]
    assert (await redrive(client, queue, partition="a"))["moved"] == 6
    assert [m["data"] for m in await drain(client, queue, partition="a")] == [4, 5, 6, 7, 8, 9]
    body = await redrive(client, queue, consumerGroup="g", to="2020-01-01T00:00:00Z")
    assert body["moved"] == 0
    body = await redrive(client, queue, consumerGroup="g", **{"from": "2020-01-01T00:00:00Z"})
    assert (body["moved"], body["remaining"]) == (2, 0)
    assert [m["data"] for m in await drain(client, queue, group="g", partition="b")] == ["b1", "b2"]


async def test_duplicates_do_not_keep_those_behind_them(client: Client, queue: str) -> None:
    await bury(client, queue, list(range(6)))
    entries = (await listed(client, queue=queue))["messages"][::-1]
    await client.push(queue, ["mine"] * 3, ids=[f"dlq:{entry['id']}" for entry in entries[:3]])
    for moved, remaining in ((2, 4), (1, 3), (0, 3)):
        assert await redrive(client, queue, limit=2) == {
            "success": True, "moved": moved, "messages": moved, "duplicates": 3,
            "remaining": remaining,
        }  # fmt: skip
    assert [m["data"] for m in await drain(client, queue)] == ["mine"] * 3 + [3, 4, 5]


async def test_a_large_redrive_runs_beside_others_and_loses_nothing(
    fresh_client: Client, queue: str
) -> None:
    count = 2300
    await bury(fresh_client, queue, [{"n": n, "pad": "x" * 5000} for n in range(count)])
    bodies = await asyncio.gather(*[redrive(fresh_client, queue) for _ in range(3)])
    assert sum(body["moved"] for body in bodies) == count
    assert all(body["duplicates"] == 0 for body in bodies)
    assert (await listed(fresh_client, queue=queue))["total"] == 0
    assert sorted(m["data"]["n"] for m in await drain(fresh_client, queue)) == list(range(count))


async def give_up(client: Client, queue: str, groups: list[str], count: int) -> None:
    """Push *count* messages that each of *groups* gives up."""
    await client.configure(queue, {"retryLimit": 0})
    await client.push(queue, list(range(count)), ids=[f"order-{n}" for n in range(count)])
    for group in groups:
        pop = await client.pop(queue, group=group, batch=count)
        await client.ack_batch(
            [(message, "failed") for message in pop.messages], group=group, error=f"of {group}"
        )


async def test_a_message_that_three_groups_gave_up_is_moved_once(
    client: Client, queue: str
) -> None:
    groups = ["billing", "ledger", "shipping"]
    await give_up(client, queue, groups, 2)
    assert (await listed(client, queue=queue))["total"] == 6
    assert await redrive(client, queue, dryRun=True) == {
        "success": True, "moved": 0, "messages": 2, "deliveries": 6, "duplicates": 0,
        "remaining": 6,
    }  # fmt: skip
    assert (await listed(client, queue=queue))["total"] == 6  # nothing was done
    assert await redrive(client, queue) == {
        "success": True, "moved": 6, "messages": 2, "duplicates": 0, "remaining": 0,
    }  # fmt: skip
    for group in groups:
        pop = await client.pop(queue, group=group, batch=10)
        assert pop.data == [0, 1]
        assert all(id_.startswith("dlq:") for id_ in pop.ids)
        assert [m["originalTransactionId"] for m in pop.messages] == ["order-0", "order-1"]
        # Given up again, and moved again: it is still the id that the producer gave.
        await client.ack_batch([(m, "failed") for m in pop.messages], group=group)
    entries = (await listed(client, queue=queue))["messages"]
    assert {entry["originalTransactionId"] for entry in entries} == {"order-0", "order-1"}
    assert (await redrive(client, queue))["messages"] == 2
    pop = await client.pop(queue, group="billing", batch=10)
    assert [m["originalTransactionId"] for m in pop.messages] == ["order-0", "order-1"]


async def test_chosen_dead_letters_are_moved_and_no_others(client: Client, queue: str) -> None:
    await give_up(client, queue, ["billing", "ledger"], 3)
    entries = (await listed(client, queue=queue))["messages"]
    chosen = [e["id"] for e in entries if e["transactionId"] in ("order-0", "order-2")][:3]
    body = await redrive(client, queue, ids=chosen)
    assert (body["moved"], body["messages"], body["remaining"]) == (3, 2, 3)
    left = {entry["id"] for entry in (await listed(client, queue=queue))["messages"]}
    assert left == {entry["id"] for entry in entries} - set(chosen)
    # Of another queue, gone already, or nothing at all.
    assert (await redrive(client, unique("other"), ids=[entries[0]["id"]]))["moved"] == 0
    assert (await redrive(client, queue, ids=chosen))["moved"] == 0
    answer = await client.post("/api/v1/dlq/redrive", {"queue": queue, "ids": ["nonsense"]})
    assert answer.status == 400


async def test_a_message_says_which_groups_gave_it_up_and_why(client: Client, queue: str) -> None:
    await give_up(client, queue, ["billing"], 1)
    await client.complete(await client.pop(queue, group="ledger"), group="ledger")
    (entry,) = (await listed(client, queue=queue))["messages"]
    answer = await client.get(f"/api/v1/messages/{entry['partitionId']}/order-0")
    groups = {one["name"]: one for one in answer.json["consumerGroups"]}
    assert (groups["billing"]["gaveUp"], groups["billing"]["errorMessage"]) == (True, "of billing")
    assert (groups["ledger"]["gaveUp"], groups["ledger"]["errorMessage"]) == (False, None)


async def test_bad_redrives(client: Client) -> None:
    for body in ({}, {"queue": 5}, {"queue": "q", "from": "then"}, {"queue": "q", "limit": 0}):
        answer = await client.post("/api/v1/dlq/redrive", body)
        assert answer.status == 400, body
    assert (await redrive(client, unique("nothing")))["moved"] == 0


# ── remove ──────────────────────────────────────────────────────────────────────────────────────


async def test_purge(client: Client, queue: str) -> None:
    await bury(client, queue, [1, 2])
    await bury(client, queue, [3], partition="p", group="g", error="special")
    answer = await client.send("DELETE", "/api/v1/dlq")
    assert answer.status == 400
    assert answer.error == "queue is required"
    path = f"/api/v1/dlq?queue={segment(queue)}"
    answer = await client.send("DELETE", f"{path}&consumerGroup=g")
    assert answer.json == {
        "success": True, "deleted": 1, "remaining": 0, "queue": queue, "consumerGroup": "g",
    }  # fmt: skip
    answer = await client.send("DELETE", path)
    assert answer.json == {
        "success": True, "deleted": 2, "remaining": 0, "queue": queue, "consumerGroup": None,
    }  # fmt: skip
    assert (await listed(client, queue=queue))["total"] == 0


async def test_a_purge_of_some_takes_the_oldest(client: Client, queue: str) -> None:
    await bury(client, queue, list(range(5)))
    path = f"/api/v1/dlq?queue={segment(queue)}"
    for limit, left in (("2", [4, 3, 2]), ("1", [4, 3]), ("9", [])):
        answer = await client.send("DELETE", f"{path}&limit={limit}")
        assert answer.json["remaining"] == len(left)
        assert [one["data"] for one in (await listed(client, queue=queue))["messages"]] == left


async def test_a_purge_that_cannot_be_read_deletes_nothing(client: Client, queue: str) -> None:
    await bury(client, queue, [1])
    path = f"/api/v1/dlq?queue={segment(queue)}"
    for query in ("limit=0", "limit=-1", "limit=all", "limit=1.5", "from=yesterday", "to=soon"):
        answer = await client.send("DELETE", f"{path}&{query}")
        assert answer.status == 400, query
        assert answer.error.split()[0] == query.split("=")[0]
    assert (await listed(client, queue=queue))["total"] == 1
