"""PgQueuer: a job queue as a Python library on PostgreSQL, a row for each message.

Driven through its `Queries`, by which its own worker loop takes and completes jobs. That leaves out
what the loop does for each job (a task, a heartbeat), which is to the peer's advantage.
"""

from __future__ import annotations

import asyncio
import importlib.util
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.driver import Lot, Popped, Subscription
from bench.peers import Peer, Running, messages, postgres

_ENTRYPOINT = "bench"
_RETRY_AFTER = timedelta(minutes=10)  # longer than a load: nothing is to come twice
_EMPTY_S = 0.02  # until an empty queue is asked again


def _missing() -> str | None:
    packages = ("pgqueuer", "asyncpg")
    return None if all(map(importlib.util.find_spec, packages)) else "make peers"


@contextmanager
def _start(home: Path) -> Iterator[Running]:
    with postgres.running(home) as database:
        asyncio.run(_install(database.folder))

        def unfinished() -> int:
            return database.number("SELECT count(*) FROM pgqueuer")

        driver = PgQueuer(database.folder)
        yield Running(version("pgqueuer"), driver, database.meter, unfinished)


async def _install(folder: Path) -> None:
    connection, queries = await _connect(folder)
    await queries.install()
    await connection.close()


async def _connect(folder: Path) -> tuple[Any, Any]:
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    connection = await asyncpg.connect(
        host=str(folder), user=postgres.USER, database=postgres.DATABASE
    )
    return connection, Queries(AsyncpgDriver(connection))


@dataclass(frozen=True)
class PgQueuer:
    folder: Path
    name: str = "PgQueuer"

    def encode(self, queue: str, lots: Sequence[Lot], payload_bytes: int = 0) -> bytes:
        return messages.encode(lots, payload_bytes)

    async def producer(self) -> _Producer:
        return _Producer(*await _connect(self.folder))

    async def consumer(self, wanted: Subscription) -> _Consumer:
        return _Consumer(*await _connect(self.folder), wanted.batch)


class _Producer:
    def __init__(self, connection: Any, queries: Any) -> None:
        self._connection = connection
        self._queries = queries

    async def push(self, body: bytes, message_count: int) -> None:
        _, payloads = messages.split(body)
        assert len(payloads) == message_count
        await self._queries.enqueue([_ENTRYPOINT] * message_count, payloads, [0] * message_count)

    def close(self) -> None:
        self._connection.terminate()


class _Consumer:
    def __init__(self, connection: Any, queries: Any, batch: int) -> None:
        from pgqueuer.queries import EntrypointExecutionParameter

        self._connection = connection
        self._queries = queries
        self._batch = batch
        self._entrypoints = {_ENTRYPOINT: EntrypointExecutionParameter(concurrency_limit=0)}
        self._id = uuid.uuid4()

    async def pop(self) -> Popped | None:
        jobs = await self._queries.dequeue(
            self._batch, self._entrypoints, self._id, None, _RETRY_AFTER
        )
        if not jobs:
            await asyncio.sleep(_EMPTY_S)
            return None
        return messages.popped([job.payload for job in jobs], jobs)

    async def acknowledge(self, popped: Popped) -> None:
        jobs: list[Any] = popped.token  # type: ignore[assignment]
        await self._queries.log_jobs([(job, "successful", None) for job in jobs])

    def close(self) -> None:
        self._connection.terminate()


PEER = Peer(
    "PgQueuer",
    f"{postgres.SETTINGS}; all tables logged (its durability `durable`); a push is one enqueue of "
    "100 jobs, a pop one dequeue of at most 1000, an acknowledgement one log_jobs for all of them, "
    "through asyncpg",
    False,
    _missing,
    _start,
)
