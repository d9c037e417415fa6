"""A small HTTP client for the tests: the routes as methods, answers as plain values.

It knows the wire and nothing of the server's code, so that a test which uses it judges the server
from outside. Methods named after a verb (`push`, `pop`, `ack` ...) assert the status that the verb
has when all is well and hand back the parsed body; `send` and `post` hand back whatever came.

A client keeps its connections by default. With `fresh=True` it opens one connection per request:
the kernel spreads connections over the workers, so such a client talks to all of them.
"""

import asyncio
import io
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

Message = dict[str, Any]
T = TypeVar("T")

REQUEST_TIMEOUT = 30.0  # seconds, on top of what a long poll asks for


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # case-insensitive
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw, parse_int=_integer)

    @property
    def error(self) -> str:
        """The text of an error body; fails when the body is anything else."""
        body = self.json
        assert isinstance(body, dict), self
        assert isinstance(body["error"], str), self
        assert body["error"], self
        return str(body["error"])


def _integer(digits: str) -> int | str:
    """The server gives back any number as it came; Python reads those of 4,300 digits at most."""
    return int(digits) if len(digits) <= 4000 else digits


@dataclass(frozen=True)
class Pop:
    """What one pop answered; an empty one (204) has no body."""

    status: int
    body: dict[str, Any]

    @property
    def messages(self) -> list[Message]:
        return list(self.body.get("messages", []))

    @property
    def lease_id(self) -> str:
        return str(self.body["leaseId"])

    @property
    def data(self) -> list[Any]:
        return [message["data"] for message in self.messages]

    @property
    def ids(self) -> list[str]:
        return [message["transactionId"] for message in self.messages]

    @property
    def offsets(self) -> list[int]:
        return [message["offset"] for message in self.messages]

    @property
    def attempts(self) -> set[int]:
        return {message["deliveryAttempt"] for message in self.messages}


