"""`upgrade-database`: take the server's own data to the PostgreSQL of this version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from queue_server.cli.exits import CliError, usage_error
from queue_server.cli.session import Session, data_command


def add_to(app: typer.Typer) -> None:
    data_command(app, "upgrade-database")(upgrade_database)


def upgrade_database(
    session: Session,
    old_bindir: Annotated[
        Path | None,
        typer.Option(
            "--old-bindir",
            metavar="DIR",
            show_default=False,
            help="Where the programs of the old PostgreSQL are; without it, where distributions"
            " put them.",
        ),
    ] = None,
) -> None:
    """Take the server's own data to a new major version of PostgreSQL.

    For a server that says its data is of another version. Stop it first, and make a backup. The
    files are copied by pg_upgrade, which takes about as long as copying them: the old ones are kept
    in DATA_DIR/postgres.<version>, so there has to be room for both. Run it as the server's user,
    or as root. An interrupted run changed nothing; run it again.

    With --json: `{"upgraded", "old_files"}`.

    \b
    Examples:
      queue-server upgrade-database --data-dir /var/lib/queue-server
      queue-server upgrade-database --old-bindir /usr/lib/postgresql/17/bin
    """
    from queue_server.cluster.database import DatabaseError
    from queue_server.cluster.upgrade import Upgrade

    settings = session.settings
    if settings.conninfo is not None:
        raise usage_error(
            "the database is a given one", "upgrade its PostgreSQL with the tools it came with"
        )
    data_dir = settings.data_dir
    report = session.out.notice if session.json else session.out.line
    try:
        kept = Upgrade(data_dir, old_bindir, report).run()
    except DatabaseError as exc:
        raise CliError(str(exc)) from exc
    if session.json:
        session.out.value({"upgraded": kept is not None, "old_files": str(kept) if kept else None})
    elif kept is None:
        session.out.line(f"{data_dir} has the version of this server already")
    else:
        session.out.line(f"done; the old files are in {kept}: remove them when all is well")
