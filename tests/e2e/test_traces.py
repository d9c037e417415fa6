"""Events that consumers attach to messages (wire-api 5.6)."""

from typing import Any
from urllib.parse import quote

from queen import Queen

from tests.client import Answer, Client, Message, segment, unique
from tests.cluster_process import ClusterProcess


async def trace(client: Client, message: Message, **fields: Any) -> Answer:
    body = {
        "transactionId": message["transactionId"],
        "partitionId": message["partitionId"],
        "data": {"text": "done"},
    }
    return await client.post("/api/v1/traces", body | fields)


async def of_message(client: Client, message: Message) -> list[dict[str, Any]]:
    answer = await client.get(
        f"/api/v1/traces/{message['partitionId']}/{segment(message['transactionId'])}"
    )
    assert answer.status == 200, answer
    return list(answer.json["traces"])


async def by_name(client: Client, name: str, query: str = "") -> dict[str, Any]:
    answer = await client.get(f"/api/v1/traces/by-name/{segment(name)}{query}")
    assert answer.status == 200, answer
    return dict(answer.json)


async def test_a_trace_is_found_by_message_and_by_name(client: Client, queue: str) -> None:
    order, nightly = unique("order/1 ü"), unique("nightly")
    await client.push(queue, [{"n": 1}], partition="p", ids=["t 1/x"])
    message = (await client.pop(queue, group="g")).messages[0]
    first = await trace(
        client,
        message,
        consumerGroup="g",
        traceNames=[order, nightly, order],
        eventType="step",
        data={"text": "tax computed", "ms": 1.50},
    )
    assert first.status == 201
    assert first.json["success"] is True
    second = await trace(client, message, traceNames=order, data="plain")
    third = await trace(client, message, traceNames=None, data=None)
    assert (second.status, third.status) == (201, 201)

    entries = await of_message(client, message)
    assert [entry["id"] for entry in entries] == [a.json["traceId"] for a in (first, second, third)]
    assert entries[0]["event_type"] == "step"
    assert entries[0]["data"] == {"text": "tax computed", "ms": 1.5}
    assert entries[0]["consumer_group"] == "g"
    assert entries[0]["trace_names"] == sorted([order, nightly])
    assert entries[0]["worker_id"] is None
    assert entries[1]["event_type"] == "info"
    assert entries[1]["consumer_group"] == "__QUEUE_MODE__"
    assert entries[2]["data"] is None
    assert entries[2]["trace_names"] == []

    body = await by_name(client, order)
    assert body["total"] == 2
    assert body["pagination"] == {"limit": 100, "offset": 0}
    assert [t["id"] for t in body["traces"]] == [second.json["traceId"], first.json["traceId"]]
    assert body["traces"][0] | entries[1] == body["traces"][0]
    named = {n: body["traces"][0][n] for n in body["traces"][0] if n not in entries[1]}
    assert named == {
        "transaction_id": "t 1/x",
        "partition_id": message["partitionId"],
        "queue_name": queue,
        "partition_name": "p",
        "message_payload": {"n": 1},
    }
    page = await by_name(client, order, "?limit=1&offset=1")
    assert [t["id"] for t in page["traces"]] == [first.json["traceId"]]
    assert page["total"] == 2
    assert (await by_name(client, order, "?from=2100-01-01T00:00:00Z"))["traces"] == []
    assert (await by_name(client, order, "?to=2000-01-01T00:00:00Z"))["total"] == 0
    assert (await by_name(client, unique("unused")))["traces"] == []

    answer = await client.get("/api/v1/traces/names?limit=1000")
    uses = {use["trace_name"]: use for use in answer.json["trace_names"]}
    assert uses[order]["trace_count"] == 2
    assert uses[order]["message_count"] == 1
    assert uses[order]["last_seen"] == body["traces"][0]["created_at"]
    assert uses[nightly]["trace_count"] == 1
    assert answer.json["total"] >= 2
    page = (await client.get("/api/v1/traces/names?limit=1&offset=100000")).json
    assert page["trace_names"] == []
    assert page["total"] >= 2


async def test_traces_go_with_their_message(client: Client, queue: str) -> None:
    name = unique("name")
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    await trace(client, message, traceNames=name)
    await client.send(
        "DELETE", f"/api/v1/messages/{message['partitionId']}/{message['transactionId']}"
    )
    assert await of_message(client, message) == []
    assert (await by_name(client, name))["total"] == 0


