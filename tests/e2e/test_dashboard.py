"""What the dashboard is served with, and the routes that it asks beyond the protocol.

The pages themselves: tests/browser.
"""

import asyncio
import gzip
import hashlib
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urljoin

import jwt
import pytest
from yarl import URL

from tests.client import Client, eventually, segment, unique
from tests.cluster_process import ROOT, ClusterProcess
from tests.server_directory import server_directory

FOLDER = ROOT / "queue_server" / "dashboard"
FILES = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*")
    if path.suffix in (".js", ".css", ".svg")
)
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


async def test_the_page_is_served_with_a_policy_that_lets_nothing_else_in(
    fresh_client: Client,
) -> None:
    answer = await fresh_client.get("/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    text = answer.raw.decode()
    assert not re.search(r"https?://", text)
    # No script and no style in the page itself.
    assert not re.search(r"<script(?![^>]*src=)", text)
    assert "<style" not in text
    assert "style=" not in text


@pytest.mark.parametrize("name", FILES)
async def test_its_files_are_served_as_what_they_are(fresh_client: Client, name: str) -> None:
    answer = await fresh_client.send(
        "GET", f"/dashboard/{name}", headers={"Accept-Encoding": "identity"}
    )
    assert answer.status == 200
    assert answer.raw == (FOLDER / name).read_bytes()
    assert answer.headers["Content-Type"] == TYPES[(FOLDER / name).suffix]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_file_that_a_browser_has_is_not_sent_again(fresh_client: Client) -> None:
    first = await fresh_client.get("/dashboard/app.js")
    again = await fresh_client.send(
        "GET", "/dashboard/app.js", headers={"If-None-Match": first.headers["ETag"]}
    )
    assert (again.status, again.raw) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert first.headers["Cache-Control"] == "no-cache"
    other = await fresh_client.send(
        "GET", "/dashboard/app.js", headers={"If-None-Match": 'W/"something else"'}
    )
    assert other.status == 200


async def test_files_travel_compressed(fresh_client: Client) -> None:
    answer = await fresh_client.send(
        "HEAD", "/dashboard/vendor/uPlot.iife.min.js", headers={"Accept-Encoding": "gzip"}
    )
    plain = (FOLDER / "vendor" / "uPlot.iife.min.js").read_bytes()
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert int(answer.headers["Content-Length"]) <= len(gzip.compress(plain)) < len(plain) / 2


@pytest.mark.parametrize(
    "path", ["nothing.js", "../pyproject.toml", "..%2f..%2fpyproject.toml", "vendor/LICENSE.htm"]
)
async def test_nothing_else_is_served(fresh_client: Client, path: str) -> None:
    assert (await fresh_client.get(f"/dashboard/{path}")).status == 404


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/"])
async def test_the_folder_leads_to_the_page(fresh_client: Client, path: str) -> None:
    answer = await fresh_client.get(path)
    assert answer.status == 302
    # Relative, for proxies that serve it under a prefix.
    assert urljoin(f"http://host/prefix{path}", answer.headers["Location"]) == "http://host/prefix/"


def test_vendored_code_says_where_it_is_from() -> None:
    notice = (FOLDER / "vendor" / "README.md").read_text()
    for path in (FOLDER / "vendor").iterdir():
        assert path.name in notice or path.name == "README.md"


def test_vendored_code_is_that_of_its_packages() -> None:
    notice = (FOLDER / "vendor" / "README.md").read_text()
    sums = dict(re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \|$", notice, re.MULTILINE))
    code = [path for path in (FOLDER / "vendor").iterdir() if path.suffix in (".js", ".css")]
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in code}


# ── the routes ──────────────────────────────────────────────────────────────────────────────────


async def test_a_queue_in_figures(client: Client, queue: str) -> None:
    await client.configure(queue, {"maxSize": 50}, namespace="shop")
    for partition, count in (("a", 3), ("b", 5)):
        await client.push(queue, list(range(count)), partition=partition)
    popped = await client.pop(queue, partition="a", batch=2)
    await client.complete(popped)
    await client.pop(queue, partition="b", batch=4)  # held
    answer = await client.get(f"/api/v1/dashboard/queues?queue={segment(queue)}")
    assert answer.json["total"] == 1
    row = answer.json["queues"][0]
    assert row["oldestUnreadAt"] <= row["lastPushAt"]
    expected = {
        "name": queue, "namespace": "shop", "maxSize": 50, "partitions": 3, "total": 8, "depth": 6,
        "processing": 4, "deadLetters": 0, "pushed": 8, "consumed": 2, "groups": 0,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


async def test_rates_are_those_of_all_groups_and_come_with_the_first_answer(
    client: Client, queue: str
) -> None:
    await client.push(queue, list(range(8)))
    for group in ("fast", "also"):
        await client.complete(await client.pop(queue, group=group, batch=8), group=group)
    popped = await client.pop(queue, group="failing", batch=8)
    await client.ack_batch(
        [(message, "failed") for message in popped.messages[:2]], group="failing"
    )
    path = f"/api/v1/dashboard/queues?queue={segment(queue)}"

    async def reported() -> bool:
        row = (await client.get(path)).json["queues"][0]
        return (row["ackedRecently"], row["failedRecently"]) == (16, 2)

    await eventually(reported)
    row = (await client.get(path)).json["queues"][0]
    # Per second of a minute; within that minute nothing of it has faded yet, or a part has.
    assert 0 < row["pushedPerSecond"] <= round(8 / 60, 2)
    assert row["ackedPerSecond"] == pytest.approx(2 * row["pushedPerSecond"], abs=0.02)
    history = (await client.get(f"/api/v1/analytics/queue-ops?queue={segment(queue)}")).json
    assert sum(point["ackSuccess"] for point in history["series"]) == row["ackedRecently"]


async def test_the_last_five_minutes_are_there_at_once(client: Client) -> None:
    async def two() -> list[dict[str, float]] | None:
        # One a second; the server may have just started.
        found = (await client.get("/api/v1/dashboard/throughput")).json["samples"]
        return found if len(found) > 1 else None

    samples = await eventually(two)
    assert len(samples) <= 300
    times = [sample["at"] for sample in samples]
    assert times == sorted(times)
    assert set(samples[0]) == {"at", "pushedPerSecond", "poppedPerSecond", "ackedPerSecond"}


async def test_queues_are_searched_by_name_namespace_and_task(client: Client, queue: str) -> None:
    await client.configure(queue, namespace=f"{queue}-Shop", task=f"{queue}-Post")
    await client.configure(f"{queue}-other")
    for search, count in (
        (queue.upper(), 2), (f"{queue}-shop", 1), (f"{queue}-POST", 1), (f"{queue}?", 0),
    ):  # fmt: skip
        answer = (await client.get(f"/api/v1/dashboard/queues?search={segment(search)}")).json
        assert (len(answer["queues"]), answer["total"]) == (count, count), search


async def test_partitions_come_by_the_page(client: Client, queue: str) -> None:
    for number in range(12):
        await client.push(queue, list(range(number)) or [0], partition=f"p-{number:02}")
    path = f"/api/v1/dashboard/queues/{segment(queue)}/partitions"
    page = (await client.get(f"{path}?limit=3")).json
    assert [row["name"] for row in page["partitions"]] == ["p-11", "p-10", "p-09"]
    assert [row["depth"] for row in page["partitions"]] == [11, 10, 9]
    assert page["total"] == 12
    page = (await client.get(f"{path}?limit=3&offset=3")).json
    assert [row["name"] for row in page["partitions"]] == ["p-08", "p-07", "p-06"]
    page = (await client.get(f"{path}?sort=name&limit=2")).json
    assert [row["name"] for row in page["partitions"]] == ["p-00", "p-01"]
    page = (await client.get(f"{path}?search=P-1")).json
    assert [row["name"] for row in page["partitions"]] == ["p-11", "p-10"]
    assert page["total"] == 2
    assert (await client.get("/api/v1/dashboard/queues/none/partitions")).status == 404


async def test_places_of_a_group(client: Client, queue: str) -> None:
    for partition in ("a", "b"):
        await client.push(queue, [1, 2, 3], partition=partition)
    popped = await client.pop(queue, partition="a", group="ledger")
    await client.complete(popped, group="ledger")
    await client.pop(queue, partition="b", group="ledger", batch=1)
    path = f"/api/v1/dashboard/queues/{segment(queue)}/groups"
    row = (await client.get(path)).json["groups"][0]
    assert (row["name"], row["lag"], row["laggingPartitions"]) == ("ledger", 3, 1)
    assert row["leasedPartitions"] == 1
    found = (await client.get(f"{path}/ledger/partitions")).json
    assert [(one["name"], one["lag"]) for one in found["partitions"]] == [("b", 3), ("a", 0)]
    assert found["partitions"][0]["leaseExpiresAt"] is not None
    assert found["total"] == 2


async def test_a_seek_does_what_its_preview_said(client: Client, queue: str) -> None:
    for partition in ("a", "b"):
        await client.push(queue, list(range(4)), partition=partition)
    await client.complete(await client.pop(queue, partition="a", group="g", batch=3), group="g")
    path = f"/api/v1/dashboard/queues/{segment(queue)}/groups/g/seek-preview"
    expected = {"partitions": 2, "skipped": 5, "readAgain": 0, "lagAfter": 0, "leasesEnded": 0}
    assert (await client.get(f"{path}?toEnd=true")).json == expected
    again = {"partitions": 2, "skipped": 0, "readAgain": 3, "lagAfter": 8, "leasesEnded": 0}
    start = "timestamp=1970-01-01T00:00:00Z"
    assert (await client.get(f"{path}?{start}")).json == again
    one = {"partitions": 1, "skipped": 0, "readAgain": 3, "lagAfter": 4, "leasesEnded": 0}
    assert (await client.get(f"{path}?{start}&partition=a")).json == one
    # It only told.
    depth = (await client.get(f"/api/v1/resources/queues/{segment(queue)}/depth?group=g")).json
    assert depth["pending"] == 5
    await client.seek("g", queue, timestamp="1970-01-01T00:00:00Z")
    depth = (await client.get(f"/api/v1/resources/queues/{segment(queue)}/depth?group=g")).json
    assert depth["pending"] == again["lagAfter"]
    assert (await client.get(path)).status == 400
    assert (await client.get(f"{path}?toEnd=true&partition=none")).status == 404


async def test_dead_letters_by_reason(client: Client, queue: str) -> None:
    await client.configure(queue, {"retryLimit": 0})
    await client.push(queue, list(range(3)))
    for error in ("full", "full", "void"):
        popped = await client.pop(queue, batch=1)
        await client.ack(popped.messages[0], "failed", error=error)
    answer = await client.get(f"/api/v1/dashboard/dead-letter-errors?queue={segment(queue)}")
    found = [(row["error"], row["count"], row["groups"]) for row in answer.json["errors"]]
    assert found == [("full", 2, 1), ("void", 1, 1)]


async def test_workers_are_told_apart(fresh_client: Client) -> None:
    answer = (await fresh_client.get("/api/v1/dashboard/workers")).json
    assert answer["everywhere"] is True
    assert [worker["slot"] for worker in answer["workers"]] == [0, 1]
    assert len({worker["pid"] for worker in answer["workers"]}) == 2
    for worker in answer["workers"]:
        assert worker["ready"]
        assert worker["residentBytes"] > 10_000_000


async def test_each_server_tells_of_the_workers_of_all(conninfo: str, queue: str) -> None:
    env = {"DATABASE_URL": conninfo, "DB_POOL_SIZE": "8", "STATS_INTERVAL_MS": "200"}
    with ClusterProcess(env=env) as one, ClusterProcess(env=env) as two:
        everyone = {
            (port, slot): pid
            for cluster in (one, two)
            for port in [URL(cluster.wait_ready()).port]
            for slot, pid in enumerate(cluster.worker_pids())
        }
        assert len(everyone) == 4
        async with Client(one.url) as here, Client(two.url) as there:

            async def told_by(client: Client, expected: set[Any]) -> list[dict[str, Any]] | None:
                answer = (await client.get("/api/v1/dashboard/workers")).json
                assert answer["everywhere"] is True
                assert answer["silentAfterSeconds"] == 10
                rows: list[dict[str, Any]] = answer["workers"]
                for row in rows:
                    assert row["here"] == (row["port"] == answer["port"])
                has_all = {(row["port"], row["slot"]) for row in rows} == expected
                return rows if has_all and all(row["cpu"] is not None for row in rows) else None

            for client in (here, there):
                rows = await eventually(partial(told_by, client, set(everyone)))
                assert {(row["port"], row["slot"]): row["pid"] for row in rows} == everyone
                for row in rows:
                    assert row["ready"]
                    assert row["silentSeconds"] < 10
                    assert row["startedAt"].endswith("Z")
                    assert row["residentBytes"] > 10_000_000
                    assert row["poolSize"] >= 1

            # What goes on there is known here.
            await there.configure(queue)
            waiting = [asyncio.create_task(there.pop(queue, wait_ms=20_000)) for _ in range(3)]

            async def parked() -> bool:
                rows = await told_by(here, set(everyone)) or []
                seen = [row for row in rows if not row["here"]]
                parked = sum(row["parkedPops"] for row in seen)
                return bool(parked == 3 <= sum(row["connections"] for row in seen))

            await eventually(parked)
            await there.push(queue, [1, 2, 3], partition="a")
            done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            popped = done.pop().result()
            await there.ack_batch([(message, "failed") for message in popped.messages])
            failed = len(popped.messages)

            async def failures() -> bool:
                minutes = (await here.get("/api/v1/analytics/throughput")).json["throughput"]
                return bool(sum(one["failed"]["messagesPerMinute"] for one in minutes) == failed)

            await eventually(failures)

            async def pushed() -> bool:
                await there.push(queue, list(range(50)), partition="b")
                rates = (await here.get("/metrics")).json["throughput"]
                return bool(rates["pushedPerSecond"] > 0 < rates["requestsPerSecond"])

            await eventually(pushed)

            # Who ends in good order is gone, who does not is missed.
            own = {place for place in everyone if place[0] == URL(one.url).port}
            assert two.stop() == 0
            await eventually(partial(told_by, here, own))
            with ClusterProcess(env=env) as third:
                port = URL(third.wait_ready()).port
                await eventually(partial(told_by, here, own | {(port, 0), (port, 1)}))
                third.kill_at_once()

                async def missed() -> bool:
                    rows = await told_by(here, own | {(port, 0), (port, 1)})
                    assert rows is not None
                    return all(row["here"] or row["silentSeconds"] > 1 for row in rows)

                await eventually(missed)
        assert one.stop() == 0


async def test_settings_are_shown_without_secrets(client: Client) -> None:
    answer = await client.get("/api/v1/system/settings")
    settings = {row["name"]: row for row in answer.json["settings"]}
    assert settings["workers"]["value"] == 2
    assert settings["jwt_secret"]["value"] == "not set"
    assert settings["port"]["environment"] == ["PORT"]


async def test_the_schema_is_listed(client: Client) -> None:
    files = (await client.get("/api/v1/system/migrations")).json["files"]
    names = {file["name"] for file in files}
    folder = ROOT / "queue_server" / "storage" / "sql"
    assert {
        path.relative_to(folder).as_posix()
        for kind in ("functions", "migrations")
        for path in (folder / kind).glob("*.sql")
    } == names


# ── with authentication ─────────────────────────────────────────────────────────────────────────

SECRET = "a secret that only the server and this test know"
ENV = {"JWT_ENABLED": "true", "JWT_SECRET": SECRET, "JWT_SKIP_PATHS": "/livez"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[ClusterProcess]:
    with (
        server_directory() as directory,
        ClusterProcess(env=ENV | {"REQUEST_RATE": "5"}, data_dir=directory) as cluster,
    ):
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0


async def test_files_are_open_and_data_is_not(guarded: ClusterProcess) -> None:
    async with Client(guarded.url) as stranger:
        assert (await stranger.get("/")).status == 200
        # A page asks for them all at once, whatever the limit of requests.
        for name in FILES:
            assert (await stranger.get(f"/dashboard/{name}")).status == 200
        for path in ("identity", "queues", "workers", "dead-letter-errors"):
            assert (await stranger.get(f"/api/v1/dashboard/{path}")).status == 401


def token(role: str, **more: object) -> str:
    now = int(time.time())
    return jwt.encode({"sub": "alice", "role": role, "iat": now, "exp": now + 60} | more, SECRET)


async def test_a_credential_is_told_what_it_opens(guarded: ClusterProcess) -> None:
    async with Client(guarded.url, token=token("read-write")) as client:
        who = (await client.get("/api/v1/dashboard/identity")).json
        assert who == {
            "authentication": True,
            "subject": "alice",
            "access": ["read-only", "write-only", "read-write"],
            "grants": None,
        }
        assert (await client.get("/api/v1/system/settings")).status == 403


async def test_a_credential_for_some_queues_sees_these_alone(guarded: ClusterProcess) -> None:
    mine, other = unique("mine"), unique("other")
    async with Client(guarded.url, token=token("admin", sub="bob")) as admin:
        await admin.push(mine, [1])
        await admin.push(other, [1])
    limited = token("read-write", sub="carol", queues=[mine])
    async with Client(guarded.url, token=limited) as client:
        found = (await client.get("/api/v1/dashboard/queues")).json
        assert ([row["name"] for row in found["queues"]], found["total"]) == ([mine], 1)
        assert (await client.get(f"/api/v1/dashboard/queues/{mine}/partitions")).status == 200
        assert (await client.get(f"/api/v1/dashboard/queues/{other}/partitions")).status == 403
        who = (await client.get("/api/v1/dashboard/identity")).json
        assert who["grants"] == {use: [mine] for use in ("push", "pop", "administer")}
