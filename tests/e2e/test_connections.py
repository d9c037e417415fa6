"""Connections are shared out evenly, and are limited."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.client import Client, eventually
from tests.cluster_process import ClusterProcess


@asynccontextmanager
async def connections(url: str, count: int) -> AsyncIterator[list[Client]]:
    """*count* connections that stay open, each of which has had an answer."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(url)) for _ in range(count)]
        for client in clients:
            assert (await client.get("/health")).status == 200
        yield clients


async def by_worker(client: Client) -> list[int]:
    return list((await client.get("/metrics")).json["connections"]["byWorker"])


async def test_few_connections_that_stay_are_spread_evenly(data_dir: Path) -> None:
    with ClusterProcess(["--workers", "3", "--port", "0"], data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with Client(cluster.url) as watch:

            async def are_gone() -> bool:
                return sum(await by_worker(watch)) == 1

            # Left to the kernel, they fall this evenly in one case of eight.
            for _ in range(5):
                async with connections(cluster.url, 5):
                    assert await by_worker(watch) == [2, 2, 2]
                await eventually(are_gone)
        # Also when all come at once: what is under way is counted by who sent it.
        async with contextlib.AsyncExitStack() as stack:
            many = [await stack.enter_async_context(Client(cluster.url)) for _ in range(90)]
            answers = await asyncio.gather(*(client.get("/health") for client in many))
            assert {answer.status for answer in answers} == {200}
            counts = await by_worker(many[0])
            assert sum(counts) == 90
            # Two that hand over at the same time do not know of each other: evenness is a hint.
            assert max(counts) <= 45, counts
        assert cluster.stop() == 0, cluster.output[-3000:]


async def test_a_worker_that_dies_or_is_replaced_gets_its_share_again(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()
        async with connections(cluster.url, 4) as clients:
            assert await by_worker(clients[0]) == [2, 2]
            os.kill(cluster.worker_pids()[0], signal.SIGKILL)
            cluster.wait_for_line('"worker_died"')
            async with Client(cluster.url) as watch:

                async def is_replaced() -> bool:
                    return bool((await watch.get("/health")).json["workers"] == 2)

                await eventually(is_replaced)
                # The survivor has two and this one; whoever comes now goes to the successor.
                async with connections(cluster.url, 3):
                    assert await by_worker(watch) == [3, 3]


async def test_connections_of_a_worker_that_keeps_dying_go_to_the_others(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        cluster.wait_ready()

        def lives() -> list[int]:
            """The pids of all that were ready in the first slot."""
            return [
                record["pid"]
                for record in cluster.records
                if record.get("event") == "worker_ready" and record["slot"] == 0
            ]

        deaths = 4  # after which its successor is due in 1.5 to 2 seconds
        for _ in range(deaths):
            read = len(cluster.lines)
            os.kill(lives()[-1], signal.SIGKILL)
            cluster.wait_for_line('"worker_died"', start=read)
            if len(lives()) < deaths:
                cluster.wait_for_line("worker 0 is ready", start=read)
        # The kernel gives half of them to the slot that nobody serves.
        async with connections(cluster.url, 40) as clients:
            assert len(lives()) == deaths, "too slow to tell"
            assert await by_worker(clients[0]) == [0, 40]
        assert cluster.stop() == 0, cluster.output[-3000:]


async def test_one_connection_too_many_is_told_so(data_dir: Path) -> None:
    with ClusterProcess(
        ["--workers", "2", "--port", "0"], {"MAX_CONNECTIONS": "3"}, data_dir
    ) as cluster:
        cluster.wait_ready()
        async with connections(cluster.url, 6) as clients:
            async with Client(cluster.url) as late:
                answer = await late.get("/health")
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                assert "too many connections" in answer.error
            # Who is in is served on.
            for client in clients:
                assert (await client.get("/health")).status == 200
        async with Client(cluster.url) as later:

            async def is_let_in() -> bool:
                return (await later.get("/health")).status == 200

            await eventually(is_let_in)
