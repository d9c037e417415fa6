"""Ten thousand parked consumers: what it takes to wait, and who is woken by a push.

10,000 connections wait in a long poll, each for a partition of its own, as devices wait for their
messages. Workers are to hold them in less than 300 MB together (PSS, so that shared pages count
once), and a push to one partition wakes the one who waits there, in milliseconds. 200 pushes, ten
a second in an open loop, go to partitions in turn (a hundredth of them), while the others go on
waiting; nobody's wait may end without a message within the run, as each waits a minute.

The partitions exist: each had a message that was consumed before. What it takes to wait for one
that does not exist yet is measured apart, with 500 consumers and a server at rest to compare with.

The waiting consumers are four processes, each with an address of its own on the loopback net: one
address has 28,000 ports, and one process would need a tenth of a second to look at all its
connections. The clock starts, and with it the pushes, when the server has been asked for as many
pops as there are consumers.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench import report
from bench.driver import Subscription
from bench.load import Load
from bench.loads import consuming, endless_lanes, pacing, seeding
from bench.queen import Queen
from bench.scenarios import Context, Run, Scenario, Target
from bench.scenarios.latency import DELIVERY, with_delivery
from bench.scenarios.modes import idle_cost

_PROCESSES = 4
_WAIT_MS = 60_000


@dataclass(frozen=True)
class _Size:
    consumers: int
    pushes: int = 200
    rate: float = 10.0
    lanes: int = 100
    absent: int = 500
    absent_seconds: float = 8.0


_SIZES = {
    "small": _Size(200, 20, 20.0, 10, 50, 0.5),
    "quick": _Size(10_000, 50),
    "full": _Size(10_000),
}


def run(context: Context) -> Run:
    found = Run()
    size = context.pick(_SIZES)
    with context.server() as server:
        queue = context.queue(server, "parked")
        # Partitions that are pushed to are spread over all; the others stay empty.
        lanes = endless_lanes(size.consumers)
        names = list(lanes)
        first = {name: ids[:1] for name, ids in lanes.items()}
        driver = context.driver(server)
        seed = Load("make the partitions", [seeding(driver, queue, first)], size.consumers)
        context.measure(server, "make the partitions", seed)
        context.drain(server, found, "the first messages", queue, first)
        pushed = {name: lanes[name][1:] for name in names[:: size.consumers // size.lanes]}
        each = [
            [Subscription(queue, 1, name, wait_ms=_WAIT_MS) for name in names[part::_PROCESSES]]
            for part in range(_PROCESSES)
        ]
        parked = [
            consuming(
                Queen(server.url, source=f"127.0.0.{2 + part}"),
                mine,
                first_number=part * len(mine),
                parked=context.all_popped(server, size.consumers),
            )
            for part, mine in enumerate(each)
        ]
        seconds = size.pushes / size.rate
        pusher = pacing(Queen(server.url), queue, pushed, size.rate, seconds)
        load = Load("parked", [pusher, *parked], seconds=seconds)
        work = context.measure(server, f"{size.consumers:,} parked", load)
        found.figures["absent partitions: % of a core for each 100 consumers"] = idle_cost(
            context,
            server,
            [
                Subscription(queue, 1, f"absent-{number}", wait_ms=_WAIT_MS)
                for number in range(size.absent)
            ],
            size.absent_seconds,
        )
    found.check(
        f"nobody's wait ended without a message, run {context.number + 1}",
        work.empty_count == 0,
        f"{work.empty_count} did",
    )
    context.verify(found, "parked", work.pushed, work)
    work = with_delivery(work)
    found.add(work)
    found.figures["all workers: MB"] = work.workers_pss_bytes / 1e6
    found.figures["kB for each parked consumer"] = work.workers_pss_bytes / size.consumers / 1e3
    for quantile, ms in report.quantiles(work.latencies_ms()[DELIVERY]).items():
        found.figures[f"push to delivery: {quantile}, ms"] = ms
    return found


SCENARIO = Scenario(
    10,
    "parked",
    "10,000 parked long polls; a push wakes one",
    run,
    _SIZES,
    (
        Target("all workers: MB", at_most=300),
        Target("push to delivery: p50, ms", at_most=10),
        Target("push to delivery: p99, ms", at_most=50),
    ),
    {"processes of consumers": _PROCESSES},
)
