"""Opens connections that depend on nothing but their connection string.

libpq takes every parameter that a connection string leaves out from a variable of the environment:
PGHOSTADDR, PGPORT, PGOPTIONS, PGSERVICE and some thirty more. An operator sets those for other
tools. A server that obeyed them could work on another PostgreSQL than its own without a word, so
this process removes them before it connects. DATABASE_URL and the PG_... settings (with an
underscore) name a database; libpq's own files (~/.pgpass, ~/.pg_service.conf) are read as usual.

A role or a database brings defaults of its own (ALTER ROLE ... SET), and the statements of this
server rely on some of them: each is written for READ COMMITTED. On a direct connection they are set
when it is opened (`PINNED`), which beats role and database. A pooler drops them, and another
session's SET would reach strangers, so behind one a connection with the wrong ones is refused, with
a message that says which. docs/operating.md lists them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

# Those that libpq does not list beside a parameter: PGTZ, PGDATESTYLE, PGGEQO, PGREQUIRESSL,
# PGSERVICEFILE, PGSYSCONFDIR, PGLOCALEDIR. Settings of ours have an underscore in third place,
# all but PGSSLROOTCERT, which is read before it is discarded.
_LIBPQ_NAME = re.compile(r"PG[A-Z]\w*")

# How a session works when its statements mean what they were written for. Timeouts are settings of
# the server and come on top.
PINNED = {
    # Under a stricter level a transaction does not see what was committed before it got its lock:
    # bounds are overrun, and a new consumer group misses a message.
    "default_transaction_isolation": "read committed",
    # No operators and functions of another schema in place of PostgreSQL's; ours are qualified.
    "search_path": "pg_catalog",
    # Texts of parameters and results: arrays with NULL in them, backslashes, times, numbers.
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    # A plan for all parameters is made when five runs have shown that it is as good.
    "plan_cache_mode": "auto",
}


class SessionUnfit(psycopg.OperationalError):
    """Statements would not do on this connection what they promise; the message says why."""


class SessionState(msgspec.Struct, frozen=True, array_like=True):
    """How a session works: a row of the statement `session_state`."""

    backend_pid: int
    isolation: str
    array_nulls: str
    replication_role: str
    synchronous_commit: str
    schemas: list[str]  # those searched, the first one first

    def problems(self) -> list[str]:
        """Return what keeps statements from doing what they promise, `name = value` each."""
        others = [name for name in self.schemas if not name.startswith("pg_temp")]
        return [
            f"{name} = {value}"
            for name, value, is_right in (
                (
                    "default_transaction_isolation",
                    self.isolation,
                    self.isolation == "read committed",
                ),
                ("array_nulls", self.array_nulls, self.array_nulls == "on"),
                # Its value `replica` switches triggers and foreign keys off.
                (
                    "session_replication_role",
                    self.replication_role,
                    self.replication_role != "replica",
                ),
                # Acknowledged messages would be lost in a crash.
                ("synchronous_commit", self.synchronous_commit, self.synchronous_commit != "off"),
                ("search_path", ", ".join(self.schemas), others[:1] == ["pg_catalog"]),
            )
            if not is_right
        ]

    @property
    def is_durable(self) -> bool:
        return self.synchronous_commit != "off"

    def durable(self) -> SessionState:
        """Return the state after the statement `session_durable`."""
        return msgspec.structs.replace(self, synchronous_commit="on")


def refuse(problems: list[str], *, pooled: bool) -> SessionUnfit:
    """Return the error for a session with *problems*."""
    fix = "ALTER ROLE ... RESET and ALTER DATABASE ... RESET them, or SET the usual value"
    pooler = ", and a pooler drops what the server sets itself" if pooled else ""
    return SessionUnfit(
        f"the role or the database has {' and '.join(problems)}, with which messages could be lost"
        f" or bounds overrun{pooler}: {fix} (docs/operating.md)"
    )


def libpq_variables(names: Iterable[str]) -> list[str]:
    """Return those of the environment variables *names* that libpq would read, sorted."""
    listed = {one.envvar.decode() for one in Conninfo.get_defaults() if one.envvar}
    return sorted(name for name in names if name in listed or _LIBPQ_NAME.fullmatch(name))


def discard_libpq_variables() -> list[str]:
    """Remove the variables that libpq would read from this process's environment.

    Shape: the names of those that were set. Child processes no longer inherit them.
    """
    found = libpq_variables(os.environ)
    for name in found:
        # libpq reads the environment of the C library, where this removes it as well.
        del os.environ[name]
    return found


def pinned_conninfo(conninfo: str, **settings: int) -> str:
    """Return `own_conninfo` with the session settings `PINNED`, and with *settings* besides.

    What *conninfo* sets itself by `options` comes first, so ours win.
    """
    given = str(conninfo_to_dict(conninfo).get("options") or "")
    # The server splits `options` at spaces that no backslash precedes.
    options = " ".join(
        f"-c {name}={str(value).replace(' ', chr(92) + ' ')}"
        for name, value in (PINNED | settings).items()
    )
    return own_conninfo(conninfo, options=f"{given} {options}".strip())


def own_conninfo(conninfo: str, **parameters: str) -> str:
    """Return *conninfo* with *parameters*, made independent of the environment.

    Texts travel as UTF-8 whatever the database, the role or *conninfo* prefer: names and payloads
    are of any script.
    """
    discard_libpq_variables()
    return make_conninfo(conninfo, **parameters, client_encoding="utf8")


def connect(conninfo: str) -> psycopg.Connection:
    """Open a connection that commits each statement, in the way that *conninfo* says.

    Its settings are those of role and database; `pinned_conninfo` brings those of the server.

    Nothing is prepared: behind a pooler another client may have prepared the same name in the same
    backend.
    """
    return psycopg.connect(own_conninfo(conninfo), autocommit=True, prepare_threshold=None)


def can_connect(conninfo: str) -> bool:
    """Whether a connection can be made now."""
    try:
        connect(conninfo).close()
    except psycopg.Error:
        return False
    return True
