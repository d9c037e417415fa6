"""Reading the settings: the command line beats the environment, which beats the default.

An environment variable that is set but empty counts as not set, as `PORT=` in a compose file means.
A bad value ends the start with one line that names the setting.
"""

import argparse
import difflib
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from queue_server import __version__
from queue_server.settings.model import Settings, options
from queue_server.settings.setting import Option, SettingsError


def load_settings(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    terminal: bool = False,
    program: str = "cluster.py",
) -> Settings:
    """Read the settings; *argv* is without the name of the *program*, which `--help` shows.

    *terminal* is whether the log goes to a terminal.
    Errors: `SettingsError` for the first value that cannot be used. `--help` and `--version`
    print and raise SystemExit, as argparse does.
    """
    given = vars(_parser(program).parse_args(argv))
    values: dict[str, Any] = {"log_format": "console" if terminal else "json"}
    for name, option in options().items():
        if given.get(name) is not None:
            values[name] = _parse(option, option.flag, given[name])
            continue
        for variable in option.env:
            if text := environ.get(variable, "").strip():
                values[name] = _parse(option, variable, text)
                break
    return Settings(**values)


def _parse(option: Option, source: str, text: str) -> Any:
    try:
        return option.parse(text)
    except ValueError as exc:
        # One line whatever the value holds, and no secret: a URL is not repeated.
        shown = "" if option.secret else f"={text[:100]!r}"
        raise SettingsError(f"{source}{shown}: {exc}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = self._unknown_options(unknown.split()) or message
        raise SettingsError(f"{message} (see --help)")

    def _unknown_options(self, words: Sequence[str]) -> str:
        """Name the options among *words*, without their values: one may be a password."""
        sentences = []
        for word in words:
            if not word.startswith("-"):
                continue
            given = word.partition("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            sentences.append(f"there is no option {given}{guess}")
        return "; ".join(sentences)

    def print_help(self, file: Any = None) -> None:
        # argparse knows nothing of the settings that come from the environment alone.
        super().print_help(file)
        print("\n" + _environment_help(), file=file)


def _parser(program: str) -> _Parser:
    command = f"python {program}" if program.endswith(".py") else program
    parser = _Parser(
        prog=program,
        description="A clustered, partitioned message-queue server on PostgreSQL. Without a"
        " given database it runs its own in the data directory.",
        epilog="examples:\n"
        f"  {command}\n"
        f"  {command} --workers 4 --port 6632\n"
        f"  DATABASE_URL=postgresql://queue:secret@db/queue {command}\n"
        "other commands: queue-server --help (in a checkout: python -m queue_server --help)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, option in options().items():
        if option.flag:
            text = f"{option.text} [{', '.join(option.env)}; default: {_default(option)}]"
            parser.add_argument(
                option.flag,
                dest=name,
                metavar=option.flag.lstrip("-").upper().replace("-", "_"),
                help=text.replace("%", "%%"),
            )
    parser.add_argument("--version", action="version", version=f"queue-server {__version__}")
    return parser


def _environment_help() -> str:
    width = min(100, shutil.get_terminal_size().columns)
    lines = ["environment variables (a command-line option takes precedence):"]
    for option in options().values():
        also = f" (also {', '.join(option.env[1:])})" if option.env[1:] else ""
        text = (
            f"{option.text} Default: {_default(option)}."
            f" Example: {option.env[0]}={option.example}{also}"
        )
        lines.append(f"  {option.env[0]}")
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )
    lines += [
        "",
        "signals: Ctrl-C, SIGTERM or closing the terminal drains the server, a second one ends it"
        " at once; SIGHUP replaces the workers.",
    ]
    return "\n".join(lines)


def _default(option: Option) -> str:
    if option.default_text:
        return option.default_text
    default = option.default
    return str(default).lower() if isinstance(default, bool) else str(default)
