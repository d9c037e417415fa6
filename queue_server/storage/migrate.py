"""Brings a database to the schema of this version.

Two kinds of files, both in sql/:
- migrations/NNNN_*.sql change tables, are applied once, in order, and never edited afterwards;
- functions/*.sql hold one function group each and are applied whenever their text has changed.

What was applied is recorded with a checksum. Everything happens in one transaction under one
advisory lock, so several supervisors may start at once, and a crash leaves the old schema.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Collection
from importlib import resources

import msgspec
import psycopg

from queue_server.storage.connections import SessionState, connect, pinned_conninfo, refuse
from queue_server.storage.statements import STATEMENTS

logger = logging.getLogger(__name__)

# Any number will do as long as nobody else locks it: "queue" in ASCII.
_LOCK_KEY = 0x7175657565

_LOCK_TIMEOUT_MS = 5000

# PostgreSQL 15 is the oldest version that the tests run on.
_SERVER_VERSION_MIN = 150_000


_MIGRATION_SETTINGS = (
    # An index on a large table takes longer than any request may.
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "SET LOCAL search_path = pg_catalog",
    # Other kinds of tables lack row locks, or updates.
    "SET LOCAL default_table_access_method = heap",
)


class SchemaError(Exception):
    """The database cannot be brought to this version's schema."""


def migrate(conninfo: str) -> int:
    """Apply what is missing; return how many files that was.

    Errors: `SchemaError` when an applied migration differs from the file of this version, the
    database is newer than this version, or database, role or server are not fit for it; psycopg's
    errors otherwise.
    """
    with connect(pinned_conninfo(conninfo)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        _check_server(connection)
        _check_session(connection)
        with connection.transaction():
            # Behind a pooler the settings of the connection string have not arrived.
            for setting in _MIGRATION_SETTINGS:
                connection.execute(setting)
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
            # A transaction that waits for a table makes all those behind it wait as well: rather
            # fail and come again. The lock above is only that of another server's migration.
            connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS public.queue_server_schema ("
                " name text PRIMARY KEY, checksum text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
            applied: dict[str, str] = dict(
                connection.execute(
                    "SELECT name, checksum FROM public.queue_server_schema"
                ).fetchall()
            )
            migrations = _apply_migrations(connection, applied)
            functions = _apply_functions(connection, applied)
        if migrations or functions:
            logger.info(
                "schema: %d migrations, %d function files applied",
                migrations,
                functions,
                extra={"event": "schema_applied"},
            )
        return migrations + functions


class Plan(msgspec.Struct, frozen=True):
    """What `migrate` would do to a database."""

    migrations: list[str]  # to be applied, in this order
    functions: list[str]  # to be applied because their text is new or has changed
    problem: str | None  # why it would refuse

    @property
    def is_current(self) -> bool:
        return not (self.migrations or self.functions or self.problem)


def plan(connection: psycopg.Connection) -> Plan:
    """What `migrate` would do now; nothing is changed."""
    applied: dict[str, str] = {}
    found = connection.execute("SELECT to_regclass('public.queue_server_schema')").fetchone()
    if found is not None and found[0] is not None:
        rows = connection.execute("SELECT name, checksum FROM public.queue_server_schema")
        applied = dict(rows.fetchall())
    problem = None
    try:
        _check_server(connection)
        _check_applied(applied)
    except SchemaError as exc:
        problem = str(exc)
    return Plan(
        [name for name in _files("migrations") if name not in applied],
        [
            name
            for name, text in _files("functions").items()
            if applied.get(name) != _checksum(text)
        ],
        problem,
    )


def is_right(applied: Collection[str]) -> bool:
    """Whether this version can work with a database to which these migrations were applied.

    Those of a newer version that only add (`pre`) do no harm: it is being rolled out beside us.
    """
    known = _files("migrations").keys()
    return known <= set(applied) and not any("_post_" in name for name in set(applied) - known)


def _check_server(connection: psycopg.Connection) -> None:
    if connection.info.server_version < _SERVER_VERSION_MIN:
        raise SchemaError(
            f"PostgreSQL {connection.info.server_version // 10000} is too old: "
            f"{_SERVER_VERSION_MIN // 10000} or newer is needed"
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SchemaError(
            f"the database's encoding is {encoding}, which cannot hold names and payloads of every"
            " script: give the server one that was made with ENCODING 'UTF8' TEMPLATE template0"
        )


def _check_session(connection: psycopg.Connection) -> None:
    state = session_state(connection)
    pooled = state.backend_pid != connection.info.backend_pid
    # On a direct connection workers set it for themselves.
    if problems := (state if pooled else state.durable()).problems():
        raise SchemaError(str(refuse(problems, pooled=pooled)))


def session_state(connection: psycopg.Connection) -> SessionState:
    """Return how the sessions of this role in this database work."""
    row = connection.execute(STATEMENTS["session_state"]).fetchone()
    assert row is not None
    return SessionState(*row)


def _check_applied(applied: dict[str, str]) -> None:
    files = _files("migrations")
    unknown = {name for name in applied if name.startswith("migrations/")} - files.keys()
    if unknown:
        raise SchemaError(
            f"the database is newer than this server: it has {', '.join(sorted(unknown))}; "
            "start the newer version"
        )
    for name, text in files.items():
        if name in applied and applied[name] != _checksum(text):
            raise SchemaError(f"{name} was changed after it had been applied to this database")


def _apply_migrations(connection: psycopg.Connection, applied: dict[str, str]) -> int:
    _check_applied(applied)
    count = 0
    for name, text in _files("migrations").items():
        if name not in applied:
            _apply(connection, name, text, _checksum(text))
            count += 1
    return count


def _apply_functions(connection: psycopg.Connection, applied: dict[str, str]) -> int:
    count = 0
    for name, text in _files("functions").items():
        checksum = _checksum(text)
        if applied.get(name) != checksum:
            _apply(connection, name, text, checksum)
            count += 1
    return count


def _apply(connection: psycopg.Connection, name: str, text: str, checksum: str) -> None:
    logger.debug("applying %s", name)
    connection.execute(text.encode())
    connection.execute(
        "INSERT INTO public.queue_server_schema (name, checksum) VALUES (%s, %s)"
        " ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, applied_at = now()",
        (name, checksum),
    )


@functools.cache
def _files(folder: str) -> dict[str, str]:
    root = resources.files("queue_server.storage").joinpath("sql", folder)
    names = sorted(file.name for file in root.iterdir() if file.name.endswith(".sql"))
    return {f"{folder}/{name}": root.joinpath(name).read_text(encoding="utf-8") for name in names}


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
