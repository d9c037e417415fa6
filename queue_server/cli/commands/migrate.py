"""`migrate`: what a start of this version would do to the database's schema."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from queue_server import __version__
from queue_server.cli.exits import CliError, usage_error
from queue_server.cli.session import Session, database_command


def add_to(app: typer.Typer) -> None:
    database_command(app, "migrate")(migrate)


def migrate(
    session: Session,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be applied.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="End with 1 unless the schema is current.")
    ] = False,
) -> None:
    """Say whether the schema is current; change nothing.

    The server itself applies what is missing when it starts, in one transaction. A `pre` migration
    only adds, so servers of the version before go on beside it; a `post` migration takes away.

    With --json: `{"current", "migrations", "functions", "problem", "version"}`.

    \b
    Examples:
      queue-server migrate --plan --database-url postgresql://queue@db/queue
      queue-server migrate --check || echo 'not current'
    """
    from queue_server.storage import migrate as storage

    if not (plan or check):
        raise usage_error(
            "say what to do: --plan or --check", "the server applies migrations when it starts"
        )
    with session.database(read_only=True) as connection:
        found = storage.plan(connection)
    if session.json:
        session.out.value(
            {"current": found.is_current} | msgspec.structs.asdict(found) | {"version": __version__}
        )
    elif found.is_current:
        session.out.line(f"the schema is that of version {__version__}")
    else:
        for name in found.migrations:
            kind = "only adds" if "_pre_" in name else "takes away"
            session.out.line(f"apply {name}", (f"  ({kind})", "dim"))
        for name in found.functions:
            session.out.line(f"apply {name}", ("  (replaces functions)", "dim"))
    if found.problem:
        raise CliError(f"this version cannot work with the database: {found.problem}")
    if check and not found.is_current:
        raise CliError(
            "the schema is not that of this version", "start this version, which applies it"
        )
