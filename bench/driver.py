"""What a load needs of a broker, so that other brokers can be put under the same load.

A load (`loads.py`) decides what is moved when, and times it; a driver knows a protocol, its best
form of a batch and how an acknowledgement looks there. `queen.py` is ours. A driver is made before
the load's processes are forked, so it holds no connections of its own.

Errors: all raise `RequestFailed` when the broker did not do what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

Lot = tuple[str, Sequence[int]]  # a partition, and the ids of the messages that go there


@dataclass(frozen=True)
class Subscription:
    """What a consumer asks for, again and again."""

    queue: str
    batch: int
    partition: str | None = None  # None = whatever the broker hands out
    partitions: int = 1  # how many of them one pop may take from
    group: str | None = None
    auto_ack: bool = False
    wait_ms: int = 30_000


class Popped(msgspec.Struct, gc=False):
    """What one pop brought."""

    lots: list[tuple[str, list[int]]]
    message_count: int
    byte_count: int
    token: object  # the driver's own: what it acknowledges with


class Producer(Protocol):
    """A connection that pushes."""

    async def push(self, body: bytes, message_count: int) -> None:
        """Push what `Driver.encode` made; every one of *message_count* messages is stored."""

    def close(self) -> None: ...


class Consumer(Protocol):
    """A connection that pops and acknowledges, one request at a time."""

    async def pop(self) -> Popped | None:
        """The next messages; None when none came in time."""

    async def acknowledge(self, popped: Popped) -> None:
        """Acknowledge every message by its own id, in one request."""

    def close(self) -> None: ...


class Driver(Protocol):
    """How to talk to a broker."""

    @property
    def name(self) -> str: ...

    def encode(self, queue: str, lots: Sequence[Lot], payload_bytes: int = 0) -> bytes:
        """A push request, ready to be sent; ids of messages are minted here."""

    async def producer(self) -> Producer: ...

    async def consumer(self, wanted: Subscription) -> Consumer: ...
