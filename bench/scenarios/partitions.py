"""Many partitions: nothing may grow with how many a queue has.

10, 1,000 and 100,000 partitions (a million at the size `long`, which takes some minutes and 2 GB of
disk), each holding two messages, so that every one of them has something to read. They are seeded
1000 partitions a request. Then one client, in turn, pushes two messages into a partition picked by
chance, pops two from whichever the server picks, and acknowledges them: the backlog stays, and
nothing else goes on, so latencies are those of the work itself. 500 rounds give a median to trust.
Each number of partitions is a queue of its own on the same server, the smallest first. The client
is served by another worker than the one that seeded: what a worker remembers of the partitions it
has seen must not be what makes the figures flat.

Flat means that the largest median is at most twice the smallest, over all numbers of partitions;
for the memory, the peak of the largest worker.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from bench.client import RequestFailed
from bench.driver import Driver, Lot, Subscription
from bench.load import Board, Gate, Load, Share, Work
from bench.loads import SEED_PARTITIONS, endless_lanes, new_share, pop_once, seeding
from bench.measure import Measured
from bench.queen import Queen
from bench.scenarios import Context, Run, Scenario, Target
from bench.server import Server

_EACH = 2


@dataclass(frozen=True)
class _Size:
    counts: tuple[int, ...]
    rounds: int = 500


_SIZES = {
    "small": _Size((10, 100), 10),
    "quick": _Size((10, 1_000, 20_000), 200),
    "full": _Size((10, 1_000, 100_000)),
    "long": _Size((10, 1_000, 100_000, 1_000_000)),
}


def run(context: Context) -> Run:
    found = Run()
    size = context.pick(_SIZES)
    pops, pushes, peaks = [], [], []
    with context.server() as server:
        for count in size.counts:
            seed, work = _measure(context, server, found, count, size.rounds)
            found.add(seed, work)
            pops.append(median(work.latencies_ms()["pop"]))
            pushes.append(median(work.latencies_ms()["push"]))
            peaks.append(work.worker_peak_bytes / 1e6)
            found.figures[f"{count:,} partitions: pop, p50, ms"] = pops[-1]
            found.figures[f"{count:,} partitions: push, p50, ms"] = pushes[-1]
            found.figures[f"{count:,} partitions: largest worker, MB"] = peaks[-1]
    for name, values in (("pop", pops), ("push", pushes), ("memory", peaks)):
        found.figures[f"{name}: largest / smallest"] = max(values) / min(values)
    found.scaling["pop and push while a queue has ever more partitions"] = (
        "partitions",
        {
            "pop, p50, ms": list(zip(size.counts, pops, strict=True)),
            "push, p50, ms": list(zip(size.counts, pushes, strict=True)),
        },
    )
    return found


def _measure(
    context: Context, server: Server, found: Run, count: int, rounds: int
) -> tuple[Measured, Measured]:
    name = f"{count:,} partitions"
    queue = context.queue(server, f"partitions-{count}")
    pids = server.meter.worker_pids()
    seeder, driver = Queen(server.url, pids[0]), Queen(server.url, pids[-1])
    lanes = endless_lanes(count)
    seeded = {partition: ids[:_EACH] for partition, ids in lanes.items()}
    load = Load(f"seed {name}", [seeding(seeder, queue, seeded)], count * _EACH)
    seed = context.measure(server, f"seed {name}", load)
    pushed = dict(seeded)
    # Picked by chance but the same in every run.
    rng = Random(count)
    plan: list[Lot] = []
    for _ in range(rounds):
        partition = str(rng.randrange(count))
        at = len(pushed[partition])
        plan.append((partition, lanes[partition][at : at + _EACH]))
        pushed[partition] = lanes[partition][: at + _EACH]
    load = Load(name, [_walking(driver, queue, plan)], 2 * rounds * _EACH)
    work = context.measure(server, name, load)
    left = count * _EACH
    wanted = Subscription(queue, 10_000, partitions=64, wait_ms=1000)
    rest = context.consume(server, f"check of {name}", [wanted] * 4, left)
    context.verify(found, name, pushed, work, rest)
    return seed, work


def _walking(driver: Driver, queue: str, plan: Sequence[Lot]) -> Work:
    """Push each lot of *plan*, pop as much from anywhere, and acknowledge it."""

    async def work(process: int, board: Board, gate: Gate) -> Share:
        producer = await driver.producer()
        wanted = Subscription(queue, _EACH)
        consumer = await driver.consumer(wanted)
        share = new_share(0)
        gate.pass_together()
        begin_ns = time.monotonic_ns()
        push_ms = []
        for lot in plan:
            body = driver.encode(queue, [lot])
            sent_ns = time.monotonic_ns()
            await producer.push(body, _EACH)
            push_ms.append((time.monotonic_ns() - sent_ns) / 1e6)
            board.add_pushed(process, _EACH)
            popped = await pop_once(share, wanted, consumer)
            if popped is None or popped.message_count != _EACH:
                raise RequestFailed(f"a pop of {queue} did not bring {_EACH} messages: {popped}")
            board.add_consumed(process, _EACH)
        end_ns = time.monotonic_ns()
        producer.close()
        consumer.close()
        return Share(begin_ns, end_ns, consumers=[share], latencies_ms={"push": push_ms})

    return work


SCENARIO = Scenario(
    8,
    "partitions",
    "ever more partitions: pop of the whole queue, push, memory",
    run,
    _SIZES,
    (
        Target("pop: largest / smallest", at_most=2),
        Target("push: largest / smallest", at_most=2),
        Target("memory: largest / smallest", at_most=2),
    ),
    {"messages in each partition": _EACH, "partitions seeded a request": SEED_PARTITIONS},
)
