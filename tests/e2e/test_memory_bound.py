"""Whatever clients throw at a worker, its memory stays below what the documentation states.

An attack is a function that throws something at a server, and how much of a worker's memory it may
take at most. Meanwhile the workers have to answer `/livez`.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.client import Client, unique
from tests.cluster_process import ClusterProcess
from tests.server_directory import server_directory

MB = 1024 * 1024
# A worker that has something to do besides answers within this time, on a busy machine.
PROBE_SECONDS_MAX = 2.0


@dataclass(frozen=True)
class Attack:
    throw: Callable[[ClusterProcess], Awaitable[None]]
    worker_bytes_max: int


ATTACKS: dict[str, Attack] = {}


def attack(
    worker_bytes_max: int,
) -> Callable[[Callable[[ClusterProcess], Awaitable[None]]], None]:
    """Register an attack; its words are its name."""

    def add(throw: Callable[[ClusterProcess], Awaitable[None]]) -> None:
        ATTACKS[throw.__name__.replace("_", " ")] = Attack(throw, worker_bytes_max)

    return add


@pytest.fixture(scope="module")
def attacked() -> Iterator[ClusterProcess]:
    with server_directory() as directory, ClusterProcess(data_dir=directory) as cluster:
        cluster.wait_ready()
        workers = cluster.worker_pids()
        yield cluster
        assert cluster.worker_pids() == workers, cluster.output[-5000:]
        assert cluster.stop() == 0


def forget_peaks(server: ClusterProcess) -> None:
    for pid in server.worker_pids():
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peaks(server: ClusterProcess) -> list[int]:
    """The most that each worker had resident since `forget_peaks`, in bytes."""
    found = []
    for pid in server.worker_pids():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                found.append(int(line.split()[1]) * 1024)
    return found


@contextlib.contextmanager
def probed(url: str) -> Iterator[list[float]]:
    """Meanwhile `/livez` is asked twice a second, each time on a new connection; the times it took.

    In a thread of its own: an attack keeps the event loop of the tests busy as well.
    """
    took: list[float] = []
    is_over = threading.Event()

    def probe() -> None:
        while not is_over.wait(0.5):
            began = time.monotonic()
            with urlopen(f"{url}/livez", timeout=30) as answer:
                assert answer.status == 200
            took.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(probe)
        try:
            yield took
        finally:
            is_over.set()
        probing.result()


@contextlib.contextmanager
def silent_readers(server: ClusterProcess, count: int) -> Iterator[list[socket.socket]]:
    """Connections that can send, and take nothing of what is sent to them."""
    parts = urlsplit(server.url)
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            # The kernel would otherwise take megabytes off the server's hands.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.connect((parts.hostname, parts.port))
            one.setblocking(False)
            sockets.append(one)
        yield sockets


async def send(connection: socket.socket, data: bytes, seconds: float) -> None:
    """Send as much as is taken within a time; a refusal is as good."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_sendall(connection, data)


async def send_to_all(server: ClusterProcess, count: int, data: bytes) -> None:
    with silent_readers(server, count) as connections:
        await asyncio.gather(*(send(one, data, 5) for one in connections))
        await asyncio.sleep(0.5)  # what is in the kernel's buffers arrives


def head(target: str, header_bytes: int, headers: int) -> bytes:
    lines = b"".join(b"X-%d: " % n + b"a" * header_bytes + b"\r\n" for n in range(headers))
    return b"GET " + target.encode() + b" HTTP/1.1\r\nHost: x\r\n" + lines


@attack(160 * MB)
async def huge_heads_in_a_pipeline(server: ClusterProcess) -> None:
    await send_to_all(server, 8, (head("/openapi.json", 16_000, 125) + b"\r\n") * 60)


@attack(160 * MB)
async def large_heads_behind_unread_answers(server: ClusterProcess) -> None:
    await send_to_all(server, 60, (head("/openapi.json", 600, 100) + b"\r\n") * 60)


@attack(160 * MB)
async def large_heads_behind_waiting_pops(server: ClusterProcess) -> None:
    pop = f"/api/v1/pop/queue/{unique('nothing')}?wait=true&timeout=20000"
    await send_to_all(server, 60, (head(pop, 600, 100) + b"\r\n") * 60)


@attack(160 * MB)
async def heads_without_an_end(server: ClusterProcess) -> None:
    await send_to_all(server, 60, head("/livez", 16_000, 125))


@attack(160 * MB)
async def heads_without_an_end_behind_waiting_pops(server: ClusterProcess) -> None:
    pop = head(f"/api/v1/pop/queue/{unique('nothing')}?wait=true&timeout=20000", 10, 1) + b"\r\n"
    await send_to_all(server, 60, pop + head("/livez", 16_000, 125))


@attack(160 * MB)
async def upgrades_in_a_pipeline(server: ClusterProcess) -> None:
    request = (
        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    )
    await send_to_all(server, 60, request * 20_000)


@attack(160 * MB)
async def files_that_are_not_read(server: ClusterProcess) -> None:
    request = b"GET /dashboard/app.js HTTP/1.1\r\nHost: x\r\nAccept-Encoding: identity\r\n\r\n"
    await send_to_all(server, 60, request * 2_000)


# -- what bodies are made into, and what is made of queues --

