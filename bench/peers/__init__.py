"""Other brokers, put under the load that ours is measured with.

Most modules here are a peer: how it is started, with durable settings, on loopback in a folder that
goes away with it, and the driver that speaks its protocol in its own best form of a batch. The load
is the canonical one (`scenarios/peers.py`): 200 lanes of 256-byte messages, 100 a push.

Few brokers have ordered partitions in our sense. Where a peer has something of the kind, the lanes
are dealt out to `SHARES` of it (queues, filtered consumers), each read by one consumer, so that the
order of every lane can be kept and checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.client import RequestFailed
from bench.core_seconds import Meter
from bench.driver import Driver

SHARES = 8  # as many as the load has consumers


@dataclass(frozen=True)
class Running:
    """A peer that was started.

    Shape: *broker* meters all processes of the peer; *clients* those of its client library that are
    no part of the load generator's own. *unfinished* counts the messages that the peer itself still
    holds as not acknowledged.
    """

    version: str
    driver: Driver
    broker: Meter
    unfinished: Callable[[], int]
    clients: Sequence[Meter] = ()


@dataclass(frozen=True)
class Peer:
    """One of them. *settings* says what makes it durable, and its forms of push, pop and ack."""

    name: str
    settings: str
    is_ordered: bool  # whether each lane's order is promised, and hence checked
    missing: Callable[[], str | None]  # what is not installed and how to install it
    start: Callable[[Path], AbstractContextManager[Running]]  # with its data below the folder

    @contextmanager
    def running(self, home: Path) -> Iterator[Running]:
        """Started, and stopped at the end. Errors name the peer."""
        try:
            with self.start(home) as running:
                yield running
        except RequestFailed as exc:
            raise RequestFailed(f"{self.name}: {exc}") from exc
