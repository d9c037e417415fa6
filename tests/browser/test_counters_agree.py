"""After a known workload the page, Prometheus, the command line and the database say the same."""

import asyncio
import json
import re
import subprocess
import sys
from typing import Any

import psycopg
from playwright.async_api import expect
from prometheus_client.parser import text_string_to_metric_families

from tests.browser.browser import needs_chromium, open_page
from tests.client import Client, eventually
from tests.cluster_process import ROOT, ClusterProcess

pytestmark = needs_chromium

QUEUE = "orders"
GROUP = "ledger"
# By the consumers without a group. What they have neither acknowledged nor in work is pending.
STORED, POPPED, COMPLETED, DEAD, IN_WORK = 300, 100, 80, 10, 10
PENDING = STORED - COMPLETED - DEAD - IN_WORK
# By the group: all of a and b, one message of c.
READ_BY_GROUP = 201
# What the slower of the two has not acknowledged, partition by partition: they in a and b, and the
# group in c. Neither of them alone is so far behind.
DEPTH = 60 + 60 + 99


async def work(url: str) -> None:
    """Three partitions; of one a batch is half way through, of another messages were given up.

    Consumers without a group read them, and beside them a group.
    """
    async with Client(url, fresh=True) as client:  # both workers take part
        await client.configure(QUEUE, {"retryLimit": 0, "leaseTime": 300})
        for partition in ("a", "b", "c"):
            ids = ids_of(partition, 100)
            await client.push(QUEUE, list(range(100)), partition=partition, ids=ids)
        again = await client.push(QUEUE, list(range(5)), partition="a", ids=ids_of("a", 5))
        assert {result["status"] for result in again} == {"duplicate"}
        for partition, batch in (("a", 40), ("b", 50)):
            popped = await client.pop(QUEUE, partition=partition, batch=batch)
            assert len(popped.messages) == batch
            for message in popped.messages[:40]:
                assert (await client.ack(message))["success"]
        for _ in range(DEAD):
            (message,) = (await client.pop(QUEUE, partition="c", batch=1)).messages
            assert (await client.ack(message, "failed"))["dlq"]
        for partition, batch in (("a", 100), ("b", 100), ("c", 1)):
            popped = await client.pop(QUEUE, partition=partition, batch=batch, group=GROUP)
            assert len(popped.messages) == batch
            await client.complete(popped, group=GROUP)


def ids_of(partition: str, count: int) -> list[str]:
    return [f"{partition}{number}" for number in range(count)]


async def in_prometheus(client: Client) -> dict[str, float]:
    text = (await client.get("/metrics/prometheus")).raw.decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    counters = ("pushed", "duplicate", "popped", "acked", "failed", "dead_lettered")
    found = {
        name: sum(s.value for s in samples if s.name == f"queue_server_messages_{name}_total")
        for name in counters
    }
    for group in (GROUP, "__QUEUE_MODE__"):
        found[group] = sum(
            s.value
            for s in samples
            if s.name == "queue_server_group_lag_messages"
            and s.labels == {"queue": QUEUE, "group": group}
        )
    for name in ("messages", "depth_messages", "leased_messages"):
        of_queue = f"queue_server_queue_{name}"
        found[name] = sum(
            s.value for s in samples if s.name == of_queue and s.labels == {"queue": QUEUE}
        )
    return found


def in_the_command_line(url: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "queue_server", "status", "--json", "--url", url],
        cwd=ROOT, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def in_the_database(conninfo: str) -> tuple[int, int, int]:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "SELECT (SELECT sum(next_offset) FROM queen.allocators),"
            " (SELECT count(*) FROM queen.dead_letters),"
            " (SELECT sum(committed_offset) FROM queen.cursors)"
        ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1]), int(row[2])


async def test_all_that_tell_figures_tell_the_same(conninfo: str) -> None:
    with ClusterProcess(env={"DATABASE_URL": conninfo}) as cluster:
        url = cluster.wait_ready()
        await work(url)
        # Committed: what is completed or given up at the head of a partition.
        committed = COMPLETED + DEAD + READ_BY_GROUP
        assert in_the_database(conninfo) == (STORED, DEAD, committed)

        told = await asyncio.to_thread(in_the_command_line, url)
        counters, messages = told["counters"], told["messages"]
        assert counters["messagesPushed"] == STORED
        assert counters["messagesDuplicate"] == 5
        assert counters["messagesPopped"] == POPPED + READ_BY_GROUP
        assert counters["messagesAcked"] == COMPLETED + READ_BY_GROUP
        assert (messages["stored"], messages["deadLetter"]) == (STORED, DEAD)
        assert (messages["completed"], messages["processing"]) == (COMPLETED, IN_WORK)
        assert messages["pending"] == PENDING
        assert messages["depth"] == DEPTH

        async with Client(url, fresh=True) as client:
            prometheus = await in_prometheus(client)
            assert prometheus["pushed"] == STORED
            assert prometheus["duplicate"] == 5
            assert prometheus["popped"] == POPPED + READ_BY_GROUP
            assert prometheus["acked"] == COMPLETED + READ_BY_GROUP
            assert prometheus["dead_lettered"] == DEAD

            async def figures_are_new() -> bool:
                # Those of the database are looked up every five seconds.
                return (await in_prometheus(client))["leased_messages"] == IN_WORK

            await eventually(figures_are_new, deadline=30)
            now = await in_prometheus(client)
            assert (now["messages"], now["depth_messages"]) == (STORED, DEPTH)
            assert (now["__QUEUE_MODE__"], now[GROUP]) == (PENDING + IN_WORK, 99)

            for route in ("resources/overview", "resources/queues"):
                told = (await client.get(f"/api/v1/{route}")).json
                (one,) = told["queues"] if route == "resources/queues" else (told,)
                assert one["depth"] == DEPTH
                assert one["messages"] == {
                    "total": STORED, "pending": PENDING, "processing": IN_WORK,
                    "completed": COMPLETED, "failed": 0, "deadLetter": DEAD,
                }  # fmt: skip
            told = (await client.get("/api/v1/resources/partitions")).json["partitions"]
            assert {one["name"]: one["depth"] for one in told if one["depth"]} == {
                "a": 60, "b": 60, "c": 99,
            }  # fmt: skip

        async with open_page(url) as (page, _):
            await page.goto(f"/#/queues/{QUEUE}")
            stats = page.locator(".stat")

            def figure(label: str) -> Any:
                return stats.filter(has=page.get_by_text(label, exact=True)).locator(".figure")

            await expect(figure("In work")).to_have_text(str(IN_WORK))
            await expect(figure("Dead letters")).to_have_text(str(DEAD))
            await expect(stats.filter(has_text=f"{STORED} stored")).to_have_count(1)
            await expect(figure("Unread")).to_have_text(str(DEPTH))
        assert cluster.stop() == 0


