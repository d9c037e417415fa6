"""Each module here is a scenario: what it is, what it should reach and how to run it.

A scenario is one workload with few numbers; its docstring says why it exists and gives the reason
for each number. `run(context)` is one run: it starts the servers it needs, puts a load on them, and
checks that what was pushed came once, in order, after the clock has stopped. The sizes are

- `small`: seconds; the tests run it, and its figures mean nothing;
- `quick`: a look, about a tenth;
- `full`: the size the targets are for;
- `long`: what takes too much time or disk for every day; as `full` where a scenario has none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from bench import loads, measure
from bench.check import Lanes, Shares, Verdict, judge
from bench.client import RequestFailed, fetch, parse_url
from bench.driver import Driver, Subscription
from bench.load import Load
from bench.loads import Pushes
from bench.measure import Measured, Metrics
from bench.queen import Queen
from bench.report import Check, Table
from bench.server import Server

Size = TypeVar("Size")

SIZES = ("small", "quick", "full", "long")

_PARKING_LIMIT_S = 40.0  # below the minute that a parked pop waits
_LOOK_S = 0.2  # between two looks whether all are parked

_DRAIN_CONSUMERS = 4
_DRAIN_BATCH = 10_000
_DRAIN_PARTITIONS = 64  # as many as one pop may claim


@dataclass
class Run:
    """What one run found."""

    works: list[Measured] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)  # beside those of the works
    checks: list[Check] = field(default_factory=list)
    # For a plot: title -> (what is on the x axis, points by the name of their line).
    scaling: dict[str, tuple[str, dict[str, list[tuple[float, float]]]]] = field(
        default_factory=dict
    )

    def add(self, *works: Measured) -> None:
        self.works += works

    def check(self, name: str, ok: bool, text: str) -> None:
        self.checks.append(Check(name, ok, text))

    def all_figures(self) -> dict[str, float]:
        """Everything a target may be set on."""
        found: dict[str, float] = {}
        for work in self.works:
            found[f"{work.name}: msg/s"] = work.rate
            found[f"{work.name}: core-s/M"] = work.server_cost
        if self.works:
            peak = max(work.worker_peak_bytes for work in self.works)
            found["largest worker: MB"] = peak / 1e6
        return found | self.figures


@dataclass(frozen=True)
class Target:
    """What the median of a figure should be: at least or at most."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most


# What holds for every scenario.
COMMON_TARGETS = (Target("largest worker: MB", at_most=150),)


