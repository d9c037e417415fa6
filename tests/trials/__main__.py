"""Replay what trials of security, data safety and start-up found: `python -m tests.trials`.

Each trial is one input with the result that is right. `--tree DIR` runs the server of another
checkout, so that two versions can be compared; `--only NAME` picks trials. Prints a line a trial
and exits 1 when one of them is not right. It takes about five minutes; `make test` has each
promise as a test of its own, this is the list that a person reads.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.trials.server import Answer, Server, folder

ROOT = Path(__file__).resolve().parent.parent.parent
MEMORY_LIMIT_MB = 512

# What a trial observed, and whether that is right.
Verdict = tuple[str, bool]


class Trial(NamedTuple):
    name: str
    run: Callable[[Path, Path], Verdict]  # gets the checkout and a folder for the server's data


TRIALS: list[Trial] = []


def start_trial(
    name: str,
) -> Callable[[Callable[[Path, Path], Verdict]], Callable[[Path, Path], Verdict]]:
    """Register a trial whose subject is starting: it starts servers itself."""

    def add(function: Callable[[Path, Path], Verdict]) -> Callable[[Path, Path], Verdict]:
        TRIALS.append(Trial(name, function))
        return function

    return add


def trial(
    name: str, **env: str
) -> Callable[[Callable[[Server], Verdict]], Callable[[Server], Verdict]]:
    """Register a trial that gets a server of its own, started with these settings."""

    def add(function: Callable[[Server], Verdict]) -> Callable[[Server], Verdict]:
        def run(tree: Path, place: Path) -> Verdict:
            server = Server(tree, place, env)
            try:
                if not server.wait_ready():
                    return f"the server did not start: {server.log[-300:]}", False
                return function(server)
            finally:
                server.stop()

        TRIALS.append(Trial(name, run))
        return function

    return add


# -- without a credential --


@trial("hostile path and credential hang no worker", API_KEYS_ENABLED="true")
def _regex(server: Server) -> Verdict:
    path = b"/password=%27" + b"%5Ca" * 60
    head = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer qk_\xff\r\n\r\n"
    statuses = {server.raw(head, 2)[9:12].decode() or "no answer" for _ in range(4)}
    slowest_ms = server.live_ms()
    return f"{sorted(statuses)}, /livez {slowest_ms} ms", statuses == {"401"} and slowest_ms < 2000


@trial("hostile queue name hangs no worker")
def _regex_by_name(server: Server) -> Verdict:
    name = "password='" + "\\a" * 60
    answer = server.request(
        "POST",
        "/api/v1/configure",
        {"queue": name, "options": {"encryptionEnabled": True}},
        timeout_s=3,
    )
    slowest_ms = server.live_ms()
    right = answer.status in (200, 201) and slowest_ms < 2000
    return f"{answer.status}, /livez {slowest_ms} ms", right


@trial("pipelined large heads, unread, stay within memory", API_KEYS_ENABLED="true")
def _heads(server: Server) -> Verdict:
    headers = b"".join(b"X-%d: " % i + b"a" * 16000 + b"\r\n" for i in range(125))
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", server.port))
            sock.settimeout(2)
            with contextlib.suppress(OSError):
                for _ in range(60):
                    sock.sendall(request)
        peak = server.peak_mb()
    return f"largest worker {peak} MB", peak < 200


@trial("a forged log line cannot be written", API_KEYS_ENABLED="true", LOG_FORMAT="console")
def _forged(server: Server) -> Verdict:
    server.raw(
        b"GET /x%0A2026-01-01%20supervisor%20forged%1b[31m HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: Bearer qk_\xff\r\n\r\n",
        2,
    )
    server.live_ms()
    lines = server.log.splitlines()
    forged = any(line.startswith("2026-01-01 supervisor forged") for line in lines)
    return ("a line was forged" if forged else "no forged line"), not forged


@trial("an unknown Expect gets our body and request id")
def _expect(server: Server) -> Verdict:
    got = server.raw(
        b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: banana\r\nConnection: close\r\n\r\n", 2
    )
    right = got.startswith(b"HTTP/1.1 417") and b'{"error"' in got and b"request-id" in got.lower()
    return got.partition(b"\r\n")[0].decode() + (", our form" if right else ", other form"), right


@trial("a body that is too large is refused before 100 Continue")
def _continue(server: Server) -> Verdict:
    got = server.raw(
        b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/json\r\nContent-Length: 999999999999\r\n\r\n",
        2,
    )
    return got.partition(b"\r\n")[0].decode(), got.startswith(b"HTTP/1.1 413")


@trial("a request behind one with Upgrade is answered")
def _upgrade(server: Server) -> Verdict:
    got = server.raw(
        b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n"
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        3,
    )
    count = got.count(b"HTTP/1.1 ")
    return f"{count} answers", count == 2


@trial("pages of other names for this host take no message")
def _foreign(server: Server) -> Verdict:
    server.push("victim", "a", "b", "c")
    browser = {"Accept": "image/avif,image/webp", "User-Agent": "Mozilla/5.0 Chrome/156",
               "Accept-Language": "en", "Referer": "http://evil.example.com/"}  # fmt: skip
    statuses = [
        server.request(
            "GET",
            "/api/v1/pop/queue/victim?autoAck=true&batch=1",
            headers={**browser, "Host": host},
        ).status
        for host in ("0.0.0.0:1", "[::ffff:127.0.0.1]:1", "[::]:1")
    ]
    return str(statuses), statuses == [403] * 3


# -- one client's requests --


@trial("a push to 50,001 partitions ends")
def _wide(server: Server) -> Verdict:
    items = [{"queue": "wide", "partition": f"p{i}", "payload": 0} for i in range(50_001)]
    began = time.monotonic()
    answer = server.request("POST", "/api/v1/push", {"items": items}, timeout_s=40)
    return f"{answer.status} after {time.monotonic() - began:.0f} s", answer.status == 201


@trial("a wide push that is held delays no others")
def _wide_held(server: Server) -> Verdict:
    server.request("POST", "/api/v1/system/maintenance", {"enabled": True})
    time.sleep(1.5)  # the version before learnt of it within a second
    items = [{"queue": "wide", "partition": f"p{i}", "payload": 0} for i in range(50_001)]
    server.request("POST", "/api/v1/push", {"items": items}, timeout_s=40)
    server.push("other", "one")
    server.request("POST", "/api/v1/system/maintenance", {"enabled": False})
    deadline = time.monotonic() + 30
    got: list[dict[str, object]] = []
    while not got and time.monotonic() < deadline:
        got = server.pop("other", "?wait=true&timeout=1000")
    return ("delivered" if got else "not delivered within 30 s"), bool(got)


def _timed_peak(server: Server, path: str, body: bytes) -> tuple[Answer, int, int]:
    """Send a body; return the answer, the largest worker's peak and the slowest /livez."""
    slowest: list[int] = []
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            slowest.append(server.live_ms())

    thread = threading.Thread(target=probe)
    thread.start()
    answer = server.request("POST", path, body, timeout_s=60)
    done.set()
    thread.join()
    return answer, server.peak_mb(), max(slowest)


