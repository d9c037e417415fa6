"""The shape of each route: what it takes, what it answers, and what it must not change on the way.

One test names one promise of the protocol; how messages move through leases and acknowledgements
is the subject of the other files.
"""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.client import Answer, Client, as_pop, drain, unique, uuid7

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization",
    "Access-Control-Max-Age": "86400",
}

DEFAULT_OPTIONS = {
    "leaseTime": 300,
    "retryLimit": 3,
    "retryDelay": 1000,
    "priority": 0,
    "maxSize": 0,
    "ttl": 3600,
    "deadLetterQueue": False,
    "dlqAfterMaxRetries": False,
    "delayedProcessing": 0,
    "windowBuffer": 0,
    "retentionSeconds": 0,
    "completedRetentionSeconds": 0,
    "retentionEnabled": False,
    "encryptionEnabled": False,
    "maxWaitTimeSeconds": 0,
}

OTHER_OPTIONS = {
    "leaseTime": 61,
    "retryLimit": 7,
    "retryDelay": 2500,
    "priority": 9,
    "maxSize": 5000,
    "ttl": 7200,
    "deadLetterQueue": True,
    "dlqAfterMaxRetries": True,
    "delayedProcessing": 11,
    "windowBuffer": 12,
    "retentionSeconds": 13000,
    "completedRetentionSeconds": 14000,
    "retentionEnabled": True,
    "encryptionEnabled": True,
    "maxWaitTimeSeconds": 15000,
}

# Names are data, whatever they look like. Each is used as queue, partition, group and id at once.
ODD_NAMES = {
    "space": "two words",
    "apostrophe": "it's",
    "double quotes": 'say "hi"',
    "semicolon": "a;b",
    "sql": "'; DROP TABLE queues; --",
    "slash": "a/b/c",
    "backslash": "back\\slash\\",
    "percent": "100% %41 %zz",
    "query characters": "a=b&c?d#e+f",
    "unicode": "naïve ☃ 🐘 日本",
    "line breaks": "tab\tnew\nline\r",
    "control characters": "\x01\x02\x1f\x7f",
    "braces": "{0} $1 %s \\u0041",
    "dots": "..",
    "null": "null",
    "number": "007",
}


def exact(text: bytes | str) -> Any:
    """JSON read without losing a digit, in a form where `0`, `0.0` and `false` differ."""
    value = json.loads(text, parse_float=Decimal)

    def tagged(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: tagged(member) for key, member in part.items()}
        if isinstance(part, list):
            return [tagged(member) for member in part]
        return (type(part).__name__, part)

    return tagged(value)


def is_uuid7(text: str) -> bool:
    return uuid.UUID(text).version == 7 and str(uuid.UUID(text)) == text


