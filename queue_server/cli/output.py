"""What a command shows: results on stdout, everything else on stderr.

Colours and progress are for terminals; rich leaves them out elsewhere and where NO_COLOR is set.
What comes from a server is never read as rich's markup, and control characters in it are shown, not
obeyed: a queue's name may hold what would repaint a terminal.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from queue_server.cli.exits import CliError, Exit

# Somewhere else than on a terminal a line is as long as it is.
_WIDTH_OF_A_FILE = 10_000
# Between two columns of a table.
_GAP = 2
# As much of a name is shown at least on a screen, where no line may be longer.
_SHORT_NAME = 24
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Output:
    """Where a command writes; *json* says in which form."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.stdout = _console(stderr=False)
        self.stderr = _console(stderr=True)

    def value(self, value: Any) -> None:
        """One JSON object, on one line."""
        self.raw_json(msgspec.json.encode(value))

    def raw_json(self, raw: bytes) -> None:
        """JSON as it came, on one line; its numbers keep their digits."""
        sys.stdout.write(msgspec.json.format(raw, indent=-1).decode() + "\n")
        sys.stdout.flush()

    def line(self, *parts: str | tuple[str, str]) -> None:
        """A line on stdout; a part may be (text, style)."""
        self.stdout.print(styled(*parts), soft_wrap=True)

    def notice(self, *parts: str | tuple[str, str]) -> None:
        """A line for whoever watches, on stderr."""
        self.stderr.print(styled(*parts), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], keys: int = 1) -> None:
        """Print a table whose cells are never folded, in the form of `table`.

        Where the terminal is too narrow for it, columns are left out from the right, but never the
        first *keys*, which name what a row is about.
        """
        texts = [[_cell(cell) for cell in row] for row in rows]
        shown, left_out = fitting(columns, texts, self.stdout.width, keys)
        printed = table(columns[:shown], [row[:shown] for row in texts])
        printed.width = table_width(columns[:shown], texts)
        # What is wider than the terminal all the same is its to wrap: a name can be copied whole.
        self.stdout.print(printed, crop=False, overflow="ignore", no_wrap=True)
        if left_out:
            self.notice((f"no room for {', '.join(left_out)}: widen the terminal", "dim"))

    def figures(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table of few rows, on its side where the terminal is too narrow for it."""
        texts = [[_cell(cell) for cell in row] for row in rows]
        if table_width(columns, texts) > self.stdout.width:
            heads, *lines = zip(map(_name, columns), *texts, strict=True)
            columns = [str(heads[0]), *(f">{head}" for head in heads[1:])]
            texts = [[_cell(cell) for cell in line] for line in lines]
        self.table(columns, texts, keys=len(columns))

    def error(self, exc: CliError) -> None:
        if self.json:
            sys.stderr.write(msgspec.json.encode(exc.as_json()).decode() + "\n")
            return
        self.notice(("error: ", "bold red"), exc.message)
        for note in exc.notes:
            self.notice(f"  {note}")
        if exc.request_id:
            self.notice(("  request id: ", "dim"), exc.request_id)
        for fix in filter(None, (exc.fix, exc.next_step)):
            self.notice(("  fix: ", "bold"), fix)

    @contextlib.contextmanager
    def progress(
        self, doing: str, total: int | None, unit: str = ""
    ) -> Iterator[Callable[[int, int], None]]:
        """Show on a terminal how much of *total* is done; None: nobody knows how much it is.

        Yields what is told of how many more. Where *total* is not what people count, as with the
        bytes of a file, it is told as well how many more of *unit* that was.
        """
        if total is None or not self.stderr.is_terminal:
            yield lambda _more, _units: None
            return
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        told = "{task.completed:,} of {task.total:,}"
        if unit:
            told = f"{{task.fields[units]:,}} {unit}"
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn(told),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.stderr, transient=True) as shown:
            task = shown.add_task(doing, total=total, units=0)
            units = 0

            def advance(more: int, more_units: int) -> None:
                nonlocal units
                units += more_units
                shown.update(task, advance=more, units=units)

            yield advance

    def confirm(self, action: str, *, yes: bool) -> None:
        """Go on only when *action* is wanted.

        Errors: `CliError` when it is not, or when there is nobody to ask.
        """
        if yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise CliError(
                f"not done, because nobody confirmed it: {action}",
                "add --yes if that is meant",
            )
        self.stderr.print(styled((f"{action}. ", "bold"), "Go on? [y/N] "), end="", soft_wrap=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CliError("not done", exit_code=Exit.FAILED)


def styled(*parts: str | tuple[str, str]) -> Text:
    text = Text()
    for part in parts:
        content, style = (part, "") if isinstance(part, str) else part
        text.append(plain(content), style)
    return text


def plain(value: object) -> str:
    """A value as a text that a terminal cannot be deceived with."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Make a table; a column whose name begins with `>` is of numbers."""
    result = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for name in columns:
        result.add_column(
            _name(name),
            justify="right" if name.startswith(">") else "left",
            overflow="ellipsis",
            no_wrap=True,
        )
    for row in rows:
        result.add_row(*map(_cell, row))
    return result


def screen_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], width: int) -> Table:
    """Make a table for a screen of *width*, whose lines may not be longer.

    Columns are left out from the right until there is room for the beginning of the names, which
    are in the first one.
    """
    texts = [[_cell(cell) for cell in row] for row in rows]
    names = [row[0].copy() for row in texts]
    for row in texts:
        row[0].truncate(_SHORT_NAME, overflow="ellipsis")
    shown, _ = fitting(columns, texts, width, keys=1)
    room = width - table_width(["", *columns[1:shown]], [[Text(""), *row[1:]] for row in texts])
    for row, name in zip(texts, names, strict=True):
        name.truncate(max(room, 1), overflow="ellipsis")
        row[0] = name
    return table(columns[:shown], [row[:shown] for row in texts])


def fitting(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int, keys: int
) -> tuple[int, list[str]]:
    """Return how many columns fit into *width*, *keys* at least, and the names of the others."""
    shown = len(columns)
    while shown > keys and table_width(columns[:shown], rows) > width:
        shown -= 1
    return shown, [_name(column) for column in columns[shown:]]


def table_width(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> int:
    """Return the width of a table with all cells whole."""
    widths = (
        max([cell_len(_name(column)), *(row[index].cell_len for row in rows)])
        for index, column in enumerate(columns)
    )
    return sum(width + _GAP for width in widths) - _GAP


def _name(column: str) -> str:
    return column.removeprefix(">")


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(count(value) if isinstance(value, int) else plain(value))


def count(number: int) -> str:
    return f"{number:,}"


def some(number: int, thing: str, things: str = "") -> str:
    """Such as `1 message` and `2 messages`."""
    return f"{count(number)} {thing if number == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """A time such as `3 d 4 h`, with its two largest units."""
    seconds = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length or (unit == "s" and not parts):
            parts.append(f"{seconds // length} {unit}")
            seconds %= length
        elif parts:
            break
    return " ".join(parts[:2])


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)
