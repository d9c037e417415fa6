"""One run: a server, a load, a fault in the middle of it, and the judgement."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.databases import DatabaseKind, Unavailable
from tests.fault import checker
from tests.fault.checker import RECOVERY_LIMIT, RECOVERY_SHARE, Recovery, Report, Violation
from tests.fault.faults import Fault, Stage
from tests.fault.history import Recorder, read
from tests.fault.load import Load
from tests.fault.system import System

# Whatever happens, a run ends: none of these is reached by a server that is well.
STOP_TIMEOUT = 60.0  # seconds for the last pushes to be answered
DRAIN_TIMEOUT = 60.0  # seconds for the groups to read to the end
READ_TIMEOUT = 60.0  # seconds for the final reading
STRIKE_TIMEOUT = 120.0  # seconds for a fault beyond its own time: some have something to heal

STRIKE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Phases:
    """How long the load runs before the first fault, during each and after each, in seconds.

    After one at most `RECOVERY_LIMIT` is waited for the throughput to come back; `after` is waited
    in any case.
    """

    before: float
    during: float
    after: float
    strikes: int = 1

    @classmethod
    def of(cls, seconds: float) -> Phases:
        """For a load of *seconds* in all: as many strikes as leave time to be well again."""
        strikes = max(1, int(seconds / STRIKE_EVERY))
        before = min(max(3.0, seconds * 0.2), 12.0)
        left = (seconds - before) / strikes
        return cls(before, max(2.0, left * 0.3), max(3.0, left * 0.7), strikes)

    def for_one_strike(self) -> Phases:
        """As long, for a fault that cannot be repeated."""
        further = (self.strikes - 1) * (self.during + self.after)
        return Phases(self.before, self.during, self.after + further)

    @property
    def seconds(self) -> float:
        return self.before + self.strikes * (self.during + self.after)


@dataclass(frozen=True)
class Run:
    fault: str
    seed: int
    report: Report
    history: Path
    took_s: float


async def run(
    fault: Fault,
    seed: int,
    phases: Phases,
    histories: Path,
    kind: DatabaseKind = "embedded",
    recovery_share: float = RECOVERY_SHARE,
    tell: Callable[[str], None] = lambda _: None,
) -> Run:
    """Carry out one run, and *tell* how far it has got.

    Its history is kept, with the server's log beside it.

    Errors: `system.Unavailable` when this machine cannot do it.
    """
    began = time.monotonic()
    chance = random.Random(seed)
    path = histories / f"{fault.name}-{seed}.jsonl"
    violations: list[Violation] = []
    with tempfile.TemporaryDirectory(prefix="queue-server-fault-env-") as folder:
        Path(folder).chmod(0o755)
        system = System(kind, fault.topology, chance, fault.env(Path(folder)))
        recorder = Recorder(path)
        try:
            await system.start()
            load = Load(lambda: system.url, recorder, seed)
            try:
                await _go_through(fault, Stage(system, load, chance), phases, recovery_share, tell)
            finally:
                await load.close()
        except Unavailable:
            path.unlink()
            raise
        except Exception as exc:  # whatever it is, the run failed, and the next one has its turn
            text = "".join(traceback.format_exception(exc))
            violations.append(Violation("stuck", f"{exc}"[:1000] + "\n" + text[-2000:]))
        finally:
            recorder.close()
            complaint = await system.stop()
            if hasattr(system, "cluster"):
                path.with_suffix(".log").write_text(system.output)
        if complaint:
            violations.append(Violation("drain", complaint))
    report = _judge(path, recovery_share)
    report.violations += violations
    return Run(fault.name, seed, report, path, time.monotonic() - began)


async def _go_through(
    fault: Fault,
    stage: Stage,
    phases: Phases,
    recovery_share: float,
    tell: Callable[[str], None],
) -> None:
    load, recorder = stage.load, stage.load.recorder
    if fault.once:
        phases = phases.for_one_strike()
    await load.configure()
    began_at = load.start()
    await asyncio.sleep(phases.before)
    first_at = time.monotonic()
    for number in range(phases.strikes):
        tell(f"strike {number + 1} of {phases.strikes}, {recorder.operations:,} operations so far")
        async with _named_timeout(STRIKE_TIMEOUT + phases.during, "the fault does not end"):
            recorder.mark("fault_begin", fault.name)
            async with fault.strike(stage):
                await asyncio.sleep(phases.during)
            await stage.system.revive_database()
        ended_at = recorder.mark("fault_end")
        await asyncio.sleep(phases.after)
        while time.monotonic() < ended_at + RECOVERY_LIMIT + 0.5:
            now = time.monotonic()
            recovery = Recovery.of(recorder.push_ends, began_at, first_at, ended_at, now)
            if recovery.reaches(recovery_share):
                break
            await asyncio.sleep(0.25)
        load.check()
    recorder.mark("load_end")
    tell(f"reading to the end, {recorder.operations:,} operations so far")
    async with _named_timeout(STOP_TIMEOUT, "the last pushes are not answered"):
        await load.stop_producing()
    async with _named_timeout(DRAIN_TIMEOUT, "the groups do not come to their end"):
        await load.drain()
    async with _named_timeout(READ_TIMEOUT, "the log cannot be read"):
        await load.read_out()


@contextlib.asynccontextmanager
async def _named_timeout(seconds: float, complaint: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise TimeoutError(f"{complaint} within {seconds:.0f} s") from exc


def _judge(path: Path, recovery_share: float) -> Report:
    # All that is read is kept until the verdict: looking for garbage among it is for nothing.
    gc.disable()
    try:
        return checker.check(read(path), recovery_share)
    finally:
        gc.enable()