def instant(text: str) -> datetime:
    """A timestamp of the wire: ISO 8601, UTC, `Z`."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3,6})?Z", text), text
    return datetime.fromisoformat(text)


# ── health and metrics ──────────────────────────────────────────────────────────────────────────


async def test_health_tells_that_server_and_database_are_well(client: Client) -> None:
    answer = await client.get("/health")
    assert answer.status == 200
    health = answer.json
    assert health["status"] == "healthy"
    assert health["database"] == "connected"
    assert isinstance(health["server"], str)
    assert isinstance(health["version"], str)
    assert re.fullmatch(r"\d+s", health["uptime"]), health
    assert isinstance(health["connections"], int)
    stats = health["stats"]
    assert isinstance(stats["requests"], int)
    assert isinstance(stats["messages"], int)
    assert re.fullmatch(r"\d+\.\d\d", stats["requestsPerSecond"]), stats
    assert re.fullmatch(r"\d+\.\d\d", stats["messagesPerSecond"]), stats
    assert {"total", "idle", "waiting"} <= stats["pool"].keys()


async def test_metrics_have_every_field_as_a_number(client: Client) -> None:
    answer = await client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    metrics = answer.json
    assert metrics["uptime"] > 0
    fields = {
        "requests": ["total", "rate"],
        "messages": ["total", "rate"],
        "database": ["poolSize", "idleConnections", "waitingRequests"],
        "memory": ["rss", "heapTotal", "heapUsed", "external", "arrayBuffers"],
        "cpu": ["user", "system"],
    }
    for family, names in fields.items():
        for name in names:
            assert isinstance(metrics[family][name], int | float), f"{family}.{name}"
    assert metrics["memory"]["rss"] > 1_000_000  # bytes
    assert metrics["database"]["poolSize"] > 0


# ── what holds for every answer ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", ["/", "/health", "/api/v1/push", "/api/v1/pop/queue/x", "/no/such"]
)
async def test_options_answers_204_with_cors_headers_on_any_path(client: Client, path: str) -> None:
    answer = await client.send("OPTIONS", path)
    assert answer.status == 204
    assert answer.raw == b""
    assert {name: answer.headers.get(name) for name in CORS_HEADERS} == CORS_HEADERS


async def test_every_kind_of_answer_carries_cors_headers(client: Client, queue: str) -> None:
    answers = {
        200: await client.get("/health"),
        201: await client.post("/api/v1/configure", {"queue": queue}),
        204: await client.get(f"/api/v1/pop/queue/{queue}"),
        400: await client.post("/api/v1/push", {}),
        404: await client.get("/api/v1/no-such-route"),
    }
    for status, answer in answers.items():
        assert answer.status == status, answer
        for name, value in CORS_HEADERS.items():
            assert answer.headers.get(name) == value, (status, name)


async def test_an_answer_with_a_body_is_json_and_says_so(client: Client, queue: str) -> None:
    answers = [
        await client.get("/health"),
        await client.post("/api/v1/push", {"items": [{"queue": queue, "payload": 1}]}),
        await client.get(f"/api/v1/pop/queue/{queue}"),
        await client.post("/api/v1/push", {}),
        await client.get("/api/v1/no-such-route"),
    ]
    for answer in answers:
        assert answer.headers["Content-Type"].startswith("application/json"), answer
        answer.json  # noqa: B018  parses


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_an_unknown_route_answers_404_no_such_route(client: Client, method: str) -> None:
    answer = await client.send(method, "/api/v1/no/such/route")
    assert answer.status == 404
    assert answer.json == {"error": "Not Found", "code": "no_such_route"}


@pytest.mark.parametrize(
    "path", ["/api/v1/push", "/api/v1/configure", "/api/v1/ack", "/api/v1/ack/batch"]
)
async def test_an_empty_body_is_refused_where_one_is_needed(client: Client, path: str) -> None:
    answer = await client.send("POST", path)
    assert answer.status == 400
    assert answer.error == "Empty request body"


async def test_an_empty_body_extends_a_lease(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue)
    answer = await client.send("POST", f"/api/v1/lease/{pop.lease_id}/extend")
    assert answer.status == 200
    assert answer.json["success"] is True


@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-8", "text/plain"])
async def test_a_body_is_read_as_json_whatever_its_content_type(
    client: Client, queue: str, content_type: str | None
) -> None:
    answer = await client.send(
        "POST",
        "/api/v1/push",
        body=json.dumps({"items": [{"queue": queue, "payload": "é"}]}).encode(),
        headers={"Content-Type": content_type} if content_type else {},
    )
    assert answer.status == 201
    assert (await client.pop(queue)).data == ["é"]


async def test_a_chunked_body_without_a_length_is_read_whole(client: Client, queue: str) -> None:
    body = json.dumps({"items": [{"queue": queue, "payload": "x" * 300_000}]}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 70_000):
            yield body[start : start + 70_000]

    answer = await client.send("POST", "/api/v1/push", body=pieces())
    assert answer.status == 201
    assert (await client.pop(queue)).data == ["x" * 300_000]


async def test_unknown_fields_and_parameters_are_ignored(client: Client, queue: str) -> None:
    await client.configure(
        queue, {"partitionRetentionSeconds": 5, "nonsense": {}}, partition="x", future=[1]
    )
    answer = await client.post(
        "/api/v1/push",
        {
            "items": [{"queue": queue, "payload": 1, "headers": {"a": 1}, "priority": "x"}],
            "bufferMs": 100,
            "bufferMax": 10,
            "config": {"ttl": 1},
            "future": None,
        },
    )
    assert answer.status == 201
    pop = await client.pop(queue, namespace="other", task="t", nonsense="1", payload="x")
    assert pop.data == [1]
    extended = await client.post(
        f"/api/v1/lease/{pop.lease_id}/extend", {"seconds": 5, "future": {}}
    )
    assert extended.json["success"] is True
    assert (await client.ack(pop.messages[0], future=1))["success"] is True


@pytest.mark.parametrize(
    ("text", "truth"),
    [("true", True), ("1", True), ("false", False), ("0", False), ("", False), ("TRUE", True)],
)
async def test_a_boolean_in_the_query_is_true_for_true_and_1_only(
    client: Client, queue: str, text: str, truth: bool
) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue, autoAck=text)
    assert (pop.lease_id == "") is truth


@pytest.mark.parametrize("name", ["batch", "partitions", "timeout", "leaseSeconds"])
async def test_an_empty_number_in_the_query_is_as_if_not_given(
    client: Client, queue: str, name: str
) -> None:
    """One that cannot be read is refused (test_parameters.py)."""
    await client.push(queue, [1])
    assert as_pop(await client.get(f"/api/v1/pop/queue/{queue}?{name}=")).data == [1]


# ── configure ───────────────────────────────────────────────────────────────────────────────────


async def test_configure_creates_a_queue_and_echoes_all_15_options(
    client: Client, queue: str
) -> None:
    answer = await client.post(
        "/api/v1/configure", {"queue": queue, "namespace": "billing", "task": "invoice"}
    )
    assert answer.status == 201
    body = answer.json
    assert body["configured"] is True
    assert body["queue"] == queue
    assert body["namespace"] == "billing"
    assert body["task"] == "invoice"
    assert isinstance(body["queueId"], str)
    assert isinstance(body["partitionId"], str | None)
    assert exact(json.dumps(_known(body["options"]))) == exact(json.dumps(DEFAULT_OPTIONS))


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """The fifteen options of the table; a server may echo newer ones beside them."""
    return {name: options[name] for name in DEFAULT_OPTIONS}


async def test_configure_sets_every_option(client: Client, queue: str) -> None:
    body = await client.configure(queue, OTHER_OPTIONS)
    assert exact(json.dumps(_known(body["options"]))) == exact(json.dumps(OTHER_OPTIONS))
    again = await client.configure(queue)
    assert _known(again["options"]) == OTHER_OPTIONS


async def test_configure_reads_options_at_the_top_level_when_there_is_no_options_object(
    client: Client, queue: str
) -> None:
    body = await client.configure(queue, retryLimit=5, leaseTime=44)
    assert _known(body["options"]) == DEFAULT_OPTIONS | {"retryLimit": 5, "leaseTime": 44}


async def test_configure_merges_absent_keeps_and_null_restores_the_default(
    client: Client, queue: str
) -> None:
    await client.configure(queue, OTHER_OPTIONS)
    body = await client.configure(queue, {"ttl": None, "retryLimit": None, "priority": 0})
    expected = OTHER_OPTIONS | {"ttl": 3600, "retryLimit": 3, "priority": 0}
    assert _known(body["options"]) == expected
    body = await client.configure(queue, {"leaseTime": 62}, mode="merge")
    assert _known(body["options"]) == expected | {"leaseTime": 62}


async def test_configure_with_mode_replace_resets_what_is_absent(
    client: Client, queue: str
) -> None:
    await client.configure(queue, OTHER_OPTIONS)
    body = await client.configure(queue, {"leaseTime": 63}, mode="replace")
    assert _known(body["options"]) == DEFAULT_OPTIONS | {"leaseTime": 63}


async def test_configure_warns_of_options_that_it_ignores(client: Client, queue: str) -> None:
    body = await client.configure(queue, {"leeseTime": 5, "retryLimit": 1, "minPopWaitTime": 5})
    assert body["warning"] == (
        "there is no option 'leeseTime', it was ignored; did you mean leaseTime?"
    )
    assert _known(body["options"]) == DEFAULT_OPTIONS | {"retryLimit": 1}
    flat = await client.configure(queue, partition="x", maxSise=3)
    assert flat["warning"].endswith("'maxSise', it was ignored; did you mean maxSize?")
    assert "warning" not in await client.configure(queue, {"leaseTime": 5})


async def test_configure_with_mode_create_refuses_a_queue_that_exists(
    client: Client, queue: str
) -> None:
    made = await client.configure(queue, {"leaseTime": 63}, mode="create", namespace="shop")
    answer = await client.post(
        "/api/v1/configure", {"queue": queue, "mode": "create", "options": {"leaseTime": 7}}
    )
    assert answer.status == 409
    assert answer.json["code"] == "queue_exists"
    assert f"Queue '{queue}' exists already" in answer.error
    kept = await client.configure(queue)
    assert kept["queueId"] == made["queueId"]
    assert (kept["namespace"], kept["options"]["leaseTime"]) == ("shop", 63)


async def test_configure_keeps_an_explicit_zero(client: Client, queue: str) -> None:
    body = await client.configure(queue, {"retryLimit": 0, "ttl": 0, "retryDelay": 0})
    expected = DEFAULT_OPTIONS | {"retryLimit": 0, "ttl": 0, "retryDelay": 0}
    assert _known(body["options"]) == expected


async def test_configure_keeps_labels_that_are_null_or_absent(client: Client, queue: str) -> None:
    await client.configure(queue, namespace="n", task="t")
    body = await client.configure(queue, {}, namespace=None)
    assert (body["namespace"], body["task"]) == ("n", "t")
    body = await client.configure(queue, {}, namespace="n2", task="")
    assert (body["namespace"], body["task"]) == ("n2", "")


async def test_a_queue_made_by_configure_has_empty_labels_unless_they_are_sent(
    client: Client,
) -> None:
    body = await client.configure(unique("space.task"))
    assert (body["namespace"], body["task"]) == ("", "")


async def test_configure_accepts_the_empty_queue_name(client: Client) -> None:
    assert (await client.configure(""))["queue"] == ""


async def test_reconfiguring_keeps_messages_cursors_and_leases(client: Client, queue: str) -> None:
    await client.configure(queue, {"leaseTime": 60})
    await client.push(queue, [1, 2, 3])
    first = await client.pop(queue, batch=1)
    await client.complete(first)
    second = await client.pop(queue, batch=1)
    await client.configure(queue, {"leaseTime": 30, "retryLimit": 1}, mode="replace")
    assert (await client.pop(queue)).status == 204
    await client.complete(second)
    assert (await client.pop(queue)).data == [3]


async def test_every_worker_sees_a_changed_option_at_once(
    client: Client, fresh_client: Client
) -> None:
    """Both workers have used the queue, one of them changes it, then either may take the nack."""
    for _ in range(8):
        queue = unique("changed")
        for number in range(6):
            await fresh_client.push(queue, [number])
        pop = await client.pop(queue)
        await client.configure(queue, {"retryLimit": 0})
        result = await fresh_client.ack(pop.messages[0], "failed")
        assert result["dlq"] is True, "retryLimit 0 dead-letters the first failure"


# ── push ────────────────────────────────────────────────────────────────────────────────────────


async def test_push_answers_one_entry_per_item_in_request_order(client: Client) -> None:
    one, two = unique("one"), unique("two")
    trace = str(uuid.uuid4())
    results = await client.push_items(
        [
            {"queue": two, "partition": "p", "payload": 1, "transactionId": "a", "traceId": trace},
            {"queue": one, "payload": 2, "transactionId": "b"},
            {"queue": two, "partition": "p", "payload": 3, "transactionId": "c"},
            {"queue": two, "partition": "p", "payload": 4, "transactionId": "a"},
            {"queue": one, "partition": "q", "payload": 5},
        ]
    )
    assert [result["status"] for result in results] == [
        "queued",
        "queued",
        "queued",
        "duplicate",
        "queued",
    ]
    assert [result["queueName"] for result in results] == [two, one, two, two, one]
    assert [result["offset"] for result in results] == [0, 0, 1, 0, 0]
    assert [result["transaction_id"] for result in results[:4]] == ["a", "b", "c", "a"]
    assert results[3]["message_id"] == results[0]["message_id"]
    assert results[0]["partition_id"] == results[2]["partition_id"] == results[3]["partition_id"]
    assert len({result["partition_id"] for result in results}) == 3
    assert all(is_uuid7(result["message_id"]) for result in results)
    assert len({result["message_id"] for result in results}) == 4
    assert results[0]["trace_id"] == trace
    assert results[1]["trace_id"] is None


async def test_an_id_that_is_missing_or_empty_is_minted_and_equals_the_message_id(
    client: Client, queue: str
) -> None:
    results = await client.push_items(
        [
            {"queue": queue, "payload": 1},
            {"queue": queue, "payload": 2, "transactionId": ""},
            {"queue": queue, "payload": 3, "transactionId": ""},
        ]
    )
    assert [result["status"] for result in results] == ["queued"] * 3
    assert [result["transaction_id"] for result in results] == [
        result["message_id"] for result in results
    ]
    assert (await client.pop(queue)).ids == [result["transaction_id"] for result in results]


async def test_a_push_without_items_answers_an_empty_array(client: Client) -> None:
    answer = await client.post("/api/v1/push", {"items": []})
    assert answer.status == 201
    assert answer.json == []


async def test_a_push_creates_queue_and_partition_with_labels_from_the_name(
    client: Client,
) -> None:
    space, task = unique("space"), unique("task")
    for name, labels in {
        f"{space}.{task}.rest.of.it": (space, task),
        f"{space}.{task}": (space, task),
        unique("plain"): None,
    }.items():
        await client.push(name, [1], partition="new")
        body = await client.configure(name)
        assert (body["namespace"], body["task"]) == (labels or (name, "")), name


async def test_a_push_to_one_partition_keeps_request_order(client: Client, queue: str) -> None:
    await client.push(queue, list(range(500)))
    assert (await client.pop(queue)).data == list(range(500))


async def test_partition_names_are_case_sensitive_and_default_is_default(
    client: Client, queue: str
) -> None:
    await client.push(queue, ["implicit"])
    await client.push(queue, ["explicit"], partition="Default")
    await client.push(queue, ["lower"], partition="default")
    assert (await client.pop(queue, partition="Default")).data == ["implicit", "explicit"]
    assert (await client.pop(queue, partition="default")).data == ["lower"]


async def test_producer_sub_from_the_body_is_ignored(client: Client, queue: str) -> None:
    await client.push_items([{"queue": queue, "payload": 1, "producerSub": "mallory"}])
    assert (await client.pop(queue)).messages[0]["producerSub"] is None


async def test_a_malformed_trace_id_is_refused_or_dropped(client: Client, queue: str) -> None:
    answer = await client.post(
        "/api/v1/push", {"items": [{"queue": queue, "payload": 1, "traceId": "no-uuid"}]}
    )
    if answer.status == 400:
        assert answer.error
        assert (await client.pop(queue)).status == 204
    else:
        assert answer.status == 201
        assert answer.json[0]["status"] == "queued"
        assert (await client.pop(queue)).messages[0]["traceId"] is None


# ── payloads ────────────────────────────────────────────────────────────────────────────────────

PAYLOADS = {
    "null": "null",
    "empty object": "{}",
    "empty array": "[]",
    "empty text": '""',
    "zero": "0",
    "false": "false",
    "true": "true",
    "float zero": "0.0",
    "minus zero": "-0",
    "big integer": "123456789012345678901234567890",
    "below int64": "-9223372036854775809",
    "many digits": "0.1234567890123456789012345678901234567890",
    "big exponent": "1e400",
    "exponents": "[1E5, 1e-7, 1.5e+3]",
    "nul escape": r'"a\u0000b"',
    "nul in a key": r'{"\u0000":"\u0000\u0001\u001f"}',
    "all escapes": r'"\"\\\/\b\f\n\r\t\u00e9\u2028\ud83d\ude00"',
    "raw unicode": '"naïve ☃ 🐘 \u2028 \x7f \ufeff \uffff"',
    "text like a message": '{"leaseId":"x","data":{"transactionId":"y"},"consumerGroup":null}',
    "empty key": '{"":{"":[{},[]]}}',
    "pretty-printed": '{\n\t"a": [\r\n    1,\n    2\n  ],\n  "b" : { }\n}',
    "nested": "[" * 60 + "]" * 60,
}


@pytest.mark.parametrize("text", PAYLOADS.values(), ids=PAYLOADS.keys())
async def test_a_payload_survives_unchanged(client: Client, queue: str, text: str) -> None:
    before = exact(text)
    body = f'{{"items":[{{"queue":"{queue}","payload":{text},"transactionId":"t"}}]}}'
    answer = await client.send("POST", "/api/v1/push", body=body.encode())
    assert answer.status == 201, answer
    assert answer.json[0]["status"] == "queued"
    # Read twice: a first delivery may come from memory, a second group's from the stored form.
    for group in (None, "late"):
        parameter = f"?consumerGroup={group}" if group else ""
        popped = await client.get(f"/api/v1/pop/queue/{queue}{parameter}")
        assert popped.status == 200
        message = popped.json["messages"][0]
        assert message["transactionId"] == "t"
        after = exact(popped.raw)["messages"][0]["data"]
        assert after == before


async def test_a_payload_that_is_absent_comes_back_as_null(client: Client, queue: str) -> None:
    await client.push_items([{"queue": queue}])
    assert (await client.pop(queue)).data == [None]


async def test_payloads_of_two_megabytes_survive_unchanged(client: Client, queue: str) -> None:
    text = "".join(f"{number:08x}é\n" for number in range(200_000))  # 2.2 MB in UTF-8
    rows = [{"id": number, "name": f"row {number}", "on": True} for number in range(50_000)]
    await client.push(queue, [text, rows])
    assert (await client.pop(queue)).data == [text, rows]


async def test_many_items_of_all_sizes_survive_in_order(client: Client, queue: str) -> None:
    payloads = ["x" * size for size in range(0, 40_000, 97)]  # 412 items, 8 MB
    await client.push(queue, payloads)
    pop = await client.pop(queue, batch=1000)
    assert pop.data == payloads
    assert pop.offsets == list(range(len(payloads)))


# ── pop ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_popped_message_has_every_field(client: Client, queue: str) -> None:
    trace = str(uuid.uuid4())
    pushed = await client.push_items(
        [
            {
                "queue": queue,
                "partition": "acct-17",
                "payload": {"total": 12.5},
                "transactionId": "inv-1",
                "traceId": trace,
            }
        ]
    )
    pop = await client.pop(queue, group="ledger")
    body = pop.body
    message = pop.messages[0]
    assert body["success"] is True
    assert body["queue"] == queue
    assert body["partition"] == "acct-17"
    assert body["partitionId"] == pushed[0]["partition_id"]
    assert body["consumerGroup"] == "ledger"
    assert body["partitionsClaimed"] == 1
    assert str(uuid.UUID(body["leaseId"])) == body["leaseId"]
    expected = {
        "id": pushed[0]["message_id"],
        "transactionId": "inv-1",
        "traceId": trace,
        "data": {"total": 12.5},
        "producerSub": None,
        "queue": queue,
        "partition": "acct-17",
        "partitionId": pushed[0]["partition_id"],
        "leaseId": body["leaseId"],
        "consumerGroup": "ledger",
        "offset": 0,
        "deliveryAttempt": 1,
        "retryCount": 0,
        "priority": 0,
    }
    assert {name: message[name] for name in expected} == expected
    age = datetime.now(UTC) - instant(message["createdAt"])
    assert timedelta(seconds=-5) < age < timedelta(seconds=60)
    assert "payload" not in message, "the data a second time would double the answer"


async def test_a_message_carries_the_priority_of_its_queue(client: Client, queue: str) -> None:
    await client.configure(queue, {"priority": 7})
    await client.push(queue, [1])
    assert (await client.pop(queue)).messages[0]["priority"] == 7


async def test_messages_of_one_push_to_one_partition_have_one_creation_time(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(20)))
    await client.push(queue, [20])
    times = [instant(message["createdAt"]) for message in (await client.pop(queue)).messages]
    assert len(set(times[:20])) == 1
    assert times[20] > times[0]


async def test_a_pop_without_a_group_is_the_queue_mode_group(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue)
    assert pop.body["consumerGroup"] == "__QUEUE_MODE__"
    assert pop.messages[0]["consumerGroup"] == "__QUEUE_MODE__"
    assert (await client.pop(queue, group="__QUEUE_MODE__")).status == 204


async def test_consumer_group_may_be_spelled_consumer_underscore_group(
    client: Client, queue: str
) -> None:
    await client.push(queue, [1])
    answer = await client.get(f"/api/v1/pop/queue/{queue}?consumer_group=old")
    assert as_pop(answer).body["consumerGroup"] == "old"


async def test_batch_is_a_cap_and_has_a_default(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2, 3, 4, 5])
    assert (await client.pop(queue, group="three", batch=3)).data == [1, 2, 3]
    assert (await client.pop(queue, group="more", batch=50)).data == [1, 2, 3, 4, 5]
    answer = await client.get(f"/api/v1/pop/queue/{queue}?consumerGroup=none")
    # 200 as in 2.x, or 1 as before (wire-api 9, item 21).
    assert as_pop(answer).data in ([1, 2, 3, 4, 5], [1])


async def test_an_empty_pop_answers_204_for_every_reason(client: Client, queue: str) -> None:
    async def assert_empty(answer: Answer) -> None:
        assert answer.status == 204
        assert answer.raw == b""
        assert answer.headers.get("Content-Length", "0") == "0"

    unknown = f"/api/v1/pop/queue/{unique('unknown')}"
    await assert_empty(await client.get(unknown))
    await assert_empty(await client.get(f"{unknown}/partition/p"))
    await client.configure(queue)
    await assert_empty(await client.get(f"/api/v1/pop/queue/{queue}"))
    await client.push(queue, [1])
    await assert_empty(await client.get(f"/api/v1/pop/queue/{queue}/partition/other"))
    await client.pop(queue)
    await assert_empty(await client.get(f"/api/v1/pop/queue/{queue}"))
    await assert_empty(await client.get(f"/api/v1/pop/queue/{queue}/partition/Default"))
    await assert_empty(await client.get(f"/api/v1/pop/queue/{queue}?wait=true&timeout=50"))


async def test_the_queue_route_takes_from_any_partition_default_included(
    client: Client, queue: str
) -> None:
    await client.push(queue, ["d"])
    await client.push(queue, ["p"], partition="p")
    both = [(await client.pop(queue)).data[0], (await client.pop(queue)).data[0]]
    assert sorted(both) == ["d", "p"]
    assert (await client.pop(queue)).status == 204


async def test_the_partition_route_takes_from_that_partition_only(
    client: Client, queue: str
) -> None:
    for name in ("a", "b", "Default"):
        await client.push(queue, [name], partition=name)
    for name in ("b", "Default", "a"):
        pop = await client.pop(queue, partition=name, partitions=3)
        assert pop.data == [name]
        assert pop.body["partition"] == name


async def test_a_pop_creates_no_partition(client: Client, queue: str) -> None:
    await client.pop(queue, partition="ghost")
    await client.push(queue, [1])
    assert len(await drain(client, queue)) == 1


async def test_what_was_pushed_is_visible_to_the_next_pop_on_any_worker(
    fresh_client: Client, queue: str
) -> None:
    for number in range(40):
        await fresh_client.push(queue, [number])
        pop = await fresh_client.pop(queue, batch=1)
        assert pop.data == [number]
        await fresh_client.complete(pop)


# ── names ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("odd", ODD_NAMES.values(), ids=ODD_NAMES.keys())
async def test_any_text_is_a_name(client: Client, odd: str) -> None:
    queue = f"{odd}{uuid.uuid4().hex[:8]}{odd}"
    body = await client.configure(queue, namespace=odd, task=odd)
    assert (body["queue"], body["namespace"], body["task"]) == (queue, odd, odd)
    pushed = await client.push(queue, ["one", "two"], partition=odd, ids=[odd, odd + "2"])
    assert [result["transaction_id"] for result in pushed] == [odd, odd + "2"]
    assert pushed[0]["queueName"] == queue
    # Through the queue route for the group, through the partition route without one.
    by_group = await client.pop(queue, group=odd)
    by_partition = await client.pop(queue, partition=odd)
    for pop, group in ((by_group, odd), (by_partition, "__QUEUE_MODE__")):
        assert pop.ids == [odd, odd + "2"]
        assert pop.data == ["one", "two"]
        for part in (pop.body, *pop.messages):
            assert part["queue"] == queue
            assert part["partition"] == odd
            assert part["consumerGroup"] == group
            assert part["leaseId"] == pop.lease_id
    assert (await client.ack(by_group.messages[0], group=odd))["success"] is True
    await client.complete(by_partition)
    assert (await client.pop(queue, partition=odd)).status == 204
    assert (await client.push(queue, [0], partition=odd, ids=[odd]))[0]["status"] == "duplicate"
    deleted = await client.delete(queue)
    assert (deleted["deleted"], deleted["existed"], deleted["queue"]) == (True, True, queue)


async def test_names_that_differ_in_form_only_are_different_names(client: Client) -> None:
    stem = uuid.uuid4().hex[:8]
    names = [f"{stem}{end}" for end in ("é", "e\u0301", "E", "e", "e ", " e", "%65", "%2565")]
    for number, name in enumerate(names):
        await client.push(name, [number])
    for number, name in enumerate(names):
        assert (await client.pop(name)).data == [number], name


async def test_characters_that_need_no_escape_may_stand_raw_in_a_path(client: Client) -> None:
    queue = unique("a:b@c!d,e(f)*g'h~i")
    await client.push(queue, [1], partition="k:v")
    answer = await client.get(f"/api/v1/pop/queue/{queue}/partition/k:v")
    assert as_pop(answer).data == [1]


async def test_a_plus_in_a_path_is_a_plus_and_in_a_query_a_space(client: Client) -> None:
    queue = unique("a+b")
    await client.push(queue, [1])
    answer = await client.get(f"/api/v1/pop/queue/{queue}?consumerGroup=two+words")
    assert as_pop(answer).body["consumerGroup"] == "two words"


# ── ack, lease, delete ──────────────────────────────────────────────────────────────────────────


async def test_ack_answers_an_array_of_one(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2], partition="p", ids=["a", "b"])
    first, last = (await client.pop(queue, group="g")).messages
    result = await client.ack(first, group="g")
    expected = {
        "index": 0,
        "transactionId": "a",
        "success": True,
        "error": None,
        "queueName": queue,
        "partitionName": "p",
        "leaseReleased": False,
        "dlq": False,
    }
    assert {name: result[name] for name in expected} == expected
    assert not result.get("noop")
    result = await client.ack(last, group="g")
    assert (result["success"], result["leaseReleased"]) == (True, True)


async def test_a_refused_ack_is_answered_200_with_success_false(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    result = await client.ack(message, leaseId=str(uuid.uuid4()))
    assert result["success"] is False
    assert result["leaseReleased"] is False
    assert result["dlq"] is False


async def test_ack_batch_answers_index_aligned_with_the_request(client: Client, queue: str) -> None:
    await client.push(queue, [1, 2, 3], ids=["a", "b", "c"])
    one, two, three = (await client.pop(queue)).messages
    ghost = one | {"transactionId": "ghost"}
    results = await client.ack_batch(
        [(three, "completed"), (ghost, "completed"), (one, "completed"), (two, "completed")]
    )
    assert [result["success"] for result in results] == [True, False, True, True]
    assert [result["index"] for result in results] == [0, 1, 2, 3]


async def test_ack_accepts_null_where_a_field_is_optional(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    result = await client.ack(message, fenced=False, error=None, consumerGroup=None, leaseId=None)
    assert result["success"] is True


async def test_extend_answers_the_new_expiry_under_every_name(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    pop = await client.pop(queue)
    body = await client.extend(pop.lease_id, 120)
    assert body["leaseId"] == pop.lease_id
    assert body["success"] is True
    assert body["renewed"] == 1
    assert body["error"] is None
    assert body["newExpiresAt"] == body["expiresAt"] == body["lease_expires_at"]
    left = instant(body["newExpiresAt"]) - datetime.now(UTC)
    assert timedelta(seconds=100) < left


async def test_extending_an_unknown_lease_reports_it_in_the_body(client: Client) -> None:
    for lease_id in (str(uuid.uuid4()), uuid7(), "no-uuid", "a b/c'"):
        body = await client.extend(lease_id, 60)
        assert body["success"] is False
        assert body["renewed"] == 0
        assert body["newExpiresAt"] is None
        assert body["error"] == "Lease not found"
        assert body["leaseId"] == lease_id


async def test_deleting_a_queue_empties_the_name_for_good(client: Client, queue: str) -> None:
    """Messages, ids, cursors, leases, options and offsets of the old queue are all gone."""
    await client.configure(queue, {"priority": 7})
    await client.push(queue, [1, 2, 3], ids=["a", "b", "c"])
    await client.ack((await client.pop(queue, group="g")).messages[0], group="g")
    old = (await client.pop(queue)).messages[0]
    assert (await client.delete(queue))["deleted"] is True
    assert (await client.pop(queue)).status == 204
    assert (await client.ack(old))["success"] is False
    assert (await client.extend(old["leaseId"], 5))["success"] is False
    assert (await client.configure(queue))["options"]["priority"] == 0
    results = await client.push(queue, [4, 5], ids=["a", "b"])
    assert [(result["status"], result["offset"]) for result in results] == [
        ("queued", 0),
        ("queued", 1),
    ]
    assert (await client.pop(queue)).data == [4, 5]
    assert (await client.pop(queue, group="g")).data == [4, 5]


async def test_deleting_an_absent_queue_says_that_nothing_was_deleted(client: Client) -> None:
    name = unique("absent")
    body = await client.delete(name)
    assert (body["deleted"], body["existed"], body["queue"]) == (False, False, name)
    assert body["message"] == "Queue not found, nothing was deleted"


async def test_every_worker_forgets_a_deleted_queue_at_once(fresh_client: Client) -> None:
    """Both workers know the queue well when it goes; what comes after is all in the new one."""
    for _ in range(5):
        queue = unique("reborn")
        for number in range(6):
            await fresh_client.push(queue, ["old", number])
        await fresh_client.pop(queue)
        assert (await fresh_client.delete(queue))["deleted"] is True
        pushed = [(await fresh_client.push(queue, [number]))[0] for number in range(8)]
        assert [result["status"] for result in pushed] == ["queued"] * 8
        assert [result["offset"] for result in pushed] == list(range(8))
        assert len({result["partition_id"] for result in pushed}) == 1
        assert (await fresh_client.pop(queue)).data == list(range(8))


async def test_queues_made_at_the_same_moment_are_one(fresh_client: Client) -> None:
    """The first push, the first pop and a configure of one name race on both workers."""
    for _ in range(4):
        queue = unique("born")
        results = await asyncio.gather(
            *[fresh_client.push(queue, [number], partition="p") for number in range(10)],
            *[fresh_client.configure(queue, {"priority": 5}) for _ in range(5)],
            *[fresh_client.pop(queue, group=f"g{number}") for number in range(5)],
        )
        pushed = [result[0] for result in results[:10] if isinstance(result, list)]
        assert sorted(entry["offset"] for entry in pushed) == list(range(10))
        assert len({entry["partition_id"] for entry in pushed}) == 1
        configured = [result for result in results[10:15] if isinstance(result, dict)]
        assert len({body["queueId"] for body in configured}) == 1
        assert (await fresh_client.configure(queue))["options"]["priority"] == 5


async def test_deleting_a_queue_in_use_is_no_fault(fresh_client: Client, queue: str) -> None:
    """Pushes, pops and acks go on while it is deleted again and again; then it works as new."""
    stop = asyncio.Event()

    async def use(number: int) -> None:
        while not stop.is_set():
            await fresh_client.push(queue, [1, 2, 3], partition=f"p{number % 2}")
            pop = await fresh_client.pop(queue, group=f"g{number % 2}")
            if pop.messages:
                pairs = [(message, "completed") for message in pop.messages]
                await fresh_client.ack_batch(pairs, group=f"g{number % 2}")
                await fresh_client.extend(pop.lease_id, 5)

    users = [asyncio.create_task(use(number)) for number in range(6)]
    for _ in range(15):
        await fresh_client.delete(queue)
        await asyncio.sleep(0.03)
    stop.set()
    await asyncio.gather(*users)
    await fresh_client.delete(queue)
    entry = (await fresh_client.push(queue, ["new"], partition="p0"))[0]
    assert (entry["status"], entry["offset"]) == ("queued", 0)
    assert (await fresh_client.pop(queue)).data == ["new"]


async def test_a_push_may_create_a_thousand_partitions(client: Client, queue: str) -> None:
    """In one request, quickly enough for a client's timeout, and every one of them is readable."""
    names = [f"customer-{number}" for number in range(1000)]
    results = await client.push_items(
        [{"queue": queue, "partition": name, "payload": name} for name in names]
    )
    assert {result["offset"] for result in results} == {0}
    assert len({result["partition_id"] for result in results}) == 1000
    messages = await drain(client, queue)
    assert sorted(message["data"] for message in messages) == sorted(names)
