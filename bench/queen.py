"""The driver of our own protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote

import msgspec

from bench import wire
from bench.client import (
    Connection,
    RequestFailed,
    SlowConnection,
    check_status,
    fetch,
    head_of,
    parse_url,
)
from bench.core_seconds import owner_of_connection
from bench.driver import Lot, Popped, Subscription

PUSH_PATH = "/api/v1/push"
ACK_PATH = "/api/v1/ack/batch"

QUEUE_MODE = "__QUEUE_MODE__"  # the group of consumers that name none

_PLACING_TRIES = 100  # with two workers, one failure in 2^100


class _Totals(msgspec.Struct):
    total: int


class _Queue(msgspec.Struct):
    totals: _Totals


class _Depth(msgspec.Struct):
    pending: int


async def stored_count(url: str, queue: str) -> int:
    """Return how many messages of a queue the server keeps, read or not."""
    path = f"/api/v1/resources/queues/{quote(queue, safe='')}"
    body = await fetch(parse_url(url), "GET", path, 200)
    return msgspec.json.decode(body, type=_Queue).totals.total


async def unread_count(url: str, queue: str, group: str | None) -> int:
    """Return how many messages a group has not acknowledged, by the server's count."""
    name = quote(group or QUEUE_MODE, safe="")
    path = f"/api/v1/resources/queues/{quote(queue, safe='')}/depth?group={name}"
    body = await fetch(parse_url(url), "GET", path, 200)
    return msgspec.json.decode(body, type=_Depth).pending


@dataclass(frozen=True)
class Queen:
    """Shape: *worker* is the process to be served by, None = whichever the kernel picks.

    *source* is the address to connect from; each has about 28,000 ports. *bytes_per_second* is how
    fast answers are read, 0 = as fast as they come.
    """

    url: str
    worker: int | None = None
    source: str | None = None
    bytes_per_second: float = 0.0
    name: str = "queue-server"
    _mint: wire.IdMint = field(default_factory=wire.IdMint)

    def encode(self, queue: str, lots: Sequence[Lot], payload_bytes: int = 0) -> bytes:
        mint = self._mint.mint
        return wire.push_body(
            wire.push_items(queue, partition, numbers, mint(len(numbers)), payload_bytes)
            for partition, numbers in lots
        )

    async def producer(self) -> QueenProducer:
        return QueenProducer(*await self._open())

    async def consumer(self, wanted: Subscription) -> QueenConsumer:
        return QueenConsumer(*await self._open(), wanted)

    async def _open(self) -> tuple[SplitResult, Connection]:
        url = parse_url(self.url)
        try:
            if self.bytes_per_second:
                return url, await SlowConnection.open_slow(url, self.bytes_per_second)
            if self.worker is None:
                return url, await Connection.open(url, self.source)
            return url, await self._open_at_worker(url)
        except OSError as exc:
            raise RequestFailed(f"no server at {self.url}: {exc}") from exc

    async def _open_at_worker(self, url: SplitResult) -> Connection:
        # The others are kept until one is right: who balances connections gives the next one to
        # the worker that has fewer.
        others: list[Connection] = []
        try:
            for _ in range(_PLACING_TRIES):
                connection = await Connection.open(url, self.source)
                # Once it has answered, it belongs to a process.
                await connection.request(head_of(url, "GET", "/health"))
                if owner_of_connection(url.port or 80, connection.local_port) == self.worker:
                    return connection
                others.append(connection)
        finally:
            for other in others:
                other.close()
        raise RequestFailed(f"no connection came to worker {self.worker}")


class QueenProducer:
    def __init__(self, url: SplitResult, connection: Connection) -> None:
        self._url = url
        self._connection = connection

    async def push(self, body: bytes, message_count: int) -> None:
        head = head_of(self._url, "POST", PUSH_PATH, len(body))
        answer = await self._connection.request(head, body)
        check_status(answer, "push", 200, 201)
        stored = wire.queued_count(answer.body)
        if stored != message_count:
            text = answer.body[:300].decode(errors="replace")
            raise RequestFailed(f"a push of {message_count} messages stored {stored}: {text}")

    def close(self) -> None:
        self._connection.close()


class QueenConsumer:
    def __init__(self, url: SplitResult, connection: Connection, wanted: Subscription) -> None:
        self._url = url
        self._connection = connection
        self._wanted = wanted
        path = wire.pop_path(
            wanted.queue,
            wanted.partition,
            batch=wanted.batch,
            group=wanted.group,
            wait_ms=wanted.wait_ms,
            auto_ack=wanted.auto_ack,
            partitions=wanted.partitions,
        )
        self._pop_head = head_of(url, "GET", path)

    async def pop(self) -> Popped | None:
        answer = await self._connection.request(self._pop_head)
        check_status(answer, "pop", 200, 204)
        if answer.status == 204:
            return None
        if self._wanted.partitions == 1:
            delivery = wire.pop_decoder.decode(answer.body)
            claimed, parts = delivery.partitionsClaimed, [delivery]
        else:
            several = wire.pop_several_decoder.decode(answer.body)
            claimed, parts = several.partitionsClaimed, several.parts()
        if claimed > self._wanted.partitions:
            raise RequestFailed(f"a pop of {self._wanted.partitions} partitions claimed {claimed}")
        lots = [(part.partition, [m.data.id for m in part.messages]) for part in parts]
        count = sum(len(ids) for _, ids in lots)
        return Popped(lots, count, len(answer.body), parts)

    async def acknowledge(self, popped: Popped) -> None:
        parts: list[wire.PopAnswer] = popped.token  # type: ignore[assignment]
        body = wire.ack_body(parts, self._wanted.group)
        answer = await self._connection.request(
            head_of(self._url, "POST", ACK_PATH, len(body)), body
        )
        check_status(answer, "ack", 200)
        succeeded = wire.succeeded_count(answer.body)
        if succeeded != popped.message_count:
            text = answer.body[:300].decode(errors="replace")
            raise RequestFailed(
                f"{succeeded} of {popped.message_count} acknowledgements succeeded: {text}"
            )

    def close(self) -> None:
        self._connection.close()
