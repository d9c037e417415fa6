"""Bytes over sockets, as no client of good will sends them, at a server of two workers.

Raw bytes in every header, sizes, depths and counts without measure, pipelines cut anywhere, heads
and bodies without an end, answers that nobody reads. Whatever comes: no 5xx, `/livez` answers
within two seconds, and workers keep the memory that docs/operating.md states. The seed that is
printed sends the same again, though not at the same moments.
"""

import asyncio
import contextlib
import json
import random
import re
import socket
import string
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

import jwt
import pytest

from tests.cluster_process import ClusterProcess
from tests.e2e.test_hostile_requests import HEADERS, WEBSOCKET, written
from tests.e2e.test_memory_bound import MB, PROBE_SECONDS_MAX, forget_peaks, peaks, probed
from tests.fix_fuzz import Fuzz
from tests.fuzz.test_requests import SECRET, WORKER_BYTES_MAX, cluster

SENDERS = 12
# Longer than anything of ours waits; the server's pops wait for 20 ms here.
READ_SECONDS = 10

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) [A-Z]")
TARGETS = (
    b"GET /api/v1/pop/queue/raw?autoAck=true", b"GET /api/v1/pop?namespace=%s",
    b"POST /api/v1/push", b"POST /api/v1/ack", b"POST /api/v1/ack/batch",
    b"POST /api/v1/transaction", b"POST /api/v1/configure", b"POST /api/v1/traces",
    b"GET /api/v1/messages?limit=%s&offset=%s",
    b"GET /api/v1/messages/%s/%s", b"GET /api/v1/dlq?queue=%s&from=%s", b"GET /%s",
    b"GET /dashboard/%s", b"GET /openapi.json", b"GET /livez", b"GET /ws/dashboard",
    b"DELETE /api/v1/queues/%s", b"OPTIONS /%s", b"HEAD /%s", b"BREW /%s",
    b"GET /api/v1/resources/queues/%s", b"GET /api/v1/analytics/queue-lag?from=%s&interval=%s",
)  # fmt: skip