class Client:
    def __init__(self, url: str, *, fresh: bool = False, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._fresh = fresh
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        method: str,
        target: str,
        *,
        body: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Answer:
        """Send *target* (path and query) exactly as given, without encoding anything.

        A redirect is an answer like others.
        """
        if self._session is None:  # born here, inside the loop that uses it
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=self._fresh),
                skip_auto_headers=("Content-Type",),
                headers=self._headers,
            )
        async with self._session.request(
            method,
            URL(self.url + target, encoded=True),
            # A large body as bare bytes makes aiohttp warn that it may block the loop.
            data=io.BytesIO(body) if isinstance(body, bytes) else body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout),
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, target: str) -> Answer:
        return await self.send("GET", target)

    async def post(self, path: str, value: Any, *, timeout: float = REQUEST_TIMEOUT) -> Answer:
        return await self.send(
            "POST",
            path,
            body=json.dumps(value).encode(),
            headers={"Content-Type": "application/json"},
            timeout=timeout,
        )

    # ── queues ──────────────────────────────────────────────────────────────────────────────────

    async def configure(
        self, queue: str, options: Mapping[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any]:
        request: dict[str, Any] = {"queue": queue, **fields}
        if options is not None:
            request["options"] = dict(options)
        answer = await self.post("/api/v1/configure", request)
        assert answer.status in (200, 201), answer
        body = answer.json
        assert isinstance(body, dict), answer
        assert body["configured"] is True, answer
        return body

    async def delete(self, queue: str) -> dict[str, Any]:
        answer = await self.send("DELETE", f"/api/v1/resources/queues/{segment(queue)}")
        assert answer.status == 200, answer
        body = answer.json
        assert isinstance(body, dict), answer
        return body

    # ── push ────────────────────────────────────────────────────────────────────────────────────

    async def push_items(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answer = await self.post("/api/v1/push", {"items": list(items)})
        assert answer.status == 201, answer
        results = answer.json
        assert isinstance(results, list), answer
        assert [result["index"] for result in results] == list(range(len(items))), answer
        return results

    async def push(
        self,
        queue: str,
        payloads: Sequence[Any],
        *,
        partition: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Push *payloads* to one partition; with *ids* they carry these transaction ids."""
        items: list[dict[str, Any]] = []
        for position, payload in enumerate(payloads):
            item = {"queue": queue, "payload": payload}
            if partition is not None:
                item["partition"] = partition
            if ids is not None:
                item["transactionId"] = ids[position]
            items.append(item)
        return await self.push_items(items)

    # ── pop ─────────────────────────────────────────────────────────────────────────────────────

    async def pop(
        self,
        queue: str,
        *,
        partition: str | None = None,
        batch: int = 1000,
        group: str | None = None,
        wait_ms: int | None = None,
        **parameters: Any,
    ) -> Pop:
        """Pop from *queue*, or from one partition of it. With *wait_ms* it parks that long."""
        target = f"/api/v1/pop/queue/{segment(queue)}"
        if partition is not None:
            target += f"/partition/{segment(partition)}"
        query: dict[str, Any] = {"batch": batch, **parameters}
        if group is not None:
            query["consumerGroup"] = group
        if wait_ms is not None:
            query |= {"wait": "true", "timeout": wait_ms}
        answer = await self.send(
            "GET",
            f"{target}?{urlencode(query, quote_via=quote)}",
            timeout=REQUEST_TIMEOUT + (wait_ms or 0) / 1000,
        )
        return as_pop(answer)

    # ── ack and lease ───────────────────────────────────────────────────────────────────────────

    async def ack(
        self,
        message: Message,
        status: str = "completed",
        *,
        group: str | None = None,
        fenced: bool = True,
        **fields: Any,
    ) -> dict[str, Any]:
        """Acknowledge one message and return its result. Unless *fenced*, no lease id is sent."""
        item = _acknowledgement(message, status, fenced) | fields
        if group is not None:
            item["consumerGroup"] = group
        answer = await self.post("/api/v1/ack", item)
        assert answer.status == 200, answer
        results = answer.json
        assert isinstance(results, list), answer
        assert len(results) == 1, answer
        return _checked_result(results[0], 0, message)

    async def ack_batch(
        self,
        acknowledgements: Sequence[tuple[Message, str]],
        *,
        group: str | None = None,
        fenced: bool = True,
        **fields: Any,
    ) -> list[dict[str, Any]]:
        """Acknowledge (message, status) pairs in one call; results stand in the same order.

        *fields* (an error text, for one) are added to every entry.
        """
        request: dict[str, Any] = {
            "acknowledgments": [
                _acknowledgement(message, status, fenced) | fields
                for message, status in acknowledgements
            ]
        }
        if group is not None:
            request["consumerGroup"] = group
        answer = await self.post("/api/v1/ack/batch", request)
        assert answer.status == 200, answer
        results = answer.json
        assert isinstance(results, list), answer
        assert len(results) == len(acknowledgements), answer
        return [
            _checked_result(result, index, message)
            for index, (result, (message, _)) in enumerate(
                zip(results, acknowledgements, strict=True)
            )
        ]

    async def complete(self, pop: Pop, *, group: str | None = None) -> list[dict[str, Any]]:
        """Acknowledge everything that *pop* brought, in one call that must succeed."""
        results = await self.ack_batch(
            [(message, "completed") for message in pop.messages], group=group
        )
        assert all(result["success"] for result in results), results
        return results

    async def extend(self, lease_id: str, seconds: int | None = None) -> dict[str, Any]:
        """Extend a lease; without *seconds* the request has no body, like the official client."""
        path = f"/api/v1/lease/{segment(lease_id)}/extend"
        if seconds is None:
            answer = await self.send("POST", path)
        else:
            answer = await self.post(path, {"seconds": seconds})
        assert answer.status == 200, answer
        body = answer.json
        assert isinstance(body, dict), answer
        return body

    # ── consumer groups ─────────────────────────────────────────────────────────────────────────

    async def delete_group(
        self, group: str, queue: str | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Delete a group, everywhere unless *queue* is named."""
        target = f"/api/v1/consumer-groups/{segment(group)}"
        if queue is not None:
            target += f"/queues/{segment(queue)}"
        answer = await self.send("DELETE", f"{target}?{urlencode(parameters)}")
        assert answer.status == 200, answer
        body = answer.json
        assert isinstance(body, dict), answer
        assert body["success"] is True, answer
        assert body["consumerGroup"] == group, answer
        return body

    async def seek(
        self, group: str, queue: str, *, partition: str | None = None, **body: Any
    ) -> dict[str, Any]:
        """Move a group on a queue or one partition of it; without *body* nothing is sent."""
        answer = await self.try_seek(group, queue, partition=partition, **body)
        assert answer.status == 200, answer
        result = answer.json
        assert isinstance(result, dict), answer
        assert result["success"] is True, answer
        return result

    async def try_seek(
        self, group: str, queue: str, *, partition: str | None = None, **body: Any
    ) -> Answer:
        target = f"/api/v1/consumer-groups/{segment(group)}/queues/{segment(queue)}"
        if partition is not None:
            target += f"/partitions/{segment(partition)}"
        return await (
            self.post(f"{target}/seek", body) if body else self.send("POST", f"{target}/seek")
        )


def segment(name: str) -> str:
    """*name* as one path segment."""
    return quote(name, safe="")


def as_pop(answer: Answer) -> Pop:
    if answer.status == 204:
        assert answer.raw == b"", answer
        return Pop(204, {})
    assert answer.status == 200, answer
    body = answer.json
    assert body["messages"], "an empty pop answers 204"
    return Pop(200, body)


def _acknowledgement(message: Message, status: str, fenced: bool) -> dict[str, Any]:
    item = {
        "transactionId": message["transactionId"],
        "partitionId": message["partitionId"],
        "status": status,
    }
    if fenced:
        item["leaseId"] = message["leaseId"]
    return item


def _checked_result(result: Any, index: int, message: Message) -> dict[str, Any]:
    """What holds for every result; above all, a success never carries an error (wire-api 2.7)."""
    assert isinstance(result, dict), result
    assert result["index"] == index, result
    assert result["transactionId"] == message["transactionId"], result
    assert isinstance(result["success"], bool), result
    if result["success"]:
        assert result.get("error") is None, result
    else:
        assert isinstance(result["error"], str), result
        assert result["error"], result
    return result


# ── helpers that many tests share ───────────────────────────────────────────────────────────────


def unique(prefix: str) -> str:
    """A name that no other test uses, so that tests share a server without meeting."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def uuid7(at: float | None = None) -> str:
    """A UUIDv7 (RFC 9562) for the Unix time *at*, now by default."""
    milliseconds = int((time.time() if at is None else at) * 1000)
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds & ((1 << 48) - 1)) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


async def eventually(
    check: Callable[[], Awaitable[T | None]], *, deadline: float = 10.0, interval: float = 0.02
) -> T:
    """Call *check* until it answers something true, for at most *deadline* seconds."""
    end = time.monotonic() + deadline
    while True:
        value = await check()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline} s"
        await asyncio.sleep(interval)


async def drain(
    client: Client, queue: str, *, partition: str | None = None, group: str | None = None
) -> list[Message]:
    """Pop and acknowledge until the queue answers empty; everything that came, in order."""
    messages: list[Message] = []
    while True:
        pop = await client.pop(queue, partition=partition, group=group, partitions=64)
        if pop.status == 204:
            return messages
        messages += pop.messages
        await client.complete(pop, group=group)
