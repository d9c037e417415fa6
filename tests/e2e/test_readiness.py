"""What probes are told, and what pushes are answered, while the database is well and while not."""

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psycopg
import pytest

from tests.client import Answer, Client, eventually, unique
from tests.cluster_process import ClusterProcess
from tests.fix_proxy import Proxy


async def on_all_workers(url: str, path: str, count: int = 12) -> list[Answer]:
    """The answers of both workers: each request has a connection of its own."""
    async with Client(url, fresh=True) as client:
        return list(await asyncio.gather(*(client.get(path) for _ in range(count))))


@pytest.fixture
def cluster(conninfo: str) -> Iterator[ClusterProcess]:
    with ClusterProcess(env={"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8"}) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]


async def is_ready(url: str) -> bool:
    return all(answer.status == 200 for answer in await on_all_workers(url, "/readyz"))


def refused(answer: Answer) -> str:
    """The reason of a 503 that says when to come again."""
    assert answer.status == 503, answer
    assert int(answer.headers["Retry-After"]) >= 1, answer
    return str(answer.json.get("reason") or answer.json["error"])


async def test_a_server_that_is_well_says_so(cluster: ClusterProcess) -> None:
    for path, status in (("/livez", "alive"), ("/readyz", "ready"), ("/health", "healthy")):
        for answer in await on_all_workers(cluster.url, path):
            assert (answer.status, answer.json["status"]) == (200, status)


async def test_a_thousand_probes_are_one_write_a_second_and_worker(
    cluster: ClusterProcess, direct_conninfo: str
) -> None:
    written = "SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE relname = 'write_probe'"
    with psycopg.connect(direct_conninfo, autocommit=True) as database:
        began = time.monotonic()
        for _ in range(10):
            assert await is_ready(cluster.url)
            for answer in await on_all_workers(cluster.url, "/health", 40):
                assert answer.status == 200
        seconds = time.monotonic() - began

        async def count() -> int:
            # Statistics reach the shared memory up to a second later.
            row = database.execute(written).fetchone()
            assert row is not None
            return int(row[0])

        assert await eventually(count) <= 2 * (seconds + 2)


@pytest.mark.databases(
    "embedded", "pg15", reason="PgBouncer keeps backends that began read-only until RECONNECT"
)
async def test_a_read_only_database_is_not_healthy(
    cluster: ClusterProcess, direct_conninfo: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(direct_conninfo)["dbname"]
    queue = unique("read-only")
    async with Client(cluster.url, fresh=True) as client:
        await client.push(queue, [1])
        with psycopg.connect(direct_conninfo, autocommit=True) as database:
            database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

            async def is_told() -> bool:
                answers = await on_all_workers(cluster.url, "/readyz")
                return all(answer.status == 503 for answer in answers)

            await eventually(is_told)
            pushed = await client.post("/api/v1/push", {"items": [{"queue": queue, "payload": 2}]})
            assert pushed.status == 503
            for path in ("/readyz", "/health"):
                for answer in await on_all_workers(cluster.url, path):
                    assert refused(answer)
            assert all(a.status == 200 for a in await on_all_workers(cluster.url, "/livez"))
            database.execute("SET default_transaction_read_only = off")
            database.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await eventually(lambda: is_ready(cluster.url))
        await client.push(queue, [3])


@pytest.mark.parametrize(
    ("change", "ready"),
    [
        ("DELETE FROM queue_server_schema WHERE name LIKE 'migrations/%initial%'", False),
        # A newer version is rolled out beside this one; only when it takes away is this one over.
        ("INSERT INTO queue_server_schema VALUES ('migrations/9998_pre_new.sql', '')", True),
        ("INSERT INTO queue_server_schema VALUES ('migrations/9999_post_drop.sql', '')", False),
    ],
)
async def test_a_server_is_ready_for_the_schema_of_its_version_alone(
    cluster: ClusterProcess, conninfo: str, change: str, ready: bool
) -> None:
    assert await is_ready(cluster.url)
    with psycopg.connect(conninfo, autocommit=True) as database:
        database.execute(change)
    asked_at = time.monotonic()
    while time.monotonic() - asked_at < 1.5:  # what was found a second ago still counts
        answers = await on_all_workers(cluster.url, "/readyz")
    for answer in answers:
        if ready:
            assert answer.status == 200
        else:
            assert "schema" in refused(answer)


async def test_a_database_that_forbids_the_write_is_not_healthy(
    cluster: ClusterProcess, conninfo: str
) -> None:
    with psycopg.connect(conninfo, autocommit=True) as database:
        database.execute("DROP TABLE queen.write_probe")

    async def is_told() -> bool:
        answers = await on_all_workers(cluster.url, "/health")
        return all(answer.status == 503 for answer in answers)

    await eventually(is_told)
    for answer in await on_all_workers(cluster.url, "/readyz"):
        assert refused(answer) == "a test write failed: 42P01"


async def test_a_server_that_stops_is_not_ready(cluster: ClusterProcess) -> None:
    """Who has a connection is told before it is closed, and not to use it again."""
    last: list[Answer] = []

    async def ask(client: Client) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            while True:
                answer = await client.get("/readyz")
                if answer.status != 200:
                    last.append(answer)
                    return

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(cluster.url)) for _ in range(6)]
        for client in clients:
            assert (await client.get("/readyz")).status == 200
        asking = asyncio.gather(*(ask(client) for client in clients))
        cluster.signal(signal.SIGTERM)
        await asking
    assert await asyncio.to_thread(cluster.wait) == 0
    assert last
    for answer in last:
        assert refused(answer) == "this worker is stopping"
        assert answer.headers["Connection"] == "close"


