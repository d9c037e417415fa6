"""What one client may ask for: over a limit it is told so, and the others are served on."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.client import Answer, Client, eventually, segment, unique, uuid7
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

LIMITS = {
    "HEADER_TIMEOUT": "1000",
    "BODY_TIMEOUT": "1000",
    "MAX_HEADER_SIZE": "4096",
    "MAX_BATCH_ITEMS": "20",
    "MAX_TRANSACTION_OPERATIONS": "6",
    "REQUEST_MEMORY": "8000000",
    "MAX_PARKED_POPS": "6",
    "MAX_QUEUES": "60",
    "MAX_GROUPS_PER_QUEUE": "3",
    "MAX_PARTITIONS_PER_QUEUE": "10",
    "MAX_PARKED_POPS_PER_ADDRESS": "4",
    "MAX_CONNECTIONS_PER_ADDRESS": "60",
    "READER_TIMEOUT": "3000",
}


@pytest.fixture(scope="module")
def limited() -> Iterator[ClusterProcess]:
    """Nothing in this module may make it lose a worker."""
    with (
        server_directory() as directory,
        ClusterProcess(env=LIMITS, data_dir=directory) as cluster,
    ):
        cluster.wait_ready()
        workers = cluster.worker_pids()
        yield cluster
        assert cluster.worker_pids() == workers, cluster.output[-5000:]
        assert cluster.stop() == 0
        assert "Traceback" not in cluster.output


@pytest.fixture
async def client(limited: ClusterProcess) -> AsyncIterator[Client]:
    async with Client(limited.url, fresh=True) as client:
        yield client


@asynccontextmanager
async def connected(
    url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def raw(url: str, request: bytes) -> bytes:
    """All that is answered until the server closes the connection."""
    async with connected(url) as (reader, writer):
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)


def too_many(answer: Answer) -> None:
    assert answer.status == 429, answer
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json["code"] == "overloaded"


# -- how many in one request --


async def test_a_push_of_too_many_items_stores_none(client: Client, queue: str) -> None:
    items = [{"queue": queue, "payload": number} for number in range(21)]
    refused = await client.post("/api/v1/push", {"items": items})
    assert (refused.status, refused.json["code"]) == (413, "too_many_items")
    assert "20 at most" in refused.error
    assert (await client.pop(queue)).status == 204
    assert len(await client.push_items(items[:20])) == 20


@pytest.mark.parametrize("uniform", [True, False])
async def test_an_ack_of_too_many_messages_acknowledges_none(
    client: Client, queue: str, uniform: bool
) -> None:
    messages = []
    for partition in ("a", "b"):
        ids = [uuid7() for _ in range(21)]
        for some in (ids[:20], ids[20:]):
            await client.push(queue, list(range(len(some))), partition=partition, ids=some)
        # No more than can be acknowledged together.
        pop = await client.pop(queue, partition=partition, batch=40)
        assert len(pop.messages) == 20
        messages += pop.messages
    acks: list[dict[str, Any]] = [
        {
            "transactionId": message["transactionId"],
            "partitionId": message["partitionId"],
            "leaseId": message["leaseId"],
            "status": "completed",
        }
        for message in messages
    ]
    if not uniform:
        acks[3]["error"] = None
        acks[3]["status"] = "COMPLETED".lower()
        acks[3] = dict(reversed(acks[3].items()))
    refused = await client.post("/api/v1/ack/batch", {"acknowledgments": acks})
    assert (refused.status, refused.json["code"]) == (413, "too_many_items")
    for half in (acks[:20], acks[20:]):
        done = await client.post("/api/v1/ack/batch", {"acknowledgments": half})
        assert all(result["success"] for result in done.json), done


async def test_a_transaction_of_too_many_operations_does_none(client: Client, queue: str) -> None:
    item = {"queue": queue, "payload": 1}
    many = [{"type": "push", "items": [item] * 4}, {"type": "push", "items": [item] * 3}]
    refused = await client.post("/api/v1/transaction", {"operations": many})
    assert (refused.status, refused.json["code"]) == (413, "too_many_items")
    assert (await client.pop(queue)).status == 204
    done = await client.post("/api/v1/transaction", {"operations": many[:1]})
    assert done.json["success"] is True


# -- what does not come --


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_connection_without_a_request_is_closed(
    limited: ClusterProcess, sent: bytes
) -> None:
    began = time.monotonic()
    async with connected(limited.url) as (reader, writer):
        if sent:
            writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 10) == b""
    assert 0.8 < time.monotonic() - began < 4


async def test_headers_that_trickle_in_do_not_hold_a_connection(limited: ClusterProcess) -> None:
    began = time.monotonic()
    async with connected(limited.url) as (reader, writer):
        closed = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"y" * 1000:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
                if closed.done():
                    break
        assert closed.done()
        with contextlib.suppress(ConnectionError):
            assert await closed == b""
    assert time.monotonic() - began < 4


async def test_a_connection_in_use_has_no_such_deadline(limited: ClusterProcess) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(limited.url) as (reader, writer):
        for _ in range(3):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(len(b'{"status": "alive"}'))
            await asyncio.sleep(1.3)


async def test_a_body_that_stops_coming_is_answered_408(
    limited: ClusterProcess, client: Client, queue: str
) -> None:
    head = (
        b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n"
    )
    began = time.monotonic()
    answer = await raw(limited.url, head + b'{"items": [')
    assert 0.8 < time.monotonic() - began < 4
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"\r\nConnection: close\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "body_timeout"
    # One that comes slowly, and comes, is waited for.
    body = json.dumps({"items": [{"queue": queue, "payload": "slow"}]}).encode()
    async with connected(limited.url) as (reader, writer):
        writer.write(head.replace(b"1000", b"%d" % len(body)))
        for start in range(0, len(body), 12):
            writer.write(body[start : start + 12])
            await asyncio.sleep(0.4)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 201")
    assert (await client.pop(queue)).data == ["slow"]


async def test_a_body_that_trickles_in_ends(limited: ClusterProcess) -> None:
    """There is progress all the time, and no end of it."""
    head = b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    began = time.monotonic()
    async with connected(limited.url) as (reader, writer):
        answered = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        writer.write(head)
        while not answered.done() and time.monotonic() - began < 10:
            writer.write(b" ")
            await asyncio.wait([answered], timeout=0.3)
        assert (await answered).startswith(b"HTTP/1.1 408")
    assert 4 < time.monotonic() - began < 9


# -- how large --


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /livez?%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 5000),
        b"GET /livez HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % (b"s3cret" * 1000),
        b"GET /livez HTTP/1.1\r\nHost: x\r\n%s: 1\r\n\r\n" % (b"X" * 5000),
        b"GET /livez HTTP/1.1\r\nHost: x\r\n%s\r\n" % b"".join(
            b"X-%d: 1\r\n" % number for number in range(200)
        ),
        b"GET /livez HTTP/1.1\r\nHost: x\r\n%s\r\n" % b"".join(
            b"X-%d: %s\r\n" % (number, b"1" * 1000) for number in range(70)
        ),
        b"GET /livez HTTP/1.1\r\nHost: x\r\n%s" % b"".join(
            b"X-%d: %s\r\n" % (number, b"1" * 3000) for number in range(25)
        ),
    ],
    ids=["line", "value", "name", "count", "sum", "sum without an end"],
)  # fmt: skip
async def test_a_head_that_is_too_large_is_answered_431(
    limited: ClusterProcess, request_: bytes
) -> None:
    answer = await raw(limited.url, request_)
    # aiohttp answers what it could not parse as HTTP/1.0, where nothing is kept.
    assert answer.startswith(b"HTTP/1.0 431"), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_large"
    assert b"\r\nX-Request-Id: " in answer
    assert b"s3cret" not in answer
    assert "s3cret" not in limited.output


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\n",
        b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_400(limited: ClusterProcess, garbage: bytes) -> None:
    answer = await raw(limited.url, garbage)
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
    assert b"\r\nX-Request-Id: " in answer


async def test_a_large_head_and_a_large_body_are_two_things(client: Client, queue: str) -> None:
    """Also where one comes with the other, and where the next head comes with the body's end."""
    items = [{"queue": queue, "payload": "x" * 200_000}]
    body = json.dumps({"items": items}).encode()
    headers = {f"X-{number}": "1" * 1000 for number in range(60)}
    for _ in range(3):
        answer = await client.send("POST", "/api/v1/push", body=body, headers=headers)
        assert answer.status == 201
    request = b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    sent = await raw(client.url, (request + body) * 5 + last)
    assert sent.count(b"HTTP/1.1 201 ") == 5
    assert sent.count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize(
    "upgrade", [b"Upgrade: h2c", b"UPGRADE: foo/1, bar", b"Upgrade: websocket"]
)
async def test_a_request_behind_an_upgrade_is_answered(
    limited: ClusterProcess, upgrade: bytes
) -> None:
    first = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n" + upgrade + b"\r\n\r\n"
    last = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await raw(limited.url, first + last)
    if answer.count(b"HTTP/1.1 200 ") == 1:
        # Or the client learns that it is to be sent again.
        assert upgrade.startswith(b"UPGRADE")
        assert b"Connection: close" in answer
    else:
        assert answer.count(b"HTTP/1.1 200 ") == 2


