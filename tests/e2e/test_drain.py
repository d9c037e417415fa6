"""SIGTERM under load: everyone gets an answer or a closed connection, and no answer is a lie."""

import asyncio
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.client import Client, drain, unique, uuid7
from tests.cluster_process import ClusterProcess

EXIT_SECONDS = 10


async def push_until_closed(client: Client, queue: str, producer: int, answered: set[str]) -> None:
    """Push one message after the other until the server is gone; note what it took."""
    number = 0
    while True:
        one = uuid7()
        items = [{"queue": queue, "payload": [producer, number], "transactionId": one}]
        try:
            answer = await client.post("/api/v1/push", {"items": items})
        except (aiohttp.ClientError, ConnectionError):
            return
        assert answer.status == 201, answer
        answered.add(one)
        number += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_drain_answers_parked_pops_and_keeps_every_answered_push(
    data_dir: Path, number: signal.Signals
) -> None:
    queue = unique("drained")
    answered: set[str] = set()
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url, fresh=True) as fresh, Client(cluster.url) as kept:
            async with asyncio.TaskGroup() as tasks:
                parked = [
                    tasks.create_task(fresh.pop(unique("nothing"), wait_ms=60_000))
                    for _ in range(30)
                ]
                producers = [
                    tasks.create_task(push_until_closed(client, queue, producer, answered))
                    for producer, client in enumerate([fresh, kept] * 6)
                ]
                while len(answered) < 100:
                    await asyncio.sleep(0.01)
                    assert not any(task.done() for task in producers), "before any signal"
                started = time.monotonic()
                cluster.signal(number)
            assert [task.result().status for task in parked] == [204] * 30
            code = await asyncio.to_thread(cluster.wait)
            assert code == 0, cluster.output[-5000:]
            assert time.monotonic() - started < EXIT_SECONDS
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url) as client:
            stored = {message["transactionId"] for message in await drain(client, queue)}
    assert answered <= stored


@pytest.mark.alone
async def test_a_drain_ends_in_time_whatever_clients_do(data_dir: Path) -> None:
    """Idle connections, half a request, a request without its body, a reader that stopped."""
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        queue = unique("stuck")
        async with Client(cluster.url) as client:
            await client.push(queue, ["x" * 1_000_000 for _ in range(20)])
        parts = urlsplit(cluster.url)
        requests = [
            b"",
            b"POST /api/v1/push HT",
            b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            f"GET /api/v1/pop/queue/{queue} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
            f"GET /api/v1/pop/queue/{queue}?batch=20&consumerGroup=g HTTP/1.1\r\n"
            "Host: x\r\n\r\n".encode(),
        ]
        sockets: list[socket.socket] = []
        try:
            for request in requests * 2:
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                connection.connect((parts.hostname, parts.port))
                connection.sendall(request)
                sockets.append(connection)
            await asyncio.sleep(0.5)  # for the answers to fill the sockets
            started = time.monotonic()
            cluster.signal(signal.SIGTERM)
            assert await asyncio.to_thread(cluster.wait) == 0, cluster.output[-5000:]
            assert time.monotonic() - started < EXIT_SECONDS
        finally:
            for connection in sockets:
                connection.close()


async def test_a_drain_refuses_new_connections(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        url = cluster.url
        assert await asyncio.to_thread(cluster.stop) == 0
        async with Client(url) as client:
            with pytest.raises(aiohttp.ClientConnectionError):
                await client.get("/health")
