"""What the runs of a scenario come to: medians, targets, tables and files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bench import report
from bench.measure import PHASES, Measured
from bench.report import Table
from bench.scenarios import COMMON_TARGETS, Run, Scenario, Target
from bench.server import ROOT


@dataclass(frozen=True)
class Judged:
    """A target and the median that was found."""

    target: Target
    value: float

    @property
    def met(self) -> bool:
        return self.target.met(self.value)

    @property
    def bound(self) -> str:
        if self.target.at_least is not None:
            return f"at least {report.number(self.target.at_least)}"
        return f"at most {report.number(self.target.at_most or 0.0)}"

    @property
    def row(self) -> report.Row:
        return [
            self.target.figure,
            self.bound,
            report.number(self.value),
            "met" if self.met else "MISSED",
        ]


TARGET_COLUMNS = ["target", "should be", "median", ""]


@dataclass(frozen=True)
class Outcome:
    """The runs of a scenario, all with the same works and figures."""

    scenario: Scenario
    size: str
    settings: dict[str, Any]
    runs: list[Run]

    @property
    def ok(self) -> bool:
        return all(check.ok for run in self.runs for check in run.checks)

    @property
    def medians(self) -> dict[str, float]:
        found = [run.all_figures() for run in self.runs]
        return {name: median(one[name] for one in found) for name in found[0]}

    @property
    def targets(self) -> list[Judged]:
        """Nothing at the small size, at which no figure means anything."""
        if self.size == "small":
            return []
        return [
            Judged(target, self.medians[target.figure])
            for target in (*self.scenario.targets, *COMMON_TARGETS)
            if target.figure in self.medians
        ]

    def _works(self) -> dict[str, list[Measured]]:
        """Every run's work of a name; what only checks is left out."""
        return {
            work.name: [run.works[at] for run in self.runs]
            for at, work in enumerate(self.runs[0].works)
        }

    def tables(self) -> list[Table]:
        own = self.scenario.table
        works = self._work_table() if own is None else own(self.runs)
        tables = [works, self._rate_table(), self._latency_table()]
        tables += [self._figure_table(), self._phase_table(), self._target_table()]
        return [table for table in tables if table.rows]

    def _work_table(self) -> Table:
        table = Table(
            "medians; core-seconds per million messages by whom; peak of the largest worker",
            ["work", "messages", "msg/s", "workers", "PostgreSQL", "both", "load generator",
             "others", "busiest worker", "peak MB"],
        )  # fmt: skip
        for name, works in self._works().items():
            costs = [work.costs() for work in works]
            shares = [work.server.busiest_worker_share() if work.server else 0 for work in works]
            table.rows.append(
                [name, f"{median(work.message_count for work in works):,.0f}",
                 f"{median(work.rate for work in works):,.0f}",
                 *(f"{median(cost[who] for cost in costs):.2f}" for who in costs[0]),
                 f"{median(shares):.0%}",
                 f"{max(work.worker_peak_bytes for work in works) / 1e6:.0f}"]
            )  # fmt: skip
        return table

    def _rate_table(self) -> Table:
        numbers = [f"run {number}" for number, _ in enumerate(self.runs, 1)]
        table = Table("msg/s, run by run", ["work", *numbers])
        for name, works in self._works().items():
            table.rows.append([name, *(f"{work.rate:,.0f}" for work in works)])
        return table

    def _latency_table(self) -> Table:
        table = Table("latency over all runs", report.LATENCY_COLUMNS)
        for name, works in self._works().items():
            for kind in works[0].latencies_ms():
                values = [ms for work in works for ms in work.latencies_ms().get(kind, [])]
                table.rows.append(report.latency_row(f"{name}: {kind}", values))
        return table

    def _figure_table(self) -> Table:
        numbers = [f"run {number}" for number, _ in enumerate(self.runs, 1)]
        table = Table("other figures", ["figure", "median", *numbers])
        for name in self.runs[0].figures:
            values = [run.figures[name] for run in self.runs]
            table.rows.append([name, report.number(median(values)), *map(report.number, values)])
        return table

    def _phase_table(self) -> Table:
        table = Table("the server's pop phases, ms a pop (median of the runs)", ["work", *PHASES])
        for name, works in self._works().items():
            if all(work.pop_count and work.phases_ms for work in works):
                table.rows.append(
                    [name]
                    + [
                        f"{median(w.phases_ms[phase] / w.pop_count for w in works):.2f}"
                        for phase in PHASES
                    ]
                )
        return table

    def _target_table(self) -> Table:
        table = Table(f"targets, at the size {self.size!r}", TARGET_COLUMNS)
        table.rows = [judged.row for judged in self.targets]
        return table

    def data(self) -> dict[str, Any]:
        """The machine-readable form, which the plots are drawn from."""
        return {
            "scenario": self.scenario.name,
            "title": self.scenario.title,
            "size": self.size,
            "settings": self.settings,
            "median": {name: round(value, 4) for name, value in self.medians.items()},
            "targets": [
                {**asdict(judged.target), "median": judged.value, "met": judged.met}
                for judged in self.targets
            ],
            "runs": [
                {
                    "works": {work.name: work.data() for work in run.works},
                    "figures": run.figures,
                    "scaling": run.scaling,
                    "checks": [asdict(check) for check in run.checks],
                }
                for run in self.runs
            ],
        }

    def check_lines(self) -> list[str]:
        return [check.line for run in self.runs for check in run.checks]


def write(
    folder: Path, stem: str, machine: dict[str, str], outcome: Outcome, plots: bool
) -> list[Path]:
    """Write a result as JSON and as Markdown, and plots of it; the files' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json = folder / f"{stem}.json"
    body = {"machine": machine, **outcome.data()}
    as_json.write_bytes(msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n")
    as_markdown = folder / f"{stem}.md"
    facts = {**machine, **outcome.settings}
    parts = [f"# {outcome.scenario.title}\n"]
    parts += [table.markdown() for table in outcome.tables()]
    parts += ["\n".join(f"- {line}" for line in outcome.check_lines()) + "\n"]
    parts += ["\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"]
    written = [as_json, as_markdown]
    if plots:
        # In a process of its own: numpy starts threads, and this process forks.
        subprocess.run([sys.executable, "-m", "bench.plots", str(as_json)], cwd=ROOT, check=True)
        written.append(as_json.with_suffix(".png"))
        parts.insert(1, f"![plots]({as_json.with_suffix('.png').name})\n")
    as_markdown.write_text("\n".join(parts), "utf-8")
    return written


def summary(outcomes: list[Outcome]) -> Table:
    """The targets of several scenarios in one table."""
    table = Table("all targets", ["scenario", *TARGET_COLUMNS])
    for outcome in outcomes:
        table.rows += [
            [f"{outcome.scenario.number} {outcome.scenario.name}", *judged.row]
            for judged in outcome.targets
        ]
    return table
