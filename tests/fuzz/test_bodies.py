"""Bodies of all routes with sizes, depths and counts around every limit, and far beyond.

The routes and their fields are those of the OpenAPI document. Whatever comes: no 5xx, no refusal
without a reason, `/livez` within two seconds, and workers below their stated memory. What was
accepted can be popped, given up, listed and moved back. The printed seed sends the same again.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from tests.client import Answer, Client
from tests.e2e.test_memory_bound import PROBE_SECONDS_MAX, forget_peaks, peaks, probed
from tests.fix_fuzz import Fuzz
from tests.fuzz.test_requests import WORKER_BYTES_MAX, cluster

LIMITS = {
    "MAX_BODY_SIZE": str(4 << 20),
    "REQUEST_MEMORY": str(24 << 20),
    "MAX_BATCH_ITEMS": "300",
    "MAX_TRANSACTION_OPERATIONS": "200",
    "BODY_TIMEOUT": "2000",
}
COUNTS = (0, 1, 2, 199, 200, 201, 299, 300, 301, 5_000, 300_000)
LEVELS: tuple[int, ...] = (1, 2, 499, 500, 501, 700, *range(950, 1001, 7), 5_000, 200_000)
SIZES = (0, 1, 1023, 65_535, 65_536, (1 << 20) - 100, 1 << 20, (4 << 20) - 100, 4 << 20, 9 << 20)
# Larger ones only take the sender's time: the server reads none of it.
BYTES_MAX = 10 << 20
QUEUES = ("bodies", "bodies-too")
SENDERS = 6


class Bodies:
    """What is sent: all choices of one random generator."""

    def __init__(self, seed: str, document: dict[str, Any]) -> None:
        self.rng = random.Random(seed)
        self._schemas = document["components"]["schemas"]

    def of(self, schema: dict[str, Any]) -> bytes:
        """A body of *schema* in which one thing or two are out of all measure."""
        body = self._value(schema)
        while self.rng.random() < 0.3 and len(body) < BYTES_MAX:
            cut = self.rng.randrange(len(body) + 1)
            body = self.rng.choice((body[:cut], body[:cut] + b"\xff" + body[cut:], body + body))
        return body

    def _value(self, schema: dict[str, Any]) -> bytes:
        rng = self.rng
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        if rng.random() < 0.15:
            return self._extreme()
        if "anyOf" in schema:
            return self._value(rng.choice(schema["anyOf"]))
        match schema.get("type"):
            case "object" if "properties" in schema:
                return self._object(schema)
            case "array":
                item = self._value(schema.get("items", {}))
                count = rng.choice(COUNTS)
                while count > 1 and count * len(item) > BYTES_MAX:
                    count //= 10
                return b"[" + b",".join([item] * count) + b"]"
            case "string":
                return rng.choice((b'"bodies"', b'"bodies-too"', b'"push"', b'"ack"', b'"1"'))
            case "integer" | "number":
                return rng.choice((b"0", b"1", b"-1", b"9" * 400, b"1e308", b"0." + b"9" * 5_000))
            case "boolean":
                return rng.choice((b"true", b"false"))
            case _:
                return rng.choice((b"null", b"1", b'{"a":[1]}', self._nested()))

    def _object(self, schema: dict[str, Any]) -> bytes:
        rng = self.rng
        needed = schema.get("required", [])
        fields = [
            b'"%b":%b' % (name.encode(), self._value(own))
            for name, own in schema["properties"].items()
            if rng.random() < (0.95 if name in needed else 0.3)
        ]
        if rng.random() < 0.2:
            fields.append(b'"unheard of":' + self._extreme())
        if rng.random() < 0.05 and sum(map(len, fields)) < 10_000:
            fields *= rng.choice((2, 1_000))
        rng.shuffle(fields)
        return b"{" + b",".join(fields) + b"}"

    def _extreme(self) -> bytes:
        rng = self.rng
        size = rng.choice(SIZES)
        make: Callable[[], bytes] = rng.choice(
            (
                self._nested,
                lambda: b'"' + b"x" * size + b'"',
                lambda: b'"' + b"\\u0000" * (size // 6) + b'"',
                lambda: b"[" + b"0," * (size // 2) + b"0]",
                lambda: b"[" + b"{}," * (size // 3) + b"{}]",
                lambda: b" " * size + b"1",
                lambda: b"9" * min(size, 100_000),
            )
        )
        return make()

    def _nested(self) -> bytes:
        levels = self.rng.choice(LEVELS)
        around: list[tuple[bytes, bytes]] = [(b"[", b"]"), (b'{"a":', b"}"), (b'["]",[],', b"]")]
        opening, closing = self.rng.choice(around)
        return opening * levels + b"1" + closing * levels


def check(answer: Answer, path: str, body: bytes) -> None:
    assert answer.status < 500, (path, answer.status, answer.raw[:500], body[:500], len(body))
    if answer.status >= 400:
        assert answer.error, path
    if answer.status == 429:
        assert int(answer.headers["Retry-After"]) >= 1


async def throw(
    url: str, operations: list[tuple[str, str, dict[str, Any]]], bodies: Bodies, until: float
) -> int:
    sent = 0
    async with Client(url, fresh=True) as client:
        while time.monotonic() < until:
            method, path, schema = bodies.rng.choice(operations)
            body = bodies.of(schema)
            headers = {"Content-Type": "application/json"}
            check(await client.send(method, path, body=body, headers=headers), path, body)
            sent += 1
    return sent


async def give_everything_up(client: Client) -> int:
    """Pop, nack, list and move back all that was accepted; how many messages that were."""
    count = 0
    for queue in QUEUES:
        while messages := (await client.pop(queue, batch=100)).messages:
            count += len(messages)
            await client.ack_batch([(message, "dlq") for message in messages])
        for target in (f"messages?queue={queue}&limit=1000", f"dlq?queue={queue}&limit=1000"):
            check(await client.get(f"/api/v1/{target}"), target, b"")
        check(await client.post("/api/v1/dlq/redrive", {"queue": queue}), "redrive", b"")
    return count


async def test_whatever_bodies_come_the_server_lives(conninfo: str, fuzz: Fuzz) -> None:
    print(f"--fuzz-seed {fuzz.seed}")
    with cluster(conninfo, **LIMITS) as server:
        workers = server.worker_pids()
        async with Client(server.url) as client:
            document = (await client.get("/openapi.json")).json
            operations = [
                (method.upper(), path.replace("{", "").replace("}", ""),
                 operation["requestBody"]["content"]["application/json"]["schema"])
                for path, methods in document["paths"].items()
                for method, operation in methods.items()
                if "requestBody" in operation and "maintenance" not in path
            ]  # fmt: skip
            assert len(operations) >= 12
            # What holds most of a worker's memory and time, more often than the others.
            operations += 4 * [one for one in operations if one[1] in BATCHES]
            for queue in QUEUES:
                await client.push(queue, [0])
            forget_peaks(server)
            with probed(server.url) as took:
                until = time.monotonic() + fuzz.seconds / 2
                sent = await asyncio.gather(
                    *(
                        throw(server.url, operations, Bodies(f"{fuzz.seed} {n}", document), until)
                        for n in range(SENDERS)
                    )
                )
                await asyncio.sleep(0.6)
            stored = await give_everything_up(client)
        print(
            f"{sum(sent)} bodies, {stored} messages stored, at most {max(peaks(server)) >> 20} MB"
        )
        assert stored > 0
        assert max(peaks(server)) <= WORKER_BYTES_MAX
        assert max(took) < PROBE_SECONDS_MAX
        assert server.worker_pids() == workers


BATCHES = ("/api/v1/push", "/api/v1/transaction", "/api/v1/ack/batch", "/api/v1/traces")