def _attack(path: str, body: bytes) -> Callable[[Server], Verdict]:
    def run(server: Server) -> Verdict:
        answer, peak, slowest_ms = _timed_peak(server, path, body)
        right = 200 <= answer.status < 500 and peak < MEMORY_LIMIT_MB and slowest_ms < 2000
        return f"{answer.status}, {peak} MB, /livez at most {slowest_ms} ms", right

    return run


_ITEM = b'{"queue":"a"}'
_ACK = b'{"transactionId":"a","partitionId":"1"}'
for _name, _path, _body in (
    ("1,000,000 tiny items", "/api/v1/push",
     b'{"items":[' + b",".join([_ITEM] * 1_000_000) + b"]}"),
    ("7,000,000 tiny items", "/api/v1/push",
     b'{"items":[' + b",".join([_ITEM] * 7_000_000) + b"]}"),
    ("20,000,000 zeros as kv", "/api/v1/transaction",
     b'{"operations":[],"kv":[' + b",".join([b"0"] * 20_000_000) + b"]}"),
    ("1,000,000 acks", "/api/v1/ack/batch",
     b'{"acknowledgments":[' + b",".join([_ACK] * 1_000_000) + b"]}"),
):  # fmt: skip
    trial(f"{_name} stay within memory and time")(_attack(_path, _body))


