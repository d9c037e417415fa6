"""`serve`: run the server.

It never gets here: `__main__.py` starts the server without this package. What stands here is for
the list of commands, the reference, and the shell's completion of its options.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from queue_server.settings import options


def add_to(app: typer.Typer) -> None:
    def serve(**_: Any) -> None:
        """Run the server, until Ctrl-C or SIGTERM.

        It is what `python cluster.py` does. Settings also come from the environment: `queue-server
        serve --help` lists all of them.

        \b
        Examples:
          queue-server serve
          queue-server serve --workers 4 --port 6632
          DATABASE_URL=postgresql://queue:secret@db/queue queue-server serve
        """
        raise AssertionError("unreachable: the server is started before typer is")

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default="",
            annotation=Annotated[
                str,
                typer.Option(
                    option.flag,
                    show_default=False,
                    metavar="VALUE",
                    help=f"{option.text} [{', '.join(option.env)}]",
                ),
            ],
        )
        for name, option in options().items()
        if option.flag
    ]
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command("serve")(serve)
