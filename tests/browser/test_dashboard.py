"""The dashboard in a real browser, against a running server with two workers.

Each test ends with a look at what nobody sees: no error in the console, no request to another host.
"""

import json
import re
import time
from pathlib import Path
from urllib.parse import urlencode

import jwt
import psycopg
import pytest
from playwright.async_api import Locator, Page, Route, expect
from yarl import URL

from tests.browser import demo
from tests.browser.browser import needs_chromium, open_page
from tests.client import Client, eventually, unique
from tests.cluster_process import ClusterProcess

pytestmark = needs_chromium

SECRET = "a secret that only the server and this test know"

PAGES = {
    "#/": "Overview",
    "#/queues": "Queues",
    "#/groups": "Groups",
    "#/messages": "Messages",
    "#/dead-letters": "Dead letters",
    "#/system": "System",
}


def row(page: Page, text: str) -> Locator:
    return page.get_by_role("row").filter(has_text=text)


def stat(page: Page, label: str) -> Locator:
    """The figure under a label."""
    labelled = page.locator(".stat").filter(has=page.get_by_text(label, exact=True))
    return labelled.locator(".figure")


def option(page: Page, label: str) -> Locator:
    """What a list of facts says under a name."""
    return page.locator("dt").get_by_text(label, exact=True).locator("xpath=following::dd[1]")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


async def test_every_page_shows_its_figures_under_load(
    server: ClusterProcess, client: Client
) -> None:
    await demo.fill(client, orders=200)
    async with demo.load(client), open_page(server.url) as (page, _):
        for address, title in PAGES.items():
            await page.goto(f"/{address}")
            await expect(page.get_by_role("heading", level=1)).to_have_text(title)
            await expect(page).to_have_title(f"{title} · Queue server")
            await expect(page.locator(".skeleton")).to_have_count(0)
            await expect(page.locator(".notice.bad")).to_have_count(0)
        await page.goto("/#/")
        # The chart and the rates move.
        await expect(stat(page, "In")).to_have_text(re.compile(r"^[1-9]"))
        await expect(stat(page, "Out")).to_have_text(re.compile(r"^[1-9]"))
        await expect(row(page, "serving")).to_have_count(2)
        await expect(row(page, "serving").first).to_have_text(re.compile(r"MiB"))
        await page.goto("/#/queues?search=orders")
        await expect(row(page, "orders").locator("td").nth(2)).to_have_text(re.compile(r"^[1-9]"))
        for tab in ("Partitions", "Groups", "Live tail", "Options"):
            await page.goto("/#/queues/orders")
            await page.get_by_role("tab", name=tab).click()
            await expect(page.locator(".skeleton")).to_have_count(0)


async def test_the_overview_is_that_of_all_servers(conninfo: str) -> None:
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "STATS_INTERVAL_MS": "200"}
    with ClusterProcess(env=env) as one, ClusterProcess(env=env) as two:
        url, other = one.wait_ready(), two.wait_ready()
        async with Client(other) as there, open_page(url) as (page, _):
            await there.push("orders", [1, 2, 3, 4, 5])
            popped = await there.pop("orders")
            await there.ack_batch([(message, "failed") for message in popped.messages])
            await page.goto("/")
            await expect(row(page, "serving")).to_have_count(4)
            elsewhere = row(page, f":{URL(other).port}")
            await expect(elsewhere).to_have_count(2)
            await expect(elsewhere.first).to_contain_text("MiB")
            await expect(elsewhere.first).to_contain_text("as of")
            verdict = page.locator(".verdict")
            await expect(verdict).to_contain_text(
                "orders: 100 % of its messages failed in the last five minutes: 5 of 5"
            )
            two.kill_at_once()
            lost = "no sign of life of its 2 workers"
            await expect(verdict).to_contain_text(lost, timeout=40_000)
            await expect(elsewhere.filter(has_text="silent for")).to_have_count(2)
            with ClusterProcess(["--port", str(URL(other).port)], env=env) as again:
                again.wait_ready()
                await expect(row(page, "serving")).to_have_count(4)
                await expect(verdict).not_to_contain_text("no sign of life")
                assert again.stop() == 0
            # In good order, so nobody misses it.
            await expect(elsewhere).to_have_count(0)
            await expect(verdict).not_to_contain_text("no sign of life")
        assert one.stop() == 0


