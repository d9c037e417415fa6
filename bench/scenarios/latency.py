"""Latency under a steady, light load, seen by a consumer of another worker.

An open loop of 1000 messages a second, one a request, spaced evenly. That is a quarter of what the
whole cycle is to carry, so queueing says little and the way through the server much. Latencies
count from when a message was to be sent (see `loads.py`), also that from push to delivery: a stall
of the server, or of this load generator, is seen by every message it delayed.

All producers are connected to one worker and all consumers to another, so every delivery takes a
wake-up between processes. 20 partitions, each with a connection that pushes into it, give each
partition a message in 20 ms; 40 consumers are parked on the queue, of which about four are busy at
a time, so somebody is always waiting. They pop single messages and acknowledge them. Two seconds
go ahead and are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench import report
from bench.check import Delivery
from bench.driver import Subscription
from bench.load import Load
from bench.loads import consuming, endless_lanes, pacing
from bench.measure import Measured
from bench.queen import Queen
from bench.scenarios import Context, Run, Scenario, Target

_RATE = 1000
_PARTITIONS = 20
_CONSUMERS = 40
_UNCOUNTED_S = 2.0

DELIVERY = "push to delivery"


@dataclass(frozen=True)
class _Size:
    seconds: float
    rate: int = _RATE


_SIZES = {"small": _Size(0.5, 200), "quick": _Size(8), "full": _Size(30)}


def run(context: Context) -> Run:
    found = Run()
    size = context.pick(_SIZES)
    with context.server(max(2, context.workers)) as server:
        pids = server.meter.worker_pids()
        producer, consumer = Queen(server.url, pids[0]), Queen(server.url, pids[-1])
        queue = context.queue(server, "latency")
        seconds = size.seconds + (0.0 if context.size == "small" else _UNCOUNTED_S)
        lanes = endless_lanes(_PARTITIONS)
        load = Load(
            "push, deliver",
            [
                pacing(producer, queue, lanes, size.rate, seconds),
                consuming(consumer, [Subscription(queue, 1)] * _CONSUMERS),
            ],
            seconds=seconds,
        )
        work = context.measure(server, "1000 msg/s", load)
    context.verify(found, "push, deliver", work.pushed, work)
    work = with_delivery(work, seconds - size.seconds)
    found.add(work)
    for name, kind in (("push", "push"), ("push to delivery", DELIVERY)):
        for quantile, ms in report.quantiles(work.latencies_ms()[kind]).items():
            found.figures[f"{name}: {quantile}, ms"] = ms
    return found


def with_delivery(work: Measured, uncounted_s: float = 0.0) -> Measured:
    """The same with the latencies from when a message was to be sent until a consumer had it.

    What was to be sent in the first *uncounted_s* is left out, of both.
    """
    intended = work.intended_ns
    counted_ns = min(intended.values()) + int(uncounted_s * 1e9)
    delivered = [ms for delivery in work.deliveries for ms in _of(delivery, intended, counted_ns)]
    # Pushes are listed in the order they ended, which is that of their times but for a few.
    skipped = sum(ns < counted_ns for ns in intended.values())
    for share in work.shares:
        share.latencies_ms = {kind: ms[skipped:] for kind, ms in share.latencies_ms.items()}
    return replace(work, more_latencies_ms={DELIVERY: delivered})


def _of(delivery: Delivery, intended: Mapping[int, int], counted_ns: int) -> list[float]:
    """The latencies of a delivery's messages, as far as they were paced."""
    return [
        (delivery.received_ns - intended[id_]) / 1e6
        for start, stop in delivery.runs
        for id_ in range(start, stop)
        if intended.get(id_, 0) >= counted_ns
    ]


SCENARIO = Scenario(
    6,
    "latency",
    "latency: open loop, one message a request, parked consumers in another worker",
    run,
    _SIZES,
    (
        Target("push: p50, ms", at_most=2),
        Target("push to delivery: p50, ms", at_most=4),
        Target("push to delivery: p99, ms", at_most=25),
    ),
    {"partitions": _PARTITIONS, "consumers": _CONSUMERS, "not counted, s": _UNCOUNTED_S},
)
