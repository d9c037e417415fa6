"""A reader that stops reading a large answer delays nobody and costs the server little memory.

Eight pops of about 20 MB each stop after the header. A server that writes whole answers into its
transports would hold 160 MB for them; one that waits for its readers holds a chunk for each.
"""

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.client import Client, Message, eventually, unique
from tests.cluster_process import ClusterProcess

MESSAGES = 200
PAYLOAD_BYTES = 100_000  # incompressible, so that the stored form is large as well
READERS = 8


class SlowReader:
    """One pop over a bare socket that reads only when it is told to."""

    def __init__(self, url: str, target: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        self._received = bytearray()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        # The kernel would otherwise take megabytes off the server's hands.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)

    async def start(self) -> None:
        """Send the request and read until the header is there, no further."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._address)
        await loop.sock_sendall(self._socket, self._request)
        while b"\r\n\r\n" not in self._received:
            self._received += await loop.sock_recv(self._socket, 1024)
        assert self._received.startswith(b"HTTP/1.1 200 "), bytes(self._received[:200])

    async def rest(self) -> list[Message]:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(self._socket, 1 << 20):
            self._received += piece
        head, _, body = bytes(self._received).partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = _unchunked(body)
        messages: list[Message] = json.loads(body)["messages"]
        return messages

    def close(self) -> None:
        self._socket.close()


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    position = 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        position = end + 2 + size + 2


def digest(messages: list[Message]) -> str:
    state = hashlib.sha256()
    for message in messages:
        state.update(message["data"].encode())
    return state.hexdigest()


async def filled(client: Client, queue: str) -> str:
    """Push 20 MB in two requests; the digest of all payloads in order."""
    payloads = [
        base64.b64encode(os.urandom(PAYLOAD_BYTES * 3 // 4)).decode() for _ in range(MESSAGES)
    ]
    for start in range(0, MESSAGES, MESSAGES // 2):
        await client.push(queue, payloads[start : start + MESSAGES // 2])
    return digest([{"data": payload} for payload in payloads])


def memory(server: ClusterProcess) -> int:
    """Resident bytes of all workers."""
    resident_kb = 0
    for pid in server.worker_pids():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                resident_kb += int(line.split()[1])
    return resident_kb * 1024


async def slowest_round_trip(client: Client, rounds: int) -> float:
    """The longest time in seconds that a push, a pop and an ack took together."""
    queue = unique("beside")
    slowest = 0.0
    for number in range(rounds):
        started = time.monotonic()
        await client.push(queue, [number])
        pop = await client.pop(queue)
        assert pop.data == [number]
        await client.complete(pop)
        slowest = max(slowest, time.monotonic() - started)
    return slowest


@pytest.mark.alone
async def test_readers_that_stop_delay_nobody_and_cost_little(
    server: ClusterProcess, fresh_client: Client, queue: str
) -> None:
    expected = await filled(fresh_client, queue)
    target = f"/api/v1/pop/queue/{queue}?batch={MESSAGES}&consumerGroup="
    # What a large pop needs anyway, on both workers, belongs to the baseline.
    for number in range(6):
        pop = await fresh_client.pop(queue, batch=MESSAGES, group=f"warm-{number}")
        assert digest(pop.messages) == expected
    del pop
    before = memory(server)
    readers = [SlowReader(server.url, f"{target}slow-{number}") for number in range(READERS)]
    try:
        await asyncio.gather(*[reader.start() for reader in readers])
        slowest = await slowest_round_trip(fresh_client, 60)
        grown = memory(server) - before
        print(f"slowest round trip {slowest * 1000:.0f} ms, memory grown by {grown / 1e6:.1f} MB")
        assert slowest < 1.0, "push, pop and ack together, while eight readers stand still"
        assert grown < READERS * MESSAGES * PAYLOAD_BYTES / 4, f"{grown / 1e6:.0f} MB"
        started = time.monotonic()
        pop = await fresh_client.pop(queue, batch=MESSAGES, group="fast")
        assert digest(pop.messages) == expected
        assert time.monotonic() - started < 5, "a large pop beside them"
        for answer in asyncio.as_completed([reader.rest() for reader in readers]):
            messages = await answer
            assert [message["offset"] for message in messages] == list(range(MESSAGES))
            assert digest(messages) == expected
    finally:
        for reader in readers:
            reader.close()


async def test_a_reader_that_leaves_in_the_middle_gives_its_messages_back(
    server: ClusterProcess, fresh_client: Client, queue: str
) -> None:
    """A pop whose answer nobody receives gives the lease back, and its delivery does not count."""
    expected = await filled(fresh_client, queue)
    reader = SlowReader(server.url, f"/api/v1/pop/queue/{queue}?batch={MESSAGES}")
    await reader.start()
    assert (await fresh_client.pop(queue)).status == 204
    reader.close()

    async def taken_back() -> list[Message] | None:
        return (await fresh_client.pop(queue, batch=MESSAGES)).messages

    messages = await eventually(taken_back, deadline=5)
    assert digest(messages) == expected
    assert {message["deliveryAttempt"] for message in messages} == {1}


async def test_a_client_that_asks_on_without_reading_is_not_served_on(
    server: ClusterProcess, fresh_client: Client, queue: str
) -> None:
    """Small answers, asked for in a pipeline: the server stops where nobody takes them."""
    count, payload = 600, "x" * 40_000  # 24 MB: more than kernels keep for a connection
    for start in range(0, count, 100):
        await fresh_client.push(queue, [f"{n:06d}{payload}" for n in range(start, start + 100)])
    parts = urlsplit(server.url)
    target = f"/api/v1/pop/queue/{queue}?batch=1&autoAck=true"
    loop = asyncio.get_running_loop()
    with socket.socket() as raw:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        await loop.sock_connect(raw, (parts.hostname, parts.port))
        request = f"GET {target} HTTP/1.1\r\nHost: x\r\n"
        last = f"{request}Connection: close\r\n\r\n"
        await loop.sock_sendall(raw, (f"{request}\r\n" * (count - 1) + last).encode())

        async def pending() -> int:
            depth = await fresh_client.get(f"/api/v1/resources/queues/{queue}/depth")
            return int(depth.json["pending"])

        async def has_stopped() -> bool:
            before = await pending()
            await asyncio.sleep(0.3)
            return await pending() == before < count

        await eventually(has_stopped, deadline=20)
        assert await pending() > 100
        # It takes them after all, and misses none.
        received = bytearray()
        async with asyncio.timeout(30):
            while piece := await loop.sock_recv(raw, 1 << 20):
                received += piece
    offsets = [int(one) for one in re.findall(rb'"offset":(\d+)', received)]
    assert offsets == list(range(count))
