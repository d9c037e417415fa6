"""Tables that go to the terminal and into Markdown, and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table as RichTable

Row = list[str]

_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass
class Table:
    """Rows under named columns; the first column is text, the others are numbers."""

    title: str
    columns: list[str]
    rows: list[Row] = field(default_factory=list)

    def print(self, console: Console) -> None:
        table = RichTable(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        lines = [
            f"**{self.title}**",
            "",
            "| " + " | ".join(self.columns) + " |",
            "|" + "|".join(["---"] + ["---:"] * (len(self.columns) - 1)) + "|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Check:
    """Something that must hold (or, when it is a target, should): what it is, and the finding."""

    name: str
    ok: bool
    text: str
    is_target: bool = False

    @property
    def line(self) -> str:
        state = "ok" if self.ok else ("MISSED" if self.is_target else "FAILED")
        return f"{self.name}: {state} ({self.text})"


@dataclass
class ScenarioReport:
    """What a scenario found; `data` is its machine-readable form."""

    scenario: str
    settings: dict[str, Any]
    tables: list[Table]
    checks: list[Check]
    data: dict[str, Any]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max by the nearest rank; zeros when there is nothing."""
    ordered = sorted(values)
    return {
        name: ordered[max(0, math.ceil(quantile * len(ordered)) - 1)] if ordered else 0.0
        for name, quantile in _QUANTILES.items()
    }


def latency_row(name: str, values_ms: Sequence[float]) -> Row:
    """A row of `LATENCY_COLUMNS`."""
    return [name, f"{len(values_ms):,}", *(f"{q:,.1f}" for q in quantiles(values_ms).values())]


LATENCY_COLUMNS = ["latency, ms", "count", *_QUANTILES]


def per_million(amount: float, message_count: int) -> float:
    return amount * 1e6 / message_count if message_count else 0.0


def write(folder: Path, stem: str, machine: dict[str, str], found: ScenarioReport) -> list[Path]:
    """Write a result as JSON and as Markdown; the files' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "scenario": found.scenario,
        "machine": machine,
        "settings": found.settings,
        "checks": [asdict(check) for check in found.checks],
        **found.data,
    }
    as_json = folder / f"{stem}.json"
    as_json.write_bytes(msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n")
    facts = {**machine, **found.settings}
    parts = [f"# {found.scenario}, {stem}\n"]
    parts += [table.markdown() for table in found.tables]
    parts += ["\n".join(f"- {check.line}" for check in found.checks) + "\n"]
    parts += ["\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"]
    as_markdown = folder / f"{stem}.md"
    as_markdown.write_text("\n".join(parts), "utf-8")
    return [as_json, as_markdown]