class Mind:
    """What is sent: all choices of one random generator."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def text(self) -> bytes:
        """A text for any place, as short or as long as a head may have it."""
        rng = self.rng
        count = rng.choice((1, 8, 100, 5_000))
        return rng.choice(
            (
                lambda: rng.randbytes(count),
                lambda: b"9" * count,
                lambda: b"-%d" % 10 ** min(count, 400),
                lambda: b"(" * count,
                lambda: b"password='" + b"\\a" * min(count, 60),
                lambda: b"://a:" * min(count, 1_000),
                lambda: rng.choice(string.punctuation).encode() * count,
                lambda: "ÿ\u202e\ud800".encode(errors="surrogatepass") * min(count, 500),
                lambda: b"2026-01-01T00:00:00" + b"0" * count,
            )
        )()

    def value(self) -> bytes:
        """One for a header: no line may end in it."""
        return self.text().translate(None, b"\r\n\0")

    def target(self) -> bytes:
        chosen = self.rng.choice(TARGETS)
        while b"%s" in chosen:
            text = quote(self.text(), safe="%" if self.rng.random() < 0.1 else "")
            chosen = chosen.replace(b"%s", text[:6_000].encode(), 1)
        return chosen

    def json(self) -> bytes:
        rng = self.rng
        count = rng.choice((1, 50, 490, 510, 5_000))
        item: dict[str, object] = {"queue": "raw", "payload": 1}
        return rng.choice(
            (
                lambda: json.dumps({"items": [item] * count}).encode(),
                lambda: b'{"items":[{"queue":"a","payload":%s%s}]}' % (b"[" * count, b"]" * count),
                lambda: b"[" * count,
                lambda: b'{"a":' * count,
                lambda: json.dumps(
                    {"items": [item | {"partition": str(n)} for n in range(50)]}
                ).encode(),
                lambda: json.dumps({"items": [item | {"queue": "q" * count}]}).encode(),
                lambda: b'{"operations":[%s]}' % b",".join([b"0"] * count),
                lambda: b'{"acknowledgments":[%s]}' % b",".join([b'{"transactionId":"x"}'] * count),
                lambda: b'{"queue":"raw","options":{"leaseTime":%s}}' % (b"9" * count),
                lambda: rng.randbytes(count),
            )
        )()  # fmt: skip

    def request(self, token: bytes | None) -> bytes:
        """A request, in most parts like one."""
        rng = self.rng
        target = self.target()
        headers = {"Host": b"127.0.0.1"}
        if b"/ws/" in target:
            headers |= WEBSOCKET
        if token is not None and rng.random() < 0.7:
            headers["Authorization"] = b"Bearer " + token
        body = b""
        if target.startswith(b"POST"):
            body = self.json()
            if rng.random() < 0.2:
                headers["Transfer-Encoding"] = b"chunked"
                body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            else:
                headers["Content-Length"] = b"%d" % len(body)
            if rng.random() < 0.2:
                headers["Expect"] = b"100-continue"
        for _ in range(rng.choice((0, 0, 1, 2, 90))):
            headers[rng.choice(HEADERS)] = self.value()
        return written(target, headers, body)


@asynccontextmanager
async def connected(server: ClusterProcess) -> AsyncIterator[socket.socket]:
    parts = urlsplit(server.url)
    with socket.socket() as raw:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(raw, (parts.hostname, parts.port))
        yield raw


async def send_pieces(raw: socket.socket, data: bytes, rng: random.Random) -> None:
    """Send *data*, cut where it likes; a server that has enough may close."""
    cuts = sorted(rng.choices(range(len(data) + 1), k=rng.choice((0, 1, 4))))
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                await asyncio.get_running_loop().sock_sendall(raw, data[start:end])
                await asyncio.sleep(0)


async def all_statuses(raw: socket.socket) -> list[int]:
    """The statuses of what is answered until the connection ends."""
    received = bytearray()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(READ_SECONDS):
            while piece := await asyncio.get_running_loop().sock_recv(raw, 1 << 16):
                received += piece
    return [int(status) for status in STATUS.findall(received)]


async def throw(server: ClusterProcess, mind: Mind, token: bytes | None, until: float) -> int:
    """Throw at *server* what comes to *mind* until then; how many answers there were."""
    rng = mind.rng
    answers = 0
    while time.monotonic() < until:
        sent = b"".join(mind.request(token) for _ in range(rng.choice((1, 1, 3, 20))))
        kind = rng.random()
        async with connected(server) as raw:
            if kind < 0.15:  # an end in the middle
                await send_pieces(raw, sent[: rng.randrange(len(sent))], rng)
            elif kind < 0.3:  # nobody reads
                await send_pieces(raw, sent * rng.choice((1, 30)), rng)
                await asyncio.sleep(rng.random())
            elif kind < 0.4:  # bytes turned over
                damaged = bytearray(sent)
                for _ in range(rng.choice((1, 20))):
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
                await send_pieces(raw, bytes(damaged), rng)
                await asyncio.sleep(0.1)
            else:
                last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                await send_pieces(raw, sent + last, rng)
                statuses = await all_statuses(raw)
                answers += len(statuses)
                faults = [status for status in statuses if status >= 500]
                assert not faults, (faults, sent[:3_000])
    return answers


@pytest.mark.parametrize("authentication", [False, True])
async def test_whatever_bytes_come_the_server_lives(
    conninfo: str, fuzz: Fuzz, authentication: bool
) -> None:
    env: dict[str, str] = {}
    token = None
    if authentication:
        env = {"JWT_ENABLED": "true", "JWT_SECRET": SECRET, "API_KEYS_ENABLED": "true"}
        claims = {"sub": "fuzz", "role": "admin", "exp": int(time.time()) + fuzz.seconds + 600}
        token = jwt.encode(claims, SECRET, "HS256").encode()
    print(f"--fuzz-seed {fuzz.seed}")
    with cluster(conninfo, READER_TIMEOUT="4000", HEADER_TIMEOUT="3000", **env) as server:
        workers = server.worker_pids()
        forget_peaks(server)
        until = time.monotonic() + fuzz.seconds / 2
        with probed(server.url) as took:
            answers = await asyncio.gather(
                *(throw(server, Mind(f"{fuzz.seed} {n}"), token, until) for n in range(SENDERS))
            )
        most = max(peaks(server))
        print(
            f"{sum(answers)} answers, largest worker {most / MB:.0f} MB,"
            f" slowest probe {max(took) * 1000:.0f} ms"
        )
        assert server.worker_pids() == workers
        assert most <= WORKER_BYTES_MAX
        assert max(took) < PROBE_SECONDS_MAX
