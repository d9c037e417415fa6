"""Draws a result: `python -m bench.plots RESULT.json ...` writes RESULT.png beside each.

Panels: throughput with every run as a dot, core-seconds by whom, latency percentiles, and scaling,
as far as the scenario has them. The dots and lines come from the JSON file alone, so a result can
be drawn again on another machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_Result = dict[str, Any]
_Panel = Callable[[Axes], None]


def draw(path: Path) -> Path:
    """Draw the result in *path*; the file that was written."""
    result: _Result = json.loads(path.read_text("utf-8"))
    panels = _panels(result)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 3.4 * len(panels)), layout="constrained", squeeze=False
    )
    for panel, one in zip(panels, axes[:, 0], strict=True):
        panel(one)
    machine = result["machine"]
    figure.suptitle(
        f"{result['title']}\n{machine['server']}; {machine['cpu']}; size {result['size']}",
        fontsize=10,
    )
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=100)
    plt.close(figure)
    return target


def _panels(result: _Result) -> list[_Panel]:
    runs = result["runs"]
    works = {name: [run["works"][name] for run in runs] for name in runs[0]["works"]}
    panels: list[_Panel] = []
    if works:
        panels += [lambda axes: _throughput(axes, works), lambda axes: _costs(axes, works)]
        panels.append(lambda axes: _latencies(axes, works))
    for title in runs[0]["scaling"]:
        panels.append(lambda axes, title=title: _scaling(axes, title, runs))  # type: ignore[misc]
    return panels


def _throughput(axes: Axes, works: dict[str, list[_Result]]) -> None:
    names = list(works)
    rates = [[run["messages_per_second"] for run in works[name]] for name in names]
    axes.barh(names, [median(each) for each in rates], color="tab:blue", alpha=0.6)
    for name, each in zip(names, rates, strict=True):
        axes.plot(each, [name] * len(each), "k.", markersize=4)
    axes.invert_yaxis()
    axes.set_xlabel("messages a second: median, and each run")


def _costs(axes: Axes, works: dict[str, list[_Result]]) -> None:
    left = [0.0] * len(works)
    for who, label in (
        ("workers", "workers"),
        ("postgres", "PostgreSQL"),
        ("load_generator", "load generator"),
    ):
        values = [
            median(run["core_seconds_per_million"][who] for run in runs) for runs in works.values()
        ]
        hatch = "//" if who == "load_generator" else None
        axes.barh(list(works), values, left=left, label=label, alpha=0.7, hatch=hatch)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("core-seconds per million messages, medians")
    axes.legend(fontsize=8)


def _latencies(axes: Axes, works: dict[str, list[_Result]]) -> None:
    for name, runs in works.items():
        for kind in runs[0]["latency_ms"]:
            curves = [run["latency_ms"][kind] for run in runs if kind in run["latency_ms"]]
            parts = [part for part in curves[0] if part not in ("count", "100")]
            # A percentile needs samples behind it: with 100 of them the 99th is the last.
            count = min(curve["count"] for curve in curves)
            parts = [part for part in parts if count * (1 - float(part) / 100) >= 1]
            axes.plot(
                [1 / (1 - float(part) / 100) for part in parts],
                [median(curve[part] for curve in curves) for part in parts],
                marker=".",
                label=f"{name}: {kind}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = {"50": 2, "90": 10, "99": 100, "99.9": 1000, "99.99": 10_000}
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=6, ncols=2)


def _scaling(axes: Axes, title: str, runs: list[_Result]) -> None:
    x_label, lines = runs[0]["scaling"][title]
    for name in lines:
        points = [run["scaling"][title][1][name] for run in runs]
        xs = [x for x, _ in points[0]]
        axes.plot(xs, [median(p[at][1] for p in points) for at in range(len(xs))], "o-", label=name)
        axes.set_xticks(xs, [f"{x:,g}" for x in xs])
    if lines and max(xs) >= 100 * max(1, min(xs)):
        axes.set_xscale("log")
    axes.set_ylim(0, axes.dataLim.y1 * 1.1)
    axes.set_xlabel(x_label)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        draw(Path(argument))
