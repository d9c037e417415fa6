"""Requests that no client of good will sends.

None is answered by a 5xx, hangs a worker or fills the log, with authentication or without.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from tests.client import Client
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

SECRET = "the hostile requests' own secret, long enough for SHA-256"
HEADERS = (
    "Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Connection",
    "Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Expect", "Forwarded", "Host",
    "If-Match", "If-Modified-Since", "If-None-Match", "Keep-Alive", "Origin", "Range", "Referer",
    "Sec-Fetch-Site", "Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Version", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent", "Via",
    "X-Forwarded-For", "X-Http-Method-Override", "X-Request-Id", "baggage", "traceparent",
    "tracestate",
)  # fmt: skip
VALUES = (
    b"\xff", b"\xc3\xa9", b"Bearer qk_\xff", b"a.\xff.b", b"\xed\xa0\x80", b"9" * 5000,
    b";=" * 5000,
    b"bearer.\xff, permessage-deflate; server_max_window_bits=" + b"9" * 5000,
)  # fmt: skip
WEBSOCKET = {
    "Connection": b"Upgrade",
    "Upgrade": b"websocket",
    "Sec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": b"13",
}
TARGETS: tuple[tuple[bytes, dict[str, bytes], bytes], ...] = (
    (b"GET /api/v1/pop/queue/hostile?autoAck=true", {}, b""),
    (b"POST /api/v1/push", {}, b'{"items":[{"queue":"hostile","payload":1}]}'),
    (b"GET /dashboard/app.js", {}, b""),
    (b"GET /no/such/route", {}, b""),
    (b"GET /ws/dashboard", WEBSOCKET, b""),
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[ClusterProcess]:
    """API keys and tokens, and a line in the log for each request."""
    env = {
        "API_KEYS_ENABLED": "true",
        "JWT_ENABLED": "true",
        "JWT_SECRET": SECRET,
        "LOG_LEVEL": "debug",
    }
    with (
        server_directory() as directory,
        ClusterProcess(env=env, data_dir=directory) as cluster,
    ):
        cluster.wait_ready()
        workers = cluster.worker_pids()
        yield cluster
        assert cluster.worker_pids() == workers, cluster.output[-5000:]
        assert cluster.stop() == 0


@asynccontextmanager
async def connected(
    server: ClusterProcess,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def head_of_answer(server: ClusterProcess, request: bytes) -> bytes:
    async with connected(server) as (reader, writer):
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.readuntil(b"\r\n\r\n")


def written(target: bytes, headers: dict[str, bytes], body: bytes) -> bytes:
    lines = [target + b" HTTP/1.1"]
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    return b"\r\n".join([*lines, b"", body])


def requests(header: str) -> Iterator[bytes]:
    for target, own, body in TARGETS:
        for value in VALUES:
            headers = {"Host": b"127.0.0.1", "Connection": b"close", **own}
            if body:
                headers["Content-Length"] = b"%d" % len(body)
            yield written(target, {**headers, header: value}, body)


async def refuse_or_serve(server: ClusterProcess, sent: Sequence[bytes]) -> None:
    room = asyncio.Semaphore(20)

    async def send(request: bytes) -> tuple[bytes, bytes]:
        async with room:
            return request, await head_of_answer(server, request)

    read = len(server.lines)
    for request, head in await asyncio.gather(*map(send, sent)):
        status = int(head.split(b" ", 2)[1])
        assert status < 500, (request[:300], head)
    faults = [line for line in server.lines[read:] if '"level":"error"' in line]
    assert not faults, faults[:2]


@pytest.mark.parametrize("authentication", [False, True], ids=["open", "guarded"])
async def test_raw_bytes_in_a_header_are_no_fault_of_the_server(
    request: pytest.FixtureRequest, authentication: bool
) -> None:
    server: ClusterProcess = request.getfixturevalue("guarded" if authentication else "server")
    for header in HEADERS:
        await refuse_or_serve(server, list(requests(header)))


async def test_a_credential_of_other_bytes_is_none(guarded: ClusterProcess) -> None:
    for credential, error in (
        (b"Bearer qk_\xff", "Bad token header"),
        (b"\xff", "Bad token header"),
    ):
        async with connected(guarded) as (reader, writer):
            headers = {"Host": b"x", "Connection": b"close", "Authorization": credential}
            writer.write(written(b"GET /api/v1/status", headers, b""))
            head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401 ")
        assert json.loads(body)["error"] == error


async def test_a_hostile_path_hangs_no_worker_and_forges_no_line(guarded: ClusterProcess) -> None:
    """Without a credential: each path is logged here, as any is that a 5xx answers."""
    began = time.monotonic()
    paths = (
        b"/password=%27" + b"%5Ca" * 60,
        b"/" + b"://a:" * 3_000,
        b"/%0A2026-01-01T00:00:00.000Z%20info%20supervisor%20API%20key%20admin%20created%1b[31m",
    )
    for path in paths:
        headers = {"Host": b"x", "Authorization": b"Bearer qk_\xff"}
        sent = [written(b"GET " + path, headers, b"") for _ in range(4)]
        for head in await asyncio.gather(*(head_of_answer(guarded, one) for one in sent)):
            assert head.startswith(b"HTTP/1.1 401 "), head
    async with Client(guarded.url, fresh=True) as client:
        for _ in range(4):
            assert (await client.get("/livez")).status == 200
    assert time.monotonic() - began < 10
    guarded.wait_for_line(r"/\\n2026-01-01")
    assert all(len(line) < 1_000 for line in guarded.lines if "://a:" in line)


# -- Expect --

EXPECTING = {"Host": b"x", "Expect": b"100-continue", "Content-Type": b"application/json"}


@pytest.mark.parametrize(
    ("target", "length", "status"),
    [
        (b"POST /api/v1/push", b"10", b"401"),
        (b"POST /no/such/route", b"10", b"401"),
        (b"POST /livez", b"10", b"405"),
        (b"GET /livez", b"10", b"200"),
    ],
)
async def test_no_body_is_asked_for_that_is_not_wanted(
    guarded: ClusterProcess, target: bytes, length: bytes, status: bytes
) -> None:
    async with connected(guarded) as (reader, writer):
        writer.write(written(target, {**EXPECTING, "Content-Length": length}, b""))
        # The connection ends, as where the body would end is not known.
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 %s " % status), answer
    assert b"X-Request-Id: " in answer
    assert b"Connection: close" in answer


async def test_a_body_is_asked_for_once_it_is_wanted(server: ClusterProcess, queue: str) -> None:
    body = json.dumps({"items": [{"queue": queue, "payload": 1}]}).encode()
    async with connected(server) as (reader, writer):
        for length, status in ((len(body), b"100"), (200 * 2**20, b"413")):
            headers = {**EXPECTING, "Content-Length": b"%d" % length}
            writer.write(written(b"POST /api/v1/push", headers, b""))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 %s " % status), head
            if status == b"100":
                writer.write(body)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert head.startswith(b"HTTP/1.1 201 "), head
                await reader.readuntil(b"]")
        assert await asyncio.wait_for(reader.read(), 5)  # the refusal's body, and the end
    # One that is here already is not asked for.
    headers = {**EXPECTING, "Content-Length": b"%d" % len(body)}
    head = await head_of_answer(server, written(b"POST /api/v1/push", headers, body))
    assert head.startswith(b"HTTP/1.1 201 ")


async def test_another_expectation_is_refused_in_our_form(server: ClusterProcess) -> None:
    async with connected(server) as (reader, writer):
        headers = {"Host": b"x", "Connection": b"close", "Expect": b"banana"}
        writer.write(written(b"GET /livez", headers, b""))
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 417 ")
    assert b"X-Request-Id: " in head
    assert b"Content-Type: application/json" in head
    assert json.loads(body) == {"error": "Expect can only be 100-continue", "code": "bad_request"}
