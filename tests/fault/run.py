"""One run: a server, a load, a fault in the middle of it, and the judgement."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.databases import DatabaseKind, Unavailable
from tests.fault import checker
from tests.fault.checker import RECOVERY_LIMIT, RECOVERY_SHARE, Report, Violation
from tests.fault.faults import Fault, Stage
from tests.fault.history import Mark, Push, Record, Recorder
from tests.fault.load import Load
from tests.fault.system import System

# Whatever happens, a run ends: none of these is reached by a server that is well.
STOP_TIMEOUT = 60.0  # seconds for the last pushes to be answered
DRAIN_TIMEOUT = 60.0  # seconds for the groups to read to the end
READ_TIMEOUT = 60.0  # seconds for the final reading


@dataclass(frozen=True)
class Phases:
    """How long the load runs before the fault, during and after it, in seconds.

    After it at most `RECOVERY_LIMIT` is waited for the throughput to come back; `after` is waited
    in any case.
    """

    before: float
    during: float
    after: float

    @classmethod
    def of(cls, seconds: float) -> Phases:
        return cls(max(3.0, seconds * 0.25), max(2.0, seconds * 0.35), max(3.0, seconds * 0.4))


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
) -> Run:
    """Carry out one run. Its history is kept, with the server's log beside it.

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
                await _go_through(fault, Stage(system, load, chance), phases, recovery_share)
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
    report = checker.check(recorder.records, recovery_share)
    report.violations += violations
    return Run(fault.name, seed, report, path, time.monotonic() - began)


async def _go_through(fault: Fault, stage: Stage, phases: Phases, recovery_share: float) -> None:
    load = stage.load
    await load.configure()
    load.start()
    await asyncio.sleep(phases.before)
    load.recorder.mark("fault_begin", fault.name)
    async with fault.strike(stage):
        await asyncio.sleep(phases.during)
    await stage.system.revive_database()
    ended_at = load.recorder.mark("fault_end")
    await asyncio.sleep(phases.after)
    while not _is_recovered(load.recorder.records, recovery_share):
        if time.monotonic() > ended_at + RECOVERY_LIMIT + 0.5:
            break
        await asyncio.sleep(0.25)
    load.recorder.mark("load_end")
    load.check()
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


def _is_recovered(records: list[Record], recovery_share: float) -> bool:
    view = checker.View(
        pushes=[record for record in records if isinstance(record, Push)],
        marks={"load_end": time.monotonic()},
    )
    for record in records:
        if isinstance(record, Mark):
            view.marks[record.name] = record.time
    return not any(checker.throughput(view, recovery_share))
