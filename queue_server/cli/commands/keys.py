"""`keys`: make, list and revoke API keys, in the database of a server.

It talks to the database alone, so it needs no credential of the server, and whoever may use the
database may make keys. Servers notice within two seconds.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from queue_server.cli.exits import CliError, Exit, usage_error
from queue_server.cli.session import Session, database_command
from queue_server.domain.errors import BadRequest
from queue_server.domain.names import check_text
from queue_server.storage.api_keys import ROLES, ApiKey, as_key, hash_of, new_key
from queue_server.storage.statements import STATEMENTS

if TYPE_CHECKING:
    import psycopg

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_to(parent: typer.Typer) -> None:
    app = typer.Typer(
        no_args_is_help=True,
        help="Make, list and revoke API keys.",
        epilog="Example: queue-server keys create billing --push 'orders.*' --expires-in 90d",
    )
    app.callback()(_before)
    parent.add_typer(app, name="keys")
    database_command(app, "create")(create)
    database_command(app, "list")(list_keys)
    database_command(app, "revoke")(revoke)


def _before(
    data_dir: Annotated[str, typer.Option("--data-dir", hidden=True)] = "",
    database_url: Annotated[str, typer.Option("--database-url", hidden=True)] = "",
) -> None:
    # Before the command's name they are what the environment would say, and the options behind it
    # beat them.
    if data_dir:
        os.environ["DATA_DIR"] = data_dir
    if database_url:
        os.environ["DATABASE_URL"] = database_url


def _patterns(use: str, text: str) -> Any:
    return typer.Option(
        f"--{use}",
        metavar="PATTERN",
        show_default=False,
        help=f"Queues to {text}, such as 'orders.*'; may be repeated. With none of these options"
        " the key is for all queues, with any it is for what they name.",
    )


def create(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Whose it is: the producerSub of what it pushes."),
    ],
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help=f"One of {', '.join(ROLES)}.")
    ] = "read-write",
    expires_in: Annotated[
        str,
        typer.Option(
            "--expires-in",
            metavar="TIME",
            show_default=False,
            help="Such as 90d or 12h, or never. Without it the key is good until it is revoked, and"
            " a warning says so.",
        ),
    ] = "",
    push: Annotated[list[str] | None, _patterns("push", "push to")] = None,
    pop: Annotated[list[str] | None, _patterns("pop", "pop from, and look into")] = None,
    administer: Annotated[
        list[str] | None,
        _patterns("administer", "configure, clear, delete, seek in, and look into"),
    ] = None,
) -> None:
    """Make a key and print it, once.

    The key alone is on stdout, what it opens on stderr. A server with API_KEYS_ENABLED=true asks
    for keys (docs/security.md).

    With --json: `{"key", "id", "name", "role", "queues", "createdAt", "expiresAt"}`.

    \b
    Examples:
      queue-server keys create billing --push 'orders.*' --pop 'invoices.*' --expires-in 90d
      (umask 077; queue-server keys create admin --role admin > key)
    """
    lifetime_s = _check(name, role, expires_in, [*(push or ()), *(pop or ()), *(administer or ())])
    key = new_key()
    limited = any(patterns for patterns in (push, pop, administer))
    with _database(session) as connection:
        row = connection.execute(
            STATEMENTS["create_api_key"],
            {
                "id": uuid.uuid4().hex[:12],
                "name": name,
                "hash": hash_of(key),
                "role": role,
                "push": (push or []) if limited else None,
                "pop": (pop or []) if limited else None,
                "administer": (administer or []) if limited else None,
                "lifetime_s": lifetime_s,
            },
        ).fetchone()
    assert row is not None
    if session.json:
        session.out.value({"key": key} | _as_json(as_key(row)))
        return
    # The key alone on stdout, for scripts; it cannot be shown again.
    session.out.line(key)
    session.out.notice(_line(as_key(row)))
    if not expires_in:
        session.out.notice(
            "warning: it never expires; give it --expires-in 90d, or --expires-in never if that is"
            " meant"
        )


def list_keys(session: Session) -> None:
    """List the keys, without the keys themselves.

    With --json: `{"keys": [...]}`, each as `create` tells it.

    \b
    Examples:
      queue-server keys list
      queue-server keys list --database-url postgresql://queue@db/queue --json
    """
    with _database(session) as connection:
        keys = [as_key(row) for row in connection.execute(STATEMENTS["api_keys"]).fetchall()]
    if session.json:
        session.out.value({"keys": [_as_json(key) for key in keys]})
        return
    for key in keys:
        session.out.line(_line(key))


def revoke(
    session: Session,
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
) -> None:
    """Revoke a key; servers notice within two seconds.

    With --json: `{"id", "name", "revoked"}`.

    \b
    Examples:
      queue-server keys revoke 3f9c1d2a7b60
    """
    with _database(session) as connection:
        row = connection.execute(STATEMENTS["revoke_api_key"], {"id": id_}).fetchone()
    if row is None:
        raise CliError(
            f"no key has the id {id_!r}",
            "queue-server keys list shows what there is",
            exit_code=Exit.NOT_FOUND,
        )
    if session.json:
        session.out.value({"id": id_, "name": row[0], "revoked": True})
        return
    session.out.line(f"{id_} of {row[0]} is revoked")


@contextlib.contextmanager
def _database(session: Session) -> Iterator[psycopg.Connection]:
    import psycopg

    with session.database() as connection:
        try:
            yield connection
        except psycopg.errors.UndefinedTable as exc:
            raise CliError("the database has no keys yet", "start the server") from exc


def _check(name: str, role: str, expires_in: str, patterns: list[str]) -> int | None:
    """The lifetime in seconds. Errors: `CliError` for what no key can have."""
    try:
        good_name = name.isprintable() and 0 < len(check_text(name, "the name")) <= 200
    except BadRequest:
        good_name = False
    if not good_name:
        raise usage_error("NAME must be one line of at most 200 characters")
    if role not in ROLES:
        raise usage_error(f"--role {role}: must be one of {', '.join(ROLES)}")
    for pattern in patterns:
        if not pattern or not pattern.isprintable():
            raise usage_error(f"{pattern!r} is no pattern", "it is like orders.*")
    if expires_in in ("", "never"):
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", expires_in)
    if not found:
        raise usage_error(
            f"--expires-in {expires_in}: must be a time such as 90d, 12h, 30m or 45s, or never"
        )
    return int(found[1]) * _UNITS[found[2]]


def _as_json(key: ApiKey) -> dict[str, Any]:
    grants = key.grants
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        # null: all queues
        "queues": None
        if grants is None
        else {"push": grants.push, "pop": grants.pop, "administer": grants.administer},
        "createdAt": key.created_at,
        "expiresAt": key.expires_at,
    }


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