# -- who does not read --


async def open_connections(client: Client) -> int:
    return sum((await client.get("/metrics")).json["connections"]["byWorker"])


@asynccontextmanager
async def silent_reader(url: str, request: bytes) -> AsyncIterator[socket.socket]:
    """A connection that has sent a request and takes what it has to."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    with socket.socket() as raw:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(raw, (parts.hostname, parts.port))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await loop.sock_sendall(raw, request)
        yield raw


async def test_who_takes_nothing_of_an_answer_is_closed(
    limited: ClusterProcess, client: Client, queue: str
) -> None:
    """Whatever kind of answer: a pop's, one in JSON, a file, small ones in a row."""
    for start in range(0, 20, 4):
        await client.push(queue, [f"{n:04d}" + "x" * 1_000_000 for n in range(start, start + 4)])
    await client.close()
    async with Client(limited.url) as watch:

        async def is_alone() -> bool:
            return await open_connections(watch) == 1

        async def is_with_another() -> bool:
            return await open_connections(watch) == 2

        await eventually(is_alone)
        for target, count in (
            (f"/api/v1/pop/queue/{queue}?batch=20", 1),
            (f"/api/v1/messages?queue={queue}&limit=20", 20),
            ("/openapi.json", 200),
            ("/dashboard/app.js", 4000),
            ("/livez", 200_000),
        ):
            request = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * count
            began = time.monotonic()
            async with silent_reader(limited.url, request):
                await eventually(is_with_another, deadline=1)
                await eventually(is_alone)
            assert time.monotonic() - began > 1.3, target
        # What nobody received is there again, as if nothing had been.
        pop = await watch.pop(queue, batch=20)
        assert [message["data"][:4] for message in pop.messages] == [f"{n:04d}" for n in range(20)]
        assert pop.attempts == {1}


