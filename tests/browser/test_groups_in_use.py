"""Of many groups the one that is behind is named, by all that tell figures, and a ghost is not."""

import asyncio
import datetime
import json
import os
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

QUEUE, DELAYED = "orders", "reminders"
BUSY = ("audit", "billing", "search", "shipping")
STOPPED, GHOST = "mailing", "__QUEUE_MODE__"
MESSAGES, READ_BY_STOPPED, FAILED = 100, 70, 2
BEHIND = MESSAGES - READ_BY_STOPPED


async def work(url: str) -> None:
    """Four groups read everything, one with failures; one stopped; one popped by mistake."""
    async with Client(url, fresh=True) as client:
        await client.configure(QUEUE, {"retryLimit": 3, "maxSize": 1000})
        await client.configure(DELAYED, {"delayedProcessing": 3600})
        await client.push(DELAYED, [1])
        await client.push(QUEUE, list(range(MESSAGES)))
        for group in BUSY:
            popped = await client.pop(QUEUE, batch=MESSAGES, group=group)
            await client.complete(popped, group=group)
        popped = await client.pop(QUEUE, batch=READ_BY_STOPPED, group=STOPPED)
        await client.complete(popped, group=STOPPED)
        assert len((await client.pop(QUEUE, batch=1)).messages) == 1
        for _ in range(FAILED):
            await client.push(QUEUE, ["fails first"], partition="retried")
            for group in (*BUSY, STOPPED):
                popped = await client.pop(QUEUE, partition="retried", group=group)
                if group == "billing":
                    assert (await client.ack(popped.messages[0], "failed", group=group))["success"]
                    popped = await client.pop(QUEUE, partition="retried", group=group)
                await client.complete(popped, group=group)


def pass_time(conninfo: str, queue: str, group: str, minutes: int) -> None:
    """Have the last sign of life of a group be so long ago."""
    with psycopg.connect(conninfo) as connection:
        subscription = connection.execute(
            "SELECT u.id FROM queen.subscriptions u JOIN queen.queues q ON q.id = u.queue_id"
            " WHERE q.name = %s AND u.consumer_group = %s",
            (queue, group),
        ).fetchone()
        assert subscription is not None
        values = {"minutes": minutes, "id": subscription[0]}
        for statement in (
            "UPDATE queen.subscriptions SET created_at = now() - make_interval(mins => %(minutes)s)"
            " WHERE id = %(id)s",
            "UPDATE queen.group_activity SET"
            " popped_at = now() - make_interval(mins => %(minutes)s),"
            " acked_at = CASE WHEN acked_at IS NOT NULL"
            " THEN now() - make_interval(mins => %(minutes)s) END"
            " WHERE subscription_id = %(id)s",
            "UPDATE queen.cursors SET consumed_at = now() - make_interval(mins => %(minutes)s),"
            " lease_expires_at = lease_expires_at - make_interval(mins => %(minutes)s)"
            " WHERE subscription_id = %(id)s AND consumed_at IS NOT NULL",
        ):
            connection.execute(statement, values)


def all_is_booked(conninfo: str, since: datetime.datetime) -> bool:
    """Whether both workers noted what groups did before *since*: they booked twice after it."""
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM queen.group_activity),"
            " (SELECT count(acked_at) FROM queen.group_activity),"
            " (SELECT count(DISTINCT worker_id) FROM queen.worker_minutes WHERE updated_at > %s)",
            (since + datetime.timedelta(seconds=1),),
        ).fetchone()
        return row == (len(BUSY) + 2, len(BUSY) + 1, 2)


def command(url: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "queue_server", *args, "--url", url],
        cwd=ROOT, capture_output=True, check=True, timeout=60,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1"},
    )  # fmt: skip
    return done.stdout.decode()