# docs/operating.md, "Memory", at the default settings.
BODIES_BYTES_MAX = 512 * MB


def repeated(before: bytes, item: bytes, count: int, behind: bytes) -> bytes:
    return before + (item + b",") * (count - 1) + item + behind


async def post(server: ClusterProcess, path: str, *bodies: bytes) -> list[int]:
    """Send *bodies* at the same time, each on a connection of its own; the statuses, none a 5xx."""
    async with Client(server.url, fresh=True) as client:
        answers = await asyncio.gather(
            *(client.send("POST", f"/api/v1/{path}", body=body, timeout=60) for body in bodies)
        )
    statuses = [answer.status for answer in answers]
    assert max(statuses) < 500, statuses
    return statuses


@attack(BODIES_BYTES_MAX)
async def millions_of_items(server: ClusterProcess) -> None:
    for count in (1_000_000, 7_000_000):
        body = repeated(b'{"items":[', b'{"queue":"a"}', count, b"]}")
        assert await post(server, "push", body) == [413]
    body = repeated(
        b'{"acknowledgments":[', b'{"transactionId":"a","partitionId":"1"}', 1_000_000, b"]}"
    )
    assert await post(server, "ack/batch", body) == [413]
    body = repeated(b'{"operations":[', b'{"type":"push","queue":"a"}', 1_000_000, b"]}")
    assert await post(server, "transaction", body) == [413]


@attack(BODIES_BYTES_MAX)
async def as_many_items_as_are_taken(server: ClusterProcess) -> None:
    queue = unique("many").encode()
    body = repeated(b'{"items":[', b'{"queue":"%b"}' % queue, 100_000, b"]}")
    statuses = await post(server, "push", *[body] * 6)
    assert set(statuses) <= {201, 429}
    assert 201 in statuses
    body = repeated(b'{"operations":[', b'{"type":"push","queue":"%b"}' % queue, 100_000, b"]}")
    assert set(await post(server, "transaction", *[body] * 6)) <= {200, 429}
    body = repeated(
        b'{"acknowledgments":[', b'{"transactionId":"a","partitionId":"1"}', 100_000, b"]}"
    )
    assert set(await post(server, "ack/batch", *[body] * 6)) <= {200, 429}


@attack(BODIES_BYTES_MAX)
async def millions_of_values_that_are_refused(server: ClusterProcess) -> None:
    for body in (
        repeated(b'{"operations":[],"kv":[', b"0", 20_000_000, b"]}"),
        repeated(b'{"operations":[{"type":"ack"}],"timers":[', b"[]", 10_000_000, b"]}"),
        repeated(b'{"operations":5,"ignored":[', b"[]", 10_000_000, b"]}"),
        repeated(b'{"operations":[],"requiredLeases":[', b'""', 10_000_000, b"]}"),
    ):
        (status,) = await post(server, "transaction", body)
        assert 400 <= status < 500
    for path in ("configure", "ack", "traces", "dlq/redrive", "push"):
        body = repeated(b'{"items":5,"ignored":[', b"[]", 10_000_000, b"]}")
        (status,) = await post(server, path, body)
        assert 400 <= status < 500


@attack(BODIES_BYTES_MAX)
async def large_payloads_at_the_same_time(server: ClusterProcess) -> None:
    payload = os.urandom(20 * MB).hex().encode()
    queue = unique("large").encode()
    body = b'{"items":[{"queue":"%b","payload":"%b"}]}' % (queue, payload)
    assert set(await post(server, "push", *[body] * 5)) <= {201, 429}
    dense = repeated(b"[", b"[]", 5_000_000, b"]")
    body = b'{"items":[{"queue":"%b","payload":%b}]}' % (queue, dense)
    assert set(await post(server, "push", *[body] * 2)) <= {201, 429}


@attack(BODIES_BYTES_MAX)
async def large_bodies_without_an_end(server: ClusterProcess) -> None:
    head = b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    await send_to_all(server, 8, head + b" " * 60_000_000)


@attack(BODIES_BYTES_MAX)
async def large_pages_that_are_not_read(server: ClusterProcess) -> None:
    queue = unique("pages")
    async with Client(server.url) as client:
        for _ in range(6):
            await client.push(queue, [os.urandom(500_000).hex() for _ in range(10)])
    requests = [
        f"GET /api/v1/messages?queue={queue}&limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /api/v1/pop/queue/{queue}?consumerGroup=%s&batch=1000 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    with silent_readers(server, 48) as connections:
        for number, one in enumerate(connections):
            request = requests[number % 2].replace("%s", f"g{number}")
            await asyncio.get_running_loop().sock_sendall(one, request.encode())
        await asyncio.sleep(2)


@pytest.mark.alone
@pytest.mark.parametrize("name", ATTACKS)
async def test_a_worker_keeps_its_memory_bound(attacked: ClusterProcess, name: str) -> None:
    forget_peaks(attacked)
    with probed(attacked.url) as took:
        await ATTACKS[name].throw(attacked)
        await asyncio.sleep(0.6)  # a probe more
    most = max(peaks(attacked))
    print(f"{name}: {most / MB:.0f} MB, slowest probe {max(took) * 1000:.0f} ms")
    assert most <= ATTACKS[name].worker_bytes_max, f"{most / MB:.0f} MB"
    assert max(took) < PROBE_SECONDS_MAX