@trial("a listing of large messages stays within memory")
def _large_listing(server: Server) -> Verdict:
    for i in range(60):
        server.push("large", f"m{i}", payload="x" * 1_000_000)
    before = server.peak_mb()
    answer = server.request("GET", "/api/v1/messages?queue=large&limit=1000", timeout_s=60)
    size = len(answer.body) // 1_000_000
    grown = server.peak_mb() - before
    return f"{answer.status}, {size} MB, worker grew by {grown} MB", size <= 70 and grown < 200


@trial("whatever nesting is accepted can be dead-lettered")
def _nesting(server: Server) -> Verdict:
    server.configure("deep", retryLimit=0)
    failed: list[int] = []
    accepted = 0
    for depth in (490, 500, 501, 900, *range(970, 986)):
        payload = b"[" * depth + b"]" * depth
        body = b'{"items":[{"queue":"deep","partition":"p%d","payload":' % depth + payload + b"}]}"
        if server.request("POST", "/api/v1/push", body).status != 201:
            continue
        accepted += 1
        answer = server.request("GET", f"/api/v1/pop/queue/deep/partition/p{depth}")
        if answer.status != 200:
            failed.append(depth)
            continue
        message = answer.json["messages"][0]
        message.setdefault("leaseId", answer.json.get("leaseId"))
        message.setdefault("partitionId", answer.json.get("partitionId"))
        if server.ack(message, "dlq").status >= 500:
            failed.append(depth)
    return f"{accepted} accepted, {len(failed)} of them stuck: {failed}", not failed


@trial("24 readers leave pushes their time")
def _readers(server: Server) -> Verdict:
    for i in range(6):
        items = [{"queue": "many", "partition": f"p{i}-{j}", "payload": 0} for j in range(20_000)]
        server.request("POST", "/api/v1/push", {"items": items}, timeout_s=60)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            server.request("GET", "/api/v1/analytics/queues", timeout_s=60)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(24)]
    for thread in readers:
        thread.start()
    slowest, failed = 0.0, 0
    deadline = time.monotonic() + 15
    count = 0
    while time.monotonic() < deadline:
        began = time.monotonic()
        failed += server.push("quick", f"m{count}")[0] != "queued"
        slowest = max(slowest, time.monotonic() - began)
        count += 1
    stop.set()
    text = f"{count} pushes in 15 s, slowest {slowest:.1f} s, {failed} failed"
    return text, not failed and slowest < 2


# -- messages --


@trial("an id is new again once its message is gone")
def _gone(server: Server) -> Verdict:
    statuses = {}
    server.push("gone", "deleted")
    (message,) = _listed(server, "gone")
    server.request("DELETE", f"/api/v1/messages/{message['partitionId']}/deleted")
    statuses["deleted"] = server.push("gone", "deleted")[0]
    server.configure("short", ttl=1)
    server.push("short", "expired")
    time.sleep(1.3)  # the subject is an age
    statuses["expired"] = server.push("short", "expired")[0]
    delivered = [bool(server.pop(queue)) for queue in ("gone", "short")]
    right = set(statuses.values()) == {"queued"} and all(delivered)
    return f"{statuses}, delivered {delivered}", right


def _listed(server: Server, queue: str) -> list[dict[str, object]]:
    return list(server.request("GET", f"/api/v1/messages?queue={queue}").json["messages"])


@trial("a cleared lease blocks no fresh message")
def _cleared(server: Server) -> Verdict:
    server.configure("cleared", leaseTime=300)
    server.push("cleared", "old")
    taken = server.pop("cleared")
    server.request("DELETE", "/api/v1/queues/cleared/clear")
    server.push("cleared", "fresh")
    got = [message["transactionId"] for message in server.pop("cleared")]
    return f"took {len(taken)}, then {got}", got == ["fresh"]


@trial("deleted messages free a full queue")
def _full(server: Server) -> Verdict:
    server.configure("full", maxSize=3)
    server.push("full", "a", "b", "c")
    for message in _listed(server, "full"):
        server.request(
            "DELETE", f"/api/v1/messages/{message['partitionId']}/{message['transactionId']}"
        )
    status = server.push("full", "d")[0]
    return status, status == "queued"