@pytest.mark.databases("embedded", reason="the server has to start PostgreSQL again")
async def test_without_a_database_everything_is_answered_at_once(data_dir: Path) -> None:
    with ClusterProcess(env={"DB_CONNECTION_TIMEOUT": "5000"}, data_dir=data_dir) as cluster:
        cluster.wait_ready()
        queue = unique("down")
        async with Client(cluster.url, fresh=True) as client:
            await client.push(queue, ["before"])
            postgres = cluster.postgres_pid()
            lines = len(cluster.lines)
            # Stopped, the supervisor does not start the database again.
            os.kill(cluster.pid, signal.SIGSTOP)
            try:
                os.kill(postgres, signal.SIGQUIT)

                async def is_known() -> bool:
                    answers = await on_all_workers(cluster.url, "/readyz")
                    return all(answer.status == 503 for answer in answers)

                await eventually(is_known)
                took: list[float] = []
                for _ in range(40):
                    began = time.monotonic()
                    answer = await client.post(
                        "/api/v1/push", {"items": [{"queue": queue, "payload": "lost"}]}
                    )
                    took.append(time.monotonic() - began)
                    assert "not available" in refused(answer)
                assert statistics.median(took) < 0.1, took
                assert max(took) < 1, took
                assert (await client.get("/livez")).status == 200
                assert refused(await client.get("/health"))
                assert (await client.get(f"/api/v1/pop/queue/{queue}")).status == 503
            finally:
                os.kill(cluster.pid, signal.SIGCONT)
            cluster.wait_for_line('"postgres_ready"', start=lines)
            began = time.monotonic()
            await eventually(lambda: is_ready(cluster.url))
            assert time.monotonic() - began < 3
            await client.push(queue, ["after"])
            pop = await client.pop(queue)
            assert [message["data"] for message in pop.messages] == ["before", "after"]


async def test_a_lost_database_is_asked_for_without_a_storm(proxied: str, proxy: Proxy) -> None:
    """Two workers under load: their attempts to connect are counted by who refuses them."""
    attempts = 0

    def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    env = {"DATABASE_URL": proxied, "DB_CONNECTION_TIMEOUT": "8000", "DB_POOL_SIZE": "16"}
    with ClusterProcess(env=env) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        queue = unique("storm")
        async with Client(cluster.url, fresh=True) as client:
            await client.push(queue, ["before"])
            await proxy.stop()
            path = f"{proxy.folder}/.s.PGSQL.5432"
            refusing = await asyncio.start_unix_server(refuse, path)
            began = time.monotonic()
            took: list[float] = []

            async def produce() -> None:
                while time.monotonic() - began < 5:
                    sent = time.monotonic()
                    items = [{"queue": queue, "payload": "lost"}]
                    assert (await client.post("/api/v1/push", {"items": items})).status == 503
                    took.append(time.monotonic() - sent)
                    await asyncio.sleep(0.01)

            await asyncio.gather(*(produce() for _ in range(8)))
            assert statistics.median(took) < 0.5, statistics.median(took)
            assert max(took) < 4, max(took)
            # Of each worker: a handful in the first second, then one or two a second.
            assert 4 <= attempts <= 40, attempts
            refusing.close()
            await proxy.start()
            await eventually(lambda: is_ready(cluster.url), deadline=4)
            await client.push(queue, ["after"])
            pop = await client.pop(queue)
            assert [message["data"] for message in pop.messages] == ["before", "after"]
        assert await asyncio.to_thread(cluster.stop) == 0, cluster.output[-3000:]
