"""Tables that go to the terminal and into Markdown, and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table as RichTable

Row = list[str]

_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
# Of a plotted curve: every half decade towards 1.
_CURVE = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0)


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
    """Something that must hold: what it is, and the finding."""

    name: str
    ok: bool
    text: str

    @property
    def line(self) -> str:
        return f"{self.name}: {'ok' if self.ok else 'FAILED'} ({self.text})"


def quantile(ordered: Sequence[float], part: float) -> float:
    """By the nearest rank; 0 when there is nothing."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {name: quantile(ordered, part) for name, part in _QUANTILES.items()}


def curve(values: Sequence[float]) -> dict[str, float]:
    """More quantiles, by their percentage, for a plot; and the count."""
    ordered = sorted(values)
    return {"count": len(ordered)} | {
        f"{part * 100:g}": round(quantile(ordered, part), 4) for part in _CURVE
    }


def latency_row(name: str, values_ms: Sequence[float]) -> Row:
    """A row of `LATENCY_COLUMNS`."""
    return [name, f"{len(values_ms):,}", *(f"{q:,.1f}" for q in quantiles(values_ms).values())]


LATENCY_COLUMNS = ["latency, ms", "count", *_QUANTILES]


def per_million(amount: float, message_count: int) -> float:
    return amount * 1e6 / message_count if message_count else 0.0


def number(value: float) -> str:
    """A figure with as many digits as it deserves."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
