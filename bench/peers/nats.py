"""NATS JetStream with file storage and `sync_interval: always`: synced before it is acknowledged.

Since 2.12 a publisher may send an atomic batch, which is stored, synced and answered as one; here
it is the push. Single messages are synced one by one, and are many times slower.

By default JetStream syncs every two minutes: who loses the machine loses up to two minutes of
acknowledged messages. That is no equal of the others, but it is how JetStream is mostly run and
what it is known for, so it is a second peer. Without syncs single messages are its best form.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import msgspec

from bench.client import RequestFailed
from bench.core_seconds import Meter
from bench.driver import Lot, Popped, Subscription
from bench.peers import SHARES, Peer, Running, messages
from bench.peers.inbox import Inbox
from bench.peers.process import LOOPBACK, free_port, started, takes_connections

_OLDEST_SYNCED = (2, 12)  # the first with atomic batches
_STREAM = "BENCH"
_PULL_NS = 30 * 10**9  # how long a pull waits at the server
_ANSWERS, _MESSAGES = "1", "2"  # ids of subscriptions
_HEAD = b"NATS/1.0\r\n"


def _binary() -> str | None:
    """The newest place first: what the extra `peers` brought is beside our Python."""
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return shutil.which("nats-server", path=os.pathsep.join(folders))


def _version(binary: str) -> str:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return said.stdout.strip().rpartition("v")[2]


def _missing() -> str | None:
    return "make peers, or apt-get install nats-server" if _binary() is None else None


def _missing_synced() -> str | None:
    binary = _binary()
    if binary is None:
        return "make peers"
    version = _version(binary)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST_SYNCED:
        return f"nats-server {version} does not know atomic batches; make peers"
    return None


def _start_synced(home: Path) -> AbstractContextManager[Running]:
    return _start(home, synced=True)


def _start_unsynced(home: Path) -> AbstractContextManager[Running]:
    return _start(home, synced=False)


@contextmanager
def _start(home: Path, synced: bool) -> Iterator[Running]:
    binary, port = _binary(), free_port()
    assert binary is not None
    settings = home / "nats.conf"
    sync = ", sync_interval: always" if synced else ""
    settings.write_text(
        f'listen: {LOOPBACK}:{port}\njetstream {{ store_dir: "{home / "data"}"{sync} }}\n'
    )
    with started([binary, "-c", str(settings)], home, takes_connections(port)) as process:
        asyncio.run(_prepare(port, synced))
        driver, meter = Nats(port, batches=synced), Meter(process.pid)
        yield Running(_version(binary), driver, meter, lambda: asyncio.run(_unfinished(port)))


async def _prepare(port: int, batches: bool) -> None:
    connection = await Connection.open(port)
    more = {"allow_atomic": True} if batches else {}
    await connection.ask(
        f"STREAM.CREATE.{_STREAM}",
        {
            "name": _STREAM,
            "subjects": ["bench.>"],
            "storage": "file",
            "retention": "limits",
            "num_replicas": 1,
            **more,
        },
    )
    for share in range(SHARES):
        consumer = {
            "durable_name": f"share-{share}",
            "filter_subject": f"bench.{share}.>",
            "ack_policy": "all",
            "max_ack_pending": -1,
        }
        await connection.ask(
            f"CONSUMER.DURABLE.CREATE.{_STREAM}.share-{share}",
            {"stream_name": _STREAM, "config": consumer},
        )
    connection.close()


async def _unfinished(port: int) -> int:
    connection = await Connection.open(port)
    count = 0
    for share in range(SHARES):
        found = await connection.ask(f"CONSUMER.INFO.{_STREAM}.share-{share}", {})
        count += found["num_pending"] + found["num_ack_pending"]
    connection.close()
    return count


class Message(NamedTuple):
    reply: bytes
    headers: bytes
    payload: bytes


class Connection(asyncio.Protocol):
    """The client protocol: lines, and payloads whose length a line tells."""

    def __init__(self) -> None:
        self.inbox = ""  # the subject under which answers come
        self.on_message: Callable[[Message], None] | None = None  # to the subject `inbox`.m
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[Message] | None = None
        self._failure: RequestFailed | None = None
        self.on_failure: Callable[[RequestFailed], None] = lambda _: None

    @classmethod
    async def open(cls, port: int) -> Self:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(cls, LOOPBACK, port)
        except OSError as exc:
            raise RequestFailed(f"no server at {LOOPBACK}:{port}: {exc}") from exc
        connection.inbox = f"_INBOX.{os.urandom(8).hex()}"
        connection.write(
            b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
            + f"SUB {connection.inbox}.a {_ANSWERS}\r\n".encode()
            + f"SUB {connection.inbox}.m {_MESSAGES}\r\n".encode()
        )
        return connection

    async def ask(self, request: str, body: dict[str, Any]) -> dict[str, Any]:
        """A call of the JetStream API."""
        payload = msgspec.json.encode(body)
        answer = await self.request(_pub(f"$JS.API.{request}", f"{self.inbox}.a", payload))
        return check(answer)

    async def request(self, data: bytes) -> Message:
        """Send *data*, which ends with a message that is answered to `inbox`.a."""
        self._answer = asyncio.get_running_loop().create_future()
        self.write(data)
        return await self._answer

    def write(self, data: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed a connection: {exc or 'end of stream'}")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while (line_end := buffer.find(b"\r\n", at)) >= 0:
            line = bytes(buffer[at:line_end])
            start = line_end + 2
            if line.startswith((b"MSG ", b"HMSG ")):
                words = line.split(b" ")
                size = int(words[-1])
                if len(buffer) < start + size + 2:
                    break
                self._on_message(words, bytes(buffer[start : start + size]))
                at = start + size + 2
                continue
            at = start
            if line == b"PING":
                self.write(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                self._fail(f"the server said {line.decode()}")
        del buffer[:at]

    def _on_message(self, words: list[bytes], content: bytes) -> None:
        # MSG subject sid [reply] size; HMSG has the size of the headers before that. What a pull
        # brings has its own subject, but the subscription id of the pull's.
        has_headers = words[0] == b"HMSG"
        headers_size = int(words[-2]) if has_headers else 0
        reply = words[3] if len(words) == (6 if has_headers else 5) else b""
        message = Message(reply, content[:headers_size], content[headers_size:])
        if words[2] == _MESSAGES.encode():
            assert self.on_message is not None
            self.on_message(message)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    def _fail(self, text: str) -> None:
        self._failure = self._failure or RequestFailed(text)
        self.on_failure(self._failure)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._failure)


def check(answer: Message) -> dict[str, Any]:
    """What the answer says. Errors: `RequestFailed` when it says that the request failed."""
    said = msgspec.json.decode(answer.payload or b"{}", type=dict[str, Any])
    if "error" in said or b" 503" in answer.headers[:16]:
        raise RequestFailed(f"the server answered {said.get('error', 'that nobody is there')}")
    return said


def _pub(subject: str, reply: str, payload: bytes) -> bytes:
    return f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"


@dataclass(frozen=True)
class Nats:
    port: int
    batches: bool  # whether a push is an atomic batch
    name: str = "NATS JetStream"

    def encode(self, queue: str, lots: Sequence[Lot], payload_bytes: int = 0) -> bytes:
        return messages.encode(lots, payload_bytes)

    async def producer(self) -> _BatchProducer | _SingleProducer:
        connection = await Connection.open(self.port)
        return _BatchProducer(connection) if self.batches else _SingleProducer(connection)

    async def consumer(self, wanted: Subscription) -> _Consumer:
        assert wanted.partition is not None
        return _Consumer(await Connection.open(self.port), wanted.partition, wanted.batch)


class _SingleProducer:
    """Publishes all messages of a push in one write, and waits for the answer to each."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unanswered = 0
        self._answered: asyncio.Future[None] | None = None
        connection.on_message = self._on_answer
        connection.on_failure = self._fail

    async def push(self, body: bytes, message_count: int) -> None:
        lane, payloads = messages.split(body)
        subject, reply = f"bench.{lane % SHARES}.{lane}", f"{self._connection.inbox}.m"
        self._unanswered = message_count
        self._answered = asyncio.get_running_loop().create_future()
        self._connection.write(b"".join([_pub(subject, reply, one) for one in payloads]))
        await self._answered

    def _on_answer(self, answer: Message) -> None:
        try:
            check(answer)
        except RequestFailed as exc:
            self._fail(exc)
        self._unanswered -= 1
        if not self._unanswered and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _fail(self, failure: RequestFailed) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(failure)

    def close(self) -> None:
        self._connection.close()


