"""Slow readers beside normal traffic: a large answer that trickles out may delay nobody.

Four readers take answers of 1 MB and two take answers of 10 MB, all at 1 MB/s, one after the other
as long as the run lasts. They set their receive buffer to 64 KB, so that the kernel does not take
the answer in their place: a 10 MB answer is under way for ten seconds, and what the server keeps of
it meanwhile shows in the memory of the largest worker.

Normal traffic is an open loop of 200 single messages a second with parked consumers, a fifth of
that of the latency scenario, because a noisy neighbour shows in a calm place. It runs first alone,
then beside the readers, in the same run. The 99th percentile of pushes and of deliveries is to be
the same within noise: a ratio of at most 1.5 of the medians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench import report
from bench.check import Lanes
from bench.driver import Subscription
from bench.load import Load, Work
from bench.loads import Pushes, consuming, endless_lanes, pacing
from bench.measure import Measured
from bench.queen import Queen
from bench.scenarios import Context, Run, Scenario, Target, count_of
from bench.scenarios.latency import DELIVERY, with_delivery
from bench.server import Server

_RATE = 200
_PARTITIONS = 10
_CONSUMERS = 20
_BYTES_PER_SECOND = 1_000_000
_PAYLOAD_BYTES = 1000
_ANSWER_BYTES = 1420  # of such a message in an answer


@dataclass(frozen=True)
class _Size:
    seconds: float
    answers: tuple[int, ...] = (*[1_000_000] * 4, *[10_000_000] * 2)  # of each reader, in bytes


_SIZES = {"small": _Size(2, (1_000_000, 2_000_000)), "quick": _Size(12), "full": _Size(30)}


def run(context: Context) -> Run:
    found = Run()
    size = context.pick(_SIZES)
    with context.server() as server:
        alone = _traffic(context, server, found, "alone")
        queue = context.queue(server, "slow")
        lanes, readers = {}, []
        for number, answer in enumerate(size.answers):
            name, batch = f"slow-{number}", answer // _ANSWER_BYTES
            # As many answers as take the whole time, and no less than one.
            count = max(1, int(size.seconds * _BYTES_PER_SECOND / answer)) * batch
            # Beyond the ids of the normal traffic, which is checked together with it.
            start = (_PARTITIONS + number) * 10**9
            lanes[name] = range(start, start + count)
            readers.append(Subscription(queue, batch, name))
        pushes = Pushes(queue, lanes, 500, len(lanes), _PAYLOAD_BYTES)
        context.push(server, "messages for slow readers", pushes)
        reading = consuming(
            Queen(server.url, bytes_per_second=_BYTES_PER_SECOND), readers, first_number=_CONSUMERS
        )
        beside = _traffic(context, server, found, "beside slow readers", [reading], lanes)
    found.add(alone, beside)
    for name, kind in (("push", "push"), ("push to delivery", DELIVERY)):
        calm, noisy = (
            report.quantiles(work.latencies_ms()[kind])["p99"] for work in (alone, beside)
        )
        found.figures[f"{name}: p99 alone, ms"] = calm
        found.figures[f"{name}: p99 beside slow readers, ms"] = noisy
        found.figures[f"{name}: p99 beside slow readers / alone"] = noisy / calm
    return found


def _traffic(
    context: Context,
    server: Server,
    found: Run,
    name: str,
    readers: Sequence[Work] = (),
    slow: Lanes | None = None,
) -> Measured:
    """The normal traffic, and *readers* beside it, who consume *slow*."""
    seconds = context.pick(_SIZES).seconds
    queue = context.queue(server, "normal")
    driver = context.driver(server)
    load = Load(
        name,
        [
            pacing(driver, queue, endless_lanes(_PARTITIONS), _RATE, seconds),
            consuming(driver, [Subscription(queue, 1)] * _CONSUMERS),
            *readers,
        ],
        seconds=seconds,
        backlog_count=count_of(slow or {}),
    )
    work = context.measure(server, name, load)
    context.verify(found, name, {**work.pushed, **(slow or {})}, work)
    return with_delivery(work)


SCENARIO = Scenario(
    11,
    "slow-readers",
    "answers of 1 MB and 10 MB to readers at 1 MB/s, beside normal traffic",
    run,
    _SIZES,
    (
        Target("push: p99 beside slow readers / alone", at_most=1.5),
        Target("push to delivery: p99 beside slow readers / alone", at_most=1.5),
    ),
    {
        "normal traffic, msg/s": _RATE,
        "partitions": _PARTITIONS,
        "consumers": _CONSUMERS,
        "bytes a second of a slow reader": _BYTES_PER_SECOND,
        "payload bytes": _PAYLOAD_BYTES,
    },
)
