"""A PostgreSQL for queues that are libraries: binaries and settings are those of our server's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.core_seconds import Meter
from bench.server import ServerFailed
from queue_server.cluster.database import DatabaseError, EmbeddedPostgres

_CONNECTIONS = 64  # 32 that push, 8 that pop, and what a library has beside them
_STOP_LIMIT_S = 20.0

USER = "postgres"
DATABASE = "peer"
SETTINGS = (
    "a PostgreSQL of its own, with the binaries and settings of ours: "
    "fsync on, synchronous_commit on"
)


@dataclass(frozen=True)
class Postgres:
    folder: Path  # of the Unix socket
    conninfo: str
    meter: Meter

    def number(self, query: str) -> int:
        with psycopg.connect(self.conninfo) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def running(home: Path) -> Iterator[Postgres]:
    """Started in *home* with an empty database. Errors: `ServerFailed`."""
    embedded = EmbeddedPostgres(home / "data", _CONNECTIONS)
    try:
        embedded.lock()
        embedded.start()
        with psycopg.connect(embedded.conninfo, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
            folder = Path(connection.info.host)
        pid = int((embedded.data / "postmaster.pid").read_text("ascii").split("\n", 1)[0])
        conninfo = f"host={folder} user={USER} dbname={DATABASE}"
        yield Postgres(folder, conninfo, Meter(pid))
    except DatabaseError as exc:
        raise ServerFailed(f"the PostgreSQL of a peer: {exc}") from exc
    finally:
        embedded.stop(_STOP_LIMIT_S)
