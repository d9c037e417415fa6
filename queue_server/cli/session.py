"""What commands have in common: their shared options, a client, and where they write.

A command is a function whose first parameter is a `Session`. `server_command` and
`database_command` take it out of what typer sees and put the shared options in its place, so each
of them is written down once:

    @server_command(app, "ls")
    def list_queues(session: Session, search: Annotated[str, ...] = "") -> None:
        ...
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from queue_server.cli.client import Client
from queue_server.cli.exits import CliError, Exit, usage_error
from queue_server.cli.output import Output
from queue_server.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    import psycopg

DEFAULT_URL = "http://127.0.0.1:6632"
# Whoever pressed Tab waits.
_COMPLETION_TIMEOUT_S = 1.0

_URL = Annotated[
    str,
    typer.Option("--url", envvar="QUEUE_SERVER_URL", metavar="URL", help="Address of the server."),
]
_TOKEN = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="QUEUE_SERVER_TOKEN",
        metavar="TOKEN",
        show_default=False,
        help="Token or API key. Other users of the machine can read a command line: better set"
        " the variable or use --token-file.",
    ),
]
_TOKEN_FILE = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="QUEUE_SERVER_TOKEN_FILE",
        metavar="FILE",
        show_default=False,
        help="File that holds the token or API key; it beats --token.",
    ),
]
_TIMEOUT = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", min=0.1, max=3600, help="How long an answer may take."
    ),
]
_JSON = Annotated[
    bool, typer.Option("--json", help="Write JSON for programs; errors too, on stderr.")
]
_DATA_DIR = Annotated[
    str,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        show_default=False,
        help="Where a running server keeps its own PostgreSQL [DATA_DIR; default: ./data].",
    ),
]
_DATABASE_URL = Annotated[
    str,
    typer.Option(
        "--database-url",
        metavar="URL",
        show_default=False,
        help="A given PostgreSQL [DATABASE_URL, or PG_HOST ...]. Other users of the machine can"
        " read a command line: with a password better set the variable.",
    ),
]


def complete_queue(incomplete: str) -> list[str]:
    """Names of queues for the shell; none when the server cannot be asked."""
    url = os.environ.get("QUEUE_SERVER_URL") or DEFAULT_URL
    token_file = os.environ.get("QUEUE_SERVER_TOKEN_FILE")
    session = Session(
        json=False,
        url=url,
        token=os.environ.get("QUEUE_SERVER_TOKEN", ""),
        token_file=Path(token_file) if token_file else None,
        timeout=_COMPLETION_TIMEOUT_S,
    )
    try:
        found = session.client.get("/api/v1/resources/queues", {"search": incomplete or None})
    except CliError:
        return []
    return [one["name"] for one in found["queues"] if one["name"].startswith(incomplete)]


Queue = Annotated[
    str, typer.Argument(metavar="QUEUE", help="Its name.", autocompletion=complete_queue)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Session:
    """One run of a command."""

    def __init__(
        self,
        *,
        json: bool,
        url: str = DEFAULT_URL,
        token: str = "",
        token_file: Path | None = None,
        timeout: float = 10.0,
        data_dir: str = "",
        database_url: str = "",
    ) -> None:
        self.out = Output(json=json)
        self.url = url
        self.timeout_s = timeout
        self._token = token
        self._token_file = token_file
        self._database = (("--data-dir", data_dir), ("--database-url", database_url))

    @property
    def json(self) -> bool:
        return self.out.json

    @functools.cached_property
    def client(self) -> Client:
        return self.new_client()

    def new_client(self) -> Client:
        """Another connection to the same server, for a thread of its own."""
        return Client(self.url, self.token, self.timeout_s)

    @functools.cached_property
    def token(self) -> str | None:
        if self._token_file is None:
            token = self._token.strip()
        else:
            token = self._read_token(self._token_file)
        if not (token.isascii() and token.isprintable()):
            raise usage_error("the token holds characters that no token has")
        return token or None

    def _read_token(self, path: Path) -> str:
        try:
            if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                self.out.notice(
                    ("warning: ", "yellow"), f"{path} can be read by others (chmod 600)"
                )
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
            raise usage_error(f"--token-file {path}: {reason}") from exc

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings of a server that was started with the same options and environment.

        Errors: `SettingsError`.
        """
        given = [text for flag, value in self._database if value for text in (flag, value)]
        return load_settings(given, os.environ)

    @property
    def names_database(self) -> bool:
        """Whether the command line, or a given database in the environment, says which is meant."""
        return any(value for _, value in self._database) or self.settings.conninfo is not None

    @functools.cached_property
    def conninfo(self) -> str:
        """The connection string of its database; it holds the password.

        Errors: `SettingsError`; `DatabaseError` when its own one does not run.
        """
        from queue_server.cluster.database import conninfo_of_running

        return self.settings.conninfo or conninfo_of_running(self.settings.data_dir)

    @contextlib.contextmanager
    def database(self, *, read_only: bool = False) -> Iterator[psycopg.Connection]:
        """A connection to it, which commits each statement; *read_only*: one transaction for all.

        Nothing is set for the session and nothing prepared: behind a pooler the next one who gets
        the backend would have it.

        Errors: `CliError` when there is none, or it breaks.
        """
        import psycopg

        from queue_server.cluster.database import DatabaseError
        from queue_server.storage.connections import connect
        from queue_server.storage.refusals import explain_refusal

        fix = "start the server, or name its database: --data-dir, --database-url"
        try:
            with connect(self.conninfo) as connection:
                if not read_only:
                    yield connection
                    return
                with connection.transaction():
                    connection.execute("SET TRANSACTION READ ONLY")
                    yield connection
        except DatabaseError as exc:
            raise CliError(str(exc), fix, exit_code=Exit.UNREACHABLE) from exc
        except psycopg.OperationalError as exc:
            reason = explain_refusal(exc, self.conninfo) or " ".join(str(exc).split())
            raise CliError(
                f"cannot reach the database: {reason}", fix, exit_code=Exit.UNREACHABLE
            ) from exc