async def test_what_keeps_dead_rows_and_log_is_no_good_health(
    conninfo: str, direct_conninfo: str
) -> None:
    hour_later = False

    async def let_time_pass(route: Route) -> None:
        answer = await route.fetch()
        stats = await answer.json()
        for one in stats["holders"]:
            if hour_later and one["openSeconds"] is not None:
                one["openSeconds"] += 3600
        await route.fulfill(response=answer, json=stats)

    with (
        ClusterProcess(env={"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8"}) as cluster,
        psycopg.connect(direct_conninfo, application_name="pg_dump") as holder,
        psycopg.connect(direct_conninfo, autocommit=True) as own,
    ):
        url = cluster.wait_ready()
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        pid = holder.info.backend_pid
        slot = unique("slot").replace("-", "_")
        async with open_page(url) as (page, _):
            verdict, card = page.locator(".verdict"), page.get_by_label("PostgreSQL", exact=True)
            await page.route("**/postgres-stats", let_time_pass)
            await page.goto("/")
            # Not a word about what a dump may well take.
            await expect(card).to_contain_text(f"pid {pid} (pg_dump), for")
            await expect(verdict).to_contain_text("Healthy")
            hour_later = True
            await page.reload()
            await expect(verdict).to_contain_text(f"SELECT pg_terminate_backend({pid})")
            own.execute("SELECT pg_create_physical_replication_slot(%s, true)", (slot,))
            try:
                await page.reload()
                await expect(card).to_contain_text("1 without a reader")
                await expect(verdict).to_contain_text(f"SELECT pg_drop_replication_slot('{slot}')")
            finally:
                own.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            holder.rollback()
            await page.reload()
            await expect(verdict).to_contain_text("Healthy")
            await expect(card).to_contain_text("none is kept")
            await page.unroute_all(behavior="ignoreErrors")
        assert cluster.stop() == 0


