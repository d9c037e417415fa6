"""SIGKILL of a worker and of PostgreSQL under load: nothing answered is lost, order holds.

Producers send one request at a time and repeat it with the same ids until it is answered, as the
official client does; consumers take what comes. Afterwards a group that never read before reads
everything, and that log is compared with what producers and consumers were told meanwhile.
"""

import asyncio
import os
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.client import Client, Message, Pop, as_pop, drain, eventually, unique, uuid7
from tests.cluster_process import ClusterProcess

PARTITIONS = 4


class Load:
    """Producers and consumers on one queue that go on through failures, and what they were told."""

    def __init__(self, url: str, seed: int) -> None:
        print(f"seed {seed}")
        self.queue = unique("load")
        self._client = Client(url, fresh=True)
        self._chance = random.Random(seed)
        self._stopping = False
        self._consuming = True
        # id -> (partition name, offset, message id), as answered
        self.answered: dict[str, tuple[str, int, str]] = {}
        self.sent: set[str] = set()
        # partition name -> batches in the order of their arrival
        self.delivered: dict[str, list[list[Message]]] = defaultdict(list)
        self.failures: dict[str, int] = defaultdict(int)
        self._producers: list[asyncio.Task[None]] = []
        self._consumers: list[asyncio.Task[None]] = []

    def start(self, producers: int = 6, consumers: int = 4) -> None:
        self._producers = [asyncio.create_task(self._produce(n)) for n in range(producers)]
        self._consumers = [asyncio.create_task(self._consume()) for _ in range(consumers)]

    async def progress(self, messages: int = 200) -> None:
        """Wait until so many more messages are answered; the load has to be running to be hurt."""
        goal = len(self.answered) + messages

        async def reached() -> bool:
            for task in (*self._producers, *self._consumers):
                if task.done():
                    task.result()  # a broken promise seen by a task ends the test here
            return len(self.answered) >= goal

        await eventually(reached, deadline=40)

    async def stop(self) -> None:
        """Producers finish their last request; consumers read to the end."""
        self._stopping = True
        await asyncio.gather(*self._producers)
        self._consuming = False
        await asyncio.gather(*self._consumers)

    async def close(self) -> None:
        for task in (*self._producers, *self._consumers):
            task.cancel()
        await asyncio.gather(*self._producers, *self._consumers, return_exceptions=True)
        await self._client.close()

    async def _answer(self, request: Callable[[], Awaitable[Any]]) -> Any:
        """The answer of *request*, sent again while the server cannot give one."""
        while True:
            try:
                answer = await request()
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                self.failures[type(error).__name__] += 1
            else:
                if answer.status < 500:
                    return answer
                self.failures[str(answer.status)] += 1
                # While PostgreSQL is away a request gets a 503 and may be repeated.
                assert answer.status == 503, answer
                assert answer.error
            await asyncio.sleep(0.05)

    async def _produce(self, producer: int) -> None:
        number = 0
        while not self._stopping:
            items = []
            for _ in range(self._chance.choice((1, 1, 1, 3, 20))):
                # Time-ordered ids mostly, as clients mint them; others may be indexed apart.
                one = uuid7() if self._chance.random() < 0.8 else f"text-{producer}-{number}"
                partition = f"p{self._chance.randrange(PARTITIONS)}"
                items.append(
                    {
                        "queue": self.queue,
                        "partition": partition,
                        "payload": [producer, number],
                        "transactionId": one,
                    }
                )
                number += 1
                self.sent.add(one)
            answer = await self._answer(
                lambda items=items: self._client.post("/api/v1/push", {"items": items}, timeout=15)  # type: ignore[misc]
            )
            assert answer.status == 201, answer
            for item, entry in zip(items, answer.json, strict=True):
                assert entry["status"] in ("queued", "duplicate"), entry
                place = (str(item["partition"]), entry["offset"], entry["message_id"])
                self.answered[str(item["transactionId"])] = place

    async def _consume(self) -> None:
        target = (
            f"/api/v1/pop/queue/{self.queue}?consumerGroup=readers&batch=50&partitions=2"
            "&wait=true&timeout=500&leaseSeconds=2"
        )
        empty = 0
        while self._consuming or empty < 6:  # 3 s without a message: longer than any lease
            pop: Pop = as_pop(
                await self._answer(lambda: self._client.send("GET", target, timeout=15))
            )
            empty = 0 if pop.messages else empty + 1
            by_partition: dict[str, list[Message]] = defaultdict(list)
            for message in pop.messages:
                by_partition[message["partition"]].append(message)
            for partition, messages in by_partition.items():
                self.delivered[partition].append(messages)
            if pop.messages:
                body = {
                    "consumerGroup": "readers",
                    "acknowledgments": [
                        {k: m[k] for k in ("transactionId", "partitionId", "leaseId")}
                        for m in pop.messages
                    ],
                }
                answer = await self._answer(
                    lambda body=body: self._client.post("/api/v1/ack/batch", body, timeout=15)  # type: ignore[misc]
                )
                assert answer.status == 200, answer

    async def verify(self) -> None:
        print(f"answered {len(self.answered)}, failures {dict(self.failures)}")
        log = await self._log()
        stored: dict[str, tuple[str, int, str]] = {}
        for partition, messages in log.items():
            assert [m["offset"] for m in messages] == list(range(len(messages))), "no gap"
            for message in messages:
                one = message["transactionId"]
                assert one not in stored, "one id stored twice"
                stored[one] = (partition, message["offset"], message["id"])
        assert set(self.answered) <= set(stored), "an answered push is lost"
        assert {one: stored[one] for one in self.answered} == self.answered
        assert set(stored) <= self.sent
        for messages in log.values():
            last: dict[int, int] = {}
            for message in messages:
                producer, number = message["data"]
                assert number > last.get(producer, -1), "the order of one producer"
                last[producer] = number
        self._verify_deliveries(log)

    def _verify_deliveries(self, log: dict[str, list[Message]]) -> None:
        """Every batch is a piece of the log, and none starts behind a message not yet delivered."""
        for partition, batches in self.delivered.items():
            reached = 0
            for batch in batches:
                start = batch[0]["offset"]
                assert start <= reached, f"{partition} skipped from {reached} to {start}"
                piece = log[partition][start : start + len(batch)]
                assert [m["transactionId"] for m in batch] == [m["transactionId"] for m in piece]
                assert [m["offset"] for m in batch] == [m["offset"] for m in piece]
                reached = max(reached, start + len(batch))
            assert reached == len(log[partition]), "everything was delivered"

    async def _log(self) -> dict[str, list[Message]]:
        """The whole content of each partition, read by a group of its own."""
        log: dict[str, list[Message]] = defaultdict(list)
        group = unique("audit")
        for number in range(PARTITIONS):
            partition = f"p{number}"
            log[partition] = await drain(self._client, self.queue, partition=partition, group=group)
        return log