async def in_prometheus(client: Client) -> dict[tuple[str, str], float]:
    text = (await client.get("/metrics/prometheus")).raw.decode()
    return {
        (sample.name.removeprefix("queue_server_"), sample.labels.get("group", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("queue") == QUEUE
    }


async def test_the_group_that_is_behind_is_named_and_a_ghost_is_not(conninfo: str) -> None:
    env = {"DATABASE_URL": conninfo, "STATS_INTERVAL_MS": "500"}
    with ClusterProcess(env=env) as cluster:
        url = cluster.wait_ready()
        await work(url)
        since = datetime.datetime.now(datetime.UTC)

        async def is_booked() -> bool:
            return await asyncio.to_thread(all_is_booked, conninfo, since)

        await eventually(is_booked, deadline=30)
        with psycopg.connect(conninfo) as connection:
            connection.execute(
                "UPDATE queen.segments SET created_at = created_at - interval '50 minutes'"
                " WHERE partition_id IN (SELECT p.id FROM queen.partitions p"
                " JOIN queen.queues q ON q.id = p.queue_id WHERE q.name = %s)",
                (QUEUE,),
            )
        pass_time(conninfo, QUEUE, STOPPED, 40)
        pass_time(conninfo, QUEUE, GHOST, 180)

        async with Client(url, fresh=True) as client:
            told = (await client.get(f"/api/v1/dashboard/queues?queue={QUEUE}")).json["queues"][0]
            assert (told["depth"], told["limited"]) == (BEHIND, BEHIND)
            assert (told["readerCount"], told["idleGroups"]) == (len(BUSY) + 1, 1)
            worst, *others = told["readers"]
            assert (worst["name"], worst["lag"], worst["state"]) == (STOPPED, BEHIND, "active")
            assert [(one["name"], one["lag"]) for one in others] == [(name, 0) for name in BUSY]
            listed = (await client.get("/api/v1/consumer-groups")).json
            groups = {one["name"]: one for one in listed if one["queueName"] == QUEUE}
            assert {name for name, one in groups.items() if not one["counted"]} == {GHOST}
            assert groups[GHOST]["activity"] == "never acknowledged"
            assert groups[GHOST]["totalLag"] == MESSAGES + FAILED
            overview = (await client.get("/api/v1/resources/overview")).json
            slowest = overview["slowestGroup"]
            assert (slowest["queue"], slowest["group"], slowest["lag"]) == (QUEUE, STOPPED, BEHIND)

            async def figures_are_new() -> dict[tuple[str, str], float] | None:
                now = await in_prometheus(client)
                return now if now.get(("group_counted", GHOST)) == 0 else None

            now = await eventually(figures_are_new, deadline=30)
            assert now["queue_depth_messages", ""] == BEHIND
            assert 50 * 60 <= now["queue_oldest_message_age_seconds", ""] < 60 * 60
            assert now["group_lag_messages", STOPPED] == BEHIND
            assert now["group_counted", STOPPED] == 1
            assert now["group_lag_messages", GHOST] == MESSAGES + FAILED

        text = await asyncio.to_thread(command, url, "status")
        assert (
            f"the slowest consumer is group '{STOPPED}' of queue '{QUEUE}': {BEHIND} messages"
            in text
        )
        text = await asyncio.to_thread(command, url, "queues", "ls")
        (line,) = [line for line in text.splitlines() if line.startswith(QUEUE)]
        assert re.search(rf" {STOPPED} +{BEHIND} ", line)
        text = await asyncio.to_thread(command, url, "groups", "ls", "-q", QUEUE)
        states: dict[str, Any] = {line.split()[1]: line for line in text.splitlines()[1:]}
        assert "active" in states[STOPPED]
        assert "never acknowledged" in states[GHOST]
        looked = json.loads(await asyncio.to_thread(command, url, "top", "--json", "-n", "1"))
        assert looked["topQueues"][0]["slowestGroup"]["group"] == STOPPED

        async with open_page(url) as (page, _):
            await page.goto("/#/")
            verdict = page.locator(".verdict")
            await expect(verdict).to_contain_text("1 thing needs attention")
            await expect(verdict).to_contain_text(f"{STOPPED} is {BEHIND} messages behind")
            await expect(verdict).to_contain_text("last active 40 min")
            await expect(verdict).to_contain_text(f"{len(BUSY)} other groups keep up")
            table = page.get_by_role("table", name="Groups with the oldest unread messages")
            await expect(table.get_by_role("row").nth(1)).to_contain_text(STOPPED)
            await expect(table).not_to_contain_text("queue mode")
            await expect(page.get_by_text("1 idle group is")).to_be_visible()

            await page.goto("/#/queues")
            line_ = page.get_by_role("row").filter(has_text=QUEUE)
            await expect(line_).to_contain_text(f"{STOPPED} {BEHIND} behind")
            await page.goto(f"/#/queues/{QUEUE}?tab=groups")
            reader = page.locator(".stat").filter(has_text="Slowest group")
            await expect(reader).to_contain_text(STOPPED)
            await expect(reader).to_contain_text("1 idle not counted")
            ghost = page.get_by_role("row").filter(has_text="queue mode")
            await expect(ghost).to_contain_text("never acknowledged")
            await page.goto("/#/groups")
            await page.get_by_label("State").select_option("never acknowledged")
            rows = page.get_by_role("row")
            await expect(rows).to_have_count(2)
            await expect(rows.nth(1)).to_contain_text("queue mode")

            # The verdict offers what ends it; both ask before they do it.
            await page.goto("/#/")
            await page.get_by_role("button", name=f"Delete group {STOPPED} of {QUEUE}").click()
            dialog = page.get_by_role("dialog")
            await expect(dialog).to_contain_text(f"Delete {STOPPED} from {QUEUE}?")
            await dialog.get_by_role("button", name="Cancel").click()
            await page.get_by_role("button", name=f"Move {STOPPED} of {QUEUE} to the end").click()
            await expect(dialog).to_contain_text(f"{BEHIND} skipped")
            await dialog.get_by_role("button", name="Move the group").click()
            await expect(verdict).to_contain_text("Healthy")
        assert cluster.stop() == 0
