"""What Prometheus is told: exact counts of a known workload, whichever worker answers."""

import asyncio
import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.client import Client, eventually, unique
from tests.cluster_process import ClusterProcess
from tests.fix_proxy import Proxy


class Scrape:
    """One answer of the route, as series."""

    def __init__(self, text: str) -> None:
        self.families = {f.name: f for f in text_string_to_metric_families(text)}
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self._values, f"{sample.name} {sample.labels} is there twice"
                self._values[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self._values[name, frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series with these labels, whatever others they have."""
        wanted = set(labels.items())
        return sum(v for (n, own), v in self._values.items() if n == name and wanted <= own)

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(own)[label] for n, own in self._values if n == name}


async def scrape(client: Client) -> Scrape:
    answer = await client.get("/metrics/prometheus")
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"), answer.headers
    return Scrape(answer.raw.decode())


@pytest.fixture
def cluster(conninfo: str) -> Iterator[ClusterProcess]:
    """A server of its own, so that nobody else is counted; three queues have their own series."""
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "METRICS_QUEUES_MAX": "3"}
    with ClusterProcess(env=env) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]


async def test_counts_are_exact_whichever_worker_did_the_work(cluster: ClusterProcess) -> None:
    queue = unique("counted")
    async with Client(cluster.url, fresh=True) as client:
        for batch in range(20):
            await client.push(queue, list(range(5)), ids=[f"{batch}-{n}" for n in range(5)])
        await client.push(queue, [0], ids=["0-0"])  # a duplicate
        popped = 0
        for _ in range(10):
            pop = await client.pop(queue, batch=8)
            await client.complete(pop)
            popped += len(pop.messages)
        assert popped == 80
        late = await client.pop(queue, batch=20, leaseSeconds=1)
        assert (await client.pop(unique("empty"))).status == 204
        assert (await client.pop(unique("empty"), wait_ms=50)).status == 204
        assert (await client.get("/no/such/route")).status == 404
        assert (await client.post("/api/v1/push", {"items": 7})).status == 400
        # Two workers, one truth.
        told = [await scrape(client) for _ in range(8)]

    for now in told:
        requests = functools.partial(now.total, "queue_server_requests_total")
        assert requests(route="push", status="2xx") == 21
        assert requests(route="push", status="4xx") == 1
        assert requests(route="pop") == requests(route="pop", status="2xx") == 12
        assert requests(route="pop_waiting") == 1
        assert requests(route="ack", status="2xx") == 10
        assert requests(route="unknown", status="4xx") == 1
        assert requests(status="5xx") == requests(status="left") == 0
        for route, count in (("push", 22), ("pop", 12), ("pop_waiting", 1), ("ack", 10)):
            name = "queue_server_request_duration_seconds"
            assert now.value(f"{name}_count", route=route) == count
            assert now.value(f"{name}_bucket", route=route, le="+Inf") == count
        waited = now.value("queue_server_request_duration_seconds_sum", route="pop_waiting")
        assert 0.05 <= waited < 30
        for name, count in (
            ("pushed", 100), ("duplicate", 1), ("popped", 100), ("acked", 80), ("failed", 0),
        ):  # fmt: skip
            assert now.value(f"queue_server_messages_{name}_total") == count, name
        batches = "queue_server_batch_messages"
        assert now.value(f"{batches}_sum", operation="push") == 101
        assert now.value(f"{batches}_bucket", operation="push", le="2") == 1
        assert now.value(f"{batches}_bucket", operation="push", le="5") == 21
        assert now.value(f"{batches}_count", operation="pop") == 11
        assert now.value(f"{batches}_sum", operation="ack") == 80
        # One after another, no two requests shared a transaction. A push that finds a duplicate
        # is one flush all the same, and so is a pop that finds nothing.
        assert now.value("queue_server_flush_requests_count", operation="push") == 21
        assert now.value("queue_server_flush_requests_bucket", operation="push", le="1") == 21
        assert now.value("queue_server_flush_requests_sum", operation="ack") == 10
        assert now.value("queue_server_leases_granted_total") == 11
        assert now.value("queue_server_empty_pops_total") == 2
        assert now.value("queue_server_leases_taken_over_total") == 0
    probes = [now.total("queue_server_requests_total", route="probe") for now in told]
    assert probes == list(range(int(probes[0]), int(probes[0]) + 8))

    # A lease runs out, another consumer takes the partition over, and the first comes too late.
    async with Client(cluster.url, fresh=True) as client:
        again = await client.pop(queue, batch=20, wait_ms=5000)
        assert again.ids == late.ids
        results = await client.ack_batch([(m, "completed") for m in late.messages])
        assert not any(result["success"] for result in results)
        await client.complete(again)
        now = await scrape(client)
    assert now.value("queue_server_leases_taken_over_total") == 1
    assert now.value("queue_server_leases_granted_total") == 12
    assert now.value("queue_server_acks_refused_total") == 20
    assert now.value("queue_server_messages_acked_total") == 100


async def test_requests_that_share_a_transaction(cluster: ClusterProcess) -> None:
    queue = unique("shared")
    async with Client(cluster.url) as client:
        await client.push(queue, [0])
        await asyncio.gather(*(client.push(queue, [n]) for n in range(200)))
        now = await scrape(client)
    flushes = now.value("queue_server_flush_requests_count", operation="push")
    assert now.value("queue_server_flush_requests_sum", operation="push") == 201
    assert flushes < 201
    assert now.value("queue_server_flush_duration_seconds_count", operation="push") == flushes
    assert now.value("queue_server_transactions_total", operation="push") == flushes


async def test_wake_ups_are_counted_by_who_told(cluster: ClusterProcess) -> None:
    async with Client(cluster.url, fresh=True) as client:
        for _ in range(12):
            queue = unique("woken")
            await client.push(queue, [0])
            await client.complete(await client.pop(queue))
            tried = (await scrape(client)).value("queue_server_flush_requests_sum", operation="pop")
            waiting = asyncio.create_task(client.pop(queue, wait_ms=20_000))

            async def parked(tried: float = tried) -> bool:
                # It has found nothing; before that it would find the message itself.
                now = await scrape(client)
                pops = now.value("queue_server_flush_requests_sum", operation="pop")
                return now.total("queue_server_parked_pops") == 1 and pops > tried

            await eventually(parked)
            await client.push(queue, [1])
            await client.complete(await waiting)
        now = await scrape(client)
    woken = {
        source: now.value("queue_server_wake_ups_total", source=source)
        for source in ("own_worker", "other_worker", "floor_poll")
    }
    # The kernel chooses the worker: twelve times the same one would be one chance in 2048.
    assert woken["own_worker"] >= 1
    assert woken["other_worker"] >= 1
    assert sum(woken.values()) >= 12


async def test_queues_beyond_the_limit_are_told_together(
    cluster: ClusterProcess, conninfo: str
) -> None:
    names = [unique(f"q{n}") for n in range(5)]
    async with Client(cluster.url, fresh=True) as client:
        for size, name in enumerate(names, 1):
            await client.push(name, list(range(10 * size)))
            await client.complete(await client.pop(name, batch=size, partition="Default"))
        bad = await client.pop(names[0], batch=1, partition="Default", leaseSeconds=60)
        # That a group has read all does not hide who has not.
        await client.complete(await client.pop(names[0], batch=10, group="g"), group="g")

        async def told() -> Scrape | None:
            now = await scrape(client)
            there = now.labels("queue_server_queue_messages", "queue")
            leased = now.value("queue_server_leases") if there else 0
            return now if len(there) == 4 and leased == 1 else None

        # Figures are cached for some seconds.
        now = await eventually(told, deadline=30)
        assert now is not None
    assert len(bad.messages) == 1
    queues = now.labels("queue_server_queue_messages", "queue")
    assert queues == {*names[:3], "__other__"}
    depth = "queue_server_queue_depth_messages"
    assert [now.value(depth, queue=name) for name in names[:3]] == [9, 18, 27]
    assert now.value(depth, queue="__other__") == 36 + 45
    assert now.value("queue_server_queue_leased_messages", queue=names[0]) == 1
    assert now.value("queue_server_queues") == 5
    assert now.value("queue_server_queue_partitions", queue="__other__") == 2
    age = now.value("queue_server_queue_oldest_message_age_seconds", queue=names[0])
    assert 0 < age < 60
    # The three groups that are furthest behind; the fourth is g, the others' are younger.
    lag = "queue_server_group_lag_messages"
    assert now.labels(lag, "queue") == set(names[:3])
    queue_mode = {"group": "__QUEUE_MODE__"}
    assert [now.value(lag, queue=name, **queue_mode) for name in names[:3]] == [9, 18, 27]
    lag_seconds = now.value("queue_server_group_lag_seconds", queue=names[0], **queue_mode)
    assert age <= lag_seconds < age + 60
    assert now.value("queue_server_database_up") == 1
    assert now.value("queue_server_table_size_bytes", table="segments") > 8192
    assert now.value("queue_server_database_size_bytes") > 1_000_000
    assert now.value("queue_server_figures_age_seconds") < 60

    # A transaction that is left open shows.
    with psycopg.connect(conninfo) as database:
        database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        database.execute("SELECT count(*) FROM queen.queues")
        async with Client(cluster.url, fresh=True) as client:

            async def held() -> bool:
                now = await scrape(client)
                return now.value("queue_server_database_oldest_transaction_seconds") > 1

            await eventually(held, deadline=30)


async def test_each_worker_tells_its_own(cluster: ClusterProcess) -> None:
    pids = cluster.worker_pids()
    async with Client(cluster.url, fresh=True) as client:

        async def sampled() -> Scrape | None:
            now = await scrape(client)
            lag = "queue_server_event_loop_lag_seconds_count"
            return now if all(now.value(lag, worker=w) > 0 for w in ("0", "1")) else None

        now = await eventually(sampled)
        assert now is not None
        metrics = (await client.get("/metrics")).json
    resident = 0.0
    for worker in ("0", "1"):
        assert now.value("queue_server_worker_ready", worker=worker) == 1
        assert now.value("queue_server_pool_connections", worker=worker) >= 2
        assert now.value("queue_server_worker_cpu_seconds_total", worker=worker, mode="user") > 0
        bytes_ = now.value("queue_server_worker_resident_memory_bytes", worker=worker)
        assert (
            10_000_000
            < bytes_
            < now.value("queue_server_worker_virtual_memory_bytes", worker=worker)
        )
        resident += bytes_
    real = sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in pids
    )
    assert len(pids) == 2
    assert resident == pytest.approx(real, rel=0.1)
    # The JSON route speaks of all workers too.
    assert metrics["memory"]["rss"] == pytest.approx(real, rel=0.1)
    assert metrics["database"]["poolSize"] == now.total("queue_server_pool_connections")
    assert metrics["cpu"]["user"] >= 0.9e6 * now.total(
        "queue_server_worker_cpu_seconds_total", mode="user"
    )


async def test_totals_never_fall_when_workers_are_replaced(cluster: ClusterProcess) -> None:
    queue = unique("outlived")
    async with Client(cluster.url, fresh=True) as client:
        for number in range(10):
            await client.push(queue, [number])
        before = await scrape(client)
        lines = len(cluster.lines)
        cluster.signal(signal.SIGHUP)
        await asyncio.to_thread(cluster.wait_for_line, "workers_replaced", start=lines)
        after = await scrape(client)
        assert after.value("queue_server_worker_restarts_total") == 0
        lines = len(cluster.lines)
        os.kill(cluster.worker_pids()[0], signal.SIGKILL)
        await asyncio.to_thread(cluster.wait_for_line, '"worker_ready"', start=lines)
        last = await scrape(client)
    assert last.value("queue_server_worker_restarts_total") == 1
    pushes = "queue_server_request_duration_seconds_count"
    for now in (before, after, last):
        assert now.value("queue_server_messages_pushed_total") == 10
        assert now.value(pushes, route="push") == 10
    for earlier, later in ((before, after), (after, last)):
        for family in earlier.families.values():
            if family.type != "gauge":
                for sample in family.samples:
                    if "pool" not in sample.name:  # the pool of this life
                        assert later.value(sample.name, **sample.labels) >= sample.value, sample


async def test_the_first_broker_s_gauges_of_the_last_minute(
    cluster: ClusterProcess, conninfo: str
) -> None:
    queue = unique("last-minute")
    async with Client(cluster.url, fresh=True) as client:
        await client.configure(queue)
        with psycopg.connect(conninfo, autocommit=True) as database:
            # Whichever minute is the last whole one when the server looks.
            database.execute(
                "INSERT INTO queen.queue_minutes (queue, minute, push_requests, push_messages,"
                " pop_messages, ack_success, ack_failed, lag_ms_sum, lag_ms_max)"
                " SELECT %s, date_trunc('minute', now()) + n * interval '1 minute', 3, 30, 20, 15,"
                " 5, 4000, 900 FROM generate_series(-1, 3) AS n",
                (queue,),
            )

        async def told() -> Scrape | None:
            now = await scrape(client)
            there = queue in now.labels("queen_queue_push_messages_per_minute", "queue")
            name = "queen_queue_push_messages_per_minute"
            return now if there and now.value(name, queue=queue) else None

        now = await eventually(told, deadline=30)
    assert now is not None
    for name, value in (
        ("push_requests", 3), ("push_messages", 30), ("pop_messages", 20), ("pop_empty", 0),
    ):  # fmt: skip
        assert now.value(f"queen_queue_{name}_per_minute", queue=queue) == value
    assert now.value("queen_queue_ack_per_minute", queue=queue, result="failed") == 5
    assert now.value("queen_queue_pop_lag_milliseconds", queue=queue, stat="avg") == 200
    assert now.value("queen_queue_pop_lag_milliseconds", queue=queue, stat="max") == 900
    assert 0 <= now.value("queen_queue_metrics_age_seconds") < 60


async def test_maintenance_is_told(cluster: ClusterProcess) -> None:
    queue = unique("held")
    async with Client(cluster.url, fresh=True) as client:
        answer = await client.post("/api/v1/system/maintenance", {"enabled": True})
        assert answer.status == 200, answer

        async def told_by_both() -> bool:
            told = [await scrape(client) for _ in range(8)]
            name = "queue_server_maintenance"
            return all(
                now.value(name, operation="push") == 1 and now.value(name, operation="pop") == 0
                for now in told
            )

        await eventually(told_by_both)
        (result,) = await client.push(queue, [1])
        assert result["status"] == "buffered"

        async def held() -> bool:
            return (await scrape(client)).value("queue_server_held_messages") == 1

        await eventually(held, deadline=30)
        assert (await scrape(client)).value("queen_maintenance_mode_enabled") == 1


async def test_form_and_names(client: Client) -> None:
    """What Prometheus' own guide asks of names, and what the first broker's dashboards look for."""
    now = await scrape(client)
    for family in now.families.values():
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        if family.name.startswith("queue_server_"):
            for foreign in ("_ms", "_milliseconds", "_us", "_minutes", "_kilobytes", "_percent"):
                assert foreign not in family.name, family.name
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total"), sample.name
    for name in (
        "queen_uptime_seconds", "queen_process_resident_memory_bytes", "queen_db_pool_size",
        "queen_cluster_push_requests", "queen_cluster_pop_messages", "queen_dlq_depth",
    ):  # fmt: skip
        assert name in now.families, name


async def without_database(client: Client) -> None:
    """What is told when the database is lost, within the time that a scrape has."""

    async def down() -> Scrape | None:
        begin = time.monotonic()
        now = await scrape(client)
        assert time.monotonic() - begin < 10
        return now if now.value("queue_server_database_up") == 0 else None

    now = await eventually(down)
    assert now is not None
    assert now.value("queue_server_messages_pushed_total") == 3
    assert now.value("queue_server_workers") == 2
    assert "queue_server_queue_messages" not in now.families
    assert (await client.get("/metrics")).status == 200


async def with_database(client: Client) -> None:
    async def up() -> bool:
        now = await scrape(client)
        return (
            now.value("queue_server_database_up") == 1
            and "queue_server_queue_messages" in now.families
        )

    await eventually(up, deadline=60)


async def test_without_a_database_the_rest_is_told(proxied: str, proxy: Proxy) -> None:
    with ClusterProcess(env={"DATABASE_URL": proxied, "DB_POOL_SIZE": "8"}) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        async with Client(cluster.url, fresh=True) as client:
            await client.push(unique("outage"), [1, 2, 3])
            await with_database(client)
            await proxy.stop()
            await without_database(client)
            await proxy.start()
            await with_database(client)
        # Beside this loop, which serves the proxy.
        assert await asyncio.to_thread(cluster.stop) == 0, cluster.output[-3000:]


@pytest.mark.databases("embedded", reason="it stops the PostgreSQL that the server starts")
async def test_a_database_that_says_nothing_does_not_hold_a_scrape_up(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        await asyncio.to_thread(cluster.wait_ready)
        async with Client(cluster.url, fresh=True) as client:
            await client.push(unique("silence"), [1, 2, 3])
            await with_database(client)
            postmaster = cluster.postgres_pid()
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
            pids = [postmaster, *map(int, children.split())]
            try:
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                await without_database(client)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        assert cluster.stop() == 0, cluster.output[-3000:]