@asynccontextmanager
async def load_on(cluster: ClusterProcess) -> AsyncIterator[Load]:
    load = Load(cluster.url, seed=random.randrange(2**32))
    load.start()
    try:
        await load.progress()
        yield load
    finally:
        await load.close()


async def replaced(cluster: ClusterProcess, victim: int) -> None:
    """Wait until every slot has a living worker again and *victim* is none of them."""

    async def check() -> bool:
        pids = cluster.worker_pids()
        return victim not in pids and len(pids) == 2

    await eventually(check, deadline=20)


async def test_kill_9_of_workers_under_load_loses_nothing(data_dir: Path) -> None:
    """Each worker dies twice while requests of all kinds are under way."""
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with load_on(cluster) as load:
            for turn in range(4):
                victim = cluster.worker_pids()[turn % 2]
                os.kill(victim, signal.SIGKILL)
                await replaced(cluster, victim)
                await load.progress()
            await load.stop()
            await load.verify()
            # The supervisor keeps a dead worker's listener open: its successor serves who waits.
            assert "ClientConnectorError" not in load.failures, "a connection was refused"
        assert cluster.stop() == 0, cluster.output[-5000:]


@pytest.mark.databases("embedded", reason="the server has to start PostgreSQL again")
async def test_kill_9_of_the_postmaster_under_load_loses_nothing(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with load_on(cluster) as load:
            for _ in range(2):
                postmaster = _postmaster(data_dir)
                os.kill(postmaster, signal.SIGKILL)

                async def restarted(old: int = postmaster) -> bool:
                    return cluster.postgres_pid() != old

                await eventually(restarted, deadline=30)
                await load.progress()
            await load.stop()
            await load.verify()
        assert cluster.stop() == 0, cluster.output[-5000:]


async def test_kill_9_of_the_supervisor_under_load_loses_nothing(data_dir: Path) -> None:
    """Workers and PostgreSQL end without it; a new one on the same port and data goes on."""
    with ClusterProcess(data_dir=data_dir) as first:
        first.wait_ready()
        port = str(urlsplit(first.url).port)
        async with load_on(first) as load:
            first.kill()
            await asyncio.to_thread(first.wait)  # until the last of its processes is gone
            with ClusterProcess(["--port", port], data_dir=data_dir) as second:
                await asyncio.to_thread(second.wait_ready)
                await load.progress()
                await load.stop()
                await load.verify()
                assert await asyncio.to_thread(second.stop) == 0, second.output[-5000:]


def _postmaster(data_dir: Path) -> int:
    (file,) = data_dir.rglob("postmaster.pid")
    return int(file.read_text().splitlines()[0])


@pytest.mark.databases("embedded", reason="the server has to start PostgreSQL again")
async def test_a_parked_pop_outlives_a_restart_of_postgresql(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url, fresh=True) as client:
            queue = unique("parked")
            parked = [asyncio.create_task(client.pop(queue, wait_ms=25_000)) for _ in range(4)]
            await asyncio.sleep(0.3)
            postmaster = _postmaster(data_dir)
            os.kill(postmaster, signal.SIGKILL)

            async def pushed() -> bool:
                answer = await client.post(
                    "/api/v1/push",
                    {"items": [{"queue": queue, "payload": 1, "transactionId": "one"}]},
                )
                assert answer.status in (201, 503), answer
                return answer.status == 201

            await eventually(pushed, deadline=30)
            done, waiting = await asyncio.wait(
                parked, timeout=15, return_when=asyncio.FIRST_COMPLETED
            )
            assert [(await task).data for task in done] == [[1]]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("end", ["drained", "killed"])
async def test_a_restart_on_the_same_data_keeps_everything(data_dir: Path, end: str) -> None:
    """Messages, ids, cursors, retry counters, subscriptions, options and live leases."""
    queue, other = unique("kept"), unique("kept")
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url) as client:
            await client.configure(queue, {"retryLimit": 1, "priority": 4}, namespace="n")
            pushed = await client.push(queue, list(range(10)), ids=[f"id-{n}" for n in range(10)])
            first = await client.pop(queue, batch=3)
            await client.ack(first.messages[0])
            await client.ack(first.messages[1], "failed")
            leased = await client.pop(queue, batch=4, leaseSeconds=300)
            assert (leased.data, leased.attempts) == ([1, 2, 3, 4], {2})
            await client.push(other, ["settled"], partition="p")
            settled = (await client.pop(other, partition="p")).messages[0]
            assert (await client.ack(settled))["leaseReleased"] is True
            await client.push(other, ["old"])
            assert (await client.pop(other, group="g", subscriptionMode="new")).status == 204
            await client.pop(other, leaseSeconds=1)
        if end == "drained":
            assert cluster.stop() == 0
        else:
            cluster.kill()
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url, fresh=True) as client:
            assert (await client.pop(queue)).status == 204, "the lease is alive"
            assert (await client.extend(leased.lease_id))["renewed"] == 1
            again = await client.push(queue, ["x"] * 11, ids=[f"id-{n}" for n in range(11)])
            assert [result["status"] for result in again] == ["duplicate"] * 10 + ["queued"]
            assert [result["message_id"] for result in again[:10]] == [
                result["message_id"] for result in pushed
            ]
            assert again[10]["offset"] == 10
            assert (await client.ack(leased.messages[0], "failed"))["dlq"] is True, "the counter"
            assert (await client.pop(queue)).data == [2, 3, 4, 5, 6, 7, 8, 9, "x"]
            assert (await client.pop(queue, group="late")).data == [*range(10), "x"]
            resent = await client.ack(settled)
            assert (resent["success"], resent["leaseReleased"]) == (True, True)
            body = await client.configure(queue)
            assert (body["options"]["retryLimit"], body["options"]["priority"]) == (1, 4)
            assert body["namespace"] == "n"
            await client.push(other, ["new"])
            assert (await client.pop(other, group="g")).data == ["new"]
            assert (await client.pop(other, wait_ms=3000)).data == ["old", "new"]
