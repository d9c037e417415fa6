"""Queue mode against partition mode, with more and more consumers, and what idle ones cost.

Consumers that pop a queue without naming partitions must not take turns behind locks: that is the
collapse this project grew out of. Ten partitions and 1, 2, 3 and 4 times as many consumers; with
more consumers than partitions somebody is always without one, and has to park rather than spin. The
ratio is taken for each number of consumers in one run, and the lowest of the four counts. Pops of
1000 (not the 10,000 of the root-cause scenario) hand a partition on a hundred times as often as
there are consumers. The order of the two modes turns round.

A parked consumer should cost nothing. 1000 of them wait on an empty queue, whose server is compared
with the same server at rest just before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.check import Shares
from bench.driver import Subscription
from bench.load import Load
from bench.loads import Pushes, consuming, resting
from bench.measure import Measured
from bench.scenarios import Context, Run, Scenario, Target
from bench.server import Server

_PARTITIONS = 10
_BATCH = 1000
_PUSH_BATCH = 10_000
_CONNECTIONS = 4
_MODES = ("partition", "queue")


@dataclass(frozen=True)
class _Size:
    messages: int
    idle_consumers: int
    idle_seconds: float
    times: tuple[int, ...] = (1, 2, 3, 4)


_SIZES = {
    "small": _Size(2_000, 50, 0.5, (1, 4)),
    "quick": _Size(200_000, 1000, 6),
    "full": _Size(1_000_000, 1000, 20),
}


def run(context: Context) -> Run:
    found = Run()
    size = context.pick(_SIZES)
    lines: dict[str, list[tuple[float, float]]] = {mode: [] for mode in _MODES}
    with context.server() as server:
        for times in size.times:
            modes = _MODES if (context.number + times) % 2 else _MODES[::-1]
            works = {mode: _pass(context, server, found, mode, times) for mode in modes}
            found.add(*(works[mode] for mode in _MODES))
            for mode in _MODES:
                lines[mode].append((times * _PARTITIONS, works[mode].rate))
            found.figures[f"queue / partition mode, {times * _PARTITIONS} consumers"] = (
                works["queue"].rate / works["partition"].rate
            )
        found.figures["queue / partition mode, lowest"] = min(found.figures.values())
        wanted = Subscription(context.queue(server, "empty"), 1, wait_ms=60_000)
        found.figures["% of a core for each 100 idle consumers"] = idle_cost(
            context, server, [wanted] * size.idle_consumers, size.idle_seconds
        )
    found.scaling["messages a second with more consumers of 10 partitions"] = (
        "consumers",
        {f"{mode} mode": points for mode, points in lines.items()},
    )
    return found


def _pass(context: Context, server: Server, found: Run, mode: str, times: int) -> Measured:
    shares = Shares(context.pick(_SIZES).messages, _PARTITIONS)
    name = f"{mode} mode, {times * _PARTITIONS} consumers"
    queue = context.queue(server, f"{mode}-{times}")
    push_batch = min(_PUSH_BATCH, len(shares.ids(0)))
    pushes = Pushes(queue, shares.lanes, push_batch, _CONNECTIONS)
    context.push(server, f"push, {name}", pushes)
    subscriptions = [
        Subscription(queue, _BATCH, partition if mode == "partition" else None)
        for partition in shares.partitions * times
    ]
    pop = context.consume(server, name, subscriptions, shares.message_count)
    context.verify(found, name, shares.lanes, pop)
    return pop


def idle_cost(
    context: Context, server: Server, subscriptions: Sequence[Subscription], seconds: float
) -> float:
    """Per cent of a core that each 100 parked consumers take, above a server at rest."""
    rest = Load("at rest", [resting(seconds)], seconds=seconds)
    alone = context.measure(server, "at rest", rest)
    parked = consuming(
        context.driver(server),
        subscriptions,
        parked=context.all_popped(server, len(subscriptions)),
    )
    idle = Load("idle", [resting(seconds), parked], seconds=seconds)
    waiting = context.measure(server, "idle", idle)
    assert alone.server is not None
    assert waiting.server is not None
    cores = (waiting.server.server - alone.server.server) / seconds
    return 100 * cores / (len(subscriptions) / 100)


SCENARIO = Scenario(
    7,
    "modes",
    "queue mode against partition mode, 1 to 4 consumers for each partition; idle consumers",
    run,
    _SIZES,
    (
        Target("queue / partition mode, lowest", at_least=0.9),
        Target("% of a core for each 100 idle consumers", at_most=1),
    ),
    {"partitions": _PARTITIONS, "messages a pop": _BATCH},
)
