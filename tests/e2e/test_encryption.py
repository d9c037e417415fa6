"""Queues that are encrypted at rest, against a database that the test can look into."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.client import Client, unique
from tests.cluster_process import ROOT, ClusterProcess

KEY, OTHER = os.urandom(32).hex(), os.urandom(32).hex()
SECRET = "the-secret-word"


@contextmanager
def server(conninfo: str, **env: str) -> Iterator[ClusterProcess]:
    with ClusterProcess(env={"DATABASE_URL": conninfo, **env}) as cluster:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output[-3000:]


def stored(conninfo: str, table: str, column: str) -> list[bytes]:
    with psycopg.connect(conninfo) as connection:
        query = psycopg.sql.SQL("SELECT {} FROM queen.{}").format(
            psycopg.sql.Identifier(column), psycopg.sql.Identifier(table)
        )
        return [bytes(row[0]) for row in connection.execute(query)]


async def test_nothing_readable_is_stored_and_all_of_it_is_read(conninfo: str) -> None:
    queue, plain = unique("sealed"), unique("plain")
    with server(conninfo, QUEEN_ENCRYPTION_KEY=KEY) as cluster:
        async with Client(cluster.url) as client:
            await client.configure(queue, {"encryptionEnabled": True, "retryLimit": 0})
            await client.push(queue, [{"word": SECRET}, {"word": SECRET + "2"}])
            transaction = {"type": "push", "items": [{"queue": queue, "payload": SECRET + "3"}]}
            answer = await client.post("/api/v1/transaction", {"operations": [transaction]})
            assert answer.json["success"] is True, answer
            popped = await client.pop(queue)
            assert popped.data == [{"word": SECRET}, {"word": SECRET + "2"}, SECRET + "3"]
            assert (await client.ack(popped.messages[0], "failed"))["dlq"] is True
            letters = (await client.get(f"/api/v1/dlq?queue={queue}")).json["messages"]
            assert [letter["data"] for letter in letters] == [{"word": SECRET}]
            bodies = stored(conninfo, "segments", "body")
            assert len(bodies) == 2
            assert not any(SECRET.encode() in body for body in bodies)
            assert not any(
                SECRET.encode() in payload
                for payload in stored(conninfo, "dead_letters", "payload")
            )
            await client.push(plain, [SECRET])
            assert any(SECRET.encode() in body for body in stored(conninfo, "segments", "body"))


async def test_keys_rotate_and_a_missing_one_loses_nothing(conninfo: str) -> None:
    queue = unique("rotated")
    with server(conninfo, QUEEN_ENCRYPTION_KEY=KEY) as cluster:
        async with Client(cluster.url) as client:
            await client.configure(queue, {"encryptionEnabled": True})
            await client.push(queue, ["first"])
    with server(conninfo, QUEEN_ENCRYPTION_KEY=OTHER) as cluster:
        async with Client(cluster.url) as client:
            await client.push(queue, ["second"])
            refused = await client.get(f"/api/v1/pop/queue/{queue}?batch=10")
            assert refused.status == 500, refused
            assert "QUEEN_ENCRYPTION_OLD_KEYS" in refused.json["error"]
            assert KEY not in refused.json["error"]
    rotated = {"QUEEN_ENCRYPTION_KEY": OTHER, "QUEEN_ENCRYPTION_OLD_KEYS": KEY}
    with server(conninfo, **rotated) as cluster:
        async with Client(cluster.url) as client:
            # The refused pop gave its lease back.
            assert (await client.pop(queue, wait_ms=5000)).data == ["first", "second"]


async def test_from_the_configure_answer_on_nothing_is_stored_readable(conninfo: str) -> None:
    queue = unique("switched")
    with server(conninfo, QUEEN_ENCRYPTION_KEY=KEY) as cluster:
        async with Client(cluster.url, fresh=True) as client:
            # Both workers know the queue as one that is not encrypted.
            await asyncio.gather(*(client.push(queue, ["before"]) for _ in range(12)))
            await client.configure(queue, {"encryptionEnabled": True})
            await asyncio.gather(*(client.push(queue, [SECRET]) for _ in range(24)))
            assert not any(SECRET.encode() in body for body in stored(conninfo, "segments", "body"))
            data = (await client.pop(queue)).data
            assert sorted(data) == ["before"] * 12 + [SECRET] * 24


async def test_without_a_key_it_says_so(client: Client, queue: str) -> None:
    body = await client.configure(queue, {"encryptionEnabled": True})
    assert "QUEEN_ENCRYPTION_KEY" in body["warning"]
    await client.push(queue, [1])
    assert (await client.pop(queue)).data == [1]


def test_a_malformed_key_refuses_to_start_and_is_not_shown() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "cluster.py")],
        env=os.environ | {"QUEEN_ENCRYPTION_KEY": "not-" + KEY},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert "QUEEN_ENCRYPTION_KEY" in run.stderr
    assert KEY not in run.stderr
