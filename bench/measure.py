"""Puts a load on a server and says what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.console import Console

from bench import report
from bench.check import Delivery
from bench.client import fetch, parse_url
from bench.core_seconds import CoreSeconds, Meter
from bench.load import Load, Share, drive
from bench.memory import MemoryMeter

PHASES = ("wait", "lease", "query", "decode", "decrypt", "send")


class Metrics(msgspec.Struct):
    """What of GET /metrics is of interest here: totals since the server started."""

    popPhasesMs: dict[str, float] = {}  # noqa: N815
    counters: dict[str, int] = {}


def metrics_of(url: str) -> Metrics:
    body = asyncio.run(fetch(parse_url(url), "GET", "/metrics", 200))
    return msgspec.json.decode(body, type=Metrics)


@dataclass(frozen=True)
class Measured:
    """What all processes of a load did together, and what it cost."""

    name: str
    shares: list[Share]
    load_core_seconds: float
    server: CoreSeconds | None  # None when it runs elsewhere
    phases_ms: dict[str, float]
    counters: dict[str, int]
    worker_peak_bytes: int = 0
    workers_pss_bytes: int = 0
    # Beside those of single requests, such as from push to delivery; by name.
    more_latencies_ms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def pushed_count(self) -> int:
        return sum(len(ids) for share in self.shares for ids in share.pushed.values())

    @property
    def popped_count(self) -> int:
        return sum(c.message_count for share in self.shares for c in share.consumers)

    @property
    def acknowledged_count(self) -> int:
        return sum(c.acknowledged_count for share in self.shares for c in share.consumers)

    @property
    def message_count(self) -> int:
        """Messages whose way is complete: consumed, or pushed when nobody consumed."""
        return self.popped_count or self.pushed_count

    @property
    def pop_count(self) -> int:
        """Pops that brought messages."""
        return sum(len(c.pop_ms) for share in self.shares for c in share.consumers)

    @property
    def empty_count(self) -> int:
        return sum(c.empty_count for share in self.shares for c in share.consumers)

    @property
    def bytes_moved(self) -> int:
        received = sum(c.bytes_received for share in self.shares for c in share.consumers)
        return received + sum(share.bytes_sent for share in self.shares)

    @property
    def pushed(self) -> dict[str, range]:
        return {name: ids for share in self.shares for name, ids in share.pushed.items()}

    @property
    def deliveries(self) -> list[Delivery]:
        return [d for share in self.shares for c in share.consumers for d in c.deliveries]

    @property
    def intended_ns(self) -> dict[int, int]:
        return {id_: ns for share in self.shares for id_, ns in share.begun_ns.items()}

    @property
    def seconds(self) -> float:
        """Seconds from the first request to the last answer; above zero also without messages."""
        begin = min(share.begin_ns for share in self.shares)
        return max(max(share.end_ns for share in self.shares) - begin, 1) / 1e9

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.message_count / self.seconds

    @property
    def server_cost(self) -> float:
        """Core-seconds per million messages of workers and PostgreSQL together."""
        return self.cost(self.server.server if self.server else 0.0)

    def cost(self, seconds: float) -> float:
        return report.per_million(seconds, self.message_count)

    def costs(self) -> dict[str, float]:
        """Core-seconds per million messages of everybody who took part."""
        server = self.server or CoreSeconds()
        others = max(0.0, server.machine - server.server - self.load_core_seconds)
        return {
            "workers": self.cost(server.python),
            "postgres": self.cost(server.postgres),
            "server": self.cost(server.server),
            "load_generator": self.cost(self.load_core_seconds),
            "others": self.cost(others) if self.server else 0.0,
        }

    def latencies_ms(self) -> dict[str, list[float]]:
        """Of single requests, by kind."""
        found: dict[str, list[float]] = {}
        for share in self.shares:
            for kind, values in share.latencies_ms.items():
                found.setdefault(kind, []).extend(values)
            for consumer in share.consumers:
                found.setdefault("pop", []).extend(consumer.pop_ms)
                found.setdefault("ack", []).extend(consumer.ack_ms)
        found |= self.more_latencies_ms
        return {kind: values for kind, values in found.items() if values}

    def data(self) -> dict[str, Any]:
        """The machine-readable form."""
        server = self.server or CoreSeconds()
        return {
            "messages": self.message_count,
            "messages_per_second": round(self.rate),
            "seconds": round(self.seconds, 4),
            "bytes_moved": self.bytes_moved,
            "pushed": self.pushed_count,
            "popped": self.popped_count,
            "acknowledged": self.acknowledged_count,
            "pops": self.pop_count,
            "empty_pops": self.empty_count,
            "core_seconds_per_million": {k: round(v, 3) for k, v in self.costs().items()},
            "core_seconds": {
                "workers": round(server.python, 3),
                "postgres": round(server.postgres, 3),
                "load_generator": round(self.load_core_seconds, 3),
                "whole_machine": round(server.machine, 3),
            },
            "busiest_worker_share": round(server.busiest_worker_share(), 3),
            "worker_peak_bytes": self.worker_peak_bytes,
            "workers_pss_bytes": self.workers_pss_bytes,
            "latency_ms": {
                kind: report.curve(values) for kind, values in self.latencies_ms().items()
            },
            "server_pop_phases_ms": {name: round(ms, 1) for name, ms in self.phases_ms.items()},
            "server_counters": {name: n for name, n in self.counters.items() if n},
        }


_Reading = tuple[CoreSeconds, Metrics]


def measure(
    name: str,
    load: Load,
    console: Console,
    meter: Meter | None,
    metrics: Callable[[], Metrics] = Metrics,
) -> Measured:
    """Run *load* and read the meters before and after. Errors: `RequestFailed`."""
    memory = MemoryMeter(meter.worker_pids() if meter else [])

    def read() -> _Reading:
        return (meter.read() if meter else CoreSeconds(), metrics())

    driven = drive(load, console, read, memory.sample)
    (cores_before, metrics_before), (cores_after, metrics_after) = driven.before, driven.after
    return Measured(
        name,
        driven.shares,
        driven.load_core_seconds,
        cores_after - cores_before if meter else None,
        {
            phase: ms - metrics_before.popPhasesMs.get(phase, 0.0)
            for phase, ms in metrics_after.popPhasesMs.items()
        },
        {
            counter: count - metrics_before.counters.get(counter, 0)
            for counter, count in metrics_after.counters.items()
        },
        memory.largest_worker_bytes(),
        memory.pss_peak_bytes,
    )