# Options that commands of one kind have in common, by their names in `Session`.
_JSON_ALONE = {"json": (_JSON, False)}
_SERVER = {
    "url": (_URL, DEFAULT_URL),
    "token": (_TOKEN, ""),
    "token_file": (_TOKEN_FILE, None),
    "timeout": (_TIMEOUT, 10.0),
}
_DATABASE = {"data_dir": (_DATA_DIR, ""), "database_url": (_DATABASE_URL, "")}

Command = Callable[..., None]


def server_command(app: typer.Typer, name: str) -> Callable[[Command], Command]:
    """A command that talks to a server."""
    return _command(app, name, _SERVER | _JSON_ALONE)


def database_command(app: typer.Typer, name: str) -> Callable[[Command], Command]:
    """A command that talks to the database of a server."""
    return _command(app, name, _DATABASE | _JSON_ALONE)


def data_command(app: typer.Typer, name: str) -> Callable[[Command], Command]:
    """A command that works on the files of a server's own database."""
    return _command(app, name, {"data_dir": (_DATA_DIR, "")} | _JSON_ALONE)


def full_command(app: typer.Typer, name: str) -> Callable[[Command], Command]:
    """A command that talks to both."""
    return _command(app, name, _SERVER | _DATABASE | _JSON_ALONE)


def _command(
    app: typer.Typer, name: str, shared: dict[str, tuple[Any, Any]]
) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]

        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            session = Session(**{option: arguments.pop(option) for option in shared})
            try:
                function(session, **arguments)
            except SettingsError as exc:
                session.out.error(usage_error(str(exc), "see queue-server serve --help"))
                raise typer.Exit(Exit.USAGE) from exc
            except CliError as exc:
                session.out.error(exc)
                raise typer.Exit(exc.exit_code) from exc

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[
                *own,
                *(
                    inspect.Parameter(
                        option,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=default,
                        annotation=annotation,
                    )
                    for option, (annotation, default) in shared.items()
                ),
            ]
        )
        run.__annotations__ = {
            parameter.name: parameter.annotation
            for parameter in run.__signature__.parameters.values()  # type: ignore[attr-defined]
        }
        app.command(name)(run)
        return function

    return decorate
