"""Bad input gets a 4xx with an `{"error": ...}` body and changes nothing; the server goes on.

The server here takes bodies of 100,000 bytes at most, so that a body over the limit costs nothing.
Each push case stands behind a good item of the same request: were it stored, a pop would show it.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.client import Answer, Client, segment, unique
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="module")
def small_server() -> Iterator[ClusterProcess]:
    """A server with a small body limit. Nothing in this module may make it lose a worker."""
    env = {"MAX_BODY_SIZE": str(MAX_BODY_BYTES)}
    with (
        server_directory() as directory,
        ClusterProcess(env=env, data_dir=directory) as cluster,
    ):
        cluster.wait_ready()
        workers = cluster.worker_pids()
        yield cluster
        assert cluster.worker_pids() == workers, cluster.output[-5000:]


@pytest.fixture
async def small(small_server: ClusterProcess) -> AsyncIterator[Client]:
    async with Client(small_server.url, fresh=True) as client:
        yield client


def assert_refused(answer: Answer, *statuses: int) -> None:
    if statuses:
        assert answer.status in statuses, answer
    assert 400 <= answer.status < 500, answer
    assert answer.error


def assert_no_fault(answer: Answer) -> None:
    """Where the specification leaves the choice: refused properly or taken, never a 5xx."""
    if answer.status not in (200, 201, 204):
        assert_refused(answer)


async def assert_unharmed(client: Client, queue: str) -> None:
    """Nothing was stored, and both workers answer."""
    for _ in range(3):
        assert (await client.pop(queue)).status == 204
        assert (await client.get("/health")).status == 200
    assert (await client.push(queue, ["good"]))[0]["offset"] == 0
    assert (await client.pop(queue)).data == ["good"]


async def send_json(client: Client, path: str, text: bytes | str) -> Answer:
    body = text if isinstance(text, bytes) else text.encode()
    return await client.send("POST", path, body=body, headers={"Content-Type": "application/json"})


# ── text that is no JSON ────────────────────────────────────────────────────────────────────────

NO_JSON_DOCUMENTS: dict[str, bytes] = {
    "a word": b"nonsense",
    "an open object": b"{",
    "an open string": b'{"items": [{"queue": "',
    "a trailing comma": b'{"items": [],}',
    "single quotes": b"{'items': []}",
    "garbage behind": b'{"items": []} x',
    "two documents": b'{"items": []}{"items": []}',
    "utf-16": '{"items": []}'.encode("utf-16"),
    "binary": bytes(range(256)),
    "nul bytes": b"\x00\x00",
    "blanks": b"  \n ",
    "a comment": b'{"items": [] /* none */}',
}

NO_JSON_VALUES: dict[str, bytes] = {
    "nothing": b"",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a leading zero": b"01",
    "a bare point": b"1.",
    "a leading point": b".5",
    "a plus": b"+1",
    "hex": b"0x10",
    "a cut literal": b"nul",
    "a long literal": b"truest",
    "control character 0x01": b'"a\x01b"',
    "control character 0x00": b'"a\x00b"',
    "control character 0x02": b'"\x02"',
    "control character 0x1f": b'"\x1f"',
    "a raw line break": b'"a\nb"',
    "a raw tab in a key": b'{"a\tb": 1}',
    "control character 0x01 outside": b"[1,\x012]",
    "an unknown escape": rb'"\q"',
    "an escape in hex": rb'"\x41"',
    "a short unicode escape": rb'"\u12"',
    "a wrong unicode escape": rb'"\u12g4"',
    "a cut escape": b'"\\',
    "invalid utf-8": b'"\xff"',
    "invalid utf-8 in a key": b'{"\xfe": 1}',
    "cut utf-8": b'"\xe2\x98"',
    "overlong utf-8": b'"\xc0\x80"',
    "a surrogate in utf-8": b'"\xed\xa0\x80"',
    "beyond unicode": b'"\xf5\x80\x80\x80"',
    "a key without quotes": b"{a: 1}",
    "a missing colon": b'{"a" 1}',
    "a missing comma": b"[1 2]",
    "a wrong bracket": b"[1}",
}


@pytest.mark.parametrize("path", ["push", "configure", "ack", "ack/batch"])
@pytest.mark.parametrize("body", NO_JSON_DOCUMENTS.values(), ids=list(NO_JSON_DOCUMENTS))
async def test_a_body_that_is_no_json_is_refused(small: Client, path: str, body: bytes) -> None:
    answer = await send_json(small, f"/api/v1/{path}", body)
    assert_refused(answer, 400)
    # On the other routes the first of two documents is of the wrong shape, which counts as much.
    if body.strip() and (path == "push" or not body.startswith(b'{"items": []}')):
        assert answer.error.startswith("Invalid JSON"), answer


@pytest.mark.parametrize("value", NO_JSON_VALUES.values(), ids=list(NO_JSON_VALUES))
async def test_a_payload_that_is_no_json_is_refused_with_its_whole_request(
    small: Client, queue: str, value: bytes
) -> None:
    """Payloads may be stored as they came and are handed out as JSON: this is the only check."""
    start = f'{{"items":[{{"queue":"{queue}","payload":1}},{{"queue":"{queue}","payload":'
    answer = await send_json(small, "/api/v1/push", start.encode() + value + b"}]}")
    assert_refused(answer, 400)
    await assert_unharmed(small, queue)


@pytest.mark.parametrize("value", NO_JSON_VALUES.values(), ids=list(NO_JSON_VALUES))
async def test_an_ignored_field_that_is_no_json_spoils_its_request_too(
    small: Client, queue: str, value: bytes
) -> None:
    start = f'{{"items":[{{"queue":"{queue}","payload":1}}],"ignored":'
    answer = await send_json(small, "/api/v1/push", start.encode() + value + b"}")
    assert_refused(answer, 400)
    await assert_unharmed(small, queue)


async def test_a_lone_surrogate_in_a_payload_is_refused_or_survives(
    small: Client, queue: str
) -> None:
    """It is JSON by its grammar and no Unicode text; either answer will do, a 5xx will not."""
    for value in (r'"\ud800"', r'"\udc00\ud800"', r'{"\ud83d": 1}'):
        body = f'{{"items":[{{"queue":"{queue}","payload":{value}}}]}}'
        answer = await send_json(small, "/api/v1/push", body)
        if answer.status == 201:
            pop = await small.pop(queue)
            assert pop.data == [json.loads(value)]
            await small.complete(pop)
        else:
            assert_refused(answer, 400)
            assert (await small.pop(queue)).status == 204


@pytest.mark.parametrize("field", ["queue", "partition", "transactionId"])
async def test_a_lone_surrogate_in_a_name_is_refused(small: Client, queue: str, field: str) -> None:
    item = {"queue": queue, "payload": 1, field: f"{queue}\ud800"}
    answer = await small.post("/api/v1/push", {"items": [{"queue": queue, "payload": 0}, item]})
    assert_refused(answer, 400)
    await assert_unharmed(small, queue)


async def test_duplicate_keys_are_no_error(small: Client, queue: str) -> None:
    names = f'"queue":"{queue}","queue":"{queue}"'
    body = f'{{"items":[{{{names},"payload":1,"payload":{{"a":1,"a":2}}}}]}}'
    answer = await send_json(small, "/api/v1/push", body)
    assert answer.status == 201
    assert len((await small.pop(queue)).messages) == 1


# ── JSON of the wrong shape ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["push", "configure", "ack", "ack/batch"])
@pytest.mark.parametrize("body", [[], None, "text", 1, True, [{}], {}])
async def test_a_body_of_another_shape_is_refused(small: Client, path: str, body: Any) -> None:
    assert_refused(await small.post(f"/api/v1/{path}", body), 400)


@pytest.mark.parametrize("items", [None, {}, "text", 1, True])
async def test_items_that_are_no_array_are_refused(small: Client, items: Any) -> None:
    answer = await small.post("/api/v1/push", {"items": items})
    assert_refused(answer, 400)
    assert answer.error == "items array is required"


@pytest.mark.parametrize(
    ("item", "word"),
    [
        (None, ""),
        (1, ""),
        ("text", ""),
        ([], ""),
        ({}, "queue"),
        ({"payload": 1}, "queue"),
        ({"queue": None, "payload": 1}, "queue"),
        ({"queue": 5, "payload": 1}, "queue"),
        ({"queue": ["a"], "payload": 1}, "queue"),
        ({"queue": "Q", "payload": 1, "partition": 5}, "partition"),
        ({"queue": "Q", "payload": 1, "partition": {}}, "partition"),
        ({"queue": "Q", "payload": 1, "transactionId": 5}, "transactionid"),
        ({"queue": "Q", "payload": 1, "transactionId": True}, "transactionid"),
        ({"queue": "Q", "payload": 1, "transactionId": ["a"]}, "transactionid"),
        ({"queue": "Q", "payload": 1, "traceId": 5}, "traceid"),
        ({"queue": "Q", "payload": 1, "traceId": {}}, "traceid"),
    ],
    ids=str,
)
async def test_one_bad_item_refuses_the_whole_push(
    small: Client, queue: str, item: Any, word: str
) -> None:
    """The error names the field, and the good items around it are not stored."""
    if isinstance(item, dict) and item.get("queue") == "Q":
        item = item | {"queue": queue}
    good = {"queue": queue, "payload": "good"}
    answer = await small.post("/api/v1/push", {"items": [good, item, good]})
    assert_refused(answer, 400)
    assert word in answer.error.lower()
    await assert_unharmed(small, queue)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "queue is required"),
        ({"queue": None}, "queue is required"),
        ({"queue": 5}, "queue is required"),
        ({"queue": ["a"]}, "queue is required"),
        ({"queue": "Q", "options": []}, "options"),
        ({"queue": "Q", "options": "text"}, "options"),
        ({"queue": "Q", "mode": "other"}, 'mode must be "merge" or "replace"'),
        ({"queue": "Q", "mode": 5}, "mode"),
        ({"queue": "Q", "namespace": 5}, "namespace"),
        ({"queue": "Q", "task": []}, "task"),
        ({"queue": "Q", "options": {"leaseTime": "60"}}, "leaseTime must be an integer"),
        ({"queue": "Q", "options": {"leaseTime": True}}, "leaseTime must be an integer"),
        ({"queue": "Q", "options": {"leaseTime": 1.5}}, "leaseTime must be an integer"),
        ({"queue": "Q", "options": {"leaseTime": []}}, "leaseTime must be an integer"),
        ({"queue": "Q", "options": {"retryLimit": {}}}, "retryLimit must be an integer"),
        ({"queue": "Q", "options": {"priority": "high"}}, "priority must be an integer"),
        ({"queue": "Q", "options": {"retentionEnabled": "true"}}, "retentionEnabled"),
        ({"queue": "Q", "options": {"deadLetterQueue": 1}}, "deadLetterQueue"),
        ({"queue": "Q", "options": {"encryptionEnabled": 0}}, "encryptionEnabled"),
    ],
    ids=str,
)
async def test_a_bad_configure_is_refused_and_leaves_the_queue_as_it_was(
    small: Client, queue: str, body: dict[str, Any], word: str
) -> None:
    before = await small.configure(queue, {"leaseTime": 77, "priority": 3}, namespace="n")
    if body.get("queue") == "Q":
        body = body | {"queue": queue}
        if isinstance(body.get("options"), dict):
            body["options"] = {"priority": 9} | body["options"]
    answer = await small.post("/api/v1/configure", body)
    assert_refused(answer, 400)
    assert word in answer.error
    after = await small.configure(queue)
    assert (after["options"], after["namespace"]) == (before["options"], before["namespace"])


@pytest.mark.parametrize("value", [-1, -(10**12), 2**31 - 1, 2**31, 2**53, 2**63, 10**30])
@pytest.mark.parametrize("option", ["leaseTime", "retryLimit", "priority", "ttl", "retryDelay"])
async def test_an_absurd_number_in_an_option_never_breaks_the_queue(
    small: Client, queue: str, option: str, value: int
) -> None:
    """Refused or taken; and if taken, then the queue still works."""
    assert_no_fault(await small.post("/api/v1/configure", {"queue": queue, option: value}))
    await small.push(queue, [1])
    pop = await small.pop(queue)
    assert pop.data == [1]
    assert (await small.ack(pop.messages[0], "failed"))["success"] is True


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"transactionId": None}, "transactionId is required"),
        ({"transactionId": 5}, "transactionId is required"),
        ({"partitionId": None}, "partitionId is required to ensure message uniqueness"),
        ({"partitionId": ["a"]}, "partitionId is required to ensure message uniqueness"),
        ({"status": 5}, ""),
        ({"status": {}}, ""),
        ({"leaseId": 5}, ""),
        ({"consumerGroup": 5}, ""),
        ({"consumerGroup": ["g"]}, ""),
    ],
    ids=str,
)
async def test_a_bad_ack_is_refused_and_changes_nothing(
    small: Client, queue: str, fields: dict[str, Any], error: str
) -> None:
    await small.push(queue, [1])
    pop = await small.pop(queue)
    message = pop.messages[0]
    item = {name: message[name] for name in ("transactionId", "partitionId", "leaseId")} | fields
    answer = await small.post("/api/v1/ack", item)
    assert_refused(answer, 400)
    assert error in answer.error
    assert (await small.pop(queue)).status == 204
    result = await small.ack(message)
    assert (result["success"], result.get("noop") or False) == (True, False)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (None, ""),
        (5, ""),
        ([], ""),
        ({}, "transactionId"),
        ({"transactionId": 5}, "Each acknowledgment must have a valid transactionId string"),
        ({"partitionId": "1"}, "Each acknowledgment must have a valid transactionId string"),
        ({"transactionId": "t"}, "Each acknowledgment must have a valid partitionId string"),
        ({"transactionId": "t", "partitionId": 7}, "Each acknowledgment must have a valid"),
        ({"transactionId": "t", "partitionId": "1", "status": 5}, ""),
        ({"transactionId": "t", "partitionId": "1", "leaseId": []}, ""),
    ],
    ids=str,
)
async def test_one_bad_entry_refuses_the_whole_batch_of_acks(
    small: Client, queue: str, entry: Any, error: str
) -> None:
    await small.push(queue, [1])
    message = (await small.pop(queue)).messages[0]
    good = {name: message[name] for name in ("transactionId", "partitionId", "leaseId")}
    answer = await small.post("/api/v1/ack/batch", {"acknowledgments": [good, entry]})
    assert_refused(answer, 400)
    assert error in answer.error
    result = await small.ack(message)
    assert (result["success"], result.get("noop") or False) == (True, False)


@pytest.mark.parametrize("acknowledgments", [None, {}, "text", 5])
async def test_acknowledgments_that_are_no_array_are_refused(
    small: Client, acknowledgments: Any
) -> None:
    answer = await small.post("/api/v1/ack/batch", {"acknowledgments": acknowledgments})
    assert_refused(answer, 400)
    assert answer.error == "acknowledgments array is required"


async def test_odd_texts_in_an_ack_are_no_fault(small: Client, queue: str) -> None:
    await small.push(queue, [1, 2])
    one = (await small.pop(queue)).messages[0]
    item = {name: one[name] for name in ("transactionId", "partitionId", "leaseId")}
    for fields in (
        {"transactionId": ""},
        {"transactionId": "nul\x00"},
        {"transactionId": "lone \ud800"},
        {"leaseId": "nul\x00"},
        {"leaseId": "\udfff"},
        {"consumerGroup": "nul\x00"},
        {"consumerGroup": "\ud800"},
        {"partitionId": "nul\x00"},
        {"partitionId": "\ud800"},
    ):
        for path, body in (
            ("ack", item | fields),
            ("ack/batch", {"acknowledgments": [item | fields]}),
        ):
            answer = await small.post(f"/api/v1/{path}", body)
            assert_no_fault(answer)
            if answer.status == 200:
                assert answer.json[0]["success"] is False, fields
    for error in ("nul\x00", "lone \ud800", 5, "x" * 60_000):
        answer = await small.post("/api/v1/ack", item | {"status": "dlq", "error": error})
        assert_no_fault(answer)
    assert (await small.get("/health")).status == 200


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b'"x"', b'{"seconds":"x"}', b'{"seconds":[]}', b"\xff"]
)
async def test_a_bad_body_of_a_lease_extension_is_no_fault(
    small: Client, queue: str, body: bytes
) -> None:
    """1.x took any malformed body for 60 seconds; a refusal is as good."""
    await small.push(queue, [1])
    pop = await small.pop(queue)
    assert_no_fault(await send_json(small, f"/api/v1/lease/{pop.lease_id}/extend", body))
    await small.complete(pop)


@pytest.mark.parametrize("seconds", [-1, 0, 2**31, 2**63, 10**30, 1.5, -(10**30), 1e308, True])
async def test_absurd_seconds_of_a_lease_extension_are_no_fault(
    small: Client, queue: str, seconds: float
) -> None:
    await small.push(queue, [1])
    pop = await small.pop(queue)
    answer = await small.post(f"/api/v1/lease/{pop.lease_id}/extend", {"seconds": seconds})
    assert_no_fault(answer)
    assert (await small.pop(queue)).status == 204, "the lease was not shortened"
    await small.complete(pop)


# ── the query and the path ──────────────────────────────────────────────────────────────────────

ABSURD_NUMBERS = ["-1", "0", "1e9", "abc", "9" * 10, "9" * 31, "-" + "9" * 31, "1" + "0" * 5000]


@pytest.mark.parametrize("name", ["batch", "partitions", "timeout", "leaseSeconds"])
@pytest.mark.parametrize("text", ABSURD_NUMBERS, ids=lambda text: text[:12])
async def test_an_absurd_number_in_the_query_is_no_fault(
    small: Client, queue: str, name: str, text: str
) -> None:
    """Refused with a 400 that changes nothing, or answered with the message that is there."""
    await small.push(queue, [1])
    answer = await small.get(f"/api/v1/pop/queue/{queue}?wait=true&{name}={text}")
    assert_no_fault(answer)
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert (await small.pop(queue)).data == [1]
    else:
        assert [message["data"] for message in answer.json["messages"]] == [1]
        assert (await small.ack(answer.json["messages"][0]))["success"] is True


@pytest.mark.parametrize("text", ["-1", "0", "-9999999999"])
async def test_a_long_poll_with_an_absurd_timeout_does_not_wait_for_ever(
    small: Client, queue: str, text: str
) -> None:
    """Nothing is there: a timeout of nothing answers soon, or counts as not given."""
    target = f"/api/v1/pop/queue/{queue}?wait=true&timeout={text}"
    waiting = asyncio.create_task(small.get(target))
    await asyncio.wait([waiting], timeout=0.3)
    if not waiting.done():
        await small.push(queue, [1])
    assert_no_fault(await waiting)


async def test_a_long_poll_with_a_huge_timeout_still_gets_its_message(
    small: Client, queue: str
) -> None:
    target = f"/api/v1/pop/queue/{queue}?wait=true&timeout={10**30}"
    waiting = asyncio.create_task(small.get(target))
    await asyncio.wait([waiting], timeout=0.2)
    if waiting.done():
        assert_no_fault(await waiting)
        return
    await small.push(queue, [1])
    answer = await waiting
    assert answer.status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/pop/queue/%ff%fe",
        "/api/v1/pop/queue/%zz%",
        "/api/v1/pop/queue/q?consumerGroup=%ff",
        "/api/v1/pop/queue/q?consumerGroup=%00",
        "/api/v1/pop/queue/q?consumerGroup=%ed%a0%80",
        "/api/v1/pop/queue/nul%00",
        "/api/v1/pop/queue/q/partition/nul%00",
        "/api/v1/pop/queue/q?subscriptionFrom=%00",
        "/api/v1/pop/queue/q?subscriptionFrom=99999999-01-01",
        "/api/v1/pop/queue/q?subscriptionFrom=0000-00-00T00:00:00Z",
        "/api/v1/pop/queue/q?subscriptionFrom=9999-12-31T23:59:59.999999-23:59&consumerGroup=g",
        "/api/v1/pop/queue/q?subscriptionFrom=0001-01-01T00:00:00%2B23:59&consumerGroup=h",
        "/api/v1/pop/queue/q?subscriptionFrom=infinity&consumerGroup=i",
        "/api/v1/pop/queue/q?subscriptionMode=%00",
        "/api/v1/pop/queue/q?batch=1&batch=2&&&=&%",
        "/api/v1/pop/queue/",
        "/api/v1/pop/queue//partition/",
        "/api/v1/pop/queue/a/partition/b/c",
    ],
)
async def test_an_odd_url_is_no_fault(small: Client, target: str) -> None:
    assert_no_fault(await small.get(target))
    assert (await small.get("/health")).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/push"),
        ("PUT", "/api/v1/push"),
        ("DELETE", "/api/v1/push"),
        ("POST", "/api/v1/pop/queue/q"),
        ("GET", "/api/v1/ack"),
        ("GET", "/api/v1/configure"),
        ("GET", "/api/v1/lease/x/extend"),
        ("POST", "/health"),
        ("PATCH", "/api/v1/push"),
        ("POST", "/api/v1/unknown"),
        ("GET", "/api/v2/push"),
        ("POST", "/api/v1/push/"),
        ("POST", "/"),
    ],
)
async def test_a_wrong_method_or_route_is_refused(small: Client, method: str, path: str) -> None:
    assert_refused(await small.send(method, path, body=b"{}"))


# ── names ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["queue", "partition"])
async def test_a_name_with_a_nul_is_refused(small: Client, queue: str, field: str) -> None:
    item = {"queue": queue, "payload": 1, field: f"{queue}\x00"}
    answer = await small.post("/api/v1/push", {"items": [{"queue": queue, "payload": 0}, item]})
    assert_refused(answer, 400)
    await assert_unharmed(small, queue)


async def test_a_nul_in_a_configured_name_is_refused(small: Client) -> None:
    for body in (
        {"queue": "nul\x00"},
        {"queue": unique("q"), "namespace": "nul\x00"},
        {"queue": unique("q"), "task": "\x00"},
        {"queue": "lone \ud800"},
        {"queue": unique("q"), "namespace": "\ud800"},
    ):
        assert_refused(await small.post("/api/v1/configure", body), 400)


async def test_a_nul_in_a_transaction_id_is_refused_or_survives(small: Client, queue: str) -> None:
    item = {"queue": queue, "payload": 1, "transactionId": "nul\x00"}
    answer = await small.post("/api/v1/push", {"items": [item]})
    if answer.status == 201:
        again = await small.push_items([item])
        assert again[0]["status"] == "duplicate"
        pop = await small.pop(queue)
        assert pop.ids == ["nul\x00"]
        await small.complete(pop)
    else:
        assert_refused(answer, 400)
        await assert_unharmed(small, queue)


def assert_too_long(answer: Answer) -> None:
    assert_refused(answer, 413)
    assert answer.json["code"] == "name_too_long"


@pytest.mark.parametrize("length", [65_536, 5000, 500])
async def test_a_name_that_is_too_long_is_refused(small: Client, queue: str, length: int) -> None:
    name = "n" * length
    for item in (
        {"queue": name, "payload": 1},
        {"queue": queue, "partition": name, "payload": 1},
        {"queue": queue, "partition": "é" * 250, "payload": 1},
    ):
        good = {"queue": queue, "payload": 0}
        assert_too_long(await small.post("/api/v1/push", {"items": [good, item]}))
    assert_too_long(await small.post("/api/v1/configure", {"queue": name}))
    await small.push(queue, [1])
    pop = await small.pop(queue)
    message = pop.messages[0]
    item = {k: message[k] for k in ("transactionId", "partitionId")} | {"consumerGroup": name}
    answer = await small.post("/api/v1/ack", item)
    assert_no_fault(answer)
    if answer.status == 200:
        assert answer.json[0]["success"] is False
    await small.complete(pop)


async def test_names_up_to_411_bytes_together_are_taken_and_longer_ones_are_not(
    small: Client,
) -> None:
    """Bytes, not characters; the longer of partition and group counts beside the queue."""
    queue = unique("é" * 190)
    room = 411 - len(queue.encode())
    partition = "p" * room
    await small.push(queue, [1], partition=partition)
    assert (await small.pop(queue, partition=partition, group="g" * room)).data == [1]
    answer = await small.post(
        "/api/v1/push", {"items": [{"queue": queue, "partition": partition + "p", "payload": 1}]}
    )
    assert_too_long(answer)
    answer = await small.get(f"/api/v1/pop/queue/{segment(queue)}?consumerGroup={'g' * (room + 1)}")
    assert_too_long(answer)


@pytest.mark.parametrize("label", ["namespace", "task"])
async def test_a_label_is_no_longer_than_a_name(small: Client, queue: str, label: str) -> None:
    answer = await small.post("/api/v1/configure", {"queue": queue, label: "ü" * 206})
    assert (answer.status, answer.json["code"]) == (413, "name_too_long"), answer
    assert (await small.get(f"/api/v1/resources/queues/{segment(queue)}")).status == 404
    longest = "ü" * 205 + "x"
    answer = await small.post("/api/v1/configure", {"queue": queue, label: longest})
    assert (answer.status, answer.json[label]) == (201, longest)


async def test_a_very_long_url_is_refused(small: Client) -> None:
    """The HTTP parser may be the one to refuse it, in its own words."""
    for target in (
        f"/api/v1/pop/queue/{'n' * 65_536}",
        f"/api/v1/pop/queue/q?consumerGroup={'g' * 65_536}",
        f"/api/v1/pop/queue/q?x={'%41' * 30_000}",
    ):
        answer = await small.get(target)
        assert 400 <= answer.status < 500, answer
    assert (await small.get("/health")).status == 200


async def test_a_transaction_id_may_have_65535_bytes_and_no_more(small: Client, queue: str) -> None:
    for one in ("x" * 65_536, "é" * 32_768, "x" * 90_000):
        item = {"queue": queue, "payload": 1, "transactionId": one}
        body = json.dumps(
            {"items": [{"queue": queue, "payload": 0}, item]}, ensure_ascii=False
        ).encode()
        answer = await send_json(small, "/api/v1/push", body)
        assert_refused(answer, 400)
    assert (await small.pop(queue)).status == 204
    longest = "x" * 65_535
    assert (await small.push(queue, [1], ids=[longest]))[0]["status"] == "queued"
    assert (await small.push(queue, [1], ids=[longest]))[0]["status"] == "duplicate"
    pop = await small.pop(queue)
    assert pop.ids == [longest]
    await small.complete(pop)


# ── nesting ─────────────────────────────────────────────────────────────────────────────────────

DEEP = {
    "arrays": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "open arrays": "[" * 100_000,
    "open objects": '{"a":' * 100_000,
    "mixed": '[{"a":' * 50_000 + "1" + "}]" * 50_000,
}


@pytest.mark.parametrize("value", DEEP.values(), ids=list(DEEP))
async def test_nesting_of_100000_levels_is_refused_wherever_it_stands(
    client: Client, queue: str, value: str
) -> None:
    await client.push(queue, ["first"])
    message = (await client.pop(queue)).messages[0]
    item = {name: message[name] for name in ("transactionId", "partitionId", "leaseId")}
    bodies = [
        ("push", f'{{"items":[{{"queue":"{queue}","payload":{value}}}]}}'),
        ("push", f'{{"ignored":{value},"items":[{{"queue":"{queue}","payload":1}}]}}'),
        ("push", f'{{"items":[{{"queue":"{queue}","payload":1,"ignored":{value}}}]}}'),
        ("push", value),
        ("configure", f'{{"queue":"{queue}","options":{{"ignored":{value}}}}}'),
        ("configure", f'{{"queue":"{queue}","ignored":{value}}}'),
        ("ack", f'{json.dumps(item)[:-1]},"ignored":{value}}}'),
        ("ack/batch", f'{{"acknowledgments":{value}}}'),
    ]
    for path, body in bodies:
        assert_refused(await send_json(client, f"/api/v1/{path}", body))
    assert (await client.get("/health")).status == 200
    assert not (await client.ack(message)).get("noop")
    assert (await client.pop(queue)).status == 204


async def test_nesting_that_fits_the_small_body_is_refused_too(small: Client, queue: str) -> None:
    value = "[" * 40_000 + "]" * 40_000
    body = f'{{"items":[{{"queue":"{queue}","payload":{value}}}]}}'
    assert_refused(await send_json(small, "/api/v1/push", body))
    await assert_unharmed(small, queue)


# ── the size of a body ──────────────────────────────────────────────────────────────────────────


def push_of(queue: str, size: int) -> bytes:
    """A valid push request of exactly *size* bytes."""
    empty = json.dumps({"items": [{"queue": queue, "payload": ""}]})
    return empty.replace('""', '"' + "x" * (size - len(empty)) + '"').encode()


async def test_a_body_at_the_limit_is_taken_and_one_above_is_not(small: Client, queue: str) -> None:
    assert_refused(await send_json(small, "/api/v1/push", push_of(queue, MAX_BODY_BYTES + 1)))
    await assert_unharmed(small, queue)
    answer = await send_json(small, "/api/v1/push", push_of(unique("q"), MAX_BODY_BYTES))
    assert answer.status == 201


@pytest.mark.parametrize("path", ["push", "configure", "ack", "ack/batch", "lease/x/extend"])
async def test_a_body_over_the_limit_is_refused_on_every_route(small: Client, path: str) -> None:
    body = json.dumps({"queue": "q", "pad": "x" * (3 * MAX_BODY_BYTES)})
    assert_refused(await send_json(small, f"/api/v1/{path}", body), 400, 413)


async def raw_exchange(url: str, request: bytes) -> Answer:
    """Send the beginning of a request, leave the connection open, and read the answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(10):
            writer.write(request)
            header = await reader.readuntil(b"\r\n\r\n")
            lines = header.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(lines[0].split()[1]), headers, body)
    finally:
        writer.transport.abort()