def let_pass(conninfo: str, seconds: int) -> None:
    """Make all that is stored so much older."""
    with psycopg.connect(conninfo) as connection:
        connection.execute(
            "UPDATE queen.segments SET created_at = created_at - make_interval(secs => %s)",
            (seconds,),
        )
        connection.execute(
            "UPDATE queen.allocators SET"
            " last_segment_at = last_segment_at - make_interval(secs => %s)",
            (seconds,),
        )


async def test_what_is_not_due_yet_is_late_nowhere(conninfo: str) -> None:
    queue = "reminders"
    with ClusterProcess(env={"DATABASE_URL": conninfo}) as cluster:
        url = cluster.wait_ready()
        async with Client(url, fresh=True) as client, open_page(url) as (page, _):
            await client.configure(queue, {"delayedProcessing": 7200})
            await client.push(queue, [1, 2, 3])
            assert not (await client.pop(queue, group=GROUP)).messages
            # An hour and a half: without the delay that would be an alarm.
            let_pass(conninfo, 5400)
            await client.push(queue, [4])

            async def in_metrics() -> dict[str, float]:
                text = (await client.get("/metrics/prometheus")).raw.decode()
                return {
                    sample.name.removeprefix("queue_server_"): sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                    if sample.labels.get("queue") == queue
                }

            async def are_new() -> dict[str, float] | None:
                found = await in_metrics()
                is_new = found.get("queue_depth_messages") == 4 and "group_lag_messages" in found
                return found if is_new else None

            found = await eventually(are_new, deadline=30)
            assert found["queue_scheduled_messages"] == 4
            assert found["queue_oldest_message_age_seconds"] == 0
            assert found["group_scheduled_messages"] == found["group_lag_messages"] == 4
            assert found["group_lag_seconds"] == 0
            (group,) = (await client.get("/api/v1/consumer-groups")).json
            assert (group["totalLag"], group["scheduled"], group["maxTimeLag"]) == (4, 4, 0)
            assert group["state"] == "Stable"
            lagging = await client.get("/api/v1/consumer-groups/lagging?minLagSeconds=0")
            assert lagging.json == []
            depth = (await client.get(f"/api/v1/resources/queues/{queue}/depth")).json
            names = ("pending", "processing", "ready", "due", "scheduled")
            assert [depth[name] for name in names] == [4, 0, 4, 0, 4]
            assert [depth["partitions"][0][name] for name in names] == [4, 0, 4, 0, 4]
            (place,) = (await client.get("/api/v1/resources/partitions")).json["partitions"]
            assert (place["scheduled"], place["lagSeconds"]) == (4, 0)
            overview = (await client.get("/api/v1/resources/overview")).json
            assert (overview["scheduled"], overview["lag"]["time"]["max"]) == (4, 0)

            told = await asyncio.to_thread(in_the_command_line, url)
            assert (told["messages"]["depth"], told["messages"]["scheduled"]) == (4, 4)
            assert told["lag"]["seconds"] == 0

            await page.goto("/")
            await expect(page.locator(".stat").filter(has_text="4 scheduled")).to_have_count(1)
            verdict = page.locator(".verdict")
            await expect(verdict).to_contain_text("Healthy")
            await expect(page.get_by_text("All that is due is read")).to_be_visible()
            await page.goto("/#/queues")
            row = page.get_by_role("row")
            await expect(row.filter(has_text=queue)).to_contain_text("4 scheduled")
            await expect(row.filter(has_text=queue)).to_contain_text("due in 29 min")

            await page.goto(f"/#/queues/{queue}?tab=groups")
            await expect(page.get_by_text("next due in 29 min")).to_be_visible()
            await expect(row.filter(has_text=GROUP)).to_contain_text("4 scheduled")

            # An hour later three are due, for half an hour.
            let_pass(conninfo, 3600)
            listed = await asyncio.to_thread(
                lambda: subprocess.run(
                    [sys.executable, "-m", "queue_server", "queues", "ls", "--url", url],
                    cwd=ROOT, capture_output=True, check=True, timeout=60, text=True,
                ).stdout
            )  # fmt: skip
            assert listed.split()[:4] == ["queue", "depth", "scheduled", "oldest"]
            assert re.search(rf"\n{queue} +4 +1 +30 min", listed), listed
            await page.goto("/#/")
            await expect(verdict).to_contain_text(queue)
            await expect(verdict).to_contain_text("the oldest for 30 min")
            (late,) = (await client.get("/api/v1/consumer-groups/lagging?minLagSeconds=0")).json
            assert 1800 <= late["time_lag_seconds"] < 1900
        assert cluster.stop() == 0
