"""Each module here is a scenario: `run(context)` drives the server and says what came of it.

A scenario is one canonical workload with few numbers; its docstring gives the reason for each. It
must work with a thousand messages too, because the tests run it small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from bench.core_seconds import Meter
from bench.report import ScenarioReport


@dataclass(frozen=True)
class Context:
    """What every scenario is given."""

    url: str
    meter: Meter
    console: Console
    message_count: int
    run_count: int


Scenario = Callable[[Context], ScenarioReport]
