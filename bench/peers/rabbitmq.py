"""RabbitMQ with durable quorum queues: a message is synced to the disk before it is confirmed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.core_seconds import Meter
from bench.driver import Lot, Popped, Subscription
from bench.peers import SHARES, Peer, Running, messages
from bench.peers.amqp import AmqpConnection
from bench.peers.process import LOOPBACK, free_port, started, takes_connections

# Debian's /usr/sbin/rabbitmq-server always runs the system's broker; this one does as it is told.
_BINARY = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_PREFETCH = 2000  # two pops: one is being acknowledged while the next arrives


def _missing() -> str | None:
    if _BINARY.exists() and shutil.which("epmd"):
        return None
    return "apt-get install rabbitmq-server"


@contextmanager
def _start(home: Path) -> Iterator[Running]:
    port, names_port = free_port(), free_port()
    names = {"ERL_EPMD_PORT": str(names_port), "ERL_EPMD_ADDRESS": LOOPBACK}
    environment = names | {
        "RABBITMQ_NODENAME": "bench@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false -noinput"
        ),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "environment"),
        # The shell becomes the broker, so that its process id is the broker's.
        "RABBITMQ_ALLOW_INPUT": "true",
    }
    (home / "environment").touch()
    # Left to itself the broker would start a name server that outlives it.
    epmd = ["epmd", "-address", LOOPBACK, "-port", str(names_port)]
    with (
        started(epmd, home, takes_connections(names_port), names),
        started([str(_BINARY)], home, takes_connections(port), environment) as process,
    ):
        version = asyncio.run(_prepare(port))
        yield Running(version, RabbitMq(port), Meter(process.pid), lambda: _unfinished(port))


async def _prepare(port: int) -> str:
    connection = await AmqpConnection.open(LOOPBACK, port)
    for share in range(SHARES):
        await connection.declare(_queue(share))
    connection.close()
    return connection.version


def _unfinished(port: int) -> int:
    async def count() -> int:
        connection = await AmqpConnection.open(LOOPBACK, port)
        counts = [await connection.message_count(_queue(share)) for share in range(SHARES)]
        connection.close()
        return sum(counts)

    # Its consumers are gone, so what they held unacknowledged is back in the queues.
    return asyncio.run(count())


def _queue(share: int) -> str:
    return f"bench-{share}"


@dataclass(frozen=True)
class RabbitMq:
    port: int
    name: str = "RabbitMQ"

    def encode(self, queue: str, lots: Sequence[Lot], payload_bytes: int = 0) -> bytes:
        return messages.encode(lots, payload_bytes)

    async def producer(self) -> _Producer:
        connection = await AmqpConnection.open(LOOPBACK, self.port)
        await connection.confirm()
        return _Producer(connection)

    async def consumer(self, wanted: Subscription) -> _Consumer:
        assert wanted.partition is not None
        connection = await AmqpConnection.open(LOOPBACK, self.port)
        await connection.consume(_queue(int(wanted.partition)), _PREFETCH)
        return _Consumer(connection, wanted.batch)


@dataclass(frozen=True)
class _Producer:
    connection: AmqpConnection

    async def push(self, body: bytes, message_count: int) -> None:
        lane, payloads = messages.split(body)
        assert len(payloads) == message_count
        await self.connection.publish(_queue(lane % SHARES), payloads)

    def close(self) -> None:
        self.connection.close()


@dataclass(frozen=True)
class _Consumer:
    connection: AmqpConnection
    batch: int

    async def pop(self) -> Popped:
        delivered = await self.connection.inbox.take(self.batch)
        return messages.popped([one.payload for one in delivered], delivered[-1].tag)

    async def acknowledge(self, popped: Popped) -> None:
        tag = popped.token
        assert isinstance(tag, int)
        self.connection.acknowledge(tag)

    def close(self) -> None:
        self.connection.close()


PEER = Peer(
    "RabbitMQ",
    f"{SHARES} durable quorum queues (one node, its log synced before a confirm), persistent "
    "messages; a push is 100 publishes in one write and the wait for all their confirms; "
    f"one consumer a queue, prefetch {_PREFETCH}, one acknowledgement (multiple) for what has "
    "arrived, at most 1000",
    True,
    _missing,
    _start,
)
