"""`queue-server keys`: make, list and revoke API keys, in the database of a server.

It talks to the database alone, so it needs no credential of the server, and whoever may use the
database may make keys. Servers notice within two seconds.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import uuid
from collections.abc import Mapping, Sequence

import psycopg

from queue_server.cluster.database import DatabaseError, conninfo_of_running
from queue_server.domain.names import check_text
from queue_server.settings import SettingsError, load_settings
from queue_server.storage.api_keys import ROLES, ApiKey, as_key, hash_of, new_key
from queue_server.storage.statements import STATEMENTS

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Carry out a command; the exit code. *argv* is what stands behind `keys`."""
    arguments = _parser().parse_args(argv)
    given = [
        text
        for flag, value in (
            ("--data-dir", arguments.data_dir),
            ("--database-url", arguments.database_url),
        )
        if value is not None
        for text in (flag, value)
    ]
    try:
        settings = load_settings(given, environ)
        conninfo = settings.conninfo or conninfo_of_running(settings.data_dir)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            return _COMMANDS[arguments.command](connection, arguments)
    except SettingsError as exc:
        print(f"queue-server: {exc}", file=sys.stderr)
        return 2
    except DatabaseError as exc:
        print(f"queue-server: {exc}", file=sys.stderr)
        return 1
    except psycopg.errors.UndefinedTable:
        print("queue-server: the database has no keys yet: start the server", file=sys.stderr)
        return 1
    except psycopg.OperationalError as exc:
        reason = " ".join(str(exc).split())
        print(f"queue-server: cannot reach the database: {reason}", file=sys.stderr)
        return 1


def _create(connection: psycopg.Connection, arguments: argparse.Namespace) -> int:
    key = new_key()
    limited = any(v is not None for v in (arguments.push, arguments.pop, arguments.administer))
    row = connection.execute(
        STATEMENTS["create_api_key"],
        {
            "id": uuid.uuid4().hex[:12],
            "name": arguments.name,
            "hash": hash_of(key),
            "role": arguments.role,
            "push": (arguments.push or []) if limited else None,
            "pop": (arguments.pop or []) if limited else None,
            "administer": (arguments.administer or []) if limited else None,
            "lifetime_s": arguments.expires_in,
        },
    ).fetchone()
    assert row is not None
    # The key alone on stdout, for scripts; it cannot be shown again.
    print(key)
    print(_line(as_key(row)), file=sys.stderr)
    return 0


def _list(connection: psycopg.Connection, _arguments: argparse.Namespace) -> int:
    for row in connection.execute(STATEMENTS["api_keys"]).fetchall():
        print(_line(as_key(row)))
    return 0


def _revoke(connection: psycopg.Connection, arguments: argparse.Namespace) -> int:
    row = connection.execute(STATEMENTS["revoke_api_key"], {"id": arguments.id}).fetchone()
    if row is None:
        print(f"queue-server: no key has the id {arguments.id!r}", file=sys.stderr)
        return 1
    print(f"{arguments.id} of {row[0]} is revoked")
    return 0


def _line(key: ApiKey) -> str:
    queues = "all queues"
    if key.grants is not None:
        queues = " ".join(
            f"{use}={','.join(patterns) or '-'}"
            for use, patterns in (
                ("push", key.grants.push),
                ("pop", key.grants.pop),
                ("administer", key.grants.administer),
            )
        )
    expiry = "never expires"
    if key.expires_at is not None:
        over = key.expires_at <= datetime.datetime.now(datetime.UTC)
        expiry = f"{'expired' if over else 'expires'} {key.expires_at:%Y-%m-%dT%H:%M:%SZ}"
    made = f"made {key.created_at:%Y-%m-%d}"
    return "  ".join((key.id, key.name, key.role, queues, expiry, made))


_COMMANDS = {"create": _create, "list": _list, "revoke": _revoke}


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(check_text(text, "the name")) <= 200:
        raise argparse.ArgumentTypeError("must be one line of at most 200 characters")
    return text


def _pattern(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError("must be a pattern such as orders.*")
    return text


def _lifetime(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError("must be a time such as 90d, 12h, 30m or 45s")
    return int(found[1]) * _UNITS[found[2]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="queue-server keys",
        description="API keys of a server with API_KEYS_ENABLED=true (docs/security.md). The"
        " database is the one that the server uses; its own one is there while it runs.",
        allow_abbrev=False,
    )
    parser.add_argument("--data-dir", help="where the server keeps its own PostgreSQL [DATA_DIR]")
    parser.add_argument("--database-url", help="a given PostgreSQL [DATABASE_URL]")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once", allow_abbrev=False)
    create.add_argument("name", type=_name, help="whose it is: the producerSub of what it pushes")
    create.add_argument("--role", choices=ROLES, default="read-write")
    create.add_argument("--expires-in", type=_lifetime, metavar="TIME", help="such as 90d or 12h")
    for use, text in (
        ("push", "push to"),
        ("pop", "pop from, and look into"),
        ("administer", "configure, clear, delete, seek in, and look into"),
    ):
        create.add_argument(
            f"--{use}",
            action="append",
            type=_pattern,
            metavar="PATTERN",
            help=f"queues to {text}, such as 'orders.*'; may be repeated. With none of these"
            " options the key is for all queues, with any it is for what they name",
        )
    commands.add_parser("list", help="list the keys, without the keys themselves")
    revoke = commands.add_parser("revoke", help="revoke a key; servers notice within 2 s")
    revoke.add_argument("id", help="as `list` shows it")
    return parser
