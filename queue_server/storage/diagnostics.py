"""What may be wrong with a database, as figures; `queue-server doctor` and others judge them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import psycopg

from queue_server.storage import migrate
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
    "idle_in_transaction_session_timeout",
    "TimeZone",
)


class Holder(msgspec.Struct, frozen=True):
    """What keeps dead rows, or log, from being removed.

    `name` is a session's pid, the id that a prepared transaction was given, or a slot's name.
    """

    kind: Literal["session", "prepared", "slot"]
    name: str
    application: str | None  # of a session that names one
    xmin_age: int | None  # in transactions; None = it keeps no dead rows
    open_s: float | None  # since its transaction began, or was prepared
    log_bytes: int | None  # of log that a slot keeps; None = it has a reader, or is no slot


class Horizon(msgspec.Struct, frozen=True):
    """All that keeps dead rows or log from being removed, the oldest snapshot first."""

    holders: list[Holder]

    @classmethod
    def of(cls, rows: Iterable[tuple[Any, ...]]) -> Horizon:
        """From those of the statement vacuum_horizon."""
        return cls([Holder(*row) for row in rows])

    @property
    def xmin_age(self) -> int:
        """How many transactions ago the oldest snapshot was taken."""
        return max((one.xmin_age or 0 for one in self.holders), default=0)

    @property
    def oldest_session(self) -> Holder | None:
        """The session whose transaction has been open for the longest time."""
        sessions = [one for one in self.holders if one.kind == "session"]
        return max(sessions, key=lambda one: one.open_s or 0, default=None)

    @property
    def prepared(self) -> list[Holder]:
        return [one for one in self.holders if one.kind == "prepared"]

    @property
    def idle_slots(self) -> list[Holder]:
        return [one for one in self.holders if one.log_bytes is not None]


class Diagnosis(msgspec.Struct, frozen=True):
    """Ages of transaction ids are in transactions; None = there is none."""

    server_version: int  # such as 180001
    settings: dict[str, str]
    session_problems: list[str]  # `name = value` of what role and database preset against us
    horizon: Horizon
    is_pooled: bool  # something like PgBouncer lies between
    clock_ahead_s: float  # of this machine's
    clock_precision_s: float  # half of the time that asking took
    is_utf8: bool
    is_standby: bool
    shared_buffers_bytes: int
    max_wal_bytes: int
    connection_count: int
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
    session = migrate.session_state(connection)
    horizon = Horizon.of(connection.execute(STATEMENTS["vacuum_horizon"]).fetchall())
    figures = connection.execute(STATEMENTS["diagnose_numbers"]).fetchone()
    assert figures is not None
    return Diagnosis(
        connection.info.server_version,
        settings,
        session.problems(),
        horizon,
        # A pooler says hello in the name of no backend.
        session.backend_pid != connection.info.backend_pid,
        now.timestamp() - (began + took_s / 2),
        took_s / 2,
        *figures,
    )
