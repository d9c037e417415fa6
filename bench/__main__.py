"""Run a scenario against a server of its own: `make bench`, or `python -m bench`.

Prints tables, and writes them with all that they depend on to a folder, as Markdown and JSON. Exits
1 when a check fails; a missed target is printed, and counts as a failure only with `--strict`, for
it may be the machine's fault.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from bench import machine, report, server
from bench.client import RequestFailed
from bench.producer import positive
from bench.scenarios import Context, Scenario, root_cause

SCENARIOS: dict[str, Scenario] = {"root-cause": root_cause.run}

# Measured on somebody's machine and ignored by git; results that are kept lie one folder above.
_RESULTS = Path(__file__).resolve().parent / "results" / "local"


def main(arguments: list[str] | None = None) -> int:
    given = _parse(arguments)
    console = Console()
    try:
        with server.running(given.workers, given.data_parent, given.database_url) as running:
            console.print(f"server with {given.workers} workers at {running.url}", highlight=False)
            facts = machine.describe(running.data_dir, given.database_url)
            facts["workers"] = str(given.workers)
            found = SCENARIOS[given.scenario](
                Context(running.url, running.meter, console, given.messages, given.runs)
            )
    except (RequestFailed, server.ServerFailed) as exc:
        console.print(f"FAILED: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for table in found.tables:
        table.print(console)
    for check in found.checks:
        console.print(check.line, highlight=False, soft_wrap=True)
    stem = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{machine.commit()}-{given.scenario}"
    for path in report.write(given.results, stem, facts, found):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    failed = [c for c in found.checks if not c.ok and (given.strict or not c.is_target)]
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the server.")
    parser.add_argument(
        "--scenario", choices=sorted(SCENARIOS), default="root-cause", help="%(default)s"
    )
    parser.add_argument("--messages", type=positive, default=1_000_000, help="%(default)s a push")
    parser.add_argument("--runs", type=positive, default=3, help="%(default)s")
    parser.add_argument("--workers", type=positive, default=2, help="of the server (%(default)s)")
    parser.add_argument("--database-url", help="measure with this PostgreSQL, not an embedded one")
    parser.add_argument(
        "--data-parent", type=Path, help="where the embedded one's data go (temporary files)"
    )
    parser.add_argument("--results", type=Path, default=_RESULTS, help="%(default)s")
    parser.add_argument("--strict", action="store_true", help="a missed target is a failure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