async def test_bad_traces(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    good = {
        "transactionId": message["transactionId"],
        "partitionId": message["partitionId"],
        "data": 1,
    }
    for missing in good:
        body = {name: value for name, value in good.items() if name != missing}
        answer = await client.post("/api/v1/traces", body)
        assert answer.status == 400
        assert missing in answer.error
    for wrong in ({"traceNames": 5}, {"traceNames": ["x" * 501]}, {"eventType": 1}):
        assert (await client.post("/api/v1/traces", good | wrong)).status == 400
    answer = await trace(client, message, traceNames="x" * 501)
    assert answer.json["code"] == "name_too_long"
    for unknown in ({"transactionId": "unknown"}, {"partitionId": "17"}, {"partitionId": "x"}):
        answer = await client.post("/api/v1/traces", good | unknown)
        assert answer.status == 404
        assert answer.error == "Message not found"
    assert (await client.send("POST", "/api/v1/traces")).status == 400
    assert (await client.get("/api/v1/traces/x/y")).json == {
        "traces": [],
        "total": 0,
        "truncated": False,
    }
    assert await of_message(client, message) == []


async def test_the_official_client_traces_and_reads_them(
    server: ClusterProcess, client: Client, queue: str
) -> None:
    name = unique("order")
    queen: Any = Queen({"url": server.url, "handleSignals": False})
    try:
        await queen.queue(queue).push([{"data": {"n": 1}}])

        async def handler(messages: Any) -> None:
            message = messages[0] if isinstance(messages, list) else messages
            await message["trace"](
                {"traceName": [name], "eventType": "info", "data": {"text": "seen"}}
            )

        await queen.queue(queue).group("g").limit(1).consume(handler)
        body = await queen.admin.get_traces_by_name(name, limit=10)
        assert [t["data"] for t in body["traces"]] == [{"text": "seen"}]
        entry = body["traces"][0]
        body = await queen.admin.get_traces_for_message(
            entry["partition_id"], quote(entry["transaction_id"])
        )
        assert body["traces"][0]["consumer_group"] == "g"
        assert name in [
            n["trace_name"] for n in (await queen.admin.get_trace_names())["trace_names"]
        ]
    finally:
        await queen.close()


async def test_texts_of_a_trace_are_bounded(client: Client, queue: str) -> None:
    """What is refused leaves nothing behind."""
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    long = "ü" * 250
    for fields in (
        {"eventType": long + "x"},
        {"consumerGroup": long + "x"},
        {"traceNames": ["a", long + "x"]},
    ):
        refused = await trace(client, message, **fields)
        assert (refused.status, refused.json["code"]) == (400, "name_too_long"), refused
    refused = await trace(client, message, traceNames=[str(number) for number in range(101)])
    assert (refused.status, refused.json["code"]) == (400, "bad_request")
    refused = await trace(client, message, data="x" * 65_535)
    assert (refused.status, refused.json["code"]) == (413, "body_too_large")
    assert await of_message(client, message) == []
    taken = await trace(
        client, message, eventType=long, consumerGroup=long,
        traceNames=[f"{number}{long[2:]}" for number in range(100)], data="x" * 65_534,
    )  # fmt: skip
    assert taken.status == 201, taken
    (entry,) = await of_message(client, message)
    assert (entry["event_type"], entry["consumer_group"]) == (long, long)
    assert (len(entry["trace_names"]), len(entry["data"])) == (100, 65_534)


async def test_many_traces_of_a_message_come_in_pages(client: Client, queue: str) -> None:
    """A page has a bounded number of events, and of bytes: 16 MiB."""
    name = unique("bulk")
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    for number in range(270):
        filler = "x" * 65_000
        answer = await trace(client, message, traceNames=name, data=f"{number} {filler}")
        assert answer.status == 201, answer
    target = f"/api/v1/traces/{message['partitionId']}/{segment(message['transactionId'])}"

    def numbers(entries: list[dict[str, Any]]) -> list[int]:
        return [int(entry["data"].split()[0]) for entry in entries]

    page = (await client.get(f"{target}?limit=3&offset=2")).json
    assert (numbers(page["traces"]), page["total"], page["truncated"]) == ([2, 3, 4], 270, True)
    first = (await client.get(target)).json
    count = len(first["traces"])
    assert 250 < count < 270
    assert (numbers(first["traces"]), first["truncated"]) == (list(range(count)), True)
    rest = (await client.get(f"{target}?offset={count}")).json
    assert (numbers(rest["traces"]), rest["truncated"]) == (list(range(count, 270)), False)

    named = await by_name(client, name, "?limit=1000")
    assert 250 < len(named["traces"]) < 270
    assert (named["total"], named["truncated"]) == (270, True)
    rest = await by_name(client, name, f"?limit=1000&offset={len(named['traces'])}")
    assert numbers(named["traces"] + rest["traces"]) == list(range(269, -1, -1))
    assert rest["truncated"] is False
