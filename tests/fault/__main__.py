"""The long form of the fault tests: `make fault`, or `python -m tests.fault`.

Each fault gets a run of its own. Further rounds follow until enough operations are done, none after
a round that failed. An operation is a request of the load that is in the history with its outcome.
Prints how far it is, a table and a total at the end; exits 1 when a promise was broken, or when
there were fewer operations than asked for. A run that failed leaves its history and its server's
log, and is replayed by its seed:
`make fault ARGS="--faults kill-workers --operations 1 --seed 4711"`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.databases import Unavailable
from tests.fault.checker import RECOVERY_LIMIT, RECOVERY_SHARE
from tests.fault.faults import FAULTS
from tests.fault.run import Phases, Run, run

ROUNDS_MAX = 50
VIOLATIONS_SHOWN = 5  # of a run; the rest is in its history


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    names = given.faults.split(",") if given.faults else list(FAULTS)
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        print(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
        return 2
    seed = random.randrange(2**31) if given.seed is None else given.seed
    histories = given.histories or Path(tempfile.mkdtemp(prefix="queue-server-histories-"))
    histories.mkdir(parents=True, exist_ok=True)
    runs, skipped = _run_rounds(given, names, seed, histories)
    print()
    print(table(runs, skipped))
    print()
    print(total(runs, given.operations))
    return 0 if is_good(runs, given.operations) else 1


def _run_rounds(
    given: argparse.Namespace, names: Sequence[str], seed: int, histories: Path
) -> tuple[list[Run], dict[str, str]]:
    """Every fault once, and again as long as operations are missing and there is time."""
    began_at = time.monotonic()
    phases = Phases.of(given.seconds)
    runs: list[Run] = []
    skipped: dict[str, str] = {}
    for number in range(ROUNDS_MAX):
        for name in names:
            if name in skipped:
                continue
            minutes = (time.monotonic() - began_at) / 60
            if minutes > given.minutes:
                print(f"no time for further runs after {minutes:.0f} min (--minutes)", flush=True)
                return runs, skipped
            if number > 0 and _operations(runs) >= given.operations:
                return runs, skipped

            def tell(text: str, name: str = name) -> None:
                print(f"  {_clock(began_at)} {name}: {text}", flush=True)

            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    done = runner.run(
                        run(
                            FAULTS[name], seed, phases, histories,
                            given.database, given.recovery, tell,
                        )
                    )  # fmt: skip
            except Unavailable as exc:
                skipped[name] = str(exc)
                print(f"{name}: skipped, {exc}", flush=True)
                continue
            runs.append(done)
            seed += 1
            _print_run(done)
            print(f"  {_clock(began_at)} {_operations(runs):,} operations in all", flush=True)
        if not runs or any(done.report.violations for done in runs):
            break
    return runs, skipped


def _clock(began_at: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - began_at), 60)
    return f"{minutes}:{seconds:02}"


def _operations(runs: Sequence[Run]) -> int:
    return sum(done.report.operations for done in runs)


def is_good(runs: Sequence[Run], operations: int) -> bool:
    """Nothing was broken, and as much was tried as was asked for."""
    return _operations(runs) >= operations and not any(done.report.violations for done in runs)


def total(runs: Sequence[Run], operations: int) -> str:
    reports = [done.report for done in runs]
    broken = sum(len(report.violations) for report in reports)
    outage = max((report.longest_outage for report in reports), default=0.0)
    text = (
        f"{_operations(runs):,} operations in all, {len({done.fault for done in runs})} faults,"
        f" {len(runs)} runs, {sum(done.took_s for done in runs) / 60:.0f} min:"
        f" {sum(report.count('lost') for report in reports)} lost,"
        f" {sum(report.count('duplicate') for report in reports)} duplicates,"
        f" {sum(report.count('order') for report in reports)} order violations,"
        f" {broken} violations of any kind, longest outage {outage:.1f} s"
    )
    if broken:
        return f"{text}\nFAILED: promises were broken"
    if not is_good(runs, operations):
        return f"{text}\nFAILED: {operations:,} operations were asked for"
    return f"{text}\nok: every promise was kept"


def _print_run(done: Run) -> None:
    report = done.report
    print(
        f"{done.fault}: {report.operations:,} operations,"
        f" {report.answered_pushes:,} answered pushes,"
        f" longest outage {report.longest_outage:.1f} s, took {done.took_s:.0f} s"
        f" (seed {done.seed}): {'FAILED' if report.violations else 'ok'}",
        flush=True,
    )
    if not report.violations:
        done.history.unlink()
        done.history.with_suffix(".log").unlink()
        return
    shown: dict[str, int] = defaultdict(int)
    for violation in report.violations:
        shown[violation.rule] += 1
        if shown[violation.rule] <= VIOLATIONS_SHOWN:
            print(f"  {violation.rule}: {violation.text}")
    print(
        f"  {dict(shown)}; history {done.history};"
        f" --faults {done.fault} --operations 1 --seed {done.seed}"
    )


def table(runs: Sequence[Run], skipped: dict[str, str]) -> str:
    head = ("fault", "runs", "operations", "answered pushes", "lost", "duplicates",
            "order violations", "other violations", "longest outage, s")  # fmt: skip
    rows = []
    names = list(dict.fromkeys(done.fault for done in runs))
    for name in [*names, "all"] if len(names) > 1 else names:
        reports = [done.report for done in runs if name in (done.fault, "all")]
        rows.append(
            (
                name,
                str(len(reports)),
                str(sum(report.operations for report in reports)),
                str(sum(report.answered_pushes for report in reports)),
                str(sum(report.count("lost") for report in reports)),
                str(sum(report.count("duplicate") for report in reports)),
                str(sum(report.count("order") for report in reports)),
                str(sum(report.count_others("lost", "duplicate", "order") for report in reports)),
                f"{max(report.longest_outage for report in reports):.1f}",
            )
        )
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, tuple("-" * width for width in widths), *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    lines += [f"{name}: skipped, {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fault",
        description="Break things under load, and check that every promise was kept.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults:\n" + "\n".join(f"  {f.name:20} {f.text}" for f in FAULTS.values()),
    )
    parser.add_argument("--faults", default="", help="separated by commas (all)")
    parser.add_argument("--seed", type=int, help="of the first run; each next one's is one more")
    parser.add_argument("--seconds", type=float, default=60, help="of load in a run (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=120,
        help="begin no further run after that; then operations may be missing (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--operations", type=int, default=1_000_000,
        help="do rounds until so many requests were made in all (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--database", choices=("embedded", "pg15", "pgbouncer"), default="embedded",
        help="the server's own PostgreSQL, PostgreSQL 15, or PgBouncer in transaction mode"
        " (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--recovery", type=float, default=RECOVERY_SHARE,
        help="share of the throughput before the fault that has to come back within"
        f" {RECOVERY_LIMIT:.0f} s; less on a machine that others use (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--histories", type=Path, help="folder for histories of failed runs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
