"""Run scenarios against servers of their own: `make bench`, or `python -m bench`.

Prints tables, and writes them with all that they depend on to a folder, as Markdown, JSON and
plots. Exits 1 when a check fails; a missed target is printed, and counts as a failure only with
`--strict`, for it may be the machine's fault.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import machine, outcome, server
from bench.client import RequestFailed
from bench.outcome import Outcome
from bench.producer import positive
from bench.scenarios import SIZES, Context, Run, Scenario
from bench.scenarios.table import SCENARIOS
from bench.server import Server
from queue_server.storage.connections import discard_libpq_variables

_PLAIN_COLUMNS = 160
RESULTS = Path(__file__).resolve().parent / "results"


class _Servers:
    """Starts servers and ends them. At the small size scenarios share one, to be quick."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._shared = given.size == "small"
        self._running: dict[int, tuple[ExitStack, Server]] = {}

    def open(self, workers: int) -> Server:
        if workers not in self._running:
            stack = ExitStack()
            running = server.running(workers, self._given.data_parent, self._given.database_url)
            self._running[workers] = (stack, stack.enter_context(running))
        return self._running[workers][1]

    def close(self, running: Server) -> None:
        if not self._shared:
            self._end(running.workers)

    def close_all(self) -> None:
        for workers in list(self._running):
            self._end(workers)

    def _end(self, workers: int) -> None:
        stack, _ = self._running.pop(workers)
        # It sees the failure that is under way, and adds the end of the server's log to it.
        stack.__exit__(*sys.exc_info())


def main(arguments: list[str] | None = None) -> int:
    given = _parse(arguments)
    # Its own connections to the databases it starts depend on none of them.
    discard_libpq_variables()
    # The tables are wide; what is no terminal has no width of its own.
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_COLUMNS)
    # Parked consumers are connections, and so many may be more than a shell allows.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = list(SCENARIOS) if given.scenario == ["all"] else given.scenario
    begun = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{machine.commit()}"
    facts = machine.describe(given.data_parent, given.database_url)
    facts |= {
        "workers": f"{given.workers}, all other settings of the server are defaults",
        "size": given.size,
        "runs": str(given.runs),
    }
    servers = _Servers(given)
    found: list[Outcome] = []
    failed = False
    try:
        for name in names:
            try:
                one = _run(SCENARIOS[name], given, console, servers)
            except (RequestFailed, server.ServerFailed) as exc:
                text = f"{name} FAILED: {exc}"
                console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
                failed = True
                continue
            found.append(one)
            _show(one, console)
            files = outcome.write(given.results, f"{begun}-{name}", facts, one, given.plots)
            for path in files:
                console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    finally:
        servers.close_all()
    table = outcome.summary(found)
    if len(found) > 1 and table.rows:
        table.print(console)
        (given.results / f"{begun}-all.md").write_text(table.markdown(), "utf-8")
    failed = failed or not all(one.ok for one in found)
    missed = any(not judged.met for one in found for judged in one.targets)
    return 1 if failed or (given.strict and missed) else 0


def _run(
    scenario: Scenario, given: argparse.Namespace, console: Console, servers: _Servers
) -> Outcome:
    console.rule(f"{scenario.number} {scenario.title}", align="left")
    runs: list[Run] = []
    settings: dict[str, Any] = {}
    for number in range(given.runs):
        console.print(f"run {number + 1} of {given.runs}", highlight=False)
        context = Context(
            console, given.size, number, given.workers, given.data_parent,
            servers.open, servers.close,
        )  # fmt: skip
        if not settings:
            settings = {**scenario.settings, **asdict(context.pick(scenario.sizes))}
        runs.append(scenario.run(context))
    return Outcome(scenario, given.size, settings, runs)


def _show(found: Outcome, console: Console) -> None:
    for table in found.tables():
        table.print(console)
    for line in found.check_lines():
        console.print(line, highlight=False, soft_wrap=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the server.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios:\n"
        + "\n".join(f"  {s.number:>2} {name:<14} {s.title}" for name, s in SCENARIOS.items()),
    )
    parser.add_argument(
        "--scenario", nargs="+", choices=[*SCENARIOS, "all"], default=["all"], metavar="NAME",
        help="one or more of those below, or all (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--size", choices=SIZES, default="full",
        help="targets are for 'full'; 'long' adds what takes much time or disk (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--runs", type=positive, default=5, help="of each (%(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="of the server (%(default)s)")
    parser.add_argument("--database-url", help="measure with this PostgreSQL, not an embedded one")
    parser.add_argument(
        "--data-parent", type=Path, help="where the embedded one's data go (temporary files)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS / "local",
        help="where to write; this default is ignored by git (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", dest="results", action="store_const", const=RESULTS,
        help="write to bench/results, for results to be committed",
    )  # fmt: skip
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="no PNG")
    parser.add_argument("--strict", action="store_true", help="a missed target is a failure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
