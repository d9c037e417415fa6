"""Runs load in processes of its own and shows how far it is.

The parent forks one process for each part of the load, lets all of them prepare, starts them at
the same moment, and draws the progress. It has no event loop and no thread, so it may fork again
for the next run.
"""

from __future__ import annotations

import mmap
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Generic, TypeVar

import msgspec
import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.check import Delivery
from bench.client import RequestFailed
from bench.lifetime import end_with_parent

Reading = TypeVar("Reading")

_WORD_BYTES = 8
_REFRESH_S = 0.2  # often enough to look alive; drawing takes cycles from the server
_PLAIN_LINES = 10  # how many lines of progress a whole run writes to what is no terminal


class Board:
    """What each process has done, for all of them to see: messages pushed, and consumed.

    Shape: *backlog_count* messages were there before; each message is to be consumed by
    *group_count* groups, by those of the processes that consume at all.
    """

    def __init__(self, process_count: int, backlog_count: int = 0, group_count: int = 1) -> None:
        self._backlog_count = backlog_count
        self._group_count = group_count
        words = mmap.mmap(-1, 3 * process_count * _WORD_BYTES)
        view = memoryview(words).cast("q")
        self._pushed = view[:process_count]
        self._consumed = view[process_count : 2 * process_count]
        self._pushing = view[2 * process_count :]  # 1 while more may come of that process

    def add_pushed(self, process: int, count: int) -> None:
        self._pushed[process] += count

    def add_consumed(self, process: int, count: int) -> None:
        self._consumed[process] += count

    def set_pushing(self, process: int, more: bool) -> None:
        self._pushing[process] = more

    def moved(self) -> int:
        """Messages pushed and messages consumed, each counted."""
        return sum(self._pushed) + sum(self._consumed)

    def consumed(self) -> int:
        return sum(self._consumed)

    def is_pushing(self) -> bool:
        return any(self._pushing)

    def is_drained(self) -> bool:
        """Whether no more is pushed and everything there was has been consumed."""
        if self.is_pushing():
            return False
        there = self._backlog_count + sum(self._pushed)
        return self.consumed() >= there * self._group_count


class Gate:
    """Where a process waits, prepared, for all to start at once."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def pass_together(self) -> None:
        """Tell that this process is ready and wait for the start. Nothing else runs meanwhile."""
        self._pipe.send("ready")
        self._pipe.recv()
        self.cpu_begin_s = time.process_time()


class ConsumerShare(msgspec.Struct):
    """What one consumer did."""

    number: int
    message_count: int = 0
    bytes_received: int = 0
    empty_count: int = 0
    pop_ms: list[float] = []
    ack_ms: list[float] = []
    deliveries: list[Delivery] = []
    acknowledged_count: int = 0


class Share(msgspec.Struct):
    """What one process did; times by the monotonic clock, which all processes share."""

    begin_ns: int
    end_ns: int
    pushed: dict[str, range] = {}  # ids by partition
    bytes_sent: int = 0
    consumers: list[ConsumerShare] = []
    latencies_ms: dict[str, list[float]] = {}  # by kind of request, beside pops and acks
    begun_ns: dict[int, int] = {}  # by id, when a message was to be sent


Work = Callable[[int, Board, Gate], Awaitable[Share]]


@dataclass
class Load:
    """Parts that run at the same time, each in a process of its own.

    *message_count* or *seconds* say how long it will take, for the progress alone.
    """

    title: str
    works: Sequence[Work]
    message_count: int = 0
    seconds: float = 0.0
    backlog_count: int = 0
    group_count: int = 1


@dataclass(frozen=True)
class Driven(Generic[Reading]):
    """What the processes gave back, and what *read* said before the start and after the end."""

    shares: list[Share]
    before: Reading
    after: Reading
    load_core_seconds: float  # user and system time of the load's processes and of the progress


def drive(
    load: Load,
    console: Console,
    read: Callable[[], Reading],
    sample: Callable[[], None] = lambda: None,
) -> Driven[Reading]:
    """Run *load*; *sample* is called several times a second while it runs.

    Each work is given the number of its process, and must pass its gate once, when it is prepared.
    Errors: `RequestFailed` with what the first process that failed said; the others are ended.
    """
    process_count = len(load.works)
    board = Board(process_count, load.backlog_count, load.group_count)
    context = multiprocessing.get_context("fork")
    pipes: list[Pipe] = []
    processes = []
    for number, work in enumerate(load.works):
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
        with _ProgressOf(load, console) as progress:
            done: dict[Pipe, tuple[Share, float]] = {}
            while len(done) < process_count:
                readable = wait([p for p in pipes if p not in done], _REFRESH_S)
                done |= {pipe: _receive(pipe) for pipe in pipes if pipe in readable}
                progress.show(board.moved())
                sample()
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


def _receive(pipe: Pipe) -> tuple[Share, float]:
    try:
        said = pipe.recv()
    except EOFError:
        raise RequestFailed("a process of the load generator died") from None
    if isinstance(said, RequestFailed):
        raise said
    return said  # type: ignore[no-any-return]


def _child(work: Work, number: int, board: Board, pipe: Pipe) -> None:
    end_with_parent()
    gate = Gate(pipe)

    async def run() -> tuple[Share, float]:
        share = await work(number, board, gate)
        return share, time.process_time() - gate.cpu_begin_s

    try:
        pipe.send(uvloop.run(run()))
    except (RequestFailed, OSError) as exc:
        pipe.send(RequestFailed(str(exc)))
    except KeyboardInterrupt:
        pass  # the parent was interrupted too, and says so


class _ProgressOf:
    """A bar on a terminal; elsewhere a line now and then. Of messages, or else of time."""

    def __init__(self, load: Load, console: Console) -> None:
        self._load = load
        self._console = console
        self._begin = time.monotonic()
        self._lines = 0
        # Drawn by hand: rich's own refreshing would be a thread, and this process forks.
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(load.title, total=1.0, rate="", count="")

    def __enter__(self) -> _ProgressOf:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, count: int) -> None:
        seconds = time.monotonic() - self._begin
        rate = f"{count / max(seconds, 1e-9):,.0f} msg/s"
        total = self._load.message_count
        part = count / total if total else seconds / max(self._load.seconds, 1e-9)
        if self._console.is_terminal:
            self._bar.update(
                self._task, completed=min(part, 1.0), count=f"{count:,}", rate=rate, refresh=True
            )
        elif int(part * _PLAIN_LINES) > self._lines:
            self._lines = int(part * _PLAIN_LINES)
            of = f" of {total:,}" if total else ""
            self._console.print(f"{self._load.title}: {count:,}{of}, {rate}", highlight=False)
