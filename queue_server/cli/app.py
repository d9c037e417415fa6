"""The commands put together."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from queue_server import __version__
from queue_server.cli.commands import (
    bench,
    dead_letters,
    doctor,
    groups,
    keys,
    messages,
    migrate,
    queues,
    serve,
    status,
    upgrade_database,
)
from queue_server.cli.exits import Exit

PROGRAM = "queue-server"

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    # Help is read in pipes too, and its examples hold JSON, whose brackets are rich's markup.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed or refused, 2 usage, 3 unreachable, 4 not allowed, 5 not"
    " found; docs/command-line.md has the whole reference.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """A partitioned message queue on PostgreSQL: run the server, look at it, use it.

    Where the server is: --url or QUEUE_SERVER_URL (http://127.0.0.1:6632).
    Who asks: --token-file, QUEUE_SERVER_TOKEN or --token.

    \b
    Examples:
      queue-server serve --workers 4
      queue-server push orders '{"total": 12.5}'
      queue-server pop orders --json | queue-server ack
      queue-server status
    """


for module in (
    serve,
    status,
    messages,
    queues,
    groups,
    dead_letters,
    keys,
    migrate,
    upgrade_database,
    doctor,
    bench,
):
    module.add_to(app)


def run(argv: Sequence[str]) -> int:
    """Carry out a command; the exit code."""
    try:
        app(args=list(argv), prog_name=PROGRAM)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(Exit.FAILED)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        # Who read our output has enough; the interpreter must not try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(Exit.OK)
