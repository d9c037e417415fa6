"""Writes docs/command-line.md: `python -m queue_server.cli.reference > docs/command-line.md`.

What the commands, options and exit codes are is read from the application itself; a test compares.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import typer

from queue_server.cli.app import PROGRAM, app
from queue_server.cli.exits import MEANINGS

_INTRODUCTION = """\
# The command line

<!-- Written by `python -m queue_server.cli.reference > docs/command-line.md`; do not edit. -->

`queue-server` runs the server, looks at it and uses it. It is there once the package is installed;
in a checkout it is `python -m queue_server` (`.venv/bin/python -m queue_server`). `python cluster.py`
is `queue-server serve`.

```sh
queue-server serve --workers 4
queue-server push orders '{"total": 12.5}'
queue-server pop orders --json | queue-server ack
queue-server status
queue-server doctor
```

Every command has `--help` with examples.

## Which server, and who asks

| Option | Variable | Default | |
|---|---|---|---|
| `--url` | `QUEUE_SERVER_URL` | `http://127.0.0.1:6632` | the server; a path in it is put before every route |
| `--token-file` | `QUEUE_SERVER_TOKEN_FILE` | | a file with a token or API key; beats the next |
| `--token` | `QUEUE_SERVER_TOKEN` | | the token itself; other users can read a command line, so better not as an option |
| `--timeout` | | 10 | seconds that an answer may take |
| `--json` | | | JSON on stdout, see below |

`migrate`, `keys` and `doctor` also look at the database, and find it as the server does: `--data-dir` or
`DATA_DIR`, `--database-url` or `DATABASE_URL`, `PG_HOST` …

With https the machine's authorities are trusted, or those in the file that `SSL_CERT_FILE` names. A
server that wants certificates of clients (`TLS_CLIENT_CA`) cannot be asked from here.

A request is sent again by itself only where that does nothing twice: one that only looks, a push
(its messages have transaction ids), an acknowledgement under its lease, and what was refused for
now (429).

## Exit codes

"""  # noqa: E501

_JSON = """
## JSON

With `--json` a command writes one object on one line, and `pop`, `ack`, `tail` and `top` JSON Lines, an
object for each message, result or look. Nothing else is on stdout. Fields that are named below stay;
new ones may be added. Numbers of a payload keep their digits.

An error is one object on stderr:

```json
{"error": "queue 'orders' does not exist", "fix": "queue-server queues ls shows what there is", "exit": 5, "status": 404, "code": "not_found", "requestId": "5f0c1c9d0f1e2a3b"}
```

`status`, `code` and `requestId` are those of the server's answer (the id stands in its log), else `null`.

## Questions

What deletes, moves or skips messages (`queues delete`, `groups seek`, `groups delete`, `dlq redrive`, `dlq purge`)
says what it will do and asks. `--yes` answers. Without a terminal and without `--yes` it is refused (1).

## Colours

Only on a terminal, and not when `NO_COLOR` is set.

## Completion

```sh
queue-server --install-completion     # for the shell it is called from: bash, zsh, fish, PowerShell
queue-server --show-completion        # to put it somewhere oneself
```

# Commands
"""  # noqa: E501

# Told in the introduction.
_SHARED = {"url", "token", "token_file", "timeout", "json", "help"}


def reference() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, "| Code | Means |\n|---|---|\n"]
    parts += [f"| {int(code)} | {text} |\n" for code, text in MEANINGS.items()]
    parts.append(_JSON)
    for path, command in commands():
        parts.append(f"\n## {path}\n\n{_prose(command.help or '')}")
        parts += _parameters(command)
    return "".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its path, such as `queue-server queues ls`."""
    yield from _commands(typer.main.get_command(app), PROGRAM)


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _prose(help_: str) -> str:
    """The help, its examples as code."""
    text, _, examples = inspect.cleandoc(help_).partition("\b\nExamples:\n")
    code = inspect.cleandoc(examples)
    return f"{text.strip()}\n" + (f"\n```sh\n{code}\n```\n" if code else "")


def _parameters(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if parameter.name in _SHARED or getattr(parameter, "hidden", False):
            continue
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            name = parameter.metavar or parameter.name
        default = parameter.default
        shown = "" if default in (None, "", False, ()) else str(default)
        if default is True:
            shown = parameter.opts[0]
        if parameter.required:
            shown = "required"
        text = " ".join((parameter.help or "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {shown} | {text} |\n")
    return ["\n| Argument or option | Default | |\n|---|---|---|\n", *rows] if rows else []


if __name__ == "__main__":
    sys.stdout.write(reference())