async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    small: Client, small_server: ClusterProcess
) -> None:
    """A gigabyte is announced, a few bytes are sent, the answer comes at once."""
    for path in ("push", "ack/batch", "configure"):
        head = f"POST /api/v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        answer = await raw_exchange(small_server.url, head.encode() + b'{"items":[')
        assert_refused(answer, 400, 413)
    assert (await small.get("/health")).status == 200


async def test_a_chunked_body_over_the_limit_is_refused_before_it_is_read_whole(
    small: Client, small_server: ClusterProcess
) -> None:
    """No Content-Length and no last chunk: the answer comes although the body never ends."""
    head = b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    count = 2 * MAX_BODY_BYTES // 0x1000
    answer = await raw_exchange(small_server.url, head + piece * count)
    assert_refused(answer, 400, 413)
    assert (await small.get("/health")).status == 200


async def test_a_compressed_body_is_limited_by_what_it_becomes(small: Client, queue: str) -> None:
    bomb = gzip.compress(push_of(queue, 30_000_000))
    assert len(bomb) < MAX_BODY_BYTES
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert_refused(await small.send("POST", "/api/v1/push", body=bomb, headers=headers))
    broken = await small.send("POST", "/api/v1/push", body=b"no gzip", headers=headers)
    assert 400 <= broken.status < 500, broken
    await assert_unharmed(small, queue)


async def test_bytes_that_are_no_http_disturb_nobody(
    small: Client, small_server: ClusterProcess
) -> None:
    parts = urlsplit(small_server.url)
    for junk in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GARBAGE\r\n\r\n",
        b"BREW /api/v1/push HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    ):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(junk)
            writer.write_eof()
            async with asyncio.timeout(10):
                status = (await reader.read(1000))[:12]
            assert not status.startswith(b"HTTP/1.1 5"), (junk[:40], status)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        assert (await small.get("/health")).status == 200