@dataclass(frozen=True)
class Context:
    """What every run is given."""

    console: Console
    size: str
    number: int  # of the run, from 0; -1 for a warm-up
    workers: int
    data_parent: Path | None  # where servers put their data; None: where temporary files go
    open_server: Callable[[int], Server]
    close_server: Callable[[Server], None]

    @contextmanager
    def server(self, workers: int | None = None) -> Iterator[Server]:
        """A server with nothing in it, warmed up."""
        running = self.open_server(workers or self.workers)
        try:
            self._warm_up(running)
            yield running
        finally:
            self.close_server(running)

    def pick(self, sizes: Mapping[str, Size]) -> Size:
        """What a scenario has for the size that was asked for, or for the next smaller one."""
        at = SIZES.index(self.size)
        return next(sizes[name] for name in reversed(SIZES[: at + 1]) if name in sizes)

    def queue(self, server: Server, name: str) -> str:
        """A queue's name that was not used yet on this server."""
        server.names += 1
        return f"bench-{server.names}.{name}"

    def driver(self, server: Server) -> Driver:
        return Queen(server.url)

    def measure(self, server: Server, name: str, load: Load) -> Measured:
        return measure.measure(
            name, load, self.console, server.meter, lambda: measure.metrics_of(server.url)
        )

    def push(self, server: Server, name: str, pushes: Pushes) -> Measured:
        """Push alone, in a closed loop by one process."""
        count = 0 if pushes.seconds else sum(map(len, pushes.lanes.values()))
        work = loads.producing(self.driver(server), pushes)
        return self.measure(server, name, Load(name, [work], count, pushes.seconds or 0.0))

    def consume(
        self,
        server: Server,
        name: str,
        subscriptions: Sequence[Subscription],
        count: int,
        group_count: int = 1,
    ) -> Measured:
        """Consume *count* messages that are there, in a closed loop by one process."""
        work = loads.consuming(self.driver(server), subscriptions)
        load = Load(name, [work], count * group_count, backlog_count=count, group_count=group_count)
        return self.measure(server, name, load)

    def all_popped(self, server: Server, count: int) -> Callable[[], Awaitable[None]]:
        """What waits until *server* has been asked for *count* pops more than by now."""
        goal = measure.metrics_of(server.url).counters["pop_requests"] + count

        async def wait() -> None:
            deadline = time.monotonic() + _PARKING_LIMIT_S
            while True:
                body = await fetch(parse_url(server.url), "GET", "/metrics", 200)
                asked = msgspec.json.decode(body, type=Metrics).counters["pop_requests"]
                if asked >= goal:
                    return
                if time.monotonic() > deadline:
                    missing = f"{goal - asked} of {count} pops did not arrive"
                    raise RequestFailed(f"{missing} within {_PARKING_LIMIT_S:.0f} s")
                await asyncio.sleep(_LOOK_S)

        return wait

    def drain(self, server: Server, run: Run, name: str, queue: str, lanes: Lanes) -> Measured:
        """Consume what *lanes* says is in *queue* and check it; no part of what is measured."""
        wanted = Subscription(queue, _DRAIN_BATCH, partitions=_DRAIN_PARTITIONS, wait_ms=1000)
        found = self.consume(
            server, f"check of {name}", [wanted] * _DRAIN_CONSUMERS, count_of(lanes)
        )
        self.verify(run, name, lanes, found)
        return found

    def verify(
        self,
        run: Run,
        name: str,
        lanes: Lanes,
        *consumed: Measured,
        groups: Sequence[str] = ("",),
        handover: bool = True,
    ) -> Verdict:
        """Check that pushed = popped = acknowledged, each message once and in order."""
        deliveries = [delivery for one in consumed for delivery in one.deliveries]
        verdict = judge(lanes, deliveries, groups, handover)
        pushed = count_of(lanes) * len(groups)
        popped = sum(one.popped_count for one in consumed)
        acknowledged = sum(one.acknowledged_count for one in consumed)
        run.check(
            f"{name}, run {self.number + 1}",
            verdict.ok and pushed == popped == acknowledged,
            f"pushed {pushed:,}, popped {popped:,}, acknowledged {acknowledged:,}; "
            + "; ".join(verdict.lines),
        )
        return verdict

    def _warm_up(self, running: Server) -> None:
        """Some messages through push, pop and ack: for the files and caches of the database, the
        server's imports and the processor's clock."""
        if running.is_warm:
            return
        running.is_warm = True
        count = 1_000 if self.size == "small" else 100_000
        queue = self.queue(running, "warm-up")
        run = Run()
        lanes = Shares(count, 10).lanes
        self.push(running, "warm-up", Pushes(queue, lanes, count // 100, 4))
        self.drain(running, run, "warm-up", queue, lanes)


def count_of(lanes: Lanes) -> int:
    return sum(map(len, lanes.values()))


def each_partition(
    queue: str, batch: int, names: Sequence[str], auto_ack: bool = False
) -> list[Subscription]:
    """A consumer for each partition, which it names."""
    return [Subscription(queue, batch, name, auto_ack=auto_ack) for name in names]


@dataclass(frozen=True)
class Scenario:
    """One workload, as `make bench SCENARIO=name` runs it."""

    number: int
    name: str
    title: str
    run: Callable[[Context], Run]
    sizes: Mapping[str, Any]  # dataclasses
    targets: Sequence[Target] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    # In place of the usual table of what was measured.
    table: Callable[[Sequence[Run]], Table] | None = None
