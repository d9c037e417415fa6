"""Answers in one piece wait for their readers, and not for ever."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest
from aiohttp import web

from queue_server.http.connection import REQUEST_ID, Connection
from queue_server.http.whole_answer import Heads, WholeAnswer

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
REQUESTS = 2000
BODY = b"x" * 20_000  # 40 MB in all: more than kernels keep for a connection


class Served:
    """A server of such answers, and what it has come to."""

    def __init__(self) -> None:
        self.sent = 0
        self.failures: list[BaseException] = []
        self.unsent_bytes_max = 0
        self.stopped = asyncio.Event()
        self.port = 0
        self.connections: list[Connection] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        request[REQUEST_ID] = "id"
        answer = WholeAnswer(Heads({}, lambda: False), BODY)
        try:
            await answer.prepare(request)
        except BaseException as exc:
            self.failures.append(exc)
            self.stopped.set()
            raise
        self.sent += 1
        # uvloop's is one in all but its class.
        transport = cast(asyncio.WriteTransport, request.transport)
        self.unsent_bytes_max = max(self.unsent_bytes_max, transport.get_write_buffer_size())
        if self.sent == REQUESTS:
            self.stopped.set()
        return answer


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    loop = asyncio.get_running_loop()
    server = web.Server(served.answer, handler_cancellation=True)

    def connection() -> Connection:
        one = Connection(server, loop=loop, max_header_bytes=8192, keepalive_timeout_s=75)
        served.connections.append(one)
        return one

    listener = await loop.create_server(connection, "127.0.0.1", 0)
    served.port = listener.sockets[0].getsockname()[1]
    yield served
    listener.close()
    await server.shutdown(1)


async def pipeline(port: int) -> socket.socket:
    """A client that has sent all its requests and has read nothing."""
    client = socket.socket()
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, REQUEST * REQUESTS)
    return client


async def stands_still(served: Served) -> Connection:
    """The connection, once nothing of what it has to send goes out any more."""
    async with asyncio.timeout(30):
        before = -1
        while before != served.sent or not served.connections[0].writing_paused:
            before = served.sent
            await asyncio.sleep(0.2)
    return served.connections[0]


async def test_a_client_that_pipelines_and_never_reads_is_broken_off(served: Served) -> None:
    with await pipeline(served.port):
        connection = await stands_still(served)
        for now in (1000, 1060, 1119):
            connection.close_if_stuck(now, timeout_s=120)
            await asyncio.sleep(0)
            assert connection.connected
        connection.close_if_stuck(1120, timeout_s=120)
        async with asyncio.timeout(30):
            await served.stopped.wait()
    assert not connection.connected
    assert served.sent < REQUESTS
    assert served.unsent_bytes_max < 128 * 1024
    assert [type(failure) for failure in served.failures] == [asyncio.CancelledError]


async def test_a_client_that_reads_slowly_is_not(served: Served) -> None:
    loop = asyncio.get_running_loop()
    with await pipeline(served.port) as client:
        for now in range(1000, 1600, 100):
            connection = await stands_still(served)
            connection.close_if_stuck(now, timeout_s=120)
            sent = served.sent
            while served.sent == sent:
                assert await loop.sock_recv(client, 1 << 16)
        assert connection.connected


async def test_a_client_that_reads_later_gets_all(served: Served) -> None:
    loop = asyncio.get_running_loop()
    with await pipeline(served.port) as client:
        received = 0
        async with asyncio.timeout(30):
            while received < REQUESTS * len(BODY) or not served.stopped.is_set():
                piece = await loop.sock_recv(client, 1 << 20)
                assert piece, served.failures
                received += len(piece)
    assert (served.sent, served.failures) == (REQUESTS, [])
    assert served.unsent_bytes_max < 128 * 1024
