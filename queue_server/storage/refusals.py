"""Refusals of a PostgreSQL that no waiting heals, and what an operator does about each.

libpq passes the SQLSTATE of a refused connection on to nobody, so refusals are known by their
texts: those of PostgreSQL, PgBouncer and libpq in English. A server that speaks another language
(`lc_messages`) is waited for, as one that is starting.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg
from psycopg.conninfo import conninfo_to_dict

_Explain = Callable[[str, str, str], str]  # the server's name for the thing, role, database


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Which text means what, and the fix. A group in the text names the role or database.
_REFUSALS: tuple[tuple[re.Pattern[str], _Explain], ...] = (
    (
        re.compile(r'database "(.{1,300}?)" does not exist|no such database: (\S+)'),
        lambda name, role, _: (
            f"the database {_quoted(name)} does not exist; create it with CREATE DATABASE"
            f" {_quoted(name)} OWNER {_quoted(role)} ENCODING 'UTF8' TEMPLATE template0, or correct"
            " DATABASE_URL or PG_DB"
        ),
    ),
    (
        re.compile(r'role "(.{1,300}?)" does not exist|no such user: (\S+)'),
        lambda name, _, database: (
            f"the role {_quoted(name)} does not exist; create it with CREATE ROLE {_quoted(name)}"
            f" LOGIN PASSWORD '...' and make it the owner with ALTER DATABASE {_quoted(database)}"
            f" OWNER TO {_quoted(name)}, or correct DATABASE_URL or PG_USER"
        ),
    ),
    (
        re.compile(r'role "(.{1,300}?)" is not permitted to log in'),
        lambda name, *_: (
            f"the role {_quoted(name)} may not log in; allow it with ALTER ROLE {_quoted(name)}"
            " LOGIN"
        ),
    ),
    (
        re.compile(r"(?:password|SASL) authentication failed"),
        lambda _, role, __: (
            f"the password of the role {_quoted(role)} is wrong, or there is no such role; correct"
            f" DATABASE_URL or PG_PASSWORD, or set it with ALTER ROLE {_quoted(role)} PASSWORD"
            " '...'"
        ),
    ),
    (
        re.compile(r"no password supplied"),
        lambda _, role, __: (
            f"it wants a password for the role {_quoted(role)}; give one in DATABASE_URL,"
            " PG_PASSWORD or ~/.pgpass"
        ),
    ),
    (
        re.compile(r"(?:peer|ident) authentication failed", re.IGNORECASE),
        lambda _, role, __: (
            f"it lets in as the role {_quoted(role)} only the system user of that name; run the"
            " server as that user, or give the role a password and its address a line in"
            " pg_hba.conf"
        ),
    ),
    (
        re.compile(r"no pg_hba\.conf entry for|pg_hba\.conf rejects connection"),
        lambda _, role, database: (
            "pg_hba.conf does not let this machine in; add a line such as: hostssl"
            f" {_quoted(database)} {_quoted(role)} ADDRESS/32 scram-sha-256, and reload PostgreSQL"
            " (for a line of hostssl, connect with PG_USE_SSL=true or ?sslmode=require)"
        ),
    ),
    (
        re.compile(r'permission denied for database "(.{1,300}?)"'),
        lambda name, role, _: (
            f"the role {_quoted(role)} may not use the database {_quoted(name)}; make it the owner"
            f" with ALTER DATABASE {_quoted(name)} OWNER TO {_quoted(role)}"
        ),
    ),
    (
        re.compile(r"server does not support SSL, but SSL was required"),
        lambda *_: (
            "it offers no TLS; turn it on there (ssl = on), or do without: PG_USE_SSL=false or"
            " ?sslmode=disable"
        ),
    ),
    (
        re.compile(r'root certificate file "(.{1,300}?)" does not exist|certificate verify failed'),
        lambda *_: (
            "its certificate cannot be checked; name the file of its authority in"
            " PG_SSL_ROOT_CERT or ?sslrootcert="
        ),
    ),
)


def explain_refusal(error: psycopg.OperationalError, conninfo: str) -> str | None:
    """Return why PostgreSQL will go on refusing connections, with the fix; None: it may not.

    Where several hosts are given, one that may still come up is reason enough to wait.
    """
    parameters = conninfo_to_dict(conninfo)
    text = str(error)
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "")
    if "," in hosts:
        return None
    role = str(parameters.get("user") or "")
    database = str(parameters.get("dbname") or role)
    for pattern, explain in _REFUSALS:
        if found := pattern.search(text):
            name = next((group for group in found.groups() if group is not None), "")
            return explain(name, role, database)
    return None