@trial("figures after retention are not negative", RETENTION_INTERVAL="500")
def _negative(server: Server) -> Verdict:
    server.configure("aged", leaseTime=300, retentionSeconds=1, retentionEnabled=True)
    server.push("aged", *[f"m{i}" for i in range(50)])
    for message in server.pop("aged", "?batch=10&consumerGroup=g"):
        server.ack(message, "completed")
    server.pop("aged", "?batch=10&consumerGroup=g")
    deadline = time.monotonic() + 15
    while _listed(server, "aged") and time.monotonic() < deadline:
        time.sleep(0.2)
    server.push("aged", "fresh")
    depth = server.request("GET", "/api/v1/resources/queues/aged/depth?group=g").json
    figures = {name: depth[name] for name in ("pending", "processing", "ready")}
    right = min(figures.values()) >= 0
    return str(figures), right and figures["pending"] == figures["processing"] + figures["ready"]


@trial("a message given up beside a deleted group is not lost")
def _given_up(server: Server) -> Verdict:
    items = [
        {"queue": "bw", "partition": f"p{i}", "transactionId": f"t{i}", "payload": 0}
        for i in range(30_000)
    ]
    server.request("POST", "/api/v1/push", {"items": items}, timeout_s=60)
    server.pop("bw", "?consumerGroup=old&subscriptionMode=all")
    found = server.request("GET", "/api/v1/messages?queue=bw&partition=p29999").json["messages"]
    thread = threading.Thread(
        target=server.request, args=("DELETE", "/api/v1/consumer-groups/old/queues/bw")
    )
    thread.start()
    answer = server.request("POST", f"/api/v1/messages/{found[0]['partitionId']}/t29999/dlq")
    thread.join()
    listed = server.request("GET", "/api/v1/dlq?queue=bw").json["messages"]
    return f"{answer.status}, {len(listed)} dead letters", answer.status == 200 and bool(listed)


@trial("a refused push leaves no queue and no partition")
def _refused(server: Server) -> Verdict:
    server.configure("small", maxSize=1)
    server.push("small", "a")
    status = server.push("small", "b", partition="NEWPART")[0]
    answer = server.request(
        "POST",
        "/api/v1/push",
        {"items": [{"queue": "GHOST", "payload": 1}, {"queue": "small", "payload": 1}]},
    )
    detail = server.request("GET", "/api/v1/resources/queues/small").body
    queues = server.request("GET", "/api/v1/resources/queues?limit=1000").body
    left = [
        name for name, text in (("NEWPART", detail), ("GHOST", queues)) if name.encode() in text
    ]
    return f"{status}, {answer.status}, left behind: {left}", not left


@trial("an unreadable subscriptionFrom is refused")
def _subscription(server: Server) -> Verdict:
    statuses = []
    for i, value in enumerate(("2026-06-30t25:00:00z", "NOWISH", "24:00")):
        query = f"?consumerGroup=g{i}&subscriptionFrom={value}"
        statuses.append(server.request("GET", f"/api/v1/pop/queue/from{query}").status)
    return str(statuses), statuses == [400] * 3


@trial("text of any length is refused")
def _labels(server: Server) -> Verdict:
    body = {"queue": "label", "namespace": "x" * 6_000_000, "options": {}}
    status = server.request("POST", "/api/v1/configure", body).status
    return str(status), status == 413  # as for a name


@trial("pops make no queues", MAX_QUEUES="50")
def _queues(server: Server) -> Verdict:
    statuses = [server.request("GET", f"/api/v1/pop/queue/made-{n}").status for n in range(60)]
    made = server.request("GET", "/api/v1/resources/queues?limit=100").json["queues"]
    text = f"{statuses.count(204)} x 204, {len(made)} queues"
    return text, statuses == [204] * 60 and not made


# -- credentials for some queues --


def _key(server: Server, *patterns: str) -> dict[str, str]:
    """Create an API key and return the header that carries it."""
    made = subprocess.run(
        [sys.executable, str(server.tree / "cluster.py"), "keys", "create", "trial",
         "--role", "read-write", "--data-dir", str(server.folder), *patterns],
        capture_output=True, text=True, check=True, cwd=server.tree,
    )  # fmt: skip
    return {"Authorization": f"Bearer {made.stdout.strip()}"}