async def test_who_reads_slowly_is_not(limited: ClusterProcess, client: Client, queue: str) -> None:
    for start in range(0, 20, 4):
        await client.push(queue, [f"{n:04d}" + "x" * 1_000_000 for n in range(start, start + 4)])
    loop = asyncio.get_running_loop()
    request = f"GET /api/v1/pop/queue/{queue}?batch=20 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    received = bytearray()
    began = time.monotonic()
    async with silent_reader(limited.url, request) as raw, asyncio.timeout(30):
        while not received.endswith(b"]}\r\n0\r\n\r\n"):
            piece = await loop.sock_recv(raw, 300_000)
            assert piece, "closed in the middle"
            received += piece
            await asyncio.sleep(5 * len(piece) / 20_000_000)  # five seconds and more in all
    assert time.monotonic() - began > 4


# -- how many connections --


async def test_one_address_has_so_many_connections_and_no_more(limited: ClusterProcess) -> None:
    parts = urlsplit(limited.url)
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(2):  # those that ended make room
        async with contextlib.AsyncExitStack() as stack:
            answers = []
            for number in range(140):
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                stack.callback(writer.close)
                if number % 2:
                    writer.write(request)  # the others say nothing
                answers.append(reader)
            await asyncio.sleep(0.3)
            refused = 0
            for reader in answers:
                try:
                    line = await asyncio.wait_for(reader.readline(), 0.01)
                    refused += line.startswith(b"HTTP/1.1 429 ")
                except ConnectionResetError:  # what it had sent was not read
                    refused += 1
                except TimeoutError:
                    pass
            assert 20 <= refused <= 30  # of 140; each worker counts for itself
        async with Client(limited.url, fresh=True) as client:

            async def is_served() -> bool:
                return (await client.get("/livez")).status == 200

            await eventually(is_served)


def announced(size: int | None, path: str = "push") -> bytes:
    """The head of a request with a body of *size* bytes; None = in chunks."""
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return f"POST /api/v1/{path} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode()


