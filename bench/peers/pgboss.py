"""pg-boss: a job queue as a Node.js library on PostgreSQL, a row for each message.

The library runs in two processes of Node (`pgboss/bridge.mjs`), one for those who push and one for
those who pop, which our load generator talks to line by line. They are clients, and their cost is
counted as the client's.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.client import RequestFailed
from bench.core_seconds import Meter
from bench.driver import Lot, Popped, Subscription
from bench.peers import Peer, Running, messages, postgres
from bench.peers.process import started

_FOLDER = Path(__file__).resolve().parent / "pgboss"
_LIBRARY = _FOLDER / "node_modules" / "pg-boss" / "package.json"
_OLDEST_NODE = 20  # of the library
_LINE_BYTES_MAX = 1 << 22
_EMPTY_S = 0.02  # until an empty queue is asked again


def _missing() -> str | None:
    node = shutil.which("node")
    if node is None:
        return f"install Node.js {_OLDEST_NODE} or newer with npm, then make peers"
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(said.lstrip("v").partition(".")[0]) < _OLDEST_NODE:
        return f"Node.js {said.strip()} is too old, it takes {_OLDEST_NODE}; then make peers"
    return None if _LIBRARY.exists() else "make peers"


@contextmanager
def _start(home: Path) -> Iterator[Running]:
    version = msgspec.json.decode(_LIBRARY.read_bytes())["version"]
    pushing, popping = home / "push.sock", home / "pop.sock"
    with postgres.running(home) as database, _bridge(home, database, pushing) as first:

        def unfinished() -> int:
            return database.number("SELECT count(*) FROM pgboss.job WHERE state <> 'completed'")

        with _bridge(home, database, popping) as second:
            driver = PgBoss(pushing, popping)
            yield Running(version, driver, database.meter, unfinished, (first, second))


@contextmanager
def _bridge(home: Path, database: postgres.Postgres, path: Path) -> Iterator[Meter]:
    arguments = [str(path), str(database.folder), postgres.USER, postgres.DATABASE]
    command = ["node", str(_FOLDER / "bridge.mjs"), *arguments]
    with started(command, home, path.exists) as process:
        yield Meter(process.pid)


@dataclass(frozen=True)
class PgBoss:
    pushing: Path
    popping: Path
    name: str = "pg-boss"

    def encode(self, queue: str, lots: Sequence[Lot], payload_bytes: int = 0) -> bytes:
        return messages.encode(lots, payload_bytes)

    async def producer(self) -> _Producer:
        return _Producer(await _Line.open(self.pushing))

    async def consumer(self, wanted: Subscription) -> _Consumer:
        return _Consumer(await _Line.open(self.popping), wanted.batch)


@dataclass(frozen=True)
class _Line:
    """A connection to a bridge: a line of JSON is asked and one is answered."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, path: Path) -> _Line:
        return cls(*await asyncio.open_unix_connection(str(path), limit=_LINE_BYTES_MAX))

    async def ask(self, request: bytes) -> Any:
        self.writer.write(request + b"\n")
        answer = await self.reader.readline()
        if not answer:
            raise RequestFailed("the bridge to Node.js is gone")
        said = msgspec.json.decode(answer)
        if "error" in said:
            raise RequestFailed(f"the library said: {said['error']}")
        return said["ok"]

    def close(self) -> None:
        self.writer.close()


@dataclass(frozen=True)
class _Producer:
    line: _Line

    async def push(self, body: bytes, message_count: int) -> None:
        _, payloads = messages.split(body)
        assert len(payloads) == message_count
        await self.line.ask(b'{"push":[%b]}' % b",".join(payloads))

    def close(self) -> None:
        self.line.close()


@dataclass(frozen=True)
class _Consumer:
    line: _Line
    batch: int

    async def pop(self) -> Popped | None:
        found = await self.line.ask(b'{"pop":%d}' % self.batch)
        if not found["jobs"]:
            await asyncio.sleep(_EMPTY_S)
            return None
        # The payloads went as far as the library; only the ids in them go on from there.
        return messages.popped_ids(found["ids"], 0, found["jobs"])

    async def acknowledge(self, popped: Popped) -> None:
        completed = await self.line.ask(msgspec.json.encode({"ack": popped.token}))
        if completed != popped.message_count:
            raise RequestFailed(f"{completed} of {popped.message_count} jobs were completed")

    def close(self) -> None:
        self.line.close()


PEER = Peer(
    "pg-boss",
    f"{postgres.SETTINGS}; a push is one insert of 100 jobs, a pop one fetch of at most 1000, an "
    "acknowledgement one complete for all of them; ten connections for pushing, ten for popping",
    False,
    _missing,
    _start,
)
