"""Opens connections that depend on nothing but their connection string.

libpq takes every parameter that a connection string leaves out from a variable of the environment:
PGHOSTADDR, PGPORT, PGOPTIONS, PGSERVICE and some thirty more. An operator sets those for other
tools. A server that obeyed them could work on another PostgreSQL than its own without a word, so
this process removes them before it connects. DATABASE_URL and the PG_... settings (with an
underscore) name a database; libpq's own files (~/.pgpass, ~/.pg_service.conf) are read as usual.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

# Those that libpq does not list beside a parameter: PGTZ, PGDATESTYLE, PGGEQO, PGREQUIRESSL,
# PGSERVICEFILE, PGSYSCONFDIR, PGLOCALEDIR. Settings of ours have an underscore in third place,
# all but PGSSLROOTCERT, which is read before it is discarded.
_LIBPQ_NAME = re.compile(r"PG[A-Z]\w*")


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


def own_conninfo(conninfo: str, **parameters: str) -> str:
    """Return *conninfo* with *parameters*, made independent of the environment.

    Texts travel as UTF-8 whatever the database, the role or *conninfo* prefer: names and payloads
    are of any script.
    """
    discard_libpq_variables()
    return make_conninfo(conninfo, **parameters, client_encoding="utf8")


def connect(conninfo: str) -> psycopg.Connection:
    """Open a connection that commits each statement.

    Nothing is prepared: behind a pooler another client may have prepared the same name in the same
    backend.
    """
    return psycopg.connect(own_conninfo(conninfo), autocommit=True, prepare_threshold=None)