@trial("a limited key stays among its queues", API_KEYS_ENABLED="true")
def _tenant(server: Server) -> Verdict:
    limited = _key(server, "--push", "mine*", "--pop", "mine*", "--administer", "mine*")
    item = {"queue": "salaries", "payload": 1}
    server.request("POST", "/api/v1/push", {"items": [item]}, _key(server))
    body = {"queue": "mine-evil", "namespace": "billing", "options": {"priority": 2147483647}}
    evil = server.request("POST", "/api/v1/configure", body, limited)
    named = False
    for i in range(1, 6):
        path = f"/api/v1/messages/{2**47 + i}/x"
        named |= b"salaries" in server.request("GET", path, headers=limited).body
    text = f"configure {evil.status}, foreign name {'read' if named else 'not read'}"
    return text, evil.status == 403 and not named


# -- starting --


@start_trial("a lost encryption key stores nothing in the clear")
def _plain(tree: Path, place: Path) -> Verdict:
    first = Server(tree, place, {"QUEEN_ENCRYPTION_KEY": "ab" * 32})
    try:
        assert first.wait_ready(), first.log
        first.configure("sealed", encryptionEnabled=True)
    finally:
        first.stop()
    second = Server(tree, place)
    try:
        assert second.wait_ready(), second.log
        status = second.push("sealed", "a")[0]
        return status, status == "503"
    finally:
        second.stop()


@start_trial("a missing encryption key stops neither pops nor listings of what is readable")
def _missing_key(tree: Path, place: Path) -> Verdict:
    first = Server(tree, place, {"QUEEN_ENCRYPTION_KEY": "ab" * 32})
    try:
        assert first.wait_ready(), first.log
        first.configure("sealed", encryptionEnabled=True)
        for number in range(3):
            first.push("sealed", f"old-{number}", partition=f"old-{number}")
    finally:
        first.stop()
    second = Server(tree, place, {"QUEEN_ENCRYPTION_KEY": "cd" * 32})
    try:
        assert second.wait_ready(), second.log
        for number in range(3):
            second.push("sealed", f"new-{number}", partition=f"new-{number}")
        pops = [
            second.request("GET", f"/api/v1/pop/queue/sealed?autoAck=true&batch=6&partitions={n}")
            for n in (1, 1, 6, 6, 1, 6)
        ]
        got = sorted(m["data"] for one in pops if one.status == 200 for m in one.json["messages"])
        statuses = [one.status for one in pops]
        listed = second.request("GET", "/api/v1/messages").status
        dead = second.request("GET", "/api/v1/dlq").status
        observed = f"pops {statuses} brought {got}; listings {listed}, {dead}"
        right = got == ["new-0", "new-1", "new-2"] and {listed, dead} == {200}
        return observed, right and not {500, 503} & set(statuses)
    finally:
        second.stop()


@start_trial("the files of the database show nothing of an encrypted queue")
def _at_rest(tree: Path, place: Path) -> Verdict:
    server = Server(tree, place, {"QUEEN_ENCRYPTION_KEY": "ab" * 32})
    words = {what: f"TOPSECRET-{what}" for what in ("payload", "reason", "trace", "event")}
    try:
        assert server.wait_ready(), server.log
        server.configure("sealed", encryptionEnabled=True, retryLimit=0)
        server.push("sealed", "a", payload=words["payload"])
        (message,) = server.pop("sealed")
        named = {name: message[name] for name in ("transactionId", "partitionId", "leaseId")}
        trace = {"eventType": words["event"], "data": words["trace"]}
        assert server.request("POST", "/api/v1/traces", named | trace).status == 201
        failed = {"status": "failed", "error": words["reason"]}
        assert server.request("POST", "/api/v1/ack", named | failed).status == 200
        (letter,) = server.request("GET", "/api/v1/dlq?queue=sealed").json["messages"]
        assert letter["errorMessage"] == words["reason"]
    finally:
        server.stop()
    files = [path.read_bytes() for path in (place / "postgres").rglob("*") if path.is_file()]
    shown = [what for what, word in words.items() if any(word.encode() in one for one in files)]
    return f"readable: {', '.join(shown) or 'nothing'}", not shown


