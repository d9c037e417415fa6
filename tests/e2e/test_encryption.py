"""Queues that are encrypted at rest, against a database that the test can look into."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def rows(conninfo: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def shows(conninfo: str, text: str = SECRET) -> list[str]:
    """The tables of the schema in which *text* can be read."""
    found = []
    with psycopg.connect(conninfo) as connection:
        tables = connection.execute(
            "SELECT c.oid::regclass::text FROM pg_class c"
            " WHERE c.relnamespace = 'queen'::regnamespace AND c.relkind = 'r' ORDER BY 1"
        ).fetchall()
        for (table,) in tables:
            # A bytea is written as hexadecimal digits.
            count = connection.execute(
                psycopg.sql.SQL(
                    "SELECT count(*) FROM {} t WHERE t::text LIKE {} OR t::text LIKE {}"
                ).format(
                    psycopg.sql.SQL(table),
                    psycopg.sql.Literal(f"%{text}%"),
                    psycopg.sql.Literal(f"%{text.encode().hex()}%"),
                )
            ).fetchone()
            if count != (0,):
                found.append(table)
    return found


async def errors_of(client: Client, queue: str) -> dict[str, int]:
    answer = await client.get(f"/api/v1/dashboard/dead-letter-errors?queue={queue}")
    return {one["error"]: one["count"] for one in answer.json["errors"]}


async def trace(client: Client, message: dict[str, Any], word: str) -> int:
    answer = await client.post(
        "/api/v1/traces",
        {
            "partitionId": message["partitionId"],
            "transactionId": message["transactionId"],
            "eventType": word,
            "data": {"text": word},
            "traceName": "checkout",
        },
    )
    return answer.status


async def test_nothing_readable_is_stored_and_all_of_it_is_read(conninfo: str) -> None:
    queue, plain = unique("sealed"), unique("plain")
    with server(conninfo, QUEEN_ENCRYPTION_KEY=KEY) as cluster:
        async with Client(cluster.url) as client:
            # Stored before the queue was encrypted; its dead letter is sealed nevertheless.
            await client.push(queue, ["before"])
            await client.configure(queue, {"encryptionEnabled": True, "retryLimit": 0})
            early = await client.pop(queue)
            assert (await client.ack(early.messages[0], "failed", error="early"))["dlq"] is True
            assert rows(conninfo, "SELECT error_message FROM queen.dead_letters") == [("",)]
            await client.send("DELETE", f"/api/v1/dlq?queue={queue}")

            await client.push(queue, [{"word": SECRET}, {"word": SECRET + "2"}])
            transaction = {"type": "push", "items": [{"queue": queue, "payload": SECRET + "3"}]}
            answer = await client.post("/api/v1/transaction", {"operations": [transaction]})
            assert answer.json["success"] is True, answer
            popped = await client.pop(queue)
            assert popped.data == [{"word": SECRET}, {"word": SECRET + "2"}, SECRET + "3"]
            assert await trace(client, popped.messages[0], SECRET) == 201
            reason = f"refused-{SECRET}"
            dead = [(message, "dlq") for message in popped.messages]
            assert all(one["success"] for one in await client.ack_batch(dead, error=reason))
            letters = (await client.get(f"/api/v1/dlq?queue={queue}")).json["messages"]
            assert {letter["errorMessage"] for letter in letters} == {reason}
            assert [letter["data"] for letter in letters[::-1]] == popped.data

            await client.post("/api/v1/system/maintenance", {"enabled": True})
            held = await client.push(queue, [SECRET + "held"])
            assert held[0]["status"] == "buffered"
            assert shows(conninfo) == []
            await client.post("/api/v1/system/maintenance", {"enabled": False})

            # Grouped, found, moved and removed by their reason, although the database cannot read
            # it.
            assert await errors_of(client, queue) == {reason: 3}
            by_reason = f"/api/v1/dlq?queue={queue}&error="
            assert (await client.get(by_reason + reason)).json["total"] == 3
            assert (await client.get(by_reason + "other")).json["total"] == 0
            redriven = await client.post(
                "/api/v1/dlq/redrive", {"queue": queue, "error": reason, "limit": 1}
            )
            assert (redriven.json["moved"], redriven.json["remaining"]) == (1, 2)
            purged = await client.send("DELETE", by_reason + reason)
            assert (purged.json["deleted"], purged.json["remaining"]) == (2, 0)
            left: list[Any] = []
            while len(left) < 2:
                more = await client.pop(queue, wait_ms=10_000, autoAck="true")
                assert more.data, left
                left += more.data
            assert SECRET + "held" in left
            address = f"{popped.messages[0]['partitionId']}/{popped.messages[0]['transactionId']}"
            (told,) = (await client.get(f"/api/v1/traces/{address}")).json["traces"]
            assert (told["event_type"], told["data"]) == (SECRET, {"text": SECRET})
            assert told["data_available"] is True
            assert shows(conninfo) == []
            await client.push(plain, [SECRET])
            assert shows(conninfo) == ["queen.segments"]


async def test_keys_rotate_and_a_missing_one_loses_nothing(conninfo: str) -> None:
    """The whole way of docs/security.md, "Changing the key", and what goes wrong on it."""
    queue = unique("rotated")
    with server(conninfo, QUEEN_ENCRYPTION_KEY=KEY) as cluster:
        async with Client(cluster.url) as client:
            await client.configure(queue, {"encryptionEnabled": True, "retryLimit": 0})
            for number in range(3):
                await client.push(queue, [f"old {number}"], partition=f"old{number}")
            await client.push(queue, ["prefix"], partition="mixed")
            await client.push(queue, ["dies"], partition="dead")
            dies = await client.pop(queue, partition="dead")
            assert (await client.ack(dies.messages[0], "failed", error="boom"))["dlq"] is True
            assert await trace(client, dies.messages[0], "traced") == 201

    with server(conninfo, QUEEN_ENCRYPTION_KEY=OTHER, NUM_WORKERS="1") as cluster:
        async with Client(cluster.url) as client:
            key_id = rows(
                conninfo,
                "SELECT encode(substring(payload FROM 2 FOR 8), 'hex') FROM queen.dead_letters",
            )[0][0]
            for number in range(3):
                await client.push(queue, [f"new {number}"], partition=f"new{number}")
            await client.push(queue, ["behind"], partition="mixed")
            # What can be read is delivered, one after another and together, also without a lease.
            first = await client.pop(queue, batch=1)
            assert first.data == ["new 0"], first
            await client.ack(first.messages[0], "completed")
            rest = await client.get(
                f"/api/v1/pop/queue/{queue}?batch=10&partitions=10&autoAck=true"
            )
            assert [m["data"] for m in rest.json["messages"]] == ["new 1", "new 2"]
            # And nothing else: neither an error, nor a lease, nor a commit.
            empty = await client.get(f"/api/v1/pop/queue/{queue}?batch=10&autoAck=true")
            assert empty.status == 204, empty
            named = await client.get(f"/api/v1/pop/queue/{queue}/partition/old1?autoAck=true")
            assert named.status == 204, named
            # Consumers that wait are woken for what can be read, and do not ask again and again.
            waiting = asyncio.create_task(client.pop(queue, wait_ms=20_000))
            before = (await client.get("/metrics")).json["counters"]["pop_transactions"]
            await asyncio.sleep(2.5)
            after = (await client.get("/metrics")).json["counters"]["pop_transactions"]
            assert after - before <= 3
            await client.push(queue, ["late"], partition="new0")
            late = await waiting
            assert late.data == ["late"]
            listed = (await client.get(f"/api/v1/messages?queue={queue}")).json["messages"]
            assert {m["data"] for m in listed} == {
                "new 0",
                "new 1",
                "new 2",
                "late",
                "behind",
                None,
            }
            closed = [m for m in listed if not m["payloadAvailable"]]
            assert len(closed) == 5
            assert {(m["payload"], m["transactionId"]) for m in closed} == {(None, None)}
            everything = (await client.get("/api/v1/messages")).json["messages"]
            assert len(everything) == len(listed)
            (letter,) = (await client.get("/api/v1/dlq")).json["messages"]
            assert (letter["payloadAvailable"], letter["data"]) == (False, None)
            assert letter["errorMessage"] is None
            address = f"{letter['partitionId']}/{letter['transactionId']}"
            detail = await client.get(f"/api/v1/messages/{address}")
            assert (detail.status, detail.json["payloadAvailable"]) == (200, False)
            assert detail.json["transactionId"] == letter["transactionId"]
            (told,) = (await client.get(f"/api/v1/traces/{address}")).json["traces"]
            assert (told["data"], told["data_available"]) == (None, False)
            assert (await client.get("/api/v1/traces/by-name/checkout")).status == 200
            (error,) = await errors_of(client, queue)
            assert key_id in error
            retried = await client.post(f"/api/v1/messages/{address}/retry", {})
            assert (retried.status, retried.json["code"]) == (503, "encryption_key_missing")
            assert retried.headers["Retry-After"] == "60"
            redriven = await client.post("/api/v1/dlq/redrive", {"queue": queue})
            assert (redriven.json["moved"], redriven.json["remaining"]) == (0, 1)
            cluster.wait_for_line("partition_unreadable")
            assert key_id in cluster.output
            assert KEY not in cluster.output
            # Each is told of before a client meets it.
            status = (await client.get("/api/v1/status")).json["encryption"]
            assert status == {
                "hasKey": True,
                "encryptedQueues": 1,
                "queuesWithoutKey": 0,
                "missingKeys": [{"keyId": key_id, "neededFor": ["segments", "dead letters"]}],
                "unreadablePartitions": 4,
            }
            cluster.wait_for_line(f"segments and dead letters are encrypted with the key {key_id}")
            metrics = (await client.get("/metrics/prometheus")).raw.decode()
            assert 'queue_server_unreadable_partitions{worker="0"} 4' in metrics

    # Only the old key: all is read, and what becomes of it is sealed with that key.
    with server(conninfo, QUEEN_ENCRYPTION_OLD_KEYS=KEY) as cluster:
        async with Client(cluster.url) as client:
            popped = await client.pop(queue, partition="old0")
            assert popped.data == ["old 0"]
            acked = await client.ack(popped.messages[0], "failed", error="boom")
            assert acked["dlq"] is True
            assert await errors_of(client, queue) == {"boom": 2}
            assert shows(conninfo, "old 0") == []
            # A message goes out that can be read, the one behind it in its partition does not.
            prefix = await client.pop(queue, partition="mixed")
            assert prefix.data == ["prefix"]
            await client.complete(prefix)
            assert (await client.pop(queue, partition="mixed")).status == 204
            refused = await client.post(
                "/api/v1/push", {"items": [{"queue": queue, "payload": SECRET}]}
            )
            assert (refused.status, refused.json["code"]) == (503, "encryption_key_missing")
            cluster.wait_for_line("1 queues are encrypted")
            doctor = subprocess.run(
                [sys.executable, "-m", "queue_server", "doctor", "--json", "--url", cluster.url],
                cwd=ROOT,
                env=os.environ | {"DATABASE_URL": conninfo, "QUEEN_ENCRYPTION_OLD_KEYS": KEY},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            (checked,) = [
                one
                for one in json.loads(doctor.stdout)["checks"]
                if one["check"] == "encryption keys"
            ]
            assert checked["status"] == "fail"  # the other key is missing
            assert "is not given" in checked["found"]
            assert "pushes to them are refused" in checked["found"]

    with server(conninfo, QUEEN_ENCRYPTION_KEY=OTHER, QUEEN_ENCRYPTION_OLD_KEYS=KEY) as cluster:
        async with Client(cluster.url) as client:
            found = await client.get(f"/api/v1/pop/queue/{queue}?batch=20&partitions=20&wait=true")
            assert {m["data"] for m in found.json["messages"]} == {"old 1", "old 2", "behind"}
            redriven = await client.post("/api/v1/dlq/redrive", {"queue": queue, "error": "boom"})
            assert redriven.json["moved"] == 2
            assert shows(conninfo, "dies") == []


async def test_what_was_moved_or_changed_does_not_open(conninfo: str) -> None:
    """Nor does it keep others from being delivered, listed and moved back."""
    queue, mine = unique("secret"), unique("mine")
    with server(conninfo, QUEEN_ENCRYPTION_KEY=KEY, NUM_WORKERS="1") as cluster:
        async with Client(cluster.url) as client:
            for name in (queue, mine):
                await client.configure(name, {"encryptionEnabled": True})
                for partition in ("a", "b", "c"):
                    await client.push(name, [f"{name} {partition}"], partition=partition)
            await client.push(mine, ["mine b, the second"], partition="b")
            segment = (
                "SELECT s.* FROM queen.segments s JOIN queen.partitions p ON p.id = s.partition_id"
                " JOIN queen.queues q ON q.id = p.queue_id WHERE q.name = '{}' AND p.name = '{}'"
            )
            # The body of a foreign one; with all that the row says of it; and a whole partition.
            rows(
                conninfo,
                f"UPDATE queen.segments t SET body = o.body FROM ({segment.format(queue, 'a')}) o,"
                f" ({segment.format(mine, 'a')}) m WHERE (t.partition_id, t.base_offset)"
                " = (m.partition_id, m.base_offset)",
            )
            rows(
                conninfo,
                "UPDATE queen.segments t SET body = o.body, codec = o.codec, ids = o.ids,"
                " first_message_id = o.first_message_id, raw_bytes = o.raw_bytes"
                f" FROM ({segment.format(queue, 'b')}) o, ({segment.format(mine, 'b')}) m"
                " WHERE (t.partition_id, t.base_offset) = (m.partition_id, m.base_offset)"
                " AND t.base_offset = 0",
            )
            got = await client.get(f"/api/v1/pop/queue/{mine}?batch=10&partitions=10&autoAck=true")
            assert [m["data"] for m in got.json["messages"]] == [f"{mine} c"]
            cluster.wait_for_line("encrypted data was changed, moved from its place")
            leased = await client.get(f"/api/v1/pop/queue/{mine}?batch=10&consumerGroup=g")
            again = await client.get(f"/api/v1/pop/queue/{mine}?batch=10&consumerGroup=g")
            both = [answer for answer in (leased, again) if answer.status == 200]
            assert [m["data"] for answer in both for m in answer.json["messages"]] == [f"{mine} c"]
            # No lease is left on the others, and nothing was committed there.
            assert rows(
                conninfo,
                "SELECT count(*) FROM queen.cursors c JOIN queen.partitions p ON p.id ="
                " c.partition_id WHERE p.name IN ('a', 'b') AND (c.lease_id IS NOT NULL"
                " OR c.committed_offset > 0)",
            ) == [(0,)]
            listed = (await client.get(f"/api/v1/messages?queue={mine}")).json["messages"]
            assert {m["data"] for m in listed} == {f"{mine} c", "mine b, the second", None}
            (damaged,) = [m for m in listed if m["data"] is None and m["partition"] == "b"]
            assert damaged["offset"] == 0


async def test_an_encrypted_queue_without_a_key_takes_nothing(client: Client, queue: str) -> None:
    body = await client.configure(queue, {"encryptionEnabled": True})
    assert "QUEEN_ENCRYPTION_KEY" in body["warning"]
    other = unique("plain")
    item = {"queue": queue, "payload": SECRET}
    refused, taken = await asyncio.gather(
        client.post("/api/v1/push", {"items": [item]}), client.push(other, [1])
    )
    assert (refused.status, refused.json["code"]) == (503, "encryption_key_missing")
    assert refused.headers["Retry-After"] == "60"
    assert queue in refused.error
    assert taken[0]["status"] == "queued"
    mixed = await client.post("/api/v1/push", {"items": [{"queue": other, "payload": 2}, item]})
    assert mixed.status == 503
    operations = [{"type": "push", "items": [item]}]
    rolled_back = await client.post("/api/v1/transaction", {"operations": operations})
    assert rolled_back.status == 503, rolled_back
    assert (await client.pop(other)).data == [1]
    assert (await client.pop(queue)).data == []


async def test_without_a_key_nothing_is_held_nor_traced_as_it_is(conninfo: str) -> None:
    queue = unique("keyless")
    with server(conninfo) as cluster:
        async with Client(cluster.url) as client:
            await client.push(queue, ["before"])
            (message,) = (await client.pop(queue)).messages
            await client.configure(queue, {"encryptionEnabled": True, "retryLimit": 0})
            assert await trace(client, message, SECRET) == 503
            nack = {
                "transactionId": message["transactionId"],
                "partitionId": message["partitionId"],
                "leaseId": message["leaseId"],
                "status": "failed",
                "error": SECRET,
            }
            refused = await client.post("/api/v1/ack", nack)
            assert (refused.status, refused.json["code"]) == (503, "encryption_key_missing")
            await client.post("/api/v1/system/maintenance", {"enabled": True})
            held = await client.post(
                "/api/v1/push", {"items": [{"queue": queue, "payload": SECRET}]}
            )
            assert held.status == 503, held
            await client.push(unique("plain"), ["held"])
            await client.post("/api/v1/system/maintenance", {"enabled": False})
            assert shows(conninfo) == []
    with server(conninfo, ENCRYPTION_FALLBACK_PLAINTEXT="true") as cluster:
        async with Client(cluster.url) as client:
            body = await client.configure(queue, {"retryLimit": 0})
            assert "plain text" in body["warning"]
            await client.push(queue, [SECRET])
            assert shows(conninfo) == ["queen.segments"]


async def test_from_the_configure_answer_on_nothing_is_stored_readable(conninfo: str) -> None:
    queue = unique("switched")
    with server(conninfo, QUEEN_ENCRYPTION_KEY=KEY) as cluster:
        async with Client(cluster.url, fresh=True) as client:
            # Both workers know the queue as one that is not encrypted.
            await asyncio.gather(*(client.push(queue, ["before"]) for _ in range(12)))
            await client.configure(queue, {"encryptionEnabled": True})
            await asyncio.gather(*(client.push(queue, [SECRET]) for _ in range(24)))
            assert shows(conninfo) == []
            data = (await client.pop(queue)).data
            assert sorted(data) == ["before"] * 12 + [SECRET] * 24


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
