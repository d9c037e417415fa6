"""The WebSocket of dashboards: wire-api 5.10."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.client import Client, eventually
from tests.cluster_process import ClusterProcess


class Socket:
    """A WebSocket that keeps what it was told."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.frames: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.ws:
            if message.type is aiohttp.WSMsgType.TEXT:
                self.frames.append(
                    {"event": "pong"} if message.data == "pong" else json.loads(message.data)
                )

    def told(self, event: str, **data: Any) -> list[dict[str, Any]]:
        """The data of all events of that name whose data has these values."""
        return [
            frame["data"]
            for frame in self.frames
            if frame["event"] == event
            and all(frame["data"].get(name) == value for name, value in data.items())
        ]

    async def wait(self, event: str, deadline: float = 10, **data: Any) -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            return next(iter(self.told(event, **data)), None)

        return await eventually(found, deadline=deadline)

    async def ended(self) -> int | None:
        """Wait for its end; the code it was closed with."""
        async with asyncio.timeout(20):
            await self._reading
        return self.ws.close_code

    async def close(self) -> None:
        await self.ws.close()
        await self._reading


@asynccontextmanager
async def connected(url: str, **arguments: Any) -> AsyncIterator[Socket]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url + "/ws/dashboard", **arguments) as ws,
    ):
        socket = Socket(ws)
        try:
            yield socket
        finally:
            await socket.close()


async def test_a_socket_is_greeted_and_answers(server: ClusterProcess) -> None:
    async with connected(server.url) as socket:
        greeting = await socket.wait("connected")
        assert greeting["version"] == "v2"
        assert socket.frames[0]["event"] == "connected"
        assert socket.frames[0]["timestamp"].endswith("Z")
        await socket.wait("client.connected", clientId=greeting["connectionId"])
        await socket.ws.send_str("ping")

        async def pong() -> bool:
            return {"event": "pong"} in socket.frames

        await eventually(pong)
        await socket.ws.send_str("nonsense")
        await socket.ws.send_str('{"type": "subscribe", "queues": ' + "[" * 16_000)
        await socket.ws.send_str('{"type": "unknown"}')
        await socket.ws.send_str('{"type": "subscribe", "queues": ["invoices"]}')
        assert await socket.wait("subscribed") == {"queues": ["invoices"]}


async def test_messages_are_told_of_wherever_they_go(server: ClusterProcess, queue: str) -> None:
    """Requests come to both workers, the socket is at one."""
    async with connected(server.url) as socket, Client(server.url, fresh=True) as client:
        await socket.wait("connected")
        await asyncio.sleep(0.3)  # until the other worker looks whether anybody listens
        await client.configure(queue)
        await socket.wait("queue.created", queue=queue)
        ids = [f"{queue}-{number}" for number in range(8)]
        for id_ in ids:
            await client.push(queue, [1], partition="p", ids=[id_])
        for id_ in ids:
            told = await socket.wait("message.pushed", transactionId=id_)
            assert told == {"queue": queue, "partition": "p", "transactionId": id_}
        for _ in ids:
            pop = await client.pop(queue, batch=1)
            status = "failed" if pop.messages[0]["transactionId"] == ids[-1] else "completed"
            await client.ack(pop.messages[0], status, error="no")
        for id_ in ids:
            told = await socket.wait("message.processing", transactionId=id_)
            assert (told["queue"], told["partition"]) == (queue, "p")
            assert told["workerId"]
        for id_ in ids[:-1]:
            await socket.wait("message.completed", transactionId=id_)
        assert (await socket.wait("message.failed", transactionId=ids[-1]))["error"] == "no"
        assert not socket.told("message.completed", transactionId=ids[-1])


async def test_what_sums_up_comes_by_itself(server: ClusterProcess, queue: str) -> None:
    async with connected(server.url) as socket, Client(server.url) as client:
        await client.push(queue, [1, 2, 3], partition="p")
        await client.pop(queue, batch=1)
        await socket.ws.send_str(json.dumps({"type": "subscribe", "queues": [queue]}))
        await socket.wait("throughput")
        depth = await socket.wait("queue.depth", queue=queue)
        assert (depth["totalDepth"], depth["totalProcessing"]) == (2, 1)
        own = {"depth": 2, "processing": 1, "completed": 0, "failed": 0}
        assert depth["partitions"]["p"] == own
        partition = await socket.wait("partition.depth", queue=queue, partition="p")
        assert partition == {"queue": queue, "partition": "p", "total": 3} | own
        stats = await socket.wait("system.stats", deadline=15)
        assert stats["pending"] >= 2
        assert stats["connections"] >= 1
        assert stats["recentCreated"] >= 3
        assert len(socket.told("throughput")) > 5
        assert max(told["pushedPerSecond"] for told in socket.told("throughput")) > 0
    async with Client(server.url) as client:

        async def gone() -> bool:
            return bool((await client.get("/health")).json["connections"] == 0)

        await eventually(gone)


async def test_a_burst_is_told_in_part(server: ClusterProcess, queue: str) -> None:
    """What a worker tells of single messages is bounded; the messages are not touched."""
    async with connected(server.url) as socket, Client(server.url) as client:
        await socket.wait("connected")
        await asyncio.sleep(0.3)
        for _ in range(20):
            await client.push(queue, list(range(100)))
        await socket.wait("message.pushed", queue=queue)
        await socket.ws.send_str('{"type": "subscribe", "queues": []}')
        await socket.wait("subscribed")
        assert len(socket.told("message.pushed", queue=queue)) < 1000
        assert len((await client.pop(queue, batch=3000)).messages) == 2000


async def test_sockets_are_bounded_and_closed_on_the_way_out(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir, env={"WS_MAX_CONNECTIONS": "2"}) as cluster:
        cluster.wait_ready()
        async with connected(cluster.url) as one, connected(cluster.url) as two:
            await one.wait("connected")
            await two.wait("connected")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with connected(cluster.url):
                    pass
            assert refused.value.status == 429
            begin = time.monotonic()
            stopping = asyncio.to_thread(cluster.stop)
            stopped = asyncio.create_task(stopping)
            assert await one.ended() == 1001
            assert await two.ended() == 1001
            assert await stopped == 0
            assert time.monotonic() - begin < 10


async def test_what_is_no_websocket_is_told_so(client: Client) -> None:
    answer = await client.get("/ws/dashboard")
    assert answer.status == 400
    assert "WebSocket" in answer.error