@start_trial("a sealed body that was moved to another queue is not decrypted there")
def _moved(tree: Path, place: Path) -> Verdict:
    import psycopg  # nothing else here speaks to the database

    server = Server(tree, place, {"QUEEN_ENCRYPTION_KEY": "ab" * 32})
    try:
        assert server.wait_ready(), server.log
        for queue in ("secret", "mine"):
            server.configure(queue, encryptionEnabled=True)
            server.push(queue, queue)
        # As whoever may write to the database.
        with psycopg.connect(host=str(place / "run"), user="postgres", dbname="postgres") as found:
            moved = found.execute(
                "WITH s AS (SELECT s.*, q.name FROM queen.segments s JOIN queen.partitions p ON"
                " p.id = s.partition_id JOIN queen.queues q ON q.id = p.queue_id)"
                " UPDATE queen.segments t SET body = o.body, codec = o.codec, ids = o.ids,"
                " first_message_id = o.first_message_id FROM s o, s m WHERE o.name = 'secret'"
                " AND m.name = 'mine' AND t.partition_id = m.partition_id"
            ).rowcount
            assert moved == 1
        got = [one["data"] for one in server.pop("mine")]
        return f"the reader of the other queue gets {got}", got == []
    finally:
        server.stop()


@start_trial("PG* of the environment does not reach the embedded PostgreSQL")
def _environment(tree: Path, place: Path) -> Verdict:
    hostile = {
        "PGPORT": "6543", "PGHOSTADDR": "127.0.0.1", "PGSERVICE": "nosuch",
        "PGOPTIONS": "-c default_transaction_read_only=on", "PGCLIENTENCODING": "LATIN1",
        "PGCHANNELBINDING": "require", "PGREQUIREAUTH": "scram-sha-256", "PGGSSENCMODE": "require",
    }  # fmt: skip
    server = Server(tree, place, hostile)
    try:
        if not server.wait_ready():
            return "does not start", False
        status = server.push("中文", "a")[0]
        return f"starts, push {status}", status == "queued"
    finally:
        server.stop()


@start_trial("an empty or torn postmaster.pid does not keep it from starting")
def _pid_file(tree: Path, place: Path) -> Verdict:
    started = []
    for text in ("", "garbage\n"):
        server = Server(tree, place)
        assert server.wait_ready(), server.log
        server.kill_all()
        (place / "postgres" / "postmaster.pid").write_text(text)
        again = Server(tree, place)
        started.append(again.wait_ready())
        again.stop()
        (place / "postgres" / "postmaster.pid").unlink(missing_ok=True)
    return f"started: {started}", all(started)


@start_trial("a group-writable folder is repaired or explained")
def _group_writable(tree: Path, place: Path) -> Verdict:
    server = Server(tree, place)
    assert server.wait_ready(), server.log
    server.stop()
    (place / "postgres").chmod(0o770)
    again = Server(tree, place)
    started = again.wait_ready()
    again.stop()
    return ("starts" if started else "does not start"), started


@start_trial("data of another PostgreSQL says which and what to do")
def _major(tree: Path, place: Path) -> Verdict:
    server = Server(tree, place)
    assert server.wait_ready(), server.log
    server.stop()
    (place / "postgres" / "PG_VERSION").write_text("15\n")
    again = Server(tree, place)
    again.wait_ready()
    said = " ".join(again.log.splitlines()[-3:])
    again.stop()
    return said[-160:], "15" in said and "upgrade-database" in said


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trials", description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose server is tried")
    parser.add_argument("--only", default="", help="run the trials whose name contains this")
    given = parser.parse_args()
    wrong = 0
    for one in TRIALS:
        if given.only not in one.name:
            continue
        with folder() as place:
            try:
                observed, right = one.run(given.tree.resolve(), place)
            except Exception as exc:  # a trial that breaks is a wrong one; the next one goes on
                observed, right = f"{type(exc).__name__}: {exc}", False
        wrong += not right
        print(f"{'right' if right else 'WRONG'}  {one.name}: {observed}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