async def test_a_queue_is_made_filled_watched_and_deleted(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("made")
    async with open_page(server.url) as (page, _):
        await page.goto("/#/queues")
        await button(page, "Create queue").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Name", exact=False).first.fill(queue)
        await dialog.get_by_label("Lease time (s)").fill("17")
        await dialog.get_by_label("Time to live (s)").fill("3600")
        await dialog.get_by_role("button", name="Create queue").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(queue)
        options = (await client.get(f"/api/v1/dashboard/queues/{queue}/options")).json
        assert (options["leaseTime"], options["ttl"]) == (17, 3600)
        assert options["retryDelay"] is None  # nobody set it

        await button(page, "Push a message").click()
        await dialog.get_by_label("Transaction id").fill("first")
        await dialog.get_by_label("Payload (JSON)").fill('{"total": ')
        await button(page, "Push").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("not valid JSON")
        await dialog.get_by_label("Payload (JSON)").fill('{"total": 12.5}')
        await button(page, "Push").click()
        await expect(stat(page, "Unread")).to_have_text("1")

        await page.get_by_role("tab", name="Live tail").click()
        await expect(row(page, '{"total":12.5}')).to_have_count(1)
        await client.push(queue, [{"total": 13}], ids=["second"])
        await expect(row(page, '{"total":13}')).to_have_count(1)  # by itself
        # Looking took nothing.
        popped = await client.pop(queue)
        assert sorted(popped.ids) == ["first", "second"]
        await client.complete(popped)
        await expect(stat(page, "Unread")).to_have_text("0")

        await button(page, "Delete queue").click()
        await expect(dialog.locator(".effect")).to_contain_text("2 messages")
        confirm = dialog.get_by_role("button", name="Delete queue")
        await expect(confirm).to_be_disabled()
        await dialog.get_by_role("textbox").fill(queue)
        await confirm.click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Queues")
    assert (await client.get(f"/api/v1/resources/queues/{queue}")).status == 404


async def test_dead_letters_are_looked_at_and_moved_back(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("letters")
    await client.configure(queue, {"retryLimit": 0})
    await client.push(queue, [{"number": number} for number in range(5)])
    for number in range(5):
        popped = await client.pop(queue, batch=1)
        error = "the bank is closed" if number else "the card is void"
        await client.ack(popped.messages[0], "failed", error=error)
    other = unique("letters")
    await client.configure(other, {"retryLimit": 0})
    await client.push(other, [{"number": number} for number in range(3)])
    for error in ("timeout", "card timeout", "timeout"):
        await client.ack((await client.pop(other, batch=1)).messages[0], "failed", error=error)
    async with open_page(server.url) as (page, watch):
        await page.goto(f"/#/dead-letters?queue={queue}")
        reasons = page.get_by_role("table", name="Dead letters by reason")
        await expect(reasons.get_by_role("row")).to_have_count(3)  # with the head
        await expect(reasons.get_by_role("row").nth(1)).to_contain_text("the bank is closed")

        await reasons.get_by_role("button", name="the card is void", exact=True).click()
        letters = page.get_by_role("table", name="Dead letters", exact=True)
        await expect(letters.get_by_role("row")).to_have_count(2)
        await letters.get_by_role("button").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog.locator("pre")).to_contain_text('"number": 0')
        await dialog.get_by_role("button", name="Redrive").click()
        await expect(page.get_by_text("None here")).to_be_visible()
        assert (await client.pop(queue, autoAck="true")).data == [{"number": 0}]

        await page.goto(f"/#/dead-letters?queue={queue}")
        for place in range(2):
            boxes = letters.get_by_role("checkbox", name=re.compile("Select [^a]"))
            await boxes.nth(place).check()
        await button(page, "Redrive 2 selected").click()
        # Somebody is faster with the first of them.
        newest = (await client.get(f"/api/v1/dlq?queue={queue}&limit=1")).json["messages"][0]
        assert (await client.send("POST", f"/api/v1/dlq/{newest['id']}/replay")).status == 200
        watch.refused_ok = True
        await dialog.get_by_role("button", name="Redrive").click()
        await expect(dialog.get_by_role("status")).to_have_text("1 of 2 moved, 1 gone already.")
        await dialog.get_by_role("button", name="Done").click()
        await button(page, "Redrive all").click()
        await dialog.get_by_role("button", name="Redrive").click()
        await expect(dialog.get_by_role("status")).to_have_text("2 of 2 moved.")
        await dialog.get_by_role("button", name="Done").click()
        await expect(page.get_by_text("No dead letters")).to_be_visible()

        # A reason that another one contains takes nothing of it along.
        await page.goto(f"/#/dead-letters?queue={other}")
        await button(page, f"Redrive timeout of {other}").click()
        await expect(dialog.locator("p").first).to_contain_text("2 dead letters")
        await dialog.get_by_role("button", name="Redrive").click()
        await expect(dialog.get_by_role("status")).to_have_text("2 of 2 moved.")
        await dialog.get_by_role("button", name="Done").click()
        await expect(reasons.get_by_role("row")).to_have_count(2)
        await page.get_by_label("Search reasons").fill("timeout")
        await expect(page.get_by_role("heading", name="Reasons with “timeout”")).to_be_visible()
        await reasons.get_by_role("button", name="card timeout", exact=True).click()
        await expect(page.get_by_role("heading", name="“card timeout”")).to_be_visible()
        await expect(letters.get_by_role("row")).to_have_count(2)
        await button(page, "Any reason").click()
        await expect(page.get_by_label("Search reasons")).to_have_value("")

        await button(page, "Purge all").click()
        await expect(dialog.locator("p").first).to_contain_text("1 dead letter")
        confirm = dialog.get_by_role("button", name="Delete them")
        await expect(confirm).to_be_disabled()
        await dialog.get_by_role("textbox").fill(other)
        await confirm.click()
        await expect(dialog.get_by_role("status")).to_have_text("1 of 1 deleted.")
        await dialog.get_by_role("button", name="Done").click()
        await expect(page.get_by_text("No dead letters")).to_be_visible()
    assert len((await client.pop(queue)).messages) == 4
    assert [one["number"] for one in (await client.pop(other, autoAck="true")).data] == [0, 2]


async def test_dead_letters_are_purged_by_reason_and_all(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("purged")
    await client.configure(queue, {"retryLimit": 0})
    await client.push(queue, list(range(6)))
    for number in range(5):
        popped = await client.pop(queue, batch=1)
        error = "the bank is closed" if number else "the card is void"
        await client.ack(popped.messages[0], "failed", error=error)

    async def left() -> int:
        return int((await client.get(f"/api/v1/dlq?queue={queue}")).json["total"])

    async with open_page(server.url) as (page, _):
        await page.goto("/#/dead-letters")
        await expect(button(page, "Purge all")).to_be_disabled()  # of all queues is too much
        await page.goto(f"/#/dead-letters?queue={queue}")
        reasons = page.get_by_role("table", name="Dead letters by reason")
        await reasons.get_by_role("button", name="the card is void", exact=True).click()
        for count, remaining in ((1, 4), (4, 0)):
            await button(page, "Purge all").click()
            dialog = page.get_by_role("dialog")
            await expect(dialog).to_contain_text(f"{count} dead letter")
            confirm = dialog.get_by_role("button", name="Delete them")
            await dialog.get_by_role("textbox").fill(f"{queue}?")
            await expect(confirm).to_be_disabled()
            await dialog.get_by_role("textbox").fill(queue)
            await confirm.click()
            await expect(dialog.get_by_role("status")).to_have_text(f"{count} of {count} deleted.")
            await dialog.get_by_role("button", name="Done").click()
            assert await left() == remaining
            await page.goto(f"/#/dead-letters?queue={queue}")
        await expect(page.get_by_text("No dead letters")).to_be_visible()
    # What nobody gave up is still there.
    assert (await client.pop(queue)).data == [5]


async def is_told(page: Page, script: str, wanted: str) -> bool:
    return bool(await page.evaluate(script) == wanted)


async def test_a_partition_with_the_name_of_a_folder_is_not_the_whole_queue(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("folder")
    for partition in ("..", "other"):
        await client.push(queue, [1], partition=partition)
        await client.pop(queue, group="ledger", partition=partition)
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/groups/ledger/{queue}")
        await expect(stat(page, "Unread")).to_have_text("2")
        await button(page, "Move in partition ..").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("To the end").check()
        await dialog.get_by_role("button", name="Move the group").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("cannot be reached by a browser")
        await page.goto("/#/queues")
        await page.goto(f"/#/groups/ledger/{queue}")
        await expect(stat(page, "Unread")).to_have_text("2")


async def test_a_seek_tells_before_it_is_done_what_it_will_do(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("seek")
    for partition in ("one", "two"):
        await client.push(queue, list(range(10)), partition=partition)
    popped = await client.pop(queue, group="ledger", partition="one", batch=4)
    await client.complete(popped, group="ledger")
    await client.pop(queue, group="ledger", partition="two", batch=10)  # held
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/groups/ledger/{queue}")
        await expect(stat(page, "Unread")).to_have_text("16")
        await button(page, "Move…").first.click()
        dialog = page.get_by_role("dialog")
        effect = dialog.locator(".effect div")
        # Nothing is chosen beforehand, least of all what skips everything.
        await expect(dialog.get_by_role("radio", checked=True)).to_have_count(0)
        await expect(dialog.get_by_role("button", name="Move the group")).to_be_disabled()
        await dialog.get_by_label("To the end").check()
        await expect(effect).to_have_text(
            ["16 skipped", "0 read again", "0 unread afterwards", "1 leases ended"]
        )
        await dialog.get_by_label("To the beginning").check()
        await expect(effect.nth(1)).to_have_text("4 read again")
        await expect(effect.nth(2)).to_have_text("20 unread afterwards")
        await dialog.get_by_role("button", name="Move the group").click()
        await expect(stat(page, "Unread")).to_have_text("20")
        assert len((await client.pop(queue, group="ledger", partition="one")).messages) == 10

        await page.get_by_role("button", name="Move in partition two").click()
        await dialog.get_by_label("To the end").check()
        await expect(effect.first).to_have_text("10 skipped")
        await dialog.get_by_role("button", name="Move the group").click()
        await expect(stat(page, "Unread")).to_have_text("10")

        await button(page, "Delete group").click()
        await dialog.get_by_role("button", name="Delete group").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Groups")
    found = (await client.get(f"/api/v1/dashboard/queues/{queue}/groups")).json
    assert found == {"groups": []}


async def test_a_message_is_found_by_either_id_with_its_trace(
    server: ClusterProcess, client: Client
) -> None:
    queue, id_ = unique("find"), unique("order")
    pushed = (await client.push(queue, [{"text": "<b>bold</b>"}], ids=[id_]))[0]
    await client.post(
        "/api/v1/traces",
        {"transactionId": id_, "partitionId": pushed["partition_id"], "data": {"text": "boxed"}},
    )
    async with open_page(server.url) as (page, watch):
        watch.refused_ok = True  # a message id is no transaction id, which is asked for first
        for id_in_search in (id_, pushed["message_id"]):
            await page.goto("/#/messages")
            await page.get_by_label("Transaction or message id").fill(id_in_search)
            await button(page, "Search").click()
            await page.get_by_role("link", name=id_).click()
            await expect(page.get_by_role("heading", level=1)).to_have_text(id_)
            await expect(page.locator(".payload pre")).to_contain_text("<b>bold</b>")
            await expect(page.locator(".timeline li")).to_contain_text("boxed")
        await button(page, "Give up").click()
        await page.get_by_role("dialog").get_by_role("button", name="Move to dead letters").click()
        await expect(page.get_by_text("dead letter", exact=True)).to_be_visible()
        await button(page, "Retry").click()
        await page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        await expect(page.get_by_text("Moved to the end of its partition")).to_be_visible()


async def test_a_message_is_deleted(server: ClusterProcess, client: Client) -> None:
    queue = unique("delete")
    pushed = await client.push(queue, ["keep", "drop"], ids=["keep", "drop"])
    address = f"/api/v1/messages/{pushed[1]['partition_id']}/drop"
    async with open_page(server.url) as (page, watch):
        watch.refused_ok = True  # the page may ask for it once more
        await page.goto(f"/#/messages/{pushed[1]['partition_id']}/drop")
        await button(page, "Delete").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("groups that have not read it never will")
        await dialog.get_by_role("button", name="Cancel").click()
        assert (await client.get(address)).status == 200
        await button(page, "Delete").click()
        await dialog.get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Messages")
        table = page.get_by_role("table")
        await expect(table.get_by_role("link", name="keep", exact=True)).to_be_visible()
        await expect(table.get_by_role("link", name="drop", exact=True)).to_have_count(0)
    assert (await client.get(address)).status == 404
    assert (await client.pop(queue)).ids == ["keep"]


async def test_a_queue_is_cleared_and_stays(server: ClusterProcess, client: Client) -> None:
    queue = unique("clear")
    await client.configure(queue, {"leaseTime": 17, "retryLimit": 0})
    await client.push(queue, [1, 2, 3, 4])
    await client.ack((await client.pop(queue, group="ledger", batch=1)).messages[0],
                     "failed", group="ledger")  # fmt: skip
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/queues/{queue}")
        await expect(stat(page, "Unread")).to_have_text("3")
        await button(page, "Delete messages").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog.locator(".effect")).to_contain_text("1 groups")
        await expect(dialog.locator(".effect")).to_contain_text("1 dead letters")
        confirm = dialog.get_by_role("button", name="Delete messages")
        await expect(confirm).to_be_disabled()
        await dialog.get_by_role("textbox").fill(queue)
        await confirm.click()
        await expect(page.get_by_text(re.compile(r"^Deleted \d messages$"))).to_be_visible()
        await expect(stat(page, "Unread")).to_have_text("0")
        await expect(stat(page, "Dead letters")).to_have_text("1")
        await page.get_by_role("tab", name="Groups").click()
        await expect(row(page, "ledger")).to_be_visible()
        await page.get_by_role("tab", name="Options").click()
        await expect(option(page, "Lease time")).to_have_text("17 s")
    assert (await client.pop(queue, group="ledger")).status == 204
    await client.push(queue, [5])
    assert (await client.pop(queue, group="ledger")).data == [5]


async def test_configuring_a_queue_changes_what_was_changed_alone(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("configure")
    await client.configure(queue, {"leaseTime": 17, "ttl": 3600}, namespace="shop")
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/queues/{queue}")
        await button(page, "Configure").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_label("Name", exact=False).first).to_be_disabled()
        await expect(dialog.get_by_label("Lease time (s)")).to_have_value("17")
        await dialog.get_by_label("Retries", exact=False).fill("-1")
        await button(page, "Save").click()
        await expect(dialog).to_be_visible()  # the browser refuses it
        await dialog.get_by_label("Retries", exact=False).fill("9")
        await dialog.get_by_label("Time to live (s)").fill("")
        # Somebody else does so too.
        await client.configure(queue, {"leaseTime": 23}, namespace="shop")
        await button(page, "Save").click()
        await expect(page.get_by_text(f"Changed {queue}")).to_be_visible()
        await expect(dialog).to_have_count(0)
        await page.get_by_role("tab", name="Options").click()
        for label, value in (("Retries", "9"), ("Lease time", "23 s"), ("Time to live", "not set")):
            await expect(option(page, label)).to_have_text(value)
    options = (await client.get(f"/api/v1/dashboard/queues/{queue}/options")).json
    assert (options["retryLimit"], options["leaseTime"], options["ttl"]) == (9, 23, None)
    assert options["namespace"] == "shop"


async def test_what_happened_is_drawn_over_time(conninfo: str, direct_conninfo: str) -> None:
    """Charts of a queue, of all of them, and of what retention deleted."""
    env = {
        "DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "STATS_INTERVAL_MS": "200",
        "RETENTION_INTERVAL": "500",
    }  # fmt: skip
    with ClusterProcess(env=env) as cluster, psycopg.connect(direct_conninfo) as database:
        url = cluster.wait_ready()
        async with Client(url) as client, open_page(url) as (page, _):
            await page.goto("/#/system")
            await expect(page.get_by_text("Nothing was deleted")).to_be_visible()
            await client.configure("orders", {"retentionEnabled": True, "retentionSeconds": 1})
            await client.configure("kept")
            await page.goto("/#/queues/kept?tab=history")
            await expect(page.get_by_text("No history yet")).to_be_visible()
            await client.push("orders", list(range(30)))
            await client.push("kept", [1, 2, 3])

            async def is_booked() -> bool:
                # The two may fall into different minutes.
                found = database.execute(
                    "SELECT sum(push_messages) = 3 AND count(depth) > 0"
                    " FROM queen.queue_minutes WHERE queue = 'kept'"
                ).fetchone()
                database.rollback()
                return found == (True,)

            await eventually(is_booked, deadline=30)
            # The same happened before, and hours ago: the minute that goes on is not drawn.
            for table in ("queue_minutes", "worker_minutes"):
                database.execute(
                    f"INSERT INTO queen.{table} SELECT (jsonb_populate_record(m,"
                    f" jsonb_build_object('minute', m.minute - make_interval(mins => n)))).*"
                    f" FROM queen.{table} m, unnest(ARRAY[7, 8, 180, 240]) n"
                )
            database.commit()
            await page.reload()
            for label, shown in (
                ("Throughput", r"In \d"),
                ("Unread", "Unread 3"),
                ("Oldest unread", r"Oldest unread \d.* m?s"),
            ):
                chart = page.get_by_role("group", name=label, exact=True)
                await expect(chart.locator("canvas")).to_be_visible()
                await expect(chart).to_contain_text(re.compile(shown))
            await page.get_by_label("Range").select_option("Last day")
            await expect(page.get_by_role("group", name="Unread", exact=True)).to_contain_text("3")
            await page.goto("/#/")
            await page.get_by_label("Range").select_option("Last hour")
            await expect(
                page.get_by_role("group", name="Throughput", exact=True).locator("canvas")
            ).to_be_visible()
            await page.goto("/#/system")
            deleted = page.get_by_role("group", name="Messages deleted by retention")
            await expect(deleted.locator("canvas")).to_be_visible(timeout=40_000)
            await expect(deleted).to_contain_text("By age")
            totals = (await client.get("/api/v1/analytics/retention")).json["totals"]
            assert totals["retentionMsgs"] == 30
        assert cluster.stop() == 0


async def test_markup_in_names_and_payloads_stays_text(
    server: ClusterProcess, client: Client
) -> None:
    evil = f'<img src=x onerror="document.title=1">{unique("evil")}'
    await client.configure(evil, {"retryLimit": 0})
    await client.push(evil, [{evil: evil}], partition=evil, ids=[evil])
    popped = await client.pop(evil, group=evil)
    await client.ack(popped.messages[0], "failed", group=evil, error=evil)
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/queues?{urlencode({'search': evil})}")
        await page.get_by_role("link", name=evil).click()
        for tab in ("Partitions", "Groups", "Live tail"):
            await page.get_by_role("tab", name=tab).click()
            await expect(page.get_by_role("table").get_by_text(evil).first).to_be_visible()
        table = page.get_by_role("table")
        await table.get_by_role("link", name=evil, exact=True).first.click()
        await expect(page.locator(".payload pre")).to_contain_text("onerror")
        await page.goto(f"/#/dead-letters?{urlencode({'queue': evil})}")
        await page.get_by_role("button", name=evil, exact=True).first.click()
        await expect(page.get_by_role("table", name="Dead letters", exact=True)).to_be_visible()
        assert await page.locator("img[src=x]").count() == 0


async def test_the_keyboard_reaches_everything(server: ClusterProcess, client: Client) -> None:
    queue = unique("keys")
    await client.push(queue, [1])
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/queues?search={queue}")
        await expect(row(page, queue)).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await page.keyboard.press("Tab")
        create = button(page, "Create queue")
        await expect(create).to_be_focused()
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_be_visible()
        for _ in range(40):  # more than it has fields
            await page.keyboard.press("Tab")
            inside = await page.evaluate(
                "document.activeElement === document.body"
                " || Boolean(document.activeElement.closest('dialog'))"
            )
            assert inside
        await page.keyboard.press("Escape")
        await expect(dialog).to_have_count(0)
        await expect(create).to_be_focused()
        # To the queue, and by arrow keys through its tabs.
        await page.get_by_role("link", name=queue).focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_be_focused()
        await page.get_by_role("tab", name="Partitions").focus()
        await page.keyboard.press("ArrowRight")
        tab, panel = page.get_by_role("tab", name="Groups"), page.get_by_role("tabpanel")
        await expect(tab).to_be_focused()
        await expect(panel).to_have_accessible_name("Groups")
        assert await tab.get_attribute("aria-controls") == await panel.get_attribute("id")
        await expect(page.get_by_text("Nobody reads this queue")).to_be_visible()


async def test_the_theme_follows_the_system_until_one_is_chosen(server: ClusterProcess) -> None:
    async with open_page(server.url, color_scheme="dark") as (page, _):
        await page.goto("/")
        background = "getComputedStyle(document.body).backgroundColor"
        dark = await page.evaluate(background)
        await page.get_by_role("button", name="Switch to the light theme").click()
        assert await page.evaluate(background) != dark
        await page.reload()
        await expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert await page.evaluate(background) != dark


async def test_a_phone_needs_no_sideways_scrolling(server: ClusterProcess, client: Client) -> None:
    queue = unique("phone")
    await client.push(queue, [1])
    async with open_page(server.url, viewport={"width": 390, "height": 844}) as (page, _):
        for address in (*PAGES, f"#/queues/{queue}", f"#/queues/{queue}?tab=tail"):
            await page.goto(f"/{address}")
            await expect(page.get_by_role("heading", level=1)).to_be_visible()
            await expect(page.locator(".skeleton")).to_have_count(0)
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, address


async def test_it_says_so_when_there_is_no_such_queue(server: ClusterProcess) -> None:
    async with open_page(server.url) as (page, watch):
        watch.refused_ok = True
        await page.goto("/#/queues/nobody-made-this")
        await expect(page.get_by_role("alert")).to_contain_text("There is no queue")
        await page.goto("/#/nowhere")
        await expect(page.get_by_text("This address leads nowhere")).to_be_visible()


async def test_an_address_that_cannot_be_read_leads_back(server: ClusterProcess) -> None:
    async with open_page(server.url) as (page, _):
        await page.goto("/#/queues/100%")
        await expect(page.get_by_text("This address leads nowhere")).to_be_visible()
        await page.get_by_role("link", name="Go to the overview").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


async def test_a_page_that_fails_leaves_the_frame_and_a_way_back(server: ClusterProcess) -> None:
    async def nonsense(route: Route) -> None:
        await route.fulfill(json={"files": "nonsense"})

    async with open_page(server.url) as (page, watch):
        await page.route("**/api/v1/system/migrations", nonsense)
        await page.goto("/#/system")
        await expect(page.get_by_role("heading", level=1)).to_have_text("This page failed")
        assert watch.troubles, "it is told to the console as well"
        watch.troubles.clear()
        await page.unroute_all(behavior="ignoreErrors")
        await button(page, "Try again").click()
        await expect(page.get_by_role("table", name="Files of the schema")).to_be_visible()
        await page.route("**/api/v1/system/migrations", nonsense)
        await page.reload()
        await page.get_by_role("link", name="Go to the overview").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        await page.unroute_all(behavior="ignoreErrors")
        watch.troubles.clear()


async def test_who_listens_hears_the_verdict_when_it_changes(data_dir: Path) -> None:
    counter = """
        window.heard = [];
        const status = document.querySelector('main [role=status]');
        new MutationObserver(() => window.heard.push(status.textContent))
            .observe(status, {subtree: true, childList: true, characterData: true});
    """
    silent_s = 0.0

    async def age_workers(route: Route) -> None:
        nonlocal silent_s
        answer = await route.fetch()
        found = await answer.json()
        if silent_s:
            silent_s += 5
            found["workers"][1]["silentSeconds"] = silent_s
        await route.fulfill(response=answer, json=found)

    with ClusterProcess(data_dir=data_dir) as cluster:
        async with open_page(cluster.wait_ready()) as (page, _):
            await page.route("**/dashboard/workers", age_workers)
            await page.goto("/")
            await expect(page.locator("main [role=status]").first).to_have_text("All is well")
            await page.evaluate(counter)
            silent_s = 60.0
            verdict = page.locator(".verdict")
            await expect(verdict).to_contain_text("no sign of life for 1 min 5 s")
            await expect(verdict).to_contain_text("no sign of life for 1 min 15 s")
            heard = await page.evaluate("window.heard")
            assert heard == ["Worker 1: no sign of life for 1 min 5 s"]
            await page.unroute_all(behavior="ignoreErrors")
        assert cluster.stop() == 0


async def test_numbers_are_shown_as_they_were_pushed(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("numbers")
    payload = '{"id": 12345678901234567890, "share": 0.12345678901234567890, "small": -1.5e-7}'
    body = f'{{"items": [{{"queue": "{queue}", "transactionId": "n", "payload": {payload}}}]}}'
    answer = await client.send(
        "POST", "/api/v1/push", body=body.encode(), headers={"Content-Type": "application/json"}
    )
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/messages/{answer.json[0]['partition_id']}/n")
        for number in ("12345678901234567890", "0.12345678901234567890", "-1.5e-7"):
            await expect(page.locator(".payload code")).to_contain_text(number)


async def test_long_payloads_are_cut_until_all_is_asked_for(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("long")
    pushed = (await client.push(queue, [{"text": "x" * 50_000}], ids=["long"]))[0]
    async with open_page(server.url) as (page, _):
        await page.goto(f"/#/messages/{pushed['partition_id']}/long")
        code = page.locator(".payload code")
        await expect(code).to_be_visible()
        assert len(await code.inner_text()) == 20_000
        await button(page, "Show all").click()
        assert json.loads(await code.inner_text()) == {"text": "x" * 50_000}


def token(role: str) -> str:
    now = int(time.time())
    return jwt.encode({"sub": f"a {role}", "role": role, "iat": now, "exp": now + 600}, SECRET)


async def log_in(page: Page, credential: str) -> None:
    await page.get_by_label("Token or API key").fill(credential)
    await button(page, "Log in").click()


async def test_who_may_only_read_sees_what_others_may_do(data_dir: Path) -> None:
    env = {"JWT_ENABLED": "true", "JWT_SECRET": SECRET}
    with ClusterProcess(env=env, data_dir=data_dir) as cluster:
        url = cluster.wait_ready()
        async with Client(url, token=token("admin")) as client:
            await client.push("orders", [1])
        async with open_page(url) as (page, watch):
            watch.refused_ok = True
            await page.goto("/#/queues/orders")
            await log_in(page, "no token at all")
            await expect(page.get_by_role("alert")).to_contain_text("Not accepted")
            await log_in(page, token("write-only"))
            await expect(page.get_by_role("alert")).to_contain_text("Ask whoever manages the keys")
            await button(page, "Log in with another credential").click()
            await log_in(page, token("read-only"))
            # Where it was going.
            await expect(page.get_by_role("heading", level=1)).to_have_text("orders")
            await expect(page.get_by_text("a read-only")).to_be_visible()
            for name in ("Push a message", "Configure", "Delete messages", "Delete queue"):
                await expect(button(page, name)).to_be_disabled()
            title = await button(page, "Delete queue").get_attribute("title")
            assert title == "This needs the role admin"
            await page.goto("/#/system")
            refused = page.get_by_label("Settings", exact=True).get_by_role("alert")
            await expect(refused).to_contain_text("Not allowed")
            await expect(page.get_by_role("heading", name="Tables")).to_be_visible()
            await page.reload()  # the tab keeps the credential
            await expect(page.get_by_text("a read-only")).to_be_visible()

            # Who logged out hears no more.
            sign = "import('/dashboard/lib/live.js').then((live) => live.connection.value)"
            await eventually(lambda: is_told(page, sign, "live"))
            await button(page, "Log out").click()
            await eventually(lambda: is_told(page, sign, "polling"))
            await log_in(page, token("admin"))
            await expect(page.get_by_role("table", name="Settings")).to_be_visible()
            assert SECRET not in await page.locator("body").inner_text()
            await page.goto("/#/queues/orders")
            await expect(button(page, "Delete queue")).to_be_enabled()
            stored = await page.evaluate("JSON.stringify(localStorage)")
            assert "eyJ" not in stored
        assert cluster.stop() == 0


async def test_a_server_that_is_gone_is_told_and_comes_back(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        url = cluster.wait_ready()
        async with open_page(url) as (page, watch):
            watch.unreachable_ok = True
            await page.goto("/")
            await expect(page.get_by_text("Healthy")).to_be_visible()
            assert cluster.stop() == 0
            await expect(page.get_by_text("Offline")).to_be_visible()
            banner = page.locator(".no-answer")
            await expect(banner).to_contain_text(
                re.compile(r"No answer from this server since \d+:\d\d:\d\d")
            )
            await expect(page.locator(".verdict")).not_to_contain_text("PostgreSQL")
            dimmed = "(page) => Number(getComputedStyle(page).opacity) < 0.6"
            assert await page.locator("main .stats").evaluate(dimmed)
            with ClusterProcess(["--port", url.rsplit(":", 1)[1]], data_dir=data_dir) as successor:
                successor.wait_ready()
                await expect(page.get_by_text("Healthy")).to_be_visible()
                await expect(page.get_by_text("Offline")).to_have_count(0)
                await expect(banner).to_have_count(0)
                assert successor.stop() == 0


async def test_figures_come_over_the_websocket_and_by_polling_without_it(
    server: ClusterProcess, client: Client
) -> None:
    queue = unique("live")
    await client.configure(queue)
    for with_socket, word in ((True, "Live"), (False, "Polling")):
        async with open_page(server.url) as (page, watch):
            if not with_socket:
                await page.route_web_socket("**/ws/dashboard", lambda socket: socket.close())
            await page.goto(f"/#/queues/{queue}?tab=tail")
            await expect(page.get_by_text(word, exact=True)).to_be_visible()
            await client.push(queue, [word])
            await expect(row(page, f'"{word}"')).to_have_count(1)
            assert not watch.troubles


async def test_maintenance_is_switched_and_told(data_dir: Path) -> None:
    with ClusterProcess(data_dir=data_dir) as cluster:
        url = cluster.wait_ready()
        async with Client(url, fresh=True) as client, open_page(url) as (page, _):
            await page.goto("/#/system")
            await button(page, "Hold pushes back").click()
            dialog = page.get_by_role("dialog")
            await expect(dialog).to_contain_text("kept aside")
            await dialog.get_by_role("button", name="Hold pushes back").click()
            await expect(page.get_by_text("held back", exact=True)).to_be_visible()
            pushed = await push_until_held(url)
            held = pushed.count("buffered")
            await expect(page.get_by_text(f"{held} messages", exact=True)).to_be_visible()
            await page.goto("/#/")
            await expect(page.get_by_role("status").first).to_contain_text("pushes are held back")
            await page.goto("/#/system")
            await button(page, "Store pushes again").click()
            await dialog.get_by_role("button", name="Store pushes again").click()
            await expect(page.get_by_text("stored at once")).to_be_visible()
            await eventually(lambda: stored(client, "orders", len(pushed)))
        assert cluster.stop() == 0


async def push_until_held(url: str) -> list[str]:
    """Push until both workers have heard that pushes are held back; what became of each."""
    statuses: list[str] = []
    while statuses[-8:] != ["buffered"] * 8:
        async with Client(url) as client:  # each connection goes to the worker with fewer
            (result,) = await client.push("orders", [1])
            statuses.append(result["status"])
    return statuses


async def stored(client: Client, queue: str, count: int) -> bool:
    answer = await client.get(f"/api/v1/dashboard/queues?queue={queue}")
    return [found["total"] for found in answer.json["queues"]] == [count]


@pytest.mark.parametrize("width", [1280, 390])
async def test_dialogs_fit_the_window(server: ClusterProcess, width: int) -> None:
    async with open_page(server.url, viewport={"width": width, "height": 700}) as (page, _):
        await page.goto("/#/queues")
        await button(page, "Create queue").click()
        box = await page.get_by_role("dialog").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] <= 700
        await expect(button(page, "Cancel")).to_be_in_viewport()