class _BatchProducer:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._prefix = os.urandom(8).hex()
        self._batches = 0

    async def push(self, body: bytes, message_count: int) -> None:
        lane, payloads = messages.split(body)
        self._batches += 1
        subject = f"bench.{lane % SHARES}.{lane}"
        batch = f"Nats-Batch-Id:{self._prefix}-{self._batches}\r\nNats-Batch-Sequence:"
        lines = []
        for number, payload in enumerate(payloads, 1):
            is_last = number == message_count
            # Only the last one is answered, for all.
            reply = f" {self._connection.inbox}.a" if is_last else ""
            commit = "Nats-Batch-Commit:1\r\n" if is_last else ""
            headers = _HEAD + f"{batch}{number}\r\n{commit}\r\n".encode()
            size = len(headers) + len(payload)
            line = f"HPUB {subject}{reply} {len(headers)} {size}\r\n".encode()
            lines.append(b"%b%b%b\r\n" % (line, headers, payload))
        said = check(await self._connection.request(b"".join(lines)))
        if said.get("count") != message_count:
            raise RequestFailed(f"a batch of {message_count} messages was answered {said}")

    def close(self) -> None:
        self._connection.close()


class _Consumer:
    """Pulls ahead, as the official clients do: half a batch before the last pull is used up."""

    def __init__(self, connection: Connection, share: str, batch: int) -> None:
        self._connection = connection
        self._batch = batch
        self._inbox: Inbox[Message] = Inbox()
        self._wanted = 0  # of the messages that were pulled, those that did not come yet
        pull = {"batch": batch, "expires": _PULL_NS}
        next_ = f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.share-{share}"
        self._pull = _pub(next_, f"{connection.inbox}.m", msgspec.json.encode(pull))
        connection.on_message = self._on_message
        connection.on_failure = self._inbox.fail

    def _on_message(self, message: Message) -> None:
        if message.payload:
            self._wanted -= 1
            self._inbox.add(message)
        else:
            # A pull ran out of time; how much of it was left does not matter, all is asked anew.
            self._wanted = 0
        self._refill()

    def _refill(self) -> None:
        if self._wanted <= self._batch // 2:
            self._wanted += self._batch
            self._connection.write(self._pull)

    async def pop(self) -> Popped:
        if not self._wanted:
            self._refill()
        taken = await self._inbox.take(self._batch)
        return messages.popped([one.payload for one in taken], taken[-1].reply)

    async def acknowledge(self, popped: Popped) -> None:
        reply = popped.token
        assert isinstance(reply, bytes)
        # An answer is asked for: an acknowledgement that is lost would not be noticed else.
        await self._connection.request(_pub(reply.decode(), f"{self._connection.inbox}.a", b"+ACK"))

    def close(self) -> None:
        self._connection.close()


_CONSUMED = (
    f"{SHARES} durable pull consumers, each with a filter for its lanes, pulls of 1000 ahead, ack "
    "policy all, one acknowledgement with an answer for what has arrived, at most 1000"
)

SYNCED = Peer(
    "NATS JetStream",
    "one stream with file storage, sync_interval: always, retention by limits; a push is an atomic "
    f"batch of 100, answered as one; {_CONSUMED}",
    True,
    _missing_synced,
    _start_synced,
)

UNSYNCED = Peer(
    "NATS JetStream, unsynced",
    "the same with its default sync_interval of 2 minutes: it answers before messages are on the "
    f"disk; a push is 100 messages in one write, each answered; {_CONSUMED}",
    True,
    _missing,
    _start_unsynced,
)
