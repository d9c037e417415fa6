"""What may be wrong with a database, as figures; `queue-server doctor` judges them."""

from __future__ import annotations

import datetime
import time

import msgspec
import psycopg

from queue_server.storage.statements import STATEMENTS

_SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "autovacuum",
    "track_counts",
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "shared_buffers",
    "max_wal_size",
    "wal_level",
    "max_slot_wal_keep_size",
    "statement_timeout",
    "lock_timeout",
    "TimeZone",
)


class Diagnosis(msgspec.Struct, frozen=True):
    """Ages of transaction ids are in transactions; None = there is none."""

    server_version: int  # such as 180001
    settings: dict[str, str]
    is_pooled: bool  # something like PgBouncer lies between
    clock_ahead_s: float  # of this machine's
    clock_precision_s: float  # half of the time that asking took
    is_utf8: bool
    is_standby: bool
    shared_buffers_bytes: int
    max_wal_bytes: int
    connection_count: int
    prepared_count: int
    prepared_age_s: float | None
    transaction_age_s: float | None
    xmin_age: int | None
    slot_xmin_age: int | None
    idle_slot_count: int
    frozen_age: int
    database_bytes: int
    extensions: list[str]


def diagnose(connection: psycopg.Connection) -> Diagnosis:
    """Look at the database behind *connection*; nothing is changed."""
    settings: dict[str, str] = dict(
        connection.execute(STATEMENTS["diagnose_settings"], {"names": list(_SETTINGS)}).fetchall()
    )
    # Once before, so that the figure below has no planning in it.
    connection.execute("SELECT clock_timestamp()").fetchone()
    began = time.time()
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    took_s = time.time() - began
    assert row is not None
    now: datetime.datetime = row[0]
    backend = connection.execute("SELECT pg_backend_pid()").fetchone()
    figures = connection.execute(STATEMENTS["diagnose_numbers"]).fetchone()
    assert figures is not None
    return Diagnosis(
        connection.info.server_version,
        settings,
        # A pooler says hello in the name of no backend.
        backend != (connection.info.backend_pid,),
        now.timestamp() - (began + took_s / 2),
        took_s / 2,
        *figures,
    )