async def test_bodies_wait_for_memory(limited: ClusterProcess, client: Client, queue: str) -> None:
    """A body weighs two and a half times its bytes, complete or not, and each worker has 7 MB for
    large ones.
    """
    size = 2_000_000
    async with contextlib.AsyncExitStack() as stack:
        held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        answers: list[asyncio.Task[bytes]] = []

        async def one_more() -> None:
            reader, writer = await stack.enter_async_context(connected(limited.url))
            writer.write(announced(size + 1000) + b" " * size)
            held.append((reader, writer))
            answers.append(asyncio.create_task(reader.readuntil(b"\r\n\r\n")))

        async def go_on() -> None:
            while True:
                await asyncio.sleep(0.3)
                for answer, (_, writer) in zip(answers, held, strict=True):
                    if not answer.done():
                        writer.write(b" ")

        trickle = asyncio.create_task(go_on())
        async with asyncio.timeout(20):
            # Each worker takes one, and the kernel chooses the worker: until both have one.
            for _ in range(4):
                await one_more()
            while (taken := sum(not answer.done() for answer in answers)) != 2:
                if taken < 2:
                    await one_more()
                await asyncio.wait(answers, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
        refused = [answer.result() for answer in answers if answer.done()]
        for text in refused:
            assert text.startswith(b"HTTP/1.1 429"), text
            assert b"\r\nRetry-After: 1\r\n" in text
        # Refused at its head, or when the chunks are too many; what is small goes on.
        for path in ("push", "transaction", "ack/batch"):
            async with connected(limited.url) as (reader, writer):
                writer.write(announced(size, path))
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 429")
        async with connected(limited.url) as (reader, writer):
            writer.write(announced(None) + b"%x\r\n%b" % (size, b" " * (size - 1)))
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 429")
        for number in range(4):
            await client.push(queue, [number])
        # The others end, too: no more comes of them.
        trickle.cancel()
        for answer in answers:
            await answer
    payload = "x" * size

    async def is_taken() -> bool:
        items = {"items": [{"queue": queue, "payload": payload}]}
        return (await client.post("/api/v1/push", items)).status == 201

    await eventually(is_taken)
    assert (await client.pop(queue)).data == [0, 1, 2, 3, payload]


async def test_only_batches_may_be_large(client: Client, queue: str) -> None:
    await client.push(queue, [1])
    message = (await client.pop(queue)).messages[0]
    pad = "x" * 1024 * 1024
    for path, body in (
        ("configure", {"queue": queue}),
        ("ack", {"status": "completed"}),
        ("traces", {"data": 1}),
        ("dlq/redrive", {"queue": queue}),
    ):
        refused = await client.post(f"/api/v1/{path}", message | body | {"pad": pad})
        assert (refused.status, refused.json["code"]) == (413, "body_too_large"), path
    await client.ack(message)


# -- how many wait --


async def test_one_address_parks_so_many_pops_and_no_more(limited: ClusterProcess) -> None:
    """Connections are spread evenly, so each worker gets half of them: four of each may wait."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(limited.url)) for _ in range(12)]
        for one in clients:
            assert (await one.get("/livez")).status == 200
        target = f"/api/v1/pop/queue/{unique('nothing')}?wait=true&timeout=4000"
        answers = await asyncio.gather(*(one.get(target) for one in clients))
        statuses = sorted(answer.status for answer in answers)
        assert statuses == [204] * 8 + [429] * 4
        for answer in answers:
            if answer.status == 429:
                too_many(answer)
        # Those that ended make room, and who does not wait is not counted.
        again = await asyncio.gather(*(one.get(target) for one in clients[:4]))
        assert [answer.status for answer in again] == [204] * 4
        assert (await clients[0].get(target.replace("true", "false"))).status == 204


async def test_a_parked_client_that_leaves_makes_room(limited: ClusterProcess) -> None:
    target = f"/api/v1/pop/queue/{unique('nothing')}?wait=true&timeout=60000"
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(16):  # whoever gets how many of them, it is more than four
            _, writer = await stack.enter_async_context(connected(limited.url))
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with Client(limited.url, fresh=True) as client:

            async def is_full() -> bool:
                short = target.replace("60000", "10")
                answers = await asyncio.gather(*(client.get(short) for _ in range(4)))
                return all(answer.status == 429 for answer in answers)

            await eventually(is_full)
    async with Client(limited.url, fresh=True) as client:

        async def is_free() -> bool:
            answers = await asyncio.gather(
                *(client.get(target.replace("60000", "10")) for _ in range(4))
            )
            return all(answer.status == 204 for answer in answers)

        await eventually(is_free)


# -- how often --


async def test_requests_over_the_rate_are_told_when_to_come_again(data_dir: Path) -> None:
    env = {"REQUEST_RATE": "20"}
    with ClusterProcess(env=env, data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url) as client:  # one connection, so one worker
            began = time.monotonic()
            answers = [await client.get("/api/v1/status/buffers") for _ in range(60)]
            seconds = time.monotonic() - began
            served = sum(answer.status == 200 for answer in answers)
            assert 20 <= served <= 20 + 20 * seconds + 1
            if seconds < 1.5:
                too_many(next(answer for answer in answers if answer.status == 429))
            # Probes are not counted.
            assert {(await client.get("/livez")).status for _ in range(60)} == {200}

            async def is_served() -> bool:
                return (await client.get("/api/v1/status/buffers")).status == 200

            await eventually(is_served)
        assert cluster.stop() == 0


# -- how many there may be --


def limit_reached(answer: Answer, setting: str) -> None:
    assert answer.status == 409, answer
    assert answer.json["code"] == "limit_reached"
    assert setting in answer.error


async def test_a_queue_has_so_many_groups_and_no_more(client: Client, queue: str) -> None:
    """Consumers without a group are one. Groups that are there go on, deleted ones make room."""
    await client.push(queue, [1])
    for group in (None, "a", "b"):
        assert (await client.pop(queue, group=group, autoAck="true")).data == [1]
    target = f"/api/v1/pop/queue/{segment(queue)}"
    limit_reached(await client.get(f"{target}?consumerGroup=c"), "MAX_GROUPS_PER_QUEUE")
    limit_reached(
        await client.get(f"{target}/partition/Default?consumerGroup=c"), "MAX_GROUPS_PER_QUEUE"
    )
    limit_reached(
        await client.post(
            f"/api/v1/consumer-groups/c/queues/{segment(queue)}/seek", {"toEnd": True}
        ),
        "MAX_GROUPS_PER_QUEUE",
    )
    groups = (await client.get("/api/v1/consumer-groups")).json
    assert sorted(one["name"] for one in groups if one["queueName"] == queue) == [
        "__QUEUE_MODE__", "a", "b",
    ]  # fmt: skip
    await client.push(queue, [2])
    assert (await client.pop(queue, group="a", autoAck="true")).data == [2]
    answer = await client.send("DELETE", f"/api/v1/consumer-groups/b/queues/{segment(queue)}")
    assert answer.status == 200, answer
    assert (await client.pop(queue, group="c", autoAck="true")).data == [1, 2]


async def test_a_queue_has_so_many_partitions_and_no_more(client: Client, queue: str) -> None:
    """What is refused leaves nothing behind; a push to what is there goes on."""

    def items(names: Sequence[str]) -> list[dict[str, object]]:
        return [{"queue": queue, "partition": name, "payload": 1} for name in names]

    async def count() -> int:
        answer = await client.get(f"/api/v1/resources/queues/{segment(queue)}")
        return int(answer.json["partitionCount"])

    first = [str(number) for number in range(8)]
    await client.push_items(items(first))
    push, transaction = "/api/v1/push", "/api/v1/transaction"
    limit_reached(await client.post(push, {"items": items(["8", "9", "10"])}), "MAX_PARTITIONS")
    assert await count() == 8
    # As many as fit; those that are created at the same moment do not count each other.
    answers = await asyncio.gather(
        *(client.post(push, {"items": items([f"n{number}"])}) for number in range(4))
    )
    assert {answer.status for answer in answers} <= {201, 409}
    assert 10 <= await count() <= 12
    limit_reached(await client.post(push, {"items": items(["more"])}), "MAX_PARTITIONS")
    refused = await client.post(
        transaction, {"operations": [{"type": "push", "items": items(["0", "more"])}]}
    )
    assert refused.json["success"] is False
    assert "MAX_PARTITIONS_PER_QUEUE" in refused.error
    assert await count() <= 12
    await client.push_items(items(first))


async def test_there_are_so_many_queues_and_no_more(client: Client, queue: str) -> None:
    """A pop, which is a GET, makes none, whether there is room or not."""
    made = []
    try:
        for number in range(61):
            name = f"{queue}-{number}"
            answer = await client.post("/api/v1/configure", {"queue": name})
            if answer.status != 201:
                break
            made.append(name)
        limit_reached(answer, "MAX_QUEUES")
        assert (await client.get(f"/api/v1/pop/queue/{segment(name)}")).status == 204
        item = {"queue": name, "payload": 1}
        limit_reached(await client.post("/api/v1/push", {"items": [item]}), "MAX_QUEUES")
        assert (await client.get(f"/api/v1/resources/queues/{segment(name)}")).status == 404
        await client.push(made[0], [1])
        await client.delete(made.pop())
        await client.push(name, [1])
        made.append(name)
    finally:
        for name in made:
            await client.delete(name)
