"""Runs load in processes of its own and shows how far it is.

The parent forks one process for each share of the load, lets all of them prepare, starts them at
the same moment, and draws the progress. It has no event loop and no thread, so it may fork again
for the next run.
"""

from __future__ import annotations

import mmap
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Generic, TypeVar

import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.client import RequestFailed

Result = TypeVar("Result")
Reading = TypeVar("Reading")

_WORD_BYTES = 8
_REFRESH_S = 0.2  # often enough to look alive; drawing takes cycles from the server
_PLAIN_LINES = 10  # how many lines of progress a whole run writes to what is no terminal


class Board:
    """How many messages each process has done, for all of them to see."""

    def __init__(self, process_count: int) -> None:
        self._words = memoryview(mmap.mmap(-1, process_count * _WORD_BYTES)).cast("q")

    def add(self, process: int, count: int) -> None:
        self._words[process] += count

    def total(self) -> int:
        return sum(self._words)


class Gate:
    """Where a process waits, prepared, for all to start at once."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def pass_together(self) -> None:
        """Tell that this process is ready and wait for the start. Nothing else runs meanwhile."""
        self._pipe.send("ready")
        self._pipe.recv()
        self.cpu_begin_s = time.process_time()


Work = Callable[[int, Board, Gate], Awaitable[Result]]


@dataclass(frozen=True)
class Driven(Generic[Result, Reading]):
    """What the processes gave back, and what *read* said before the start and after the end."""

    results: list[Result]
    before: Reading
    after: Reading
    load_core_seconds: float  # user and system time of the load's processes and of the progress


def drive(
    work: Work[Result],
    process_count: int,
    message_count: int,
    title: str,
    console: Console,
    read: Callable[[], Reading],
) -> Driven[Result, Reading]:
    """Run *work* in *process_count* processes at once.

    *work* is given the number of its process, and must pass its gate once, when it is prepared.
    Errors: `RequestFailed` with what the first process that failed said; the others are ended.
    """
    board = Board(process_count)
    context = multiprocessing.get_context("fork")
    pipes: list[Pipe] = []
    processes = []
    for number in range(process_count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_child, args=(work, number, board, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        for pipe in pipes:
            _receive(pipe)
        before = read()
        cpu_begin_s = time.process_time()
        for pipe in pipes:
            pipe.send("go")
        with _ProgressOf(title, message_count, console) as progress:
            done: dict[Pipe, tuple[Result, float]] = {}
            while len(done) < process_count:
                readable = wait([p for p in pipes if p not in done], _REFRESH_S)
                done |= {pipe: _receive(pipe) for pipe in pipes if pipe in readable}
                progress.show(board.total())
        after = read()
        return Driven(
            [done[pipe][0] for pipe in pipes],
            before,
            after,
            time.process_time() - cpu_begin_s + sum(cpu_s for _, cpu_s in done.values()),
        )
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _receive(pipe: Pipe) -> tuple[Result, float]:
    try:
        said = pipe.recv()
    except EOFError:
        raise RequestFailed("a process of the load generator died") from None
    if isinstance(said, RequestFailed):
        raise said
    return said  # type: ignore[no-any-return]


def _child(work: Work[Result], number: int, board: Board, pipe: Pipe) -> None:
    gate = Gate(pipe)

    async def run() -> Result:
        return await work(number, board, gate)

    try:
        result = uvloop.run(run())
        pipe.send((result, time.process_time() - gate.cpu_begin_s))
    except (RequestFailed, OSError) as exc:
        pipe.send(RequestFailed(str(exc)))
    except KeyboardInterrupt:
        pass  # the parent was interrupted too, and says so


class _ProgressOf:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self._title = title
        self._total = total
        self._console = console
        self._begin = time.monotonic()
        self._lines = 0
        # Drawn by hand: rich's own refreshing would be a thread, and this process forks.
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, rate="")

    def __enter__(self) -> _ProgressOf:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, count: int) -> None:
        rate = f"{count / max(time.monotonic() - self._begin, 1e-9):,.0f} msg/s"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=count, rate=rate, refresh=True)
        elif count * _PLAIN_LINES // max(self._total, 1) > self._lines:
            self._lines = count * _PLAIN_LINES // max(self._total, 1)
            self._console.print(
                f"{self._title}: {count:,} of {self._total:,}, {rate}", highlight=False
            )
