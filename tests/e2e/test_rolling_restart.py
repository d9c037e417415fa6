"""SIGHUP again and again under load: no failed request, no refused connection, no lost long poll.

Every request has a connection of its own. Some clients send at once, some take their time between
connecting and sending, some send their request in pieces; that is where connections get lost.
ROLLING_SECONDS makes a longer run (60).
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.client import Client, unique, uuid7
from tests.cluster_process import ClusterProcess

SECONDS = float(os.environ.get("ROLLING_SECONDS", "10"))


@dataclass
class Load:
    """What the clients saw."""

    url: str
    queue: str
    stop_at: float
    pushed: set[str] = field(default_factory=set)
    popped: list[str] = field(default_factory=list)
    polls: int = 0
    failures: list[str] = field(default_factory=list)

    def running(self) -> bool:
        return time.monotonic() < self.stop_at

    async def repeat(self, name: str, once: Callable[[], Awaitable[None]]) -> None:
        while self.running():
            try:
                await once()
            except Exception as exc:
                self.failures.append(f"{name}: {exc!r}")

    async def produce(self, client: Client) -> None:
        one = uuid7()
        items = [{"queue": self.queue, "payload": one, "transactionId": one}]
        answer = await client.post("/api/v1/push", {"items": items})
        assert answer.status == 201, answer
        self.pushed.add(one)

    async def produce_slowly(self, chance: random.Random) -> None:
        """Connect, wait, send the request in two pieces with another wait between."""
        one = uuid7()
        body = (
            f'{{"items":[{{"queue":"{self.queue}","payload":"{one}","transactionId":"{one}"}}]}}'
        ).encode()
        request = (
            b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        ) + body
        cut = chance.randrange(1, len(request))
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            await asyncio.sleep(chance.choice((0, 0.02, 0.1, 0.4)))
            writer.write(request[:cut])
            await writer.drain()
            await asyncio.sleep(chance.choice((0, 0.01, 0.05)))
            writer.write(request[cut:])
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
        assert answer.startswith(b"HTTP/1.1 201"), (cut, answer[:200])
        self.pushed.add(one)

    async def consume(self, client: Client) -> None:
        pop = await client.pop(self.queue, batch=100, partitions=10, wait_ms=3000)
        self.popped += [message["transactionId"] for message in pop.messages]
        if pop.messages:
            await client.complete(pop)

    async def poll_nothing(self, client: Client, queue: str) -> None:
        pop = await client.pop(queue, wait_ms=60_000)
        assert pop.status == 204
        self.polls += 1


async def hang_up(cluster: ClusterProcess, load: Load) -> int:
    """SIGHUP, and again once all workers are replaced; how often."""
    count = 0
    while load.running():
        lines = len(cluster.lines)
        cluster.signal(signal.SIGHUP)
        await asyncio.to_thread(cluster.wait_for_line, "workers_replaced", 60, lines)
        count += 1
    return count


async def test_replacing_workers_under_load_fails_no_request(data_dir: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        load = Load(cluster.url, unique("rolling"), time.monotonic() + SECONDS)
        async with Client(cluster.url, fresh=True) as fresh:
            async with asyncio.TaskGroup() as tasks:
                for number in range(6):
                    tasks.create_task(load.repeat("push", lambda: load.produce(fresh)))
                    tasks.create_task(load.repeat("slow push", lambda: load.produce_slowly(chance)))
                    nothing = unique("nothing")
                    poll = lambda name=nothing: load.poll_nothing(fresh, name)  # noqa: E731
                    tasks.create_task(load.repeat(f"poll {number}", poll))
                for _ in range(2):
                    tasks.create_task(load.repeat("pop", lambda: load.consume(fresh)))
                hung_up = tasks.create_task(hang_up(cluster, load))
                await asyncio.sleep(SECONDS)
                # Polls that nothing ends are ended by the next replacement.
                while not hung_up.done():
                    await asyncio.sleep(0.05)
                cluster.signal(signal.SIGHUP)
            # Whatever was pushed arrives once, however often workers were replaced.
            load.stop_at = float("inf")
            while len(load.popped) < len(load.pushed):
                await load.consume(fresh)
        print(f"{hung_up.result()} times, {len(load.pushed)} pushed, {load.polls} polls")
        assert load.failures == []
        assert sorted(load.popped) == sorted(load.pushed)
        assert hung_up.result() >= 2
        assert load.polls >= 6
        assert not any(r.get("event") == "worker_died" for r in cluster.records)
        assert await asyncio.to_thread(cluster.stop) == 0, cluster.output[-3000:]
